//! EXISTS conditions between two versions: for which keys did the answer change?
//!
//! The answer at S1 is asked of the source. The answer at S0 needs no reconstruction: it is the opposite for the keys whose
//! answer flipped and the same for all others. Inner conditions are settled before outer ones, so an outer one can take the
//! S0 answers of the inner ones for granted.

use std::ops::ControlFlow;

use rows::{Key, Row};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::advance::{Advance, Stop};
use crate::eval;
use crate::filter::Filter;
use crate::level::{ExistsNode, Selection};
use crate::source::ScanArgs;

/// For the keys whose answer changed: the answer at S0.
pub(crate) type Flips = FxHashMap<Key, bool>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Before,
    After,
}

/// Whether a child row that passes was found among the candidates.
#[derive(Clone, Copy, Default)]
struct Seen {
    before: bool,
    after: bool,
}

impl Advance<'_> {
    /// Settles every condition, in the order of the program: inner ones first.
    pub(crate) fn settle_conditions(&mut self) -> Result<(), Stop> {
        for id in 0..self.program.exists.len() {
            self.settle(id)?;
        }
        Ok(())
    }

    fn settle(&mut self, id: usize) -> Result<(), Stop> {
        let node = &self.program.exists[id];
        let rows = &*node.rows;
        let changed = self.changed[rows.table];
        let inner_flips = rows.conditions.iter().any(|c| !self.flips[c.exists].is_empty());
        if changed.is_none() && !inner_flips {
            return Ok(());
        }
        let mut seen: FxHashMap<Key, Seen> = FxHashMap::default();
        for change in changed.iter().flat_map(|c| c.rows()) {
            self.spend(1)?;
            if !inner_flips && !node.reads(change) {
                continue;
            }
            if let Some(old) = &change.old
                && rows.has_constants(old)
                && let Some(key) = node.correlation.of_child(old)
                && self.passes(rows, old, At::Before)?
            {
                seen.entry(key).or_default().before = true;
            }
            if let Some(new) = &change.new
                && rows.has_constants(new)
                && let Some(key) = node.correlation.of_child(new)
                && self.passes(rows, new, At::After)?
            {
                seen.entry(key).or_default().after = true;
            }
        }
        // Rows outside of the batch, for which an inner condition flipped. They count as candidates as well.
        let mut dirty = FxHashSet::default();
        if inner_flips {
            for row in self.dirty_rows(rows, None)? {
                if !rows.has_constants(&row) {
                    continue;
                }
                let Some(key) = node.correlation.of_child(&row) else { continue };
                dirty.insert(row.key(&rows.plan.table.key));
                let (before, after) = (self.passes(rows, &row, At::Before)?, self.passes(rows, &row, At::After)?);
                let seen = seen.entry(key).or_default();
                seen.before |= before;
                seen.after |= after;
            }
        }
        let mut undecided: Vec<(Key, bool)> =
            seen.into_iter().filter(|(_, s)| s.before != s.after).map(|(key, s)| (key, s.before)).collect();
        undecided.sort_unstable();
        for (key, before) in undecided {
            // Any other row answers the same at both versions, and then nothing changed.
            if !self.any_other(node, &key, |row| {
                let replica_key = row.key(&rows.plan.table.key);
                match changed.and_then(|c| c.get(&replica_key)) {
                    Some(change) => inner_flips || node.reads(change),
                    None => dirty.contains(&replica_key),
                }
            })? {
                self.flips[id].insert(key, before);
            }
        }
        Ok(())
    }

    /// Whether a row joins `key` and passes at S1 that is not a `candidate`.
    fn any_other(&mut self, node: &ExistsNode, key: &Key, candidate: impl Fn(&Row) -> bool) -> Result<bool, Stop> {
        let (mut found, mut visited) = (false, 1);
        let args = ScanArgs { constraint: Some(key), ..ScanArgs::default() };
        self.source.scan(&node.rows.plan, args, &mut |row| {
            visited += 1;
            found = !candidate(&row);
            if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        self.spend(visited)?;
        Ok(found)
    }

    /// Rows outside of the batch that depend on a flipped condition of `rows`, each once; up to `bound` in the order of the
    /// plan, if there is one.
    pub(crate) fn dirty_rows(&mut self, rows: &Selection, bound: Option<&Key>) -> Result<Vec<Row>, Stop> {
        let changed = self.changed[rows.table];
        let mut found = Vec::new();
        let mut known = FxHashSet::default();
        for condition in &rows.conditions {
            if self.flips[condition.exists].is_empty() {
                continue;
            }
            let mut keys: Vec<&Key> = self.flips[condition.exists].keys().collect();
            keys.sort_unstable();
            let keys: Vec<Key> = keys
                .into_iter()
                .filter_map(|key| self.program.exists[condition.exists].correlation.in_parent(key))
                .collect();
            for key in keys {
                let mut visited = 1;
                let left = self.budget.saturating_sub(self.work);
                let args = ScanArgs {
                    constraint: Some(&key),
                    after: bound.map(|b| (b, true)),
                    reverse: bound.is_some(),
                    limit: None,
                };
                self.source.scan(&condition.dependents, args, &mut |row| {
                    visited += 1;
                    let replica_key = row.key(&rows.plan.table.key);
                    if !changed.is_some_and(|c| c.contains(&replica_key)) && known.insert(replica_key) {
                        found.push(row);
                    }
                    if visited > left { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })?;
                self.spend(visited)?;
            }
        }
        Ok(found)
    }

    /// Whether a condition of `rows` flipped for this row.
    pub(crate) fn flipped(&self, rows: &Selection, row: &Row) -> bool {
        rows.conditions.iter().any(|condition| {
            let flips = &self.flips[condition.exists];
            !flips.is_empty()
                && self.program.exists[condition.exists]
                    .correlation
                    .of_parent(row)
                    .is_some_and(|key| flips.contains_key(&key))
        })
    }

    /// Whether a row passes the filter of `rows`, its EXISTS conditions taken at one of the two versions.
    pub(crate) fn passes(&mut self, rows: &Selection, row: &Row, at: At) -> Result<bool, Stop> {
        self.filter_passes(&rows.plan.filter, row, at)
    }

    fn filter_passes(&mut self, filter: &Filter, row: &Row, at: At) -> Result<bool, Stop> {
        eval::matches(filter, row, &mut |condition, row| {
            let Some(key) = self.program.exists[condition.id].correlation.of_parent(row) else { return Ok(false) };
            if let Some(&before) = self.flips[condition.id].get(&key) {
                return Ok(if at == At::Before { before } else { !before });
            }
            if let Some(&answer) = self.answers[condition.id].get(&key) {
                return Ok(answer);
            }
            self.spend(1)?;
            let answer = self.source.any(&condition.plan, &key)?;
            self.answers[condition.id].insert(key, answer);
            Ok(answer)
        })
    }
}
