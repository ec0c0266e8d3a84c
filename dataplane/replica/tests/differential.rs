//! Scans by SQL against scans by brute force, for every scan that hydrating and advancing random queries asks for.
//!
//! `ZERO_SEED=n` replays one world, `ZERO_WORLDS=n` sets how many are tried.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use ivm::generators::{Rng, World};
use ivm::memory::MemorySource;
use ivm::source::{ScanArgs, ScanPlan, Source, SourceError};
use ivm::{Changes, Graph};
use replica::{Reader, Writer};
use rows::schema::{ColumnSpec, IndexSpec};
use rows::{Batch, Cell, Change, ColumnType, Key, Row, RowBuilder, Table, TableSpec, Transaction, Value, ValueRef};

use crate::fixture::{column, create, index, rows};

/// Seeds that found a fault once.
const PAST_FAILURES: [u64; 0] = [];

/// Which forms of SQL were seen: a generator that never reaches one proves nothing about it.
#[derive(Default)]
struct Seen(BTreeMap<&'static str, u64>);

impl Seen {
    const FORMS: [&str; 6] =
        [" IN (SELECT t", "NOT IN (SELECT t", "EXISTS (SELECT 1", "zql_like(", " IS NULL OR ", ") > ("];

    fn note(&mut self, sql: &str) {
        for form in Self::FORMS {
            *self.0.entry(form).or_default() += u64::from(sql.contains(form));
        }
    }
}

struct Both<'a> {
    memory: &'a mut MemorySource,
    reader: &'a mut Reader,
    seen: &'a mut Seen,
    rng: Rng,
}

impl Both<'_> {
    fn compare(&mut self, plan: &ScanPlan, args: ScanArgs<'_>) -> Vec<Row> {
        let expected = rows(self.memory, plan, args);
        let found = rows(self.reader, plan, args);
        let statements = self.reader.explain(plan, args).unwrap();
        statements.iter().for_each(|(sql, _)| self.seen.note(sql));
        let same = expected.len() == found.len() && expected.iter().zip(&found).all(|(a, b)| a.same_cells(b));
        assert!(
            same,
            "plan {plan:#?}\nargs {args:?}\nexpected {expected:?}\nfound {found:?}\nstatements {statements:#?}"
        );
        expected
    }

    /// Scans that the engine might ask for in another situation.
    fn vary(&mut self, plan: &ScanPlan, args: ScanArgs<'_>, found: &[Row]) {
        let some_row = found.first().map(|_| self.rng.pick(found).clone());
        let positions: Vec<Key> = match some_row {
            Some(row) => vec![plan.order.position(&row), self.invent(plan)],
            None => vec![self.invent(plan)],
        };
        for position in &positions {
            let after = Some((position, self.rng.one_in(2)));
            let limit = if self.rng.one_in(2) { Some(self.rng.below(4) as u64) } else { None };
            let reverse = self.rng.one_in(2);
            self.compare(plan, ScanArgs { after, limit, reverse, ..args });
        }
        self.compare(plan, ScanArgs { reverse: true, ..args });
    }

    /// A position that no row need have; now and then with cells of a foreign class.
    fn invent(&mut self, plan: &ScanPlan) -> Key {
        let mut key = RowBuilder::new(plan.order.0.len());
        for &(column, _) in &plan.order.0 {
            let column = &plan.table.columns[column];
            let value = match self.rng.below(10) {
                0 if !column.not_null => ValueRef::Null,
                1 => {
                    *self.rng.pick(&[ValueRef::Bool(true), ValueRef::Int(1), ValueRef::Str("a"), ValueRef::Json("{}")])
                }
                n => match column.ty {
                    ColumnType::Bool => ValueRef::Bool(n > 5),
                    ColumnType::Int => ValueRef::Int(n as i64 - 4),
                    ColumnType::Float => ValueRef::Float(n as f64 / 2.0 - 2.0),
                    ColumnType::Str => ValueRef::Str(self.rng.pick::<&str>(&["", "a", "ab", "ž", "zz"])),
                    _ => ValueRef::Null,
                },
            };
            key.push(value);
        }
        key.finish_key()
    }
}

