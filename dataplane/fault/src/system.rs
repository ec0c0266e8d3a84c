//! What the operating system and SQLite answer.

use std::io::ErrorKind;

use crate::Entry;
use crate::class::Class::{NewCopy, Passes, Person};

const NETWORK: &str = "see the network, and whether the server runs";
const DISK: &str = "make room on the disk";
const RIGHTS: &str = "let the process read and write the file and its directory";
const REPORT: &str = "report it with the message";

/// By the name of the kind.
pub const IO_KINDS: &[Entry] = &[
    Entry::new("ConnectionRefused", "nobody listens", Passes, Passes, NETWORK),
    Entry::new("ConnectionReset", "the other side hung up", Passes, Passes, NETWORK),
    Entry::new("ConnectionAborted", "the connection was given up", Passes, Passes, NETWORK),
    Entry::new("NotConnected", "the connection is gone", Passes, Passes, NETWORK),
    Entry::new("BrokenPipe", "the other side hung up while it was written to", Passes, Passes, NETWORK),
    Entry::new("UnexpectedEof", "the other side ended in the middle", Passes, Passes, NETWORK),
    Entry::new("HostUnreachable", "there is no way to the host", Passes, Passes, NETWORK),
    Entry::new("NetworkUnreachable", "there is no way to the network", Passes, Passes, NETWORK),
    Entry::new("NetworkDown", "the network is down", Passes, Passes, NETWORK),
    Entry::new("TimedOut", "no answer came in time", Passes, Passes, NETWORK),
    Entry::new("Interrupted", "a call was interrupted", Passes, Passes, REPORT),
    Entry::new("WouldBlock", "a resource is busy", Passes, Passes, REPORT),
    Entry::new("OutOfMemory", "memory is exhausted", Passes, Passes, "give the process more memory"),
    Entry::new("StorageFull", "the disk is full", Person, Person, DISK),
    Entry::new("QuotaExceeded", "the quota of the disk is used up", Person, Person, DISK),
    Entry::new("PermissionDenied", "a file may not be opened", Person, Person, RIGHTS),
    Entry::new("ReadOnlyFilesystem", "the file system is read-only", Person, Person, RIGHTS),
    Entry::new(
        "NotFound",
        "a file or directory is missing",
        Person,
        Person,
        "create the directory that the message names",
    ),
    Entry::new("AddrInUse", "another process has the port", Person, Person, "end it, or choose another port"),
    Entry::new("InvalidData", "the other side does not follow the protocol", Passes, Person, REPORT),
];

const OTHER_IO: Entry = Entry::new("other", "another failure of the operating system", Passes, Person, REPORT);

/// What to do about a failure of the operating system.
#[must_use]
pub fn io(kind: ErrorKind) -> &'static Entry {
    let name = format!("{kind:?}");
    IO_KINDS.iter().find(|entry| entry.name == name).unwrap_or(&OTHER_IO)
}

