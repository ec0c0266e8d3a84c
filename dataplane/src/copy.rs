//! The initial copy: from upstream's blocks to a complete replica file.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use fault::{Backoff, Class, Entry, Recurrence};
use replica::{Description, Identity, Loader};
use rows::Version;
use tokio::sync::mpsc;
use tracing::{error, info, warn};
use upstream::{CopyMessage, Error};

use crate::status::{Standing, Status};

/// Blocks between the copying connections and the loader: enough to keep both busy, a few MiB at most.
const BLOCKS: usize = 8;
/// Between two looks whether another server that a person is to stop has gone: clients wait for this one then.
const OCCUPIED_PAUSE: Duration = Duration::from_secs(1);
/// Between two lines about it.
const REMINDER: Duration = Duration::from_secs(60);

/// Copies everything that is published into a new replica at `path`. Retries while upstream is only away for now, and says so in
/// `status`. `false`: before another attempt, it was said that none is needed any more.
pub async fn run(
    source: &upstream::Options,
    path: &Path,
    identity: &Identity,
    status: &Status,
    is_needless: impl AsyncFn() -> Result<bool>,
) -> Result<bool> {
    let mut retry = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    let mut recurrence = Recurrence::default();
    let mut told = None;
    loop {
        let is_occupied;
        match attempt(source, path, identity).await? {
            Ok(()) => {
                status.advances();
                return Ok(true);
            }
            Err(error @ Error::Panicked { .. }) => return Err(error).context("initial copy from ZERO_UPSTREAM_DB"),
            Err(error) => {
                let (message, Entry { remedy, .. }) = (error.to_string(), error.entry());
                // Another copy is what fails here already.
                let class = match recurrence.class(0, error.entry(), &message) {
                    Class::NewCopy => Class::Person,
                    class => class,
                };
                let attempts = recurrence.times();
                let (position, since) = (Version::default(), SystemTime::now());
                status.stands(Standing { class, position, message, remedy, attempts, since });
                is_occupied = matches!(error, Error::Occupied { .. });
                if is_occupied {
                    if told.is_none_or(|at: Instant| at.elapsed() >= REMINDER) {
                        told = Some(Instant::now());
                        error!(%error, remedy, "the initial copy waits");
                    }
                } else if class == Class::Person {
                    error!(%error, attempts, remedy, "the initial copy from ZERO_UPSTREAM_DB needs a person and starts over");
                } else {
                    warn!(%error, attempts, remedy, "the initial copy failed and starts over; if that goes on, check ZERO_UPSTREAM_DB");
                }
            }
        }
        tokio::time::sleep(if is_occupied { OCCUPIED_PAUSE } else { retry.pause() }).await;
        if is_needless().await? {
            return Ok(false);
        }
    }
}

async fn attempt(source: &upstream::Options, path: &Path, identity: &Identity) -> Result<Result<(), Error>> {
    let started = Instant::now();
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
    let Some((loader, rows)) = loaded? else { bail!("the initial copy delivered no plan") };
    let version = plan.version;
    tokio::task::spawn_blocking(move || loader.finish(version)).await.context("the loader's thread failed")??;
    let elapsed = started.elapsed();
    info!(
        tables = plan.tables.len(),
        rows,
        elapsed_ms = elapsed.as_millis() as u64,
        rows_per_second = per_second(rows, elapsed),
        version = %version,
        "initial copy complete"
    );
    Ok(Ok(()))
}

/// Over the whole time, from the first connection to the last byte of the file.
fn per_second(rows: u64, elapsed: Duration) -> u64 {
    let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    rows.saturating_mul(1000) / ms
}

/// Takes blocks until the copy ends, and counts their rows. `None` if not even the plan came.
fn load(
    path: &Path,
    identity: Identity,
    mut messages: mpsc::Receiver<CopyMessage>,
) -> Result<Option<(Loader, u64)>, replica::Error> {
    let (mut loader, mut rows) = (None, 0);
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
                    rows += block.row_count() as u64;
                }
            }
        }
    }
    Ok(loader.map(|loader| (loader, rows)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_over_the_whole_time() {
        for (rows, ms, rate) in [(5000, 2000, 2500), (5000, 0, 5_000_000), (0, 700, 0), (1, 4000, 0)] {
            assert_eq!(per_second(rows, Duration::from_millis(ms)), rate);
        }
    }
}