impl Source for Both<'_> {
    fn scan(
        &mut self,
        plan: &ScanPlan,
        args: ScanArgs<'_>,
        each: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        let found = self.compare(plan, args);
        self.vary(plan, args, &found);
        for row in found {
            if each(row).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn any(&mut self, plan: &ScanPlan, constraint: &Key) -> Result<bool, SourceError> {
        let expected = self.memory.any(plan, constraint).unwrap();
        assert_eq!(self.reader.any(plan, constraint).unwrap(), expected, "plan {plan:#?} constraint {constraint:?}");
        Ok(expected)
    }
}

#[test]
fn sql_and_memory_agree_on_every_scan() {
    let mut seen = Seen::default();
    if let Ok(seed) = std::env::var("ZERO_SEED") {
        run(seed.parse().unwrap(), &mut seen);
        return;
    }
    let worlds: u64 = std::env::var("ZERO_WORLDS").map_or(150, |n| n.parse().unwrap());
    for seed in PAST_FAILURES.into_iter().chain(0..worlds) {
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| run(seed, &mut seen))) {
            eprintln!("failed with ZERO_SEED={seed}");
            resume_unwind(cause);
        }
    }
    for form in Seen::FORMS {
        assert!(seen.0[form] > 0, "no scan had '{form}'");
    }
}

fn run(seed: u64, seen: &mut Seen) {
    let mut world = World::new(seed);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let mut rng = Rng::new(seed ^ 0x5eed);
    let specs: BTreeMap<Arc<str>, Arc<TableSpec>> = world
        .schema()
        .tables
        .values()
        .enumerate()
        .map(|(i, table)| (Arc::clone(&table.name), Arc::new(spec(&mut rng, i as u32 + 1, table))))
        .collect();
    let replica = create(&path, &specs.values().cloned().collect::<Vec<_>>());
    let mut writer = replica.writer().unwrap();
    let mut reader = replica.reader().unwrap();
    let mut memory = MemorySource::new();
    let populated = world.populate();
    memory.apply(&populated);
    apply(&mut writer, &specs, &populated);
    if rng.one_in(2) {
        // With statistics other plans are chosen.
        invent_statistics(&path, &mut rng);
        reader = replica.reader().unwrap();
    }
    reader.begin().unwrap();
    let mut both = Both { memory: &mut memory, reader: &mut reader, seen, rng: Rng::new(seed) };
    let mut graphs = Vec::new();
    for _ in 0..4 {
        let (query, keys) = (world.query(), world.keys());
        let schema = Arc::clone(world.schema());
        let mut graph = Graph::build(&query, &schema, &|table| keys.of(table)).unwrap();
        graph.hydrate(&mut both, &mut |_| {}).unwrap();
        graphs.push(graph);
    }
    both.reader.end();
    for _ in 0..3 {
        let expected = world.transaction();
        let Some(batch) = apply(&mut writer, &specs, &expected) else { continue };
        check_batch(&expected, &batch);
        both.memory.apply(&expected);
        both.reader.begin().unwrap();
        let changes = Changes::merge(&[batch]);
        for graph in &mut graphs {
            graph.advance(&mut both, &changes).unwrap();
        }
        both.reader.end();
    }
}

