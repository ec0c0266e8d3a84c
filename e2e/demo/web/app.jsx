// The issue tracker. All data comes from live queries; all changes go through custom mutators.

import {Zero} from '@rocicorp/zero';
import {ZeroProvider, useConnectionState, useQuery, useZero} from '@rocicorp/zero/react';
import {useEffect, useMemo, useRef, useState} from 'react';
import {createRoot} from 'react-dom/client';
import {mutators, queries, schema} from '../model.mjs';
import {Avatar, Chip, ConfirmTime, PRIORITIES, StatusIcon, ago, newID, usePath} from './parts.jsx';

const PAGE = 60;

function App({people, me}) {
  const [path, go] = usePath();
  const [filter, setFilter] = useState({status: 'open', label: '', assignee: '', text: '', sort: 'modified'});
  const [creating, setCreating] = useState(false);
  const id = /^\/issue\/([^/]+)$/.exec(path)?.[1];
  return (
    <div className="app" data-detail={Boolean(id)}>
      <Header me={me} people={people} onNew={() => setCreating(true)} />
      <main>
        <List filter={filter} setFilter={setFilter} people={people} selected={id} onSelect={issue => go(`/issue/${issue}`)} />
        {id ? <Detail key={id} id={decodeURIComponent(id)} people={people} onClose={() => go('/')} /> : <Empty />}
      </main>
      {creating && (
        <Compose
          onClose={() => setCreating(false)}
          onCreated={issue => {
            setCreating(false);
            setFilter(f => ({...f, status: 'open', label: '', assignee: '', text: '', sort: 'modified'}));
            go(`/issue/${issue}`);
          }}
        />
      )}
    </div>
  );
}

function Header({me, people, onNew}) {
  const state = useConnectionState();
  return (
    <header>
      <h1>
        <span className="mark" /> Issues
      </h1>
      <span className="connection" data-state={state.name} title={state.reason ? String(state.reason) : ''}>
        {state.name === 'connected' ? 'live' : state.name}
      </span>
      <ConfirmTime />
      <span className="spacer" />
      <button type="button" className="primary" onClick={onNew} data-testid="new-issue">
        New issue
      </button>
      <label className="me" title="This window acts as this person">
        <Avatar person={me} />
        <select
          value={me.id}
          onChange={e => {
            sessionStorage.setItem('me', e.target.value);
            location.reload();
          }}
        >
          {people.map(p => (
            <option key={p.id} value={p.id}>
              {p.name}
            </option>
          ))}
        </select>
      </label>
    </header>
  );
}

function List({filter, setFilter, people, selected, onSelect}) {
  const [limit, setLimit] = useState(PAGE);
  const [labels] = useQuery(queries.labels());
  const [typed, setTyped] = useState(filter.text);
  useEffect(() => {
    const timer = setTimeout(() => setFilter(f => (f.text === typed.trim() ? f : {...f, text: typed.trim()})), 150);
    return () => clearTimeout(timer);
  }, [typed, setFilter]);
  useEffect(() => setTyped(t => (filter.text === '' && t.trim() !== '' ? '' : t)), [filter]);
  useEffect(() => setLimit(PAGE), [filter]);
  const [issues, result] = useQuery(queries.issues({...filter, limit}));
  const set = name => e => setFilter(f => ({...f, [name]: e.target.value}));
  const onScroll = e => {
    const {scrollTop, clientHeight, scrollHeight} = e.currentTarget;
    if (scrollHeight - scrollTop - clientHeight < 600 && issues.length === limit) setLimit(limit + PAGE);
  };
  return (
    <section className="list">
      <div className="filters">
        <div className="tabs" role="tablist">
          {['open', 'closed', 'all'].map(status => (
            <button
              key={status}
              type="button"
              role="tab"
              aria-selected={filter.status === status}
              onClick={() => setFilter(f => ({...f, status}))}
            >
              {status}
            </button>
          ))}
        </div>
        <input type="search" placeholder="Search titles and descriptions" value={typed} onChange={e => setTyped(e.target.value)} />
        <select value={filter.label} onChange={set('label')} aria-label="Label">
          <option value="">Any label</option>
          {labels.map(l => (
            <option key={l.id} value={l.id}>
              {l.name}
            </option>
          ))}
        </select>
        <select value={filter.assignee} onChange={set('assignee')} aria-label="Assignee">
          <option value="">Anyone</option>
          <option value="nobody">Nobody</option>
          {people.map(p => (
            <option key={p.id} value={p.id}>
              {p.name}
            </option>
          ))}
        </select>
        <select value={filter.sort} onChange={set('sort')} aria-label="Order">
          <option value="modified">Last changed</option>
          <option value="created">Newest</option>
          <option value="priority">Priority</option>
        </select>
      </div>
      <div className="rows" onScroll={onScroll} data-testid="rows">
        {issues.map(issue => (
          <IssueRow key={issue.id} issue={issue} selected={issue.id === selected} onSelect={onSelect} />
        ))}
        {issues.length === 0 && <p className="hint">{result.type === 'complete' ? 'Nothing matches these filters.' : 'Loading ...'}</p>}
      </div>
      <footer data-complete={result.type === 'complete'}>
        {issues.length === limit ? `first ${issues.length}, scroll for more` : `${issues.length} issue${issues.length === 1 ? '' : 's'}`}
      </footer>
    </section>
  );
}

