//! Takes every committed frame out of the WAL before it is overwritten.
//!
//! A read transaction is held at all times (the *hold*), so SQLite cannot start the WAL over beyond what has been read. When there
//! are new commits, a second one is begun at their end, the frames up to there are read, and the first is ended. Before the writer
//! cuts the WAL it asks ([`WalKeeper`]): the rest is read, the hold ends, the WAL is cut, and a new hold begins before the next
//! commit. What is read continues, by SQLite's own salts and checksums, what was read before; where that cannot be shown the
//! chain is broken and has to begin again with a snapshot.
//!
//! Locks are taken in the order gate, state.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use replica::{CommitGate, WalEnd, WalKeeper};
use rows::Version;
use rusqlite::Connection;

use crate::error::Error;
use crate::ltx::{self, Encoder};
use crate::name::Txid;
use crate::now_ms;
use crate::view::{self, View};
use crate::wal::{Frame, Position, Wal};

/// From here on the increment should be sent even before its time. Less would send pages that change often more often.
pub const PENDING_DUE: usize = 128 << 20;
/// Reading stops here: while the store does not take what is read, the WAL keeps the rest.
const PENDING_MAX: usize = 2 * PENDING_DUE;
/// A WAL that cannot be cut grows to at most so many bytes, or to the size of the database if that is more. Then the chain is
/// given up rather than the disk.
const WAL_BYTES_MAX: u64 = 1 << 30;

#[derive(Debug)]
pub struct Capture {
    path: PathBuf,
    gate: Arc<CommitGate>,
    end: Arc<WalEnd>,
    /// [`State::commits`], to see without waiting that nothing is new.
    seen: AtomicU64,
    pending_bytes: AtomicU64,
    is_following: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Opened when a chain begins.
    holds: Option<[Connection; 2]>,
    /// Which of them has a transaction open.
    held: Option<usize>,
    /// `None`: nothing is captured, the chain has to begin.
    position: Option<Position>,
    /// What [`WalEnd::commits`] said at `position`; `u64::MAX` if reading stopped before the end.
    commits: u64,
    pending: Pending,
    page_size: u32,
    /// Of the snapshots under way.
    views: Vec<std::sync::Weak<AtomicBool>>,
    /// Why the chain ended, until somebody asks.
    broken: Option<String>,
}

/// Pages that changed since the last increment.
#[derive(Debug, Default)]
struct Pending {
    pages: HashMap<u32, Box<[u8]>>,
    /// Pages of the database after the last transaction.
    commit: u32,
    /// The smallest number of pages of the database since the last increment: pages above were added since.
    low: u32,
    /// Unknown while reading has not reached the end.
    version: Option<Version>,
    is_changed: bool,
}

/// An increment that is not encoded yet.
#[derive(Debug)]
pub struct Increment {
    pages: HashMap<u32, Box<[u8]>>,
    page_size: u32,
    commit: u32,
    low: u32,
    pub version: Option<Version>,
}

impl Capture {
    pub fn new(path: &Path, gate: Arc<CommitGate>, end: Arc<WalEnd>) -> Arc<Capture> {
        let state = State {
            holds: None,
            held: None,
            position: None,
            commits: 0,
            pending: Pending::default(),
            page_size: 0,
            views: Vec::new(),
            broken: None,
        };
        Arc::new(Capture {
            path: path.to_path_buf(),
            gate,
            end,
            seen: AtomicU64::new(u64::MAX),
            pending_bytes: AtomicU64::new(0),
            is_following: AtomicBool::new(false),
            state: Mutex::new(state),
        })
    }

    pub fn keeper(self: &Arc<Self>) -> Box<dyn WalKeeper> {
        Box::new(Keeper(Arc::clone(self)))
    }

    /// Begins a chain: everything committed after the view that is returned will be captured.
    pub fn begin(&self) -> Result<View, Error> {
        let mut view = View::prepare(&self.path)?;
        let connect = || view::connect(&self.path).map_err(|e| Error::local(&self.path, "open", e));
        let holds = [connect()?, connect()?];
        let _pin = self.gate.pin();
        let mut state = self.lock();
        state.forget();
        state.holds = Some(holds);
        view.begin()?;
        state.hold(0).map_err(|e| Error::local(&self.path, "begin reading", e))?;
        let position = match self.end.frames() {
            0 => Position::Start,
            frames => match Wal::open(&self.path).and_then(|wal| wal.after(frames)) {
                Ok(position) => position,
                Err(e) => {
                    state.forget();
                    return Err(Error::local(&self.path, "read the WAL of", e));
                }
            },
        };
        state.position = Some(position);
        state.commits = self.end.commits();
        state.page_size = view.page_size;
        state.pending = Pending { commit: view.commit, low: view.commit, ..Pending::default() };
        state.views.push(Arc::downgrade(&view.given_up));
        self.seen.store(state.commits, Ordering::Release);
        self.note(&state);
        Ok(view)
    }

