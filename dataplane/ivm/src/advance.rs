//! From S0 to S1 in one pass over the levels, parents first.
//!
//! S0 is never read: whether a row was present is the bit that the graph keeps, and its old cells are in the batch if they
//! differ. Everything that is changed on the way is remembered first, so that a failure puts it back.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use rows::{Key, Row};
use rustc_hash::FxHashMap;

use crate::changes::{Changes, TableChanges};
use crate::delta::{Del, Delta, Put};
use crate::exists::{At, Flips};
use crate::graph::{AdvanceError, RehydrateReason};
use crate::hydrate::partition_scan;
use crate::level::{Level, Program};
use crate::source::{ScanArgs, Source, SourceError};
use crate::state::{Entry, Partition, State, bit};
use crate::window::{Move, Moves};

pub(crate) struct Advance<'a> {
    pub program: &'a Program,
    pub source: &'a mut dyn Source,
    /// Per table of the program.
    pub changed: Vec<Option<&'a TableChanges>>,
    /// Per EXISTS condition: the keys whose answer changed, with the answer at S0.
    pub flips: Vec<Flips>,
    /// Per EXISTS condition: answers at S1 that were asked of the source.
    pub answers: Vec<FxHashMap<Key, bool>>,
    /// Rows visited, and how many may be.
    pub work: u64,
    pub budget: u64,
    state: &'a mut State,
    /// Per level: partitions that changed, as they were at S0 (without references if they were not there).
    before: Vec<FxHashMap<Key, Partition>>,
    /// Per table: rows whose presence or content changed.
    touched: Vec<FxHashMap<Key, Touched>>,
}

/// A row that an advance changed.
struct Touched {
    before: Option<Entry>,
    /// Its latest state; `None` if it only left levels.
    row: Option<Row>,
}

/// Why an advance stops half-way.
pub(crate) enum Stop {
    Source(SourceError),
    OverBudget,
}

impl From<SourceError> for Stop {
    fn from(error: SourceError) -> Stop {
        Stop::Source(error)
    }
}

/// A row of a level's table that may enter, change or leave. Both sides have the same client key.
struct Candidate<'a> {
    key: Key,
    old: Option<&'a Row>,
    new: Option<&'a Row>,
    /// Both sides are the same row, outside of the batch.
    unchanged: bool,
}

