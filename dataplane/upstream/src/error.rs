//! Errors by what the caller does next; [`fault`] decides which of them an answer of Postgres is.

use std::error::Error as StdError;

use fault::{Class, Entry, path, sqlstate};

type Cause = Box<dyn StdError + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing but a person can mend it: say so.
    #[error("{message}")]
    Configuration { message: String, source: Option<Cause>, entry: &'static Entry },
    /// Retry with back-off.
    #[error("{message}")]
    Transient { message: String, source: Option<Cause>, entry: &'static Entry },
    /// What Postgres sent cannot be understood. A new connection may bring it over intact; if not, it is what is there.
    #[error("Postgres sent something that cannot be understood: {message}")]
    Garbled { message: String },
    /// The replica can no longer be continued: delete it and start with a new initial copy.
    #[error("the replica must be rebuilt: {message}")]
    ResetRequired {
        message: String,
        /// Because the replication slot, or the log that it kept, is gone.
        is_slot_lost: bool,
    },
    /// Another process streams from the slot: take over, or wait until it is gone.
    #[error("replication slot {slot} is in use by {application} (pid {pid} at the Postgres server)")]
    SlotInUse { slot: String, pid: i32, application: String },
    /// The reference is at work on the shard: it ends when a person stops it.
    #[error("{message}")]
    Occupied { message: String },
    /// A task of ours met a fault of the program; where is in the log.
    #[error("{task} failed unexpectedly: {reason}")]
    Panicked { task: &'static str, reason: String },
}

impl Error {
    pub(crate) fn configuration(message: impl Into<String>) -> Error {
        Error::Configuration { message: message.into(), source: None, entry: &path::CONFIGURATION }
    }

    pub(crate) fn transient(message: impl Into<String>) -> Error {
        Error::Transient { message: message.into(), source: None, entry: &path::TRANSIENT }
    }

    pub(crate) fn transient_from(message: impl Into<String>, source: impl Into<Cause>) -> Error {
        let source = source.into();
        let entry = source.downcast_ref::<std::io::Error>().map_or(&path::TRANSIENT, |e| fault::io(e.kind()));
        Error::Transient { message: message.into(), source: Some(source), entry }
    }

    pub(crate) fn reset(message: impl Into<String>) -> Error {
        Error::ResetRequired { message: message.into(), is_slot_lost: false }
    }

    pub(crate) fn slot_lost(message: impl Into<String>) -> Error {
        Error::ResetRequired { message: message.into(), is_slot_lost: true }
    }

    /// A task ended without a result: it panicked, or the runtime ends.
    pub(crate) fn ended(task: &'static str, error: &tokio::task::JoinError) -> Error {
        if error.is_panic() {
            Error::Panicked { task, reason: error.to_string() }
        } else {
            Error::transient(format!("{task} was ended"))
        }
    }

    /// Classifies an error of a statement by its SQLSTATE. `doing` completes "cannot ...".
    pub(crate) fn statement(doing: &str, error: tokio_postgres::Error) -> Error {
        let Some(db) = error.as_db_error() else {
            let message = format!("cannot {doing}: {}", chain(&error));
            return Error::Transient { message, source: Some(Box::new(error)), entry: &path::TRANSIENT };
        };
        let code = db.code().code().to_owned();
        let message = described(doing, &code, db.message(), db.detail(), db.hint());
        Error::answered(message, &code, Some(Box::new(error)))
    }

    /// The same for an error response on a connection of [`crate::wire`].
    pub(crate) fn response(doing: &str, error: &ServerError) -> Error {
        let message = described(doing, &error.code, &error.message, error.detail.as_deref(), error.hint.as_deref());
        Error::answered(message, &error.code, None)
    }

    fn answered(message: String, code: &str, source: Option<Cause>) -> Error {
        let entry = sqlstate(code);
        match entry.class {
            Class::Person => Error::Configuration { message, source, entry },
            Class::NewCopy => Error::reset(message),
            Class::Passes | Class::OneThing => Error::Transient { message, source, entry },
        }
    }

    /// What is known of it.
    #[must_use]
    pub fn entry(&self) -> &'static Entry {
        match self {
            Error::Configuration { entry, .. } | Error::Transient { entry, .. } => entry,
            Error::Garbled { .. } => &path::GARBLED,
            Error::ResetRequired { .. } => &path::RESET,
            Error::SlotInUse { .. } => &path::SLOT_IN_USE,
            Error::Occupied { .. } => &path::OCCUPIED,
            Error::Panicked { .. } => &path::PANICKED,
        }
    }
}

/// An ErrorResponse, as far as it is reported. The detail may hold row values only for constraint violations, which the
/// statements sent on these connections cannot cause.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerError {
    pub code: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

fn described(doing: &str, code: &str, message: &str, detail: Option<&str>, hint: Option<&str>) -> String {
    let mut text = format!("cannot {doing}: {message} (SQLSTATE {code})");
    for part in [detail, hint].into_iter().flatten() {
        text.push_str("; ");
        text.push_str(part);
    }
    text
}

/// An error and its causes in one line; `tokio_postgres` hides the cause from `Display`.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(code: &str) -> Error {
        Error::response("do it", &ServerError { code: code.to_owned(), ..ServerError::default() })
    }

    #[test]
    fn a_code_decides() {
        assert!(matches!(response("42501"), Error::Configuration { .. }));
        assert!(matches!(response("57P01"), Error::Transient { .. }));
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(Error::transient_from("no", refused).entry().name, "ConnectionRefused");
    }

    #[tokio::test]
    async fn a_panic_is_told_from_an_end() {
        let panicked = tokio::spawn(async { panic!("a fault of the program") }).await.unwrap_err();
        assert!(matches!(Error::ended("the task", &panicked), Error::Panicked { .. }));
        let task = tokio::spawn(std::future::pending::<()>());
        task.abort();
        assert!(matches!(Error::ended("the task", &task.await.unwrap_err()), Error::Transient { .. }));
    }
}
