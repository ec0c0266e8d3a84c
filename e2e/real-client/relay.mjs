// A TCP relay without stickiness in front of one or more nodes. It can cut all its connections, and counts a word that servers
// send.

import net from 'node:net';

/** Each new connection goes to a random one of the ports. */
export async function startRelay(ports, word = undefined) {
  const sockets = new Set();
  let usable = [...ports];
  let refusing = false;
  let seen = 0;
  const relay = net.createServer(client => {
    if (refusing || usable.length === 0) return client.destroy();
    const upstream = net.connect(usable[Math.floor(Math.random() * usable.length)], '127.0.0.1');
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        sockets.delete(socket);
        client.destroy();
        upstream.destroy();
      });
    }
    if (word) upstream.on('data', data => (seen += data.includes(word) ? 1 : 0));
    client.pipe(upstream).pipe(client);
  });
  await new Promise(resolve => relay.listen(0, '127.0.0.1', resolve));
  const cut = () => sockets.forEach(socket => socket.destroy());
  return {
    url: `http://127.0.0.1:${relay.address().port}`,
    /** Frames in which the word was. */
    seen: () => seen,
    cut() {
      refusing = true;
      cut();
    },
    restore: () => (refusing = false),
    /** No new connections for this port. */
    remove: port => (usable = usable.filter(other => other !== port)),
    close() {
      cut();
      relay.close();
    },
  };
}
