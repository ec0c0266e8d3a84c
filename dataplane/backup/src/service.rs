//! The backup of one replica by its owner, as long as the process runs.
//!
//! ```text
//! begin:  look at what is there --> snapshot --> follow
//! follow: every interval, or when much waits: take --> encode --> upload --> confirm --> progress
//!         beside it, one at a time: snapshot, merger of a level, sweep
//! broken: begin again
//! ```
//!
//! A thread moves frames from the WAL into memory all the time; it is what the writer would otherwise wait for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fault::{Backoff, Class, Recurrence};
use futures_util::future::BoxFuture;
use replica::Writer;
use rows::Version;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::capture::{Capture, PENDING_DUE};
use crate::error::Error;
use crate::maintenance::{Done, Maintenance};
use crate::metrics::Metrics;
use crate::name::{Name, Txid};
use crate::plan::{self, File};
use crate::restore::stated_version;
use crate::store::Note;
use crate::target::{Lineage, Target};
use crate::view::View;
use crate::{now_ms, upload};

/// Between two looks at the WAL. Short, because the writer waits for what is left when it cuts the WAL.
const POLL: Duration = Duration::from_millis(50);
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
/// What works for so long has nothing to do with the failure before it.
const SETTLED: Duration = Duration::from_secs(15);
/// Tries to write the last increment when the process ends.
const LAST_TRIES: u32 = 3;

/// How far the backup is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The newest version that can be restored, as seen in the store; `None` if there is none of this lineage.
    pub restorable_version: Option<Version>,
    /// When everything that was committed was last in the store.
    pub last_success: Option<SystemTime>,
    /// When the newest snapshot of this lineage was written.
    pub snapshot_at: Option<SystemTime>,
    /// Written by this process.
    pub uploaded_bytes: u64,
    /// Whether this process's own chain is restorable; before, only a former one may be.
    pub is_complete: bool,
    /// What went wrong since the last success.
    pub failure: Option<Failure>,
}

/// What a person is told about a backup that does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The store does not let us in.
    pub is_denied: bool,
    pub message: String,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Failure {
        Failure { is_denied: matches!(error, Error::Denied { .. }), message: error.to_string() }
    }
}

/// A backup under way. Dropping it ends it without the last increment.
#[derive(Debug)]
pub struct Running {
    pub progress: watch::Receiver<Progress>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), Error>>,
    capture: Arc<Capture>,
}

impl Running {
    /// Writes what is not in the store yet, and ends. Call it after the last commit, and before the writer is dropped. May take
    /// as long as the store takes; the caller limits it.
    pub async fn stop(mut self) -> Result<(), Error> {
        if let Some(stop) = self.stop.take() {
            // The task may have ended by itself; then it says so.
            let _ = stop.send(());
        }
        (&mut self.task).await.unwrap_or(Err(Error::Cancelled))
    }

    /// Waits for an end that was not asked for: another owner writes to the path.
    pub async fn ended(&mut self) -> Error {
        match (&mut self.task).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => Error::Cancelled,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
        self.capture.close();
    }
}

/// By which right this process writes to the path.
#[derive(Clone)]
pub struct Ownership {
    /// Its number, greater than that of every former owner.
    pub epoch: u64,
    /// Asks for a number above the given one, which was found in the store. `None`: this process is not the owner any more. Whoever
    /// counts may have begun again.
    pub claim: Claim,
}

pub type Claim = Arc<dyn Fn(u64) -> BoxFuture<'static, Option<u64>> + Send + Sync>;

impl Ownership {
    /// Without a way to ask whether a greater number means another owner: it always does.
    #[must_use]
    pub fn fixed(epoch: u64) -> Ownership {
        Ownership { epoch, claim: Arc::new(|_| Box::pin(std::future::ready(None))) }
    }
}

