//! Random transactions, schema changes included: the file equals a model of upstream, cell by cell; batches folded over the
//! former contents give the new ones; and all of it again after reopening.
//!
//! `ZERO_SEED=n` replays one run, `ZERO_RUNS=n` sets how many are tried.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;

use ivm::generators::Rng;
use replica::{Reader, Writer};
use rows::schema::ColumnSpec;
use rows::transaction::{AddedColumn, Backfill, SchemaChange};
use rows::{Batch, Cell, Change, ColumnType, Key, Row, TableSpec, Transaction, Version};
use rusqlite::types::Value as Stored;

use crate::fixture::{column, contents, create, index, open, table};

/// Seeds that found a fault once.
const PAST_FAILURES: [u64; 0] = [];
const STEPS: usize = 14;

/// Upstream: what the stream is made from.
struct Upstream {
    rng: Rng,
    tables: Vec<Upstreamed>,
    next_oid: u32,
    version: u64,
}

#[derive(Clone)]
struct Upstreamed {
    spec: Arc<TableSpec>,
    rows: Vec<Vec<Cell>>,
    next_attnum: i16,
}

impl Upstreamed {
    fn key_of(&self, row: &[Cell]) -> Vec<Cell> {
        self.cells(row, &self.spec.primary_key)
    }

    fn identity_of(&self, row: &[Cell]) -> Vec<Cell> {
        self.cells(row, &self.spec.identity)
    }

    fn cells(&self, row: &[Cell], names: &[String]) -> Vec<Cell> {
        names.iter().map(|n| row[self.spec.columns.iter().position(|c| c.name == *n).unwrap()].clone()).collect()
    }

    fn is_key(&self, column: &ColumnSpec) -> bool {
        self.spec.primary_key.contains(&column.name)
    }
}

fn cell(rng: &mut Rng, column: &ColumnSpec) -> Cell {
    if !column.not_null && rng.one_in(4) {
        return Cell::Null;
    }
    match column.ty {
        ColumnType::Bool => Cell::Bool(rng.one_in(2)),
        ColumnType::Int => Cell::Int(rng.below(12) as i64 - 2),
        ColumnType::Float => Cell::Float(*rng.pick(&[0.0, 1.0, 1.5, -3.25, 1e300])),
        ColumnType::Str => Cell::Text((*rng.pick(&["", "a", "A", "1", "1.0", "ž", "long long text"])).into()),
        ColumnType::Json => Cell::Text((*rng.pick(&["1", "null", "{\"a\": 1}", "\"x\"", "1.10"])).into()),
        ColumnType::Hidden => Cell::Bytes([rng.below(256) as u8, 0].into()),
    }
}

impl Upstream {
    fn new(seed: u64) -> Upstream {
        Upstream { rng: Rng::new(seed), tables: Vec::new(), next_oid: 1, version: 1 }
    }

    fn new_table(&mut self) -> Upstreamed {
        use ColumnType::{Bool, Float, Hidden, Int, Json, Str};
        let oid = self.next_oid;
        self.next_oid += 1;
        let rng = &mut self.rng;
        // Names that differ in case only are different tables upstream.
        let base = *rng.pick(&["item", "Item", "user", "order by"]);
        let name =
            if self.tables.iter().any(|t| t.spec.name == base) { format!("{base}{oid}") } else { base.to_owned() };
        let keys = rng.below(8).min(2);
        let mut columns = Vec::new();
        for i in 0..keys {
            let ty = *rng.pick(&[Int, Str]);
            columns.push(column(i as i16 + 1, &format!("k{i}"), ty, true));
        }
        for i in 0..=rng.below(4) {
            let ty = *rng.pick(&[Bool, Int, Float, Str, Json, Hidden]);
            columns.push(column(10 + i as i16, &format!("{}{i}", if rng.one_in(2) { "v" } else { "V" }), ty, false));
        }
        let key: Vec<String> = (0..keys).map(|i| format!("k{i}")).collect();
        let key: Vec<&str> = key.iter().map(String::as_str).collect();
        let mut spec = table(oid, &name, columns, &key, Vec::new());
        if keys == 0 {
            spec.indexes.clear();
        }
        if keys == 0 || rng.one_in(4) {
            spec.identity = spec.columns.iter().map(|c| c.name.clone()).collect();
        }
        let mut made = Upstreamed { spec: Arc::new(spec), rows: Vec::new(), next_attnum: 20 };
        for _ in 0..self.rng.below(6) {
            if let Some(row) = self.free_row(&made) {
                made.rows.push(row);
            }
        }
        made
    }