    /// Reads what is new. Cheap when nothing is.
    pub fn pump(&self) {
        if self.seen.load(Ordering::Acquire) == self.end.commits()
            || self.pending_bytes.load(Ordering::Relaxed) >= PENDING_MAX as u64
        {
            return;
        }
        let pin = self.gate.pin();
        let mut state = self.lock();
        let result = state.follow(&self.path, &self.end, PENDING_MAX, || drop(pin));
        self.conclude(&mut state, result);
    }

    /// Everything up to now, and a view of exactly that; `None` while too much waits for that.
    pub fn split(&self) -> Result<Option<(Option<Increment>, View)>, Error> {
        self.pump();
        if self.pending_bytes() >= PENDING_DUE as u64 {
            return Ok(None);
        }
        let mut view = View::prepare(&self.path)?;
        let pin = self.gate.pin();
        let mut state = self.lock();
        view.begin()?;
        let result = state.follow(&self.path, &self.end, PENDING_MAX, || drop(pin));
        self.conclude(&mut state, result);
        if state.position.is_none() || state.commits == u64::MAX {
            return Ok(None);
        }
        state.views.push(Arc::downgrade(&view.given_up));
        let increment = state.take();
        self.note(&state);
        Ok(Some((increment, view)))
    }

    /// What changed since the last increment.
    pub fn take(&self) -> Option<Increment> {
        let mut state = self.lock();
        let increment = state.take();
        self.note(&state);
        increment
    }

