//! A quick answer to whether changes can concern a graph at all: no reads, no allocation per level that is not concerned.

use rows::{Key, Row};

use crate::changes::{Changes, TableChanges};
use crate::eval::may_match;
use crate::graph::Graph;
use crate::level::Level;

impl Graph {
    /// Whether [`Graph::advance`] could have anything to do. `false` is certain, `true` is not.
    #[must_use]
    pub fn affected_by(&self, changes: &Changes) -> bool {
        self.program.tables.iter().enumerate().any(|(table, keyed)| {
            changes.table(&keyed.table.name).is_some_and(|changed| changed.reset || self.table_affected(table, changed))
        })
    }

    fn table_affected(&self, table: usize, changed: &TableChanges) -> bool {
        let exists = self.program.exists.iter().filter(|e| e.rows.table == table);
        let mut levels = self.program.levels.iter().enumerate().filter(|(_, level)| level.rows.table == table);
        for condition in exists {
            let may = |row: &Row| condition.rows.has_constants(row) && may_match(&condition.rows.plan.filter, row);
            if changed.rows().iter().any(|c| c.old.as_ref().is_some_and(may) || c.new.as_ref().is_some_and(may)) {
                return true;
            }
        }
        levels.any(|(n, level)| {
            changed.rows().iter().enumerate().any(|(i, change)| {
                change.new.as_ref().is_some_and(|row| self.may_enter(n, level, row))
                    || change.old.as_ref().is_some_and(|row| self.is_member(n, table, row, changed.key(i)))
            })
        })
    }

    fn is_member(&self, level: usize, table: usize, row: &Row, replica_key: &Key) -> bool {
        let rows = &self.state.rows[table];
        if rows.is_empty() {
            return false;
        }
        let keyed = &self.program.tables[table];
        if keyed.same_key {
            self.state.present(table, replica_key, level)
        } else {
            self.state.present(table, &keyed.key_of(row), level)
        }
    }

    /// Whether a row could be in a level, going by its own cells and the partitions that are active now.
    fn may_enter(&self, n: usize, level: &Level, row: &Row) -> bool {
        if !level.rows.has_constants(row) || !level.rows.started(row) || !may_match(&level.rows.plan.filter, row) {
            return false;
        }
        // Rows of a level above may activate its partition, but then that level is affected as well.
        let Some(key) = level.partition_of(row) else { return false };
        self.state.partitions[n].get(&key).is_some_and(|partition| {
            let bound = partition.bound.as_ref();
            bound.is_none_or(|bound| level.rows.plan.order.compare_to_position(row, bound).is_le())
        })
    }
}
