//! One table under the writer: finds, inserts, updates and deletes stored rows, reading each before it changes.

use std::fmt::Write as _;
use std::sync::Arc;

use rows::schema::TableSpec;
use rows::{Cell, CellRef, ColumnType, Row, RowBuilder, Table, Version};
use rusqlite::types::ValueRef as Stored;
use rusqlite::{CachedStatement, Connection, ErrorCode, Statement};
use rustc_hash::FxHashMap;

use crate::cells::{bind, borrow, from_stored, to_stored, visible_row};
use crate::error::Fault;
use crate::layout::{Layout, VERSION_COLUMN};

/// More distinct sets of changed columns than this are not worth a statement each.
const MAX_UPDATES: usize = 64;

/// Statements for one table, as text; the connection caches the prepared form.
#[derive(Debug)]
pub(crate) struct TableWriter {
    pub layout: Arc<Layout>,
    /// The description last seen in the stream, known to fit.
    seen: Arc<TableSpec>,
    insert: String,
    find_by_key: String,
    find_by_identity: String,
    delete: String,
    updates: FxHashMap<Vec<usize>, String>,
    /// Whether it was said that a row is not shown.
    told: bool,
    /// Two rows had one key: what changed cannot be said row by row.
    pub collided: bool,
}

/// Old and new state of a visible row; both `None` where nothing changed or nothing is visible.
pub(crate) type Step = (Option<Row>, Option<Row>);

impl TableWriter {
    pub(crate) fn new(layout: Arc<Layout>) -> TableWriter {
        let all: Vec<String> = (0..layout.spec.columns.len()).map(|i| layout.column(i) + ", ").collect();
        let select = format!("SELECT {}\"{VERSION_COLUMN}\", rowid FROM {} WHERE ", all.concat(), layout.name());
        let key: Vec<usize> = layout.key.clone();
        let located: Vec<usize> = layout.locate.iter().map(|&(_, c)| c).collect();
        let whole = layout.key.is_empty() || layout.deferred;
        TableWriter {
            insert: layout.insert(),
            find_by_key: find(&select, &layout, &key, false),
            find_by_identity: find(&select, &layout, &located, whole),
            delete: format!("DELETE FROM {} WHERE rowid = ?", layout.name()),
            updates: FxHashMap::default(),
            told: false,
            collided: false,
            seen: Arc::clone(&layout.spec),
            layout,
        }
    }

    pub(crate) fn table(&self) -> Option<&Arc<Table>> {
        self.layout.table.as_ref().ok()
    }

    /// Fails when the stream's idea of the table is not ours, which means that a schema change was lost.
    pub(crate) fn check(&mut self, spec: &Arc<TableSpec>) -> Result<(), Fault> {
        if Arc::ptr_eq(spec, &self.seen) {
            return Ok(());
        }
        let ours = &self.layout.spec;
        let same = spec.columns.len() == ours.columns.len()
            && spec
                .columns
                .iter()
                .zip(&ours.columns)
                .all(|(a, b)| a.attnum == b.attnum && a.name == b.name && a.ty == b.ty)
            && spec.identity == ours.identity;
        if !same {
            return Err(Fault::diverged(format!(
                "table {} changed its columns or replica identity upstream without a schema change in the stream",
                spec.wire_name()
            )));
        }
        self.seen = Arc::clone(spec);
        Ok(())
    }

