//! The SQLite replica: created by one initial copy, kept up to date by one [`Writer`], read by many [`Reader`]s.
//!
//! Knows SQLite and the engine's scan interface; no Postgres, no socket, no client group, no backup.
//!
//! Invariants:
//! * The file is at exactly one upstream version, stored in the same transaction as the data. A crash at any point leaves the
//!   last committed version, or, during the initial copy, no file.
//! * A [`rows::Batch`] is the difference between two committed versions, and is returned after the commit.
//! * What is wrong with the contents of one table leaves that table out, by name, and nothing else.
//! * A scan returns what [`ivm::eval`] says it must, whatever plan SQLite chooses.
//! * A file that is not ours is never written to and never deleted.

mod alter;
mod bound;
mod cells;
mod checkpoint;
mod compile;
mod connection;
mod error;
mod estimate;
mod former;
mod gate;
mod keeper;
mod layout;
mod like;
mod load;
mod meta;
mod names;
mod net;
mod open;
mod reader;
mod retire;
mod table;
mod writer;

pub use error::Error;
pub use former::{Former, former};
pub use gate::{CommitGate, Pin};
pub use keeper::{WalEnd, WalKeeper};
pub use load::Loader;
pub use meta::{Description, Identity, VERSION_QUERY};
pub use open::{Opened, Replica};
pub use reader::Reader;
pub use retire::retire;
pub use writer::Writer;
