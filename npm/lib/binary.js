// Which binary is the server: the one in ZERO_CACHE_BIN, else that of the package for this platform.

import fs from 'node:fs';
import {createRequire} from 'node:module';

const SCOPE = '@open-zero-cache';

/** Its path; ends the process with a message where there is none. */
export function binaryPath() {
  const given = process.env.ZERO_CACHE_BIN;
  if (given) {
    if (fs.existsSync(given)) return given;
    fail(`there is no ${given}, which ZERO_CACHE_BIN names`);
  }
  const platform = `${process.platform}-${process.arch}`;
  try {
    return createRequire(import.meta.url).resolve(`${SCOPE}/${platform}/zero-cache`);
  } catch {
    fail(`${SCOPE}/${platform} is not installed: build it with npm/build, or let ZERO_CACHE_BIN name a binary for ${platform}`);
  }
}

function fail(message) {
  console.error(`zero-cache: ${message}`);
  process.exit(255);
}
