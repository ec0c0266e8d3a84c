//! Errors by what the caller does next.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use fault::{Class, Entry, path};

use crate::name::Name;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A person must change the configuration, the credentials or the bucket; trying again helps only after that.
    #[error("backup {at}: {reason}")]
    Refused { at: String, reason: String },
    /// The store does not let us in; trying again helps only after a person has changed the credentials or the bucket's policy.
    #[error("backup {at}: {reason}")]
    Denied { at: String, reason: String },
    /// The store did not answer, or failed; trying again may help.
    #[error("backup {at}: {action}: {cause}")]
    Unavailable { at: String, action: &'static str, cause: String },
    /// There is nothing to restore from.
    #[error("backup {at}: {reason}")]
    Nothing { at: String, reason: String },
    /// A file of the backup is gone.
    #[error("backup file {name} does not exist")]
    Missing { name: String },
    /// The contents of a file of the backup are not what was written.
    #[error("backup file {file} is damaged at byte {offset}: {reason}")]
    Damaged { file: String, offset: u64, reason: String },
    /// The backup is of another database, or of another copy of it.
    #[error("backup {at} cannot be used here: {reason}")]
    Foreign { at: String, reason: String },
    /// Another process owns the path now.
    #[error("backup {at}: file {name} is of a later owner; this process must not write here any more")]
    Superseded { at: String, name: Name },
    /// Somebody still writes what was to be deleted.
    #[error("backup {at} stays: {key} was written {}, so somebody may still use it", when(*modified))]
    InUse { at: String, key: String, modified: Option<SystemTime> },
    /// The local disk is full.
    #[error("no room to {action} {}: {needed} bytes are needed there in all", path.display())]
    DiskFull { path: PathBuf, action: &'static str, needed: u64 },
    /// The local disk or SQLite failed.
    #[error("{action} {}: {cause}", path.display())]
    Local { path: PathBuf, action: &'static str, cause: String },
    /// What was restored cannot be opened as a replica.
    #[error(transparent)]
    Replica(#[from] replica::Error),
    /// The work was given up before its end, because the process stops or the work begins anew.
    #[error("given up before the end")]
    Cancelled,
}

fn when(time: Option<SystemTime>) -> String {
    match time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
        Some(since) => format!("at {} (seconds since 1970)", since.as_secs()),
        None => "at a time that the store does not tell".to_owned(),
    }
}

impl Error {
    /// What is known of it.
    #[must_use]
    pub fn entry(&self) -> &'static Entry {
        match self {
            Error::Refused { .. } => &path::BACKUP_REFUSED,
            Error::Denied { .. } => &path::BACKUP_DENIED,
            Error::Unavailable { .. } => &path::BACKUP_UNAVAILABLE,
            Error::Nothing { .. } => &path::BACKUP_NOTHING,
            Error::Missing { .. } => &path::BACKUP_MISSING,
            Error::Damaged { .. } => &path::BACKUP_DAMAGED,
            Error::Foreign { .. } => &path::BACKUP_FOREIGN,
            Error::Superseded { .. } => &path::BACKUP_SUPERSEDED,
            Error::InUse { .. } => &path::BACKUP_IN_USE,
            Error::DiskFull { .. } => &path::BACKUP_DISK_FULL,
            Error::Local { .. } => &path::BACKUP_LOCAL,
            Error::Replica(_) => &path::BACKUP_REPLICA,
            Error::Cancelled => &path::BACKUP_CANCELLED,
        }
    }

    /// Whether time alone mends nothing.
    #[must_use]
    pub fn needs_a_person(&self) -> bool {
        self.entry().class == Class::Person
    }

    pub(crate) fn damaged(file: &str, offset: u64, reason: impl Into<String>) -> Error {
        Error::Damaged { file: file.to_owned(), offset, reason: reason.into() }
    }

    pub(crate) fn local(path: &Path, action: &'static str, cause: impl ToString) -> Error {
        Error::Local { path: path.to_path_buf(), action, cause: cause.to_string() }
    }

    /// A failed write; `needed` is the size that the file is to have in the end.
    pub(crate) fn write(path: &Path, action: &'static str, needed: u64, cause: &std::io::Error) -> Error {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match cause.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Error::DiskFull { path: path.to_path_buf(), action, needed },
            _ => Error::local(path, action, cause),
        }
    }

    /// Carries an error of this crate through an interface that knows only I/O errors.
    pub(crate) fn into_io(self) -> std::io::Error {
        std::io::Error::other(self)
    }

    /// Takes an error of this crate out of an I/O error again.
    pub(crate) fn from_io(error: std::io::Error) -> Result<Error, std::io::Error> {
        match error.downcast::<Error>() {
            Ok(error) => Ok(error),
            Err(error) => Err(error),
        }
    }
}
