//! Scans of one version of the replica.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ivm::source::{ScanArgs, ScanPlan, Source, SourceError};
use rows::{Key, Row, RowBuilder, Schema, Version};
use rusqlite::Connection;
use rustc_hash::FxHashMap;

use crate::bound::{Class, Shape, class, shape};
use crate::cells::{bind, from_stored, literal};
use crate::compile::{Compiled, Param, Planner, Variant};
use crate::connection;
use crate::error::{At, Error, Fault};
use crate::estimate::{Counted, Estimator, Stats};
use crate::layout::Catalog;
use crate::meta::{self, State};

const CACHE_KIB: u32 = 8 << 10;
const STATEMENTS: usize = 512;
/// Plans come and go with queries; beyond this the texts are made again.
const MAX_COMPILED: usize = 4096;

/// One connection for reading. Between [`Reader::begin`] and [`Reader::end`] it sees one version.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    conn: Connection,
    state: State,
    catalog: Catalog,
    stats: Stats,
    compiled: FxHashMap<(u64, u128), Arc<Compiled>>,
    counted: Counted,
}

impl Reader {
    pub fn open(path: &Path) -> Result<Reader, Error> {
        let conn = connect(path).at(path, "open for reading")?;
        let mut reader = Reader {
            path: path.to_path_buf(),
            state: meta::read_state(&conn).at(path, "read the version")?,
            conn,
            catalog: Catalog::default(),
            stats: Stats::default(),
            compiled: FxHashMap::default(),
            counted: Counted::default(),
        };
        reader.refresh().at(path, "read the table descriptions")?;
        Ok(reader)
    }

    /// Starts a read transaction at the newest version. The file keeps every later change in its WAL until [`Reader::end`].
    pub fn begin(&mut self) -> Result<Version, Error> {
        self.pin().map_err(|fault| {
            self.abandon();
            fault.at(&self.path, "begin a read transaction")
        })
    }

    fn pin(&mut self) -> Result<Version, Fault> {
        self.conn.prepare_cached("BEGIN")?.execute([])?;
        let mut state = meta::read_state(&self.conn)?;
        if state.stats_epoch != self.state.stats_epoch || state.schema_epoch != self.state.schema_epoch {
            // Only a new connection reads the planner's statistics again.
            self.conn = connect(&self.path)?;
            self.conn.prepare_cached("BEGIN")?.execute([])?;
            state = meta::read_state(&self.conn)?;
            self.state = state;
            self.refresh()?;
        }
        self.state = state;
        Ok(state.version)
    }

    pub fn end(&mut self) {
        self.abandon();
    }

    fn abandon(&self) {
        if !self.conn.is_autocommit()
            && let Err(e) = self.conn.execute_batch("ROLLBACK")
        {
            tracing::warn!(path = %self.path.display(), error = %e, "ending a read transaction failed");
        }
    }

    /// The version of the current or last read transaction.
    #[must_use]
    pub fn version(&self) -> Version {
        self.state.version
    }

    /// The schema at [`Reader::version`].
    #[must_use]
    pub fn schema(&self) -> Arc<Schema> {
        Arc::clone(&self.catalog.schema)
    }

    /// How many rows a table has, if they are many and no index leads to those with given values in these columns.
    #[must_use]
    pub fn lacks_index(&self, table: &str, columns: &[&str]) -> Option<u64> {
        let layout = self.catalog.by_name(table)?;
        let visible = layout.table.as_ref().ok()?;
        let positions = columns.iter().map(|c| visible.position(c)).collect::<Option<Vec<usize>>>()?;
        let rows = self.stats.analyzed_rows(layout.spec.oid)?;
        let estimator = Estimator { catalog: &self.catalog, stats: &self.stats, counted: &self.counted };
        (!positions.is_empty() && !estimator.indexed(layout, &positions)).then_some(rows as u64)
    }

    fn refresh(&mut self) -> Result<(), Fault> {
        self.catalog = meta::read_catalog(&self.conn)?;
        self.stats = Stats::read(&self.conn)?;
        self.forget_plans();
        Ok(())
    }

    fn forget_plans(&mut self) {
        self.compiled.clear();
        self.counted.borrow_mut().clear();
    }

    /// The statements that a scan would run, with the way SQLite would run them.
    pub fn explain(&mut self, plan: &ScanPlan, args: ScanArgs<'_>) -> Result<Vec<(String, Vec<String>)>, SourceError> {
        let compiled = self.compile(plan, variant(args, false)).map_err(|f| failed(plan, &f))?;
        let explain = |sql: &str| -> Result<Vec<String>, Fault> {
            let mut statement = self.conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
            let mut rows = statement.raw_query();
            let mut steps = Vec::new();
            while let Some(row) = rows.next()? {
                steps.push(row.get(3)?);
            }
            Ok(steps)
        };
        compiled
            .statements
            .iter()
            .map(|(sql, _)| Ok((sql.clone(), explain(sql).map_err(|f| failed(plan, &f))?)))
            .collect()
    }

