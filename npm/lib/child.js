// A child process that gets this one's signals, and whose end can be waited for.

import {spawn} from 'node:child_process';

/** How often a script runner is looked for. */
const PARENT_MS = 500;
const SIGNALS = ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGQUIT'];
const children = new Set();
/** The first signal that this process was sent. */
let asked;

for (const signal of SIGNALS) {
  process.on(signal, () => {
    asked ??= signal;
    // A terminal sends it to everybody in front of it; a second one would mean: now.
    if (process.stdin.isTTY && signal !== 'SIGTERM') return;
    for (const child of children) child.kill(signal);
  });
}

/** Whether this process was told to end. */
export const isEnding = () => asked !== undefined;

/**
 * Ends this process when the script runner that started it is gone: npm passes a SIGTERM on to a shell, which does not pass it on.
 * A process that no runner started may outlive its parent.
 */
export function endWithScriptRunner() {
  if (!process.env.npm_lifecycle_event && !process.env.npm_command) return;
  const parent = process.ppid;
  setInterval(() => {
    if (process.ppid !== parent && !isEnding()) process.kill(process.pid, 'SIGTERM');
  }, PARENT_MS).unref();
}

/** Starts a program on this process's standard streams. */
export function start(program, args, env) {
  const child = spawn(program, args, {stdio: 'inherit', env});
  children.add(child);
  const ended = new Promise(resolve => {
    child.once('exit', (code, signal) => resolve({code, signal}));
    child.once('error', error => {
      console.error(`zero-cache: cannot start ${program}: ${error.message}`);
      resolve({code: 255, signal: null});
    });
  });
  ended.then(() => children.delete(child));
  return {ended, kill: signal => child.kill(signal)};
}

/** Ends this process as the child ended, or by the signal that both were sent. */
export function endLike({code, signal}) {
  const last = signal ?? (code === 0 ? undefined : asked);
  if (!last) process.exit(code ?? 255);
  for (const name of SIGNALS) process.removeAllListeners(name);
  process.kill(process.pid, last);
}
