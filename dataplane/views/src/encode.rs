//! Rows as the operations of a poke. Encoded once per (row, version) and shared by every poke that carries it.

use bytes::Bytes;
use ivm::{Del, KeyedTable};
use protocol::down;
use rows::json::{UnsafeInteger, write_string, write_value};
use rows::{Row, ValueRef};

use crate::row_id::RowId;

/// A row that cannot be sent, because a client's numbers could not hold it. Names table and column, never the value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{table}.{column} holds an integer beyond ±(2^53-1), which JavaScript cannot represent; change its type to text or keep \
     such rows out of the query"
)]
pub struct Unencodable {
    pub table: String,
    pub column: String,
}

/// What names of columns and the like may add to a row without another allocation.
const NAMES_BYTES: usize = 4 << 10;

/// Appends the `put` of a row with all its visible columns.
pub fn write_put(out: &mut Vec<u8>, table: &KeyedTable, row: &Row) -> Result<(), Unencodable> {
    let start = out.len();
    let mut failed = None;
    down::write_row_put(out, &table.table.name, |out| {
        out.push(b'{');
        for (i, (column, value)) in table.table.columns.iter().zip(row.iter()).enumerate() {
            if i > 0 {
                out.push(b',');
            }
            write_string(out, &column.name);
            out.push(b':');
            if let Err(UnsafeInteger { .. }) = write_value(out, value) {
                failed = Some(column);
                return;
            }
        }
        out.push(b'}');
    });
    match failed {
        None => Ok(()),
        Some(column) => {
            out.truncate(start);
            Err(Unencodable { table: table.table.name.to_string(), column: column.name.to_string() })
        }
    }
}

/// The `put` of one row.
pub fn put(table: &KeyedTable, row: &Row) -> Result<Bytes, Unencodable> {
    let mut out = Vec::with_capacity(row.size() + row.size().min(NAMES_BYTES));
    write_put(&mut out, table, row)?;
    // It may be held for long, by many.
    out.shrink_to_fit();
    Ok(out.into())
}

/// The `del` of a row. A key beyond the safe integers never reached a client, so there is nothing to delete and its number may
/// be printed as it is.
#[must_use]
pub fn del(table: &KeyedTable, id: &RowId) -> Bytes {
    let mut out = Vec::with_capacity(96);
    down::write_row_del(&mut out, &id.table, |out| {
        out.push(b'{');
        for (i, (&column, value)) in table.key.iter().zip(id.key.iter()).enumerate() {
            if i > 0 {
                out.push(b',');
            }
            write_string(out, &table.table.columns[column].name);
            out.push(b':');
            match value {
                ValueRef::Int(n) => out.extend_from_slice(n.to_string().as_bytes()),
                value => {
                    let _ = write_value(out, value);
                }
            }
        }
        out.push(b'}');
    });
    out.into()
}

/// The identity of a deleted row.
#[must_use]
pub fn id_of(del: &Del) -> RowId {
    RowId { table: del.table.table.name.clone(), key: del.key.clone() }
}
