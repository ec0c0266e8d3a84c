//! The change stream between nodes: stored transactions from the node that owns the slot to those that serve clients.
//!
//! Knows the change log and sockets; no SQLite, no object store, no client, and on a subscriber's side no Postgres. Pages travel
//! as they are stored; only a subscriber decodes them.
//!
//! ```text
//! append to the log --publish--> Fanout --ring of shared bytes--> session ---WebSocket---> Subscriber --> replica
//!                                   ^                                ^                         |
//!                                 floor <------------- acknowledgements and credit <-----------+
//!                                                     catch-up: pages of the log
//! ```
//!
//! Invariants:
//! - Only what is durable in the log is published, and a subscriber gets exactly the log's transactions after its position, in
//!   order: what it did not get it asks for again, and what it has it drops, by version.
//! - No subscriber slows the publisher down: one that falls out of the ring reads the log.
//! - Bytes in flight to a subscriber are bounded by the window that it grants.
//! - Nothing that a peer sends is decoded before its token was found right.

mod alive;
mod auth;
mod authority;
mod certificate;
mod client;
mod dial;
mod encryption;
mod error;
mod fanout;
mod hold;
mod http;
mod line;
mod metrics;
mod pem;
mod pool;
mod reservation;
mod ring;
mod role;
mod server;
mod session;
mod snapshot;
mod socket;
mod tls;
mod upgrade;
pub mod wire;

pub use alive::{Alive, is_alive};
pub use auth::{InvalidToken, Token};
pub use authority::Authority;
pub use certificate::Certificate;
pub use client::{Acks, Event, Subscriber};
pub use dial::Options;
pub use error::{Error, Result};
pub use fanout::{Fanout, FanoutOptions};
pub use metrics::Metrics;
pub use pem::Unusable;
pub use reservation::{Reservation, SnapshotReader, fetch_snapshot};
pub use role::{Gate, Role, Streaming};
pub use server::{BuildError, Options as ServerOptions, Outcome, Server};
pub use snapshot::{SnapshotBytes, SnapshotSource};
pub use wire::{Backup, Refusal, SnapshotInfo, Welcome};
