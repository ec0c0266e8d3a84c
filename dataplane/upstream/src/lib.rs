//! The Postgres side of replication: set-up of the shard, the initial copy, the logical replication stream.
//!
//! Knows no SQLite, no client protocol, no query engine: it turns Postgres into [`rows::CopyBlock`]s and
//! [`rows::Transaction`]s. [`initial_copy`] creates a slot and reads every published table under the slot's snapshot;
//! [`Stream`] then delivers every later transaction, whole and in commit order.
//!
//! Invariants:
//! - Upstream is told that a position is safe only after the caller said so through [`Acks`]; nothing is acknowledged on its own.
//! - Values of one column are decoded to equal cells by the initial copy and by the stream.
//! - The catalog used for a transaction is the catalog as of that transaction: it comes from the events in the stream, never
//!   from a look at the present schema.
//! - The stream continues the very history that is stored here, or fails before anything of it is handed out.
//! - A table or a message that cannot be represented is named; nothing is skipped silently.
//! - Contents that must be read anew are read beside the stream, which waits for nothing; see [`withheld`].

mod address;
mod backfill;
mod binding;
mod catalog;
mod connect;
mod continuity;
mod copy;
mod copy_decode;
mod ddl;
mod decode;
mod decommission;
mod dial;
mod diff;
mod error;
mod identity;
mod key;
mod limit;
mod options;
mod permissions;
mod pgoutput;
mod published;
mod reader;
mod requirements;
mod schema;
mod session;
mod set_up;
mod shape;
mod shard;
mod slot;
mod stream;
mod telling;
mod tenant;
mod tls;
mod transaction;
mod waits;
mod wire;
mod withheld;

pub use address::Address;
pub use connect::{connect, connect_pooled, quote_identifier, quote_literal};
pub use copy::{CopyMessage, CopyPlan, initial_copy};
pub use decommission::{Belongings, Schema, belongings, decommission};
pub use error::Error;
pub use identity::home;
pub use options::{App, Options, ROW_BYTES_MAX};
pub use permissions::{Deployed, deploy as deploy_permissions, deployed as deployed_permissions, published_columns};
pub use published::{PublishedTable, SqlColumn, published};
pub use requirements::{Encodings, check_encoding};
pub use session::{begin, isolated, transaction};
pub use slot::is_streamed;
pub use stream::{Acks, Event, Resume, Stream};
pub use tokio_postgres::Client;

pub type Result<T> = std::result::Result<T, Error>;
