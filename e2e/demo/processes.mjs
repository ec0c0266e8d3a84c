// Child processes that never outlive this one: a guard shell stops them when its input ends, for whatever reason.

import {spawn} from 'node:child_process';
import fs from 'node:fs';

const GUARD = `
signal=$1; shift
exec 3<&0
"$@" </dev/null 3<&- & child=$!
{ read -r _ <&3; kill -s "$signal" $child 2>/dev/null; } &
exec 3<&-
wait $child`;

/** Starts a program in a process group of its own, so that Ctrl-C reaches only the demo, which stops it in order. */
export function startProcess(name, program, args, {signal, logFile, env, uid, gid, cwd}) {
  const log = fs.openSync(logFile, 'w');
  const child = spawn('sh', ['-c', GUARD, 'guard', signal, program, ...args], {
    stdio: ['pipe', log, log],
    detached: true,
    env,
    uid,
    gid,
    cwd,
  });
  fs.closeSync(log);
  child.stdin.on('error', () => {});
  const ended = new Promise(resolve => {
    child.once('exit', (code, killedBy) => resolve(code ?? killedBy));
    child.once('error', e => resolve(e.message));
  });
  return {
    name,
    ended,
    async stop(limitMs = 20_000) {
      child.stdin.end();
      let timer;
      const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`${name} did not end within ${limitMs / 1000} s`)), limitMs);
      });
      await Promise.race([ended, late]).finally(() => clearTimeout(timer));
    },
  };
}
