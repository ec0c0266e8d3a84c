//! What keeps a backup short, one piece of work at a time beside the increments: snapshots, mergers, sweeps.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

use tokio::task::JoinHandle;

use crate::error::Error;
use crate::name::{Name, TOP, Txid};
use crate::plan::{self, File};
use crate::service::Chain;
use crate::store::Note;
use crate::target::Target;
use crate::upload;
use crate::view::View;

#[derive(Debug)]
pub enum Done {
    Snapshot(File),
    Merged(File),
    Swept {
        found: Vec<File>,
        deleted: Vec<Name>,
        /// Files that somebody else deleted although restoring needs them.
        lost: Vec<Name>,
    },
}

#[derive(Debug, Default)]
pub struct Maintenance {
    work: Option<JoinHandle<Result<Done, Error>>>,
    snapshot_at: Option<Instant>,
    merged_at: [Option<Instant>; TOP as usize],
    swept_at: Option<Instant>,
}

impl Maintenance {
    /// A chain began with a snapshot. What was left behind may be tidied soon.
    pub fn began(&mut self) {
        let now = Instant::now();
        self.snapshot_at = Some(now);
        self.merged_at = [Some(now); TOP as usize];
        self.swept_at = None;
    }

    pub fn is_idle(&self) -> bool {
        self.work.is_none()
    }

    pub fn is_snapshot_due(&self, interval: Duration) -> bool {
        is_due(self.snapshot_at, interval)
    }

    pub fn cancel(&mut self) {
        if let Some(work) = self.work.take() {
            work.abort();
        }
    }

    /// Waits for the work under way; for ever if there is none.
    pub async fn done(&mut self) -> Result<Done, Error> {
        let Some(work) = &mut self.work else { return std::future::pending().await };
        let done = work.await;
        self.work = None;
        done.unwrap_or(Err(Error::Cancelled))
    }

    pub fn snapshot(&mut self, target: &Target, view: View, max: Txid, note: Note) {
        self.snapshot_at = Some(Instant::now());
        let target = target.clone();
        self.work =
            Some(tokio::spawn(async move { upload::snapshot(&target, view, max, note).await.map(Done::Snapshot) }));
    }

    /// Starts what is due.
    pub fn start(&mut self, target: &Target, files: &[File], chain: Chain, note: Note) {
        if !self.is_idle() {
            return;
        }
        let now = Instant::now();
        // The longest first: what it merges are the results of the others.
        for level in (1..=TOP).rev() {
            let at = usize::from(level - 1);
            if !is_due(self.merged_at[at], target.options.pace.compaction[at]) {
                continue;
            }
            self.merged_at[at] = Some(now);
            let sources = plan::compaction(files, level, chain.from);
            if sources.is_empty() {
                continue;
            }
            let target = target.clone();
            self.work =
                Some(tokio::spawn(
                    async move { upload::merged(&target, level, &sources, note).await.map(Done::Merged) },
                ));
            return;
        }
        if is_due(self.swept_at, target.options.pace.sweep) {
            self.swept_at = Some(now);
            let known: Vec<File> = files.to_vec();
            self.work = Some(tokio::spawn(sweep(target.clone(), known, chain)));
        }
    }
}

fn is_due(last: Option<Instant>, interval: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= interval)
}

/// Compares the store with what is known to be there, and deletes what nothing needs.
async fn sweep(target: Target, known: Vec<File>, chain: Chain) -> Result<Done, Error> {
    let found = target.files().await?;
    let names: HashSet<Name> = found.iter().map(|f| f.name).collect();
    let needed = plan::restore(&known, Txid::ZERO, &HashSet::new());
    let lost: Vec<Name> = needed.iter().map(|f| f.name).filter(|name| !names.contains(name)).collect();
    let mut deleted = Vec::new();
    // With a chain that is not whole, everything else may be all there is. Later owners tidy up themselves.
    if lost.is_empty() && found.iter().all(|f| f.name.max.epoch() <= chain.from.epoch()) {
        let options = &target.options;
        for name in plan::expired(&found, chain.snapshot, SystemTime::now(), options.retention, &options.pace.covered) {
            target.store.delete(name).await?;
            deleted.push(name);
        }
    }
    Ok(Done::Swept { found, deleted, lost })
}
