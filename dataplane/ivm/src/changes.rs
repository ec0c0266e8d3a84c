//! The net difference between two versions of the base tables.

use std::sync::Arc;

use rows::{Batch, Key, RowChange, Table};
use rustc_hash::FxHashMap;

/// What one or several consecutive batches changed. Every row occurs at most once per table.
#[derive(Debug, Default)]
pub struct Changes {
    tables: Vec<TableChanges>,
    by_name: FxHashMap<Arc<str>, usize>,
}

#[derive(Debug)]
pub struct TableChanges {
    /// As of the last batch.
    pub table: Arc<Table>,
    /// The contents changed as a whole: `rows` is not the difference.
    pub reset: bool,
    rows: Vec<RowChange>,
    /// The replica key of each row.
    keys: Vec<Key>,
    by_key: FxHashMap<Key, usize>,
}

impl Changes {
    /// The net changes of consecutive batches, oldest first: a row has its state before the first and after the last.
    #[must_use]
    pub fn merge(batches: &[Arc<Batch>]) -> Changes {
        let mut changes = Changes::default();
        for batch in batches {
            for part in &batch.tables {
                changes.table_mut(&part.table, part.reset).add(&part.rows);
            }
        }
        for table in &mut changes.tables {
            table.settle();
        }
        changes
    }

    fn table_mut(&mut self, table: &Arc<Table>, reset: bool) -> &mut TableChanges {
        let index = *self.by_name.entry(Arc::clone(&table.name)).or_insert_with(|| {
            self.tables.push(TableChanges {
                table: Arc::clone(table),
                reset,
                rows: Vec::new(),
                keys: Vec::new(),
                by_key: FxHashMap::default(),
            });
            self.tables.len() - 1
        });
        let changes = &mut self.tables[index];
        if !same_table(&changes.table, table) {
            // Rows of two shapes do not form one difference.
            changes.reset = true;
            changes.table = Arc::clone(table);
        }
        if reset {
            changes.reset = true;
        }
        if changes.reset {
            changes.clear();
        }
        changes
    }

    #[must_use]
    pub fn table(&self, name: &str) -> Option<&TableChanges> {
        self.by_name.get(name).map(|&i| &self.tables[i])
    }

    pub fn tables(&self) -> impl Iterator<Item = &TableChanges> {
        self.tables.iter()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.iter().all(|t| !t.reset && t.rows.is_empty())
    }
}

impl TableChanges {
    #[must_use]
    pub fn rows(&self) -> &[RowChange] {
        &self.rows
    }

    /// The replica key of the row at `index` of [`TableChanges::rows`].
    #[must_use]
    pub fn key(&self, index: usize) -> &Key {
        &self.keys[index]
    }

    /// Whether the row with this replica key changed.
    #[must_use]
    pub fn contains(&self, replica_key: &Key) -> bool {
        self.by_key.contains_key(replica_key)
    }

    /// How the row with this replica key changed, if it did.
    #[must_use]
    pub fn get(&self, replica_key: &Key) -> Option<&RowChange> {
        self.by_key.get(replica_key).map(|&i| &self.rows[i])
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.keys.clear();
        self.by_key.clear();
    }

    fn add(&mut self, rows: &[RowChange]) {
        if self.reset {
            return;
        }
        for change in rows {
            let Some(row) = change.new.as_ref().or(change.old.as_ref()) else { continue };
            let key = row.key(&self.table.key);
            if let Some(&index) = self.by_key.get(&key) {
                self.rows[index].new.clone_from(&change.new);
            } else {
                self.by_key.insert(key.clone(), self.rows.len());
                self.keys.push(key);
                self.rows.push(change.clone());
            }
        }
    }

    /// Drops rows that came and went between the two versions.
    fn settle(&mut self) {
        if self.rows.iter().all(|r| r.old.is_some() || r.new.is_some()) {
            return;
        }
        let rows = std::mem::take(&mut self.rows);
        self.clear();
        let rows: Vec<RowChange> = rows.into_iter().filter(|r| r.old.is_some() || r.new.is_some()).collect();
        self.add(&rows);
    }
}

/// Whether rows of both have the same cells and key.
pub(crate) fn same_table(a: &Arc<Table>, b: &Arc<Table>) -> bool {
    Arc::ptr_eq(a, b) || (a.columns == b.columns && a.key == b.key && a.name == b.name)
}
