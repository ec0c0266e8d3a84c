//! View-syncing: which client group is served from which query, and what every client must be told when.
//!
//! One thread owns everything here (`core`); around it are threads that hydrate, two tasks that talk to the CVR database, and
//! futures that ask the API server. They only exchange events, so nothing is locked and every decision has one place.
//!
//! The unit of work is a step: the thread opens the newest snapshot, brings every affected materialisation to its version,
//! builds the pokes, and hands the frames to the sockets' queues; the ends of pokes wait until what they stand on is durable.
//!
//! Several nodes share the CVR database; each serves the client groups that it owns (`ownership`).
//!
//! Where to look: `door`, `connections`, `join` and `transform` take what clients and the API server say; `rules` restricts what clients define; `step` moves everything from
//! version to version; `materialisations`, `lineage` and `tidy` keep what queries have; `deliver` and `catch_up` decide what a
//! client is sent, `backlog` when, `spool` holds it until then; `store` makes it durable, `drain` ends it; `relief` says what
//! gives way when memory is short.
//!
//! Must not know: sockets, HTTP, Postgres' replication, how rows are stored. Knows SQL only in `store`.
//!
//! Invariants:
//! * A client's view moves from cookie to cookie; cookies of a group never go back, and all queries of a group move together.
//! * A client-defined query yields what the permissions of the version allow its user, and what a rule looked at is sent to nobody.
//! * The CVR is durable before the end of a poke that depends on it is sent.
//! * Nobody whose credentials were not found good changes, claims or sees anything of a client group.
//! * What a client is owed is bounded in memory, whatever its size and however slowly it reads.
//! * Work per step is by affected materialisation and by changed row, and for groups by what changed for them.

mod admission;
pub mod api;
mod backlog;
mod batches;
mod body;
mod budget;
mod catch_up;
mod connection;
mod connections;
mod convert;
mod core;
mod decide;
mod deliver;
mod door;
mod drain;
mod encode;
mod group;
mod hydrate;
mod indexes;
mod join;
pub mod limits;
mod lineage;
mod materialisation;
mod materialisations;
pub mod metrics;
mod mutations;
mod outgoing;
mod ownership;
mod payload;
mod relief;
mod row_id;
mod rules;
mod spool;
mod step;
pub mod store;
mod tidy;
mod transform;
mod turns;
mod unflushed;

pub use crate::batches::Batches;
pub use crate::core::{Ending, Options, Started, start, start_within};
pub use crate::indexes::Wanted;
pub use crate::turns::Turns;
