//! The CVR database: what must survive a restart so that a client with a cookie is sent the difference only.
//!
//! * `groups`: one record per client group: clients, desired queries, which lineage each got query is served from. Written
//!   when these change, never per poke.
//! * `lineages`: one per materialisation: a base row set at a version. `deltas`: what changed since, one row per version in
//!   which the materialisation changed, appended for all materialisations of the node in one statement per flush.
//!
//! Cost is by distinct query and by changed row, never by (groups x rows).
//!
//! Invariant: flushes are applied in order and each is one transaction; [`Event::Flushed`] is reported after the
//! commit. While the database is away, flushes wait and are retried: nothing is dropped, and nothing that depends on them is sent.

mod sql;
mod task;

use rows::{Cookie, Version};
use rustc_hash::FxHashMap;

use crate::row_id::RowId;

pub use sql::prepare;
pub use task::{Connector, Metrics, Store, spawn};

/// Identifies the stored history of one materialisation.
pub type LineageId = i64;

/// One unit of durability: everything a set of pokes depends on.
#[derive(Debug, Default)]
pub struct Flush {
    /// New lineages, or lineages whose history starts anew.
    pub lineages: Vec<Lineage>,
    pub deltas: Vec<Delta>,
    /// Group records, as JSON text.
    pub groups: Vec<GroupRow>,
}

impl Flush {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lineages.is_empty() && self.deltas.is_empty() && self.groups.is_empty()
    }
}

#[derive(Debug)]
pub struct Lineage {
    pub id: LineageId,
    /// The materialisation's key.
    pub key: String,
    pub version: Version,
    pub base: Vec<u8>,
}

#[derive(Debug)]
pub struct Delta {
    pub lineage: LineageId,
    pub version: Version,
    pub entries: Vec<u8>,
}

#[derive(Debug)]
pub struct GroupRow {
    pub id: String,
    pub record: String,
}

/// What the store tells the views.
#[derive(Debug)]
pub enum Event {
    /// Everything up to this flush number is durable.
    Flushed {
        up_to: u64,
    },
    Group {
        id: String,
        record: Option<String>,
    },
    /// The latest row set of a lineage; `None` when it is unknown or damaged.
    RowSet {
        lineage: LineageId,
        rows: Option<FxHashMap<RowId, Version>>,
    },
    Touched(Touched),
}

/// Rows of a lineage that a client at `since` may hold in another state than the present one.
#[derive(Debug)]
pub struct Touched {
    pub lineage: LineageId,
    pub since: Cookie,
    /// `None`: the stored history does not reach back so far.
    pub rows: Option<Vec<RowId>>,
}

/// Questions of the views; answered by an [`Event`] each, in any order.
#[derive(Debug)]
pub enum Request {
    Group {
        id: String,
    },
    RowSet {
        lineage: LineageId,
    },
    /// Rows that changed after `since`; with `held`, also all rows that were in the set then.
    Touched {
        lineage: LineageId,
        since: Cookie,
        held: bool,
    },
}