/// Starts to back up the file of `writer`, before it applies anything more.
pub fn start(
    target: Target,
    writer: &mut Writer,
    ownership: Ownership,
    lineage: Lineage,
    metrics: Metrics,
) -> Result<Running, Error> {
    let Ownership { epoch, claim } = ownership;
    check(epoch, &target)?;
    let capture = Capture::new(writer.path(), writer.gate(), writer.wal_end());
    writer.keep_wal(capture.keeper())?;
    let due = Arc::new(Notify::new());
    let pump = {
        let (capture, due) = (Arc::clone(&capture), Arc::clone(&due));
        Pump::start(move || {
            capture.pump();
            if capture.pending_bytes() >= PENDING_DUE as u64 {
                due.notify_one();
            }
        })?
    };
    let (progress, receiver) = watch::channel(Progress::default());
    let (stop, stopped) = oneshot::channel();
    let service = Service {
        target,
        capture: Arc::clone(&capture),
        epoch,
        claim,
        lineage,
        metrics,
        progress,
        due,
        files: Vec::new(),
        next: Txid::ZERO,
        chain: None,
        encoding: None,
        unsent: None,
        maintenance: Maintenance::default(),
        _pump: pump,
    };
    let task = tokio::spawn(service.run(stopped));
    Ok(Running { progress: receiver, stop: Some(stop), task, capture })
}

/// Whether transactions can be numbered under it.
fn check(epoch: u64, target: &Target) -> Result<(), Error> {
    if epoch < Txid::EPOCH_END {
        return Ok(());
    }
    let reason = format!("epoch {epoch} is too large; epochs are less than {}", Txid::EPOCH_END);
    Err(Error::Refused { at: target.location(), reason })
}

/// The thread that empties the WAL. Nothing else does, and the writer waits for it in the end: a fault of the program in it is not
/// contained, so that whoever watches over the process ends it.
struct Pump(Arc<AtomicBool>);

impl Pump {
    fn start(mut empty: impl FnMut() + Send + 'static) -> Result<Pump, Error> {
        let stopped = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stopped);
        let run = move || {
            while !seen.load(Ordering::Relaxed) {
                empty();
                std::thread::sleep(POLL);
            }
        };
        let started = std::thread::Builder::new().name("backup-capture".to_owned()).spawn(run);
        started.map_err(|e| Error::Local { path: "/".into(), action: "start a thread", cause: e.to_string() })?;
        Ok(Pump(stopped))
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An increment on its way.
#[derive(Clone, Debug)]
struct Unsent {
    name: Name,
    bytes: Bytes,
    version: Option<Version>,
}

/// What a blocking thread makes of what is captured.
#[derive(Debug, Default)]
struct Encoded {
    unsent: Option<Unsent>,
    /// Of the version after the increment, where a snapshot was asked for.
    view: Option<View>,
}

/// What this process has written and what it is based on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    /// Its newest snapshot.
    pub snapshot: Name,
    /// Its first transaction.
    pub from: Txid,
}

struct Service {
    target: Target,
    capture: Arc<Capture>,
    epoch: u64,
    claim: Claim,
    lineage: Lineage,
    metrics: Metrics,
    progress: watch::Sender<Progress>,
    due: Arc<Notify>,
    /// What is in the store, as far as is known here.
    files: Vec<File>,
    /// The number of the next transaction; zero before the store was looked at.
    next: Txid,
    chain: Option<Chain>,
    encoding: Option<JoinHandle<Result<Encoded, Error>>>,
    unsent: Option<Unsent>,
    maintenance: Maintenance,
    _pump: Pump,
}

