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
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use changes::Log;
use fault::{Backoff, Class, Recurrence};
use replica::Writer;
use rows::Version;
use streamer::{Fanout, Gate};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{error, warn};
use upstream::{Error, Event, Resume, Stream};

use crate::change_log::{self, Order, Trouble};
use crate::feed::{Applied, CHANGES_PER_COMMIT_MAX, Commit, Feed};
use crate::metrics::Metrics;
use crate::node::Anew;
use crate::status::{Standing, Status};
use crate::stop::{Share, Stop};

/// What the change database may take to store what is left when the node stops.
const STORING: Share = Share { part: 6, at_most: Duration::from_secs(10) };
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
/// A stream that lives for so long has nothing to do with the failure before it.
const SETTLED: Duration = Duration::from_secs(3);

/// Where replication stands at start.
pub struct Start {
    pub source: upstream::Options,
    /// Version of the copy that the replica descends from.
    pub initial: Version,
    pub log: Log,
    /// What the log's task is asked for; others than replication hold the sender weakly.
    pub orders: (mpsc::Sender<Order>, mpsc::Receiver<Order>),
    /// The last version in the log. The replica is not ahead of it.
    pub stored: Version,
    /// When that was committed, if known.
    pub stored_time_us: Option<i64>,
    /// Told what must be applied to be where upstream was when the stream began.
    pub reached: watch::Sender<Option<Version>>,
    pub fanout: Fanout,
    /// Says to other processes whether changes arrive.
    pub gate: Gate,
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
        let Start { source, initial, log, orders, stored, stored_time_us, reached, fanout, gate, metrics, status } =
            start;
        let (orders, queue) = orders;
        let (trouble, troubled) = watch::channel(None);
        let storing = Some(tokio::spawn(change_log::run(log, fanout, queue, trouble)));
        let follower = Follower {
            source,
            initial,
            after: stored,
            after_time_us: stored_time_us,
            orders,
            commits: feed.commits.clone(),
            applied: feed.applied.clone(),
            troubled,
            reached,
            gate,
            metrics,
            status,
            retry: RETRY,
            recurrence: Recurrence::default(),
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
            if let Some(message) = turn? {
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
        change_log::Ended::SteppedDown | change_log::Ended::SetBack(_) => None,
    })
}

/// How the task that stores changes ended while it was needed.
async fn stored(storing: &mut Option<JoinHandle<Result<change_log::Ended>>>) -> Result<Ended> {
    let Some(task) = storing else { bail!("the task that stores changes has ended") };
    let ended = task.await;
    *storing = None;
    match ended.context("the task that stores changes failed")?? {
        change_log::Ended::SteppedDown => Ok(Ended::SteppedDown),
        change_log::Ended::SetBack(reason) => Ok(Ended::Reset(reason, Anew::Source)),
        change_log::Ended::Idle(_) => bail!("the task that stores changes ended"),
    }
}

struct Follower {
    source: upstream::Options,
    initial: Version,
    /// The last version handed on.
    after: Version,
    after_time_us: Option<i64>,
    orders: mpsc::Sender<Order>,
    commits: mpsc::Sender<Commit>,
    applied: Applied,
    /// Why the change log cannot be written at present.
    troubled: watch::Receiver<Option<Trouble>>,
    reached: watch::Sender<Option<Version>>,
    gate: Gate,
    metrics: Metrics,
    status: Status,
    retry: Backoff,
    recurrence: Recurrence,
}

/// Why a stream ended.
enum Failure {
    Stream(Error),
    /// Postgres waits for us when it shuts down, and what it sent may not become durable before it is up again.
    Log(Trouble),
}

