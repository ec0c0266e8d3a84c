//! The change log of this node: opened or begun at start, then fed by one task.
//!
//! Invariant: a transaction is reported as stored only after the commit in the change database; upstream is acknowledged, and
//! clients are told, only after that.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use changes::{Error, Log, Owner};
use replica::Writer;
use rows::{Transaction, Version};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{info, warn};

/// What is kept for readers that come back; older pages are purged.
const BYTES_KEPT: u64 = 256 << 20;
const PURGE_PERIOD: Duration = Duration::from_secs(60);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What the log at start means for the replica.
pub enum Opened {
    /// The replica holds everything that is stored.
    Ready { log: Box<Log>, last: Version },
    /// The log and the replica do not belong together.
    Reset(String),
}

/// Opens the log for a replica that descends from the copy at `initial`, and applies to the replica what only the log holds.
pub async fn open(
    options: &changes::Options,
    owner: &Owner,
    initial: Version,
    mut writer: Writer,
) -> Result<(Opened, Writer)> {
    let mut log = Log::open(options).await.context("change database")?;
    match log.lineage().await.context("change database")? {
        Some(lineage) if lineage.replica == initial => {}
        other if writer.version() == initial => {
            if let Some(other) = other {
                info!(copy = %other.replica, "the change log belongs to an older copy and begins anew");
            }
            log.begin(initial, owner).await.context("change database")?;
            return Ok((Opened::Ready { log: Box::new(log), last: initial }, writer));
        }
        other => {
            let have = other.map_or_else(|| "there is none".to_owned(), |l| format!("it descends from {}", l.replica));
            return Ok((
                Opened::Reset(format!("the change log does not fit the replica of {initial}: {have}")),
                writer,
            ));
        }
    }
    let lineage = log.take_over(owner).await.context("change database")?;
    while writer.version() < lineage.last {
        let missing = match log.read_after(writer.version()).await {
            Ok(missing) => missing,
            Err(error @ (Error::TooOld { .. } | Error::Unreadable(_))) => {
                return Ok((Opened::Reset(error.to_string()), writer));
            }
            Err(error) => return Err(error).context("change database"),
        };
        if missing.is_empty() {
            bail!("the change log ends before the version {} that it says it holds", lineage.last);
        }
        info!(transactions = missing.len(), "applying stored changes that the replica lacks");
        writer = tokio::task::spawn_blocking(move || writer.apply(&missing).map(|_| writer))
            .await
            .context("the thread that applies changes failed")??;
    }
    Ok((Opened::Ready { log: Box::new(log), last: lineage.last }, writer))
}

/// Transactions to store, and whom to tell.
pub struct Append {
    pub transactions: Arc<Vec<Transaction>>,
    pub stored: oneshot::Sender<()>,
}

/// Stores what arrives, in order, until the queue ends. While the database is away it retries; upstream then waits. An error means
/// that this node must not go on.
pub async fn run(mut log: Log, mut queue: mpsc::Receiver<Append>) -> Result<()> {
    let mut purged = Instant::now();
    while let Some(Append { transactions, stored }) = queue.recv().await {
        let mut pause = RETRY_MIN;
        loop {
            match log.append(&transactions).await {
                Ok(()) => break,
                Err(error @ (Error::NotOwner | Error::OutOfOrder { .. } | Error::Unreadable(_) | Error::Empty)) => {
                    return Err(error).context("change database");
                }
                Err(error) => {
                    warn!(%error, retry_ms = pause.as_millis() as u64, "cannot store changes, will retry");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
            if let Err(error) = log.reconnect().await {
                warn!(%error, "cannot reach the change database");
            }
        }
        // The receiver is gone only when the process ends.
        let _ = stored.send(());
        if purged.elapsed() >= PURGE_PERIOD {
            purged = Instant::now();
            if let Some(last) = transactions.last().map(|t| t.version)
                && let Err(error) = log.purge(last, BYTES_KEPT).await
            {
                warn!(%error, "cannot purge old changes");
            }
        }
    }
    Ok(())
}
