//! How many rows an access to a table reads: from the statistics that ANALYZE keeps, which are averages, and, for the children
//! of an EXISTS, where the skew of real data matters most, by counting.

use std::cell::RefCell;

use ivm::filter::{Exists, Filter};
use ivm::query::Op;
use rusqlite::Connection;
use rustc_hash::FxHashMap;

use crate::error::Fault;
use crate::layout::{Catalog, Layout, index_columns};

/// Statistics are taken once a table has a thousand rows.
const UNKNOWN_ROWS: f64 = 1000.0;
/// Rows per key assumed where an index has no statistics.
const UNKNOWN_PER_KEY: f64 = 10.0;

#[derive(Debug, Default)]
pub(crate) struct Stats {
    tables: FxHashMap<u32, TableStats>,
}

#[derive(Debug, Default)]
struct TableStats {
    rows: Option<f64>,
    indexes: Vec<IndexStats>,
}

#[derive(Debug)]
struct IndexStats {
    /// `attnum`s.
    columns: Vec<i16>,
    /// Average number of rows that share the first 1, 2, … columns.
    per_key: Vec<f64>,
}

impl Stats {
    pub(crate) fn read(conn: &Connection) -> Result<Stats, Fault> {
        let analyzed: bool =
            conn.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'sqlite_stat1'", [], |row| row.get(0))?;
        let stat = if analyzed { "(SELECT stat FROM sqlite_stat1 WHERE idx = s.name)" } else { "NULL" };
        let mut statement =
            conn.prepare(&format!("SELECT tbl_name, name, {stat} FROM sqlite_schema AS s WHERE type = 'index'"))?;
        let mut rows = statement.query([])?;
        let mut stats = Stats::default();
        while let Some(row) = rows.next()? {
            let (table, name, stat): (String, String, Option<String>) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let Some(oid) = table.strip_prefix('t').and_then(|oid| oid.parse().ok()) else { continue };
            let Some(columns) = index_columns(oid, &name) else { continue };
            let numbers: Vec<f64> = stat.iter().flat_map(|s| s.split(' ')).map_while(|n| n.parse().ok()).collect();
            let entry = stats.tables.entry(oid).or_default();
            if let Some((&first, per_key)) = numbers.split_first() {
                entry.rows = Some(first.max(1.0));
                entry.indexes.push(IndexStats { columns, per_key: per_key.to_vec() });
            } else {
                entry.indexes.push(IndexStats { columns, per_key: Vec::new() });
            }
        }
        Ok(stats)
    }
}

impl Stats {
    /// Rows of a table when it was last analysed; small ones never are.
    pub(crate) fn analyzed_rows(&self, oid: u32) -> Option<f64> {
        self.tables.get(&oid)?.rows
    }
}

/// Whether EXISTS conditions count as ways to find rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByExists {
    Yes,
    No,
}

/// Counted children of EXISTS conditions, by the id of the child's plan.
pub(crate) type Counted = RefCell<FxHashMap<u64, f64>>;

#[derive(Clone, Copy)]
pub(crate) struct Estimator<'a> {
    pub catalog: &'a Catalog,
    pub stats: &'a Stats,
    pub counted: &'a Counted,
}

/// The cheapest access to rows of a table.
pub(crate) struct Access {
    pub rows: f64,
    /// Leading columns (`attnum`s) of the index that is used; empty for another way.
    pub columns: Vec<i16>,
}

