// Bundles the web app in memory.

import fs from 'node:fs';
import path from 'node:path';
import {fileURLToPath} from 'node:url';
import {build} from 'esbuild';

const web = path.join(path.dirname(fileURLToPath(import.meta.url)), 'web');

/** URL path -> {type, content} */
export async function buildApp() {
  const bundle = await build({
    entryPoints: [path.join(web, 'app.jsx')],
    bundle: true,
    minify: true,
    write: false,
    format: 'esm',
    target: 'es2022',
    jsx: 'automatic',
    define: {'process.env.NODE_ENV': '"production"'},
    logLevel: 'error',
  });
  return new Map([
    ['/', {type: 'text/html; charset=utf-8', content: fs.readFileSync(path.join(web, 'index.html'))}],
    ['/app.js', {type: 'text/javascript; charset=utf-8', content: bundle.outputFiles[0].text}],
    ['/style.css', {type: 'text/css; charset=utf-8', content: fs.readFileSync(path.join(web, 'style.css'))}],
  ]);
}
