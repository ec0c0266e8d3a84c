//! Where a node's replica comes from: its own file, else the backup, else another node's snapshot, else an initial copy.
//!
//! Invariant: what is handed on descends from the copy that was asked for.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use backup::{Error, Target};
use changes::{Log, Owner};
use fault::Backoff;
use replica::{Description, Identity, Opened, Replica, Writer};
use rows::Version;
use streamer::{Reservation, Welcome};
use tracing::{error, info, warn};

use crate::attempts::Attempts;
use crate::node::{Anew, Node};
use crate::restoring::{Restoring, Source};
use crate::route::Route;
use crate::{copy, options, vigil};

/// A node that has lost its replica waits for so long for a store that does not answer, before it makes a copy of its own.
const PATIENCE: Duration = Duration::from_secs(120);
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(15));
/// A replication-manager that starts together with this node is there in a moment.
const RETRY_FETCH: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

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

/// For a node that replicates. Without a change log, only a new copy will do.
///
/// A new copy costs upstream a full read, and every node and client its state. So a backup that cannot be read for the moment is
/// waited for, and one that a person must open again, by credentials say, for as long as that takes.
pub async fn for_owner(
    node: &Node<'_>,
    source: &upstream::Options,
    target: Option<&Target>,
    log: &Log,
) -> Result<Origin> {
    let path = &node.config.replica.file;
    let identity = node.identity();
    if let Some(found) = local(path, &identity)? {
        return Ok(found);
    }
    loop {
        if let Some(found) = continued(node, source, target, log).await? {
            return Ok(found);
        }
        let _copying = node.status.copying();
        if copy::run(source, path, &identity, &node.status, async || vigil::is_spare(node, source, log).await).await? {
            return made(path, &identity, None);
        }
    }
}

