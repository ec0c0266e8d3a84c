//! What the engine asks of storage: ordered, filtered scans of one table at one version.
//!
//! A [`ScanPlan`] is built once per level of a graph and reused with different [`ScanArgs`]; a source caches what it
//! compiles (SQL text) by [`ScanPlan::id`]. A source evaluates the whole filter, nested EXISTS included, so that storage can
//! choose indexes; [`crate::filter`] defines the meaning, and both must agree on every row.

use std::ops::ControlFlow;
use std::sync::Arc;

use rows::{Key, Row, SortKey, Table};

use crate::filter::Filter;

/// A fixed access to one table.
#[derive(Debug)]
pub struct ScanPlan {
    /// Unique in the process.
    pub id: u64,
    pub table: Arc<Table>,
    /// Columns that must equal the cells of [`ScanArgs::constraint`]; empty for a root.
    pub constraint: Vec<usize>,
    pub filter: Filter,
    /// Complete: ends with the columns of a unique key.
    pub order: SortKey,
    /// The query's `start`: only rows after it (or at it, when inclusive) in `order` are seen, whatever the direction.
    pub start: Option<Start>,
}

/// A position in the plan's order: one cell per ordering column.
#[derive(Clone, Debug)]
pub struct Start {
    pub position: Key,
    pub inclusive: bool,
}

/// The variable part of a scan.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanArgs<'a> {
    /// One cell per column of [`ScanPlan::constraint`]; present iff that is not empty. Never has a null.
    pub constraint: Option<&'a Key>,
    /// Only rows that follow this position in scan direction (the position's own row too, when inclusive).
    pub after: Option<(&'a Key, bool)>,
    /// Scan in the opposite of `order`.
    pub reverse: bool,
    /// Stop after so many rows.
    pub limit: Option<u64>,
}

/// Storage failed; the message names the table and the cause.
#[derive(Debug, thiserror::Error)]
#[error("scan {table}: {message}")]
pub struct SourceError {
    pub table: String,
    pub message: String,
}

/// One version of the base tables.
pub trait Source {
    /// Calls `each` with every row that the scan selects, in order, until it breaks.
    fn scan(
        &mut self,
        plan: &ScanPlan,
        args: ScanArgs<'_>,
        each: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), SourceError>;

    /// Whether the scan selects any row: what EXISTS asks.
    fn any(&mut self, plan: &ScanPlan, constraint: &Key) -> Result<bool, SourceError> {
        let mut found = false;
        let args = ScanArgs { constraint: Some(constraint), limit: Some(1), ..ScanArgs::default() };
        self.scan(plan, args, &mut |_| {
            found = true;
            ControlFlow::Break(())
        })?;
        Ok(found)
    }
}
