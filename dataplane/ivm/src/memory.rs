//! Base tables in memory, scanned by brute force: the reference meaning of [`Source`], for tests and comparison.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;

use rows::{Batch, Key, Row, RowChange, Table};

use crate::correlation::Correlation;
use crate::eval;
use crate::source::{ScanArgs, ScanPlan, Source, SourceError};

#[derive(Clone, Debug, Default)]
pub struct MemorySource {
    /// Rows by replica key.
    tables: BTreeMap<Arc<str>, BTreeMap<Key, Row>>,
}

impl MemorySource {
    #[must_use]
    pub fn new() -> MemorySource {
        MemorySource::default()
    }

    /// Moves the tables to the version of `batch`.
    pub fn apply(&mut self, batch: &Batch) {
        for part in &batch.tables {
            let rows = self.tables.entry(Arc::clone(&part.table.name)).or_default();
            for RowChange { old, new } in &part.rows {
                if let Some(old) = old {
                    rows.remove(&old.key(&part.table.key));
                }
                if let Some(new) = new {
                    rows.insert(new.key(&part.table.key), new.clone());
                }
            }
        }
    }

    /// Inserts or replaces a row.
    pub fn put(&mut self, table: &Table, row: Row) {
        self.tables.entry(Arc::clone(&table.name)).or_default().insert(row.key(&table.key), row);
    }

    /// The rows of a table by replica key.
    pub fn rows(&self, table: &str) -> impl Iterator<Item = &Row> {
        self.tables.get(table).into_iter().flat_map(BTreeMap::values)
    }

    #[must_use]
    pub fn get(&self, table: &str, replica_key: &Key) -> Option<&Row> {
        self.tables.get(table)?.get(replica_key)
    }

    /// Rows of the plan with the given constraint, in no particular order.
    fn select<'a>(&'a self, plan: &'a ScanPlan, constraint: Option<&'a Key>) -> impl Iterator<Item = &'a Row> {
        self.rows(&plan.table.name).filter(move |row| {
            let joined = constraint.is_none_or(|key| {
                plan.constraint.iter().enumerate().all(|(i, &column)| row.get(column).eq_join(key.get(i)))
            });
            let started = plan.start.as_ref().is_none_or(|start| {
                let order = plan.order.compare_to_position(row, &start.position);
                order.is_gt() || (order.is_eq() && start.inclusive)
            });
            joined && started && self.passes(plan, row)
        })
    }

    fn passes(&self, plan: &ScanPlan, row: &Row) -> bool {
        let Ok(passes) = eval::matches::<Infallible>(&plan.filter, row, &mut |exists, row| {
            let correlation = Correlation::new(
                &plan.table,
                exists.parent.clone(),
                &exists.plan.table,
                exists.plan.constraint.clone(),
            );
            let key = correlation.of_parent(row);
            Ok(key.is_some_and(|key| self.select(&exists.plan, Some(&key)).next().is_some()))
        });
        passes
    }
}

impl Source for MemorySource {
    fn scan(
        &mut self,
        plan: &ScanPlan,
        args: ScanArgs<'_>,
        each: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        debug_assert_eq!(args.constraint.map_or(0, Key::len), plan.constraint.len(), "one cell per constrained column");
        let direction = |order: std::cmp::Ordering| if args.reverse { order.reverse() } else { order };
        let mut rows: Vec<&Row> = self
            .select(plan, args.constraint)
            .filter(|row| {
                args.after.is_none_or(|(position, inclusive)| {
                    let order = direction(plan.order.compare_to_position(row, position));
                    order.is_gt() || (order.is_eq() && inclusive)
                })
            })
            .collect();
        rows.sort_by(|a, b| direction(plan.order.compare(a, b)));
        let limit = args.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        for row in rows.into_iter().take(limit) {
            if each(row.clone()).is_break() {
                break;
            }
        }
        Ok(())
    }
}
