//! Errors by what the caller does next.

use fault::{Entry, path, sqlstate};
use rows::Version;

use crate::codec::CodecError;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Connect(#[from] upstream::Error),
    /// Retry with back-off; an append that may or may not have happened can be repeated.
    #[error("cannot {doing} in the change database: {reason}")]
    Statement { doing: &'static str, reason: String, source: Option<tokio_postgres::Error> },
    /// Stop: another process streams from the slot now.
    #[error("another process has taken the change log over")]
    NotOwner,
    /// The reader needs a newer copy to start from.
    #[error("the change log begins after {start} and was asked for what follows {after}")]
    TooOld { after: Version, start: Version },
    /// The database has lost what it had stored: it was restored, or a standby that lagged has taken over. A new copy is needed.
    #[error("the change database was set back: its log ends at {last} although changes up to {stored} were stored")]
    SetBack { stored: Version, last: Version },
    /// There is no log: start with an initial copy.
    #[error("the change database holds no log")]
    Empty,
    /// A programming error of the caller; nothing was stored.
    #[error("transactions must ascend: {next} follows {last}")]
    OutOfOrder { last: Version, next: Version },
    #[error(transparent)]
    Unreadable(#[from] CodecError),
}

impl Error {
    /// What is known of it.
    #[must_use]
    pub fn entry(&self) -> &'static Entry {
        match self {
            Error::Connect(error) => error.entry(),
            Error::Statement { source, .. } => {
                let code = source.as_ref().and_then(tokio_postgres::Error::code);
                code.map_or(&path::CHANGES_STATEMENT, |code| sqlstate(code.code()))
            }
            Error::NotOwner => &path::CHANGES_NOT_OWNER,
            Error::TooOld { .. } => &path::CHANGES_TOO_OLD,
            Error::SetBack { .. } => &path::CHANGES_SET_BACK,
            Error::Empty => &path::CHANGES_EMPTY,
            Error::OutOfOrder { .. } => &path::CHANGES_OUT_OF_ORDER,
            Error::Unreadable(_) => &path::CHANGES_UNREADABLE,
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

const UNDEFINED_TABLE: &str = "42P01";

/// Turns a failed statement into an error; `doing` completes "cannot ...".
pub(crate) fn failed(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |error| {
        let reason = match error.as_db_error() {
            // A reader creates nothing; before the first owner came there is no table.
            Some(db) if db.code().code() == UNDEFINED_TABLE => return Error::Empty,
            Some(db) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
            None => error.to_string(),
        };
        Error::Statement { doing, reason, source: Some(error) }
    }
}
