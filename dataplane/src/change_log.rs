//! The change log of a node that replicates: one task stores what arrives and hands it to those who follow.
//!
//! Invariant: a transaction is reported as stored, and published to followers, only after the commit in the change database.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use changes::{Batch, Error, Log};
use fault::{Backoff, Class, Recurrence};
use rows::Transaction;
use streamer::Fanout;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info, warn};

/// Orders that may wait for the log.
const ORDERS_QUEUED: usize = 2;
/// What is kept for readers that come back, beyond what is known to be needed; older pages are purged.
const BYTES_KEPT: u64 = 256 << 20;
const PURGE_PERIOD: Duration = Duration::from_secs(30);
/// A node that has nothing to store learns within this time that it was replaced, and sends its followers on.
const OWNERSHIP_PERIOD: Duration = Duration::from_secs(5);
/// An append that takes longer makes upstream free to shut down or to send to somebody else.
const SLOW: Duration = Duration::from_secs(5);
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

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

/// Why the change log cannot be written at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub class: Class,
    pub message: String,
    pub remedy: &'static str,
    pub attempts: u32,
}

/// How the task ended without a failure.
pub enum Ended {
    /// Nobody can give orders any more.
    Idle(Box<Log>),
    /// Another process has taken the log over: this node must not go on.
    SteppedDown,
    /// The database has lost what was stored in it, so the log cannot be continued.
    SetBack(String),
}

/// Carries orders out, in turn, until the queue ends. While the database is away it retries; upstream then waits.
/// `trouble` says why while the database cannot be written.
pub async fn run(
    mut log: Log,
    fanout: Fanout,
    mut orders: mpsc::Receiver<Order>,
    trouble: watch::Sender<Option<Trouble>>,
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
                if let Some(ended) = append(&mut log, &batch, &trouble).await? {
                    return Ok(ended);
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

/// Why nothing can be stored any more, if so.
async fn append(log: &mut Log, batch: &Batch, trouble: &watch::Sender<Option<Trouble>>) -> Result<Option<Ended>> {
    let (mut retry, mut recurrence) = (RETRY, Recurrence::default());
    loop {
        match unless_slow(log.append_batch(batch), trouble).await {
            Ok(()) => {
                trouble.send_if_modified(|trouble| trouble.take().is_some());
                return Ok(None);
            }
            Err(Error::NotOwner) => return Ok(Some(Ended::SteppedDown)),
            Err(error @ Error::SetBack { .. }) => return Ok(Some(Ended::SetBack(error.to_string()))),
            Err(error @ (Error::OutOfOrder { .. } | Error::Unreadable(_) | Error::Empty)) => {
                return Err(error).context("change database");
            }
            Err(error) => {
                let (message, entry) = (error.to_string(), error.entry());
                // All attempts store the same bytes at the same position.
                let class = recurrence.class(0, entry, &message);
                let (remedy, attempts) = (entry.remedy, recurrence.times());
                match class {
                    Class::Passes | Class::OneThing => warn!(%error, attempts, "cannot store changes, will retry"),
                    Class::Person | Class::NewCopy => {
                        error!(%error, attempts, remedy, "cannot store changes, and that does not pass by itself; clients are served what is here");
                    }
                }
                trouble.send_replace(Some(Trouble { class, message, remedy, attempts }));
            }
        }
        reconnect(log, &mut retry).await;
    }
}

/// A pooler keeps a statement waiting while its database is down, so silence is trouble as well.
async fn unless_slow<T>(attempt: impl Future<Output = T>, trouble: &watch::Sender<Option<Trouble>>) -> T {
    tokio::pin!(attempt);
    match tokio::time::timeout(SLOW, &mut attempt).await {
        Ok(done) => done,
        Err(_) => {
            warn!(after_ms = SLOW.as_millis() as u64, "the change database does not answer");
            trouble.send_replace(Some(Trouble {
                class: Class::Passes,
                message: format!("the change database does not answer for {} s", SLOW.as_secs()),
                remedy: "see whether the change database, or the pooler in front of it, runs",
                attempts: 1,
            }));
            attempt.await
        }
    }
}

async fn check(log: &mut Log) -> Result<bool> {
    let mut retry = RETRY;
    loop {
        match log.check_ownership().await {
            Ok(()) => return Ok(true),
            Err(Error::NotOwner) => return Ok(false),
            Err(error @ Error::Empty) => return Err(error).context("change database"),
            Err(error) => warn!(%error, "cannot read who owns the change log, will retry"),
        }
        reconnect(log, &mut retry).await;
    }
}

/// `None`: another process owns the log.
async fn raise(log: &mut Log, above: u64) -> Result<Option<u64>> {
    let mut retry = RETRY;
    loop {
        match log.raise_epoch(above).await {
            Ok(epoch) => return Ok(Some(epoch)),
            Err(Error::NotOwner) => return Ok(None),
            Err(error @ Error::Empty) => return Err(error).context("change database"),
            Err(error) => warn!(%error, "cannot raise the owner's epoch, will retry"),
        }
        reconnect(log, &mut retry).await;
    }
}

async fn reconnect(log: &mut Log, retry: &mut Backoff) {
    tokio::time::sleep(retry.pause()).await;
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
