//! The change log: recent upstream transactions, durable in the change database, so that every reader of the stream can start
//! where it stopped and upstream can forget what was delivered.
//!
//! Knows no SQLite, no replication protocol, no client. Transactions are kept as opaque pages in a compact encoding of its own
//! ([`encode`]); nothing queries inside them, and readers can hand the pages on as they are.
//!
//! Every statement is unnamed and no state is left in a session, so that the change database can be reached through a pooler in
//! transaction mode.
//!
//! Invariants:
//! - Versions ascend: an append continues after the last stored version or fails.
//! - Only the owner appends or purges. Taking the log over is one statement; the previous owner's next write fails with
//!   [`Error::NotOwner`].
//! - A log that came here with a dump of another database is no log: its owner, and what it holds, are that database's.
//! - The owner's log has no gap: if the database loses what was stored, the next append fails with [`Error::SetBack`].
//! - A stored transaction is whole. Reading after a version yields every later one, or says that the log does not reach back.

mod codec;
mod error;
mod log;
mod page;
mod reader;

pub use codec::{CodecError, decode, encode};
pub use error::{Error, Result};
pub use log::{Log, Purged};
pub use page::{Batch, PAGE_BYTES, Page, decode_all};
pub use reader::{Chunk, Cursor, Lineage, Options, Owner, Reader, discover};