impl Estimator<'_> {
    /// Rows read by the best index for the filter and for equality of the visible columns `equal`.
    pub(crate) fn accessed(self, layout: &Layout, filter: &Filter, equal: &[usize], by: ByExists) -> f64 {
        self.access(layout, filter, equal, by).rows
    }

    pub(crate) fn access(self, layout: &Layout, filter: &Filter, equal: &[usize], by: ByExists) -> Access {
        let mut fixed: Vec<(i16, f64)> = equal.iter().map(|&c| (layout.attnum(c), 1.0)).collect();
        let mut best = Access { rows: self.rows(layout), columns: Vec::new() };
        self.collect(layout, filter, by, &mut fixed, &mut best.rows);
        let Some(stats) = self.stats.tables.get(&layout.spec.oid) else { return best };
        for index in &stats.indexes {
            let mut keys = 1.0;
            for (i, column) in index.columns.iter().enumerate() {
                let Some(&(_, count)) = fixed.iter().find(|(c, _)| c == column) else { break };
                keys *= count;
                let per_key = index.per_key.get(i).copied().unwrap_or(if i == 0 { UNKNOWN_PER_KEY } else { 1.0 });
                if keys * per_key < best.rows {
                    best = Access { rows: keys * per_key, columns: index.columns[..=i].to_vec() };
                }
            }
        }
        best
    }

    fn collect(self, layout: &Layout, filter: &Filter, by: ByExists, fixed: &mut Vec<(i16, f64)>, best: &mut f64) {
        match filter {
            Filter::And(parts) => parts.iter().for_each(|part| self.collect(layout, part, by, fixed, best)),
            Filter::Or(parts) => {
                let sum = parts.iter().map(|part| self.accessed(layout, part, &[], by)).sum();
                *best = best.min(sum);
            }
            Filter::Compare { column, op: Op::Eq | Op::Is, .. } => fixed.push((layout.attnum(*column), 1.0)),
            Filter::In { column, negated: false, values } => fixed.push((layout.attnum(*column), values.len() as f64)),
            Filter::Exists(e) if by == ByExists::Yes && !e.negated && e.parent.len() == 1 => {
                fixed.push((layout.attnum(e.parent[0]), self.children(e)));
            }
            Filter::Compare { .. } | Filter::In { .. } | Filter::Like { .. } | Filter::Exists(_) => {}
        }
    }

    /// Rows read to list all children of an EXISTS, whatever their parent.
    pub(crate) fn children(self, exists: &Exists) -> f64 {
        if let Some(&counted) = self.counted.borrow().get(&exists.plan.id) {
            return counted;
        }
        match self.catalog.by_name(&exists.plan.table.name) {
            Some(child) => self.accessed(child, &exists.plan.filter, &[], ByExists::Yes),
            None => UNKNOWN_ROWS,
        }
    }

    pub(crate) fn rows(self, layout: &Layout) -> f64 {
        self.stats.tables.get(&layout.spec.oid).and_then(|t| t.rows).unwrap_or(UNKNOWN_ROWS)
    }

    /// Whether some index leads to the rows with given values in one of the visible columns.
    pub(crate) fn indexed(self, layout: &Layout, columns: &[usize]) -> bool {
        let indexes = self.stats.tables.get(&layout.spec.oid).map_or(&[][..], |t| &t.indexes);
        indexes
            .iter()
            .any(|i| i.columns.first().is_some_and(|first| columns.iter().any(|&c| layout.attnum(c) == *first)))
    }

    /// Whether an index yields rows in the order of a visible column, once the columns `equal` are fixed.
    pub(crate) fn ordered(self, layout: &Layout, equal: &[usize], first: usize) -> bool {
        let equal: Vec<i16> = equal.iter().map(|&c| layout.attnum(c)).collect();
        let indexes = self.stats.tables.get(&layout.spec.oid).map_or(&[][..], |t| &t.indexes);
        let first = layout.attnum(first);
        indexes.iter().any(|i| i.columns.iter().find(|c| !equal.contains(c)) == Some(&first))
    }
}

/// The columns that a conjunction fixes to one value.
pub(crate) fn fixed_columns(filter: &Filter, into: &mut Vec<usize>) {
    match filter {
        Filter::And(parts) => parts.iter().for_each(|part| fixed_columns(part, into)),
        Filter::Compare { column, op: Op::Eq | Op::Is, .. } => into.push(*column),
        _ => {}
    }
}
