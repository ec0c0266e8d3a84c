//! Cells between the stream, SQLite and packed rows.

use rows::schema::ColumnSpec;
use rows::{Cell, CellRef, ColumnType, Row, RowBuilder, ValueRef};
use rusqlite::Statement;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef as Stored};

use crate::error::Fault;
use crate::layout::Layout;

/// A value bound without a copy on our side.
struct Bound<'a>(Stored<'a>);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.0))
    }
}

pub(crate) fn bind(statement: &mut Statement<'_>, parameter: usize, value: Stored<'_>) -> rusqlite::Result<()> {
    statement.raw_bind_parameter(parameter, Bound(value))
}

/// A cell of the stream without its owner; `None` for an unchanged TOASTed value.
pub(crate) fn borrow(cell: &Cell) -> Option<CellRef<'_>> {
    Some(match cell {
        Cell::Null => CellRef::Null,
        Cell::Bool(b) => CellRef::Bool(*b),
        Cell::Int(i) => CellRef::Int(*i),
        Cell::Float(f) => CellRef::Float(*f),
        Cell::Text(s) => CellRef::Text(s),
        Cell::Bytes(b) => CellRef::Bytes(b),
        Cell::Unchanged => return None,
    })
}

/// The value SQLite keeps for a cell of the column. NaN has no place in SQLite and becomes NULL.
pub(crate) fn to_stored<'a>(column: &ColumnSpec, cell: CellRef<'a>) -> Result<Stored<'a>, Fault> {
    use ColumnType::{Bool, Float, Hidden, Int, Json, Str};
    Ok(match (column.ty, cell) {
        (_, CellRef::Null) => Stored::Null,
        (Float | Hidden, CellRef::Float(f)) if f.is_nan() => Stored::Null,
        (Bool | Hidden, CellRef::Bool(b)) => Stored::Integer(b.into()),
        (Int | Hidden, CellRef::Int(i)) => Stored::Integer(i),
        (Float | Hidden, CellRef::Float(f)) => Stored::Real(f),
        (Float, CellRef::Int(i)) => Stored::Real(i as f64),
        (Str | Json | Hidden, CellRef::Text(s)) => Stored::Text(s.as_bytes()),
        (Hidden, CellRef::Bytes(b)) => Stored::Blob(b),
        (ty, cell) => {
            let got = match cell {
                CellRef::Null => "null",
                CellRef::Bool(_) => "a boolean",
                CellRef::Int(_) => "an integer",
                CellRef::Float(_) => "a float",
                CellRef::Text(_) => "text",
                CellRef::Bytes(_) => "bytes",
            };
            return Err(Fault::diverged(format!(
                "column {} ({}, kept as {ty:?}) was sent {got}",
                column.name, column.type_name
            )));
        }
    })
}

/// The cell that queries see of a stored value.
pub(crate) fn from_stored(ty: ColumnType, stored: Stored<'_>) -> Result<ValueRef<'_>, Fault> {
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| Fault::diverged("a stored text is not UTF-8"));
    Ok(match (ty, stored) {
        (_, Stored::Null) => ValueRef::Null,
        (ColumnType::Bool, Stored::Integer(i)) => ValueRef::Bool(i != 0),
        (ColumnType::Int, Stored::Integer(i)) => ValueRef::Int(i),
        (ColumnType::Float, Stored::Real(f)) => ValueRef::Float(f),
        (ColumnType::Str, Stored::Text(bytes)) => ValueRef::Str(text(bytes)?),
        (ColumnType::Json, Stored::Text(bytes)) => ValueRef::Json(text(bytes)?),
        (ty, stored) => {
            return Err(Fault::diverged(format!("a {ty:?} column holds {}", stored.data_type())));
        }
    })
}

/// What a query literal or a key cell compares with in SQLite.
pub(crate) fn literal(value: ValueRef<'_>) -> Stored<'_> {
    match value {
        ValueRef::Null => Stored::Null,
        ValueRef::Bool(b) => Stored::Integer(b.into()),
        ValueRef::Int(i) => Stored::Integer(i),
        ValueRef::Float(f) => Stored::Real(f),
        ValueRef::Str(s) | ValueRef::Json(s) => Stored::Text(s.as_bytes()),
    }
}

/// The visible part of a stored row; column 0 of `row` is the first of all columns, `_0_version` follows the last.
pub(crate) fn visible_row(layout: &Layout, row: &rusqlite::Row<'_>, first: usize) -> Result<Row, Fault> {
    let mut builder = RowBuilder::new(layout.visible.len());
    for &column in &layout.visible {
        let stored = row.get_ref(first + column)?;
        builder.push(from_stored(layout.spec.columns[column].ty, stored)?);
    }
    let version: i64 = row.get(first + layout.spec.columns.len())?;
    Ok(builder.finish(layout.row_version(version)))
}
