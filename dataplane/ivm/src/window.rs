//! One partition of a level: what is about to happen to its rows, and how a limit cuts them.

use std::ops::ControlFlow;

use rows::{Key, Row, SortKey};
use rustc_hash::FxHashMap;

use crate::advance::{Advance, Stop};
use crate::level::Level;
use crate::source::ScanArgs;
use crate::state::Partition;

/// What happens to the row with one client key in one partition.
#[derive(Debug, Default)]
pub(crate) struct Move {
    /// The row at S0, if it is present.
    pub old: Option<Row>,
    /// The row at S1, if it will be present.
    pub new: Option<Row>,
}

/// The moves of one partition, by client key. Every key occurs once, so the size at S1 follows by counting.
#[derive(Debug, Default)]
pub(crate) struct Moves(pub FxHashMap<Key, Move>);

impl Moves {
    pub fn leave(&mut self, key: Key, old: Row) {
        self.0.entry(key).or_default().old = Some(old);
    }

    pub fn enter(&mut self, key: Key, new: Row) {
        self.0.entry(key).or_default().new = Some(new);
    }

    /// Takes a row out that the window does not reach any longer: a present row leaves, a newcomer never appears.
    fn evict(&mut self, key: Key, row: Row) {
        match self.0.get_mut(&key) {
            None => self.leave(key, row),
            Some(known) if known.old.is_none() => {
                self.0.remove(&key);
            }
            Some(known) => known.new = None,
        }
    }

    /// The number of rows after all moves.
    pub fn size_after(&self, before: u64) -> u64 {
        let entering = self.0.values().filter(|m| m.old.is_none()).count() as u64;
        let leaving = self.0.values().filter(|m| m.new.is_none()).count() as u64;
        before + entering - leaving
    }

    /// Whether the row at `bound` left or changed its place.
    fn lost(&self, order: &SortKey, bound: &Key) -> bool {
        let at = |row: &Option<Row>| row.as_ref().is_some_and(|r| order.compare_to_position(r, bound).is_eq());
        self.0.values().any(|m| at(&m.old) && !at(&m.new))
    }
}

impl Advance<'_> {
    /// Completes the moves of a limited partition that stays active. They contain what is known of rows up to the old bound
    /// (of all rows, if there is none); rows beyond it are found here. Returns the partition as it will be.
    pub(crate) fn fit_window(
        &mut self,
        level: &Level,
        limit: u64,
        key: &Key,
        partition: &Partition,
        moves: &mut Moves,
    ) -> Result<Partition, Stop> {
        let order = &level.rows.plan.order;
        let bound = partition.bound.as_ref();
        let count = moves.size_after(partition.size);
        let (size, bound) = if count > limit {
            // From the end backwards: the rows to evict, then the new last one.
            let evicted = count - limit;
            let mut rows = self.tail(level, key, bound, evicted + 1)?;
            let last = rows.pop().filter(|_| rows.len() as u64 == evicted);
            let last = last.expect("a window that is too full has a row at its limit");
            for row in rows {
                moves.evict(self.program.tables[level.rows.table].key_of(&row), row);
            }
            (limit, Some(order.position(&last)))
        } else if count < limit && bound.is_some() {
            let refill = self.scan_rows(level, key, bound.map(|b| (b, false)), false, limit - count)?;
            let last = refill.last().map(|row| order.position(row));
            let size = count + refill.len() as u64;
            for row in refill {
                moves.enter(self.program.tables[level.rows.table].key_of(&row), row);
            }
            (size, last.filter(|_| size == limit))
        } else if count == limit && bound.is_none_or(|b| moves.lost(order, b)) {
            let last = self.tail(level, key, bound, 1)?.pop();
            (limit, Some(order.position(&last.expect("a full window has a last row"))))
        } else {
            (count, partition.bound.clone())
        };
        Ok(Partition { refs: partition.refs, size, bound })
    }

    /// The last `limit` rows up to `bound`, backwards.
    fn tail(&mut self, level: &Level, key: &Key, bound: Option<&Key>, limit: u64) -> Result<Vec<Row>, Stop> {
        self.scan_rows(level, key, bound.map(|b| (b, true)), true, limit)
    }

    fn scan_rows(
        &mut self,
        level: &Level,
        key: &Key,
        after: Option<(&Key, bool)>,
        reverse: bool,
        limit: u64,
    ) -> Result<Vec<Row>, Stop> {
        let mut rows = Vec::new();
        let args = ScanArgs { constraint: level.parent.is_some().then_some(key), after, reverse, limit: Some(limit) };
        self.source.scan(&level.rows.plan, args, &mut |row| {
            rows.push(row);
            ControlFlow::Continue(())
        })?;
        self.spend(1 + rows.len() as u64)?;
        Ok(rows)
    }
}