    fn compile(&mut self, plan: &ScanPlan, variant: Variant<'_>) -> Result<Arc<Compiled>, Fault> {
        let Some(code) = code(plan, variant) else { return self.build(plan, variant).map(Arc::new) };
        if let Some(compiled) = self.compiled.get(&(plan.id, code)) {
            return Ok(Arc::clone(compiled));
        }
        let compiled = Arc::new(self.build(plan, variant)?);
        if self.compiled.len() >= MAX_COMPILED {
            self.forget_plans();
        }
        self.compiled.insert((plan.id, code), Arc::clone(&compiled));
        Ok(compiled)
    }

    fn build(&self, plan: &ScanPlan, variant: Variant<'_>) -> Result<Compiled, Fault> {
        let estimator = Estimator { catalog: &self.catalog, stats: &self.stats, counted: &self.counted };
        Planner { conn: &self.conn, catalog: &self.catalog, estimator }.compile(plan, variant)
    }

    fn run(
        &mut self,
        plan: &ScanPlan,
        args: ScanArgs<'_>,
        probe: bool,
        each: &mut dyn FnMut(Option<Row>) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        if let Some(key) = args.constraint {
            // SQLite would convert between classes; here a key of another class joins nothing.
            let columns = &plan.table.columns;
            if plan.constraint.iter().enumerate().any(|(i, &c)| class(columns[c].ty, key.get(i)) != Class::Same) {
                return Ok(());
            }
        }
        let compiled = self.compile(plan, variant(args, probe))?;
        let min_version = self.catalog.by_name(&plan.table.name).map_or(Version::ZERO, |l| l.min_version);
        let columns = &plan.table.columns;
        let mut left = args.limit;
        for (sql, params) in &compiled.statements {
            if left == Some(0) {
                break;
            }
            let mut statement = self.conn.prepare_cached(sql)?;
            for (i, param) in params.iter().enumerate() {
                let value = match param {
                    Param::Fixed(value) => literal(value.as_ref()),
                    Param::Constraint(at) => literal(args.constraint.map_or(rows::ValueRef::Null, |k| k.get(*at))),
                    Param::After(at) => literal(args.after.map_or(rows::ValueRef::Null, |(k, _)| k.get(*at))),
                    Param::Limit => {
                        rusqlite::types::ValueRef::Integer(i64::try_from(left.unwrap_or(u64::MAX)).unwrap_or(i64::MAX))
                    }
                };
                bind(&mut statement, i + 1, value)?;
            }
            let mut found = statement.raw_query();
            while let Some(row) = found.next()? {
                left = left.map(|n| n.saturating_sub(1));
                let row = if probe {
                    None
                } else {
                    let mut builder = RowBuilder::new(columns.len());
                    for (i, column) in columns.iter().enumerate() {
                        builder.push(from_stored(column.ty, row.get_ref(i)?)?);
                    }
                    let version: i64 = row.get(columns.len())?;
                    Some(builder.finish(Version::new(version as u64).max(min_version)))
                };
                if each(row).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

impl Source for Reader {
    fn scan(
        &mut self,
        plan: &ScanPlan,
        args: ScanArgs<'_>,
        each: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        let mut each = |row: Option<Row>| row.map_or(ControlFlow::Continue(()), &mut *each);
        self.run(plan, args, false, &mut each).map_err(|f| failed(plan, &f))
    }

    fn any(&mut self, plan: &ScanPlan, constraint: &Key) -> Result<bool, SourceError> {
        let args = ScanArgs { constraint: Some(constraint), limit: Some(1), ..ScanArgs::default() };
        let mut found = false;
        let mut each = |_| {
            found = true;
            ControlFlow::Break(())
        };
        self.run(plan, args, true, &mut each).map_err(|f| failed(plan, &f))?;
        Ok(found)
    }
}

fn connect(path: &Path) -> Result<Connection, Fault> {
    connection::open(path, true, CACHE_KIB, STATEMENTS)
}

fn variant(args: ScanArgs<'_>, probe: bool) -> Variant<'_> {
    Variant { probe, reverse: args.reverse, limit: args.limit, after: args.after }
}

fn failed(plan: &ScanPlan, fault: &Fault) -> SourceError {
    SourceError { table: plan.table.name.to_string(), message: fault.to_string() }
}

/// Everything about a scan that its SQL depends on, in a number; `None` for orderings of too many columns to remember.
fn code(plan: &ScanPlan, variant: Variant<'_>) -> Option<u128> {
    let mut code =
        u128::from(variant.probe) | u128::from(variant.reverse) << 1 | u128::from(variant.limit.is_some()) << 2;
    if let Some((position, inclusive)) = variant.after {
        if position.len() > 59 {
            return None;
        }
        code |= 1 << 3 | u128::from(inclusive) << 4;
        for (i, &(column, _)) in plan.order.0.iter().enumerate().take(position.len()) {
            let shape = match shape(plan.table.columns[column].ty, position.get(i)) {
                Shape::Value => 0,
                Shape::Null => 1,
                Shape::Below => 2,
                Shape::Above => 3,
            };
            code |= shape << (8 + 2 * i);
        }
    }
    Some(code)
}