    fn free_row(&mut self, table: &Upstreamed) -> Option<Vec<Cell>> {
        let row: Vec<Cell> = table.spec.columns.iter().map(|c| cell(&mut self.rng, c)).collect();
        let key = table.key_of(&row);
        let taken = !key.is_empty() && table.rows.iter().any(|r| table.key_of(r) == key);
        (!taken).then_some(row)
    }

    fn transaction(&mut self) -> Transaction {
        self.version += 1 + self.rng.below(3) as u64;
        let count = 1 + self.rng.below(8);
        let changes = (0..count).filter_map(|_| self.change()).collect();
        Transaction { version: Version::new(self.version), commit_time_us: self.version as i64, changes }
    }

    fn change(&mut self) -> Option<Change> {
        if self.tables.is_empty() || self.rng.one_in(25) {
            let made = self.new_table();
            let rows = if made.rows.is_empty() && self.rng.one_in(2) {
                Backfill::None
            } else {
                Backfill::Rows(made.rows.clone())
            };
            let table = Arc::clone(&made.spec);
            self.tables.push(made);
            return Some(Change::Schema(SchemaChange::CreateTable { table, rows }));
        }
        let at = self.rng.below(self.tables.len());
        let mut now = self.tables[at].clone();
        let change = match self.rng.below(40) {
            0 => {
                let table = self.tables.remove(at).spec;
                return Some(Change::Schema(SchemaChange::DropTable { table }));
            }
            1 => {
                now.rows.clear();
                Some(Change::Truncate { tables: vec![Arc::clone(&now.spec)] })
            }
            2..=7 => self.alter(&mut now),
            8..=18 => self.free_row(&now).map(|new| {
                now.rows.push(new.clone());
                Change::Insert { table: Arc::clone(&now.spec), new }
            }),
            19..=32 => self.update(&mut now),
            _ if now.rows.is_empty() => None,
            _ => {
                let row = now.rows.swap_remove(self.rng.below(now.rows.len()));
                Some(Change::Delete { table: Arc::clone(&now.spec), key: now.identity_of(&row) })
            }
        };
        self.tables[at] = now;
        change
    }

    fn update(&mut self, table: &mut Upstreamed) -> Option<Change> {
        if table.rows.is_empty() {
            return None;
        }
        let at = self.rng.below(table.rows.len());
        let old = table.rows[at].clone();
        let mut new = old.clone();
        let full = table.spec.identity.len() == table.spec.columns.len();
        let rekey = self.rng.one_in(5);
        for (i, c) in table.spec.columns.iter().enumerate() {
            if if table.is_key(c) { rekey } else { self.rng.one_in(2) } {
                new[i] = cell(&mut self.rng, c);
            }
        }
        let (old_key, new_key) = (table.key_of(&old), table.key_of(&new));
        if old_key != new_key && table.rows.iter().any(|r| table.key_of(r) == new_key) {
            return None;
        }
        table.rows[at] = new.clone();
        let mut sent = new.clone();
        for (i, c) in table.spec.columns.iter().enumerate() {
            let toasted = matches!(c.ty, ColumnType::Str | ColumnType::Json | ColumnType::Hidden);
            if toasted && !table.is_key(c) && new[i] == old[i] && new[i] != Cell::Null && self.rng.one_in(2) {
                sent[i] = Cell::Unchanged;
            }
        }
        let key = (full || old_key != new_key).then(|| table.identity_of(&old));
        Some(Change::Update { table: Arc::clone(&table.spec), key, new: sent })
    }

