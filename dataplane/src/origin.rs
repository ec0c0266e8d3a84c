//! Where a node's replica comes from: its own file, else the backup, else another node's snapshot, else an initial copy.
//!
//! Invariant: what is handed on descends from the copy that was asked for.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use backup::{Error, Target};
use changes::{Lineage, Owner};
use replica::{Description, Identity, Opened, Replica, Writer};
use rows::Version;
use streamer::{Reservation, Welcome};
use tracing::{info, warn};

use crate::follower::Manager;
use crate::node::Node;
use crate::{copy, follower, options};

/// Attempts to restore the backup before a node makes a copy of its own.
const RESTORE_ATTEMPTS: u32 = 3;
const RETRY: Duration = Duration::from_secs(2);
/// Between two lines about progress.
const TELL_SECONDS: u64 = 2;

/// A replica that is ready to be written, and the copy that it descends from.
pub struct Origin {
    pub writer: Writer,
    pub copy: Description,
    /// Keeps another node's log for this one while it lives.
    pub reservation: Option<Reservation>,
}

/// The node's own file, if there is one.
pub fn local(path: &Path, identity: &Identity) -> Result<Option<Origin>> {
    match Replica::open(path, identity)? {
        Opened::Missing => Ok(None),
        Opened::Usable(replica) => {
            let copy = replica.description().clone();
            Ok(Some(Origin { writer: replica.writer()?, copy, reservation: None }))
        }
    }
}

fn made(path: &Path, identity: &Identity, reservation: Option<Reservation>) -> Result<Origin> {
    let found = local(path, identity)?.with_context(|| format!("no replica was left at {}", path.display()))?;
    Ok(Origin { reservation, ..found })
}

/// For a node that replicates. `log` is the change log as it stands; without one, only a new copy will do.
pub async fn for_owner(
    node: &Node<'_>,
    source: &upstream::Options,
    target: Option<&Target>,
    log: Option<&Lineage>,
) -> Result<Origin> {
    let path = &node.config.replica.file;
    let identity = node.identity();
    if let Some(found) = local(path, &identity)? {
        return Ok(found);
    }
    if let Some(log) = log {
        if let Some(target) = target
            && restored(target, path, &identity, log.replica).await?
        {
            return made(path, &identity, None);
        }
        if let Some(owner) = log.owner.as_ref().filter(|owner| !owner.address.is_empty()) {
            match from_owner(node, owner, path, &identity, log.replica).await {
                Ok(reservation) => return made(path, &identity, Some(reservation)),
                Err(Fault::Fatal(error)) => return Err(error),
                Err(Fault::Retry(reason)) => info!(owner = owner.id, reason, "no replica from the present owner"),
            }
        }
    }
    copy::run(source, path, &identity).await?;
    made(path, &identity, None)
}

/// The snapshot of a node that replicates at present and is to be relieved.
async fn from_owner(
    node: &Node<'_>,
    owner: &Owner,
    path: &Path,
    identity: &Identity,
    wanted: Version,
) -> std::result::Result<Reservation, Fault> {
    let options = streamer::Options { uri: owner.address.clone(), ..follower::options(node) };
    let (welcome, mut reservation) =
        Reservation::open(&options).await.map_err(|error| Fault::Retry(error.to_string()))?;
    if welcome.replica != wanted {
        return Err(Fault::Retry("it begins anew".to_owned()));
    }
    from_snapshot(&mut reservation, path, identity, wanted).await?;
    Ok(reservation)
}

/// Whether the backup could be restored. An error is what must not be answered by an initial copy.
async fn restored(target: &Target, path: &Path, identity: &Identity, wanted: Version) -> Result<bool> {
    for attempt in 1..=RESTORE_ATTEMPTS {
        match backup::restore(target, path, identity, Some(wanted), told("restoring the backup")).await {
            Ok(restored) => {
                info!(version = %restored.version, "restored the replica from the backup");
                return Ok(true);
            }
            Err(error @ (Error::Nothing { .. } | Error::Foreign { .. })) => {
                info!(%error, "no backup of this replica");
                return Ok(false);
            }
            Err(error @ (Error::DiskFull { .. } | Error::Local { .. })) => {
                return Err(error).context("restore the replica from the backup");
            }
            Err(error) => warn!(%error, attempt, "cannot restore the replica from the backup"),
        }
        tokio::time::sleep(RETRY).await;
    }
    warn!("giving up on the backup; the replica is copied from upstream");
    Ok(false)
}

