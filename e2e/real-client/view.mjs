// The published client in Node: its socket, and a live view of a query.

import WebSocket from 'ws';

const WAIT_MS = 10_000;

// Node 20 has no WebSocket of its own; a browser's does not throw on an error nobody listens to.
globalThis.WebSocket ??= class extends WebSocket {
  constructor(...args) {
    super(...args);
    this.on('error', () => {});
  }
};

/** A live view of a query and a way to wait for what it shows. */
export function show(zero, query, waitMs = WAIT_MS) {
  const view = zero.materialize(query);
  const state = {data: view.data, type: 'unknown', updates: 0};
  const waiting = new Set();
  view.addListener((data, type, error) => {
    Object.assign(state, {data, type, error, updates: state.updates + 1});
    for (const check of waiting) check();
  });
  const until = (what, condition) =>
    new Promise((resolve, reject) => {
      const check = () => {
        if (!condition(state.data, state.type)) return;
        clearTimeout(timer);
        waiting.delete(check);
        resolve(state.data);
      };
      const timer = setTimeout(() => {
        waiting.delete(check);
        reject(new Error(`waited for ${what}; the view is ${state.type}: ${JSON.stringify(state.data)?.slice(0, 400)}`));
      }, waitMs);
      waiting.add(check);
      check();
    });
  return {state, until, complete: () => until('a complete result', (_, type) => type === 'complete'), destroy: () => view.destroy()};
}

export const ids = rows => rows.map(row => row.id);

