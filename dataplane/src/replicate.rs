//! From the replication stream to the change log, the replica and the views.
//!
//! ```text
//! stream --> collect --+--> change log (a task)      stored --+
//!                      |                                      v
//!                      +--> replica (a thread)  applied --> acknowledge, publish
//! ```
//!
//! Storing and applying go on at the same time; the replica's commit waits for the log's, so that nothing is acknowledged upstream
//! or shown to clients that is not stored. While one is under way the next transactions are collected, so that a busy upstream is handled in few large commits and a quiet one
//! without delay.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use changes::Log;
use replica::Writer;
use rows::{Transaction, Version};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};
use upstream::{Acks, Error, Event, Resume, Stream};
use views::Batches;

use crate::change_log::{self, Append};
use crate::metrics::Metrics;

/// Changes collected for one commit.
const CHANGES_PER_COMMIT_MAX: usize = 10_000;
/// Collected commits that may wait for the log and for the thread that applies.
const COMMITS_QUEUED: usize = 2;
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Where replication stands at start.
pub struct Start {
    pub source: upstream::Options,
    /// Version of the copy that the replica descends from.
    pub initial: Version,
    pub writer: Writer,
    pub log: Log,
    /// The last version in the log. The replica may be ahead of it: what follows then comes again and is skipped there.
    pub stored: Version,
}

/// Replicates until the replica must be rebuilt, and says why. Upstream's absence and its misconfiguration are waited out, because
/// clients are served meanwhile; a failure of the replica or the loss of the log to another process is an error.
pub async fn run(start: Start, batches: Batches, metrics: Metrics) -> Result<String> {
    let Start { source, initial, writer, log, stored } = start;
    let (appends, append_queue) = mpsc::channel(COMMITS_QUEUED);
    let (commits, commit_queue) = mpsc::channel(COMMITS_QUEUED);
    let runtime = tokio::runtime::Handle::current();
    let mut storing = tokio::spawn(change_log::run(log, append_queue));
    let counted = metrics.clone();
    let done = Arc::new(AtomicU64::new(stored.as_u64()));
    let applied = Arc::clone(&done);
    let mut applying =
        tokio::task::spawn_blocking(move || apply(writer, commit_queue, &batches, &runtime, &applied, &counted));
    let mut follower = Follower { source, initial, after: stored, done, appends, commits, metrics, pause: RETRY_MIN };
    loop {
        let failure = tokio::select! {
            failure = follower.follow() => failure,
            ended = &mut storing => {
                ended.context("the task that stores changes failed")??;
                bail!("the task that stores changes ended");
            }
            ended = &mut applying => match ended.context("the thread that applies changes failed")?? {
                Some(reason) => return Ok(reason),
                None => bail!("the thread that applies changes ended"),
            },
        };
        let retry_ms = follower.pause.as_millis() as u64;
        match failure {
            Error::ResetRequired { message } => return Ok(message),
            Error::Transient { .. } | Error::SlotInUse { .. } => {
                warn!(error = %failure, retry_ms, "the replication stream ended, will retry");
            }
            Error::Configuration { .. } => {
                error!(error = %failure, retry_ms, "replication cannot go on; clients are served what is here");
            }
        }
        tokio::time::sleep(follower.pause).await;
        follower.pause = (follower.pause * 2).min(RETRY_MAX);
    }
}

struct Follower {
    source: upstream::Options,
    initial: Version,
    /// The last version handed on.
    after: Version,
    /// The last version that is stored and applied.
    done: Arc<AtomicU64>,
    appends: mpsc::Sender<Append>,
    commits: mpsc::Sender<Commit>,
    metrics: Metrics,
    pause: Duration,
}

impl Follower {
    /// Follows one stream to its end.
    async fn follow(&mut self) -> Error {
        let resume = Resume { replica: self.initial, after: self.after, confirmed: self.after };
        let mut stream = match Stream::start(&self.source, resume).await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        let acks = stream.acks();
        loop {
            let mut transactions = Vec::new();
            let mut changes = 0;
            let mut next = Some(stream.next().await);
            while let Some(event) = next {
                match event {
                    Ok(Event::Transaction(transaction)) => {
                        changes += transaction.changes.len();
                        transactions.push(transaction);
                    }
                    // What upstream wrote without concerning us can be recycled, once everything before it is stored here.
                    Ok(Event::Keepalive { lsn }) => {
                        if transactions.is_empty() && self.done.load(Ordering::Acquire) == self.after.as_u64() {
                            acks.ack(lsn);
                        }
                    }
                    // What was collected comes again with the next stream.
                    Err(error) => return error,
                }
                next = if changes < CHANGES_PER_COMMIT_MAX { stream.try_next() } else { None };
            }
            let Some(version) = transactions.last().map(|t| t.version) else { continue };
            self.pause = RETRY_MIN;
            let bytes = version.as_u64().saturating_sub(self.after.as_u64());
            let transactions = Arc::new(transactions);
            let (stored, is_stored) = oneshot::channel();
            let append = Append { transactions: Arc::clone(&transactions), stored };
            let commit = Commit { transactions, is_stored, acks: acks.clone(), bytes };
            let is_sent = self.appends.send(append).await.is_ok() && self.commits.send(commit).await.is_ok();
            if !is_sent {
                // One of the two failed; `run` sees which and why.
                std::future::pending::<()>().await;
            }
            self.after = version;
            self.metrics.replica_version_lag.add(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
}

struct Commit {
    transactions: Arc<Vec<Transaction>>,
    is_stored: oneshot::Receiver<()>,
    acks: Acks,
    /// Upstream's log from the commit before to this one.
    bytes: u64,
}

/// Applies until the queue ends (`None`) or the replica turns out to be unusable (`Some` reason).
fn apply(
    mut writer: Writer,
    mut commits: mpsc::Receiver<Commit>,
    batches: &Batches,
    runtime: &tokio::runtime::Handle,
    done: &AtomicU64,
    metrics: &Metrics,
) -> Result<Option<String>> {
    while let Some(Commit { transactions, is_stored, acks, bytes }) = commits.blocking_recv() {
        let timer = metrics.apply.start_timer();
        // What is not stored is neither shown nor acknowledged. The sender is dropped when the log failed or the process ends.
        let batch = match writer.apply_when(&transactions, || is_stored.blocking_recv().is_ok()) {
            Ok(batch) => batch,
            Err(replica::Error::Withheld) => break,
            Err(error @ replica::Error::Resync { .. }) => return Ok(Some(error.to_string())),
            Err(error) => return Err(error).context("apply changes to the replica"),
        };
        timer.observe_duration();
        if let Some(version) = transactions.last().map(|t| t.version) {
            acks.ack(version);
            done.store(version.as_u64(), Ordering::Release);
        }
        metrics.transactions.inc_by(transactions.len() as u64);
        metrics.changes.inc_by(transactions.iter().map(|t| t.changes.len() as u64).sum());
        metrics.replica_version_lag.sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        if let Some(batch) = batch {
            runtime.block_on(batches.publish(batch));
        }
    }
    info!("nothing more to apply");
    writer.checkpoint().context("fold the write-ahead log into the replica")?;
    Ok(None)
}