    fn alter(&mut self, table: &mut Upstreamed) -> Option<Change> {
        let old = Arc::clone(&table.spec);
        let mut spec = (*old).clone();
        let mut added = Vec::new();
        let mut rows = Backfill::None;
        let full = spec.identity.len() == spec.columns.len();
        let plain: Vec<usize> = (0..spec.columns.len()).filter(|&i| !table.is_key(&spec.columns[i])).collect();
        match self.rng.below(8) {
            0 | 1 => {
                use ColumnType::{Bool, Float, Hidden, Int, Json, Str};
                let ty = *self.rng.pick(&[Bool, Int, Float, Str, Json, Hidden]);
                let attnum = table.next_attnum;
                table.next_attnum += 1;
                let made = column(attnum, &format!("a{attnum}"), ty, false);
                let value = cell(&mut self.rng, &made);
                table.rows.iter_mut().for_each(|r| r.push(value.clone()));
                if value != Cell::Null || self.rng.one_in(2) {
                    added.push(AddedColumn { name: made.name.clone(), value });
                }
                spec.columns.push(made);
            }
            2 if plain.len() > 1 => {
                let gone = *self.rng.pick(&plain);
                let name = spec.columns.remove(gone).name;
                table.rows.iter_mut().for_each(|r| drop(r.remove(gone)));
                spec.indexes.retain(|i| i.columns.iter().all(|(c, _)| *c != name));
                spec.identity.retain(|c| *c != name);
            }
            3 => {
                let at = self.rng.below(spec.columns.len());
                let to = format!("r{}_{}", self.version, spec.columns[at].attnum);
                let from = std::mem::replace(&mut spec.columns[at].name, to.clone());
                let lists = spec.primary_key.iter_mut().chain(&mut spec.identity);
                let indexed = spec.indexes.iter_mut().flat_map(|i| i.columns.iter_mut().map(|(c, _)| c));
                lists.chain(indexed).filter(|c| **c == from).for_each(|c| c.clone_from(&to));
            }
            4 => spec.name = format!("renamed{}_{}", self.version, spec.oid),
            5 => {
                let name = spec.columns[self.rng.below(spec.columns.len())].name.clone();
                let mut made = index(&format!("i{}_{}", self.version, spec.indexes.len()), false, &[&name]);
                made.columns[0].1 = self.rng.one_in(2);
                spec.indexes.push(made);
            }
            6 if spec.indexes.len() > 1 => drop(spec.indexes.pop()),
            7 if !plain.is_empty() => {
                let at = *self.rng.pick(&plain);
                spec.columns[at].ty = ColumnType::Str;
                spec.columns[at].type_name = "text".into();
                for row in &mut table.rows {
                    row[at] = cell(&mut self.rng, &spec.columns[at]);
                }
                rows = Backfill::Rows(table.rows.clone());
            }
            _ => return None,
        }
        if full {
            spec.identity = spec.columns.iter().map(|c| c.name.clone()).collect();
        }
        table.spec = Arc::new(spec);
        Some(Change::Schema(SchemaChange::AlterTable { old, new: Arc::clone(&table.spec), added, rows }))
    }
}

#[test]
fn the_replica_follows_upstream() {
    if let Ok(seed) = std::env::var("ZERO_SEED") {
        run(seed.parse().unwrap());
        return;
    }
    let runs: u64 = std::env::var("ZERO_RUNS").map_or(120, |n| n.parse().unwrap());
    for seed in PAST_FAILURES.into_iter().chain(0..runs) {
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
            eprintln!("failed with ZERO_SEED={seed}");
            resume_unwind(cause);
        }
    }
}

type Contents = BTreeMap<Arc<str>, BTreeMap<Key, Row>>;

fn run(seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let mut upstream = Upstream::new(seed);
    for _ in 0..2 {
        let mut made = upstream.new_table();
        made.rows.clear();
        upstream.tables.push(made);
    }
    let specs: Vec<Arc<TableSpec>> = upstream.tables.iter().map(|t| Arc::clone(&t.spec)).collect();
    let mut writer = create(&path, &specs).writer().unwrap();
    let mut reader = open(&path).reader().unwrap();
    let mut folded = read(&mut reader);
    for _ in 0..STEPS {
        let many: Vec<Transaction> = (0..1 + upstream.rng.below(3)).map(|_| upstream.transaction()).collect();
        let altered = many.iter().flat_map(|t| &t.changes).any(|c| matches!(c, Change::Schema(_)));
        let batch = writer.apply(&many).unwrap().unwrap();
        assert_eq!(batch.schema.is_some(), altered);
        compare_cells(&path, &upstream);
        let found = read(&mut reader);
        fold(&mut folded, &batch, &found);
        same(&folded, &found);
        assert_eq!(reader.schema(), writer.schema());
        if upstream.rng.one_in(3) {
            writer = reopened(writer, &path, &many);
        }
    }
}

