// Finds free loopback ports, the usual ones first.

import net from 'node:net';

function isFree(port) {
  return new Promise(resolve => {
    const server = net.createServer();
    server.once('error', () => resolve(false));
    server.listen({port, host: '0.0.0.0', exclusive: true}, () => server.close(() => resolve(true)));
  });
}

/** The first of `count` neighbouring free ports, from `usual` upwards. */
export async function freePorts(usual, count) {
  for (let first = usual; first < usual + 1000; first += count) {
    const free = await Promise.all(Array.from({length: count}, (_, i) => isFree(first + i)));
    if (free.every(Boolean)) return first;
  }
  throw new Error(`no ${count} free neighbouring ports from ${usual} upwards`);
}

export const freePort = usual => freePorts(usual, 1);