/** Flashes when somebody changes the issue. */
function IssueRow({issue, selected, onSelect}) {
  const ref = useRef(null);
  const seen = useRef(issue.modified);
  useEffect(() => {
    if (seen.current === issue.modified) return;
    seen.current = issue.modified;
    ref.current?.animate([{background: 'var(--flash)'}, {background: 'transparent'}], {duration: 1200, easing: 'ease-out'});
  }, [issue.modified]);
  return (
    <button
      ref={ref}
      type="button"
      className="row"
      aria-current={selected}
      data-issue={issue.id}
      onClick={() => onSelect(issue.id)}
    >
      <StatusIcon open={issue.open} />
      <span className="title">
        <span className="name">{issue.title}</span>
        <span className="meta">
          <span className="number">{issue.number ? `#${issue.number}` : '#...'}</span> {ago(issue.modified)}
          {issue.labels.map(l => (
            <Chip key={l.id} label={l} />
          ))}
        </span>
      </span>
      <span className="priority" data-level={issue.priority} title={PRIORITIES[issue.priority]} />
      {issue.assignee ? <Avatar person={issue.assignee} /> : <span className="avatar none" />}
    </button>
  );
}

function Empty() {
  return (
    <section className="detail empty">
      <p>Choose an issue on the left.</p>
      <p className="hint">Open this page in a second window: what you change in one shows up in the other at once.</p>
    </section>
  );
}

/** Runs mutators and tells the header how long the server took to confirm; shows what the server refused. */
function useMutate() {
  const zero = useZero();
  const [refused, setRefused] = useState('');
  const run = async request => {
    setRefused('');
    const start = performance.now();
    const {client, server} = zero.mutate(request);
    const first = await client;
    if (first?.type === 'error') return setRefused(first.error.message);
    const confirmed = await server;
    if (confirmed?.type === 'error') return setRefused(confirmed.error.message);
    dispatchEvent(new CustomEvent('confirmed', {detail: performance.now() - start}));
  };
  return [run, refused];
}

