//! The changing part of a graph: which rows are present where, and how the partitions stand.

use rows::{Key, Version};
use rustc_hash::FxHashMap;

use crate::level::Program;

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Per table of the program: the rows of the result by client key.
    pub rows: Vec<FxHashMap<Key, Entry>>,
    /// Per level: its partitions with references, by correlation key. The root has one, with the empty key.
    pub partitions: Vec<FxHashMap<Key, Partition>>,
    /// Rows that hydration scanned: the price of starting over.
    pub scanned: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Bit n is set while the row is present in level n. Zero only in the middle of an advance.
    pub mask: u128,
    pub version: Version,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Present rows of the parent level that join this partition; one for the root.
    pub refs: u32,
    /// Present rows of the partition.
    pub size: u64,
    /// Position of the last row, iff the partition is limited and holds as many rows as its limit allows. Rows behind it may
    /// exist and are not present.
    pub bound: Option<Key>,
}

impl State {
    pub fn new(program: &Program) -> State {
        State {
            rows: program.tables.iter().map(|_| FxHashMap::default()).collect(),
            partitions: program.levels.iter().map(|_| FxHashMap::default()).collect(),
            scanned: 0,
        }
    }

    pub fn present(&self, table: usize, key: &Key, level: usize) -> bool {
        self.rows[table].get(key).is_some_and(|e| e.mask & bit(level) != 0)
    }
}

pub(crate) fn bit(level: usize) -> u128 {
    1 << level
}

impl State {
    pub fn memory(&self) -> usize {
        // A hash table holds up to 8/7 slots per entry at best and twice that at worst, and a control byte per slot.
        let slots = |len: usize, size: usize| len * (size + 1) * 3 / 2;
        let key = |key: &Key| key.as_bytes().len() + 16;
        let rows: usize = self
            .rows
            .iter()
            .map(|rows| slots(rows.len(), size_of::<(Key, Entry)>()) + rows.keys().map(key).sum::<usize>())
            .sum();
        let partitions: usize = self
            .partitions
            .iter()
            .map(|all| {
                let bytes = all.iter().map(|(k, p)| key(k) + p.bound.as_ref().map_or(0, key)).sum::<usize>();
                slots(all.len(), size_of::<(Key, Partition)>()) + bytes
            })
            .sum();
        rows + partitions
    }
}
