//! Brings a replica file back from a backup.
//!
//! Everything is written to a temporary file beside the target and verified there; only what is whole, ours and readable takes the
//! target's name. A damaged or missing file is gone around: by another file that holds the same, else by ending earlier.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use replica::{Identity, Opened, Replica};
use rows::Version;
use tracing::{info, warn};

use crate::apply::Applier;
use crate::download;
use crate::error::Error;
use crate::ltx::{self, Decoder};
use crate::name::{Name, Txid};
use crate::plan::{self, File};
use crate::target::Target;

/// Between two lines in the log.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// What was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Where the stream goes on.
    pub version: Version,
    pub txid: Txid,
    /// Downloaded.
    pub bytes: u64,
    /// Whether the backup has, or had, more than could be restored.
    pub is_previous_point: bool,
}

/// Restores the newest usable point of the backup to `path`, which must be free or hold a replica of `identity`. With `lineage`
/// only a backup of the copy that began at that version will do. `progress` is told bytes downloaded and bytes in all.
pub async fn restore(
    target: &Target,
    path: &Path,
    identity: &Identity,
    lineage: Option<Version>,
    progress: impl Fn(u64, u64) + Send + Sync + 'static,
) -> Result<Restored, Error> {
    check_place(path, identity)?;
    let temporary = Temporary::create(path)?;
    let mut run = Run {
        target,
        identity,
        lineage,
        progress: Arc::new(Meter::new(progress)),
        bad: HashSet::new(),
        at: Txid::ZERO,
        reaches: Txid::ZERO,
        newest: Txid::ZERO,
    };
    let applier = run.apply_all(&temporary).await?;
    let (txid, is_previous_point) = (run.at, run.at < run.newest);
    if is_previous_point {
        warn!(%txid, newest = %run.newest, "the end of the backup is damaged; the point before it is used");
    }
    let bytes = run.progress.done.load(Ordering::Relaxed);
    let (identity, location) = (identity.clone(), target.location());
    let placed = tokio::task::spawn_blocking(move || {
        applier.finish()?;
        temporary.place(&identity, lineage, &location)
    });
    let version = placed.await.unwrap_or(Err(Error::Cancelled))?;
    info!(%version, %txid, bytes, "restored the replica from the backup");
    Ok(Restored { version, txid, bytes, is_previous_point })
}

/// The version that a file states to end at; `None` if it states none, or is damaged.
pub(crate) async fn stated_version(target: &Target, file: &File) -> Result<Option<Version>, Error> {
    if file.size < ltx::HEADER_SIZE as u64 {
        return Ok(None);
    }
    let bytes = target.store.get(file.name, 0..ltx::HEADER_SIZE as u64).await?;
    match Decoder::new(&bytes[..], &target.store.location(Some(file.name))) {
        Ok(decoder) => Ok(Some(decoder.header().version).filter(|&v| v > 0).map(Version::new)),
        Err(error) => {
            warn!(%error, "a file of the backup cannot be used");
            Ok(None)
        }
    }
}

struct Run<'a> {
    target: &'a Target,
    identity: &'a Identity,
    lineage: Option<Version>,
    progress: Arc<Meter>,
    /// Files not to try again.
    bad: HashSet<Name>,
    /// The transaction that the temporary file is at.
    at: Txid,
    /// What a file that was applied in part would have reached: the temporary file is only sound from there on.
    reaches: Txid,
    /// The newest transaction seen in any plan.
    newest: Txid,
}

impl Run<'_> {
    async fn apply_all(&mut self, temporary: &Temporary) -> Result<Applier, Error> {
        let mut applier = Applier::new(&temporary.path)?;
        loop {
            let files = self.target.files().await?;
            let plan = plan::restore(&files, self.at, &self.bad);
            let Some(first) = plan.first() else {
                if self.at == Txid::ZERO {
                    return Err(self.nothing(&files));
                }
                if self.at >= self.reaches {
                    return Ok(applier);
                }
                // What was applied in part cannot be completed: start over without it.
                (self.at, self.reaches) = (Txid::ZERO, Txid::ZERO);
                applier = Applier::new(&temporary.path)?;
                continue;
            };
            if self.at == Txid::ZERO {
                self.check_lineage(first.name).await?;
            }
            self.newest = self.newest.max(plan.last().map_or(Txid::ZERO, |f| f.name.max));
            let (back, applied, result) = self.apply(applier, plan.clone()).await?;
            applier = back;
            if let Some(last) = applied.checked_sub(1).and_then(|i| plan.get(i)) {
                self.at = last.name.max;
            }
            if let Err(error) = result {
                let Some(file) = plan.get(applied) else { return Err(error) };
                match error {
                    Error::Damaged { .. } | Error::Missing { .. } => {
                        warn!(%error, "a file of the backup cannot be used");
                        self.bad.insert(file.name);
                        self.reaches = self.reaches.max(file.name.max);
                    }
                    error => return Err(error),
                }
            }
        }
    }

    /// Applies a plan as far as it goes: the number of files applied, and why it ended there.
    async fn apply(&self, mut applier: Applier, plan: Vec<File>) -> Result<(Applier, usize, Result<(), Error>), Error> {
        let meter = Arc::clone(&self.progress);
        meter.expect(plan.iter().map(|f| f.size).sum());
        let concurrency = self.target.options.range_concurrency();
        let mut input = download::all(self.target, &plan, concurrency, move |n| meter.add(n));
        let locations: Vec<String> = plan.iter().map(|f| self.target.store.location(Some(f.name))).collect();
        let applying = tokio::task::spawn_blocking(move || {
            use std::io::Read as _;
            for (i, file) in plan.iter().enumerate() {
                let decoder = Decoder::new(input.by_ref().take(file.size), &locations[i]);
                let result = decoder.and_then(|decoder| applier.apply(decoder, Some((file.name.min, file.name.max))));
                if result.is_err() {
                    return (applier, i, result);
                }
            }
            let count = plan.len();
            (applier, count, Ok(()))
        });
        applying.await.map_err(|_| Error::Cancelled)
    }

    async fn check_lineage(&self, snapshot: Name) -> Result<(), Error> {
        let (Some(wanted), Some(note)) = (self.lineage, self.target.store.note(snapshot).await?) else { return Ok(()) };
        let Some(found) = note.lineage else { return Ok(()) };
        let wanted = format!("{}/{}/{wanted}", self.identity.app, self.identity.shard);
        if found == wanted {
            return Ok(());
        }
        let reason = format!("it is of replica {found}, not of {wanted}");
        Err(Error::Foreign { at: self.target.location(), reason })
    }

    fn nothing(&self, files: &[File]) -> Error {
        let reason = if files.is_empty() {
            "it is empty".to_owned()
        } else if self.bad.is_empty() {
            "it has no complete snapshot".to_owned()
        } else {
            format!("none of its snapshots is usable ({} files are damaged or missing)", self.bad.len())
        };
        Error::Nothing { at: self.target.location(), reason }
    }
}