impl Follower {
    /// One stream, and the pause before the next. `Some` is why the replica must be rebuilt.
    async fn turn(&mut self) -> Result<Option<String>> {
        let mut troubled = self.troubled.clone();
        let failure = tokio::select! {
            error = self.follow() => Failure::Stream(error),
            trouble = troubled.wait_for(Option::is_some) => match trouble.ok().and_then(|trouble| trouble.clone()) {
                Some(trouble) => Failure::Log(trouble),
                // The task that stores has ended; `run` sees how.
                None => std::future::pending().await,
            },
        };
        let standing = self.judged(&failure);
        self.stands(standing.clone());
        // A successor that made a new copy has dropped our slot: that is no reason to make one as well.
        self.owning(&mut troubled).await;
        match failure {
            Failure::Stream(error @ Error::Panicked { .. }) => {
                return Err(error).context("replicate from ZERO_UPSTREAM_DB");
            }
            Failure::Stream(Error::ResetRequired { is_slot_lost: true, .. }) => self.status.lost_slot(),
            _ => {}
        }
        if standing.class == Class::NewCopy {
            return Ok(Some(standing.message));
        }
        tokio::time::sleep(self.retry.pause()).await;
        Ok(None)
    }

    fn judged(&mut self, failure: &Failure) -> Standing {
        let (class, message, remedy, attempts) = match failure {
            Failure::Stream(error) => {
                let (message, entry) = (error.to_string(), error.entry());
                let class = self.recurrence.class(self.after.as_u64(), entry, &message);
                (class, message, entry.remedy, self.recurrence.times())
            }
            Failure::Log(trouble) => return self.of_log(trouble),
        };
        Standing { class, position: self.after, message, remedy, attempts, since: SystemTime::now() }
    }

    /// It is the log that must be mended then: no copy of upstream would help.
    fn of_log(&self, trouble: &Trouble) -> Standing {
        let Trouble { class, message, remedy, attempts } = trouble.clone();
        let class = if class == Class::NewCopy { Class::Person } else { class };
        Standing { class, position: self.after, message, remedy, attempts, since: SystemTime::now() }
    }

    /// Completes while this process owns the log. Until the database answers, what it is like is told.
    async fn owning(&self, troubled: &mut watch::Receiver<Option<Trouble>>) {
        let check = self.check_ownership();
        tokio::pin!(check);
        loop {
            tokio::select! {
                () = &mut check => return,
                Ok(()) = troubled.changed() => {
                    let trouble = troubled.borrow_and_update().clone();
                    if let Some(standing) = trouble.map(|trouble| self.of_log(&trouble)) {
                        self.metrics.stands(standing.class);
                        self.status.stands(standing);
                    }
                }
            }
        }
    }

    fn stands(&self, standing: Standing) {
        let Standing { class, position, message: error, remedy, attempts, .. } = &standing;
        match class {
            Class::Passes | Class::OneThing => {
                warn!(error, attempts, %position, "replication is interrupted, will retry");
            }
            Class::NewCopy => warn!(error, attempts, %position, "replication cannot go on with this replica"),
            Class::Person => {
                error!(error, attempts, %position, remedy, "replication does not advance and needs a person; clients are served what is here");
            }
        }
        self.metrics.stands(*class);
        self.status.stands(standing);
    }

    /// Nothing keeps replication from advancing.
    fn advances(&mut self) {
        self.retry.succeeded();
        self.metrics.advances();
        self.status.advances();
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
        let resume =
            Resume { replica: self.initial, after: self.after, confirmed: self.after, time_us: self.after_time_us };
        let mut stream = match Stream::start(&self.source, resume).await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        let _streaming = (self.status.streaming(), self.gate.streaming());
        let (acks, mut reached) = (stream.acks(), stream.reached());
        let acknowledge: Arc<dyn Fn(Version) + Send + Sync> = {
            let acks = acks.clone();
            Arc::new(move |version| acks.ack(version))
        };
        let settled = tokio::time::sleep(SETTLED);
        tokio::pin!(settled);
        loop {
            let mut transactions = Vec::new();
            let mut changes = 0;
            let first = tokio::select! {
                event = stream.next() => event,
                () = &mut settled, if !settled.is_elapsed() => {
                    self.advances();
                    continue;
                }
                Ok(goal) = reached.wait_for(Option::is_some), if self.reached.borrow().is_none() => {
                    self.reached.send_replace(*goal);
                    continue;
                }
            };
            let mut next = Some(first);
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
            let Some((version, time_us)) = transactions.last().map(|t| (t.version, t.commit_time_us)) else { continue };
            self.advances();
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
            (self.after, self.after_time_us) = (version, Some(time_us));
            self.metrics.replica_version_lag.add(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
}
