//! Opening a replica file: is it there, is it ours, can it be used?

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rows::{Schema, TableSpec, Version};

use crate::connection;
use crate::error::{At, Error};
use crate::former::former;
use crate::layout::Catalog;
use crate::load::temporary_path;
use crate::meta::{self, APPLICATION_ID, Description, FORMAT, Identity, State};
use crate::reader::Reader;
use crate::writer::Writer;

/// A usable replica file.
#[derive(Debug)]
pub struct Replica {
    path: PathBuf,
    description: Description,
    state: State,
    catalog: Catalog,
}

#[derive(Debug)]
pub enum Opened {
    /// Nothing there, or only the rest of an unfinished copy.
    Missing,
    Usable(Replica),
}

/// What the first bytes of a path say.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Missing,
    Empty,
    Ours,
}

impl Replica {
    /// Looks at `path`. `expect` says whose replica it must be; a file of anyone else is an error and stays untouched.
    pub fn open(path: &Path, expect: &Identity) -> Result<Opened, Error> {
        let found = inspect(path)?;
        if found != Found::Ours {
            if found == Found::Empty {
                tracing::info!(path = %path.display(), "the replica file is empty and will be replaced");
            } else if temporary_path(path).exists() {
                tracing::info!(path = %path.display(), "an unfinished copy was found and will be replaced");
            }
            return Ok(Opened::Missing);
        }
        let conn = connection::open(path, false, 1024, 16).at(path, "open")?;
        let description = meta::read_description(&conn).at(path, "read whose replica it is")?;
        check(path, &description.identity, expect)?;
        let state = meta::read_state(&conn).at(path, "read the version")?;
        let catalog = meta::read_catalog(&conn).at(path, "read the table descriptions")?;
        Ok(Opened::Usable(Replica { path: path.to_path_buf(), description, state, catalog }))
    }

    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The version at the time of opening.
    #[must_use]
    pub fn version(&self) -> Version {
        self.state.version
    }

    /// The schema at the time of opening.
    #[must_use]
    pub fn schema(&self) -> Arc<Schema> {
        Arc::clone(&self.catalog.schema)
    }

    /// Upstream descriptions of all replicated tables, at the time of opening.
    #[must_use]
    pub fn specs(&self) -> Vec<Arc<TableSpec>> {
        self.catalog.layouts.values().map(|l| Arc::clone(&l.spec)).collect()
    }

    /// The writer; there must be only one in all processes.
    pub fn writer(&self) -> Result<Writer, Error> {
        Writer::open(&self.path)
    }

    pub fn reader(&self) -> Result<Reader, Error> {
        Reader::open(&self.path)
    }
}

/// Reads the header without SQLite, which might change a file that is not ours.
pub(crate) fn inspect(path: &Path) -> Result<Found, Error> {
    let refused = |reason: String| Error::Refused { path: path.to_path_buf(), reason };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Found::Missing),
        Err(e) => return Err(refused(format!("it cannot be read: {e}"))),
    };
    let metadata = file.metadata().at(path, "look at the file")?;
    if !metadata.is_file() {
        let kind = if metadata.is_dir() { "a directory" } else { "not a regular file" };
        return Err(refused(format!("it is {kind}; ZERO_REPLICA_FILE must name a file")));
    }
    if metadata.len() == 0 {
        return Ok(Found::Empty);
    }
    let mut header = [0_u8; 100];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
            return Err(refused("it is not an SQLite database; move it away or choose another path".to_owned()));
        }
        Err(e) => return Err(refused(format!("it cannot be read: {e}"))),
    }
    if &header[..16] != b"SQLite format 3\0" {
        return Err(refused("it is not an SQLite database; move it away or choose another path".to_owned()));
    }
    let number = |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if number(68) != APPLICATION_ID {
        let whose = former(path)?.map_or_else(|| "an SQLite database of another program".to_owned(), |f| f.to_string());
        return Err(refused(format!("it is {whose}; move it away or choose another path")));
    }
    let format = number(60);
    if format != FORMAT {
        return Err(refused(format!(
            "it has format {format}, this release writes format {FORMAT}; run the release that wrote it, or remove the file to copy anew"
        )));
    }
    Ok(Found::Ours)
}

/// Fails unless the replica at `path` belongs to `expect`. A file too damaged to say so may be replaced.
pub(crate) fn check_owner(path: &Path, expect: &Identity) -> Result<(), Error> {
    let description = connection::open(path, false, 1024, 16).and_then(|conn| meta::read_description(&conn));
    match description.at(path, "read whose replica it is") {
        Ok(description) => check(path, &description.identity, expect),
        Err(Error::Resync { reason, .. }) => {
            tracing::warn!(path = %path.display(), reason, "the former replica is damaged and will be replaced");
            Ok(())
        }
        Err(e) => Err(e),
    }
}

pub(crate) fn check(path: &Path, found: &Identity, expect: &Identity) -> Result<(), Error> {
    if found == expect {
        return Ok(());
    }
    Err(Error::Refused {
        path: path.to_path_buf(),
        reason: format!(
            "it is the replica of app '{}' shard {}, not of app '{}' shard {}; choose another path",
            found.app, found.shard, expect.app, expect.shard
        ),
    })
}
