//! From the replication stream to the change log, the replica and the views.
//!
//! ```text
//! stream --> collect --+--> change log (a task)      stored --+--> followers
//!                      |                                      v
//!                      +--> replica (a thread)  applied --> acknowledge, publish
//! ```
//!
//! Storing and applying go on at the same time; the replica's commit waits for the log's, so that nothing is acknowledged upstream
//! or shown to clients that is not stored. While one is under way the next transactions are collected, so that a busy upstream is
//! handled in few large commits and a quiet one without delay.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use changes::Log;
use replica::Writer;
use rows::Version;
use streamer::Fanout;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{error, warn};
use upstream::{Error, Event, Resume, Stream};

use crate::change_log::{self, Order};
use crate::feed::{Applied, CHANGES_PER_COMMIT_MAX, Commit, Feed};
use crate::metrics::Metrics;
use crate::node::Anew;
use crate::status::Status;
use crate::stop::{Share, Stop};

/// What the change database may take to store what is left when the node stops.
const STORING: Share = Share { part: 6, at_most: Duration::from_secs(10) };
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Where replication stands at start.
pub struct Start {
    pub source: upstream::Options,
    /// Version of the copy that the replica descends from.
    pub initial: Version,
    pub log: Log,
    /// What the log's task is asked for; others than replication hold the sender weakly.
    pub orders: (mpsc::Sender<Order>, mpsc::Receiver<Order>),
    /// The last version in the log. The replica may be ahead of it: what follows then comes again and is skipped there.
    pub stored: Version,
    /// Told what must be applied to be where upstream was when the stream began.
    pub reached: watch::Sender<Option<Version>>,
    pub fanout: Fanout,
    pub metrics: Metrics,
    pub status: Status,
}

pub enum Ended {
    /// The replica must be rebuilt, for this reason.
    Reset(String, Anew),
    /// Another process replicates now.
    SteppedDown,
}

pub struct Replication {
    follower: Follower,
    feed: Feed,
    /// `None` once it has ended.
    storing: Option<JoinHandle<Result<change_log::Ended>>>,
}

impl Replication {
    pub fn start(start: Start, feed: Feed) -> Replication {
        let Start { source, initial, log, orders: (orders, queue), stored, reached, fanout, metrics, status } = start;
        let (trouble, is_troubled) = watch::channel(false);
        let storing = Some(tokio::spawn(change_log::run(log, fanout, queue, trouble)));
        let follower = Follower {
            source,
            initial,
            after: stored,
            orders,
            commits: feed.commits.clone(),
            applied: feed.applied.clone(),
            is_troubled,
            reached,
            metrics,
            status,
            pause: RETRY_MIN,
        };
        Replication { follower, feed, storing }
    }

    /// Replicates until that cannot go on. Upstream's absence and its misconfiguration are waited out, because clients are served
    /// meanwhile. Dropping the future loses nothing.
    pub async fn run(&mut self) -> Result<Ended> {
        loop {
            let turn = tokio::select! {
                turn = self.follower.turn() => turn,
                ended = stored(&mut self.storing) => return ended,
                reason = self.feed.failed() => match reason? {
                    Some(reason) => return Ok(Ended::Reset(reason, Anew::Any)),
                    // A commit could not be stored.
                    None => return stored(&mut self.storing).await,
                },
            };
            if let Some(message) = turn {
                // Neither a backup nor another replica has what upstream will not send.
                return Ok(Ended::Reset(message, Anew::Source));
            }
        }
    }

    /// Stores and applies what was collected. The log, unless another process owns it or its database does not answer in time, and
    /// the writer, unless it has failed or is not waited for.
    pub async fn finish(self, stop: &Stop) -> Result<(Option<Log>, Option<Writer>)> {
        let Replication { follower, feed, storing } = self;
        drop(follower);
        let log = match storing {
            Some(storing) => finished(stop, storing).await?,
            None => None,
        };
        Ok((log, feed.finish(stop).await?))
    }
}

/// The log, once what was ordered is stored. What cannot be stored in time is not acknowledged and comes again.
async fn finished(stop: &Stop, mut storing: JoinHandle<Result<change_log::Ended>>) -> Result<Option<Log>> {
    let Some(ended) = stop.within("storing changes", STORING, &mut storing).await else {
        storing.abort();
        // Its end tells the thread that applies changes not to wait for it.
        let _ = storing.await;
        return Ok(None);
    };
    Ok(match ended.context("the task that stores changes failed")?? {
        change_log::Ended::Idle(log) => Some(*log),
        change_log::Ended::SteppedDown => None,
    })
}