/// For a node that follows another. The reservation keeps the log for this node until it streams.
pub async fn for_follower(node: &Node<'_>, manager: &mut Manager) -> Result<Origin> {
    let path = &node.config.replica.file;
    let identity = node.identity();
    let mut pause = Duration::from_millis(200);
    loop {
        match fetch(node, manager, path, &identity).await {
            Ok((welcome, reservation)) => {
                let origin = made(path, &identity, Some(reservation))?;
                if origin.copy.initial_version == welcome.replica {
                    return Ok(origin);
                }
                bail!(
                    "what was restored descends from the copy of {}, not of {}",
                    origin.copy.initial_version,
                    welcome.replica
                );
            }
            Err(Fault::Fatal(error)) => return Err(error),
            Err(Fault::Retry(reason)) => {
                warn!(
                    reason,
                    retry_ms = pause.as_millis() as u64,
                    "cannot get a replica from the replication-manager yet"
                );
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

enum Fault {
    Retry(String),
    Fatal(anyhow::Error),
}

impl From<streamer::Error> for Fault {
    fn from(error: streamer::Error) -> Fault {
        match error {
            streamer::Error::Configuration { .. } => {
                Fault::Fatal(anyhow::Error::new(error).context("ZERO_CHANGE_STREAMER_URI"))
            }
            other => Fault::Retry(other.to_string()),
        }
    }
}

/// Makes the file from the backup that the manager names, or else from the manager's own snapshot.
async fn fetch(
    node: &Node<'_>,
    manager: &mut Manager,
    path: &Path,
    identity: &Identity,
) -> std::result::Result<(Welcome, Reservation), Fault> {
    let opened = Reservation::open(&manager.options().await?).await;
    let (welcome, mut reservation) = opened.inspect_err(|error| manager.learn(error))?;
    if let Some(offered) = welcome.backup.as_ref().filter(|offered| offered.reaches(welcome.start)) {
        match from_backup(node, &offered.url, path, identity, welcome.replica).await {
            Ok(()) => return Ok((welcome, reservation)),
            Err(error @ (Error::DiskFull { .. } | Error::Local { .. })) => {
                return Err(Fault::Fatal(anyhow::Error::new(error).context("restore the replica from the backup")));
            }
            Err(error) if welcome.has_snapshot => {
                warn!(%error, "cannot restore the backup; asking the replication-manager for a snapshot");
            }
            Err(error) => return Err(Fault::Retry(error.to_string())),
        }
    }
    from_snapshot(&mut reservation, path, identity, welcome.replica).await?;
    Ok((welcome, reservation))
}

async fn from_snapshot(
    reservation: &mut Reservation,
    path: &Path,
    identity: &Identity,
    wanted: Version,
) -> std::result::Result<(), Fault> {
    let (info, bytes) = reservation.fetch().await?;
    let told = told("receiving the replica");
    let total = info.bytes.unwrap_or_default();
    let received = move |done| told(done, total);
    match backup::restore_bytes(bytes, path, identity, Some(wanted), received).await {
        Ok(restored) => {
            info!(version = %restored.version, "received the replica from the replication-manager");
            Ok(())
        }
        Err(error @ (Error::DiskFull { .. } | Error::Local { .. })) => {
            Err(Fault::Fatal(anyhow::Error::new(error).context("receive the replica")))
        }
        Err(error) => Err(Fault::Retry(error.to_string())),
    }
}

async fn from_backup(
    node: &Node<'_>,
    url: &str,
    path: &Path,
    identity: &Identity,
    wanted: Version,
) -> std::result::Result<(), Error> {
    let target = Target::open(&options::backup(&node.config.backup, url)).await?;
    let restored = backup::restore(&target, path, identity, Some(wanted), told("restoring the backup")).await?;
    info!(version = %restored.version, "restored the replica from the backup");
    Ok(())
}

/// Logs how far it is from time to time: bytes done, bytes in all (0 if that is unknown).
fn told(doing: &'static str) -> impl Fn(u64, u64) + Send + Sync + 'static {
    let started = Instant::now();
    let told = AtomicU64::new(0);
    move |done, total| {
        let seconds = started.elapsed().as_secs();
        if seconds < told.load(Ordering::Relaxed) + TELL_SECONDS {
            return;
        }
        told.store(seconds, Ordering::Relaxed);
        let percent = (done * 100).checked_div(total).map(|percent| percent.min(100));
        let left = total.saturating_sub(done) * seconds / done.max(1);
        info!(bytes = done, percent, seconds_left = (total > 0).then_some(left), "{doing}");
    }
}
