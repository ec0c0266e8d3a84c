//! A random database: its schema, its rows, and transactions that change them.

use std::collections::BTreeMap;
use std::sync::Arc;

use rows::{Batch, Column, ColumnType, Key, Row, RowBuilder, RowChange, Schema, Table, TableBatch, Value, Version};

use super::Rng;
use super::query::query;
use crate::query::Query;

/// Values of each type; the texts are also used as patterns.
const INTS: [i64; 6] = [0, 1, 2, 3, 4, -1];
const FLOATS: [f64; 6] = [0.0, 1.0, 1.5, 2.0, 3.0, -0.5];
const TEXTS: [&str; 10] = ["", "a", "A", "ab", "b", "ž", "Ž", "a_", "a%b", "😀"];
const JSONS: [&str; 4] = ["{}", "[1,2]", "null", "\"a\""];

#[derive(Debug)]
pub struct World {
    pub rng: Rng,
    schema: Arc<Schema>,
    first_keys: Option<Keys>,
    /// Apart from `rng`, so that seeds keep their meaning.
    keys_rng: Rng,
    rows: BTreeMap<Arc<str>, BTreeMap<Key, Row>>,
    version: u64,
}

impl World {
    #[must_use]
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let tables: Vec<Arc<Table>> = (0..=rng.below(4)).map(|i| Arc::new(table(&mut rng, i))).collect();
        let first_keys = Some(Keys::choose(&mut rng, 3, &tables));
        let rows = tables.iter().map(|table| (Arc::clone(&table.name), BTreeMap::new())).collect();
        let schema = Schema {
            tables: tables.into_iter().map(|table| (Arc::clone(&table.name), table)).collect(),
            hidden: BTreeMap::new(),
        };
        World { rng, schema: Arc::new(schema), first_keys, keys_rng: Rng::new(!seed), rows, version: 0 }
    }

    #[must_use]
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Keys that a client schema may declare: every client has its own view of the same tables.
    pub fn keys(&mut self) -> Keys {
        let tables = self.table_list();
        self.first_keys.take().unwrap_or_else(|| Keys::choose(&mut self.keys_rng, 2, &tables))
    }

    /// The rows of a table, by replica key.
    #[must_use]
    pub fn rows(&self, table: &str) -> &BTreeMap<Key, Row> {
        &self.rows[table]
    }

    #[must_use]
    pub fn version(&self) -> Version {
        Version::new(self.version)
    }

    /// A query over the schema; comparisons and starts use values that occur.
    pub fn query(&mut self) -> Query {
        let schema = Arc::clone(&self.schema);
        query(&mut self.rng, &schema)
    }

    /// Inserts rows into every table.
    pub fn populate(&mut self) -> Arc<Batch> {
        self.commit(|world, pending| {
            for table in world.table_list() {
                for _ in 0..4 + world.rng.below(16) {
                    world.insert(&table, pending);
                }
            }
        })
    }

    /// A transaction of 1 to 20 changes.
    pub fn transaction(&mut self) -> Arc<Batch> {
        self.commit(|world, pending| {
            let most = if world.rng.one_in(2) { 3 } else { 20 };
            let tables = world.table_list();
            for _ in 0..=world.rng.below(most) {
                let table = world.rng.pick(&tables).clone();
                match world.rng.below(10) {
                    0..=2 => world.insert(&table, pending),
                    3..=5 => world.update(&table, pending),
                    6 => world.swap(&table, pending),
                    7 => world.rekey(&table, pending),
                    _ => world.delete(&table, pending),
                }
            }
        })
    }

    fn table_list(&self) -> Vec<Arc<Table>> {
        self.schema.tables.values().cloned().collect()
    }

    fn commit(&mut self, change: impl FnOnce(&mut World, &mut Pending)) -> Arc<Batch> {
        let previous = self.version();
        self.version += 1 + self.rng.below(3) as u64;
        let mut pending = Pending::default();
        change(self, &mut pending);
        let mut tables = Vec::new();
        for (name, before) in pending.0 {
            let now = &self.rows[&name];
            let rows: Vec<RowChange> = before
                .into_iter()
                .map(|(key, old)| RowChange { old, new: now.get(&key).cloned() })
                .filter(|change| change.old.is_some() || change.new.is_some())
                .collect();
            if !rows.is_empty() {
                tables.push(TableBatch { table: Arc::clone(&self.schema.tables[&name]), reset: false, rows });
            }
        }
        Arc::new(Batch { version: self.version(), previous, commit_time_us: 0, tables, schema: None })
    }

    fn write(&mut self, table: &Arc<Table>, pending: &mut Pending, key: Key, row: Option<Row>) {
        let rows = self.rows.get_mut(&table.name).expect("every table of the schema has rows");
        let old = match row {
            Some(row) => rows.insert(key.clone(), row),
            None => rows.remove(&key),
        };
        pending.0.entry(Arc::clone(&table.name)).or_default().entry(key).or_insert(old);
    }

    fn insert(&mut self, table: &Arc<Table>, pending: &mut Pending) {
        let cells: Vec<Value> = table.columns.iter().map(|c| cell(&mut self.rng, c)).collect();
        if self.free(table, &cells, &[]) {
            let row = self.row(&cells);
            self.write(table, pending, row.key(&table.key), Some(row));
        }
    }

    fn update(&mut self, table: &Arc<Table>, pending: &mut Pending) {
        let Some(old) = self.any_row(table) else { return };
        let mut cells: Vec<Value> = old.iter().map(|c| c.to_owned()).collect();
        // Zero changed cells make an update that only moves the version.
        for _ in 0..self.rng.below(4) {
            let column = self.rng.below(cells.len());
            if !table.key.contains(&column) {
                cells[column] = cell(&mut self.rng, &table.columns[column]);
            }
        }
        if self.free(table, &cells, &[&old]) {
            let row = self.row(&cells);
            self.write(table, pending, row.key(&table.key), Some(row));
        }
    }

    /// Exchanges everything but the replica key between two rows, other unique keys included.
    fn swap(&mut self, table: &Arc<Table>, pending: &mut Pending) {
        let (Some(a), Some(b)) = (self.any_row(table), self.any_row(table)) else { return };
        let mut cells: [Vec<Value>; 2] = [&a, &b].map(|row| row.iter().map(|c| c.to_owned()).collect());
        for column in 0..table.columns.len() {
            if !table.key.contains(&column) && (table.columns[column].not_null || self.rng.one_in(2)) {
                let [x, y] = &mut cells;
                std::mem::swap(&mut x[column], &mut y[column]);
            }
        }
        if a.same_cells(&b) {
            return;
        }
        for cells in &cells {
            let row = self.row(cells);
            self.write(table, pending, row.key(&table.key), Some(row));
        }
    }

    /// An update of the replica key: the old row goes, another one comes.
    fn rekey(&mut self, table: &Arc<Table>, pending: &mut Pending) {
        let Some(old) = self.any_row(table) else { return };
        let mut cells: Vec<Value> = old.iter().map(|c| c.to_owned()).collect();
        for &column in &table.key {
            cells[column] = cell(&mut self.rng, &table.columns[column]);
        }
        if self.free(table, &cells, &[&old]) {
            let row = self.row(&cells);
            self.write(table, pending, old.key(&table.key), None);
            self.write(table, pending, row.key(&table.key), Some(row));
        }
    }

    fn delete(&mut self, table: &Arc<Table>, pending: &mut Pending) {
        if let Some(old) = self.any_row(table) {
            self.write(table, pending, old.key(&table.key), None);
        }
    }

    fn any_row(&mut self, table: &Table) -> Option<Row> {
        let rows = &self.rows[&table.name];
        if rows.is_empty() {
            return None;
        }
        rows.values().nth(self.rng.below(rows.len())).cloned()
    }

    fn row(&self, cells: &[Value]) -> Row {
        let mut row = RowBuilder::new(cells.len());
        for cell in cells {
            row.push(cell.as_ref());
        }
        row.finish(self.version())
    }

    /// Whether no row but the given ones has one of the unique keys of `cells`.
    fn free(&self, table: &Table, cells: &[Value], replaced: &[&Row]) -> bool {
        let candidate = self.row(cells);
        self.rows[&table.name].values().all(|row| {
            replaced.iter().any(|r| r.same_cells(row))
                || table.unique_keys.iter().all(|key| row.key(key) != candidate.key(key))
        })
    }
}

