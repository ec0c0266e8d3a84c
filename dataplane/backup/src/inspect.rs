//! What `backup list` and `backup verify` print.

use std::collections::HashSet;
use std::fmt;
use std::time::SystemTime;

use rows::Version;

use crate::download;
use crate::error::Error;
use crate::ltx::{Decoder, Header};
use crate::name::{Name, SNAPSHOT, Txid};
use crate::plan::{self, File};
use crate::target::Target;

/// What is in a backup.
#[derive(Clone, Debug)]
pub struct Listing {
    pub location: String,
    pub files: Vec<File>,
    /// Of the newest snapshot.
    pub lineage: Option<String>,
    /// The files that a restoration would use.
    pub plan: Vec<Name>,
    /// What the last of them states to end at.
    pub version: Option<Version>,
}

/// Lists a backup without reading its files.
pub async fn list(target: &Target) -> Result<Listing, Error> {
    let files = target.files().await?;
    let plan = plan::restore(&files, Txid::ZERO, &HashSet::new());
    let (mut lineage, mut version) = (None, None);
    if let (Some(first), Some(last)) = (plan.first(), plan.last()) {
        lineage = target.store.note(first.name).await?.and_then(|n| n.lineage);
        version = crate::restore::stated_version(target, last).await?;
    }
    let plan = plan.into_iter().map(|f| f.name).collect();
    Ok(Listing { location: target.location(), files, lineage, plan, version })
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "backup {}", self.location)?;
        if let Some(lineage) = &self.lineage {
            writeln!(f, "replica {lineage} (app/shard/version of the initial copy)")?;
        }
        writeln!(f, "{:<8} {:>16} {:>16} {:>14} {:>12}  use", "level", "first", "last", "bytes", "age")?;
        let now = SystemTime::now();
        for file in &self.files {
            let Name { level, min, max } = file.name;
            let level = if level == SNAPSHOT { "snapshot".to_owned() } else { level.to_string() };
            let age = now.duration_since(file.modified).unwrap_or_default().as_secs();
            let mark = if self.plan.contains(&file.name) { "restore" } else { "" };
            writeln!(f, "{level:<8} {min} {max} {:>14} {:>10} s  {mark}", file.size, age)?;
        }
        let bytes: u64 = self.files.iter().map(|f| f.size).sum();
        writeln!(f, "{} files, {bytes} bytes", self.files.len())?;
        match (self.plan.len(), self.version) {
            (0, _) => write!(f, "nothing can be restored: there is no snapshot"),
            (n, Some(version)) => write!(f, "restorable to version {version} from {n} files"),
            (n, None) => write!(f, "restorable from {n} files"),
        }
    }
}

/// What reading everything that a restoration would read has shown.
#[derive(Debug)]
pub struct Report {
    pub location: String,
    /// Files read, and what was wrong with them.
    pub checked: Vec<(File, Result<(), Error>)>,
    /// The newest transaction that can be restored; zero if none can.
    pub good_until: Txid,
    pub version: Option<Version>,
    /// The newest transaction that the listing promises.
    pub newest: Txid,
}

impl Report {
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.good_until > Txid::ZERO && self.good_until == self.newest
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "backup {}", self.location)?;
        for (file, result) in &self.checked {
            match result {
                Ok(()) => writeln!(f, "ok       {} {} bytes", file.name, file.size)?,
                Err(error) => writeln!(f, "BAD      {} {error}", file.name)?,
            }
        }
        let version = self.version.map_or_else(String::new, |v| format!(", version {v}"));
        if self.good_until == Txid::ZERO {
            write!(f, "nothing can be restored")
        } else if self.is_good() {
            write!(f, "good: restorable to transaction {}{version}", self.good_until)
        } else {
            write!(
                f,
                "damaged: restorable to transaction {}{version}; it should reach {}",
                self.good_until, self.newest
            )
        }
    }
}

/// Reads every file that a restoration would read, going around what is damaged as a restoration does.
pub async fn verify(target: &Target) -> Result<Report, Error> {
    let mut report = Report {
        location: target.location(),
        checked: Vec::new(),
        good_until: Txid::ZERO,
        version: None,
        newest: Txid::ZERO,
    };
    let mut bad = HashSet::new();
    'plans: loop {
        let files = target.files().await?;
        let plan = plan::restore(&files, report.good_until, &bad);
        report.newest = report.newest.max(plan.last().map_or(Txid::ZERO, |f| f.name.max));
        for file in plan {
            match check(target, &file).await {
                Ok(header) => {
                    report.good_until = file.name.max;
                    report.version = (header.version > 0).then(|| Version::new(header.version));
                    report.checked.push((file, Ok(())));
                }
                Err(error @ (Error::Damaged { .. } | Error::Missing { .. })) => {
                    bad.insert(file.name);
                    report.checked.push((file, Err(error)));
                    continue 'plans;
                }
                Err(error) => return Err(error),
            }
        }
        return Ok(report);
    }
}

async fn check(target: &Target, file: &File) -> Result<Header, Error> {
    let input = download::all(target, std::slice::from_ref(file), target.options.range_concurrency(), |_| ());
    let (location, name) = (target.store.location(Some(file.name)), file.name);
    let checked = tokio::task::spawn_blocking(move || {
        let mut decoder = Decoder::new(input, &location)?;
        let header = *decoder.header();
        if (header.min, header.max) != (name.min, name.max) {
            return Err(Error::damaged(&location, 0, "it holds other transactions than its name says"));
        }
        let mut page = vec![0; header.page_size as usize];
        while decoder.page(&mut page)?.is_some() {}
        decoder.finish()?;
        Ok(header)
    });
    checked.await.unwrap_or(Err(Error::Cancelled))
}
