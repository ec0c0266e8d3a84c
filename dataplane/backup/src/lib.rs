//! Continuous backup of the replica to an object store, and its restoration.
//!
//! Knows SQLite's files and the LTX format of Litestream 0.5, whose `restore` understands what is written here; no Postgres, no
//! socket of ours, no client.
//!
//! ```text
//! writer --WAL--> capture --increments--> store   level 0, every few seconds
//!                    |                    store   levels 1 to 3, merged from the level below
//!                    +------- view -----> store   level 9, snapshots
//! store --plan--> download --decode--> temporary file --checked--> replica
//! ```
//!
//! Invariants:
//! * Increments continue each other and the snapshot before them without a gap, which SQLite's own checksums prove; where they
//!   cannot, a new snapshot begins a new chain.
//! * A file never holds anything newer than the version it states, and is whole or not there.
//! * Transactions are numbered by the owner's epoch first: what a former owner still writes is ignored by every reader once the
//!   present one's first snapshot is complete, and nothing older is deleted before that.
//! * What [`Progress`] calls restorable has been seen in the store after it was written.

mod apply;
mod capture;
mod delete;
mod download;
mod error;
mod inspect;
pub mod ltx;
mod maintenance;
pub mod metrics;
mod name;
pub mod plan;
mod restore;
mod service;
mod store;
mod stream;
mod target;
mod transfer;
mod upload;
mod view;
mod wal;

pub use delete::delete;
pub use error::Error;
pub use inspect::{Listing, Report, list, verify};
pub use name::{Name, SNAPSHOT, TOP, Txid};
pub use restore::{Restored, restore};
pub use service::{Claim, Failure, Ownership, Progress, Running, start};
pub use target::{Credentials, Lineage, Options, Pace, Target};
pub use transfer::{SnapshotStream, restore_bytes, snapshot_bytes};

use std::time::SystemTime;

/// Milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}
