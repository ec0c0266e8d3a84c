//! A database of integer tables, queries in a few words, and deltas as text.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use ivm::memory::MemorySource;
use ivm::query::{Condition, Literal, Op, Query, Related};
use ivm::source::{ScanArgs, ScanPlan, Source, SourceError};
use ivm::{BuildError, Changes, Delta, Graph};
use rows::{
    Batch, Column, ColumnType, Direction, Row, RowBuilder, RowChange, Schema, Table, TableBatch, Value, ValueRef,
    Version,
};

/// A cell; `N` is null.
pub const N: i64 = i64::MIN;

pub struct Db {
    pub schema: Schema,
    pub source: Counting,
    version: u64,
}

/// A write: table, cells (`Put`) or key (`Del`).
#[derive(Clone, Copy, Debug)]
pub enum Write<'a> {
    Put(&'a str, &'a [i64]),
    Del(&'a str, i64),
}

pub use Write::{Del, Put};

/// Counts scans, so that tests can say what an advance may ask.
pub struct Counting {
    pub memory: MemorySource,
    pub scans: Cell<usize>,
}

impl Source for Counting {
    fn scan(
        &mut self,
        plan: &ScanPlan,
        args: ScanArgs<'_>,
        each: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        self.scans.set(self.scans.get() + 1);
        self.memory.scan(plan, args, each)
    }
}

/// A table with nullable integer columns, the first of which is the key.
pub fn table(name: &str, columns: &[&str]) -> Arc<Table> {
    let columns = columns
        .iter()
        .enumerate()
        .map(|(i, name)| Column { name: (*name).into(), ty: ColumnType::Int, not_null: i == 0 })
        .collect();
    Arc::new(Table { name: name.into(), columns, key: vec![0], unique_keys: vec![vec![0]], indexes: vec![vec![0]] })
}

impl Db {
    pub fn new(tables: &[(&str, &[&str])]) -> Db {
        let tables = tables.iter().map(|(name, columns)| table(name, columns));
        let schema = Schema { tables: tables.map(|t| (Arc::clone(&t.name), t)).collect(), hidden: BTreeMap::new() };
        Db { schema, source: Counting { memory: MemorySource::new(), scans: Cell::new(0) }, version: 0 }
    }

    /// Commits writes of distinct rows as one transaction.
    pub fn commit(&mut self, writes: &[Write<'_>]) -> Arc<Batch> {
        let previous = Version::new(self.version);
        self.version += 1;
        let version = Version::new(self.version);
        let mut tables: BTreeMap<&str, Vec<RowChange>> = BTreeMap::new();
        for write in writes {
            let (name, key) = match write {
                Put(name, cells) => (*name, cells[0]),
                Del(name, key) => (*name, *key),
            };
            let old = self.source.memory.rows(name).find(|row| row.get(0) == ValueRef::Int(key)).cloned();
            let new = match write {
                Put(_, cells) => Some(row(cells, version)),
                Del(..) => None,
            };
            tables.entry(name).or_default().push(RowChange { old, new });
        }
        let tables = tables
            .into_iter()
            .map(|(name, rows)| TableBatch { table: Arc::clone(&self.schema.tables[name]), reset: false, rows })
            .collect();
        let batch = Arc::new(Batch { version, previous, commit_time_us: 0, tables, schema: None });
        self.source.memory.apply(&batch);
        batch
    }

    pub fn build(&self, query: &Query) -> Result<Graph, BuildError> {
        Graph::build(query, &self.schema, &|table| table.key.clone())
    }

    /// A hydrated graph and its rows as text.
    pub fn hydrate(&mut self, query: &Query) -> (Graph, String) {
        let mut graph = self.build(query).unwrap();
        let mut delta = Delta::default();
        graph.hydrate(&mut self.source, &mut |put| delta.puts.push(put)).unwrap();
        delta.puts.sort_by_key(|put| text(&put.table.table, &put.row));
        (graph, show(&delta))
    }

    /// Commits, advances, checks the books; the delta as text and the number of scans.
    pub fn advance(&mut self, graph: &mut Graph, writes: &[Write<'_>]) -> (String, usize) {
        let batch = self.commit(writes);
        self.source.scans.set(0);
        let delta = graph.advance(&mut self.source, &Changes::merge(&[batch])).unwrap();
        let scans = self.source.scans.get();
        graph.verify(&mut self.source).unwrap();
        (show(&delta), scans)
    }
}

pub fn row(cells: &[i64], version: Version) -> Row {
    let mut row = RowBuilder::new(cells.len());
    for &cell in cells {
        row.push(if cell == N { ValueRef::Null } else { ValueRef::Int(cell) });
    }
    row.finish(version)
}

/// `+issue(1,9)` for a put, `-c(10)` for a delete.
pub fn show(delta: &Delta) -> String {
    let dels = delta.dels.iter().map(|d| {
        let cells: Vec<String> = d.key.iter().map(cell).collect();
        format!("-{}({})", d.table.table.name, cells.join(","))
    });
    let puts = delta.puts.iter().map(|p| format!("+{}", text(&p.table.table, &p.row)));
    dels.chain(puts).collect::<Vec<_>>().join(" ")
}

fn text(table: &Table, row: &Row) -> String {
    format!("{}({})", table.name, row.iter().map(cell).collect::<Vec<_>>().join(","))
}

fn cell(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "null".to_owned(),
        ValueRef::Int(i) => i.to_string(),
        other => format!("{other:?}"),
    }
}

pub fn from(table: &str) -> Query {
    Query {
        table: table.to_owned(),
        filter: Condition::And(Vec::new()),
        order_by: Vec::new(),
        start: None,
        limit: None,
        related: Vec::new(),
    }
}

/// Words that make queries read like queries.
pub trait Words {
    fn filter(self, condition: Condition) -> Query;
    fn order(self, column: &str, direction: Direction) -> Query;
    fn limit(self, limit: u64) -> Query;
    fn related(self, parent: &str, child: &str, query: Query) -> Query;
}

impl Words for Query {
    fn filter(mut self, condition: Condition) -> Query {
        self.filter = condition;
        self
    }

    fn order(mut self, column: &str, direction: Direction) -> Query {
        self.order_by.push((column.to_owned(), direction));
        self
    }

    fn limit(mut self, limit: u64) -> Query {
        self.limit = Some(limit);
        self
    }

    fn related(mut self, parent: &str, child: &str, query: Query) -> Query {
        self.related.push(join(parent, child, query));
        self
    }
}

pub fn join(parent: &str, child: &str, query: Query) -> Related {
    Related { parent: vec![parent.to_owned()], child: vec![child.to_owned()], query }
}

pub fn compare(column: &str, op: Op, value: i64) -> Condition {
    let value = if value == N { Value::Null } else { Value::Int(value) };
    Condition::Compare { column: column.to_owned(), op, value: Literal::One(value) }
}

pub fn exists(parent: &str, child: &str, query: Query) -> Condition {
    Condition::Exists { negated: false, synced: true, related: Box::new(join(parent, child, query)) }
}

pub fn not_exists(parent: &str, child: &str, query: Query) -> Condition {
    Condition::Exists { negated: true, synced: true, related: Box::new(join(parent, child, query)) }
}

/// EXISTS of a permission rule: its rows stay here.
pub fn permitted(parent: &str, child: &str, query: Query) -> Condition {
    Condition::Exists { negated: false, synced: false, related: Box::new(join(parent, child, query)) }
}
