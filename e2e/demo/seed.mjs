// Fills the database with an issue tracker. The same every time but for its dates, which end now: the generator is seeded.

import {Readable} from 'node:stream';
import {pipeline} from 'node:stream/promises';

export const ISSUES = 10_000;
const NOW = Date.now();
const DAY = 86_400_000;

/** A small generator of random numbers (mulberry32). */
function makeDice(seed) {
  let state = seed;
  const next = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const below = n => Math.floor(next() * n);
  return {next, below, pick: list => list[below(list.length)], chance: p => next() < p};
}

const FIRST = 'Mira Jonas Aiko Priya Tomás Lena Omar Ines Kofi Hanna Diego Yuki Sofia Arjun Freya Mateo Zoe Ravi Nora Emil Amara Leo Ingrid Samir Clara Hugo Lin Tariq Elsa Bruno'.split(' ');
const LAST = 'Okafor Lindqvist Tanaka Patel Herrera Fischer Haddad Moreau Mensah Virtanen Castro Sato Rossi Iyer Nilsen Duarte Kowalski Menon Berg Holm Diallo Novak Larsen Rahman Weiss Marchetti Chen Aziz Jensen Silva'.split(' ');
const LABELS = [
  ['bug', '#d1242f'], ['regression', '#cf222e'], ['crash', '#a40e26'], ['security', '#8250df'], ['performance', '#bf8700'],
  ['memory', '#9a6700'], ['feature', '#1a7f37'], ['enhancement', '#2da44e'], ['docs', '#0969da'], ['design', '#bf3989'],
  ['accessibility', '#6639ba'], ['mobile', '#1b7c83'], ['sync', '#0550ae'], ['editor', '#953800'], ['search', '#57606a'],
  ['billing', '#4d2d00'], ['api', '#116329'], ['good first issue', '#7057ff'], ['needs info', '#6e7781'], ['flaky test', '#bc4c00'],
];
const AREAS = ['the sidebar', 'the command palette', 'the keyboard navigation', 'the notification centre', 'the search page', 'the settings page', 'the upload dialog', 'the board view', 'offline mode', 'the comment editor', 'drag and drop', 'the onboarding tour', 'CSV export', 'the activity feed', 'single sign-on', 'the mobile app', 'dark mode', 'the filter menu', 'the invite dialog', 'the webhook log', 'the REST API', 'the date picker', 'undo history', 'the profile menu', 'the image preview', 'the print view', 'label management', 'bulk editing', 'the status page', 'the email digest'];
const PROBLEMS = ['flickers when the window is resized', 'loses its scroll position after a reload', 'is slow with more than a thousand entries', 'shows stale data after reconnecting', 'ignores the system language', 'cannot be reached with the keyboard', 'crashes on an empty title', 'swallows the first key press', 'shows the wrong time zone', 'leaks memory when left open overnight', 'breaks in Safari 18', 'does not announce changes to screen readers', 'sends duplicate requests', 'renders twice on first load', 'forgets the selected tab', 'overlaps the footer on small screens', 'times out behind a proxy', 'truncates long names without a tooltip', 'reports success although saving failed', 'jumps when an avatar loads'];
const WISHES = ['Support multiple selections in', 'Add a shortcut for', 'Remember the last state of', 'Show a preview in', 'Allow renaming from', 'Make the columns sortable in', 'Add an empty state to', 'Let administrators disable', 'Add a copy-link button to', 'Group entries by day in'];
const CONTEXT = ['I noticed this while triaging on a slow connection.', 'It started with the release of last Tuesday.', 'Two customers have asked about it this week.', 'It happens about once in five tries.', 'I can reproduce it every time on Linux and macOS.', 'It does not happen in a private window.', 'The console shows no error.', 'It used to work before the redesign.', 'This blocks the rollout to the larger teams.', 'Not urgent, but it makes a bad first impression.'];
const STEPS = ['Open a project with many issues.', 'Press the shortcut twice in a row.', 'Switch to another tab and come back after a minute.', 'Change the filter while the list is still loading.', 'Resize the window to half of the screen.', 'Disconnect the network and edit the title.', 'Open the same page in two windows.', 'Scroll to the end and press Home.'];
const EXPECTED = ['The view stays where it was.', 'The change shows up at once.', 'A message explains what went wrong.', 'Nothing moves.', 'The focus returns to the list.'];
const REPLIES = ['I can reproduce this on the current build.', 'Could you attach a recording? I cannot see it here.', 'This looks like the same cause as the report from last month.', 'A fix is in review, should be out with the next release.', 'I bisected it to the change of the layout code.', 'Works for me after clearing the cache, so probably a stale asset.', 'Thanks for the clear steps, that saved me an hour.', 'Let us keep the scope small: fix the jump first, the polish can follow.', 'Confirmed on Firefox as well.', 'I would rather not add another setting for this.', 'Half of it is done; the rest needs a decision about the wording.', 'Same here, three people in our team hit it today.', 'The test for this was flaky, I have made it deterministic.', 'Closing the panel first is a workaround.', 'Deployed to staging, please have a look.', 'Moved to the next cycle.', 'The numbers look good: 480 ms before, 35 ms after.', 'Reopened, it still happens with very long titles.'];

