//! Taking the change log over: from an owner that is gone at once, from one that still runs when traffic is routed here.
//!
//! Invariant: a replica that is handed on holds everything that the log held when this node became its owner.

use anyhow::{Context, Result, bail};
use changes::{Error, Lineage, Log, Owner};
use replica::Writer;
use rows::Version;
use streamer::{Gate, Role};
use tokio::time::{Duration, Instant};
use tracing::{info, warn};

use crate::node::Node;

/// Between two looks into the log of a running owner.
const POLL: Duration = Duration::from_millis(250);
/// This close behind, a replica is as good as caught up: the owner goes on writing.
const NEAR: usize = 1_000;
const RETRY: Duration = Duration::from_millis(500);

/// The log as this node has taken it over or begun it, and the replica that goes with it.
pub struct Owned {
    pub log: Log,
    pub lineage: Lineage,
    pub writer: Writer,
}

pub enum Taken {
    Owned(Box<Owned>),
    /// The replica cannot be continued with this log, for this reason.
    Reset(String),
}

impl Taken {
    fn owned(log: Log, lineage: Lineage, writer: Writer) -> Taken {
        Taken::Owned(Box::new(Owned { log, lineage, writer }))
    }
}

/// Becomes the owner of the log for a replica that descends from the copy at `initial`.
pub async fn take_over(
    node: &Node<'_>,
    gate: &Gate,
    source: &upstream::Options,
    mut log: Log,
    mut writer: Writer,
    initial: Version,
) -> Result<Taken> {
    let owner = Owner { id: node.config.task_id.clone(), address: crate::address::of(node.config) };
    match log.lineage().await.context("change database")? {
        Some(lineage) if lineage.replica == initial => {
            let running = lineage.owner.filter(|other| other.id != owner.id);
            if let Some(other) = running
                && is_streamed(source).await
            {
                match wait(node, gate, &mut log, writer, &other).await? {
                    Ok(caught_up) => writer = caught_up,
                    Err(reason) => return Ok(Taken::Reset(reason)),
                }
            }
        }
        other if writer.version() == initial => {
            if let Some(other) = other {
                info!(copy = %other.replica, "the change log belongs to an older copy and begins anew");
            }
            log.begin(initial, &owner).await.context("change database")?;
            let lineage = log.lineage().await.context("change database")?.context("the change log is gone again")?;
            return Ok(Taken::owned(log, lineage, writer));
        }
        other => {
            let have = other.map_or_else(|| "there is none".to_owned(), |l| format!("it descends from {}", l.replica));
            return Ok(Taken::Reset(format!("the change log does not fit the replica of {initial}: {have}")));
        }
    }
    // From here on the former owner is not the one to ask any more.
    gate.set(Role::Starting);
    let lineage = log.take_over(&owner).await.context("change database")?;
    if lineage.replica != initial {
        return Ok(Taken::Reset(format!("the change log was begun anew for the copy of {}", lineage.replica)));
    }
    while writer.version() < lineage.last {
        match catch_up(&mut log, writer).await? {
            Ok((caught_up, 0)) if caught_up.version() < lineage.last => {
                bail!("the change log ends before the version {} that it says it holds", lineage.last);
            }
            Ok((caught_up, _)) => writer = caught_up,
            Err(reason) => return Ok(Taken::Reset(reason)),
        }
    }
    Ok(Taken::owned(log, lineage, writer))
}

/// Whether the owner is at work. One that does not reach upstream is not.
async fn is_streamed(source: &upstream::Options) -> bool {
    upstream::is_streamed(source).await.unwrap_or_else(|error| {
        warn!(%error, "cannot see whether another process replicates");
        false
    })
}

/// Follows the log of a running owner until this node is asked for the stream, or for as long as it is configured.
async fn wait(
    node: &Node<'_>,
    gate: &Gate,
    log: &mut Log,
    mut writer: Writer,
    owner: &Owner,
) -> Result<std::result::Result<Writer, String>> {
    let mut deadline = None;
    let wanted = gate.wanted();
    tokio::pin!(wanted);
    info!(owner = owner.id, "another process replicates; standing by");
    loop {
        let applied = match catch_up(log, writer).await? {
            Ok((caught_up, applied)) => {
                writer = caught_up;
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
            () = &mut wanted => return Ok(Ok(writer)),
        }
        if Instant::now() >= deadline {
            return Ok(Ok(writer));
        }
    }
}

/// Applies some of what only the log holds: the number of transactions, or why the log does not reach the replica. Waits while
/// the database is away.
async fn catch_up(log: &mut Log, mut writer: Writer) -> Result<std::result::Result<(Writer, usize), String>> {
    let missing = loop {
        match log.read_after(writer.version()).await {
            Ok(missing) => break missing,
            Err(error @ (Error::TooOld { .. } | Error::Unreadable(_))) => return Ok(Err(error.to_string())),
            Err(error) => warn!(%error, "cannot read the change log, will retry"),
        }
        tokio::time::sleep(RETRY).await;
        if let Err(error) = log.reconnect().await {
            warn!(%error, "cannot reach the change database");
        }
    };
    let count = missing.len();
    if count > 0 {
        writer = tokio::task::spawn_blocking(move || writer.apply(&missing).map(|_| writer))
            .await
            .context("the thread that applies changes failed")??;
    }
    Ok(Ok((writer, count)))
}