    pub(crate) fn insert(&mut self, conn: &Connection, new: &[Cell], version: Version) -> Result<Step, Fault> {
        let values = self.all_stored(new)?;
        if self.layout.deferred {
            self.note_collision(conn, |k| values[k])?;
        }
        let mut statement = conn.prepare_cached(&self.insert)?;
        match execute_insert(&mut statement, &values, version) {
            Ok(()) => {}
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                drop(statement);
                let mut statement = conn.prepare_cached(&self.find_by_key)?;
                for (i, &k) in self.layout.key.iter().enumerate() {
                    bind(&mut statement, i + 1, values[k])?;
                }
                return self.change(conn, statement, new, version)?.ok_or_else(|| Fault::from(e));
            }
            Err(e) => return Err(e.into()),
        }
        let new = self.packed(&values, version)?;
        Ok((None, self.shown(new)))
    }

    pub(crate) fn update(
        &mut self,
        conn: &Connection,
        key: Option<&[Cell]>,
        new: &[Cell],
        version: Version,
    ) -> Result<Vec<Step>, Fault> {
        let statement = self.located(conn, key, new)?;
        let mut steps = Vec::with_capacity(1);
        let key_may_change = key.is_some() || self.layout.key.iter().any(|k| !self.layout.identity.contains(k));
        if self.layout.deferred {
            self.note_moved(conn, key, new)?;
        } else if key_may_change && let Some(victim) = self.displaced(conn, key, new)? {
            steps.push(victim);
        }
        match self.change(conn, statement, new, version)? {
            Some(step) => steps.push(step),
            // The row is not here: it was copied away, or a victim of a row that took its key for a moment.
            None if new.contains(&Cell::Unchanged) => {
                return Err(Fault::diverged(format!(
                    "an update of table {} keeps a large value of a row that is missing here",
                    self.layout.spec.wire_name()
                )));
            }
            None => steps.push(self.insert(conn, new, version)?),
        }
        Ok(steps)
    }

    pub(crate) fn delete(&mut self, conn: &Connection, key: &[Cell]) -> Result<Step, Fault> {
        let statement = self.located(conn, Some(key), &[])?;
        self.remove(conn, statement)
    }

    pub(crate) fn truncate(&self, conn: &Connection) -> Result<(), Fault> {
        conn.execute(&format!("DELETE FROM {}", self.layout.name()), [])?;
        Ok(())
    }

    fn all_stored<'a>(&self, cells: &'a [Cell]) -> Result<Vec<Stored<'a>>, Fault> {
        let columns = &self.layout.spec.columns;
        if cells.len() != columns.len() {
            return Err(Fault::diverged(format!(
                "a row of table {} has {} cells instead of {}",
                self.layout.spec.wire_name(),
                cells.len(),
                columns.len()
            )));
        }
        let stored = |(cell, column)| match borrow(cell) {
            Some(cell) => to_stored(column, cell),
            None => Err(Fault::diverged(format!(
                "a new row of table {} has no value for column {}",
                self.layout.spec.wire_name(),
                column.name
            ))),
        };
        cells.iter().zip(columns).map(stored).collect()
    }

    fn packed(&self, values: &[Stored<'_>], version: Version) -> Result<Option<Row>, Fault> {
        if self.layout.table.is_err() {
            return Ok(None);
        }
        let mut builder = RowBuilder::new(self.layout.visible.len());
        for &column in &self.layout.visible {
            builder.push(from_stored(self.layout.spec.columns[column].ty, values[column])?);
        }
        Ok(Some(builder.finish(version)))
    }

    /// The row, if clients can hold it.
    fn shown(&mut self, row: Option<Row>) -> Option<Row> {
        let shown = row.filter(|row| self.layout.shows(row));
        if shown.is_none() && !self.told && !self.layout.fragile.is_empty() {
            self.told = true;
            self.layout.tell_not_shown();
        }
        shown
    }

    /// A statement bound to find the row that the change is about.
    fn located<'c>(
        &self,
        conn: &'c Connection,
        key: Option<&[Cell]>,
        new: &[Cell],
    ) -> Result<CachedStatement<'c>, Fault> {
        let layout = &*self.layout;
        let wire_name = || layout.spec.wire_name();
        if layout.locate.is_empty() {
            return Err(Fault::diverged(format!("table {} has no replica identity, but a row changed", wire_name())));
        }
        if key.is_some_and(|k| k.len() != layout.identity.len())
            || (key.is_none() && new.len() != layout.spec.columns.len())
        {
            return Err(Fault::diverged(format!("a change of table {} has the wrong number of cells", wire_name())));
        }
        let mut statement = conn.prepare_cached(&self.find_by_identity)?;
        for (i, &(in_identity, column)) in layout.locate.iter().enumerate() {
            let cell = key.map_or_else(|| &new[column], |k| &k[in_identity]);
            let cell = borrow(cell).ok_or_else(|| {
                Fault::diverged(format!(
                    "a change of table {} lacks its identity in column {}",
                    wire_name(),
                    layout.spec.columns[column].name
                ))
            })?;
            bind(&mut statement, i + 1, to_stored(&layout.spec.columns[column], cell)?)?;
        }
        Ok(statement)
    }

    /// Notes whether a row with this key is there already; for tables whose keys are checked later.
    fn note_collision<'a>(&mut self, conn: &Connection, cell: impl Fn(usize) -> Stored<'a>) -> Result<(), Fault> {
        let mut statement = conn.prepare_cached(&self.find_by_key)?;
        for (i, &k) in self.layout.key.iter().enumerate() {
            bind(&mut statement, i + 1, cell(k))?;
        }
        self.collided |= statement.raw_query().next()?.is_some();
        Ok(())
    }

    /// The same for an update that gives a row another key.
    fn note_moved(&mut self, conn: &Connection, key: Option<&[Cell]>, new: &[Cell]) -> Result<(), Fault> {
        let layout = Arc::clone(&self.layout);
        let old_of = |k: usize| key.and_then(|key| layout.identity.iter().position(|&i| i == k).map(|at| &key[at]));
        let moves = layout.key.iter().any(|&k| old_of(k).is_some_and(|old| !same(old, &new[k])));
        if !moves {
            return Ok(());
        }
        let cells = layout.key.iter().map(|&k| {
            to_stored(&layout.spec.columns[k], borrow(&new[k]).unwrap_or(CellRef::Null)).map(|cell| (k, cell))
        });
        let cells: FxHashMap<usize, Stored<'_>> = cells.collect::<Result<_, Fault>>()?;
        self.note_collision(conn, |k| cells[&k])
    }

    /// Removes the row that already has the new row's key, when an update changes the key.
    fn displaced(&self, conn: &Connection, key: Option<&[Cell]>, new: &[Cell]) -> Result<Option<Step>, Fault> {
        let layout = &*self.layout;
        let old_of =
            |column: usize| key.and_then(|k| layout.identity.iter().position(|&i| i == column).map(|at| &k[at]));
        let moves =
            layout.key.iter().any(|&k| new[k] != Cell::Unchanged && old_of(k).is_none_or(|old| !same(old, &new[k])));
        if !moves {
            return Ok(None);
        }
        let mut statement = conn.prepare_cached(&self.find_by_key)?;
        for (i, &k) in layout.key.iter().enumerate() {
            // A key cell that stays is the old one.
            let cell = borrow(&new[k]).or_else(|| old_of(k).and_then(borrow)).unwrap_or(CellRef::Null);
            bind(&mut statement, i + 1, to_stored(&layout.spec.columns[k], cell)?)?;
        }
        // Without the old key at hand the row found may be the updated row itself, which is no victim.
        if layout.key.iter().any(|&k| old_of(k).is_none()) {
            let found = {
                let mut rows = statement.raw_query();
                match rows.next()? {
                    Some(row) => Some(row.get::<_, i64>(layout.spec.columns.len() + 1)?),
                    None => None,
                }
            };
            let mut own = self.located(conn, key, new)?;
            let mut rows = own.raw_query();
            let own = match rows.next()? {
                Some(row) => Some(row.get::<_, i64>(layout.spec.columns.len() + 1)?),
                None => None,
            };
            if found.is_none() || found == own {
                return Ok(None);
            }
        }
        let step = self.remove(conn, statement)?;
        Ok(step.0.is_some().then_some(step))
    }

    fn remove(&self, conn: &Connection, mut find: CachedStatement<'_>) -> Result<Step, Fault> {
        let columns = self.layout.spec.columns.len();
        let (old, rowid) = {
            let mut rows = find.raw_query();
            let Some(row) = rows.next()? else { return Ok((None, None)) };
            let old = if self.layout.table.is_ok() { Some(visible_row(&self.layout, row, 0)?) } else { None };
            (old.filter(|old| self.layout.shows(old)), row.get::<_, i64>(columns + 1)?)
        };
        conn.prepare_cached(&self.delete)?.execute([rowid])?;
        Ok((old, None))
    }

    /// Writes the cells that differ into the row that `find` selects; `None` if there is no such row.
    fn change(
        &mut self,
        conn: &Connection,
        mut find: CachedStatement<'_>,
        new: &[Cell],
        version: Version,
    ) -> Result<Option<Step>, Fault> {
        let layout = &*self.layout;
        let columns = &layout.spec.columns;
        if new.len() != columns.len() {
            return Err(Fault::diverged(format!(
                "an update of table {} has the wrong number of cells",
                layout.spec.wire_name()
            )));
        }
        let visible = layout.table.is_ok();
        let mut changed: Vec<usize> = Vec::new();
        let (step, rowid) = {
            let mut rows = find.raw_query();
            let Some(row) = rows.next()? else { return Ok(None) };
            for (i, (cell, column)) in new.iter().zip(columns).enumerate() {
                if let Some(cell) = borrow(cell)
                    && to_stored(column, cell)? != row.get_ref(i)?
                {
                    changed.push(i);
                }
            }
            if changed.is_empty() {
                return Ok(Some((None, None)));
            }
            let step = if visible {
                let old = Some(visible_row(layout, row, 0)?).filter(|old| layout.shows(old));
                let mut builder = RowBuilder::new(layout.visible.len());
                for &i in &layout.visible {
                    let value = match borrow(&new[i]) {
                        Some(cell) => to_stored(&columns[i], cell)?,
                        None => row.get_ref(i)?,
                    };
                    builder.push(from_stored(columns[i].ty, value)?);
                }
                (old, Some(builder.finish(version)))
            } else {
                (None, None)
            };
            (step, row.get::<_, i64>(columns.len() + 1)?)
        };
        drop(find);
        if !self.updates.contains_key(&changed) && self.updates.len() >= MAX_UPDATES {
            self.updates.clear();
        }
        let sql = self.updates.entry(changed.clone()).or_insert_with(|| update(&self.layout, &changed));
        let mut statement = conn.prepare_cached(sql)?;
        for (at, &i) in changed.iter().enumerate() {
            let cell = borrow(&new[i]).unwrap_or(CellRef::Null);
            bind(&mut statement, at + 1, to_stored(&self.layout.spec.columns[i], cell)?)?;
        }
        bind(&mut statement, changed.len() + 1, Stored::Integer(version.as_u64() as i64))?;
        bind(&mut statement, changed.len() + 2, Stored::Integer(rowid))?;
        statement.raw_execute()?;
        let (old, new) = step;
        Ok(Some((old, if visible { self.shown(new) } else { new })))
    }
}