impl<'a> Advance<'a> {
    pub fn new(
        program: &'a Program,
        state: &'a mut State,
        source: &'a mut dyn Source,
        changes: &'a Changes,
        budget: u64,
    ) -> Advance<'a> {
        let maps = |n: usize| (0..n).map(|_| FxHashMap::default()).collect::<Vec<_>>();
        Advance {
            changed: program
                .tables
                .iter()
                .map(|t| changes.table(&t.table.name).filter(|c| !c.rows().is_empty()))
                .collect(),
            flips: maps(program.exists.len()),
            answers: maps(program.exists.len()),
            before: program.levels.iter().map(|_| FxHashMap::default()).collect(),
            touched: program.tables.iter().map(|_| FxHashMap::default()).collect(),
            work: 0,
            budget,
            program,
            source,
            state,
        }
    }

    pub fn run(mut self) -> Result<Delta, AdvanceError> {
        match self.levels() {
            Ok(()) => Ok(self.finish()),
            Err(stop) => {
                self.roll_back();
                Err(match stop {
                    Stop::Source(error) => AdvanceError::Source(error),
                    Stop::OverBudget => AdvanceError::NeedsRehydrate(RehydrateReason::Cost {
                        budget: self.budget,
                        hydration: self.state.scanned,
                    }),
                })
            }
        }
    }

    /// Counts visited rows against the budget.
    pub fn spend(&mut self, rows: u64) -> Result<(), Stop> {
        self.work += rows;
        if self.work > self.budget { Err(Stop::OverBudget) } else { Ok(()) }
    }

    fn levels(&mut self) -> Result<(), Stop> {
        self.settle_conditions()?;
        let program = self.program;
        for (n, level) in program.levels.iter().enumerate() {
            self.level(n, level)?;
        }
        Ok(())
    }

    fn level(&mut self, n: usize, level: &Level) -> Result<(), Stop> {
        let dirty = level.rows.conditions.iter().any(|c| !self.flips[c.exists].is_empty());
        if self.changed[level.rows.table].is_none() && !dirty && self.before[n].is_empty() {
            return Ok(());
        }
        let mut staged: BTreeMap<Key, Moves> = BTreeMap::new();
        self.stage_batch(n, level, &mut staged)?;
        if dirty {
            self.stage_dirty(n, level, &mut staged)?;
        }
        self.stage_partitions(n, level, &mut staged)?;
        self.fit(n, level, &mut staged)?;
        self.apply(n, level, staged);
        Ok(())
    }

    /// Changed rows of the level's table.
    fn stage_batch(&mut self, n: usize, level: &Level, staged: &mut BTreeMap<Key, Moves>) -> Result<(), Stop> {
        let Some(changed) = self.changed[level.rows.table] else { return Ok(()) };
        let keyed = &self.program.tables[level.rows.table];
        for (i, change) in changed.rows().iter().enumerate() {
            self.spend(1)?;
            let (old, new) = (change.old.as_ref(), change.new.as_ref());
            if keyed.same_key {
                let key = changed.key(i).clone();
                self.stage(n, level, Candidate { key, old, new, unchanged: false }, staged)?;
                continue;
            }
            let old_key = old.map(|row| keyed.key_of(row));
            let new_key = new.map(|row| keyed.key_of(row));
            if old_key == new_key {
                let key = old_key.expect("a change has a row on one side");
                self.stage(n, level, Candidate { key, old, new, unchanged: false }, staged)?;
                continue;
            }
            // To clients these are two rows.
            if let Some(key) = old_key {
                self.stage(n, level, Candidate { key, old, new: None, unchanged: false }, staged)?;
            }
            if let Some(key) = new_key {
                self.stage(n, level, Candidate { key, old: None, new, unchanged: false }, staged)?;
            }
        }
        Ok(())
    }

    /// Rows outside of the batch for which an EXISTS condition of the level flipped.
    fn stage_dirty(&mut self, n: usize, level: &Level, staged: &mut BTreeMap<Key, Moves>) -> Result<(), Stop> {
        // The root has one partition, so its bound limits the search.
        let bound = match level.parent {
            None => self.state.partitions[n].values().next().and_then(|p| p.bound.clone()),
            Some(_) => None,
        };
        let keyed = &self.program.tables[level.rows.table];
        for row in self.dirty_rows(&level.rows, bound.as_ref())? {
            let candidate = Candidate { key: keyed.key_of(&row), old: Some(&row), new: Some(&row), unchanged: true };
            self.stage(n, level, candidate, staged)?;
        }
        Ok(())
    }

    fn stage(
        &mut self,
        n: usize,
        level: &Level,
        candidate: Candidate<'_>,
        staged: &mut BTreeMap<Key, Moves>,
    ) -> Result<(), Stop> {
        let Candidate { key, old, new, unchanged } = candidate;
        let was = old.is_some() && self.state.present(level.rows.table, &key, n);
        let target = match new {
            Some(new) => self.target(n, level, old, new, was)?,
            None => None,
        };
        if unchanged {
            // A partition that goes is swept as a whole later.
            let Some(row) = new else { return Ok(()) };
            let Some(partition) = level.partition_of(row) else { return Ok(()) };
            if !self.stays_active(n, &partition) {
                return Ok(());
            }
            match (was, target.is_some()) {
                (true, false) => staged.entry(partition).or_default().leave(key, row.clone()),
                (false, true) => staged.entry(partition).or_default().enter(key, row.clone()),
                _ => {}
            }
            return Ok(());
        }
        if was && let Some(old) = old {
            let source = level.partition_of(old).expect("a present row is in a partition");
            staged.entry(source).or_default().leave(key.clone(), old.clone());
        }
        if let (Some(partition), Some(new)) = (target, new) {
            staged.entry(partition).or_default().enter(key, new.clone());
        }
        Ok(())
    }

    /// The partition in which `new` will be present, as far as its window reached at S0. `None` also for partitions that become
    /// active: those are hydrated as a whole.
    fn target(
        &mut self,
        n: usize,
        level: &Level,
        old: Option<&Row>,
        new: &Row,
        was: bool,
    ) -> Result<Option<Key>, Stop> {
        let rows = &*level.rows;
        if !rows.has_constants(new) || !rows.started(new) {
            return Ok(None);
        }
        let Some(key) = level.partition_of(new) else { return Ok(None) };
        if !self.stays_active(n, &key) {
            return Ok(None);
        }
        let bound = self.state.partitions[n].get(&key).and_then(|p| p.bound.as_ref());
        let within = |row: &Row| bound.is_none_or(|b| rows.plan.order.compare_to_position(row, b).is_le());
        if !within(new) {
            return Ok(None);
        }
        // Where the window has room or reaches, presence at S0 tells what the filter said.
        if let Some(old) = old
            && rows.reads_same(old, new)
            && (was || (within(old) && rows.started(old) && level.partition_of(old).as_ref() == Some(&key)))
            && !self.flipped(rows, new)
        {
            return Ok(was.then_some(key));
        }
        Ok(self.passes(rows, new, At::After)?.then_some(key))
    }

    /// Whether a partition has references at both versions.
    fn stays_active(&self, n: usize, key: &Key) -> bool {
        self.state.partitions[n].get(key).is_some_and(|p| p.refs > 0)
            && self.before[n].get(key).is_none_or(|p| p.refs > 0)
    }

    /// Partitions that lost their last reference are emptied, those that got their first are hydrated.
    fn stage_partitions(&mut self, n: usize, level: &Level, staged: &mut BTreeMap<Key, Moves>) -> Result<(), Stop> {
        let (mut gone, mut come) = (Vec::new(), Vec::new());
        for (key, before) in &self.before[n] {
            let refs = self.state.partitions[n].get(key).map_or(0, |p| p.refs);
            if before.refs > 0 && refs == 0 {
                gone.push(key.clone());
            } else if before.refs == 0 && refs > 0 {
                come.push(key.clone());
            }
        }
        gone.sort_unstable();
        come.sort_unstable();
        for key in gone {
            self.sweep(n, level, &key, staged)?;
        }
        for key in come {
            self.fill(n, level, key, staged)?;
        }
        Ok(())
    }

    /// Every row that was present in a partition leaves. Those of the batch are staged already.
    fn sweep(&mut self, n: usize, level: &Level, key: &Key, staged: &mut BTreeMap<Key, Moves>) -> Result<(), Stop> {
        let table = level.rows.table;
        let (changed, keyed) = (self.changed[table], &self.program.tables[table]);
        let size = self.state.partitions[n].get(key).map_or(0, |p| p.size);
        let staged = staged.entry(key.clone()).or_default();
        let mut left = staged.size_after(size);
        if left > 0 {
            let (state, mut visited) = (&*self.state, 1);
            let args = ScanArgs { constraint: Some(key), ..ScanArgs::default() };
            // Which conditions hold now does not matter for what was there.
            self.source.scan(&level.rows.relaxed, args, &mut |row| {
                visited += 1;
                let in_batch = changed.is_some_and(|c| c.contains(&row.key(&keyed.table.key)));
                let client_key = keyed.key_of(&row);
                if !in_batch && state.present(table, &client_key, n) {
                    staged.leave(client_key, row);
                    left -= 1;
                }
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            self.spend(visited)?;
        }
        debug_assert_eq!(left, 0, "a partition is emptied completely");
        Ok(())
    }

    fn fill(&mut self, n: usize, level: &Level, key: Key, staged: &mut BTreeMap<Key, Moves>) -> Result<(), Stop> {
        let keyed = &self.program.tables[level.rows.table];
        let left = self.budget.saturating_sub(self.work);
        let mut moves = Moves::default();
        let (mut size, mut last) = (0, None);
        self.source.scan(&level.rows.plan, partition_scan(level, &key), &mut |row| {
            size += 1;
            if level.limit == Some(size) {
                last = Some(level.rows.plan.order.position(&row));
            }
            moves.enter(keyed.key_of(&row), row);
            if size > left { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        self.spend(1 + size)?;
        let partition = self.state.partitions[n].get_mut(&key).expect("a partition with references exists");
        partition.size = size;
        partition.bound = last;
        if size > 0 {
            staged.insert(key, moves);
        }
        Ok(())
    }

    /// Sizes and bounds of the partitions that are active at both versions.
    fn fit(&mut self, n: usize, level: &Level, staged: &mut BTreeMap<Key, Moves>) -> Result<(), Stop> {
        for (key, moves) in staged {
            if !self.stays_active(n, key) {
                continue;
            }
            let partition = self.state.partitions[n].get(key).expect("it is active").clone();
            let fitted = match level.limit {
                Some(limit) => self.fit_window(level, limit, key, &partition, moves)?,
                None => Partition { size: moves.size_after(partition.size), ..partition.clone() },
            };
            debug_assert_eq!(fitted.size, moves.size_after(partition.size), "the size counts the rows");
            debug_assert!(level.limit.is_none_or(|limit| fitted.size <= limit), "a window keeps its limit");
            if fitted != partition {
                self.before[n].entry(key.clone()).or_insert(partition);
                self.state.partitions[n].insert(key.clone(), fitted);
            }
        }
        Ok(())
    }

    /// Carries the moves out. Rows leave before any enter, because a key can do both in different partitions.
    fn apply(&mut self, n: usize, level: &Level, staged: BTreeMap<Key, Moves>) {
        let table = level.rows.table;
        let moves: Vec<(Key, Move)> = staged.into_values().flat_map(|m| m.0).collect();
        for (key, _) in moves.iter().filter(|(_, m)| m.old.is_some() && m.new.is_none()) {
            self.touch(table, key).mask &= !bit(n);
        }
        for (key, row) in moves.iter().filter_map(|(key, m)| Some((key, m.new.as_ref()?))) {
            let entry = self.touch(table, key);
            entry.mask |= bit(n);
            entry.version = row.version();
            let touched = self.touched[table].get_mut(key).expect("just touched");
            touched.row = Some(row.clone());
        }
        for &child in &level.children {
            let parent = self.program.levels[child].parent.as_ref().expect("a child level has a parent");
            for (_, Move { old, new }) in &moves {
                if let (Some(old), Some(new)) = (old, new)
                    && parent.correlation.same_parent_cells(old, new)
                {
                    continue;
                }
                if let Some(key) = new.as_ref().and_then(|row| parent.correlation.of_parent(row)) {
                    self.refer(child, key);
                }
                if let Some(key) = old.as_ref().and_then(|row| parent.correlation.of_parent(row)) {
                    self.release(child, &key);
                }
            }
        }
        // Children look at references by way of `before`; what has none is of no use to anyone else.
        let partitions = &mut self.state.partitions[n];
        for key in self.before[n].keys() {
            if partitions.get(key).is_some_and(|p| p.refs == 0) {
                partitions.remove(key);
            }
        }
    }

    /// The entry of a row that is about to change, remembered as it was.
    fn touch(&mut self, table: usize, key: &Key) -> &mut Entry {
        let rows = &mut self.state.rows[table];
        if !self.touched[table].contains_key(key) {
            let before = rows.get(key).copied();
            self.touched[table].insert(key.clone(), Touched { before, row: None });
        }
        rows.entry(key.clone()).or_insert(Entry { mask: 0, version: rows::Version::ZERO })
    }

    fn refer(&mut self, level: usize, key: Key) {
        let partition = self.state.partitions[level].entry(key.clone()).or_default();
        self.before[level].entry(key).or_insert_with(|| partition.clone());
        partition.refs += 1;
    }

    fn release(&mut self, level: usize, key: &Key) {
        let partition = self.state.partitions[level].get_mut(key).expect("a present row refers to its partitions");
        if !self.before[level].contains_key(key) {
            self.before[level].insert(key.clone(), partition.clone());
        }
        partition.refs -= 1;
    }

    fn finish(self) -> Delta {
        let mut delta = Delta::default();
        for (table, touched) in self.touched.into_iter().enumerate() {
            let keyed = &self.program.tables[table];
            for (key, touched) in touched {
                let entry = self.state.rows[table].get(&key).copied().expect("touched rows have entries");
                if entry.mask == 0 {
                    self.state.rows[table].remove(&key);
                    if touched.before.is_some() {
                        delta.dels.push(Del { table: Arc::clone(keyed), key });
                    }
                } else if touched.before.is_none_or(|before| before.version != entry.version) {
                    let row = touched.row.expect("a row with new content was seen");
                    delta.puts.push(Put { table: Arc::clone(keyed), key, row });
                }
            }
        }
        delta.sort();
        delta
    }

    fn roll_back(&mut self) {
        for (rows, touched) in self.state.rows.iter_mut().zip(std::mem::take(&mut self.touched)) {
            for (key, touched) in touched {
                match touched.before {
                    Some(entry) => rows.insert(key, entry),
                    None => rows.remove(&key),
                };
            }
        }
        for (partitions, before) in self.state.partitions.iter_mut().zip(std::mem::take(&mut self.before)) {
            for (key, partition) in before {
                if partition.refs > 0 {
                    partitions.insert(key, partition);
                } else {
                    partitions.remove(&key);
                }
            }
        }
    }
}
