//! Errors by what the caller does next.

use std::fmt;
use std::path::{Path, PathBuf};

use fault::{Class, Entry, path};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Configuration, permissions or the file itself must be changed by a person; trying again cannot help. Nothing was touched.
    #[error("replica file {}: {reason}", path.display())]
    Refused { path: PathBuf, reason: String },
    /// The contents are unusable or no longer follow upstream: copy or restore anew.
    #[error("replica file {} must be replaced by a new copy: {reason}", path.display())]
    Resync { path: PathBuf, reason: String },
    /// The disk, the memory or the operating system failed. The failed call left no trace and can be repeated.
    #[error("replica file {}: {action}: {cause}", path.display())]
    Storage { path: PathBuf, action: &'static str, cause: String },
    /// The caller of [`crate::Writer::apply_when`] decided against the commit; nothing changed.
    #[error("the commit was withheld")]
    Withheld,
}

impl Error {
    /// What is known of it.
    #[must_use]
    pub fn entry(&self) -> &'static Entry {
        match self {
            Error::Refused { .. } => &path::REPLICA_REFUSED,
            Error::Resync { .. } => &path::REPLICA_RESYNC,
            Error::Storage { .. } => &path::REPLICA_STORAGE,
            Error::Withheld => &path::REPLICA_WITHHELD,
        }
    }
}

/// A full disk is told apart from other things that need a person: it may have room after a restart.
fn classified(path: PathBuf, action: &'static str, entry: &'static fault::Entry, error: &dyn fmt::Display) -> Error {
    let is_full = ["FULL", "StorageFull", "QuotaExceeded"].contains(&entry.name);
    match entry.class {
        Class::NewCopy => Error::Resync { path, reason: format!("{action}: {error}") },
        Class::Person if !is_full => Error::Refused { path, reason: format!("{action}: {error}; {}", entry.remedy) },
        Class::Passes | Class::OneThing | Class::Person => Error::Storage { path, action, cause: error.to_string() },
    }
}

/// What goes wrong inside, before the path and the action are known.
#[derive(Debug)]
pub(crate) enum Fault {
    Sqlite(rusqlite::Error),
    Io(std::io::Error),
    /// The stream or the stored contents contradict each other.
    Diverged(String),
    /// The caller decided against the commit.
    Withheld,
}

impl Fault {
    pub(crate) fn diverged(what: impl Into<String>) -> Fault {
        Fault::Diverged(what.into())
    }

    pub(crate) fn at(self, path: &Path, action: &'static str) -> Error {
        let path = path.to_path_buf();
        match self {
            Fault::Diverged(reason) => Error::Resync { path, reason },
            Fault::Withheld => Error::Withheld,
            Fault::Io(e) => classified(path, action, fault::io(e.kind()), &e),
            Fault::Sqlite(e @ (rusqlite::Error::QueryReturnedNoRows | rusqlite::Error::InvalidColumnType(..))) => {
                Error::Resync { path, reason: format!("{action}: {e}") }
            }
            Fault::Sqlite(e) => {
                let code = e.sqlite_error().map_or(0, |e| e.extended_code);
                classified(path, action, fault::sqlite(code), &e)
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Sqlite(e) => e.fmt(f),
            Fault::Io(e) => e.fmt(f),
            Fault::Diverged(what) => f.write_str(what),
            Fault::Withheld => f.write_str("withheld"),
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(e: rusqlite::Error) -> Fault {
        Fault::Sqlite(e)
    }
}

impl From<std::io::Error> for Fault {
    fn from(e: std::io::Error) -> Fault {
        Fault::Io(e)
    }
}

/// Names path and action of a fallible step.
pub(crate) trait At<T> {
    fn at(self, path: &Path, action: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<Fault>> At<T> for Result<T, E> {
    fn at(self, path: &Path, action: &'static str) -> Result<T, Error> {
        self.map_err(|e| e.into().at(path, action))
    }
}
