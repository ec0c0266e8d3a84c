// The web server: the app's files, and the two endpoints that zero-cache calls, made with the published server library.

import http from 'node:http';
import {mustGetMutator, mustGetQuery} from '@rocicorp/zero';
import {handleMutateRequest, handleQueryRequest} from '@rocicorp/zero/server';
import {zeroPostgresJS} from '@rocicorp/zero/server/adapters/postgresjs';
import {mutators, queries, schema} from './model.mjs';

const BODY_BYTES_MAX = 10 * 1024 * 1024;

export async function startWeb({sql, app, port, syncPort}) {
  const dbProvider = zeroPostgresJS(schema, sql);
  const people = await sql`SELECT id, name, handle, hue FROM person ORDER BY name`;
  const known = new Set(people.map(person => person.id));
  const config = JSON.stringify({syncPort, people});

  /** The demo's sign-in: the token is the person's ID. A real application would check a session here. */
  const userOf = request => {
    const id = request.headers.authorization?.replace(/^Bearer /, '');
    return known.has(id) ? id : undefined;
  };

  async function endpoint(name, request, url) {
    const body = JSON.parse(await read(request));
    const userID = userOf(request);
    const ctx = {userID};
    const common = {query: url.searchParams, body, userID, logLevel: 'error'};
    if (name === 'query') {
      return handleQueryRequest({...common, schema, handler: (query, args) => mustGetQuery(queries, query).fn({args, ctx})});
    }
    return handleMutateRequest({
      ...common,
      dbProvider,
      handler: transact => transact((tx, mutator, args) => mustGetMutator(mutators, mutator).fn({tx, args, ctx})),
    });
  }

  const server = http.createServer(async (request, response) => {
    const url = new URL(request.url, 'http://localhost');
    const send = (status, type, content) => response.writeHead(status, {'content-type': type, 'cache-control': 'no-cache'}).end(content);
    try {
      const api = /^\/api\/(query|mutate)$/.exec(url.pathname)?.[1];
      if (api) {
        if (request.method !== 'POST') return send(405, 'text/plain', 'POST only');
        if (!userOf(request)) return send(401, 'text/plain', 'unknown user');
        return send(200, 'application/json', JSON.stringify(await endpoint(api, request, url)));
      }
      if (url.pathname === '/config.json') return send(200, 'application/json', config);
      const file = app.get(url.pathname) ?? (/\.\w+$/.test(url.pathname) ? undefined : app.get('/'));
      if (!file) return send(404, 'text/plain', 'not found');
      send(200, file.type, file.content);
    } catch (e) {
      console.error(`${request.method} ${url.pathname}: ${e.message}`);
      send(500, 'text/plain', e.message);
    }
  });
  await new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, '127.0.0.1', resolve);
  });
  return {
    name: 'web server',
    stop: () =>
      new Promise(resolve => {
        server.close(resolve);
        server.closeAllConnections();
      }),
  };
}

async function read(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > BODY_BYTES_MAX) throw new Error('the request is too large');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}
