//! Errors by what the caller does next.

use std::error::Error as StdError;

use tokio_postgres::error::SqlState;

type Cause = Box<dyn StdError + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing but a person can mend it: exit with the message.
    #[error("{message}")]
    Configuration { message: String, source: Option<Cause> },
    /// Retry with back-off.
    #[error("{message}")]
    Transient { message: String, source: Option<Cause> },
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
}

impl Error {
    pub(crate) fn configuration(message: impl Into<String>) -> Error {
        Error::Configuration { message: message.into(), source: None }
    }

    pub(crate) fn transient(message: impl Into<String>) -> Error {
        Error::Transient { message: message.into(), source: None }
    }

    pub(crate) fn transient_from(message: impl Into<String>, source: impl Into<Cause>) -> Error {
        Error::Transient { message: message.into(), source: Some(source.into()) }
    }

    pub(crate) fn reset(message: impl Into<String>) -> Error {
        Error::ResetRequired { message: message.into(), is_slot_lost: false }
    }

    pub(crate) fn slot_lost(message: impl Into<String>) -> Error {
        Error::ResetRequired { message: message.into(), is_slot_lost: true }
    }

    /// Classifies an error of a statement by its SQLSTATE. `doing` completes "cannot ...".
    pub(crate) fn statement(doing: &str, error: tokio_postgres::Error) -> Error {
        let message = match error.as_db_error() {
            Some(db) => described(doing, db.code().code(), db.message(), db.detail(), db.hint()),
            None => format!("cannot {doing}: {}", chain(&error)),
        };
        match error.code() {
            Some(code) if needs_a_person(code) => Error::Configuration { message, source: Some(Box::new(error)) },
            _ => Error::Transient { message, source: Some(Box::new(error)) },
        }
    }

    /// The same for an error response on a connection of [`crate::wire`].
    pub(crate) fn response(doing: &str, error: &ServerError) -> Error {
        let message = described(doing, &error.code, &error.message, error.detail.as_deref(), error.hint.as_deref());
        if needs_a_person(&SqlState::from_code(&error.code)) {
            Error::configuration(message)
        } else {
            Error::transient(message)
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

/// Authentication, authorisation, missing databases and objects, unsupported features: waiting does not help.
fn needs_a_person(code: &SqlState) -> bool {
    let class = code.code().get(..2).unwrap_or_default();
    class == "28"
        || class == "3D"
        || class == "0A"
        || [SqlState::INSUFFICIENT_PRIVILEGE, SqlState::UNDEFINED_OBJECT, SqlState::INVALID_SCHEMA_NAME].contains(code)
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