/// A replica that the log continues; `None` if only a new copy is left.
async fn continued(
    node: &Node<'_>,
    source: &upstream::Options,
    target: Option<&Target>,
    log: &Log,
) -> Result<Option<Origin>> {
    let (path, identity) = (&node.config.replica.file, node.identity());
    let (began, mut retry) = (Instant::now(), RETRY);
    loop {
        if node.config.change_stream.stands_by
            && let Some(found) = from_running(node, source, target, log).await?
        {
            return Ok(Some(found));
        }
        let lineage = log.lineage().await.context("change database")?;
        let Some(lineage) = lineage.filter(|_| node.anew == Anew::Any) else { return Ok(None) };
        let Some(obstacle) = restored(node, target, lineage.replica).await? else {
            return made(path, &identity, None).map(Some);
        };
        if let Some(owner) = lineage.owner.as_ref().filter(|owner| !owner.address.is_empty())
            && is_streamed(source).await
        {
            match from_owner(node, owner, lineage.replica).await {
                Ok(reservation) => return made(path, &identity, Some(reservation)).map(Some),
                Err(error) if is_local(&error) => return Err(error),
                Err(error) => {
                    info!(owner = owner.id, reason = format!("{error:#}"), "no replica from the present owner")
                }
            }
        }
        let pause = retry.pause();
        let retry_ms = pause.as_millis() as u64;
        match obstacle {
            NoBackup::Absent => return Ok(None),
            NoBackup::Unreadable(error) if error.needs_a_person() => {
                error!(%error, retry_ms, "the replica is gone and its backup cannot be opened: mend that, or unset ZERO_LITESTREAM_BACKUP_URL to copy everything from upstream anew");
            }
            NoBackup::Unreadable(error) if began.elapsed() < PATIENCE => {
                warn!(%error, retry_ms, "cannot restore the replica from the backup yet");
            }
            NoBackup::Unreadable(error) => {
                warn!(%error, "giving up on the backup; the replica is copied from upstream");
                return Ok(None);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Whether somebody replicates from this very upstream. A server whose files were copied from another one's knows that one's owner,
/// whose replica is of another history by now. Waits for upstream, without which a node that replicates cannot begin.
async fn is_streamed(source: &upstream::Options) -> bool {
    let mut retry = RETRY;
    loop {
        match upstream::is_streamed(source).await {
            Ok(is_streamed) => return is_streamed,
            Err(error) => warn!(%error, "cannot see whether another process replicates"),
        }
        tokio::time::sleep(retry.pause()).await;
    }
}

/// From the process that replicates at present, for as long as there is one: it has all that is needed, and a new copy would end
/// its log. `None` if there is none.
async fn from_running(
    node: &Node<'_>,
    source: &upstream::Options,
    target: Option<&Target>,
    log: &Log,
) -> Result<Option<Origin>> {
    let (path, identity) = (&node.config.replica.file, node.identity());
    let mut retry = RETRY;
    loop {
        let lineage = log.lineage().await.context("change database")?;
        let Some(lineage) = lineage else { return Ok(None) };
        let Some(owner) = vigil::running(node, source, Some(&lineage)).await else { return Ok(None) };
        let reason = if owner.address.is_empty() {
            match restored(node, target, lineage.replica).await? {
                None => return made(path, &identity, None).map(Some),
                Some(NoBackup::Absent) => "it has registered no address, and there is no backup".to_owned(),
                Some(NoBackup::Unreadable(error)) => error.to_string(),
            }
        } else {
            match of_owner(node, owner, lineage.replica).await {
                Ok(reservation) => return made(path, &identity, Some(reservation)).map(Some),
                Err(error) if is_local(&error) => return Err(error),
                Err(error) => format!("{error:#}"),
            }
        };
        let pause = retry.pause();
        let retry_ms = pause.as_millis() as u64;
        warn!(owner = owner.id, reason, retry_ms, "no replica from the process that replicates yet");
        tokio::time::sleep(pause).await;
    }
}

/// What an owner offers to those who follow it.
async fn of_owner(node: &Node<'_>, owner: &Owner, wanted: Version) -> Result<Reservation> {
    let (welcome, mut reservation) = reserved(node, owner, wanted).await?;
    offered(node, &welcome, &mut reservation).await?;
    Ok(reservation)
}

/// The snapshot of a node that replicates at present and is to be relieved.
async fn from_owner(node: &Node<'_>, owner: &Owner, wanted: Version) -> Result<Reservation> {
    let (_, mut reservation) = reserved(node, owner, wanted).await?;
    from_snapshot(node, &mut reservation, wanted).await?;
    Ok(reservation)
}

async fn reserved(node: &Node<'_>, owner: &Owner, wanted: Version) -> Result<(Welcome, Reservation)> {
    let options = streamer::Options { uri: owner.address.clone(), ..options::subscriber(node) };
    let mut opened = Reservation::open(&options).await;
    // The owner may be yet to learn of the present token: it is this node that was restarted first.
    for former in &node.former_tokens {
        if matches!(opened, Err(streamer::Error::Configuration { .. })) {
            let options = streamer::Options { token: Some(former.clone()), ..options.clone() };
            opened = Reservation::open(&options).await;
        }
    }
    let (welcome, reservation) = opened?;
    if welcome.replica != wanted {
        bail!("it begins anew");
    }
    Ok((welcome, reservation))
}

/// Why there is no replica from the backup.
enum NoBackup {
    /// None is kept, or none of this replica.
    Absent,
    /// It may be there and cannot be read now.
    Unreadable(Error),
}

/// `None` if the backup is restored. An error is what must not be answered by trying elsewhere.
async fn restored(node: &Node<'_>, target: Option<&Target>, wanted: Version) -> Result<Option<NoBackup>> {
    let Some(target) = target else { return Ok(Some(NoBackup::Absent)) };
    match from_target(node, target, wanted).await {
        Ok(()) => Ok(None),
        Err(error @ (Error::Nothing { .. } | Error::Foreign { .. })) => {
            info!(%error, "no backup of this replica");
            Ok(Some(NoBackup::Absent))
        }
        Err(error @ (Error::DiskFull { .. } | Error::Local { .. })) => {
            Err(error).context("restore the replica from the backup")
        }
        Err(error) => Ok(Some(NoBackup::Unreadable(error))),
    }
}

async fn from_target(node: &Node<'_>, target: &Target, wanted: Version) -> std::result::Result<(), Error> {
    let restoring = Restoring::begin(node, Source::Backup);
    let path = &node.config.replica.file;
    let restored = backup::restore(target, path, &node.identity(), Some(wanted), restoring.progress()).await;
    restoring.end(restored).map(drop)
}

/// For a node that follows another. The reservation keeps the log for this node until it streams.
pub async fn for_follower(node: &Node<'_>, route: &mut Route) -> Result<Origin> {
    let path = &node.config.replica.file;
    let identity = node.identity();
    let attempts = Attempts::new("get a replica from the replication-manager", &node.status).paced(RETRY_FETCH);
    let (welcome, reservation) = attempts.until(async || fetch(node, route).await).await?;
    let origin = made(path, &identity, Some(reservation))?;
    if origin.copy.initial_version != welcome.replica {
        bail!(
            "what was restored descends from the copy of {}, not of {}",
            origin.copy.initial_version,
            welcome.replica
        );
    }
    Ok(origin)
}

/// Whether it is the disk here that failed: what comes from elsewhere would find it no better.
fn is_local(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::DiskFull { .. } | Error::Local { .. }))
}

async fn fetch(node: &Node<'_>, route: &mut Route) -> Result<(Welcome, Reservation)> {
    let opened = Reservation::open(&route.options().await?).await;
    let opened = opened.inspect_err(|error| route.learn(error)).map_err(|error| match error {
        error @ streamer::Error::Configuration { .. } => anyhow::Error::new(error).context("ZERO_CHANGE_STREAMER_URI"),
        error => error.into(),
    });
    let (welcome, mut reservation) = opened?;
    route.reached();
    offered(node, &welcome, &mut reservation).await?;
    Ok((welcome, reservation))
}

/// Makes the file from the backup that the manager names, or else from the manager's own snapshot.
async fn offered(node: &Node<'_>, welcome: &Welcome, reservation: &mut Reservation) -> Result<()> {
    let may_restore = node.anew == Anew::Any || !welcome.has_snapshot;
    if let Some(offered) = welcome.backup.as_ref().filter(|offered| may_restore && offered.reaches(welcome.start)) {
        match from_backup(node, &offered.url, welcome.replica).await {
            Ok(()) => return Ok(()),
            Err(error) if welcome.has_snapshot && !matches!(error, Error::DiskFull { .. } | Error::Local { .. }) => {
                warn!(%error, "cannot restore the backup; asking the replication-manager for a snapshot");
            }
            Err(error) => return Err(error).context("restore the replica from the backup"),
        }
    }
    from_snapshot(node, reservation, welcome.replica).await
}

async fn from_snapshot(node: &Node<'_>, reservation: &mut Reservation, wanted: Version) -> Result<()> {
    let (info, bytes) = reservation.fetch().await?;
    let restoring = Restoring::begin(node, Source::Snapshot);
    let (told, total) = (restoring.progress(), info.bytes.unwrap_or_default());
    let received = move |done| told(done, total);
    let path = &node.config.replica.file;
    let restored = backup::restore_bytes(bytes, path, &node.identity(), Some(wanted), received).await;
    restoring.end(restored).context("receive the replica").map(drop)
}

async fn from_backup(node: &Node<'_>, url: &str, wanted: Version) -> std::result::Result<(), Error> {
    let target = Target::unasked(&options::backup(&node.config.backup, url)).await?;
    from_target(node, &target, wanted).await
}