/// As after a restart, with the last transactions once more.
fn reopened(writer: Writer, path: &Path, last: &[Transaction]) -> Writer {
    let (schema, version) = (writer.schema(), writer.version());
    drop(writer);
    let mut writer = open(path).writer().unwrap();
    assert_eq!((writer.schema(), writer.version()), (schema, version));
    assert!(writer.apply(last).unwrap().is_none());
    writer
}

fn read(reader: &mut Reader) -> Contents {
    reader.begin().unwrap();
    let schema = reader.schema();
    let all = schema.tables.iter().map(|(name, table)| (Arc::clone(name), contents(reader, table))).collect();
    reader.end();
    all
}

/// Moves the former contents to the batch's version. What was reset is read again.
fn fold(folded: &mut Contents, batch: &Batch, now: &Contents) {
    let mut seen = BTreeSet::new();
    for part in &batch.tables {
        let name = &part.table.name;
        assert!(seen.insert(Arc::clone(name)), "{name} occurs twice");
        if part.reset {
            assert!(part.rows.is_empty());
            match now.get(name) {
                Some(rows) => drop(folded.insert(Arc::clone(name), rows.clone())),
                None => drop(folded.remove(name)),
            }
            continue;
        }
        let rows = folded.get_mut(name).unwrap();
        let mut keys = BTreeSet::new();
        for change in &part.rows {
            let key = |r: &Row| r.key(&part.table.key);
            let at = change.old.as_ref().or(change.new.as_ref()).map(key).unwrap();
            assert!(keys.insert(at.clone()), "{at:?} occurs twice");
            assert!(change.new.as_ref().is_none_or(|r| key(r) == at), "a change is about one key");
            let before = rows.remove(&at);
            assert_eq!(format!("{before:?}"), format!("{:?}", change.old), "the old row is what was there");
            if let (Some(a), Some(b)) = (&before, &change.new) {
                assert!(!a.same_cells(b), "nothing changed");
            }
            if let Some(new) = &change.new {
                rows.insert(at, new.clone());
            }
        }
    }
}

#[track_caller]
fn same(a: &Contents, b: &Contents) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, rows) in a {
        assert_eq!(format!("{:?}", rows.values()), format!("{:?}", b[name].values()), "{name}");
    }
}

/// Every replicated cell, hidden ones and hidden tables included, as SQLite keeps it.
fn compare_cells(path: &Path, upstream: &Upstream) {
    let conn = rusqlite::Connection::open(path).unwrap();
    for table in &upstream.tables {
        let names: Vec<String> = table.spec.columns.iter().map(|c| format!("c{}", c.attnum)).collect();
        let sql = format!("SELECT {} FROM t{}", names.join(", "), table.spec.oid);
        let mut statement = conn.prepare(&sql).unwrap();
        let found = statement
            .query_map([], |row| (0..names.len()).map(|i| row.get::<_, Stored>(i)).collect::<Result<Vec<_>, _>>());
        let show = |row: Vec<Stored>| format!("{row:?}");
        let mut found: Vec<String> = found.unwrap().map(|row| show(row.unwrap())).collect();
        let mut expected: Vec<String> = table.rows.iter().map(|row| show(row.iter().map(stored).collect())).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{}", table.spec.name);
    }
    let tables: i64 = conn
        .query_row("SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name GLOB 't[0-9]*'", [], |r| r.get(0))
        .unwrap();
    assert_eq!(tables as usize, upstream.tables.len());
}

fn stored(cell: &Cell) -> Stored {
    match cell {
        Cell::Null => Stored::Null,
        Cell::Bool(b) => Stored::Integer((*b).into()),
        Cell::Int(i) => Stored::Integer(*i),
        Cell::Float(f) => Stored::Real(*f),
        Cell::Text(s) => Stored::Text(s.to_string()),
        Cell::Bytes(b) => Stored::Blob(b.to_vec()),
        Cell::Unchanged => panic!("the model knows every cell"),
    }
}