    /// Bytes of changed pages that wait to be sent.
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes.load(Ordering::Relaxed)
    }

    /// Whether commits of which nothing is read yet wait in the WAL.
    pub fn is_behind(&self) -> bool {
        self.seen.load(Ordering::Acquire) != self.end.commits()
    }

    /// Whether a chain has begun and is not broken.
    pub fn is_following(&self) -> bool {
        self.is_following.load(Ordering::Acquire)
    }

    /// Why the chain broke, once.
    pub fn take_broken(&self) -> Option<String> {
        self.lock().broken.take()
    }

    /// Ends the chain and lets go of the file.
    pub fn close(&self) {
        let mut state = self.lock();
        state.forget();
        self.note(&state);
    }

    fn conclude(&self, state: &mut State, result: std::io::Result<()>) {
        if let Err(error) = result {
            state.give_up(format!("the WAL cannot be followed: {error}"));
        }
        self.seen.store(state.commits, Ordering::Release);
        self.note(state);
    }

    fn note(&self, state: &State) {
        let bytes = state.pending.pages.len() as u64 * u64::from(state.page_size);
        self.pending_bytes.store(bytes, Ordering::Relaxed);
        self.is_following.store(state.position.is_some(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn hold(&mut self, which: usize) -> rusqlite::Result<Version> {
        let conn = &self.holds.as_ref().expect("open since the chain began")[which];
        conn.prepare_cached("BEGIN")?.execute([])?;
        let version = view::version(conn);
        match version {
            Ok(_) => self.held = Some(which),
            Err(_) => self.let_go(which),
        }
        version
    }

    fn let_go(&mut self, which: usize) {
        let Some(holds) = &self.holds else { return };
        let conn = &holds[which];
        if !conn.is_autocommit()
            && let Err(error) = conn.execute_batch("ROLLBACK")
        {
            tracing::warn!(%error, "ending a read transaction failed");
        }
        if self.held == Some(which) {
            self.held = None;
        }
    }

    fn let_go_all(&mut self) {
        (0..2).for_each(|which| self.let_go(which));
    }

    fn forget(&mut self) {
        self.let_go_all();
        self.holds = None;
        self.position = None;
        self.pending = Pending::default();
        for view in self.views.drain(..).filter_map(|v| v.upgrade()) {
            view.store(true, Ordering::Relaxed);
        }
    }

    fn give_up(&mut self, reason: String) {
        self.forget();
        self.broken = Some(reason);
    }

    /// Reads on, holding off the next commit until `commits_may_follow` is called. `limit` is in bytes of pending pages.
    fn follow(
        &mut self,
        path: &Path,
        end: &WalEnd,
        limit: usize,
        commits_may_follow: impl FnOnce(),
    ) -> std::io::Result<()> {
        let (commits, frames) = (end.commits(), end.frames());
        if self.position.is_none() || self.commits == commits {
            return Ok(());
        }
        let old = self.held.ok_or_else(|| std::io::Error::other("no read transaction is open"))?;
        let new = 1 - old;
        let version = self.hold(new).map_err(std::io::Error::other);
        commits_may_follow();
        let is_complete = version.and_then(|version| self.read(path, frames, version, limit));
        // Only what is read up to its end may be let go.
        let (keep, drop) = if matches!(is_complete, Ok(true)) { (new, old) } else { (old, new) };
        self.let_go(drop);
        self.held = Some(keep);
        self.commits = if is_complete? { commits } else { u64::MAX };
        Ok(())
    }

    /// Reads frames up to `end`, where the replica is at `version`. Whether it got there.
    fn read(&mut self, path: &Path, end: u32, version: Version, limit: usize) -> std::io::Result<bool> {
        let Some(position) = self.position else { return Ok(true) };
        let wal = Wal::open(path)?;
        if wal.page_size() != self.page_size {
            return Err(std::io::Error::other("the page size changed"));
        }
        let pending = &mut self.pending;
        let page_size = self.page_size as usize;
        let reached = wal.read(position, end, |frame| {
            pending.add(frame);
            pending.pages.len() * page_size < limit
        })?;
        self.position = Some(reached);
        let is_complete = matches!(reached, Position::After { frame, .. } if frame == end);
        pending.version = is_complete.then_some(version);
        Ok(is_complete)
    }

    fn take(&mut self) -> Option<Increment> {
        if !self.pending.is_changed {
            return None;
        }
        let commit = self.pending.commit;
        let pending = std::mem::replace(&mut self.pending, Pending { commit, low: commit, ..Pending::default() });
        Some(Increment {
            pages: pending.pages,
            page_size: self.page_size,
            commit,
            low: pending.low,
            version: pending.version,
        })
    }

    fn has_views(&mut self) -> bool {
        self.views.retain(|v| v.strong_count() > 0);
        !self.views.is_empty()
    }
}

impl Pending {
    fn add(&mut self, frame: Frame<'_>) {
        self.is_changed = true;
        match self.pages.entry(frame.page) {
            std::collections::hash_map::Entry::Occupied(mut page) => page.get_mut().copy_from_slice(frame.content),
            std::collections::hash_map::Entry::Vacant(page) => drop(page.insert(frame.content.into())),
        }
        if frame.commit > 0 {
            if frame.commit < self.commit {
                self.pages.retain(|&page, _| page <= frame.commit);
            }
            self.commit = frame.commit;
            self.low = self.low.min(frame.commit);
        }
    }
}

impl Increment {
    /// The file of one transaction.
    pub fn encode(self, txid: Txid) -> Result<Vec<u8>, Error> {
        let header = ltx::Header {
            page_size: self.page_size,
            commit: self.commit,
            min: txid,
            max: txid,
            timestamp_ms: now_ms(),
            version: self.version.map_or(0, Version::as_u64),
        };
        let mut numbers: Vec<u32> = self.pages.keys().copied().filter(|&page| page <= self.commit).collect();
        // SQLite may add pages without writing them; a complete database has them nevertheless.
        let added = self.low + 1..=self.commit;
        numbers.extend(added.filter(|page| !self.pages.contains_key(page) && *page != header.lock_page()));
        numbers.sort_unstable();
        let empty = vec![0; self.page_size as usize];
        let failed = |e: std::io::Error| Error::Unavailable {
            at: txid.to_string(),
            action: "encode an increment",
            cause: e.to_string(),
        };
        let mut encoder = Encoder::new(Vec::new(), header).map_err(failed)?;
        for number in numbers {
            encoder.page(number, self.pages.get(&number).map_or(&empty, |page| page)).map_err(failed)?;
        }
        Ok(encoder.finish().map_err(failed)?.0)
    }
}

/// The writer's end of a capture.
#[derive(Debug)]
struct Keeper(Arc<Capture>);

impl WalKeeper for Keeper {
    fn release(&mut self, version: Version) -> bool {
        let capture = &*self.0;
        let mut state = capture.lock();
        if state.position.is_none() {
            return true;
        }
        let frames = capture.end.frames();
        let page_size = u64::from(state.page_size);
        let is_too_long =
            u64::from(frames) * page_size > WAL_BYTES_MAX.max(u64::from(state.pending.commit) * page_size);
        let unread = match state.position {
            Some(Position::After { frame, .. }) if frame <= frames => frames - frame,
            _ => frames,
        };
        let bytes = (state.pending.pages.len() as u64 + u64::from(unread)) * page_size;
        if state.has_views() || bytes >= PENDING_MAX as u64 {
            if is_too_long {
                state.give_up("the WAL grew too long before the store took what it holds".to_owned());
                capture.note(&state);
            }
            return is_too_long;
        }
        let commits = capture.end.commits();
        if state.commits != commits {
            let result = state.read(&capture.path, frames, version, usize::MAX).map(drop);
            state.commits = commits;
            capture.conclude(&mut state, result);
        }
        state.let_go_all();
        true
    }

    fn resume(&mut self) {
        let capture = &*self.0;
        let mut state = capture.lock();
        if state.position.is_none() || state.held.is_some() {
            return;
        }
        if let Err(error) = state.hold(0) {
            state.give_up(format!("a read transaction cannot be begun: {error}"));
        } else if capture.end.frames() == 0 {
            state.position = Some(Position::Start);
        }
        capture.note(&state);
    }
}
