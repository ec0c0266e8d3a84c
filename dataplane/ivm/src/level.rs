//! The fixed part of a graph: what is scanned, joined and counted at each level.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rows::{Key, Row, RowChange, Value};

use crate::correlation::Correlation;
use crate::delta::KeyedTable;
use crate::source::ScanPlan;

/// Everything about a query that does not change while it lives.
#[derive(Debug)]
pub(crate) struct Program {
    pub tables: Vec<Arc<KeyedTable>>,
    /// Parents before children; empty if the query can never have a row.
    pub levels: Vec<Level>,
    /// Every EXISTS condition, inner ones before outer ones.
    pub exists: Vec<ExistsNode>,
}

#[derive(Debug)]
pub(crate) struct Level {
    pub rows: Arc<Selection>,
    /// At least 1.
    pub limit: Option<u64>,
    pub parent: Option<Parent>,
    pub children: Vec<usize>,
}

#[derive(Debug)]
pub(crate) struct Parent {
    pub level: usize,
    pub correlation: Arc<Correlation>,
}

#[derive(Debug)]
pub(crate) struct ExistsNode {
    /// The rows that the condition looks for.
    pub rows: Arc<Selection>,
    pub correlation: Arc<Correlation>,
    /// Whether a sample of them is part of the result.
    pub sampled: bool,
}

/// Rows of one table, filtered and ordered: those of a level, or those that an EXISTS looks for.
#[derive(Debug)]
pub(crate) struct Selection {
    /// Index into [`Program::tables`].
    pub table: usize,
    pub plan: Arc<ScanPlan>,
    /// `plan` with every EXISTS taken as true: finds the rows whatever their conditions say now.
    pub relaxed: Arc<ScanPlan>,
    /// The EXISTS conditions of the filter.
    pub conditions: Vec<Condition>,
    /// Columns that the filter reads, conditions included, ascending.
    pub reads: Vec<usize>,
    /// Columns whose value is the same in every row that can be selected, ascending: by the filter, or because the parent's is
    /// constant.
    pub constants: Vec<(usize, Value)>,
}

#[derive(Debug)]
pub(crate) struct Condition {
    /// Index into [`Program::exists`].
    pub exists: usize,
    /// Finds the rows of the selection that join a given key of the condition.
    pub dependents: ScanPlan,
}

impl Level {
    /// The partition to which a row belongs; `None` when it joins nothing.
    pub fn partition_of(&self, row: &Row) -> Option<Key> {
        match &self.parent {
            Some(parent) => parent.correlation.of_child(row),
            None => Some(row.key(&[])),
        }
    }
}

impl ExistsNode {
    /// Whether a change alters any cell that the condition reads, inner conditions aside.
    pub fn reads(&self, change: &RowChange) -> bool {
        let (Some(old), Some(new)) = (&change.old, &change.new) else { return true };
        !self.rows.reads_same(old, new) || self.correlation.child.iter().any(|&c| old.get(c) != new.get(c))
    }
}

impl Selection {
    /// Whether the row lies behind the query's start.
    pub fn started(&self, row: &Row) -> bool {
        self.plan.start.as_ref().is_none_or(|start| {
            let order = self.plan.order.compare_to_position(row, &start.position);
            order.is_gt() || (start.inclusive && order.is_eq())
        })
    }

    /// Whether the filter cannot tell the two rows apart, as far as their own cells go.
    pub fn reads_same(&self, a: &Row, b: &Row) -> bool {
        self.reads.iter().all(|&c| a.get(c) == b.get(c))
    }

    /// Whether a row has the constants of the selection: a cheap first test.
    pub fn has_constants(&self, row: &Row) -> bool {
        self.constants.iter().all(|(column, value)| row.get(*column).eq_join(value.as_ref()))
    }
}

/// A number for a new [`ScanPlan`].
pub(crate) fn next_plan_id() -> u64 {
    // Only uniqueness matters.
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
