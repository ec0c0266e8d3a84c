//! What the engine itself costs, with a source that answers from memory at once: hydration per row, a step per change, routing
//! over many graphs.
//!
//! `cargo bench -p ivm`; `-- --check` runs everything on little data, to see that it works.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use ivm::query::{Condition, Literal, Op, Query, Related};
use ivm::source::{ScanArgs, ScanPlan, Source, SourceError};
use ivm::{Changes, Graph, Router};
use rows::{
    Batch, Column, ColumnType, Direction, Row, RowBuilder, RowChange, Schema, Table, TableBatch, Value, ValueRef,
    Version,
};

/// Issues in order of their ids, comments by issue; filters and orders of the queries below are those.
struct Tracker {
    issues: Vec<Row>,
    comments: HashMap<i64, Vec<Row>>,
}

impl Source for Tracker {
    fn scan(
        &mut self,
        plan: &ScanPlan,
        args: ScanArgs<'_>,
        each: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        let key = args.constraint.map(|key| match key.get(0) {
            ValueRef::Int(i) => i,
            other => unreachable!("keys are integers, not {other:?}"),
        });
        let rows: &[Row] = match (&*plan.table.name, key) {
            ("issue", None) => &self.issues,
            ("issue", Some(id)) => std::slice::from_ref(&self.issues[id as usize]),
            (_, Some(id)) => self.comments.get(&id).map_or(&[], Vec::as_slice),
            (_, None) => unreachable!("comments are only read by issue"),
        };
        let pinned = match &plan.filter {
            ivm::filter::Filter::Compare { column: 0, value: Value::Int(id), .. } => Some(*id as usize),
            _ => None,
        };
        let rows = pinned.map_or(rows, |id| &rows[id..=id]);
        for row in rows.iter().take(args.limit.map_or(usize::MAX, |l| l as usize)) {
            if each(row.clone()).is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn schema() -> Schema {
    let table = |name: &str, columns: &[(&str, ColumnType)]| {
        let columns = columns.iter().map(|(n, ty)| Column { name: (*n).into(), ty: *ty, not_null: true }).collect();
        let table =
            Table { name: name.into(), columns, key: vec![0], unique_keys: vec![vec![0]], indexes: vec![vec![0]] };
        (Arc::from(name), Arc::new(table))
    };
    let (int, text) = (ColumnType::Int, ColumnType::Str);
    let tables = [
        table("issue", &[("id", int), ("title", text), ("rank", int)]),
        table("comment", &[("id", int), ("issue", int), ("text", text)]),
    ];
    Schema { tables: tables.into_iter().collect(), ..Schema::default() }
}

fn row(cells: &[ValueRef<'_>], version: u64) -> Row {
    let mut row = RowBuilder::new(cells.len());
    cells.iter().for_each(|&cell| row.push(cell));
    row.finish(Version::new(version))
}

fn issue(id: i64, title: &str, version: u64) -> Row {
    row(&[ValueRef::Int(id), ValueRef::Str(title), ValueRef::Int(id % 100)], version)
}

fn comment(id: i64, issue: i64, version: u64) -> Row {
    row(&[ValueRef::Int(id), ValueRef::Int(issue), ValueRef::Str("a comment of middling length")], version)
}

fn from(table: &str, filter: Condition, limit: Option<u64>, related: Vec<Related>) -> Query {
    let order_by = vec![("id".to_owned(), Direction::Asc)];
    Query { table: table.to_owned(), filter, order_by, start: None, limit, related }
}

fn all() -> Condition {
    Condition::And(Vec::new())
}

fn is(column: &str, value: i64) -> Condition {
    Condition::Compare { column: column.to_owned(), op: Op::Eq, value: Literal::One(Value::Int(value)) }
}

fn comments() -> Vec<Related> {
    let query = from("comment", all(), None, Vec::new());
    vec![Related { parent: vec!["id".to_owned()], child: vec!["issue".to_owned()], query }]
}

struct Bench {
    schema: Schema,
    source: Tracker,
    rounds: u64,
}

impl Bench {
    fn changes(&self, table: &str, old: Option<Row>, new: Option<Row>) -> Changes {
        let table = Arc::clone(&self.schema.tables[table]);
        let part = TableBatch { table, reset: false, rows: vec![RowChange { old, new }] };
        let version = Version::new(9);
        let batch = Batch { version, previous: version, commit_time_us: 0, tables: vec![part], schema: None };
        Changes::merge(&[Arc::new(batch)])
    }

    fn hydrate(&mut self, query: &Query) -> Graph {
        let mut graph = Graph::build(query, &self.schema, &|table| table.key.clone()).expect("a valid query");
        graph.hydrate(&mut self.source, &mut |_| {}).expect("the source does not fail");
        graph
    }

    /// Two changes that undo each other, over and over.
    fn advance(&mut self, what: &str, graph: &mut Graph, there: &Changes, back: &Changes) {
        let begin = Instant::now();
        let mut rows = 0;
        for _ in 0..self.rounds {
            for changes in [there, back] {
                let delta = graph.advance(&mut self.source, changes).expect("the source does not fail");
                rows += delta.puts.len() + delta.dels.len();
            }
        }
        report(what, begin, self.rounds * 2);
        std::hint::black_box(rows);
    }
}

fn report(what: &str, begin: Instant, count: u64) {
    let nanos = begin.elapsed().as_nanos() as f64 / count as f64;
    println!("{what:<58} {nanos:>10.0} ns each");
}

fn main() {
    let check = std::env::args().any(|a| a == "--check");
    let issues: i64 = if check { 200 } else { 100_000 };
    let source = Tracker {
        issues: (0..issues).map(|id| issue(id, "a title", 1)).collect(),
        comments: (0..issues).map(|i| (i, (0..3).map(|n| comment(i * 3 + n, i, 1)).collect())).collect(),
    };
    let mut bench = Bench { schema: schema(), source, rounds: if check { 10 } else { 100_000 } };

    let whole = from("issue", all(), None, comments());
    let begin = Instant::now();
    let mut graph = bench.hydrate(&whole);
    report("hydrate issues with comments, per row", begin, graph.row_count() as u64);
    println!("{:<58} {:>10} bytes each", "memory, per row", graph.memory() / graph.row_count());

    let there = bench.changes("comment", None, Some(comment(-1, 5, 2)));
    let back = bench.changes("comment", Some(comment(-1, 5, 2)), None);
    bench.advance("a comment comes or goes", &mut graph, &there, &back);
    let there = bench.changes("issue", Some(issue(7, "a title", 1)), Some(issue(7, "another", 2)));
    let back = bench.changes("issue", Some(issue(7, "another", 2)), Some(issue(7, "a title", 1)));
    bench.advance("an issue is edited, all are synced", &mut graph, &there, &back);
    drop(graph);

    let mut graph = bench.hydrate(&from("issue", all(), Some(50), comments()));
    bench.advance("an issue is edited within a window of 50", &mut graph, &there, &back);
    let there = bench.changes("issue", None, Some(issue(issues, "new", 2)));
    let back = bench.changes("issue", Some(issue(issues, "new", 2)), None);
    bench.advance("an issue comes behind the window", &mut graph, &there, &back);
    let there = bench.changes("comment", None, Some(comment(-1, 100, 2)));
    let back = bench.changes("comment", Some(comment(-1, 100, 2)), None);
    bench.advance("a comment of an issue behind the window", &mut graph, &there, &back);

    for (what, limit, filtered) in [("lists of 50", Some(50), false), ("pages of one issue", None, true)] {
        let count = if check { 20 } else { 10_000_i64 };
        let mut router = Router::default();
        let graphs: Vec<Graph> = (0..count)
            .map(|i| {
                let filter = if filtered { is("id", i % issues) } else { all() };
                bench.hydrate(&from("issue", filter, limit, comments()))
            })
            .collect();
        for (id, graph) in graphs.iter().enumerate() {
            router.insert(id as u64, graph);
        }
        let changes = bench.changes("comment", None, Some(comment(-1, 100, 2)));
        let begin = Instant::now();
        let rounds = 1 + bench.rounds / 2000;
        let mut visited = 0;
        for _ in 0..rounds {
            for id in router.route(&changes) {
                visited += 1;
                std::hint::black_box(graphs[id as usize].affected_by(&changes));
            }
        }
        report(&format!("one comment against {count} {what} ({} visited)", visited / rounds), begin, rounds);
    }
}
