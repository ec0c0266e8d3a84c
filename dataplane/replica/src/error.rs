//! Errors by what the caller does next.

use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

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
            Fault::Io(e)
                if e.kind() == std::io::ErrorKind::PermissionDenied || e.kind() == std::io::ErrorKind::NotFound =>
            {
                Error::Refused { path, reason: format!("{action}: {e}") }
            }
            Fault::Io(e) => Error::Storage { path, action, cause: e.to_string() },
            Fault::Sqlite(e @ (rusqlite::Error::QueryReturnedNoRows | rusqlite::Error::InvalidColumnType(..))) => {
                Error::Resync { path, reason: format!("{action}: {e}") }
            }
            Fault::Sqlite(e) => match e.sqlite_error_code() {
                Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                    Error::Resync { path, reason: format!("{action}: {e}") }
                }
                Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => Error::Refused {
                    path,
                    reason: format!("{action}: {e}; the process must be able to write the file and its directory"),
                },
                // Of the disk, of memory and of locks: nothing is wrong with what was to be written.
                Some(
                    ErrorCode::DiskFull
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::OutOfMemory
                    | ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::FileLockingProtocolFailed
                    | ErrorCode::OperationInterrupted
                    | ErrorCode::OperationAborted
                    | ErrorCode::SchemaChanged,
                ) => Error::Storage { path, action, cause: e.to_string() },
                // SQLite refuses the contents, and would again: they do not follow from what is here.
                _ => Error::Resync { path, reason: format!("{action}: {e}") },
            },
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