/// The key that a client schema declares, per table.
#[derive(Clone, Debug)]
pub struct Keys(BTreeMap<Arc<str>, Vec<usize>>);

impl Keys {
    /// One table in so many has any of its unique keys.
    fn choose(rng: &mut Rng, other_in: usize, tables: &[Arc<Table>]) -> Keys {
        let choose = |table: &Arc<Table>| {
            let is_other = rng.one_in(other_in);
            let mut key = if is_other { rng.pick(&table.unique_keys).clone() } else { table.key.clone() };
            if rng.one_in(3) {
                key.reverse();
            }
            (Arc::clone(&table.name), key)
        };
        Keys(tables.iter().map(choose).collect())
    }

    #[must_use]
    pub fn of(&self, table: &Table) -> Vec<usize> {
        self.0[&table.name].clone()
    }
}

/// The rows that a transaction wrote, as they were before it.
#[derive(Default)]
struct Pending(BTreeMap<Arc<str>, BTreeMap<Key, Option<Row>>>);

fn table(rng: &mut Rng, index: usize) -> Table {
    let mut columns = Vec::new();
    let mut column = |name: String, ty: ColumnType, not_null: bool| {
        columns.push(Column { name: name.into(), ty, not_null });
        columns.len() - 1
    };
    let key_type = |rng: &mut Rng| *rng.pick(&[ColumnType::Int, ColumnType::Int, ColumnType::Str, ColumnType::Float]);
    let mut key = Vec::new();
    for i in 0..=usize::from(rng.one_in(3)) {
        key.push(column(format!("k{i}"), key_type(rng), true));
    }
    if key.len() == 2 && rng.one_in(2) {
        key.reverse();
    }
    let mut unique_keys = vec![key.clone()];
    unique_keys[0].sort_unstable();
    if rng.one_in(2) {
        unique_keys.push(vec![column("u".to_owned(), ColumnType::Int, true)]);
    }
    use ColumnType::{Bool, Float, Int, Json, Str};
    for i in 0..=rng.below(4) {
        let ty = *rng.pick(&[Int, Int, Float, Str, Str, Bool, Json]);
        let not_null = rng.one_in(3);
        column(format!("c{i}"), ty, not_null);
    }
    Table { name: format!("t{index}").into(), columns, indexes: vec![key.clone()], key, unique_keys }
}

fn cell(rng: &mut Rng, column: &Column) -> Value {
    if !column.not_null && rng.one_in(4) {
        return Value::Null;
    }
    // Unique columns need room, but joins must still hit.
    if &*column.name == "u" {
        return Value::Int(rng.below(40) as i64);
    }
    if column.name.starts_with('k') && column.ty == ColumnType::Int && rng.one_in(2) {
        return Value::Int(rng.below(16) as i64);
    }
    value(rng, column.ty)
}

/// A value that occurs in columns of this type.
pub(super) fn value(rng: &mut Rng, ty: ColumnType) -> Value {
    match ty {
        ColumnType::Bool => Value::Bool(rng.one_in(2)),
        ColumnType::Int => Value::Int(*rng.pick(&INTS)),
        ColumnType::Float => Value::Float(*rng.pick(&FLOATS)),
        ColumnType::Str => Value::Str((*rng.pick(&TEXTS)).into()),
        ColumnType::Json | ColumnType::Hidden => Value::Json((*rng.pick(&JSONS)).into()),
    }
}