/// Counts bytes, tells the caller, and now and then the log.
struct Meter {
    done: AtomicU64,
    total: AtomicU64,
    began: Instant,
    reported: std::sync::Mutex<Instant>,
    progress: Box<dyn Fn(u64, u64) + Send + Sync>,
}

impl Meter {
    fn new(progress: impl Fn(u64, u64) + Send + Sync + 'static) -> Meter {
        let now = Instant::now();
        Meter {
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            began: now,
            reported: std::sync::Mutex::new(now),
            progress: Box::new(progress),
        }
    }

    /// `bytes` more than are done will come.
    fn expect(&self, bytes: u64) {
        self.total.store(self.done.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
    }

    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let total = self.total.load(Ordering::Relaxed).max(done);
        (self.progress)(done, total);
        let mut reported = self.reported.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if reported.elapsed() >= REPORT_INTERVAL {
            *reported = Instant::now();
            let elapsed = self.began.elapsed().as_secs_f64();
            let eta_s = (elapsed / done as f64 * (total - done) as f64) as u64;
            let percent = done * 100 / total.max(1);
            info!(percent, eta_s, bytes = done, total, "restoring the replica from the backup");
        }
    }
}

/// Fails if something at `path` must not be replaced.
pub(crate) fn check_place(path: &Path, identity: &Identity) -> Result<(), Error> {
    match Replica::open(path, identity) {
        // An unusable replica of ours is what a restoration replaces.
        Ok(_) | Err(replica::Error::Resync { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The file that is written, and removed again unless it is placed.
#[derive(Debug)]
pub(crate) struct Temporary {
    pub path: PathBuf,
    target: PathBuf,
}

impl Temporary {
    pub fn create(target: &Path) -> Result<Temporary, Error> {
        let temporary = Temporary { path: with_suffix(target, ".restoring"), target: target.to_path_buf() };
        remove_database(&temporary.path).map_err(|e| Error::local(&temporary.path, "remove the former", e))?;
        Ok(temporary)
    }

    /// Checks whose replica it is and puts it in the target's place. Returns its version.
    pub fn place(self, identity: &Identity, lineage: Option<Version>, location: &str) -> Result<Version, Error> {
        let version = {
            let replica = match Replica::open(&self.path, identity) {
                Ok(Opened::Usable(replica)) => replica,
                Ok(Opened::Missing) => {
                    let reason = "it holds an empty file".to_owned();
                    return Err(Error::Foreign { at: location.to_owned(), reason });
                }
                Err(replica::Error::Refused { reason, .. } | replica::Error::Resync { reason, .. }) => {
                    return Err(Error::Foreign { at: location.to_owned(), reason });
                }
                Err(error) => return Err(error.into()),
            };
            let initial = replica.description().initial_version;
            if lineage.is_some_and(|wanted| wanted != initial) {
                let wanted = lineage.unwrap_or_default();
                let reason = format!("it is of the copy that began at version {initial}, not of the one of {wanted}");
                return Err(Error::Foreign { at: location.to_owned(), reason });
            }
            replica.version()
        };
        // A WAL of the file that is replaced must never be read together with the new one.
        remove_database(&self.target).map_err(|e| Error::local(&self.target, "remove the former", e))?;
        fs::rename(&self.path, &self.target).map_err(|e| Error::local(&self.target, "put in place", e))?;
        let directory = self.target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let synced = fs::File::open(directory).and_then(|d| d.sync_all());
        synced.map_err(|e| Error::local(&self.target, "make durable", e))?;
        Ok(version)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = remove_database(&self.path) {
            warn!(path = %self.path.display(), %error, "the rest of a restoration could not be removed");
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn remove_database(path: &Path) -> std::io::Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        match fs::remove_file(with_suffix(path, suffix)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}
