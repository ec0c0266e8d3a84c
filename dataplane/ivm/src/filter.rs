//! A compiled filter: columns are positions, literals have the column's class, constants are folded.

use std::sync::Arc;

use rows::Value;

use crate::like::Pattern;
use crate::query::Op;
use crate::source::ScanPlan;

#[derive(Debug)]
pub enum Filter {
    /// Empty is true.
    And(Vec<Filter>),
    /// Empty is false.
    Or(Vec<Filter>),
    /// `op` is never one of `In`, `Like` and their kin. `value` is null only for `Is`/`IsNot`.
    Compare {
        column: usize,
        op: Op,
        value: Value,
    },
    /// `negated` is NOT IN; a null cell matches neither. Values are non-null, of the column's class,
    /// and ascend. Shared by all plans of a query.
    In {
        column: usize,
        negated: bool,
        values: Arc<[Value]>,
    },
    /// `negated` is NOT LIKE; a null cell matches neither. The column holds strings.
    Like {
        column: usize,
        negated: bool,
        pattern: Arc<Pattern>,
    },
    Exists(Exists),
}

#[derive(Debug)]
pub struct Exists {
    /// Index of the condition within its graph, for memory of what changed.
    pub id: usize,
    pub negated: bool,
    /// Columns of the parent row, pairwise equal to `plan.constraint` of the child. A null parent cell means no children.
    pub parent: Vec<usize>,
    /// The child level: constraint = child columns, filter with nested EXISTS; no start, order = row key.
    pub plan: Arc<ScanPlan>,
}
