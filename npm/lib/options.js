// What `zero-cache-dev` reads of its command line, the environment and `.env`; the server reads all of them itself.

import fs from 'node:fs';
import {parseEnv} from 'node:util';

/** What a machine for development needs where nothing else is said. */
const DEFAULTS = {ZERO_NUM_SYNC_WORKERS: '3', ZERO_CVR_MAX_CONNS: '6', ZERO_UPSTREAM_MAX_CONNS: '6', NODE_ENV: 'development'};
const SCHEMA_FLAGS = ['-p', '--schema-path'];

/**
 * `schemaPath`: whose permissions are deployed, if any. `args`: the server's. `env`: the children's. `flags`: the same flags as
 * variables, for a tool that knows fewer of them.
 */
export function readOptions(argv, environment, file = readFile('.env')) {
  const args = [];
  let schemaPath;
  for (let at = 0; at < argv.length; at++) {
    const [name, value] = splitOnce(argv[at]);
    if (!SCHEMA_FLAGS.includes(name)) {
      args.push(argv[at]);
      continue;
    }
    schemaPath = value ?? argv[++at];
    if (!schemaPath) throw new Error(`${name} needs the path of a schema file`);
  }
  const isSaid = name => Boolean(environment[name] || file[name]);
  const defaults = Object.fromEntries(Object.entries(DEFAULTS).filter(([name]) => !isSaid(name)));
  const flags = asVariables(args);
  return {
    schemaPath: schemaPath ?? (environment.ZERO_SCHEMA_PATH || file.ZERO_SCHEMA_PATH || undefined),
    args,
    env: {...environment, ...defaults},
    flags,
    port: flags.ZERO_PORT || environment.ZERO_PORT || file.ZERO_PORT || '4848',
  };
}

function readFile(path) {
  try {
    return parseEnv(fs.readFileSync(path, 'utf8'));
  } catch {
    return {};
  }
}

function splitOnce(word) {
  const at = word.indexOf('=');
  return at < 0 ? [word, undefined] : [word.slice(0, at), word.slice(at + 1)];
}

/** `--upstream-db URL` is ZERO_UPSTREAM_DB; a flag without a value is true, one with several words is a list. */
function asVariables(args) {
  const variables = {};
  let current;
  for (const word of args) {
    if (word.startsWith('--')) {
      const [name, value] = splitOnce(word);
      current = `ZERO_${name.slice(2).replaceAll('-', '_').toUpperCase()}`;
      variables[current] = value === undefined ? [] : [value];
    } else if (current) {
      variables[current].push(word);
    }
  }
  return Object.fromEntries(Object.entries(variables).map(([name, words]) => [name, words.length ? words.join(',') : 'true']));
}
