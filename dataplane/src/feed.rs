//! The thread that brings the replica from commit to commit and tells the views.
//!
//! Invariant: what is not stored in the change log is neither committed, nor shown, nor acknowledged to whom it came from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use replica::Writer;
use rows::{Transaction, Version};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{info, warn};
use views::Batches;

use crate::metrics::Metrics;
use crate::node::Node;
use crate::status::Status;
use crate::stop::{Share, Stop};

/// Changes collected for one commit.
pub const CHANGES_PER_COMMIT_MAX: usize = 10_000;
/// One commit that takes longer than this will never end. The largest transactions take minutes.
const STUCK: Duration = Duration::from_secs(30 * 60);
/// What is left to do when a node stops may take so long: applying what is stored, and folding it into the file.
const APPLYING: Share = Share { part: 4, at_most: Duration::from_secs(20) };
const FOLDING: Share = Share { part: 6, at_most: Duration::from_secs(10) };
/// Collected commits that may wait for the thread.
const COMMITS_QUEUED: usize = 2;

/// Transactions for one commit of the replica.
pub struct Commit {
    pub transactions: Arc<Vec<Transaction>>,
    /// Dropped without a word if they could not be stored.
    pub is_stored: oneshot::Receiver<()>,
    /// Tells the source what is applied.
    pub acknowledge: Arc<dyn Fn(Version) + Send + Sync>,
    /// Upstream's log from the commit before to this one.
    pub bytes: u64,
}

/// The last version that is stored and applied; follows the thread.
#[derive(Clone)]
pub struct Applied(Arc<AtomicU64>);

impl Applied {
    pub fn version(&self) -> Version {
        Version::new(self.0.load(Ordering::Acquire))
    }
}

/// The thread, running.
pub struct Feed {
    pub commits: mpsc::Sender<Commit>,
    pub applied: Applied,
    /// Absent once it has ended.
    thread: Option<JoinHandle<Result<Ended>>>,
    _watched: port::Watched,
}

/// How the thread ended without a failure.
enum Ended {
    /// Nobody sends commits any more.
    Idle(Box<Writer>),
    /// The replica turned out to be unusable, for this reason.
    Unusable(String),
}

impl Feed {
    /// `batches` is absent on a node without views.
    pub fn start(node: &Node<'_>, writer: Writer, batches: Option<Batches>) -> Feed {
        let (metrics, status, pulse) = (node.metrics.clone(), node.status.clone(), port::Pulse::default());
        let watched = {
            let pulse = pulse.clone();
            node.liveness.watch("the replica's writer", STUCK, move || pulse.age())
        };
        status.at(writer.version());
        let (commits, queue) = mpsc::channel(COMMITS_QUEUED);
        let applied = Applied(Arc::new(AtomicU64::new(writer.version().as_u64())));
        let runtime = tokio::runtime::Handle::current();
        let thread = {
            let applied = applied.clone();
            tokio::task::spawn_blocking(move || {
                let around = Around { batches, runtime, applied, metrics, status, pulse };
                apply(writer, queue, &around)
            })
        };
        Feed { commits, applied, thread: Some(thread), _watched: watched }
    }

    /// Why the replica cannot be continued; `None` if a commit could not be stored. Dropping the future loses nothing.
    pub async fn failed(&mut self) -> Result<Option<String>> {
        let Some(thread) = &mut self.thread else { bail!("the thread that applies changes has ended") };
        let ended = thread.await;
        self.thread = None;
        match ended.context("the thread that applies changes failed")?? {
            Ended::Unusable(reason) => Ok(Some(reason)),
            Ended::Idle(_) => Ok(None),
        }
    }

    /// Applies what is queued. The writer, unless the thread has failed or is not waited for.
    pub async fn finish(self, stop: &Stop) -> Result<Option<Writer>> {
        drop(self.commits);
        let Some(thread) = self.thread else { return Ok(None) };
        let Some(ended) = stop.within("applying changes", APPLYING, thread).await else { return Ok(None) };
        match ended.context("the thread that applies changes failed")?? {
            Ended::Idle(writer) => Ok(Some(*writer)),
            Ended::Unusable(_) => Ok(None),
        }
    }
}

/// Folds the write-ahead log into the replica's file and closes it.
pub async fn close(stop: &Stop, mut writer: Writer) -> Result<()> {
    let folding = tokio::task::spawn_blocking(move || writer.checkpoint());
    let Some(folded) = stop.within("folding the write-ahead log", FOLDING, folding).await else { return Ok(()) };
    folded.context("the thread that closes the replica failed")?.context("fold the write-ahead log into the replica")
}

/// The next commit. In between, makes the indexes that queries wish for.
fn next(
    writer: &mut Writer,
    commits: &mut mpsc::Receiver<Commit>,
    batches: Option<&Batches>,
    runtime: &tokio::runtime::Handle,
) -> Option<Commit> {
    let Some(batches) = batches else { return commits.blocking_recv() };
    loop {
        let wanted = runtime.block_on(async {
            tokio::select! {
                commit = commits.recv() => Err(commit),
                wanted = batches.wanted_index() => Ok(wanted),
            }
        });
        let wanted = match wanted {
            Err(commit) => return commit,
            Ok(wanted) => wanted,
        };
        let columns: Vec<&str> = wanted.columns.iter().map(String::as_str).collect();
        if let Err(error) = writer.ensure_index(&wanted.table, &columns) {
            // Queries are slower without it, and right.
            warn!(%error, table = wanted.table, ?columns, "cannot make an index");
        }
    }
}

/// What the thread works with beside the replica.
struct Around {
    batches: Option<Batches>,
    runtime: tokio::runtime::Handle,
    applied: Applied,
    metrics: Metrics,
    status: Status,
    pulse: port::Pulse,
}

fn apply(mut writer: Writer, mut commits: mpsc::Receiver<Commit>, around: &Around) -> Result<Ended> {
    let Around { batches, runtime, applied, metrics, status, pulse } = around;
    while let Some(commit) = next(&mut writer, &mut commits, batches.as_ref(), runtime) {
        let Commit { transactions, is_stored, acknowledge, bytes } = commit;
        let timer = metrics.apply.start_timer();
        // The sender is dropped when storing failed or the process ends.
        let wait = || {
            // A change database that is away is no fault of this thread.
            pulse.rest();
            let is_stored = is_stored.blocking_recv().is_ok();
            pulse.begin();
            is_stored
        };
        pulse.begin();
        let batch = match writer.apply_when(&transactions, wait) {
            Ok(batch) => batch,
            Err(replica::Error::Withheld) => break,
            Err(error @ replica::Error::Resync { .. }) => return Ok(Ended::Unusable(error.to_string())),
            Err(error) => return Err(error).context("apply changes to the replica"),
        };
        pulse.rest();
        timer.observe_duration();
        metrics.transactions.inc_by(transactions.len() as u64);
        metrics.changes.inc_by(transactions.iter().map(|t| t.changes.len() as u64).sum());
        metrics.replica_version_lag.sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        if let Some(version) = transactions.last().map(|t| t.version) {
            status.applied(&transactions);
            applied.0.fetch_max(version.as_u64(), Ordering::Release);
            acknowledge(version);
        }
        if let (Some(batch), Some(batches)) = (batch, batches) {
            runtime.block_on(batches.publish(batch));
        }
    }
    info!("nothing more to apply");
    Ok(Ended::Idle(Box::new(writer)))
}
