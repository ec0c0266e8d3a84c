// The published client against a deployment that somebody else starts, and the API server of its application. Driven by lines on
// standard input, each a JSON list with a word; answers each with a line of JSON.
//
//   node real-client/deployment.mjs POSTGRES_URL NEW_DATABASE API_ADDRESS CACHE_URL

import {createInterface} from 'node:readline';
import {setTimeout as sleep} from 'node:timers/promises';
import {startApplication} from './application.mjs';
import {show} from './view.mjs';

const [postgres, name, address, cacheURL] = process.argv.slice(2);
const PATIENCE_MS = 120_000;
const say = answer => console.log(JSON.stringify(answer));

const application = await startApplication('1-9', {url: postgres}, name, address);
const {sql, queries, mutators} = application;
say({port: Number(new URL(application.api.url).port)});

let zero;
let view;
const words = {
  /** The client waits for 5 s between two attempts, so it is started when somebody answers. */
  async connect() {
    while (!(await fetch(`${cacheURL}/keepalive`).then(r => r.ok, () => false))) await sleep(100);
    zero = application.client(cacheURL, 'one', {logSink: {log() {}}});
    view = show(zero, queries.page({limit: 5}), PATIENCE_MS);
    const rows = await view.complete();
    return {rows: rows.length};
  },
  async work() {
    const [first] = view.state.data;
    const result = await zero.mutate(mutators.book.retitle({id: first.id, title: 'By the client'})).server;
    if (result?.type === 'error') throw new Error(JSON.stringify(result));
    await sql`UPDATE book SET title = 'By Postgres' WHERE id = ${first.id} AND title = 'By the client'`;
    const rows = await view.until('the change', rows => rows[0].title === 'By Postgres');
    return {title: rows[0].title};
  },
};

for await (const line of createInterface({input: process.stdin})) {
  const [word] = JSON.parse(line);
  say(await words[word]());
}
await zero?.close();
await application.stop();
