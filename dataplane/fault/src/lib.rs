//! What becomes of an error: the one place that says so, for everything that can fail between Postgres and a client.
//!
//! Knows no database driver, no SQLite, no socket: it is asked by codes, kinds and names. Who handles an error asks for its
//! [`Entry`] and does what its [`Class`] says; nobody decides anew.
//!
//! Invariants:
//! - Every error has exactly one class when it is met for the first time, and one when it comes again at the same position.
//! - Whatever needs a person says what to do.
//! - `ERRORS.md` is made from these tables, and a test fails on an error type of the data plane that is not in them.

mod backoff;
mod class;
mod contained;
mod page;
pub mod path;
mod recurrence;
mod sqlstate;
mod system;

pub use backoff::Backoff;
pub use class::{Class, Entry};
pub use contained::{caught, contained, is_contained};
pub use page::page;
pub use recurrence::Recurrence;
pub use sqlstate::{SQLSTATES, Statement, Write, sqlstate, statement, write};
pub use system::{IO_KINDS, SQLITE_CODES, io, sqlite};