/// How the task that stores changes ended while it was needed.
async fn stored(storing: &mut Option<JoinHandle<Result<change_log::Ended>>>) -> Result<Ended> {
    let Some(task) = storing else { bail!("the task that stores changes has ended") };
    let ended = task.await;
    *storing = None;
    match ended.context("the task that stores changes failed")?? {
        change_log::Ended::SteppedDown => Ok(Ended::SteppedDown),
        change_log::Ended::Idle(_) => bail!("the task that stores changes ended"),
    }
}

struct Follower {
    source: upstream::Options,
    initial: Version,
    /// The last version handed on.
    after: Version,
    orders: mpsc::Sender<Order>,
    commits: mpsc::Sender<Commit>,
    applied: Applied,
    /// The change log cannot be written at present.
    is_troubled: watch::Receiver<bool>,
    reached: watch::Sender<Option<Version>>,
    metrics: Metrics,
    status: Status,
    pause: Duration,
}

impl Follower {
    /// One stream, and the pause before the next. `Some` is why the replica must be rebuilt.
    async fn turn(&mut self) -> Option<String> {
        let mut is_troubled = self.is_troubled.clone();
        let failure = tokio::select! {
            failure = self.follow() => Some(failure),
            // Postgres waits for us when it shuts down, and what it sent may not become durable before it is up again.
            _ = is_troubled.wait_for(|on| *on) => None,
        };
        // A successor that made a new copy has dropped our slot: that is no reason to make one as well.
        self.check_ownership().await;
        let retry_ms = self.pause.as_millis() as u64;
        match failure {
            None => {}
            Some(Error::ResetRequired { message, is_slot_lost }) => {
                if is_slot_lost {
                    self.status.lost_slot();
                }
                return Some(message);
            }
            Some(error @ (Error::Transient { .. } | Error::SlotInUse { .. })) => {
                warn!(%error, retry_ms, "the replication stream ended, will retry");
            }
            Some(error @ Error::Configuration { .. }) => {
                error!(%error, retry_ms, "replication cannot go on; clients are served what is here");
            }
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(RETRY_MAX);
        None
    }

    /// Does not return if another process owns the log.
    async fn check_ownership(&self) {
        let (answer, is_owner) = oneshot::channel();
        let is_asked = self.orders.send(Order::CheckOwnership(answer)).await.is_ok();
        if !is_asked || is_owner.await != Ok(true) {
            // The task that stores has ended; `run` sees how.
            std::future::pending::<()>().await;
        }
    }

    /// Follows one stream to its end.
    async fn follow(&mut self) -> Error {
        let resume = Resume { replica: self.initial, after: self.after, confirmed: self.after };
        let mut stream = match Stream::start(&self.source, resume).await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        let _streaming = self.status.streaming();
        let (acks, mut reached) = (stream.acks(), stream.reached());
        let acknowledge: Arc<dyn Fn(Version) + Send + Sync> = {
            let acks = acks.clone();
            Arc::new(move |version| acks.ack(version))
        };
        loop {
            let mut transactions = Vec::new();
            let mut changes = 0;
            let mut next = tokio::select! {
                event = stream.next() => Some(event),
                Ok(goal) = reached.wait_for(Option::is_some), if self.reached.borrow().is_none() => {
                    self.reached.send_replace(*goal);
                    continue;
                }
            };
            while let Some(event) = next {
                match event {
                    Ok(Event::Transaction(transaction)) => {
                        changes += transaction.changes.len();
                        transactions.push(transaction);
                    }
                    // What upstream wrote without concerning us can be recycled, once everything before it is stored here.
                    Ok(Event::Keepalive { lsn }) => {
                        if transactions.is_empty() && self.applied.version() >= self.after {
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
            self.status.received(&transactions);
            let transactions = Arc::new(transactions);
            let (stored, is_stored) = oneshot::channel();
            let append = Order::Append { transactions: Arc::clone(&transactions), stored };
            let commit = Commit { transactions, is_stored, acknowledge: Arc::clone(&acknowledge), bytes };
            let is_sent = self.orders.send(append).await.is_ok() && self.commits.send(commit).await.is_ok();
            if !is_sent {
                // One of the two failed; `run` sees which and why.
                std::future::pending::<()>().await;
            }
            self.after = version;
            self.metrics.replica_version_lag.add(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
}
