//! A node that replicates from upstream: it owns the slot and the change log, feeds its own replica, the backup and the nodes that
//! follow, and, as a single node, serves clients as well.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use backup::{Ownership, Progress, Running, Target};
use changes::Log;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use replica::Writer;
use rows::Version;
use streamer::{Backup, Fanout, FanoutOptions, Gate, Role, SnapshotBytes, SnapshotInfo, SnapshotSource};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::attempts::Attempts;
use crate::change_log::{self, Order};
use crate::feed::{self, Feed};
use crate::node::{Anew, Life, Node, await_database, is_unusable, reset, stale};
use crate::readiness::Readiness;
use crate::replicate::{Ended, Replication, Start};
use crate::standby::{self, Owned, Taken};
use crate::stop::{Share, Stop};
use crate::{opening, options, origin, serving, status, vigil};

/// What the last steps of a node that stops may take.
const RESIGNING: Share = Share { part: 10, at_most: Duration::from_secs(3) };
const LAST_BACKUP: Share = Share { part: 3, at_most: Duration::from_secs(20) };
/// To learn who has taken over.
const SUCCESSOR_MAX: Duration = Duration::from_secs(3);

/// Lives until everything is to be finished, or it cannot go on.
pub async fn live(node: &Node<'_>, serves_clients: bool) -> Result<Life> {
    let Some(gate) = &node.stream else { bail!("a node that replicates has a port for its followers") };
    let source = options::upstream(node.config)?;
    let changes = options::changes(node.config)?;
    let target = match options::own_backup(node.config) {
        Some(options) => Some(Target::unasked(&options).await.context("ZERO_LITESTREAM_BACKUP_URL")?),
        None => None,
    };

    if target.is_some() {
        node.status.backup(|_| ());
    }
    let prepared = node.unless_finishing(prepared(node, gate, &source, &changes, target.as_ref()));
    let taken = match prepared.await {
        None => return Ok(Life::Over),
        Some(Err(error)) if is_unusable(&error) => return Ok(reset(&format!("{error:#}"), Anew::Any)),
        Some(prepared) => prepared?,
    };
    let Owned { log, lineage, stored_time_us, mut writer, copy } = match taken {
        Taken::Owned(owned) => *owned,
        Taken::Reset(reason) => return Ok(reset(&reason, Anew::Any)),
        Taken::SetBack(reason) => return Ok(reset(&reason, Anew::Source)),
        Taken::Stale(reason) => return Ok(stale(&reason)),
    };
    info!(epoch = lineage.epoch, version = %writer.version(), "this node owns the change log");

    let (initial, stored) = (copy.initial_version, lineage.last);
    let snapshots: Arc<dyn SnapshotSource> = Arc::new(Snapshots { path: writer.path().to_owned(), replica: initial });
    let fanout = Fanout::new(
        FanoutOptions { snapshots: Some(snapshots), ..FanoutOptions::new(changes.clone(), lineage.clone()) },
        node.stream_metrics.clone(),
    );
    let orders = change_log::orders();
    let backing_up = match target {
        None => None,
        Some(target) => {
            let ownership = Ownership { epoch: lineage.epoch, claim: claim(&orders.0) };
            Some(BackingUp::start(node, target, &mut writer, ownership, initial, fanout.clone())?)
        }
    };
    let views = if serves_clients {
        match node.unless_finishing(serving::start(node, &writer, &copy)).await {
            None => None,
            Some(views) => Some(views?),
        }
    } else {
        None
    };
    let _watched = views.as_ref().map(|views| serving::watch(node, views));
    let readiness = Readiness {
        status: node.status.clone(),
        clients: node.gate.clone(),
        stream: Some(gate.clone()),
        unstored: views.as_ref().map(|views| views.unflushed_since.clone()),
    };
    let (batches, handle, ended) = match views {
        Some(views) => (Some(views.batches), Some(views.handle), Some(views.ended)),
        None => (None, None, None),
    };
    let (reached, goal) = watch::channel(None);
    let feed = Feed::start(node, writer, batches);
    let applied = feed.applied.clone();
    let start = Start {
        source,
        initial,
        log,
        orders,
        stored,
        stored_time_us,
        reached,
        fanout: fanout.clone(),
        gate: gate.clone(),
        metrics: node.metrics.clone(),
        status: node.status.clone(),
    };
    let mut replication = Replication::start(start, feed);
    gate.set_behind(true);
    gate.set(Role::Owner(fanout));
    let opening = async {
        opening::open(node, handle, applied, goal).await;
        std::future::pending::<Life>().await
    };

    let life = tokio::select! {
        life = opening => life,
        ended = replication.run() => match ended? {
            Ended::Reset(reason, anew) => reset(&reason, anew),
            Ended::SteppedDown => {
                info!("another process replicates now; this one steps down");
                gate.set(Role::Standby { owner: successor(&changes).await, is_ready: false });
                Life::SteppedDown
            }
        },
        // Its clients and followers stay and are served what is here.
        () = readiness.tell(|| true) => Life::Over,
        reason = views_failed(ended) => bail!("the views ended: {reason}"),
        () = node.finishing() => Life::Over,
    };
    finish(&node.stop, replication, backing_up, life).await?;
    Ok(life)
}

/// Where those who follow this node find the one that has taken over; empty if that cannot be learned.
async fn successor(changes: &changes::Options) -> String {
    match tokio::time::timeout(SUCCESSOR_MAX, changes::discover(changes)).await {
        Ok(Ok(owner)) => owner.map(|owner| owner.address).unwrap_or_default(),
        Ok(Err(error)) => {
            warn!(%error, "cannot read who owns the change log");
            String::new()
        }
        Err(_) => {
            warn!("cannot read who owns the change log: no answer");
            String::new()
        }
    }
}

