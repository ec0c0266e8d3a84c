// Small parts of the page.

import {useEffect, useState} from 'react';

export const PRIORITIES = ['Low', 'Normal', 'High', 'Urgent'];

export function Avatar({person}) {
  const initials = person.name
    .split(' ')
    .map(part => part[0])
    .join('');
  return (
    <span className="avatar" style={{'--hue': person.hue}} title={person.name}>
      {initials}
    </span>
  );
}

export function Chip({label}) {
  return (
    <span className="chip" style={{'--color': label.color}}>
      {label.name}
    </span>
  );
}

export function StatusIcon({open}) {
  return (
    <svg className="status" data-open={open} viewBox="0 0 16 16" aria-label={open ? 'open' : 'closed'}>
      <circle cx="8" cy="8" r="6.5" />
      {open ? <circle className="dot" cx="8" cy="8" r="2" /> : <path d="M5 8.2 7.2 10.4 11 6" />}
    </svg>
  );
}

/** How long the last change took from the click until the server's confirmation was synced back. */
export function ConfirmTime() {
  const [ms, setMs] = useState();
  useEffect(() => {
    const listen = e => setMs(e.detail);
    addEventListener('confirmed', listen);
    return () => removeEventListener('confirmed', listen);
  }, []);
  if (ms === undefined) return null;
  return (
    <span className="hint confirm" data-testid="confirmed">
      confirmed in {ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms
    </span>
  );
}

const UNITS = [
  ['year', 31_536_000],
  ['month', 2_592_000],
  ['day', 86_400],
  ['hour', 3600],
  ['minute', 60],
];
const relative = new Intl.RelativeTimeFormat('en', {numeric: 'auto'});

export function ago(ms) {
  const seconds = (Date.now() - ms) / 1000;
  for (const [unit, size] of UNITS) {
    if (seconds >= size) return relative.format(-Math.floor(seconds / size), unit);
  }
  return 'just now';
}

export function newID() {
  return crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), b => b.toString(16).padStart(2, '0')).join('');
}

/** The address bar is the only router. */
export function usePath() {
  const [path, setPath] = useState(location.pathname);
  useEffect(() => {
    const listen = () => setPath(location.pathname);
    addEventListener('popstate', listen);
    return () => removeEventListener('popstate', listen);
  }, []);
  const go = to => {
    history.pushState(null, '', to);
    setPath(to);
  };
  return [path, go];
}
