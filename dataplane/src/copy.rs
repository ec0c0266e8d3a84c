//! The initial copy: from upstream's blocks to a complete replica file.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use replica::{Description, Identity, Loader};
use tokio::sync::mpsc;
use tracing::{info, warn};
use upstream::{CopyMessage, Error};

/// Blocks between the copying connections and the loader: enough to keep both busy, a few MiB at most.
const BLOCKS: usize = 8;

/// Copies everything that is published into a new replica at `path`. Retries while upstream is only away for now. `false`: before
/// another attempt, it was said that none is needed any more.
pub async fn run(
    source: &upstream::Options,
    path: &Path,
    identity: &Identity,
    is_needless: impl AsyncFn() -> Result<bool>,
) -> Result<bool> {
    let mut pause = Duration::from_millis(500);
    loop {
        match attempt(source, path, identity).await? {
            Ok(()) => return Ok(true),
            Err(error @ (Error::Transient { .. } | Error::SlotInUse { .. } | Error::ResetRequired { .. })) => {
                warn!(%error, retry_ms = pause.as_millis() as u64, "the initial copy failed and starts over; if that goes on, check ZERO_UPSTREAM_DB");
            }
            Err(error @ Error::Configuration { .. }) => {
                return Err(error).context("initial copy from ZERO_UPSTREAM_DB");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(30));
        if is_needless().await? {
            return Ok(false);
        }
    }
}

async fn attempt(source: &upstream::Options, path: &Path, identity: &Identity) -> Result<Result<(), Error>> {
    let started = std::time::Instant::now();
    let (sender, receiver) = mpsc::channel(BLOCKS);
    let loading = {
        let (path, identity) = (path.to_owned(), identity.clone());
        tokio::task::spawn_blocking(move || load(&path, identity, receiver))
    };
    let copied = upstream::initial_copy(source, sender).await;
    // The loader's own failure closes the channel, which the copy reports in its own words: the loader's come first.
    let loaded = loading.await.context("the loader's thread failed")?;
    let plan = match copied {
        Ok(plan) => plan,
        Err(error) => {
            loaded?;
            return Ok(Err(error));
        }
    };
    let Some(loader) = loaded? else { bail!("the initial copy delivered no plan") };
    let version = plan.version;
    tokio::task::spawn_blocking(move || loader.finish(version)).await.context("the loader's thread failed")??;
    info!(
        tables = plan.tables.len(),
        elapsed_ms = started.elapsed().as_millis() as u64,
        version = %version,
        "initial copy complete"
    );
    Ok(Ok(()))
}

/// Takes blocks until the copy ends. `None` if not even the plan came.
fn load(
    path: &Path,
    identity: Identity,
    mut messages: mpsc::Receiver<CopyMessage>,
) -> Result<Option<Loader>, replica::Error> {
    let mut loader = None;
    while let Some(message) = messages.blocking_recv() {
        match message {
            CopyMessage::Plan(plan) => {
                let description = Description {
                    identity: identity.clone(),
                    replica_id: plan.replica_id,
                    slot: plan.slot,
                    initial_version: plan.version,
                };
                loader = Some(Loader::create(path, description, plan.tables)?);
            }
            CopyMessage::Block { table, block } => {
                if let Some(loader) = &mut loader {
                    loader.block(table, &block)?;
                }
            }
        }
    }
    Ok(loader)
}
