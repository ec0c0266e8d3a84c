//! The owner's side of the stream: what is published, who follows, and what the log must keep for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use changes::{Batch, Lineage};
use rows::Version;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::pool::{Pool, User};
use crate::ring::{Entry, Ring, Taken};
use crate::snapshot::SnapshotSource;
use crate::wire::{Backup, Hello, Refusal, Welcome};

/// What the composition root decides, once for each time that this node becomes the owner.
pub struct FanoutOptions {
    pub log: changes::Options,
    /// The log as it was taken over or begun.
    pub lineage: Lineage,
    /// Recent changes held in memory; a subscriber that is further behind reads the log.
    pub ring_bytes_max: usize,
    /// Connections to the change database for subscribers that are behind, all together.
    pub readers_max: usize,
    /// How long the log is kept for a node that restores.
    pub reservation_age_max: Duration,
    /// For nodes that have no backup to restore from.
    pub snapshots: Option<Arc<dyn SnapshotSource>>,
    /// Snapshots that are sent at the same time; further ones wait.
    pub snapshots_max: usize,
}

impl FanoutOptions {
    #[must_use]
    pub fn new(log: changes::Options, lineage: Lineage) -> FanoutOptions {
        FanoutOptions {
            log,
            lineage,
            ring_bytes_max: 64 << 20,
            readers_max: 2,
            reservation_age_max: Duration::from_secs(3600),
            snapshots: None,
            snapshots_max: 2,
        }
    }
}

/// A cheap handle. The log's writer publishes through it, the port serves from it.
#[derive(Clone)]
pub struct Fanout(Arc<Inner>);

struct Inner {
    app: String,
    shard: u32,
    replica: Version,
    epoch: AtomicU64,
    reservation_age_max: Duration,
    ring: Mutex<Ring>,
    /// Entries ever published.
    published: watch::Sender<u64>,
    /// The log holds what follows.
    start: AtomicU64,
    members: Mutex<Members>,
    backup: Mutex<Option<Backup>>,
    pool: Pool,
    snapshots: Option<Arc<dyn SnapshotSource>>,
    snapshot_permits: Arc<Semaphore>,
    metrics: Metrics,
}

#[derive(Default)]
struct Members {
    next: u64,
    live: HashMap<u64, Kept>,
}

/// What the log is kept for.
struct Kept {
    node: String,
    /// Everything after it.
    after: Version,
    /// Of a reservation: when it ceases to count.
    until: Option<Instant>,
}

