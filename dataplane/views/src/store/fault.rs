//! Why a statement gave no answer. What that means is decided in the crate `fault`.

use std::error::Error as _;
use std::time::Duration;

use fault::{Entry, Statement, path, sqlstate, statement};
use tokio_postgres::Error;

/// Why the store, or what works with it, cannot begin.
#[derive(Clone, Debug)]
pub struct Unopened {
    /// For a log line; without secrets.
    pub message: String,
    /// What is known of it, and so what to do.
    pub entry: &'static Entry,
}

impl Unopened {
    pub(super) fn while_doing(self, doing: &str) -> Unopened {
        Unopened { message: format!("{doing}: {}", self.message), ..self }
    }
}

impl std::fmt::Display for Unopened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Unopened {}

impl From<Fault> for Unopened {
    fn from(fault: Fault) -> Unopened {
        Unopened { message: fault.describe(), entry: fault.entry().unwrap_or(&path::CVR_AWAY) }
    }
}

#[derive(Debug)]
pub(super) enum Fault {
    Database(Error),
    /// Nothing came for so long. The connection says nothing of what became of the statement.
    Silent(Duration),
}

impl Fault {
    pub(super) fn class(&self) -> Statement {
        match self {
            Fault::Silent(_) => Statement::Passes,
            Fault::Database(error) => match error.as_db_error() {
                Some(db) => statement(db.code().code()),
                None if is_unsendable(error) => Statement::Refused,
                None => Statement::Passes,
            },
        }
    }

    /// Whether tables that are not this server's own are others than was thought, or this role has no right to them.
    pub(super) fn is_foreign(&self) -> bool {
        let code = match self {
            Fault::Database(error) => error.code(),
            Fault::Silent(_) => None,
        };
        self.class() == Statement::Missing || code == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE)
    }

    /// Whether such tables will never give another answer.
    pub(super) fn is_final(&self) -> bool {
        self.is_foreign() || self.class() == Statement::Refused
    }

    /// What is known of it, if the database said what it is.
    pub(super) fn entry(&self) -> Option<&'static Entry> {
        match self {
            Fault::Silent(_) => None,
            Fault::Database(error) => error.as_db_error().map(|db| sqlstate(db.code().code())),
        }
    }

    /// The server's message without the statement's parameters.
    pub(super) fn describe(&self) -> String {
        match self {
            Fault::Silent(within) => format!("no answer within {} s", within.as_secs()),
            Fault::Database(error) => match error.as_db_error() {
                Some(db) => format!("{} ({})", db.message(), db.code().code()),
                None => error.to_string(),
            },
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Database(error)
    }
}

/// Whether it never left, because it has no form on the wire.
fn is_unsendable(error: &Error) -> bool {
    !error.is_closed()
        && error.source().is_some_and(|source| match source.downcast_ref::<std::io::Error>() {
            Some(io) => io.kind() == std::io::ErrorKind::InvalidInput,
            None => error.to_string().starts_with("error serializing parameter"),
        })
}
