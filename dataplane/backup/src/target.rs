//! Where a backup is, how it is written, and whose it is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use replica::Description;
use rows::Version;

use crate::error::Error;
use crate::name::{Name, SNAPSHOT, TOP};
use crate::plan::File;
use crate::store::{self, Store};

/// Parts in memory at the same time take no more bytes than this, whatever the concurrency.
const IN_FLIGHT_BYTES_MAX: usize = 128 << 20;
/// S3 takes no smaller parts, but for the last.
const PART_SIZE_MIN: usize = 5 << 20;
/// Downloads are cut into ranges of this size.
pub(crate) const RANGE_SIZE: usize = 4 << 20;

#[derive(Clone, Debug)]
pub struct Options {
    /// `s3://bucket/path`, or `file:///path`.
    pub url: String,
    /// Of a store other than Amazon's; its buckets are then addressed by path.
    pub endpoint: Option<String>,
    /// Otherwise from the environment.
    pub region: Option<String>,
    /// Otherwise what the SDK finds: environment, files, role of the node.
    pub credentials: Option<Credentials>,
    /// Time between two increments, and so what the loss of the node can cost.
    pub interval: Duration,
    pub snapshot_interval: Duration,
    /// Age at which snapshots, and the increments that only they need, are deleted. The newest chain always stays.
    pub retention: Duration,
    /// Ranges downloaded at the same time.
    pub restore_parallelism: usize,
    /// Bytes of one part of an upload; at least 5 MiB.
    pub multipart_size: usize,
    /// Parts uploaded at the same time, as far as memory allows.
    pub multipart_concurrency: usize,
    pub pace: Pace,
}

/// A static key.
#[derive(Clone)]
pub struct Credentials {
    pub access_key_id: String,
    pub secret_access_key: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

/// The rhythm of what keeps a backup short.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Time between two mergers into level 1, 2 and 3.
    pub compaction: [Duration; TOP as usize],
    /// How long files of levels 0, 1 and 2 stay after a file of the next level holds the same: whoever reads them may finish, and
    /// a damaged file can be gone around.
    pub covered: [Duration; TOP as usize],
    /// Time between two looks at everything in the store, for what is gone and what can go.
    pub sweep: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        Pace {
            compaction: [Duration::from_secs(30), minutes(5), minutes(60)],
            covered: [minutes(15), minutes(60), minutes(24 * 60)],
            sweep: minutes(5),
        }
    }
}

impl Options {
    #[must_use]
    pub fn new(url: &str) -> Options {
        let hours = |n: u64| Duration::from_secs(3600 * n);
        Options {
            url: url.to_owned(),
            endpoint: None,
            region: None,
            credentials: None,
            interval: Duration::from_secs(5),
            snapshot_interval: hours(12),
            retention: hours(18),
            restore_parallelism: 48,
            multipart_size: 16 << 20,
            multipart_concurrency: 48,
            pace: Pace::default(),
        }
    }

    pub(crate) fn part_concurrency(&self) -> usize {
        self.multipart_concurrency.min(IN_FLIGHT_BYTES_MAX / self.multipart_size.max(1)).max(1)
    }

    pub(crate) fn range_concurrency(&self) -> usize {
        self.restore_parallelism.clamp(1, IN_FLIGHT_BYTES_MAX / RANGE_SIZE)
    }
}

/// A store that answered.
#[derive(Clone, Debug)]
pub struct Target {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) options: Arc<Options>,
}

impl Target {
    /// Fails at once if the bucket is not there, denies access or cannot be reached.
    pub async fn open(options: &Options) -> Result<Target, Error> {
        let target = Target::unasked(options).await?;
        target.store.list(SNAPSHOT, None).await?;
        Ok(target)
    }

    /// A store that may not be there at the moment: whoever works with it retries. Fails only on what cannot be a store.
    pub async fn unasked(options: &Options) -> Result<Target, Error> {
        let mut options = options.clone();
        options.multipart_size = options.multipart_size.max(PART_SIZE_MIN);
        Ok(Target { store: store::find(&options).await?, options: Arc::new(options) })
    }

    /// For messages.
    #[must_use]
    pub fn location(&self) -> String {
        self.store.location(None)
    }

    /// Every file, by name.
    pub(crate) async fn files(&self) -> Result<Vec<File>, Error> {
        let levels = (0..=TOP).chain([SNAPSHOT]).map(|level| self.store.list(level, None));
        Ok(futures_util::future::try_join_all(levels).await?.concat())
    }

    /// Whether a file is there as it was written. Uploads are believed only after this.
    pub(crate) async fn confirm(&self, name: Name, size: u64) -> Result<File, Error> {
        let found = self.store.list(name.level, Some(name)).await?;
        let location = || self.store.location(Some(name));
        match found.into_iter().find(|f| f.name == name) {
            Some(file) if file.size == size => Ok(file),
            Some(file) => Err(Error::damaged(
                &location(),
                file.size.min(size),
                format!("{size} bytes were uploaded, {} are there", file.size),
            )),
            None => Err(Error::Missing { name: location() }),
        }
    }
}

/// Which copy of which database a backup is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    pub app: String,
    pub shard: u32,
    /// Version of the initial copy.
    pub initial: Version,
}

impl Lineage {
    #[must_use]
    pub fn of(description: &Description) -> Lineage {
        Lineage {
            app: description.identity.app.clone(),
            shard: description.identity.shard,
            initial: description.initial_version,
        }
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.app, self.shard, self.initial)
    }
}
