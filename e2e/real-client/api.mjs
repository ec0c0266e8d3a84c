// The API server of these tests, made with the server half of the package under test.

import http from 'node:http';

export async function startAPI({sql, model, zero, server, adapter, positional, address}) {
  const {schema, zql, queries, mutators} = model;
  const dbProvider = adapter.zeroPostgresJS(schema, sql);
  const calls = {query: 0, mutate: 0};
  const userID = 'reader';

  function query(name, args) {
    if (name === 'secret') throw new Error('readers may not see this');
    if (name === 'unreviewed') return zql.book.where(({not, exists}) => not(exists('reviews')));
    return zero.mustGetQuery(queries, name).fn({args, ctx: {}});
  }

  const handler = transact => transact((tx, name, args) => zero.mustGetMutator(mutators, name).fn({tx, args, ctx: {}}));
  // The package took positional arguments before 1.5.
  const endpoints = {
    '/query': (body, params) =>
      positional
        ? server.handleQueryRequest(query, schema, body, 'error')
        : server.handleQueryRequest({handler: query, schema, query: params, body, userID, logLevel: 'error'}),
    '/mutate': (body, params) =>
      positional
        ? server.handleMutateRequest(dbProvider, handler, params, body, 'error')
        : server.handleMutateRequest({dbProvider, handler, query: params, body, userID, logLevel: 'error'}),
  };

  const listener = http.createServer(async (request, response) => {
    const url = new URL(request.url, 'http://localhost');
    const endpoint = endpoints[url.pathname];
    if (!endpoint) return response.writeHead(404).end();
    calls[url.pathname.slice(1)]++;
    try {
      let text = '';
      for await (const chunk of request.setEncoding('utf8')) text += chunk;
      const answer = await endpoint(JSON.parse(text), Object.fromEntries(url.searchParams));
      response.writeHead(200, {'content-type': 'application/json'}).end(JSON.stringify(answer));
    } catch (e) {
      response.writeHead(500).end(String(e));
    }
  });
  await new Promise(resolve => listener.listen(0, address, resolve));
  return {
    url: `http://${address}:${listener.address().port}`,
    calls,
    close() {
      listener.close();
      listener.closeAllConnections();
    },
  };
}
