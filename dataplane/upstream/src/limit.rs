//! One limit for the values of a row, whichever way it comes: what is larger is left out where it is read, so that nothing behind
//! this crate (the log, the replica, the other nodes, a client's socket) ever has to hold it.
//!
//! Must not know messages or formats: it counts bytes as Postgres sent them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rows::schema::ColumnSpec;
use rows::{CellRef, ColumnType, TableSpec};

use crate::catalog::Published;

/// The columns of one table.
pub(crate) struct Limit {
    table: Arc<TableSpec>,
    row_bytes_max: usize,
    /// For each column, whether it was said that a value was left out.
    told: Vec<Arc<AtomicBool>>,
}

/// What the values of one row may still hold.
pub(crate) struct Room(usize);

impl Limit {
    pub(crate) fn new(table: &Published, row_bytes_max: usize) -> Limit {
        let told = table.columns.iter().map(|c| Arc::clone(&c.told_too_large)).collect();
        Limit { table: Arc::clone(&table.spec), row_bytes_max, told }
    }

    pub(crate) fn row(&self) -> Room {
        Room(self.row_bytes_max)
    }

    /// What stands for a value that does not fit: null, or the emptiest value where there must be one.
    pub(crate) fn stand_in(&self, column: usize, bytes: usize) -> CellRef<'static> {
        let spec = &self.table.columns[column];
        if !self.told[column].swap(true, Ordering::Relaxed) {
            tracing::error!(
                table = self.table.wire_name(),
                column = spec.name,
                mebibytes = bytes >> 20,
                limit_mebibytes = self.row_bytes_max >> 20,
                "a value is left out, here and wherever it occurs in this column, because its row is larger than a row may be; clients see null or nothing in its place"
            );
        }
        emptiest(spec)
    }
}

impl Room {
    /// Whether so many bytes fit; they are then taken.
    pub(crate) fn takes(&mut self, bytes: usize) -> bool {
        match self.0.checked_sub(bytes) {
            Some(left) => {
                self.0 = left;
                true
            }
            None => false,
        }
    }
}

fn emptiest(column: &ColumnSpec) -> CellRef<'static> {
    match column.ty {
        _ if !column.not_null => CellRef::Null,
        ColumnType::Json => CellRef::Text("null"),
        ColumnType::Hidden if column.type_name == "bytea" => CellRef::Bytes(&[]),
        ColumnType::Str | ColumnType::Hidden => CellRef::Text(""),
        ColumnType::Bool | ColumnType::Int | ColumnType::Float => CellRef::Null,
    }
}
