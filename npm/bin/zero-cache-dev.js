#!/usr/bin/env node
// The server on a machine for development: deploys the permissions of a schema file, starts the server, and deploys them again
// whenever the file changes.

import {binaryPath} from '../lib/binary.js';
import {endLike, endWithScriptRunner, isEnding, start} from '../lib/child.js';
import {readOptions} from '../lib/options.js';
import {deploy, watch} from '../lib/permissions.js';

const USAGE = `usage: zero-cache-dev [-p, --schema-path FILE] [flags of zero-cache]

Deploys the permissions of the schema file (or of ZERO_SCHEMA_PATH), if one is given, and does so again whenever it changes.
`;

const argv = process.argv.slice(2);
const binary = binaryPath();
const say = text => console.log(`zero-cache-dev: ${text}`);

let options;
try {
  options = readOptions(argv, process.env);
} catch (e) {
  console.error(`zero-cache-dev: ${e.message}`);
  process.exit(255);
}
if (argv.includes('--help') || argv.includes('-h')) {
  console.log(USAGE);
  endLike(await start(binary, ['--help'], process.env).ended);
}

let isServing = false;

function serve() {
  say(`running zero-cache at\n\n\thttp://localhost:${options.port}\n`);
  isServing = true;
  start(binary, options.args, options.env).ended.then(end => {
    if (isEnding()) return endLike(end);
    console.error('zero-cache-dev: zero-cache ended');
    process.exit(255);
  });
}

async function deployAndServe() {
  say(`deploying permissions from ${options.schemaPath}`);
  const isDeployed = await deploy(options.schemaPath, binary, options);
  if (isEnding()) {
    if (!isServing) endLike({code: 255, signal: null});
    return;
  }
  if (!isDeployed) console.error(`zero-cache-dev: failed to deploy permissions from ${options.schemaPath}; it is tried again when the file changes`);
  if (isDeployed && !isServing) serve();
}

endWithScriptRunner();
if (options.schemaPath) {
  watch(options.schemaPath, deployAndServe);
  await deployAndServe();
} else {
  serve();
}
