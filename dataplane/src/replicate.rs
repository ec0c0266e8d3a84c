//! From the replication stream to the replica and the views.
//!
//! One task receives and acknowledges, one thread applies. Between them is a short queue: while one commit is being written, the
//! next transactions are collected, so that a busy upstream is applied in few large commits and a quiet one without delay.

use std::time::Duration;

use anyhow::{Context, Result};
use replica::Writer;
use rows::{Transaction, Version};
use tokio::sync::mpsc;
use tracing::{info, warn};
use upstream::{Acks, Error, Event, Resume, Stream};
use views::Batches;

use crate::metrics::Metrics;

/// Changes collected for one commit.
const CHANGES_PER_COMMIT_MAX: usize = 10_000;
/// Collected commits that may wait for the thread that applies.
const COMMITS_QUEUED: usize = 2;
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Why replication ended by itself.
pub enum Ended {
    /// The replica cannot be continued.
    Reset(String),
}

/// Replicates until the replica must be rebuilt. Upstream's absence and its misconfiguration are waited out, because clients are
/// served meanwhile; the replica's own failure is an error.
///
/// `initial` is the version of the copy that the replica descends from.
pub async fn run(
    source: upstream::Options,
    initial: Version,
    writer: Writer,
    batches: Batches,
    metrics: Metrics,
) -> Result<Ended> {
    let mut after = writer.version();
    let (sender, receiver) = mpsc::channel(COMMITS_QUEUED);
    let runtime = tokio::runtime::Handle::current();
    let mut applying = tokio::task::spawn_blocking(move || apply(writer, receiver, &batches, &runtime, &metrics));
    let mut pause = RETRY_MIN;
    loop {
        let resume = Resume { replica: initial, after, confirmed: after };
        let failure = tokio::select! {
            failure = follow(&source, resume, &sender, &mut after, &mut pause) => failure,
            applied = &mut applying => {
                applied.context("the thread that applies changes failed")??;
                anyhow::bail!("the thread that applies changes ended");
            }
        };
        match failure {
            Error::ResetRequired { message } => return Ok(Ended::Reset(message)),
            error @ (Error::Transient { .. } | Error::SlotInUse { .. }) => {
                warn!(%error, retry_ms = pause.as_millis() as u64, "replication stream ended, will retry");
            }
            error @ Error::Configuration { .. } => {
                tracing::error!(%error, retry_ms = pause.as_millis() as u64, "replication cannot go on; clients are served what is here");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// Follows one stream to its end.
async fn follow(
    source: &upstream::Options,
    resume: Resume,
    commits: &mpsc::Sender<Commit>,
    after: &mut Version,
    pause: &mut Duration,
) -> Error {
    let mut stream = match Stream::start(source, resume).await {
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
                Ok(Event::Keepalive { .. }) => {}
                Err(error) => return error,
            }
            next = if changes < CHANGES_PER_COMMIT_MAX { stream.try_next() } else { None };
        }
        let Some(version) = transactions.last().map(|t| t.version) else { continue };
        *pause = RETRY_MIN;
        *after = version;
        if commits.send(Commit { transactions, acks: acks.clone() }).await.is_err() {
            // The thread failed; `run` sees why.
            std::future::pending::<()>().await;
        }
    }
}

struct Commit {
    transactions: Vec<Transaction>,
    acks: Acks,
}

fn apply(
    mut writer: Writer,
    mut commits: mpsc::Receiver<Commit>,
    batches: &Batches,
    runtime: &tokio::runtime::Handle,
    metrics: &Metrics,
) -> Result<()> {
    while let Some(Commit { transactions, acks }) = commits.blocking_recv() {
        metrics.transactions.inc_by(transactions.len() as u64);
        metrics.changes.inc_by(transactions.iter().map(|t| t.changes.len() as u64).sum());
        let timer = metrics.apply.start_timer();
        let batch = writer.apply(&transactions).context("apply changes to the replica")?;
        timer.observe_duration();
        if let Some(version) = transactions.last().map(|t| t.version) {
            acks.ack(version);
        }
        if let Some(batch) = batch {
            runtime.block_on(batches.publish(batch));
        }
    }
    info!("nothing more to apply");
    writer.checkpoint().context("fold the write-ahead log into the replica")
}
