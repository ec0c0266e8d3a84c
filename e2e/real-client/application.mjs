// An application made with one version of the published packages: its tables, its API server, its clients.

import postgres from 'postgres';
import {startAPI} from './api.mjs';
import {TABLES, makeModel} from './model.mjs';

/** `name` becomes the name of its database; the API server listens on the address. */
export async function startApplication(version, database, name, address = '127.0.0.1') {
  const zero = await import(`zero-${version}`);
  const server = await import(`zero-${version}/server`);
  const adapter = await import(`zero-${version}/server/adapters/postgresjs`);
  const admin = postgres(database.url, {max: 1, onnotice: () => {}});
  await admin.unsafe(`CREATE DATABASE ${name}`);
  await admin.end();
  const url = Object.assign(new URL(database.url), {pathname: `/${name}`}).toString();
  const sql = postgres(url, {max: 6, onnotice: () => {}});
  await sql.unsafe(TABLES);
  const model = makeModel(zero);
  const {schema, queries, mutators} = model;
  const api = await startAPI({sql, model, zero, server, adapter, positional: Number(version.split('-')[1]) < 5, address});
  return {
    sql,
    api,
    queries,
    mutators,
    /** What a node that serves this application needs. */
    environment: {ZERO_UPSTREAM_DB: url, ZERO_QUERY_URL: `${api.url}/query`, ZERO_MUTATE_URL: `${api.url}/mutate`},
    /** Clients with the same storage key share their storage and are one client group, like tabs of a browser. */
    client: (cacheURL, storageKey, options = {}) =>
      new zero.Zero({
        schema,
        queries,
        mutators,
        userID: 'reader',
        kvStore: 'mem',
        logLevel: 'error',
        context: {},
        cacheURL,
        storageKey,
        ...options,
      }),
    async stop() {
      api.close();
      await sql.end();
    },
  };
}