const capital = text => text[0].toUpperCase() + text.slice(1);

function* people(dice) {
  const used = new Set();
  for (let n = 1; n <= 40; n++) {
    let name;
    do name = `${dice.pick(FIRST)} ${dice.pick(LAST)}`;
    while (used.has(name));
    used.add(name);
    const handle = name.toLowerCase().normalize('NFD').replace(/[^a-z ]/g, '').replace(' ', '.');
    yield [`p${n}`, name, handle, (n * 137) % 360];
  }
}

function title(dice) {
  if (dice.chance(0.3)) return `${dice.pick(WISHES)} ${dice.pick(AREAS)}`;
  return `${capital(dice.pick(AREAS))} ${dice.pick(PROBLEMS)}`;
}

function description(dice) {
  const parts = [`${dice.pick(CONTEXT)} ${dice.pick(CONTEXT)}`];
  if (dice.chance(0.6)) {
    const steps = Array.from({length: 2 + dice.below(3)}, (_, i) => `${i + 1}. ${dice.pick(STEPS)}`);
    parts.push(`Steps:\n${steps.join('\n')}`, `Expected: ${dice.pick(EXPECTED)}`);
  }
  return parts.join('\n\n');
}

/** Rows of all tables, made together because comments move an issue's time of change. */
function generate() {
  const dice = makeDice(20261122);
  const rows = {person: [...people(dice)], label: LABELS.map(([name, color], i) => [`l${i + 1}`, name, color]), issue: [], comment: [], issue_label: []};
  const someone = () => rows.person[Math.floor(dice.next() ** 2 * rows.person.length)][0];
  let comments = 0;
  for (let n = 1; n <= ISSUES; n++) {
    const id = `i${n}`;
    const created = NOW - Math.floor((1 - n / (ISSUES + 1)) * 900 * DAY) - dice.below(DAY);
    let modified = created;
    for (let i = Math.floor(dice.next() ** 2 * 9); i > 0; i--) {
      const next = modified + Math.floor(dice.next() * 4 * DAY) + 60_000;
      if (next > NOW) break;
      modified = next;
      const body = dice.chance(0.3) ? `${dice.pick(REPLIES)} ${dice.pick(REPLIES)}` : dice.pick(REPLIES);
      rows.comment.push([`c${++comments}`, id, someone(), body, new Date(modified).toISOString()]);
    }
    const open = dice.chance(0.15 + (0.6 * n) / ISSUES);
    const assignee = dice.chance(0.7) ? someone() : null;
    const times = [created, modified].map(ms => new Date(ms).toISOString());
    rows.issue.push([id, n, title(dice), description(dice), open, dice.pick([0, 1, 1, 1, 2, 2, 3]), someone(), assignee, ...times]);
    const labels = new Set(Array.from({length: dice.below(4)}, () => dice.pick(rows.label)[0]));
    for (const label of labels) rows.issue_label.push([id, label]);
  }
  return rows;
}

const TABLES = `
  CREATE TABLE person (id text PRIMARY KEY, name text NOT NULL, handle text NOT NULL, hue int NOT NULL);
  CREATE TABLE label (id text PRIMARY KEY, name text NOT NULL, color text NOT NULL);
  CREATE TABLE issue (
    id text PRIMARY KEY, number int GENERATED BY DEFAULT AS IDENTITY, title text NOT NULL, description text NOT NULL,
    open boolean NOT NULL, priority int NOT NULL, creator_id text NOT NULL REFERENCES person, assignee_id text REFERENCES person,
    created timestamptz NOT NULL, modified timestamptz NOT NULL);
  CREATE TABLE comment (
    id text PRIMARY KEY, issue_id text NOT NULL REFERENCES issue ON DELETE CASCADE, author_id text NOT NULL REFERENCES person,
    body text NOT NULL, created timestamptz NOT NULL);
  CREATE TABLE issue_label (
    issue_id text REFERENCES issue ON DELETE CASCADE, label_id text REFERENCES label, PRIMARY KEY (issue_id, label_id));
  CREATE INDEX ON issue (modified DESC);
  CREATE INDEX ON issue (created DESC);
  CREATE INDEX ON issue (priority DESC, modified DESC);
  CREATE INDEX ON issue (assignee_id);
  CREATE INDEX ON comment (issue_id);
  CREATE INDEX ON issue_label (label_id);`;

const copyText = value => (value === null ? '\\N' : String(value).replace(/[\\\t\n\r]/g, c => ({'\\': '\\\\', '\t': '\\t', '\n': '\\n', '\r': '\\r'})[c]));

/** Creates and fills all tables in one transaction: an interrupted start leaves nothing behind. */
export async function seed(sql) {
  const rows = generate();
  await sql.begin(async tx => {
    await tx.unsafe(TABLES);
    for (const [name, list] of Object.entries(rows)) {
      const sink = await tx.unsafe(`COPY ${name} FROM STDIN`).writable();
      const lines = list.map(row => `${row.map(copyText).join('\t')}\n`);
      await pipeline(Readable.from(lines.join('')), sink);
    }
    await tx`SELECT setval(pg_get_serial_sequence('issue', 'number'), ${ISSUES})`;
  });
  await sql`ANALYZE`;
}