impl Service {
    async fn run(mut self, mut stop: oneshot::Receiver<()>) -> Result<(), Error> {
        let (mut retry, mut recurrence) = (RETRY, Recurrence::default());
        loop {
            let began = Instant::now();
            let failure = tokio::select! {
                failure = self.follow() => failure,
                _ = &mut stop => return self.finish().await,
            };
            if let Error::Superseded { name, .. } = &failure {
                let raised = tokio::select! {
                    raised = (self.claim)(name.max.epoch()) => raised,
                    _ = &mut stop => return self.finish().await,
                };
                if let Some(epoch) = raised {
                    self.renumber(epoch, name)?;
                    continue;
                }
                error!(error = %failure, "the backup ends");
                self.capture.close();
                self.fail(&failure);
                return Err(failure);
            }
            self.fail(&failure);
            if began.elapsed() > SETTLED {
                retry.succeeded();
                recurrence.advanced();
            }
            let (message, entry) = (failure.to_string(), failure.entry());
            let class = recurrence.class(self.progress.borrow().uploaded_bytes, entry, &message);
            let (attempts, remedy) = (recurrence.times(), entry.remedy);
            match class {
                Class::Person => {
                    error!(error = message, attempts, remedy, "the backup does not go on and needs a person")
                }
                // What cannot be read or continued is begun anew.
                Class::Passes | Class::OneThing | Class::NewCopy => {
                    warn!(error = message, attempts, "the backup failed, will retry");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(retry.pause()) => {}
                _ = &mut stop => return self.finish().await,
            }
        }
    }

    /// Begins again under a number above what was found: the process that wrote it owns nothing any more.
    fn renumber(&mut self, epoch: u64, found: &Name) -> Result<(), Error> {
        check(epoch, &self.target).inspect_err(|error| self.fail(error))?;
        warn!(%found, epoch, "the backup is of an owner whose log is gone; this one continues above its numbers");
        self.capture.close();
        self.maintenance.cancel();
        (self.epoch, self.next) = (epoch, Txid::ZERO);
        (self.chain, self.encoding, self.unsent) = (None, None, None);
        // A restoration would find the other's until this one's first snapshot is complete.
        self.progress.send_modify(|p| (p.restorable_version, p.is_complete) = (None, false));
        Ok(())
    }

    fn fail(&self, failure: &Error) {
        self.metrics.failures.inc();
        self.progress.send_modify(|p| p.failure = Some(failure.into()));
    }

    /// Goes on until something fails.
    async fn follow(&mut self) -> Error {
        let failure = async {
            if self.next == Txid::ZERO {
                self.look().await?;
            }
            let mut interval = tokio::time::interval(self.target.options.interval);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                if !self.capture.is_following() {
                    self.begin().await?;
                }
                self.flush().await?;
                if let Some(chain) = self.chain {
                    self.maintenance.start(&self.target, &self.files, chain, self.note());
                }
                tokio::select! {
                    _ = interval.tick() => {}
                    () = self.due.notified() => {}
                    done = self.maintenance.done() => self.settle(done)?,
                }
            }
        };
        let failure: Result<std::convert::Infallible, Error> = failure.await;
        match failure {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    /// Learns what is in the store.
    async fn look(&mut self) -> Result<(), Error> {
        let files = self.target.files().await?;
        let last = files.iter().max_by_key(|f| f.name.max);
        if let Some(last) = last
            && last.name.max.epoch() > self.epoch
        {
            return Err(Error::Superseded { at: self.target.location(), name: last.name });
        }
        let former = plan::restore(&files, Txid::ZERO, &Default::default());
        if let (Some(snapshot), Some(last)) = (former.first(), former.last()) {
            let note = self.target.store.note(snapshot.name).await?;
            if note.and_then(|n| n.lineage).is_some_and(|l| l == self.lineage.to_string()) {
                let version = stated_version(&self.target, last).await?;
                let snapshot_at = Some(snapshot.modified);
                self.progress.send_modify(|p| (p.restorable_version, p.snapshot_at) = (version, snapshot_at));
            }
        }
        let after_last = last.map_or(Txid::ZERO, |f| f.name.max.next());
        self.next = Txid::first_of(self.epoch).max(after_last);
        self.files = files;
        Ok(())
    }

    /// Begins a chain with a snapshot.
    async fn begin(&mut self) -> Result<(), Error> {
        if let Some(reason) = self.capture.take_broken() {
            self.metrics.broken_chains.inc();
            warn!(reason, "the increments of the backup cannot be continued; a new snapshot begins");
        }
        (self.chain, self.encoding, self.unsent) = (None, None, None);
        self.metrics.is_complete.set(0);
        self.progress.send_modify(|p| p.is_complete = false);
        self.maintenance.cancel();
        let began = Instant::now();
        let capture = Arc::clone(&self.capture);
        let view = tokio::task::spawn_blocking(move || capture.begin()).await.unwrap_or(Err(Error::Cancelled))?;
        let (version, bytes) = (view.version, view.byte_count());
        let from = self.next;
        self.next = from.next();
        info!(%version, bytes, location = self.target.location(), "writing a snapshot to the backup");
        let written = upload::snapshot(&self.target, view, from, self.note()).await;
        let file = match written {
            Ok(file) => file,
            Err(error) => {
                // Without its snapshot nothing that is captured is of use.
                self.capture.close();
                return Err(error);
            }
        };
        let elapsed = began.elapsed();
        info!(%version, size = file.size, elapsed_ms = elapsed.as_millis() as u64, "the snapshot is in the backup");
        self.metrics.snapshot_seconds.observe(elapsed.as_secs_f64());
        self.metrics.snapshots.inc();
        self.metrics.is_complete.set(1);
        self.chain = Some(Chain { snapshot: file.name, from });
        self.maintenance.began();
        self.wrote(&file, Some(version));
        let snapshot_at = Some(file.modified);
        self.progress.send_modify(|p| (p.is_complete, p.snapshot_at) = (true, snapshot_at));
        self.files.push(file);
        Ok(())
    }

    fn note(&self) -> Note {
        Note { timestamp_ms: now_ms(), lineage: Some(self.lineage.to_string()) }
    }

    /// Writes everything that is captured, and starts a snapshot of it if one is due.
    async fn flush(&mut self) -> Result<(), Error> {
        let interval = self.target.options.snapshot_interval;
        let mut wants_view = self.maintenance.is_idle() && self.maintenance.is_snapshot_due(interval);
        while wants_view || self.capture.pending_bytes() > 0 || self.encoding.is_some() || self.unsent.is_some() {
            if self.unsent.is_none() && self.encoding.is_none() {
                let (capture, txid) = (Arc::clone(&self.capture), self.next);
                self.next = txid.next();
                let encode = move || encode(&capture, txid, wants_view);
                self.encoding = Some(tokio::task::spawn_blocking(encode));
                wants_view = false;
            }
            // Both stay where they are if this is given up at an await.
            if let Some(encoding) = &mut self.encoding {
                let made = encoding.await.unwrap_or(Err(Error::Cancelled));
                self.encoding = None;
                let Encoded { unsent, view } = made?;
                if unsent.is_none() {
                    // The number was not used.
                    self.next = Txid::new(self.next.as_u64() - 1);
                }
                self.unsent = unsent;
                if let Some(view) = view {
                    let max = Txid::new(self.next.as_u64() - 1);
                    self.maintenance.snapshot(&self.target, view, max, self.note());
                }
            }
            self.send().await?;
        }
        if !self.capture.is_behind() && self.capture.is_following() {
            self.metrics.last_success_timestamp_seconds.set(i64::try_from(now_ms() / 1000).unwrap_or(i64::MAX));
            self.progress.send_modify(|p| {
                p.last_success = Some(SystemTime::now());
                p.failure = None;
            });
        }
        self.metrics.pending_bytes.set(i64::try_from(self.capture.pending_bytes()).unwrap_or(i64::MAX));
        Ok(())
    }

    async fn send(&mut self) -> Result<(), Error> {
        let Some(unsent) = &self.unsent else { return Ok(()) };
        let began = Instant::now();
        let file = upload::whole(&self.target, unsent.name, unsent.bytes.clone(), self.note()).await?;
        self.metrics.upload_seconds.observe(began.elapsed().as_secs_f64());
        self.metrics.increments.inc();
        let version = unsent.version;
        self.unsent = None;
        self.wrote(&file, version);
        self.files.push(file);
        Ok(())
    }

    /// A file of the chain's end has been seen in the store.
    fn wrote(&self, file: &File, version: Option<Version>) {
        self.metrics.uploaded_bytes.inc_by(file.size);
        self.progress.send_modify(|p| {
            p.uploaded_bytes += file.size;
            p.restorable_version = version.or(p.restorable_version);
        });
    }

    fn settle(&mut self, done: Result<Done, Error>) -> Result<(), Error> {
        match done {
            Ok(Done::Snapshot(file)) => {
                info!(file = %file.name, size = file.size, "a snapshot is in the backup");
                self.metrics.snapshots.inc();
                self.metrics.uploaded_bytes.inc_by(file.size);
                self.progress.send_modify(|p| p.snapshot_at = Some(file.modified));
                if let Some(chain) = &mut self.chain {
                    chain.snapshot = file.name;
                }
                self.files.push(file);
            }
            Ok(Done::Merged(file)) => {
                self.metrics.compactions.inc();
                self.metrics.uploaded_bytes.inc_by(file.size);
                self.files.push(file);
            }
            Ok(Done::Swept { found, deleted, lost }) => {
                self.metrics.deleted_files.inc_by(deleted.len() as u64);
                self.files.retain(|f| !deleted.contains(&f.name) && !lost.contains(&f.name));
                let new: Vec<File> =
                    found.into_iter().filter(|f| !self.files.iter().any(|g| g.name == f.name)).collect();
                self.files.extend(new.into_iter().filter(|f| !deleted.contains(&f.name)));
                let later = self.files.iter().find(|f| f.name.max.epoch() > self.epoch);
                if let Some(later) = later {
                    return Err(Error::Superseded { at: self.target.location(), name: later.name });
                }
                if let Some(lost) = lost.first() {
                    self.break_chain(&format!("{lost} is gone from the store"));
                }
            }
            Err(error @ (Error::Damaged { .. } | Error::Missing { .. })) => {
                self.metrics.failures.inc();
                self.break_chain(&error.to_string());
            }
            Err(error) => {
                self.metrics.failures.inc();
                warn!(%error, "tidying the backup failed, will retry");
            }
        }
        Ok(())
    }

    /// What is in the store cannot be relied on: only a new snapshot mends it.
    fn break_chain(&mut self, reason: &str) {
        self.metrics.broken_chains.inc();
        warn!(reason, "the backup in the store is damaged; a new snapshot begins");
        self.capture.close();
    }

    /// The last increment.
    async fn finish(mut self) -> Result<(), Error> {
        self.maintenance.cancel();
        let (mut tries, mut retry) = (0, RETRY);
        let result = loop {
            let capture = Arc::clone(&self.capture);
            let pumped = tokio::task::spawn_blocking(move || capture.pump()).await;
            let result = match pumped {
                Ok(()) if self.capture.is_following() && self.chain.is_some() => self.flush().await,
                // The chain has not begun: a former one, and the log of changes, is what there is.
                _ => break Ok(()),
            };
            match result {
                Ok(()) if !self.capture.is_behind() => break Ok(()),
                Ok(()) => {}
                Err(error) if tries == LAST_TRIES => break Err(error),
                Err(error) => {
                    warn!(%error, "writing the last increment failed");
                    tries += 1;
                    tokio::time::sleep(retry.pause()).await;
                }
            }
        };
        self.capture.close();
        result
    }
}

fn encode(capture: &Capture, txid: Txid, wants_view: bool) -> Result<Encoded, Error> {
    let (increment, view) = if wants_view {
        match capture.split()? {
            Some((increment, view)) => (increment, Some(view)),
            None => (None, None),
        }
    } else {
        (capture.take(), None)
    };
    let Some(increment) = increment else { return Ok(Encoded { unsent: None, view }) };
    let version = increment.version;
    let bytes = increment.encode(txid)?.into();
    let name = Name { level: 0, min: txid, max: txid };
    Ok(Encoded { unsent: Some(Unsent { name, bytes, version }), view })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const OTHER: &str = "ZERO_TEST_PUMP";
    const ENDED: i32 = 77;

    #[test]
    fn a_panic_of_the_pump_ends_the_process() {
        let test = "service::tests::the_other_process";
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", test]).env(OTHER, "1").output().unwrap();
        assert_eq!(output.status.code(), Some(ENDED), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Does nothing unless it is the other process, whose panics are handled as those of the server.
    #[test]
    fn the_other_process() {
        if std::env::var_os(OTHER).is_none() {
            return;
        }
        std::panic::set_hook(Box::new(|_| {
            if !fault::is_contained() {
                std::process::exit(ENDED);
            }
        }));
        let mut turns = 0;
        let _pump = Pump::start(move || {
            turns += 1;
            assert!(turns < 3, "on purpose");
        });
        std::thread::sleep(Duration::from_secs(60));
    }
}
