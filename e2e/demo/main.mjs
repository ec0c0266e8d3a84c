// Starts Postgres, the API server with the web app, and zero-cache; stops them in reverse order.
//
//   node main.mjs DATA_FOLDER        (use ./run, which installs and builds what is missing)

import {spawnSync} from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import process from 'node:process';
import {setTimeout as sleep} from 'node:timers/promises';
import postgres from 'postgres';
import {startWeb} from './api.mjs';
import {buildApp} from './build.mjs';
import {freePort, freePorts} from './ports.mjs';
import {startPostgres} from './postgres.mjs';
import {startProcess} from './processes.mjs';
import {ISSUES, seed} from './seed.mjs';

const folder = path.resolve(process.argv[2] ?? '.zero-demo');
const binary = process.env.ZERO_CACHE_BIN;
const began = performance.now();
const running = [];
let stopping;

const say = text => console.log(text);

async function stop(status) {
  stopping ??= (async () => {
    say('\nStopping ...');
    for (const part of running.reverse()) {
      try {
        await part.stop();
        say(`  ${part.name} stopped`);
      } catch (e) {
        console.error(`  ${part.name} did not stop cleanly: ${e.message}`);
        status = 1;
      }
    }
    process.exit(status);
  })();
  return stopping;
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => stop(0));

/** Two demos in one folder would fight for the database. */
function claimFolder() {
  fs.mkdirSync(folder, {recursive: true});
  const claim = path.join(folder, 'running.json');
  try {
    const other = JSON.parse(fs.readFileSync(claim, 'utf8'));
    const command = fs.readFileSync(`/proc/${other.pid}/cmdline`, 'utf8');
    if (command.includes('main.mjs')) {
      throw new Error(`the demo already runs (process ${other.pid}): ${other.url ?? 'still starting'}`);
    }
  } catch (e) {
    if (e.message?.startsWith('the demo already')) throw e;
  }
  const write = url => fs.writeFileSync(claim, JSON.stringify({pid: process.pid, url}));
  write();
  running.push({name: 'demo', stop: async () => fs.rmSync(claim, {force: true})});
  return write;
}

async function main() {
  if (!binary || !fs.existsSync(binary)) throw new Error('set ZERO_CACHE_BIN to the zero-cache binary, or start the demo with ./run');
  const announce = claimFolder();

  say('Starting PostgreSQL 18 ...');
  const database = await startPostgres(folder, await freePort(54320), say);
  running.push(database);

  const sql = postgres(database.url, {max: 10, onnotice: () => {}});
  running.push({name: 'database pool', stop: () => sql.end({timeout: 2})});
  const [{seeded}] = await sql`SELECT to_regclass('public.issue') IS NOT NULL AS seeded`;
  if (seeded) {
    const [{count}] = await sql`SELECT count(*)::int AS count FROM issue`;
    say(`Keeping the data of the last run (${count.toLocaleString('en')} issues; delete ${folder} to start afresh)`);
  } else {
    say(`Loading ${ISSUES.toLocaleString('en')} issues with comments, labels and people ...`);
    await seed(sql);
  }

  say('Building the web app ...');
  const app = await buildApp();
  const webPort = await freePort(3000);
  const syncPort = await freePorts(4848, 3);
  const web = await startWeb({sql, app, port: webPort, syncPort});
  running.push(web);

  say('Starting zero-cache ...');
  const logFile = path.join(folder, 'zero-cache.log');
  const server = startProcess('zero-cache', binary, [], {
    signal: 'TERM',
    logFile,
    env: {
      ...process.env,
      ZERO_UPSTREAM_DB: database.url,
      ZERO_REPLICA_FILE: path.join(folder, 'replica.db'),
      ZERO_PORT: String(syncPort),
      ZERO_QUERY_URL: `http://127.0.0.1:${webPort}/api/query`,
      ZERO_MUTATE_URL: `http://127.0.0.1:${webPort}/api/mutate`,
      ZERO_ADMIN_PASSWORD: process.env.ZERO_ADMIN_PASSWORD ?? 'demo',
      ZERO_ENABLE_TELEMETRY: 'false',
    },
  });
  running.push(server);
  server.ended.then(status => {
    if (stopping) return;
    console.error(`zero-cache ended with status ${status}; its log ends:\n${tail(logFile)}`);
    void stop(1);
  });
  await ready(syncPort, logFile);

  const url = `http://localhost:${webPort}/`;
  announce(url);
  say(`\nReady in ${((performance.now() - began) / 1000).toFixed(1)} s:  \x1b[1m${url}\x1b[0m`);
  say('Open it in two windows side by side and change something in one of them. Ctrl-C stops the demo.\n');
  say(`  sync server   http://localhost:${syncPort}/   log: ${logFile}`);
  const urlFile = path.join(folder, 'database-url');
  fs.writeFileSync(urlFile, database.url, {mode: 0o600});
  say(`  database      psql "$(cat ${urlFile})"`);
  if (process.env.ZERO_DEMO_OPEN) spawnSync('xdg-open', [url]);
}

async function ready(port, logFile) {
  const deadline = Date.now() + 120_000;
  while (Date.now() < deadline) {
    if (stopping) return stopping;
    const status = await new Promise(resolve => {
      const request = http.get({port, host: '127.0.0.1', path: '/'}, answer => {
        answer.resume();
        resolve(answer.statusCode);
      });
      request.on('error', () => resolve(0));
    });
    if (status === 200) return;
    await sleep(25);
  }
  throw new Error(`zero-cache was not ready within two minutes; its log ends:\n${tail(logFile)}`);
}

function tail(file) {
  return fs.readFileSync(file, 'utf8').split('\n').slice(-20).join('\n');
}

try {
  await main();
} catch (e) {
  console.error(`demo: ${e.message}`);
  await stop(1);
}
