//! A query's materialisation: build, hydrate, advance, read.

use std::ops::ControlFlow;
use std::sync::Arc;

use rows::{Key, Row, Schema, Table, Version};

use crate::advance::Advance;
use crate::build::{self, BuildError};
use crate::changes::{Changes, same_table};
use crate::delta::{Del, Delta, KeyedTable, Put};
use crate::hydrate;
use crate::level::Program;
use crate::query::Query;
use crate::source::{Source, SourceError};
use crate::state::State;

/// The keys of a query's result at one version, and what it takes to bring them to another.
///
/// Every method that can fail leaves the graph as it was when it fails.
#[derive(Debug)]
pub struct Graph {
    pub(crate) program: Program,
    pub(crate) state: State,
}

/// Why a graph was not advanced; it is still at its old version.
#[derive(Debug, thiserror::Error)]
pub enum AdvanceError {
    /// Call [`Graph::rehydrate`] instead.
    #[error("the query must be hydrated anew: {0}")]
    NeedsRehydrate(RehydrateReason),
    /// The graph's plans do not fit the table any longer: build a new graph.
    #[error("table {table} has another shape than the one the query was built for")]
    SchemaChanged { table: String },
    #[error(transparent)]
    Source(#[from] SourceError),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RehydrateReason {
    #[error("the contents of table {table} changed as a whole")]
    Reset { table: String },
    #[error("following the changes costs more than {budget} row visits, hydration costs about {hydration}")]
    Cost { budget: u64, hydration: u64 },
}

impl Graph {
    /// `keys` gives the primary key that the client schema declares for a table, as positions ([`Table::key`] if it declares
    /// none).
    pub fn build(query: &Query, schema: &Schema, keys: &dyn Fn(&Table) -> Vec<usize>) -> Result<Graph, BuildError> {
        let program = build::build(query, schema, keys)?;
        let state = State::new(&program);
        Ok(Graph { program, state })
    }

    /// Computes the result at the source's version. Every row is handed over once, in a fixed order.
    pub fn hydrate(&mut self, source: &mut dyn Source, each: &mut dyn FnMut(Put)) -> Result<(), SourceError> {
        self.hydrate_while(source, &mut |put| {
            each(put);
            ControlFlow::Continue(())
        })
    }

    /// Like [`Graph::hydrate`], until a row is not wanted any more. Then the graph is of no use.
    pub fn hydrate_while(
        &mut self,
        source: &mut dyn Source,
        each: &mut dyn FnMut(Put) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        let tables = &self.program.tables;
        self.state = hydrate::hydrate(&self.program, source, &mut |table, key, row| {
            each(Put { table: Arc::clone(&tables[table]), key: key.clone(), row })
        })?;
        Ok(())
    }

    /// Follows `changes` from the graph's version to the source's. Gives up within a cost of about twice that of hydration.
    pub fn advance(&mut self, source: &mut dyn Source, changes: &Changes) -> Result<Delta, AdvanceError> {
        // Small graphs must not re-hydrate for a batch that is merely larger than they are.
        const ALWAYS_FOLLOWED: u64 = 10_000;
        self.advance_within(source, changes, ALWAYS_FOLLOWED + 2 * self.hydration_cost())
    }

    /// Like [`Graph::advance`], giving up after visiting `budget` rows.
    pub fn advance_within(
        &mut self,
        source: &mut dyn Source,
        changes: &Changes,
        budget: u64,
    ) -> Result<Delta, AdvanceError> {
        for keyed in &self.program.tables {
            let Some(changed) = changes.table(&keyed.table.name) else { continue };
            if !same_table(&keyed.table, &changed.table) {
                return Err(AdvanceError::SchemaChanged { table: keyed.table.name.to_string() });
            }
            if changed.reset {
                return Err(AdvanceError::NeedsRehydrate(RehydrateReason::Reset {
                    table: keyed.table.name.to_string(),
                }));
            }
        }
        if !self.affected_by(changes) {
            return Ok(Delta::default());
        }
        Advance::new(&self.program, &mut self.state, source, changes, budget).run()
    }

    /// Computes the result at the source's version from scratch and returns the difference from the graph's.
    pub fn rehydrate(&mut self, source: &mut dyn Source) -> Result<Delta, SourceError> {
        let mut delta = Delta::default();
        let (tables, old) = (&self.program.tables, &self.state.rows);
        let fresh = hydrate::hydrate(&self.program, source, &mut |table, key, row| {
            if old[table].get(key).is_none_or(|entry| entry.version != row.version()) {
                delta.puts.push(Put { table: Arc::clone(&tables[table]), key: key.clone(), row });
            }
            ControlFlow::Continue(())
        })?;
        for (table, rows) in old.iter().enumerate() {
            let gone = rows.keys().filter(|key| !fresh.rows[table].contains_key(*key));
            delta.dels.extend(gone.map(|key| Del { table: Arc::clone(&tables[table]), key: key.clone() }));
        }
        delta.sort();
        self.state = fresh;
        Ok(delta)
    }

    /// Hands over every row of the result once, reading a source that is at the graph's version.
    pub fn read(&self, source: &mut dyn Source, each: &mut dyn FnMut(Put)) -> Result<(), SourceError> {
        let tables = &self.program.tables;
        hydrate::read(&self.program, &self.state, source, &mut |table, key, row| {
            each(Put { table: Arc::clone(&tables[table]), key, row });
        })
    }

    /// The tables that the query reads, its EXISTS conditions included.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<KeyedTable>> {
        self.program.tables.iter()
    }

    /// Keys and versions of the result's rows, in no particular order.
    pub fn rows(&self) -> impl Iterator<Item = (&Arc<KeyedTable>, &Key, Version)> {
        self.program
            .tables
            .iter()
            .zip(&self.state.rows)
            .flat_map(|(table, rows)| rows.iter().map(move |(key, entry)| (table, key, entry.version)))
    }

    /// Rows of the result.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.state.rows.iter().map(|rows| rows.len()).sum()
    }

    /// The version of a row of the result.
    #[must_use]
    pub fn version_of(&self, table: &str, key: &Key) -> Option<Version> {
        let index = self.program.tables.iter().position(|t| &*t.table.name == table)?;
        self.state.rows[index].get(key).map(|entry| entry.version)
    }

    /// Rows that a hydration visits at least: those of the last one, or those of the result by now.
    #[must_use]
    pub fn hydration_cost(&self) -> u64 {
        self.state.scanned.max(self.row_count() as u64)
    }

    /// Approximate bytes held.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.state.memory()
    }
}

/// What hydration and reading hand over: index of the table, key, row.
pub(crate) type EachRow<'a> = &'a mut dyn FnMut(usize, &Key, Row) -> ControlFlow<()>;