/// Equality as upstream means it: NaN equals itself.
fn same(a: &Cell, b: &Cell) -> bool {
    match (a, b) {
        (Cell::Float(a), Cell::Float(b)) => a == b || (a.is_nan() && b.is_nan()),
        (a, b) => a == b,
    }
}

fn execute_insert(statement: &mut Statement<'_>, values: &[Stored<'_>], version: Version) -> rusqlite::Result<()> {
    for (i, value) in values.iter().enumerate() {
        bind(statement, i + 1, *value)?;
    }
    bind(statement, values.len() + 1, Stored::Integer(version.as_u64() as i64))?;
    statement.raw_execute().map(drop)
}

/// `select` by equality of the columns. Where they may be null or repeat, nulls are equal and one row is enough. A number that is
/// none is kept as null.
fn find(select: &str, layout: &Layout, columns: &[usize], loose: bool) -> String {
    let mut sql = select.to_owned();
    for (i, &c) in columns.iter().enumerate() {
        let and = if i == 0 { "" } else { " AND " };
        let column = &layout.spec.columns[c];
        let is = if column.ty != ColumnType::Float && (column.not_null || !loose) { "=" } else { "IS" };
        let _ = write!(sql, "{and}{} {is} ?", layout.column(c));
    }
    if columns.is_empty() {
        sql.push_str("FALSE");
    }
    sql.push_str(" LIMIT 1");
    sql
}

fn update(layout: &Layout, changed: &[usize]) -> String {
    let mut sql = format!("UPDATE {} SET ", layout.name());
    for &c in changed {
        let _ = write!(sql, "{} = ?, ", layout.column(c));
    }
    let _ = write!(sql, "\"{VERSION_COLUMN}\" = ? WHERE rowid = ?");
    sql
}
