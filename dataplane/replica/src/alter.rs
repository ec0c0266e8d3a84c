//! Schema changes of upstream, carried out inside the transaction that brings them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use rows::schema::ColumnSpec;
use rows::transaction::{AddedColumn, Backfill};
use rows::{Cell, TableSpec, Version};
use rusqlite::{Connection, ErrorCode};

use crate::error::Fault;
use crate::layout::{Layout, column_name, declared_type, index_columns, table_name};
use crate::meta;
use crate::table::TableWriter;

/// What an alteration means for those who read the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Visible cells, names or the key changed.
    Contents,
    /// Only what is known about the table changed, such as its indexes.
    Description,
}

pub(crate) fn create(
    conn: &Connection,
    spec: &Arc<TableSpec>,
    rows: &Backfill,
    version: Version,
) -> Result<Arc<Layout>, Fault> {
    let layout = Arc::new(Layout::new(Arc::clone(spec), version));
    conn.execute_batch(&format!("DROP TABLE IF EXISTS {}; {}", layout.name(), layout.create_table()))?;
    finish(conn, &layout, rows, version)
}

pub(crate) fn drop_table(conn: &Connection, oid: u32) -> Result<(), Fault> {
    conn.execute_batch(&format!("DROP TABLE IF EXISTS {}", table_name(oid)))?;
    meta::delete_table(conn, oid)
}

pub(crate) fn alter(
    conn: &Connection,
    old: &Layout,
    new: &Arc<TableSpec>,
    added: &[AddedColumn],
    rows: &Backfill,
    version: Version,
) -> Result<(Arc<Layout>, Effect), Fault> {
    if matches!(rows, Backfill::Rows(_)) {
        return Ok((create(conn, new, rows, version)?, Effect::Contents));
    }
    let candidate = Layout::new(Arc::clone(new), version);
    let effect = if same_contents(old, &candidate) { Effect::Description } else { Effect::Contents };
    let layout = match effect {
        Effect::Contents => Arc::new(candidate),
        Effect::Description => Arc::new(Layout::new(Arc::clone(new), old.min_version)),
    };
    let before = |attnum: i16| old.spec.columns.iter().find(|c| c.attnum == attnum);
    let kept: BTreeSet<i16> = new
        .columns
        .iter()
        .filter(|c| before(c.attnum).is_some_and(|b| declared_type(b) == declared_type(c)))
        .map(|c| c.attnum)
        .collect();
    // Indexes first: a column in use cannot be dropped.
    drop_indexes(conn, &layout, &kept)?;
    let table = layout.name();
    for column in &old.spec.columns {
        if new.columns.iter().all(|c| c.attnum != column.attnum) {
            conn.execute_batch(&format!("ALTER TABLE {table} DROP COLUMN {}", column_name(column.attnum)))?;
        }
    }
    for column in &new.columns {
        let name = column_name(column.attnum);
        match before(column.attnum) {
            None => {
                let value = added.iter().find(|a| a.name == column.name).map_or(&Cell::Null, |a| &a.value);
                add_column(conn, &table, column, value)?;
            }
            Some(was) if declared_type(was) != declared_type(column) => {
                convert(conn, &table, &name, declared_type(column))?
            }
            Some(_) => {}
        }
    }
    let layout = finish(conn, &layout, rows, version)?;
    Ok((layout, effect))
}

fn same_contents(old: &Layout, new: &Layout) -> bool {
    match (&old.table, &new.table) {
        (Ok(a), Ok(b)) => a.name == b.name && a.columns == b.columns && a.key == b.key,
        (Err(_), Err(_)) => true,
        _ => false,
    }
}

/// Rows, indexes and description, once the columns are right.
fn finish(conn: &Connection, layout: &Arc<Layout>, rows: &Backfill, version: Version) -> Result<Arc<Layout>, Fault> {
    if let Backfill::Rows(rows) = rows {
        let mut writer = TableWriter::new(Arc::clone(layout));
        for row in rows {
            writer.insert(conn, row, version)?;
        }
    }
    let layout = add_indexes(conn, layout)?;
    meta::write_table(conn, &layout)?;
    Ok(layout)
}

