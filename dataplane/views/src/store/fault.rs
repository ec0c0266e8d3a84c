//! Why a statement gave no answer, and what that means: it passes by itself, the tables are gone, or the database will never
//! take these bytes.

use std::error::Error as _;
use std::time::Duration;

use tokio_postgres::Error;

#[derive(Debug)]
pub(super) enum Fault {
    Database(Error),
    /// Nothing came for so long. The connection says nothing of what became of the statement.
    Silent(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Worth the same again, in a moment.
    Passes,
    /// Tables, functions or the schema are not there (any more).
    Missing,
    /// The same bytes are refused again, whenever they come.
    Refused,
}

impl Fault {
    pub(super) fn class(&self) -> Class {
        match self {
            Fault::Silent(_) => Class::Passes,
            Fault::Database(error) => match error.as_db_error() {
                Some(db) => class_of(db.code().code()),
                None if is_unsendable(error) => Class::Refused,
                None => Class::Passes,
            },
        }
    }

    /// Whether tables that are not this server's own are others than was thought, or this role has no right to them.
    pub(super) fn is_foreign(&self) -> bool {
        let code = match self {
            Fault::Database(error) => error.code(),
            Fault::Silent(_) => None,
        };
        self.class() == Class::Missing || code == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE)
    }

    /// Whether such tables will never give another answer.
    pub(super) fn is_final(&self) -> bool {
        self.is_foreign() || self.class() == Class::Refused
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

fn class_of(code: &str) -> Class {
    match code {
        // Undefined table, column, function; unknown schema.
        "42P01" | "42703" | "42883" | "3F000" => Class::Missing,
        // Bad data, broken constraints, limits of the program. What the server cannot hold in memory at all, and damage, it reports as
        // internal errors.
        _ if ["22", "23", "54", "XX"].iter().any(|class| code.starts_with(class)) => Class::Refused,
        _ => Class::Passes,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_class() {
        for (code, class) in [
            ("42P01", Class::Missing),
            ("3F000", Class::Missing),
            ("22021", Class::Refused),
            ("23514", Class::Refused),
            ("54000", Class::Refused),
            ("XX000", Class::Refused),
            ("XX001", Class::Refused),
            ("57014", Class::Passes),
            ("40001", Class::Passes),
            ("53100", Class::Passes),
            ("25006", Class::Passes),
            ("42501", Class::Passes),
        ] {
            assert_eq!(class_of(code), class, "{code}");
        }
    }
}
