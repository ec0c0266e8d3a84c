// The demo in headless Chromium: two windows of two people; what one changes appears in the other.
//
//   node --test browser/demo.test.mjs    CHROMIUM names another browser than Debian's
//   DEMO_URL=http://localhost:3000/ uses a running demo; SCREENSHOTS names a folder for pictures

import assert from 'node:assert/strict';
import {spawn} from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import {after, before, test} from 'node:test';
import {fileURLToPath} from 'node:url';
import {chromium} from 'playwright-core';

const e2e = path.dirname(path.dirname(fileURLToPath(import.meta.url)));
const pictures = process.env.SCREENSHOTS ?? fs.mkdtempSync(path.join(os.tmpdir(), 'zero-demo-pictures-'));
const WAIT = {timeout: 20_000};

let demo;
let url = process.env.DEMO_URL;
let browser;

/** Starts the demo as its launcher would, in a folder of its own, and waits for its URL. */
async function startDemo() {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'zero-demo-test-'));
  fs.chmodSync(folder, 0o755);
  demo = spawn(process.execPath, [path.join(e2e, 'demo/main.mjs'), folder], {stdio: ['ignore', 'pipe', 'inherit']});
  demo.folder = folder;
  demo.ended = new Promise(resolve => demo.once('exit', resolve));
  let output = '';
  demo.stdout.setEncoding('utf8');
  return new Promise((resolve, reject) => {
    demo.ended.then(status => reject(new Error(`the demo ended with ${status}:\n${output}`)));
    demo.stdout.on('data', text => {
      output += text;
      const ready = /Ready in [^h]*(http:\/\/\S+\/)/.exec(output);
      if (ready) resolve(ready[1]);
    });
  });
}

before(async () => {
  url ??= await startDemo();
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-dev-shm-usage'],
  });
});

after(async () => {
  await browser?.close();
  if (demo) {
    demo.kill('SIGINT');
    assert.equal(await demo.ended, 0, 'Ctrl-C must stop the demo cleanly');
    fs.rmSync(demo.folder, {recursive: true, force: true});
  }
});

async function open(person, colorScheme = 'light') {
  const context = await browser.newContext({viewport: {width: 1280, height: 800}, colorScheme});
  const page = await context.newPage();
  const problems = [];
  page.on('pageerror', e => problems.push(e.message));
  page.on('console', message => message.type() === 'error' && problems.push(message.text()));
  await page.addInitScript(id => sessionStorage.setItem('me', id), person);
  await page.goto(url);
  await page.locator('.connection[data-state="connected"]').waitFor(WAIT);
  await page.locator('.row').first().waitFor(WAIT);
  return {page, problems, close: () => context.close()};
}

test('two windows show each other\'s changes', async () => {
  const one = await open('p1');
  const two = await open('p2');
  const row = two.page.locator('.row').nth(3);
  const id = await row.getAttribute('data-issue');
  await row.click();
  await two.page.getByTestId('detail').waitFor(WAIT);

  // A comment of the second person appears at the first one, who looks at the same issue.
  await one.page.locator(`.row[data-issue="${id}"]`).click();
  await one.page.getByTestId('title').waitFor(WAIT);
  const words = `Checked on two machines, ${Date.now()}`;
  await two.page.getByPlaceholder(/Leave a comment/).fill(words);
  await two.page.getByRole('button', {name: 'Comment', exact: true}).click();
  await one.page.getByTestId('comments').getByText(words).waitFor(WAIT);
  await two.page.getByTestId('confirmed').waitFor(WAIT);

  // Closing it changes the status there and takes it out of the list of open issues.
  await two.page.getByTestId('toggle').click();
  await one.page.locator('[data-testid="status"][data-open="false"]').waitFor(WAIT);
  await one.page.locator(`.rows .row[data-issue="${id}"]`).waitFor({state: 'detached', ...WAIT});
  await one.page.screenshot({path: path.join(pictures, 'detail.png')});

  // A new issue shows up on top of the list, with the number that the database gave it.
  const title = `Created in a browser at ${Date.now()}`;
  await one.page.getByTestId('new-issue').click();
  await one.page.getByPlaceholder('Title', {exact: true}).fill(title);
  await one.page.screenshot({path: path.join(pictures, 'compose.png')});
  await one.page.getByRole('button', {name: 'Create', exact: true}).click();
  const created = two.page.locator('.row', {hasText: title});
  await created.waitFor(WAIT);
  await created.getByText(/#\d+/).waitFor(WAIT);
  await two.page.screenshot({path: path.join(pictures, 'list.png')});

  assert.deepEqual(one.problems.concat(two.problems), []);
  await one.close();
  await two.close();
});

test('filters and search ask the server', async () => {
  const {page, problems, close} = await open('p3', 'dark');
  await page.getByRole('tab', {name: 'closed'}).click();
  await page.getByPlaceholder(/Search/).fill('screen readers');
  await page.locator('footer[data-complete="true"]').waitFor(WAIT);
  await page.waitForFunction(() => {
    const names = [...document.querySelectorAll('.row .name')].map(n => n.textContent);
    return names.length > 10 && names.every(name => name.includes('screen readers'));
  }, undefined, WAIT);
  await page.getByLabel('Label').selectOption({label: 'bug'});
  await page.waitForFunction(() => {
    const rows = [...document.querySelectorAll('.row')];
    return rows.length > 0 && rows.every(row => [...row.querySelectorAll('.chip')].some(chip => chip.textContent === 'bug'));
  }, undefined, WAIT);
  assert.ok(await page.locator('.status[data-open="true"]').count() === 0);
  await page.locator('.row').first().click();
  await page.getByTestId('title').waitFor(WAIT);
  await page.screenshot({path: path.join(pictures, 'dark.png')});
  assert.deepEqual(problems, []);
  await close();
});
