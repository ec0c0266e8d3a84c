//! The engine's own query tree. Names are server names; static parameters are bound; nothing here is serialisable.

use rows::{Direction, Value};

/// One level of a query: rows of a table, filtered, ordered, skipped, limited, with related levels below.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    pub table: String,
    pub filter: Condition,
    /// May be empty or lack key columns; the builder completes it with the row key, ascending.
    pub order_by: Vec<(String, Direction)>,
    pub start: Option<Start>,
    pub limit: Option<u64>,
    pub related: Vec<Related>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    /// Columns absent here count as null.
    pub row: Vec<(String, Value)>,
    pub exclusive: bool,
}

/// An equality join: `parent[i] = child[i]` for all i; null joins nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Related {
    pub parent: Vec<String>,
    pub child: Vec<String>,
    pub query: Query,
}

/// `And(vec![])` is true, `Or(vec![])` is false.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    And(Vec<Condition>),
    Or(Vec<Condition>),
    Compare {
        column: String,
        op: Op,
        value: Literal,
    },
    Exists {
        negated: bool,
        /// Rows matched by this condition reach clients (up to [`EXISTS_SAMPLE`] per parent), so that they can evaluate
        /// it. False for permission rules, whose rows never leave the server.
        synced: bool,
        related: Box<Related>,
    },
}

/// How many rows of an EXISTS subquery are synced per parent: the first ones by row key, so that every node picks the same.
pub const EXISTS_SAMPLE: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Eq,
    Ne,
    Is,
    IsNot,
    Lt,
    Gt,
    Le,
    Ge,
    Like,
    NotLike,
    ILike,
    NotILike,
    In,
    NotIn,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    One(Value),
    /// For `In` and `NotIn`.
    Many(Vec<Value>),
}
