//! Collects the net effect of a commit: at most one change per row and table.

use std::collections::BTreeMap;
use std::sync::Arc;

use rows::{Key, Row, RowChange, Table, TableBatch};
use rustc_hash::FxHashMap;

/// A table with more changed bytes than this in one commit is cheaper to read again than to push row by row.
const RESET_BYTES: usize = 128 << 20;

#[derive(Debug, Default)]
pub(crate) struct Net {
    tables: BTreeMap<u32, NetTable>,
    /// Tables that are gone, or whose former name is.
    gone: Vec<Arc<Table>>,
}

#[derive(Debug)]
struct NetTable {
    table: Arc<Table>,
    reset: bool,
    bytes: usize,
    /// In the order of first change, with an index by row key.
    changes: Vec<RowChange>,
    index: FxHashMap<Key, usize>,
}

impl NetTable {
    fn record(&mut self, key: Key, old: Option<Row>, new: Option<Row>) {
        self.bytes += old.as_ref().map_or(0, Row::size) + new.as_ref().map_or(0, Row::size);
        match self.index.get(&key) {
            Some(&at) => self.changes[at].new = new,
            None => {
                self.index.insert(key, self.changes.len());
                self.changes.push(RowChange { old, new });
            }
        }
    }

    fn reset(&mut self) {
        self.reset = true;
        self.changes = Vec::new();
        self.index = FxHashMap::default();
    }
}

impl Net {
    fn table(&mut self, oid: u32, table: &Arc<Table>) -> &mut NetTable {
        self.tables.entry(oid).or_insert_with(|| NetTable {
            table: Arc::clone(table),
            reset: false,
            bytes: 0,
            changes: Vec::new(),
            index: FxHashMap::default(),
        })
    }

    /// One step of one row: `old` as it was just before, `new` as it is now.
    pub(crate) fn record(&mut self, oid: u32, table: &Arc<Table>, old: Option<Row>, new: Option<Row>) {
        let entry = self.table(oid, table);
        if entry.reset {
            return;
        }
        let old_key = old.as_ref().map(|r| r.key(&table.key));
        let new_key = new.as_ref().map(|r| r.key(&table.key));
        match (old_key, new_key) {
            (Some(a), Some(b)) if a != b => {
                entry.record(a, old, None);
                entry.record(b, None, new);
            }
            (Some(key), _) | (None, Some(key)) => entry.record(key, old, new),
            (None, None) => {}
        }
        if entry.bytes > RESET_BYTES {
            entry.reset();
        }
    }

    /// The table changed as a whole and is now `table`.
    pub(crate) fn reset(&mut self, oid: u32, table: &Arc<Table>) {
        let entry = self.table(oid, table);
        entry.table = Arc::clone(table);
        entry.reset();
    }

    /// The description of the table changed, not its contents.
    pub(crate) fn redescribe(&mut self, oid: u32, table: &Arc<Table>) {
        if let Some(entry) = self.tables.get_mut(&oid) {
            entry.table = Arc::clone(table);
        }
    }

    /// Nothing is found under the table's name any longer.
    pub(crate) fn remove(&mut self, oid: u32, table: &Arc<Table>) {
        self.tables.remove(&oid);
        self.gone.push(Arc::clone(table));
    }

    pub(crate) fn finish(self) -> Vec<TableBatch> {
        let mut batches: Vec<TableBatch> = Vec::new();
        for entry in self.tables.into_values() {
            let rows: Vec<RowChange> = entry.changes.into_iter().filter(is_change).collect();
            if entry.reset || !rows.is_empty() {
                batches.push(TableBatch { table: entry.table, reset: entry.reset, rows });
            }
        }
        for table in self.gone {
            match batches.iter_mut().find(|b| b.table.name == table.name) {
                // Another table has taken the name.
                Some(batch) => {
                    batch.reset = true;
                    batch.rows.clear();
                }
                None => batches.push(TableBatch { table, reset: true, rows: Vec::new() }),
            }
        }
        batches
    }
}

fn is_change(change: &RowChange) -> bool {
    match (&change.old, &change.new) {
        (Some(old), Some(new)) => !old.same_cells(new),
        (None, None) => false,
        _ => true,
    }
}
