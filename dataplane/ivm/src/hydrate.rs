//! From nothing to a result: the root is scanned, then each level's partitions in the order in which their parents came. It ends
//! early, with a state of no use, when a row is not wanted.

use std::ops::ControlFlow;

use rows::{Key, Row};

use crate::graph::EachRow;
use crate::level::{Level, Program};
use crate::source::{ScanArgs, Source, SourceError};
use crate::state::{Entry, Partition, State, bit};

pub(crate) fn hydrate(program: &Program, source: &mut dyn Source, each: EachRow<'_>) -> Result<State, SourceError> {
    let mut state = State::new(program);
    let mut waiting: Vec<Vec<Key>> = program.levels.iter().map(|_| Vec::new()).collect();
    if let Some(root) = waiting.first_mut() {
        root.push(Key::from_values(&[]));
        state.partitions[0].insert(Key::from_values(&[]), Partition { refs: 1, ..Partition::default() });
    }
    let mut flow = ControlFlow::Continue(());
    for (n, level) in program.levels.iter().enumerate() {
        let keyed = &program.tables[level.rows.table];
        for key in std::mem::take(&mut waiting[n]) {
            let mut size = 0;
            let mut last = None;
            source.scan(&level.rows.plan, partition_scan(level, &key), &mut |row| {
                size += 1;
                for &child in &level.children {
                    let parent = program.levels[child].parent.as_ref().expect("a child level has a parent");
                    let Some(joined) = parent.correlation.of_parent(&row) else { continue };
                    match state.partitions[child].get_mut(&joined) {
                        Some(partition) => partition.refs += 1,
                        None => {
                            waiting[child].push(joined.clone());
                            state.partitions[child].insert(joined, Partition { refs: 1, ..Partition::default() });
                        }
                    }
                }
                if level.limit == Some(size) {
                    last = Some(row.clone());
                }
                let key = keyed.key_of(&row);
                if let Some(entry) = state.rows[level.rows.table].get_mut(&key) {
                    entry.mask |= bit(n);
                } else {
                    let entry = Entry { mask: bit(n), version: row.version() };
                    flow = each(level.rows.table, &key, row);
                    state.rows[level.rows.table].insert(key, entry);
                }
                flow
            })?;
            if flow.is_break() {
                return Ok(state);
            }
            state.scanned += size;
            let partition = state.partitions[n].get_mut(&key).expect("inserted when it was queued");
            partition.size = size;
            partition.bound = last.map(|row| level.rows.plan.order.position(&row));
        }
    }
    Ok(state)
}

/// Hands over every present row once, at the lowest of its levels.
pub(crate) fn read(
    program: &Program,
    state: &State,
    source: &mut dyn Source,
    each: &mut dyn FnMut(usize, Key, Row),
) -> Result<(), SourceError> {
    for (n, level) in program.levels.iter().enumerate() {
        let table = level.rows.table;
        let mut keys: Vec<&Key> = state.partitions[n].keys().collect();
        keys.sort_unstable();
        for key in keys {
            source.scan(&level.rows.plan, partition_scan(level, key), &mut |row| {
                let key = program.tables[table].key_of(&row);
                let lowest = state.rows[table].get(&key).map(|entry| entry.mask.trailing_zeros() as usize);
                if lowest == Some(n) {
                    each(table, key, row);
                }
                ControlFlow::Continue(())
            })?;
        }
    }
    Ok(())
}

/// All of a partition, up to its limit.
pub(crate) fn partition_scan<'a>(level: &Level, key: &'a Key) -> ScanArgs<'a> {
    ScanArgs { constraint: level.parent.is_some().then_some(key), limit: level.limit, ..ScanArgs::default() }
}