/// A replica, and the change log that goes with it.
async fn prepared(
    node: &Node<'_>,
    gate: &Gate,
    source: &upstream::Options,
    changes: &changes::Options,
    target: Option<&Target>,
) -> Result<Taken> {
    let attempts = Attempts::new("begin to replicate", &node.status);
    attempts.until(async || prepare(node, gate, source, changes, target).await).await
}

async fn prepare(
    node: &Node<'_>,
    gate: &Gate,
    source: &upstream::Options,
    changes: &changes::Options,
    target: Option<&Target>,
) -> Result<Taken> {
    let is_upstream = node.config.change_db.expose() == node.config.upstream.db.expose();
    await_database(if is_upstream { "ZERO_UPSTREAM_DB" } else { "ZERO_CHANGE_DB" }, &changes.address).await?;
    let log = Log::open(changes).await.context("change database")?;
    match origin::for_owner(node, source, target, &log).await {
        Ok(origin) => standby::take_over(node, gate, source, log, origin).await,
        Err(error) if is_unusable(&error) && vigil::is_spare(node, source, &log).await? => {
            Ok(Taken::Stale(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// Why the views cannot go on; never without views.
async fn views_failed(ended: Option<tokio::sync::oneshot::Receiver<views::Ending>>) -> String {
    match ended {
        Some(ended) => serving::failed(ended).await,
        None => std::future::pending().await,
    }
}

async fn finish(stop: &Stop, replication: Replication, backing_up: Option<BackingUp>, life: Life) -> Result<()> {
    let (log, writer) = replication.finish(stop).await?;
    // Before the backup is completed: nothing more is stored, and a successor begins a backup of its own. A fault of this replica
    // alone is none of a successor's.
    if let Some(mut log) = log.filter(|_| matches!(life, Life::Over | Life::Reset(Anew::Any))) {
        // A successor that finds an owner that does not answer waits a moment longer.
        stop.within("giving up the change log", RESIGNING, resign(&mut log)).await;
    }
    if let Some(backing_up) = backing_up {
        // A successor has begun a chain of its own: nobody would read what is added to this one.
        if life == Life::Over {
            backing_up.stop(stop).await;
        } else {
            backing_up.telling.abort();
        }
    }
    if let Some(writer) = writer {
        feed::close(stop, writer).await?;
    }
    Ok(())
}

/// A successor then need not wait.
async fn resign(log: &mut Log) {
    if let Err(error) = log.resign().await {
        warn!(%error, "cannot give the change log up; a successor may have to wait");
    }
}

/// Asks the task that owns the log, for as long as it does.
fn claim(orders: &mpsc::Sender<Order>) -> backup::Claim {
    let orders = orders.downgrade();
    Arc::new(move |above| {
        let orders = orders.clone();
        Box::pin(async move {
            let (raised, answer) = oneshot::channel();
            orders.upgrade()?.send(Order::RaiseEpoch { above, raised }).await.ok()?;
            answer.await.ok()
        })
    })
}

/// The backup, and what tells the followers how far it is.
struct BackingUp {
    running: Running,
    telling: JoinHandle<()>,
}

impl BackingUp {
    fn start(
        node: &Node<'_>,
        target: Target,
        writer: &mut Writer,
        ownership: Ownership,
        initial: Version,
        fanout: Fanout,
    ) -> Result<BackingUp> {
        let url = target.location();
        let identity = node.identity();
        let lineage = backup::Lineage { app: identity.app, shard: identity.shard, initial };
        let running = backup::start(target, writer, ownership, lineage, node.backup_metrics.clone())
            .context("ZERO_LITESTREAM_BACKUP_URL")?;
        let (mut progress, status) = (running.progress.clone(), node.status.clone());
        let telling = tokio::spawn(async move {
            loop {
                let Progress { restorable_version: version, last_success, snapshot_at, failure, .. } =
                    progress.borrow_and_update().clone();
                status.backup(|backup| *backup = status::Backup { snapshot_at, last_at: last_success, fault: failure });
                fanout.set_backup(version.map(|version| Backup { url: url.clone(), version }));
                if progress.changed().await.is_err() {
                    warn!("the backup has ended; new nodes get their replica from this one");
                    fanout.set_backup(None);
                    return;
                }
            }
        });
        Ok(BackingUp { running, telling })
    }

    async fn stop(self, stop: &Stop) {
        self.telling.abort();
        match stop.within("completing the backup", LAST_BACKUP, self.running.stop()).await {
            Some(Ok(())) => info!("the backup is complete"),
            Some(Err(error)) => warn!(%error, "the backup lacks the last changes; the change log has them"),
            None => {}
        }
    }
}

/// The owner's replica for nodes that have no backup to restore from.
struct Snapshots {
    path: std::path::PathBuf,
    replica: Version,
}

impl SnapshotSource for Snapshots {
    fn open(&self) -> BoxFuture<'static, std::io::Result<(SnapshotInfo, SnapshotBytes)>> {
        let (path, replica) = (self.path.clone(), self.replica);
        Box::pin(async move {
            let stream = backup::snapshot_bytes(&path).await.map_err(std::io::Error::other)?;
            let info = SnapshotInfo { replica, version: stream.version, bytes: Some(stream.database_bytes) };
            let bytes: SnapshotBytes = stream.map(|part| part.map_err(std::io::Error::other)).boxed();
            Ok((info, bytes))
        })
    }
}