/// A subscriber or a reservation; it counts for the floor while this lives.
pub(crate) struct Membership {
    fanout: Fanout,
    id: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fanout {
    #[must_use]
    pub fn new(options: FanoutOptions, metrics: Metrics) -> Fanout {
        let lineage = options.lineage;
        metrics.ring_bytes.set(0);
        Fanout(Arc::new(Inner {
            app: options.log.app.id.clone(),
            shard: options.log.app.shard,
            replica: lineage.replica,
            epoch: AtomicU64::new(lineage.epoch),
            reservation_age_max: options.reservation_age_max,
            ring: Mutex::new(Ring::new(lineage.last, options.ring_bytes_max)),
            published: watch::Sender::new(0),
            start: AtomicU64::new(lineage.start.as_u64()),
            members: Mutex::default(),
            backup: Mutex::default(),
            pool: Pool::new(options.log, options.readers_max),
            snapshots: options.snapshots,
            snapshot_permits: Arc::new(Semaphore::new(options.snapshots_max.max(1))),
            metrics,
        }))
    }

    /// Hands transactions to the subscribers. Only what is durable in the log, every append once, in order. Never waits.
    pub fn publish(&self, batch: &Batch) {
        let entries: Vec<Entry> = batch.pages().iter().map(Entry::of).collect();
        let count = entries.len() as u64;
        let bytes = {
            let mut ring = lock(&self.0.ring);
            ring.push(entries);
            ring.bytes()
        };
        self.0.metrics.ring_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.0.published.send_modify(|n| *n += count);
    }

    /// The last version that was published, or the log's last one at the start.
    #[must_use]
    pub fn head(&self) -> Version {
        lock(&self.0.ring).head()
    }

    /// The log must keep what follows this version: what connected subscribers have not applied, what nodes that restore will ask
    /// for, and what a node that restores the backup would.
    #[must_use]
    pub fn floor(&self) -> Version {
        let head = self.head();
        let now = Instant::now();
        let members = lock(&self.0.members);
        let kept = members.live.values().filter(|kept| kept.until.is_none_or(|until| until > now));
        let lowest = kept.map(|kept| kept.after).min().unwrap_or(head).min(head);
        self.0.metrics.lag_bytes.set(i64::try_from(head.as_u64() - lowest.as_u64()).unwrap_or(i64::MAX));
        drop(members);
        lock(&self.0.backup).as_ref().map_or(lowest, |backup| lowest.min(backup.version))
    }

    /// To be told after a purge, so that new subscribers learn where the log begins.
    pub fn purged(&self, start: Version) {
        self.0.start.fetch_max(start.as_u64(), Ordering::AcqRel);
    }

    /// What nodes without a replica are told to restore. Its version must be verified: the log is kept from there on.
    pub fn set_backup(&self, backup: Option<Backup>) {
        *lock(&self.0.backup) = backup;
    }

    /// The owner's epoch was raised by the owner itself.
    pub fn raised(&self, epoch: u64) {
        self.0.epoch.fetch_max(epoch, Ordering::AcqRel);
    }

    /// Nodes that follow or restore now, with the position that the log is kept for.
    #[must_use]
    pub fn subscribers(&self) -> Vec<(String, Version)> {
        lock(&self.0.members).live.values().map(|kept| (kept.node.clone(), kept.after)).collect()
    }

    pub(crate) fn is(&self, other: &Fanout) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A node that was replaced and has not noticed yet must not serve what it holds: nothing more is published here.
    pub(crate) fn check_owner(&self, lineage: &Lineage) -> Result<(), Refusal> {
        if lineage.epoch == self.0.epoch.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Refusal::NotOwner { owner: lineage.owner.as_ref().map(|owner| owner.address.clone()).unwrap_or_default() })
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn reservation_age_max(&self) -> Duration {
        self.0.reservation_age_max
    }

    pub(crate) fn published(&self) -> watch::Receiver<u64> {
        self.0.published.subscribe()
    }

    pub(crate) fn join(&self, at: Version) -> Option<u64> {
        lock(&self.0.ring).join(at)
    }

    pub(crate) fn take(&self, next: &mut u64, bytes_max: usize) -> Taken {
        lock(&self.0.ring).take(next, bytes_max)
    }

    pub(crate) fn reader(&self) -> User {
        self.0.pool.user()
    }

    pub(crate) fn snapshots(&self) -> Option<(Arc<dyn SnapshotSource>, Arc<Semaphore>)> {
        self.0.snapshots.as_ref().map(|source| (Arc::clone(source), Arc::clone(&self.0.snapshot_permits)))
    }

    pub(crate) fn welcome(&self) -> Welcome {
        Welcome {
            epoch: self.0.epoch.load(Ordering::Acquire),
            replica: self.0.replica,
            start: Version::new(self.0.start.load(Ordering::Acquire)),
            head: self.head(),
            backup: lock(&self.0.backup).clone(),
            has_snapshot: self.0.snapshots.is_some(),
            owner_clock_us: clock_us(),
        }
    }

    fn check_app(&self, hello: &Hello) -> Result<(), Refusal> {
        if hello.app == self.0.app && hello.shard == self.0.shard {
            return Ok(());
        }
        Err(Refusal::OtherApp { app: format!("{}/{}", self.0.app, self.0.shard) })
    }

    /// Takes a subscriber in that continues from its position.
    pub(crate) async fn subscribe(&self, hello: &Hello) -> Result<Membership, Refusal> {
        self.check_app(hello)?;
        let replica = self.0.replica;
        if hello.replica != Some(replica) {
            return Err(Refusal::OtherReplica { replica });
        }
        // First the log is kept from there on, then it is seen whether it reaches there.
        let membership = self.join_as(&hello.node, hello.after, None);
        let at = hello.after;
        let is_known = at <= self.head() && at.as_u64() >= self.0.start.load(Ordering::Acquire);
        if !is_known {
            // What is remembered here may be older than the log.
            let lineage = self.reader().lineage().await.map_err(|error| unreadable(&error))?;
            let lineage = lineage.ok_or_else(gone)?;
            self.check_owner(&lineage)?;
            self.purged(lineage.start);
            if at < lineage.start {
                return Err(Refusal::TooOld { start: lineage.start });
            }
            if at > lineage.last {
                return Err(Refusal::Ahead { head: lineage.last });
            }
        }
        // Whoever restored has arrived: from now on its own position counts.
        lock(&self.0.members).live.retain(|_, kept| kept.until.is_none() || kept.node != hello.node);
        Ok(membership)
    }

    /// Keeps the log for a node that restores: all that it holds now, until it is known what is needed.
    pub(crate) fn reserve(&self, hello: &Hello) -> Result<Membership, Refusal> {
        self.check_app(hello)?;
        let start = Version::new(self.0.start.load(Ordering::Acquire));
        Ok(self.join_as(&hello.node, start, Some(Instant::now() + self.0.reservation_age_max)))
    }

    fn join_as(&self, node: &str, after: Version, until: Option<Instant>) -> Membership {
        let mut members = lock(&self.0.members);
        let id = members.next;
        members.next += 1;
        members.live.insert(id, Kept { node: node.to_owned(), after, until });
        Membership { fanout: self.clone(), id }
    }
}

impl Membership {
    /// What is at or before `version` need not be kept any more.
    pub(crate) fn advance(&self, version: Version) {
        if let Some(kept) = lock(&self.fanout.0.members).live.get_mut(&self.id) {
            kept.after = kept.after.max(version);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        lock(&self.fanout.0.members).live.remove(&self.id);
    }
}

fn gone() -> Refusal {
    Refusal::Busy { reason: "the change log is gone".to_owned() }
}

pub(crate) fn unreadable(error: &changes::Error) -> Refusal {
    tracing::warn!(%error, "cannot read the change log for a subscriber");
    Refusal::Busy { reason: "the change log cannot be read".to_owned() }
}

pub(crate) fn clock_us() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