function Detail({id, people, onClose}) {
  const [issue, result] = useQuery(queries.issue({id}));
  const [labels] = useQuery(queries.labels());
  const [mutate, refused] = useMutate();
  const [draft, setDraft] = useState();
  const [reply, setReply] = useState('');
  if (!issue) {
    return (
      <section className="detail empty">
        <p>{result.type === 'complete' ? 'There is no such issue.' : 'Loading ...'}</p>
      </section>
    );
  }
  const update = changes => mutate(mutators.issue.update({id, now: Date.now(), ...changes}));
  const has = new Set(issue.labels.map(l => l.id));
  const comment = () => {
    if (!reply.trim()) return;
    void mutate(mutators.comment.create({id: newID(), issueID: id, body: reply, now: Date.now()}));
    setReply('');
  };
  return (
    <section className="detail" data-testid="detail">
      <div className="scroll">
        <div className="head">
          <button type="button" className="back" onClick={onClose} aria-label="Back to the list">
            ✕
          </button>
          <span className="number">{issue.number ? `#${issue.number}` : 'not yet confirmed'}</span>
          <span className="pill" data-open={issue.open} data-testid="status">
            <StatusIcon open={issue.open} /> {issue.open ? 'Open' : 'Closed'}
          </span>
          <span className="hint">
            by {issue.creator?.name} · {ago(issue.created)}
          </span>
        </div>
        {draft ? (
          <form
            className="edit"
            onSubmit={e => {
              e.preventDefault();
              void update(draft);
              setDraft(undefined);
            }}
          >
            <input value={draft.title} onChange={e => setDraft({...draft, title: e.target.value})} aria-label="Title" autoFocus />
            <textarea rows={8} value={draft.description} onChange={e => setDraft({...draft, description: e.target.value})} aria-label="Description" />
            <div className="actions">
              <button type="submit" className="primary">
                Save
              </button>
              <button type="button" onClick={() => setDraft(undefined)}>
                Cancel
              </button>
            </div>
          </form>
        ) : (
          <>
            <h2 data-testid="title">{issue.title}</h2>
            <p className="body">{issue.description}</p>
          </>
        )}
        <div className="properties">
          <label>
            Assignee
            <select value={issue.assigneeID ?? ''} onChange={e => update({assigneeID: e.target.value || null})}>
              <option value="">Nobody</option>
              {people.map(p => (
                <option key={p.id} value={p.id}>
                  {p.name}
                </option>
              ))}
            </select>
          </label>
          <label>
            Priority
            <select value={issue.priority} onChange={e => update({priority: Number(e.target.value)})}>
              {PRIORITIES.map((name, level) => (
                <option key={name} value={level}>
                  {name}
                </option>
              ))}
            </select>
          </label>
          <details>
            <summary>{issue.labels.length ? issue.labels.map(l => <Chip key={l.id} label={l} />) : 'Add labels'}</summary>
            <div className="choices">
              {labels.map(l => (
                <button
                  key={l.id}
                  type="button"
                  aria-pressed={has.has(l.id)}
                  onClick={() => mutate(mutators.issue.setLabel({id, labelID: l.id, on: !has.has(l.id), now: Date.now()}))}
                >
                  <Chip label={l} />
                </button>
              ))}
            </div>
          </details>
        </div>
        <h3>
          {issue.comments.length} comment{issue.comments.length === 1 ? '' : 's'}
        </h3>
        <ol className="comments" data-testid="comments">
          {issue.comments.map(c => (
            <li key={c.id}>
              {c.author && <Avatar person={c.author} />}
              <div>
                <b>{c.author?.name}</b> <span className="hint">{ago(c.created)}</span>
                <p className="body">{c.body}</p>
              </div>
            </li>
          ))}
        </ol>
      </div>
      <form
        className="reply"
        onSubmit={e => {
          e.preventDefault();
          comment();
        }}
      >
        {refused && <p className="refused">The server refused it: {refused}</p>}
        <textarea
          rows={2}
          placeholder="Leave a comment (Ctrl+Enter to send)"
          value={reply}
          onChange={e => setReply(e.target.value)}
          onKeyDown={e => {
            if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) comment();
          }}
        />
        <div className="actions">
          <button type="submit" className="primary" disabled={!reply.trim()}>
            Comment
          </button>
          {!draft && (
            <button type="button" onClick={() => setDraft({title: issue.title, description: issue.description})}>
              Edit
            </button>
          )}
          <button type="button" onClick={() => update({open: !issue.open})} data-testid="toggle">
            {issue.open ? 'Close issue' : 'Reopen issue'}
          </button>
        </div>
      </form>
    </section>
  );
}

function Compose({onClose, onCreated}) {
  const dialog = useRef(null);
  const [title, setTitle] = useState('');
  const [description, setDescription] = useState('');
  const [mutate, refused] = useMutate();
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} onClose={onClose}>
      <form
        onSubmit={e => {
          e.preventDefault();
          const id = newID();
          void mutate(mutators.issue.create({id, title, description, now: Date.now()}));
          onCreated(id);
        }}
      >
        <h2>New issue</h2>
        <input placeholder="Title" value={title} onChange={e => setTitle(e.target.value)} autoFocus required maxLength={200} />
        <textarea rows={8} placeholder="What happened, and what should have?" value={description} onChange={e => setDescription(e.target.value)} />
        {refused && <p className="refused">{refused}</p>}
        <div className="actions">
          <button type="submit" className="primary" disabled={!title.trim()}>
            Create
          </button>
          <button type="button" onClick={onClose}>
            Cancel
          </button>
        </div>
      </form>
    </dialog>
  );
}

/** Every window is a person of its own, so that two windows look like two people. */
function chooseMe(people) {
  const known = people.find(p => p.id === sessionStorage.getItem('me'));
  const me = known ?? people[Math.floor(Math.random() * people.length)];
  sessionStorage.setItem('me', me.id);
  return me;
}

function Root({config}) {
  const me = useMemo(() => chooseMe(config.people), [config]);
  const zero = useMemo(
    () =>
      new Zero({
        schema,
        queries,
        mutators,
        userID: me.id,
        auth: me.id,
        context: {userID: me.id},
        cacheURL: `${location.protocol}//${location.hostname}:${config.syncPort}`,
        logLevel: 'error',
      }),
    [config, me],
  );
  return (
    <ZeroProvider zero={zero}>
      <App people={config.people} me={me} />
    </ZeroProvider>
  );
}

const config = await (await fetch('/config.json')).json();
createRoot(document.getElementById('root')).render(<Root config={config} />);
