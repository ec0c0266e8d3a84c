//! What leaves the engine: rows that a query's result gained, changed or lost between two versions.

use std::sync::Arc;

use rows::{Key, Row, Table};

/// A table with the key by which clients know its rows.
#[derive(Debug)]
pub struct KeyedTable {
    pub table: Arc<Table>,
    /// Positions of the primary key that the client schema declares, in its order.
    pub key: Vec<usize>,
    /// Whether clients and replica use the same key.
    pub(crate) same_key: bool,
}

impl KeyedTable {
    #[must_use]
    pub fn new(table: Arc<Table>, key: Vec<usize>) -> KeyedTable {
        let same_key = key == table.key;
        KeyedTable { table, key, same_key }
    }

    #[must_use]
    pub fn key_of(&self, row: &Row) -> Key {
        row.key(&self.key)
    }

    /// Whether a table of the same columns keeps this key unique, so that it names one row at most.
    #[must_use]
    pub fn is_unique_in(&self, table: &Table) -> bool {
        let mut key = self.key.clone();
        key.sort_unstable();
        table.unique_keys.contains(&key)
    }
}

/// A row that entered the result or whose content changed.
#[derive(Clone, Debug)]
pub struct Put {
    pub table: Arc<KeyedTable>,
    pub key: Key,
    pub row: Row,
}

impl Put {
    /// The cells of the replica's own key: with the table's name they say which row of the database it is, whatever key the
    /// client schema chose.
    #[must_use]
    pub fn identity(&self) -> Key {
        if self.table.same_key { self.key.clone() } else { self.row.key(&self.table.table.key) }
    }
}

/// A row that left the result.
#[derive(Clone, Debug)]
pub struct Del {
    pub table: Arc<KeyedTable>,
    pub key: Key,
}

/// Every row occurs at most once. Sorted by table name and key, so that equal graphs have equal deltas.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    pub puts: Vec<Put>,
    pub dels: Vec<Del>,
}

impl Delta {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.dels.is_empty()
    }

    pub(crate) fn sort(&mut self) {
        self.puts.sort_unstable_by(|a, b| (&a.table.table.name, &a.key).cmp(&(&b.table.table.name, &b.key)));
        self.dels.sort_unstable_by(|a, b| (&a.table.table.name, &a.key).cmp(&(&b.table.table.name, &b.key)));
    }
}