/// Statistics of tables of all sizes, so that every plan is tried on some of them.
fn invent_statistics(path: &std::path::Path, rng: &mut Rng) {
    let conn = rusqlite::Connection::open(path).unwrap();
    conn.execute_batch("ANALYZE").unwrap();
    let names: Vec<String> = {
        let mut statement =
            conn.prepare("SELECT idx FROM sqlite_stat1 WHERE tbl LIKE 't%' AND idx IS NOT NULL").unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    for name in names {
        let mut numbers = vec![*rng.pick(&[1_u32, 4, 10, 30, 1000, 3000, 1_000_000])];
        for _ in name.split('_').skip(1) {
            let last = numbers[numbers.len() - 1];
            numbers.push((last / rng.pick(&[1, 2, 10, 1000])).max(1));
        }
        let stat = numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        conn.execute("UPDATE sqlite_stat1 SET stat = ? WHERE idx = ?", [&stat, &name]).unwrap();
    }
}

/// The upstream table that clients see as `table`, with some more indexes.
fn spec(rng: &mut Rng, oid: u32, table: &Table) -> TableSpec {
    let mut columns: Vec<ColumnSpec> =
        table.columns.iter().enumerate().map(|(i, c)| column(i as i16 + 1, &c.name, c.ty, c.not_null)).collect();
    for column in columns.iter_mut().filter(|c| c.ty == ColumnType::Float) {
        // Of a type that is never NaN, so that NOT NULL means here what it means upstream.
        column.type_name = "timestamptz".to_owned();
    }
    let names = |positions: &[usize]| positions.iter().map(|&p| &*table.columns[p].name).collect::<Vec<&str>>();
    let mut indexes: Vec<IndexSpec> =
        table.unique_keys.iter().enumerate().map(|(i, k)| index(&format!("u{i}"), true, &names(k))).collect();
    for i in 0..rng.below(4) {
        let columns = (0..=rng.below(2))
            .map(|_| (rng.pick(&table.columns).name.to_string(), rng.one_in(3)))
            .collect::<BTreeMap<_, _>>();
        indexes.push(IndexSpec { name: format!("i{i}"), unique: false, columns: columns.into_iter().collect() });
    }
    let key = names(&table.key);
    crate::fixture::table(oid, &table.name, columns, &key, indexes)
}

fn apply(writer: &mut Writer, specs: &BTreeMap<Arc<str>, Arc<TableSpec>>, batch: &Batch) -> Option<Arc<Batch>> {
    let mut changes = Vec::new();
    for part in &batch.tables {
        let spec = &specs[&part.table.name];
        let key = |row: &Row| part.table.key.iter().map(|&k| cell(row.get(k))).collect::<Vec<Cell>>();
        let all = |row: &Row| row.iter().map(cell).collect::<Vec<Cell>>();
        for change in &part.rows {
            let table = Arc::clone(spec);
            changes.push(match (&change.old, &change.new) {
                (None, Some(new)) => Change::Insert { table, new: all(new) },
                (Some(_), Some(new)) => Change::Update { table, key: None, new: all(new) },
                (Some(old), None) => Change::Delete { table, key: key(old) },
                (None, None) => unreachable!("a change has a side"),
            });
        }
    }
    // Identity columns ascend with the spec's key, which the fixture takes from the table's.
    let version = rows::Version::new(batch.version.as_u64() + 1);
    writer.apply(&[Transaction { version, commit_time_us: 0, changes }]).unwrap()
}

fn cell(value: ValueRef<'_>) -> Cell {
    match value.to_owned() {
        Value::Null => Cell::Null,
        Value::Bool(b) => Cell::Bool(b),
        Value::Int(i) => Cell::Int(i),
        Value::Float(f) => Cell::Float(f),
        Value::Str(s) | Value::Json(s) => Cell::Text(s),
    }
}

/// The replica reports the changes that were made, except those that changed nothing.
fn check_batch(expected: &Batch, found: &Batch) {
    let flat = |batch: &Batch| {
        let mut all: Vec<String> = Vec::new();
        for part in &batch.tables {
            let real = part.rows.iter().filter(|c| match (&c.old, &c.new) {
                (Some(a), Some(b)) => !a.same_cells(b),
                _ => true,
            });
            all.extend(real.map(|c| format!("{} {:?} -> {:?}", part.table.name, c.old, c.new)));
        }
        all.sort();
        all
    };
    assert_eq!(flat(expected), flat(found));
}
