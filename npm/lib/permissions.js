// Deploys the permissions of a schema file, and says when the file changes.

import fs from 'node:fs';
import path from 'node:path';
import {start} from './child.js';

const POLL_MS = 100;
/** Editors write in several steps. */
const QUIET_MS = 500;
const TOOL = 'zero-deploy-permissions';

/** Whether that succeeded. What is wrong is on standard error. */
export async function deploy(schemaPath, binary, {args, env, flags}) {
  const [program, words, variables] = command(schemaPath, binary, {args, env, flags});
  if (!program) return false;
  const {code} = await start(program, words, variables).ended;
  return code === 0;
}

function command(schemaPath, binary, {env, flags}) {
  const variables = {...env, ...flags, ZERO_SCHEMA_PATH: schemaPath};
  if (schemaPath.endsWith('.json')) return [binary, ['permissions', 'deploy', schemaPath], variables];
  const tool = findTool();
  if (!tool) {
    console.error(`zero-cache-dev: ${schemaPath} is read by the ${TOOL} of @rocicorp/zero, which is not installed here: install it, or give a .json file of permissions`);
    return [];
  }
  return [process.execPath, [tool], variables];
}

/** The script of the nearest installed `@rocicorp/zero`. */
function findTool() {
  for (let folder = process.cwd(); ; folder = path.dirname(folder)) {
    const home = path.join(folder, 'node_modules/@rocicorp/zero');
    try {
      return path.join(home, JSON.parse(fs.readFileSync(path.join(home, 'package.json'), 'utf8')).bin[TOOL]);
    } catch {
      if (folder === path.dirname(folder)) return undefined;
    }
  }
}

/** Calls `onChange` when the file was changed, made or removed, and has been left alone for a moment. Never two at a time. */
export function watch(schemaPath, onChange) {
  let timer;
  let last = Promise.resolve();
  fs.watchFile(schemaPath, {interval: POLL_MS}, () => {
    clearTimeout(timer);
    timer = setTimeout(() => (last = last.then(onChange)), QUIET_MS);
  });
}
