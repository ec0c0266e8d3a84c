//! Taking the change log over: from an owner that is gone at once; from one that still runs when traffic is routed here or, on a
//! node that stands by, when it resigns or falls silent.
//!
//! Does not know how it is seen whether an owner is at work. Invariant: a replica that is handed on holds everything that the log
//! held when this node became its owner.

use anyhow::{Context, Result, bail};
use changes::{Error, Lineage, Log, Owner};
use fault::Backoff;
use replica::{Description, Writer};
use streamer::{Gate, Role};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};
use tracing::{info, warn};

use crate::node::Node;
use crate::origin::Origin;
use crate::vigil;

/// Between two looks into the log of a running owner.
const POLL: Duration = Duration::from_millis(250);
/// Between two looks at who owns the log: what an owner that resigns keeps view-syncers waiting for. One row is read each time.
const POLL_OWNER: Duration = Duration::from_millis(100);
/// This close behind, a replica is as good as caught up: the owner goes on writing.
const NEAR: usize = 1_000;
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));

/// The log as this node has taken it over or begun it, and the replica that goes with it.
pub struct Owned {
    pub log: Log,
    pub lineage: Lineage,
    /// When the last transaction of the log was committed, if known.
    pub stored_time_us: Option<i64>,
    pub writer: Writer,
    pub copy: Description,
}

pub enum Taken {
    Owned(Box<Owned>),
    /// The replica cannot be continued with this log, for this reason.
    Reset(String),
    /// The log lacks what the replica holds already. A backup may hold it as well: only upstream can tell what is right.
    SetBack(String),
    /// The replica cannot be continued, but another process is at work and has what is missing here.
    Stale(String),
}

impl Taken {
    async fn owned(log: Log, lineage: Lineage, origin: Origin) -> Result<Taken> {
        let stored_time_us = log.reader().last_commit_time_us().await.context("change database")?;
        let Origin { writer, copy, .. } = origin;
        Ok(Taken::Owned(Box::new(Owned { log, lineage, stored_time_us, writer, copy })))
    }
}

/// Becomes the owner of the log for a replica.
pub async fn take_over(
    node: &Node<'_>,
    gate: &Gate,
    source: &upstream::Options,
    mut log: Log,
    mut origin: Origin,
) -> Result<Taken> {
    let owner = Owner { id: node.config.task_id.clone(), address: crate::address::of(node.config) };
    let (initial, stands_by) = (origin.copy.initial_version, node.config.change_stream.stands_by);
    let lineage = loop {
        let found = log.lineage().await.context("change database")?;
        let running = vigil::running(node, source, found.as_ref()).await;
        let Some(mut seen) = found.clone().filter(|lineage| lineage.replica == initial) else {
            let is_spare = stands_by && running.is_some();
            return begin(log, origin, &owner, found.as_ref(), is_spare).await;
        };
        if let Some(other) = running {
            let waited = if stands_by {
                stand_by(node, gate, source, &mut log, origin, other).await?
            } else {
                wait(node, gate, &mut log, origin, other).await?.map(|origin| (origin, seen))
            };
            (origin, seen) = match waited {
                Ok(waited) => waited,
                Err(reason) if stands_by => return Ok(Taken::Stale(reason)),
                Err(reason) => return Ok(Taken::Reset(reason)),
            };
        }
        // From here on the former owner is not the one to ask any more.
        gate.set(Role::Starting);
        if !stands_by {
            break log.take_over(&owner).await.context("change database")?;
        }
        match log.succeed(&owner, &seen).await {
            Err(Error::NotOwner) => info!("the change log has got another owner meanwhile"),
            taken => break taken.context("change database")?,
        }
    };
    if lineage.replica != initial {
        return Ok(Taken::Reset(format!("the change log was begun anew for the copy of {}", lineage.replica)));
    }
    if origin.writer.version() > lineage.last {
        return Ok(Taken::SetBack(format!(
            "the change database was set back, by a restore or a failover that lost changes: its log ends at {} and the replica is at {}",
            lineage.last,
            origin.writer.version()
        )));
    }
    while origin.writer.version() < lineage.last {
        match catch_up(&mut log, origin).await? {
            Ok((caught_up, 0)) if caught_up.writer.version() < lineage.last => {
                bail!("the change log ends before the version {} that it says it holds", lineage.last);
            }
            Ok((caught_up, _)) => origin = caught_up,
            Err(reason) => return Ok(Taken::Reset(reason)),
        }
    }
    Taken::owned(log, lineage, origin).await
}

/// Where the log is of another copy, or there is none. While another process works on with what is `found`, this node is spare: it
/// does not replace a newer copy by an older one.
async fn begin(mut log: Log, origin: Origin, owner: &Owner, found: Option<&Lineage>, is_spare: bool) -> Result<Taken> {
    let initial = origin.copy.initial_version;
    let is_newer = found.is_none_or(|lineage| lineage.replica < initial);
    let have = found.map_or_else(|| "there is none".to_owned(), |l| format!("it descends from {}", l.replica));
    if origin.writer.version() == initial && (is_newer || !is_spare) {
        info!(copy = %initial, have, "the change log begins anew");
        log.begin(initial, owner).await.context("change database")?;
        let lineage = log.lineage().await.context("change database")?.context("the change log is gone again")?;
        return Taken::owned(log, lineage, origin).await;
    }
    let reason = format!("the change log does not fit the replica of {initial}: {have}");
    Ok(if is_spare { Taken::Stale(reason) } else { Taken::Reset(reason) })
}

