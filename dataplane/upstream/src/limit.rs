//! One limit for the values of a row, whichever way it comes: what is larger is left out where it is read, so that nothing behind
//! this crate (the log, the replica, the other nodes, a client's socket) ever has to hold it.
//!
//! Must not know messages or formats: it counts bytes as Postgres sent them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rows::schema::ColumnSpec;
use rows::{CellRef, ColumnType, TableSpec, Version};

use crate::catalog::Published;
use crate::options::lsn_text;

/// Where values that are left out come from, for people: the commit that is being read, or contents that are copied. Says nothing of
/// rows or keys. Cheap to clone: all clones are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place(Arc<AtomicU64>);

impl Place {
    pub(crate) fn at(&self, commit: Version) {
        self.0.store(commit.as_u64(), Ordering::Relaxed);
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.load(Ordering::Relaxed) {
            0 => f.write_str("a copy"),
            commit => write!(f, "the commit at {}", lsn_text(Version::new(commit))),
        }
    }
}

/// The columns of one table.
pub(crate) struct Limit {
    table: Arc<TableSpec>,
    row_bytes_max: usize,
    place: Place,
    /// For each column, whether it was said that a value was left out.
    told: Vec<Arc<AtomicBool>>,
}

/// What the values of one row may still hold. Hidden columns take nothing from those that clients see.
pub(crate) struct Room {
    visible: usize,
    hidden: usize,
}

impl Limit {
    pub(crate) fn new(table: &Published, row_bytes_max: usize, place: Place) -> Limit {
        let told = table.columns.iter().map(|c| Arc::clone(&c.told_too_large)).collect();
        Limit { table: Arc::clone(&table.spec), row_bytes_max, place, told }
    }

    pub(crate) fn row(&self) -> Room {
        Room { visible: self.row_bytes_max, hidden: self.row_bytes_max }
    }

    /// Whether a value of so many bytes fits into what is left; it is then taken.
    #[inline]
    pub(crate) fn admits(&self, room: &mut Room, column: usize, bytes: usize) -> bool {
        let is_hidden = self.table.columns[column].ty == ColumnType::Hidden;
        let left = if is_hidden { &mut room.hidden } else { &mut room.visible };
        let is_enough = bytes <= *left;
        if is_enough {
            *left -= bytes;
        }
        is_enough
    }

    /// What stands for a value that does not fit: null, or the emptiest value where there must be one.
    pub(crate) fn stand_in(&self, column: usize, bytes: usize) -> CellRef<'static> {
        let spec = &self.table.columns[column];
        if !self.told[column].swap(true, Ordering::Relaxed) {
            tracing::error!(
                table = self.table.wire_name(),
                column = spec.name,
                place = %self.place,
                mebibytes = bytes >> 20,
                limit_mebibytes = self.row_bytes_max >> 20,
                "a value is left out, here and wherever it occurs in this column, because its row is larger than a row may be; null or nothing stands in its place"
            );
        }
        emptiest(spec)
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
