//! The incremental query engine: a query becomes a [`Graph`], which is hydrated once and then advanced from version to version.
//!
//! Set at a time, state to state. A graph at version S0 is advanced over the net changes of a batch to S1 in one pass over its
//! levels, parents before children. Rows are never pushed one by one, so there are no states in flight: a read sees S1 (the
//! source), or S0 (what the graph remembers, and the old rows of the batch), nothing in between. Order within a batch,
//! self joins and one table at several levels need no special care.
//!
//! What a graph keeps: for every row of its result the key, the version and a bit per level; for every related partition a
//! reference count, its size and, if a full limit cuts it, its last position. Never a copy of a row.
//!
//! Invariants:
//! * A graph at version v holds the same rows as one hydrated from scratch at v, and equal graphs give equal deltas: nothing
//!   depends on the order of a hash map.
//! * A row of a level is in exactly one partition of it; a partition is active iff rows of the parent level refer to it; no
//!   partition holds more rows than its limit.
//! * A failed call leaves the graph as it was.
//!
//! Knows no SQLite, no tokio, no clock, no serialisation; it blocks only in [`source::Source`].

mod advance;
mod affect;
mod build;
pub mod changes;
pub mod correlation;
pub mod delta;
pub mod eval;
mod exists;
pub mod filter;
mod fold;
#[cfg(feature = "generators")]
pub mod generators;
pub mod graph;
mod hydrate;
mod level;
pub mod like;
pub mod memory;
pub mod query;
pub mod router;
pub mod source;
mod state;
#[cfg(any(test, feature = "generators"))]
mod verify;
mod window;

pub use build::{BuildError, MAX_DEPTH, MAX_IN_VALUES, MAX_LEVELS};
pub use changes::{Changes, TableChanges};
pub use delta::{Del, Delta, KeyedTable, Put};
pub use graph::{AdvanceError, Graph, RehydrateReason};
pub use router::{GraphId, Router};