/// Follows the log of a running owner until this node is asked for the stream, or for as long as it is configured. Otherwise, why
/// that is not possible.
async fn wait(
    node: &Node<'_>,
    gate: &Gate,
    log: &mut Log,
    mut origin: Origin,
    owner: &Owner,
) -> Result<std::result::Result<Origin, String>> {
    let mut deadline = None;
    let wanted = gate.wanted();
    tokio::pin!(wanted);
    info!(owner = owner.id, "another process replicates; standing by");
    loop {
        let applied = match catch_up(log, origin).await? {
            Ok((caught_up, applied)) => {
                origin = caught_up;
                applied
            }
            Err(reason) => return Ok(Err(reason)),
        };
        if applied > NEAR {
            continue;
        }
        let deadline = *deadline.get_or_insert_with(|| {
            gate.set(Role::Standby { owner: owner.address.clone(), is_ready: true });
            Instant::now() + node.config.change_stream.startup_delay
        });
        tokio::select! {
            () = tokio::time::sleep_until(deadline.min(Instant::now() + POLL)) => {}
            () = &mut wanted => return Ok(Ok(origin)),
        }
        if Instant::now() >= deadline {
            return Ok(Ok(origin));
        }
    }
}

/// Follows the log for as long as another process owns it and is at work; with what the log was like when that ended. Otherwise,
/// why that is not possible.
async fn stand_by(
    node: &Node<'_>,
    gate: &Gate,
    source: &upstream::Options,
    log: &mut Log,
    mut origin: Origin,
    owner: &Owner,
) -> Result<std::result::Result<(Origin, Lineage), String>> {
    let (told, present) = watch::channel(owner.clone());
    let silence = vigil::silence(node, present, gate, source);
    tokio::pin!(silence);
    let mut shown = None;
    info!(owner = owner.id, "another process replicates; standing by for as long as it is at work");
    loop {
        let lineage = read_lineage(log).await;
        if lineage.replica != origin.copy.initial_version {
            return Ok(Err(format!("the change log was begun anew for the copy of {}", lineage.replica)));
        }
        let Some(owner) = lineage.owner.clone().filter(|owner| owner.id != node.config.task_id) else {
            info!("the owner of the change log has resigned");
            return Ok(Ok((origin, lineage)));
        };
        if lineage.last > origin.writer.version() {
            let applied = match catch_up(log, origin).await? {
                Ok((caught_up, applied)) => {
                    origin = caught_up;
                    applied
                }
                Err(reason) => return Ok(Err(reason)),
            };
            node.status.at(origin.writer.version());
            if applied > NEAR {
                continue;
            }
        }
        // The log need not be kept for this node any more.
        origin.reservation = None;
        if shown.as_ref() != Some(&owner) {
            gate.set(Role::Standby { owner: owner.address.clone(), is_ready: true });
            told.send_if_modified(|known| std::mem::replace(known, owner.clone()) != owner);
            shown = Some(owner);
        }
        tokio::select! {
            () = tokio::time::sleep(POLL_OWNER) => {}
            // Whoever comes here may know more.
            () = gate.wanted() => {}
            () = &mut silence => {
                info!("the owner of the change log is silent");
                return Ok(Ok((origin, lineage)));
            }
        }
    }
}

/// What the log holds and who owns it. Waits while the database is away.
async fn read_lineage(log: &mut Log) -> Lineage {
    let mut retry = RETRY;
    loop {
        match log.lineage().await {
            Ok(Some(lineage)) => return lineage,
            Ok(None) => warn!("the change log is gone, will look again"),
            Err(error) => warn!(%error, "cannot read who owns the change log, will retry"),
        }
        reconnect(log, &mut retry).await;
    }
}

/// Applies some of what only the log holds: the number of transactions, or why the log does not reach the replica. Waits while
/// the database is away.
async fn catch_up(log: &mut Log, mut origin: Origin) -> Result<std::result::Result<(Origin, usize), String>> {
    let mut retry = RETRY;
    let missing = loop {
        match log.read_after(origin.writer.version()).await {
            Ok(missing) => break missing,
            Err(error @ (Error::TooOld { .. } | Error::Unreadable(_))) => return Ok(Err(error.to_string())),
            Err(error) => warn!(%error, "cannot read the change log, will retry"),
        }
        reconnect(log, &mut retry).await;
    };
    let count = missing.len();
    if count > 0 {
        origin = tokio::task::spawn_blocking(move || origin.writer.apply(&missing).map(|_| origin))
            .await
            .context("the thread that applies changes failed")??;
    }
    Ok(Ok((origin, count)))
}

async fn reconnect(log: &mut Log, retry: &mut Backoff) {
    tokio::time::sleep(retry.pause()).await;
    if let Err(error) = log.reconnect().await {
        warn!(%error, "cannot reach the change database");
    }
}
