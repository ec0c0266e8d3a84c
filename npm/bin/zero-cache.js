#!/usr/bin/env node
// The server, with the arguments and the environment as they are.

import {binaryPath} from '../lib/binary.js';
import {endLike, start} from '../lib/child.js';

const server = start(binaryPath(), process.argv.slice(2), process.env);
endLike(await server.ended);