/// By the name of the primary result code, without `SQLITE_`.
pub const SQLITE_CODES: &[Entry] = &[
    Entry::new("CORRUPT", "the file is damaged", NewCopy, NewCopy, "see the disk; another copy is made"),
    Entry::new("NOTADB", "the file is no database", NewCopy, NewCopy, "see ZERO_REPLICA_FILE; another copy is made"),
    Entry::new(
        "SCHEMA",
        "the file's tables changed under a statement",
        NewCopy,
        NewCopy,
        "keep other programs out of the file",
    ),
    Entry::new(
        "MISMATCH",
        "a value is not of its column's type",
        NewCopy,
        NewCopy,
        "keep other programs out of the file",
    ),
    Entry::new(
        "CONSTRAINT",
        "two rows have one key",
        Person,
        Person,
        "take the table that the message names out of the publication, or correct its key",
    ),
    Entry::new(
        "TOOBIG",
        "a value is larger than SQLite can hold",
        Passes,
        NewCopy,
        "keep the value out of what is published",
    ),
    Entry::new("CANTOPEN", "the file cannot be opened", Person, Person, RIGHTS),
    Entry::new("PERM", "the file may not be opened", Person, Person, RIGHTS),
    Entry::new("READONLY", "the file cannot be written", Person, Person, RIGHTS),
    Entry::new("AUTH", "access is forbidden", Person, Person, RIGHTS),
    Entry::new("FULL", "the disk is full", Person, Person, DISK),
    Entry::new("IOERR", "the disk failed", Passes, Person, "see the disk"),
    Entry::new("NOMEM", "memory is exhausted", Passes, Passes, "give the process more memory"),
    Entry::new("BUSY", "another process holds the file", Passes, Person, "keep other programs out of the file"),
    Entry::new("LOCKED", "another connection holds a table", Passes, Person, REPORT),
    Entry::new("PROTOCOL", "the lock of the file is contended", Passes, Person, "keep other programs out of the file"),
    Entry::new("INTERRUPT", "a statement was interrupted", Passes, Passes, REPORT),
    Entry::new("ERROR", "a statement is wrong", Passes, Person, REPORT),
    Entry::new("MISUSE", "SQLite was used wrongly", Passes, Person, REPORT),
    Entry::new("INTERNAL", "SQLite met an error of its own", Passes, Person, REPORT),
    Entry::new("RANGE", "a parameter is out of range", Passes, Person, REPORT),
    Entry::new("ABORT", "a statement was ended by another", Passes, Passes, REPORT),
    Entry::new("NOLFS", "the file system cannot hold the file", Person, Person, "use another file system"),
    Entry::new("EMPTY", "an internal code", Passes, Person, REPORT),
    Entry::new("FORMAT", "an internal code", Passes, Person, REPORT),
    Entry::new("NOTFOUND", "an unknown operation", Passes, Person, REPORT),
];

const OTHER_SQLITE: Entry = Entry::new("other", "another failure of SQLite", Passes, Person, REPORT);

/// Names of the primary result codes, from 1 on.
const SQLITE_NAMES: [&str; 26] = [
    "ERROR",
    "INTERNAL",
    "PERM",
    "ABORT",
    "BUSY",
    "LOCKED",
    "NOMEM",
    "READONLY",
    "INTERRUPT",
    "IOERR",
    "CORRUPT",
    "NOTFOUND",
    "FULL",
    "CANTOPEN",
    "PROTOCOL",
    "EMPTY",
    "SCHEMA",
    "TOOBIG",
    "CONSTRAINT",
    "MISMATCH",
    "MISUSE",
    "NOLFS",
    "AUTH",
    "FORMAT",
    "RANGE",
    "NOTADB",
];

/// What to do about an answer of SQLite, by its primary or extended result code.
#[must_use]
pub fn sqlite(code: i32) -> &'static Entry {
    let primary = usize::try_from(code & 0xff).unwrap_or(0);
    let name = primary.checked_sub(1).and_then(|i| SQLITE_NAMES.get(i));
    name.and_then(|name| SQLITE_CODES.iter().find(|entry| entry.name == *name)).unwrap_or(&OTHER_SQLITE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    #[test]
    fn every_code_of_sqlite_is_known() {
        for (i, name) in SQLITE_NAMES.iter().enumerate() {
            assert_eq!(sqlite(i32::try_from(i).unwrap() + 1).name, *name);
        }
        assert_eq!(sqlite(11 | (1 << 8)).class, Class::NewCopy, "an extended code");
        assert_eq!((sqlite(0).name, sqlite(-1).name, sqlite(77).name), ("other", "other", "other"));
    }

    #[test]
    fn kinds_of_failures_have_their_class() {
        for (kind, class) in [
            (ErrorKind::ConnectionRefused, Class::Passes),
            (ErrorKind::PermissionDenied, Class::Person),
            (ErrorKind::StorageFull, Class::Person),
            (ErrorKind::Unsupported, Class::Passes),
        ] {
            assert_eq!(io(kind).class, class, "{kind:?}");
        }
    }
}
