//! What Postgres answers, by SQLSTATE: single codes first, then the class that the first two characters name.

use crate::Entry;
use crate::class::Class::{NewCopy, Passes, Person};

const LOG: &str = "see the log of Postgres; if it goes on, report it with the message";
const GRANT: &str = "give the role of the connection string what the message says it lacks";
const SPACE: &str = "make room for Postgres: disk, memory or connections, as the message says";

/// Codes of five characters, and classes of two.
pub const SQLSTATES: &[Entry] = &[
    Entry::new(
        "28",
        "the role may not log in",
        Person,
        Person,
        "correct user and password of the connection string, or pg_hba.conf",
    ),
    Entry::new(
        "3D",
        "the database does not exist",
        Person,
        Person,
        "correct the database of the connection string, or create it",
    ),
    Entry::new(
        "3F",
        "a schema does not exist",
        Person,
        Person,
        "what the set-up made was dropped: restart the node, which makes it anew",
    ),
    Entry::new("42501", "a privilege is missing", Person, Person, GRANT),
    Entry::new(
        "42704",
        "an object does not exist, such as a publication",
        Person,
        Person,
        "create what the message names again",
    ),
    Entry::new(
        "0A",
        "Postgres cannot do what is asked",
        Person,
        Person,
        "see README.md for what is required of Postgres",
    ),
    Entry::new(
        "42",
        "a statement does not fit what is in the database",
        Passes,
        Person,
        "somebody changed what the set-up made: restart the node, which makes it anew",
    ),
    Entry::new(
        "53400",
        "a limit of the configuration is reached",
        Person,
        Person,
        "raise max_replication_slots and max_wal_senders, or drop slots that are not needed",
    ),
    Entry::new("53", "Postgres lacks resources", Passes, Passes, SPACE),
    Entry::new("54", "a limit of Postgres is exceeded", Passes, Person, LOG),
    Entry::new("55006", "the slot is in use", Passes, Passes, "end the other process, see pg_replication_slots"),
    Entry::new(
        "55P03",
        "a lock is held by another session",
        Passes,
        Passes,
        "end the session that holds it, see pg_locks",
    ),
    Entry::new("55", "an object is not in the state that is needed", Passes, Person, "do what the message says"),
    Entry::new(
        "57014",
        "a statement was cancelled",
        Passes,
        Person,
        "remove statement_timeout from the role and the database",
    ),
    Entry::new("57", "Postgres stops, starts or ends sessions", Passes, Passes, "wait until Postgres is up"),
    Entry::new("58", "the operating system failed Postgres", Passes, Person, LOG),
    Entry::new(
        "58P01",
        "a file of Postgres is missing",
        Passes,
        NewCopy,
        "the slot's log is gone: another copy is made",
    ),
    Entry::new("72", "a snapshot is too old", Passes, Passes, LOG),
    Entry::new("08", "the connection failed", Passes, Passes, "see the network between here and Postgres"),
    Entry::new(
        "40",
        "a transaction was rolled back: a deadlock, or a conflict",
        Passes,
        Passes,
        "nothing, unless it goes on",
    ),
    Entry::new(
        "25P03",
        "an idle transaction was ended",
        Passes,
        Passes,
        "remove idle_in_transaction_session_timeout from the role",
    ),
    Entry::new(
        "25006",
        "Postgres is read-only",
        Passes,
        Passes,
        "connect to the primary server, or end its read-only state",
    ),
    Entry::new("25", "a transaction is in the wrong state", Passes, Person, LOG),
    Entry::new(
        "22",
        "a value cannot be used, such as text in another encoding",
        Passes,
        Person,
        "correct the value that the message names, upstream",
    ),
    Entry::new(
        "23",
        "a constraint is violated",
        Passes,
        Person,
        "another process writes to tables of the set-up: keep it out of them",
    ),
    Entry::new("XX001", "a page of the database is damaged", Passes, Person, "restore the database upstream"),
    Entry::new("XX002", "an index of the database is damaged", Passes, Person, "REINDEX what the message names"),
    Entry::new("XX", "Postgres met an error of its own", Passes, Person, LOG),
    Entry::new(
        "F0",
        "the configuration file of Postgres is wrong",
        Passes,
        Person,
        "correct it, see the log of Postgres",
    ),
    Entry::new(
        "P0",
        "a function of the database raised an error",
        Passes,
        Person,
        "see the message: an event trigger or a function of another application",
    ),
    Entry::new("HV", "a foreign data wrapper failed", Passes, Person, "see the message"),
    Entry::new("38", "an external routine failed", Passes, Person, "see the message"),
    Entry::new("39", "an external routine was called wrongly", Passes, Person, "see the message"),
    Entry::new("44", "a view refuses a row", Passes, Person, LOG),
    Entry::new("2B", "privileges depend on what is dropped", Passes, Person, LOG),
    Entry::new("2D", "a transaction ends wrongly", Passes, Person, LOG),
    Entry::new("2F", "a function of SQL failed", Passes, Person, LOG),
    Entry::new(
        "26",
        "a prepared statement is gone",
        Passes,
        Passes,
        "a pooler in transaction mode needs support for prepared statements",
    ),
    Entry::new("34", "a cursor is gone", Passes, Passes, "use a pooler in session mode, or none"),
    Entry::new("3B", "a savepoint is wrong", Passes, Person, LOG),
    Entry::new("20", "a case has no branch", Passes, Person, LOG),
    Entry::new("21", "a statement has more rows than expected", Passes, Person, LOG),
    Entry::new("24", "a cursor is in the wrong state", Passes, Person, LOG),
    Entry::new("27", "a trigger changes what it was called for", Passes, Person, LOG),
    Entry::new("09", "a trigger failed", Passes, Person, LOG),
    Entry::new("0B", "a transaction cannot begin", Passes, Person, LOG),
    Entry::new("0F", "a large object is wrong", Passes, Person, LOG),
    Entry::new("0L", "a grant is wrong", Passes, Person, GRANT),
    Entry::new("0P", "a role is wrong", Person, Person, GRANT),
    Entry::new("0Z", "diagnostics failed", Passes, Person, LOG),
    Entry::new("00", "no error", Passes, Person, LOG),
    Entry::new("01", "a warning", Passes, Person, LOG),
    Entry::new("02", "no data", Passes, Person, LOG),
    Entry::new("03", "a statement is not complete", Passes, Person, LOG),
];

