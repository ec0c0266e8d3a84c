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

impl Query {
    /// Bytes held by the tree.
    #[must_use]
    pub fn memory(&self) -> usize {
        let start = self.start.as_ref().map_or(0, |start| start.row.iter().map(|(name, v)| cell(name, v)).sum());
        let order: usize = self.order_by.iter().map(|(name, _)| text(name)).sum();
        let related: usize = self.related.iter().map(Related::memory).sum();
        size_of::<Query>() + text(&self.table) + start + order + self.filter.memory() + related
    }
}

impl Related {
    fn memory(&self) -> usize {
        self.parent.iter().chain(&self.child).map(|name| text(name)).sum::<usize>() + self.query.memory()
    }
}

impl Condition {
    fn memory(&self) -> usize {
        let within = match self {
            Condition::And(all) | Condition::Or(all) => all.iter().map(Condition::memory).sum(),
            Condition::Compare { column, value: Literal::One(one), .. } => cell(column, one),
            Condition::Compare { column, value: Literal::Many(many), .. } => {
                text(column) + many.iter().map(value).sum::<usize>()
            }
            Condition::Exists { related, .. } => related.memory(),
        };
        size_of::<Condition>() + within
    }
}

fn cell(name: &str, of: &Value) -> usize {
    text(name) + value(of)
}

fn text(text: &str) -> usize {
    size_of::<String>() + text.len()
}

fn value(value: &Value) -> usize {
    let text = match value {
        Value::Str(text) | Value::Json(text) => text.len(),
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => 0,
    };
    size_of::<Value>() + text
}