/// Creates the indexes that the table lacks. If it holds two rows of one key, which a damaged index upstream lets in, the table is
/// left out: nobody can tell which of them is meant.
pub(crate) fn add_indexes(conn: &Connection, layout: &Arc<Layout>) -> Result<Arc<Layout>, Fault> {
    let present: BTreeSet<String> = indexes(conn, layout.spec.oid)?.into_iter().collect();
    for (name, sql) in layout.indexes() {
        if present.contains(&name) {
            continue;
        }
        match conn.execute_batch(&sql) {
            Ok(()) => {}
            Err(e) if is_constraint(&e) && !layout.key.is_empty() => {
                let reason = format!(
                    "table {} holds rows with equal keys, so it is left out; look for duplicates upstream, mend its unique index (REINDEX), and let the replica be copied anew",
                    layout.spec.wire_name()
                );
                tracing::warn!("{reason}");
                let left_out = Layout::left_out(Arc::clone(&layout.spec), layout.min_version, reason);
                drop_indexes(conn, &left_out, &left_out.spec.columns.iter().map(|c| c.attnum).collect())?;
                return add_indexes(conn, &Arc::new(left_out));
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Arc::clone(layout))
}

fn is_constraint(e: &rusqlite::Error) -> bool {
    e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
}

/// Names of the table's indexes.
pub(crate) fn indexes(conn: &Connection, oid: u32) -> Result<Vec<String>, Fault> {
    let mut statement = conn.prepare_cached("SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name = ?")?;
    let names = statement.query_map([table_name(oid)], |row| row.get(0))?;
    Ok(names.collect::<Result<_, _>>()?)
}

/// Drops the indexes that are no longer wanted or stand on columns that are not kept as they are. The replica's own indexes
/// stay while their columns do.
fn drop_indexes(conn: &Connection, layout: &Layout, kept: &BTreeSet<i16>) -> Result<(), Fault> {
    let wanted = layout.indexes();
    for name in indexes(conn, layout.spec.oid)? {
        let sound =
            index_columns(layout.spec.oid, &name).is_some_and(|columns| columns.iter().all(|c| kept.contains(c)));
        if !sound || !(name.starts_with('x') || wanted.contains_key(&name)) {
            conn.execute_batch(&format!("DROP INDEX {name}"))?;
        }
    }
    Ok(())
}

/// Existing rows get the value through the column's default, which costs nothing.
fn add_column(conn: &Connection, table: &str, column: &ColumnSpec, value: &Cell) -> Result<(), Fault> {
    let mut sql = format!("ALTER TABLE {table} ADD COLUMN {} {}", column_name(column.attnum), declared_type(column));
    match value {
        Cell::Null | Cell::Unchanged => {}
        Cell::Float(f) if f.is_nan() => {}
        Cell::Bool(b) => drop(write!(sql, " DEFAULT {}", u8::from(*b))),
        Cell::Int(i) => drop(write!(sql, " DEFAULT {i}")),
        Cell::Float(f) if f.is_infinite() => sql.push_str(if *f > 0.0 { " DEFAULT 9e999" } else { " DEFAULT -9e999" }),
        Cell::Float(f) => drop(write!(sql, " DEFAULT {f:e}")),
        Cell::Text(s) => drop(write!(sql, " DEFAULT '{}'", s.replace('\'', "''"))),
        Cell::Bytes(bytes) => {
            sql.push_str(" DEFAULT x'");
            for b in bytes {
                let _ = write!(sql, "{b:02x}");
            }
            sql.push('\'');
        }
    }
    conn.execute_batch(&sql)?;
    Ok(())
}

/// Keeps the values of a column under another declaration.
fn convert(conn: &Connection, table: &str, name: &str, declared: &str) -> Result<(), Fault> {
    conn.execute_batch(&format!(
        "ALTER TABLE {table} ADD COLUMN retyped {declared};
         UPDATE {table} SET retyped = CAST({name} AS {declared});
         ALTER TABLE {table} DROP COLUMN {name};
         ALTER TABLE {table} RENAME COLUMN retyped TO {name};"
    ))?;
    Ok(())
}
