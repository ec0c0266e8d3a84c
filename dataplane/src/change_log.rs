//! The change log of a node that replicates: one task stores what arrives and hands it to those who follow.
//!
//! Invariant: a transaction is reported as stored, and published to followers, only after the commit in the change database.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use changes::{Batch, Error, Log};
use rows::Transaction;
use streamer::Fanout;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

/// Orders that may wait for the log.
const ORDERS_QUEUED: usize = 2;
/// What is kept for readers that come back, beyond what is known to be needed; older pages are purged.
const BYTES_KEPT: u64 = 256 << 20;
const PURGE_PERIOD: Duration = Duration::from_secs(30);
/// A node that has nothing to store learns within this time that it was replaced, and sends its followers on.
const OWNERSHIP_PERIOD: Duration = Duration::from_secs(5);
/// An append that takes longer makes upstream free to shut down or to send to somebody else.
const SLOW: Duration = Duration::from_secs(5);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

pub enum Order {
    /// Transactions to store, and whom to tell.
    Append { transactions: Arc<Vec<Transaction>>, stored: oneshot::Sender<()> },
    /// Answered with whether this node still owns the log, once the database says so.
    CheckOwnership(oneshot::Sender<bool>),
    /// Answered with the epoch of this node's ownership, which is above the given number from then on.
    RaiseEpoch { above: u64, raised: oneshot::Sender<u64> },
}

/// The queue of orders, and its sender.
pub fn orders() -> (mpsc::Sender<Order>, mpsc::Receiver<Order>) {
    mpsc::channel(ORDERS_QUEUED)
}

/// How the task ended without a failure.
pub enum Ended {
    /// Nobody can give orders any more.
    Idle(Box<Log>),
    /// Another process has taken the log over: this node must not go on.
    SteppedDown,
}

/// Carries orders out, in turn, until the queue ends. While the database is away it retries; upstream then waits.
/// `trouble` is true while the database cannot be written.
pub async fn run(
    mut log: Log,
    fanout: Fanout,
    mut orders: mpsc::Receiver<Order>,
    trouble: watch::Sender<bool>,
) -> Result<Ended> {
    let mut tick = tokio::time::interval(OWNERSHIP_PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut is_idle, mut purged) = (false, Instant::now());
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            _ = tick.tick() => {
                if std::mem::replace(&mut is_idle, true) && !check(&mut log).await? {
                    return Ok(Ended::SteppedDown);
                }
                if purged.elapsed() >= PURGE_PERIOD {
                    purged = Instant::now();
                    purge(&mut log, &fanout).await;
                }
                continue;
            }
        };
        is_idle = false;
        match order {
            None => return Ok(Ended::Idle(Box::new(log))),
            Some(Order::Append { transactions, stored }) => {
                let batch = Batch::encode(&transactions).context("encode changes")?;
                if !append(&mut log, &batch, &trouble).await? {
                    return Ok(Ended::SteppedDown);
                }
                fanout.publish(&batch);
                // The receiver is gone only when the process ends.
                let _ = stored.send(());
            }
            Some(Order::CheckOwnership(answer)) => {
                let is_owner = check(&mut log).await?;
                let _ = answer.send(is_owner);
                if !is_owner {
                    return Ok(Ended::SteppedDown);
                }
            }
            Some(Order::RaiseEpoch { above, raised }) => {
                let Some(epoch) = raise(&mut log, above).await? else { return Ok(Ended::SteppedDown) };
                fanout.raised(epoch);
                let _ = raised.send(epoch);
            }
        }
    }
}

/// `false`: another process owns the log.
async fn append(log: &mut Log, batch: &Batch, trouble: &watch::Sender<bool>) -> Result<bool> {
    let mut pause = RETRY_MIN;
    loop {
        match unless_slow(log.append_batch(batch), trouble).await {
            Ok(()) => {
                trouble.send_if_modified(|on| std::mem::replace(on, false));
                return Ok(true);
            }
            Err(Error::NotOwner) => return Ok(false),
            Err(error @ (Error::OutOfOrder { .. } | Error::Unreadable(_) | Error::Empty)) => {
                return Err(error).context("change database");
            }
            Err(error) => {
                warn!(%error, retry_ms = pause.as_millis() as u64, "cannot store changes, will retry");
                trouble.send_replace(true);
            }
        }
        reconnect(log, &mut pause).await;
    }
}

/// A pooler keeps a statement waiting while its database is down, so silence is trouble as well.
async fn unless_slow<T>(attempt: impl Future<Output = T>, trouble: &watch::Sender<bool>) -> T {
    tokio::pin!(attempt);
    match tokio::time::timeout(SLOW, &mut attempt).await {
        Ok(done) => done,
        Err(_) => {
            warn!(after_ms = SLOW.as_millis() as u64, "the change database does not answer");
            trouble.send_replace(true);
            attempt.await
        }
    }
}

async fn check(log: &mut Log) -> Result<bool> {
    let mut pause = RETRY_MIN;
    loop {
        match log.check_ownership().await {
            Ok(()) => return Ok(true),
            Err(Error::NotOwner) => return Ok(false),
            Err(error @ Error::Empty) => return Err(error).context("change database"),
            Err(error) => warn!(%error, retry_ms = pause.as_millis() as u64, "cannot read who owns the change log"),
        }
        reconnect(log, &mut pause).await;
    }
}

/// `None`: another process owns the log.
async fn raise(log: &mut Log, above: u64) -> Result<Option<u64>> {
    let mut pause = RETRY_MIN;
    loop {
        match log.raise_epoch(above).await {
            Ok(epoch) => return Ok(Some(epoch)),
            Err(Error::NotOwner) => return Ok(None),
            Err(error @ Error::Empty) => return Err(error).context("change database"),
            Err(error) => warn!(%error, retry_ms = pause.as_millis() as u64, "cannot raise the owner's epoch"),
        }
        reconnect(log, &mut pause).await;
    }
}

async fn reconnect(log: &mut Log, pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(RETRY_MAX);
    if let Err(error) = log.reconnect().await {
        warn!(%error, "cannot reach the change database");
    }
}

async fn purge(log: &mut Log, fanout: &Fanout) {
    match log.purge(fanout.floor(), BYTES_KEPT).await {
        Ok(purged) => {
            fanout.purged(purged.start);
            if purged.pages > 0 {
                info!(pages = purged.pages, start = %purged.start, "purged old changes");
            }
        }
        // The next append finds it out and ends the task.
        Err(Error::NotOwner) => {}
        Err(error) => warn!(%error, "cannot purge old changes"),
    }
}
