// Who lives through a switch of servers: readers that also write, and a writer beside them in Postgres.

import assert from 'node:assert/strict';
import {setTimeout as sleep} from 'node:timers/promises';
import {ids, show} from './view.mjs';

/** The published client waits for 5 s before it connects again. */
const PATIENCE_MS = 60_000;
const byText = (a, b) => (a < b ? -1 : 1);

/** A page with two queries that raises a number of its own again and again, whether it is connected or not. */
export class Reader {
  raised = 0;
  /** How often it was told to start over. */
  restarts = 0;
  /** How many raises its former pages may have lost. What they had sent may still arrive. */
  excused = 0;
  #isLoading = false;
  #pending = new Set();
  #application;
  #url;
  #number;
  #zero;
  #library;
  #thickest;
  #timer;

  constructor(application, url, number) {
    this.#application = application;
    this.#url = url;
    this.#number = number;
    this.row = `tally-${number}`;
    this.#open();
  }

  /** As the page of an application does it when it is loaded. */
  #open() {
    const {queries} = this.#application;
    this.#zero = this.#application.client(this.#url, this.row, {
      logSink: {log() {}},
      onClientStateNotFound: () => this.#startOver(),
      onUpdateNeeded: () => this.#startOver(),
    });
    this.#library = show(this.#zero, queries.library(), PATIENCE_MS);
    this.#thickest = show(this.#zero, queries.thickest({limit: 3 + (this.#number % 5)}), PATIENCE_MS);
  }

  /** What was pending is gone with the page. */
  async #startOver() {
    if (this.#isLoading) return;
    this.#isLoading = true;
    this.restarts++;
    this.excused += this.#pending.size;
    this.#pending.clear();
    await this.#zero.close().catch(() => {});
    this.#open();
    this.#isLoading = false;
  }

  complete() {
    return Promise.all([this.#library.complete(), this.#thickest.complete()]);
  }

  raise() {
    if (this.#isLoading) return;
    this.raised++;
    const {client, server} = this.#zero.mutate(this.#application.mutators.review.raise({id: this.row}));
    client.catch(() => {});
    // What came of it is in Postgres. A page that is told to start over has its answers refused first.
    const fail = () => this.excused++;
    const done = server.then(result => result?.type === 'error' && fail(), fail).then(() => this.#pending.delete(done));
    this.#pending.add(done);
  }

  /** Waits until the server has answered everything that was raised, but for what is gone with a former page. */
  async settled() {
    for (const deadline = Date.now() + PATIENCE_MS; this.#isLoading || this.#pending.size > 0; await sleep(20)) {
      assert.ok(Date.now() < deadline, `reader ${this.#number} waits for ${this.#pending.size} answers`);
    }
  }

  raiseEvery(ms) {
    this.rest();
    this.#timer = setInterval(() => this.raise(), ms);
  }

  rest() {
    clearInterval(this.#timer);
  }

  /** Waits for the title and compares what is shown with the rows, as far as `select` leaves them. */
  async check(title, rows, select) {
    const what = `reader ${this.#number} to see ${title}`;
    // Who starts over meanwhile sees it in its new view.
    for (const deadline = Date.now() + PATIENCE_MS; ; await sleep(20)) {
      const {data, type} = this.#library.state;
      if (type === 'complete' && data.find(book => book.id === 'b1')?.title === title) break;
      assert.ok(Date.now() < deadline, `waited for ${what}; the view is ${type} with ${data?.length} books`);
    }
    const shown = this.#library.state.data.map(book => [book.id, book.title, book.pages, book.reviews.map(r => [r.id, r.stars]).sort(byText)]);
    assert.deepEqual(shown.sort(byText).map(select), rows.map(select), `reader ${this.#number}`);
    const thickest = [...rows].filter(([id]) => !this.#isLent(id)).sort((a, b) => b[2] - a[2] || byText(a[0], b[0]));
    assert.deepEqual(ids(this.#thickest.state.data), thickest.slice(0, 3 + (this.#number % 5)).map(([id]) => id), `reader ${this.#number}`);
  }

  #isLent(id) {
    return this.#library.state.data.find(book => book.id === id).lent;
  }

  close() {
    this.rest();
    return this.#zero.close();
  }
}

/** Changes rows in Postgres, while it is at work, without a pause. */
export class Writer {
  written = 0;
  #sql;
  #working = false;
  #done = Promise.resolve();

  constructor(sql) {
    this.#sql = sql;
  }

  start() {
    if (this.#working) return;
    this.#working = true;
    this.#done = this.#work();
  }

  stop() {
    this.#working = false;
    return this.#done;
  }

  async #work() {
    while (this.#working) {
      const n = this.written++;
      await this.#sql`UPDATE book SET pages = ${(n * 37) % 900} WHERE id = ${`b${2 + (n % 48)}`}`;
      await this.#sql`INSERT INTO review VALUES (${`w${n}`}, ${`b${1 + (n % 50)}`}, 'Written', ${n % 6})`;
      await this.#sql`DELETE FROM review WHERE id = ${`w${n - 40}`}`;
      await sleep(10);
    }
  }
}

/** The row of a book without what readers write. */
export const withoutRaises = ([id, title, pages, reviews]) => [id, title, pages, reviews.filter(([review]) => !review.startsWith('tally-'))];

/** All that readers show, as it is in Postgres. */
export async function libraryRows(sql) {
  const rows = await sql`SELECT id, title, pages,
    (SELECT json_agg(json_build_array(r.id, r.stars)) FROM review r WHERE r.book_id = book.id) AS reviews FROM book`;
  return rows.map(row => [row.id, row.title, row.pages, (row.reviews ?? []).sort(byText)]).sort(byText);
}

/** Fails when a raise is not in Postgres, or is there twice. Only of who was told to start over some may be missing: how many. */
export async function countMissing(sql, readers) {
  await Promise.all(readers.map(reader => reader.settled()));
  const rows = await sql`SELECT id, stars FROM review WHERE id LIKE 'tally-%'`;
  const found = new Map(rows.map(row => [row.id, row.stars]));
  let sum = 0;
  for (const reader of readers) {
    const missing = reader.raised - found.get(reader.row);
    assert.ok(missing >= 0 && missing <= reader.excused, `${reader.row}: of ${reader.raised} raises ${missing} are missing, ${reader.excused} may be`);
    sum += missing;
  }
  return sum;
}
