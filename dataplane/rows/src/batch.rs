//! What one replica commit changed: published by the writer, consumed by every query graph.
//!
//! Invariant: a batch for version v equals the difference between the replica at v and at the version before it. Every row occurs
//! at most once per table.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::row::Row;
use crate::schema::Table;
use crate::version::Version;

/// The tables that queries can see at some version, by wire name, with the reasons why others cannot be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schema {
    pub tables: BTreeMap<Arc<str>, Arc<Table>>,
    /// Replicated tables without a usable key: wire name and reason.
    pub hidden: BTreeMap<Arc<str>, String>,
}

/// One commit of the replica.
#[derive(Clone, Debug)]
pub struct Batch {
    pub version: Version,
    /// The version before this commit.
    pub previous: Version,
    /// Commit time upstream, microseconds since the Unix epoch.
    pub commit_time_us: i64,
    pub tables: Vec<TableBatch>,
    /// The schema from this version on, if the transaction changed it.
    pub schema: Option<Arc<Schema>>,
}

#[derive(Clone, Debug)]
pub struct TableBatch {
    pub table: Arc<Table>,
    /// The contents changed as a whole (truncated, altered, backfilled): `rows` is not the difference, and graphs that read the
    /// table re-hydrate.
    pub reset: bool,
    pub rows: Vec<RowChange>,
}

/// Old and new state of the row with one replica key ([`Table::key`]); at least one side is present.
#[derive(Clone, Debug)]
pub struct RowChange {
    pub old: Option<Row>,
    pub new: Option<Row>,
}