const UNKNOWN: Entry = Entry::new("other", "a code that Postgres does not document", Passes, Person, LOG);

/// What to do about an answer with this code.
#[must_use]
pub fn sqlstate(code: &str) -> &'static Entry {
    let find = |name: &str| SQLSTATES.iter().find(|entry| entry.name == name);
    find(code).or_else(|| code.get(..2).and_then(find)).unwrap_or(&UNKNOWN)
}

/// What an answer says of a statement that stores what this server made itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statement {
    /// Worth the same again, in a moment, or when a person has done something.
    Passes,
    /// Tables, functions or the schema are not there (any more).
    Missing,
    /// The same bytes are refused again, whenever they come: what they are of is left out.
    Refused,
}

#[must_use]
pub fn statement(code: &str) -> Statement {
    match code {
        // Undefined table, column, function; unknown schema.
        "42P01" | "42703" | "42883" | "3F000" => Statement::Missing,
        // Bad data, broken constraints, limits of the program. What the server cannot hold in memory at all, and damage, it reports as
        // internal errors.
        _ if ["22", "23", "54", "XX"].iter().any(|class| code.starts_with(class)) => Statement::Refused,
        _ => Statement::Passes,
    }
}

/// What an answer says of a statement that writes what a client sent, with the application's constraints and triggers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Others were faster: the same again may succeed.
    Conflicts,
    /// The server, or this session of it, cannot do anything for the moment.
    Away,
    /// It is refused, perhaps because tables and types are others than was thought.
    Misfits,
    /// It is refused.
    Refused,
}

#[must_use]
pub fn write(code: &str) -> Write {
    match (code.get(..2).unwrap_or_default(), code) {
        // It took too long.
        (_, "57014") => Write::Refused,
        ("40", _) => Write::Conflicts,
        // A server that is read-only is a standby or becomes one.
        ("08" | "53" | "57", _) | (_, "25006" | "25P03" | "26000") => Write::Away,
        ("22" | "42", _) => Write::Misfits,
        _ => Write::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    #[test]
    fn what_a_client_cannot_write_is_told_from_what_passes() {
        for (code, said) in [
            ("40001", Write::Conflicts),
            ("40P01", Write::Conflicts),
            ("57P01", Write::Away),
            ("53300", Write::Away),
            ("08006", Write::Away),
            ("25006", Write::Away),
            ("26000", Write::Away),
            ("57014", Write::Refused),
            ("22P02", Write::Misfits),
            ("42703", Write::Misfits),
            ("23505", Write::Refused),
            ("P0001", Write::Refused),
            ("", Write::Refused),
        ] {
            assert_eq!(write(code), said, "{code}");
        }
    }

    #[test]
    fn what_is_refused_for_good_is_told_from_what_passes() {
        for (code, said) in [
            ("42P01", Statement::Missing),
            ("3F000", Statement::Missing),
            ("22021", Statement::Refused),
            ("23514", Statement::Refused),
            ("54000", Statement::Refused),
            ("XX000", Statement::Refused),
            ("XX001", Statement::Refused),
            ("57014", Statement::Passes),
            ("40001", Statement::Passes),
            ("53100", Statement::Passes),
            ("25006", Statement::Passes),
            ("42501", Statement::Passes),
        ] {
            assert_eq!(statement(code), said, "{code}");
            // Nothing that passes by itself every time is given up.
            assert!(said == Statement::Passes || sqlstate(code).repeated != Class::Passes, "{code}");
        }
    }

    /// The classes of the appendix of Postgres' manual.
    const CLASSES: &str = "00 01 02 03 08 09 0A 0B 0F 0L 0P 0Z 20 21 22 23 24 25 26 27 28 2B 2D 2F 34 38 39 3B 3D 3F 40 42 \
                           44 53 54 55 57 58 F0 HV P0 XX";

    #[test]
    fn every_class_of_postgres_is_known() {
        for class in CLASSES.split_whitespace() {
            assert_eq!(sqlstate(&format!("{class}999")).name, class);
        }
    }

    #[test]
    fn codes_come_before_their_class() {
        for (code, class, repeated) in [
            ("28P01", Class::Person, Class::Person),
            ("42501", Class::Person, Class::Person),
            ("42P01", Class::Passes, Class::Person),
            ("53400", Class::Person, Class::Person),
            ("53300", Class::Passes, Class::Passes),
            ("57P01", Class::Passes, Class::Passes),
            ("57014", Class::Passes, Class::Person),
            ("XX000", Class::Passes, Class::Person),
            ("99999", Class::Passes, Class::Person),
            ("", Class::Passes, Class::Person),
            ("\u{fc}\u{fc}", Class::Passes, Class::Person),
        ] {
            let entry = sqlstate(code);
            assert_eq!((entry.class, entry.repeated), (class, repeated), "{code}");
        }
    }
}
