//! From a query and a schema to the fixed part of a graph.

use std::sync::Arc;

use rows::{ColumnType, Direction, Key, Schema, SortKey, Table, Value};
use rustc_hash::FxHashMap;

use crate::correlation::{Correlation, cell_as};
use crate::delta::KeyedTable;
use crate::filter::{Exists, Filter};
use crate::fold;
use crate::level::{Condition as Dependency, ExistsNode, Level, Parent, Program, Selection, next_plan_id};
use crate::query::{Condition, EXISTS_SAMPLE, Literal, Op, Query, Related};
use crate::source::{ScanPlan, Start};

/// Levels of one graph: a row's presence is one bit per level.
pub const MAX_LEVELS: usize = 128;
/// Nesting of related queries, EXISTS and and/or together; storage parses nested SQL within its own limit of 1,000.
pub const MAX_DEPTH: usize = 48;
/// Values of one IN list; storage binds at most 32,766 parameters.
pub const MAX_IN_VALUES: usize = 10_000;
/// Conditions of one query, whatever their kind.
pub const MAX_CONDITIONS: usize = 4_096;
/// EXISTS conditions of one query, synced or not.
pub const MAX_EXISTS: usize = 256;
/// LIKE and ILIKE patterns of one query, in number and in bytes together: each is matched with every changed row of its table.
pub const MAX_PATTERNS: usize = 256;
pub const MAX_PATTERN_BYTES: usize = 16 << 10;
/// Bytes of all literals of one query.
pub const MAX_LITERAL_BYTES: usize = 1 << 20;

/// Why a query cannot be run against a schema.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BuildError {
    #[error("unknown table {table}; the replica has: {known}")]
    UnknownTable { table: String, known: String },
    #[error("table {table} cannot be queried: {reason}")]
    HiddenTable { table: String, reason: String },
    #[error("unknown column {table}.{column}; the table has: {known}")]
    UnknownColumn { table: String, column: String, known: String },
    #[error("{op} on {table}.{column} needs {wants}")]
    Type { table: String, column: String, op: String, wants: &'static str },
    #[error("{table}.{column} holds JSON and cannot be used in {role}")]
    Json { table: String, column: String, role: &'static str },
    #[error("join from {parent} to {child}: {parent_columns} columns on one side and {child_columns} on the other")]
    Correlation { parent: String, child: String, parent_columns: usize, child_columns: usize },
    #[error("the key chosen for table {table} is not a list of its columns")]
    Key { table: String },
    #[error("the query has more than {limit} {what}")]
    TooLarge { what: &'static str, limit: usize },
}

pub(crate) fn build(
    query: &Query,
    schema: &Schema,
    keys: &dyn Fn(&Table) -> Vec<usize>,
) -> Result<Program, BuildError> {
    let mut builder = Builder {
        schema,
        keys,
        conditions: 0,
        patterns: 0,
        pattern_bytes: 0,
        literal_bytes: 0,
        program: Program { tables: Vec::new(), levels: Vec::new(), exists: Vec::new() },
        by_name: FxHashMap::default(),
    };
    builder.level(query, None, &[], 0)?;
    Ok(builder.program)
}

struct Builder<'a> {
    schema: &'a Schema,
    keys: &'a dyn Fn(&Table) -> Vec<usize>,
    conditions: usize,
    patterns: usize,
    pattern_bytes: usize,
    literal_bytes: usize,
    program: Program,
    by_name: FxHashMap<Arc<str>, usize>,
}

/// What a selection is asked for besides its filter.
struct Request<'a> {
    table: usize,
    /// Columns that every scan constrains.
    constraint: &'a [usize],
    order_by: &'a [(String, Direction)],
    start: Option<&'a crate::query::Start>,
    /// Constants that follow from the parent.
    implied: Vec<(usize, Value)>,
}

impl Builder<'_> {
    /// Adds the level of `query`, and those below it, unless it can never have a row.
    fn level(
        &mut self,
        query: &Query,
        parent: Option<Parent>,
        constants_above: &[(usize, Value)],
        depth: usize,
    ) -> Result<(), BuildError> {
        check_depth(depth)?;
        let table = self.table(&query.table)?;
        let (constraint, implied) = match &parent {
            Some(parent) => {
                (parent.correlation.child.clone(), self.implied(table, &parent.correlation, constants_above))
            }
            None => (Vec::new(), Vec::new()),
        };
        let request =
            Request { table, constraint: &constraint, order_by: &query.order_by, start: query.start.as_ref(), implied };
        let exists_before = self.program.exists.len();
        let rows = self.selection(&query.filter, request, depth)?;
        let never = query.limit == Some(0) || fold::is_false(&rows.plan.filter);
        // Below a level without rows the names and types are still checked, then everything is dropped.
        let levels_before = self.program.levels.len();
        let constants = rows.constants.clone();
        let level = self.push_level(Level { rows, limit: query.limit, parent, children: Vec::new() })?;
        self.samples(level)?;
        for related in &query.related {
            let child = self.table(&related.query.table)?;
            let correlation = Arc::new(self.correlation(table, child, related)?);
            let parent = Parent { level, correlation };
            if parent.correlation.possible() {
                self.level(&related.query, Some(parent), &constants, depth + 1)?;
            }
        }
        if never {
            self.program.levels.truncate(levels_before);
            self.program.exists.truncate(exists_before);
            for level in &mut self.program.levels {
                level.children.retain(|&c| c < levels_before);
            }
        }
        Ok(())
    }

    fn push_level(&mut self, level: Level) -> Result<usize, BuildError> {
        let index = self.program.levels.len();
        if index == MAX_LEVELS {
            return Err(BuildError::TooLarge { what: "levels (related queries and synced EXISTS)", limit: MAX_LEVELS });
        }
        if let Some(parent) = &level.parent {
            self.program.levels[parent.level].children.push(index);
        }
        self.program.levels.push(level);
        Ok(index)
    }

    /// Adds the levels that bring samples of the EXISTS conditions of `level` to clients.
    fn samples(&mut self, level: usize) -> Result<(), BuildError> {
        let conditions: Vec<usize> = self.program.levels[level].rows.conditions.iter().map(|c| c.exists).collect();
        for exists in conditions {
            let node = &self.program.exists[exists];
            if !node.sampled {
                continue;
            }
            let sample = Level {
                rows: Arc::clone(&node.rows),
                limit: Some(EXISTS_SAMPLE),
                parent: Some(Parent { level, correlation: Arc::clone(&node.correlation) }),
                children: Vec::new(),
            };
            let sample = self.push_level(sample)?;
            self.samples(sample)?;
        }
        Ok(())
    }

    fn selection(
        &mut self,
        condition: &Condition,
        request: Request<'_>,
        depth: usize,
    ) -> Result<Arc<Selection>, BuildError> {
        let keyed = Arc::clone(&self.program.tables[request.table]);
        let order = self.order(&keyed, request.order_by)?;
        let start = request.start.map(|s| start_position(&keyed.table, &order, s)).transpose()?;
        self.count_literals(condition, depth)?;
        // EXISTS conditions inherit what the plain comparisons pin down, so those are compiled first.
        let mut constants = request.implied;
        self.pinned(request.table, condition, &mut constants, depth)?;
        constants.sort_by_key(|(column, _)| *column);
        constants.dedup_by_key(|(column, _)| *column);
        let filter = self.filter(request.table, condition, &constants, depth)?;

        let mut ids = Vec::new();
        let mut reads = Vec::new();
        survey(&filter, &mut ids, &mut reads);
        reads.sort_unstable();
        reads.dedup();
        let plan = |constraint: &[usize], filter: Filter| ScanPlan {
            id: next_plan_id(),
            table: Arc::clone(&keyed.table),
            constraint: constraint.to_vec(),
            filter,
            order: order.clone(),
            start: start.clone(),
        };
        let conditions = ids
            .iter()
            .map(|&exists| Dependency {
                exists,
                dependents: plan(&self.program.exists[exists].correlation.parent, fold::relax(&filter)),
            })
            .collect();
        let relaxed = (!ids.is_empty()).then(|| Arc::new(plan(request.constraint, fold::relax(&filter))));
        let plan = Arc::new(plan(request.constraint, filter));
        let relaxed = relaxed.unwrap_or_else(|| Arc::clone(&plan));
        Ok(Arc::new(Selection { table: request.table, plan, relaxed, conditions, reads, constants }))
    }

    /// Refuses conditions whose literals are too large, before anything is made of them. Those below an EXISTS are counted where
    /// it is built.
    fn count_literals(&mut self, condition: &Condition, depth: usize) -> Result<(), BuildError> {
        check_depth(depth)?;
        let (op, literal) = match condition {
            Condition::And(parts) | Condition::Or(parts) => {
                return parts.iter().try_for_each(|part| self.count_literals(part, depth + 1));
            }
            Condition::Compare { op, value, .. } => (*op, value),
            Condition::Exists { .. } => return Ok(()),
        };
        let bytes = match literal {
            Literal::One(value) => literal_bytes(value),
            Literal::Many(values) => values.iter().map(literal_bytes).sum(),
        };
        self.literal_bytes += bytes;
        if matches!(op, Op::Like | Op::NotLike | Op::ILike | Op::NotILike) {
            self.patterns += 1;
            self.pattern_bytes += bytes;
        }
        for (count, limit, what) in [
            (self.literal_bytes, MAX_LITERAL_BYTES, "bytes of literals"),
            (self.patterns, MAX_PATTERNS, "LIKE and ILIKE patterns"),
            (self.pattern_bytes, MAX_PATTERN_BYTES, "bytes of LIKE and ILIKE patterns"),
        ] {
            if count > limit {
                return Err(BuildError::TooLarge { what, limit });
            }
        }
        Ok(())
    }

    /// Columns that the top-level comparisons of a condition fix to one value.
    fn pinned(
        &mut self,
        table: usize,
        condition: &Condition,
        out: &mut Vec<(usize, Value)>,
        depth: usize,
    ) -> Result<(), BuildError> {
        check_depth(depth)?;
        match condition {
            Condition::And(parts) => parts.iter().try_for_each(|part| self.pinned(table, part, out, depth + 1)),
            Condition::Compare { column, op, value } => {
                let keyed = &self.program.tables[table];
                let column = position(&keyed.table, column)?;
                if let Filter::Compare { op: Op::Eq, value, .. } = fold::comparison(&keyed.table, column, *op, value)? {
                    out.push((column, value));
                }
                Ok(())
            }
            Condition::Or(_) | Condition::Exists { .. } => Ok(()),
        }
    }

    fn filter(
        &mut self,
        table: usize,
        condition: &Condition,
        constants: &[(usize, Value)],
        depth: usize,
    ) -> Result<Filter, BuildError> {
        check_depth(depth)?;
        self.conditions += 1;
        if self.conditions > MAX_CONDITIONS {
            return Err(BuildError::TooLarge { what: "conditions", limit: MAX_CONDITIONS });
        }
        // EXISTS conditions that folding drops are dropped here too: they are the newest ones.
        let exists_before = self.program.exists.len();
        let filter = match condition {
            Condition::And(parts) => {
                let parts: Result<Vec<_>, _> =
                    parts.iter().map(|part| self.filter(table, part, constants, depth + 1)).collect();
                fold::all(parts?)
            }
            Condition::Or(parts) => {
                // Inside an alternative the constants hold too: they come from conjuncts beside it.
                let parts: Result<Vec<_>, _> =
                    parts.iter().map(|part| self.filter(table, part, constants, depth + 1)).collect();
                fold::any(parts?)
            }
            Condition::Compare { column, op, value } => {
                let keyed = &self.program.tables[table];
                let column = position(&keyed.table, column)?;
                fold::comparison(&keyed.table, column, *op, value)?
            }
            Condition::Exists { negated, synced, related } => {
                self.exists(table, *negated, *synced, related, constants, depth)?
            }
        };
        if fold::is_true(&filter) || fold::is_false(&filter) {
            self.program.exists.truncate(exists_before);
        }
        Ok(filter)
    }

    fn exists(
        &mut self,
        table: usize,
        negated: bool,
        synced: bool,
        related: &Related,
        constants: &[(usize, Value)],
        depth: usize,
    ) -> Result<Filter, BuildError> {
        let child = self.table(&related.query.table)?;
        let correlation = Arc::new(self.correlation(table, child, related)?);
        let request = Request {
            table: child,
            constraint: &correlation.child,
            order_by: &[],
            start: None,
            implied: self.implied(child, &correlation, constants),
        };
        let rows = self.selection(&related.query.filter, request, depth + 1)?;
        let never = related.query.limit == Some(0) || fold::is_false(&rows.plan.filter) || !correlation.possible();
        if never {
            return Ok(if negated { fold::TRUE } else { fold::FALSE });
        }
        let id = self.program.exists.len();
        if id == MAX_EXISTS {
            return Err(BuildError::TooLarge { what: "EXISTS conditions", limit: MAX_EXISTS });
        }
        let parent = correlation.parent.clone();
        let plan = Arc::clone(&rows.plan);
        self.program.exists.push(ExistsNode { rows, correlation, sampled: synced && !negated });
        Ok(Filter::Exists(Exists { id, negated, parent, plan }))
    }

    /// The constants of a child's columns that are joined with constant columns of the parent.
    fn implied(&self, child: usize, correlation: &Correlation, above: &[(usize, Value)]) -> Vec<(usize, Value)> {
        let table = &self.program.tables[child].table;
        correlation
            .parent
            .iter()
            .zip(&correlation.child)
            .filter_map(|(parent, &child)| {
                let (_, value) = above.iter().find(|(column, _)| column == parent)?;
                Some((child, cell_as(value.as_ref(), table.columns[child].ty)?.to_owned()))
            })
            .collect()
    }

    fn correlation(&self, parent: usize, child: usize, related: &Related) -> Result<Correlation, BuildError> {
        let (parent, child) = (&self.program.tables[parent].table, &self.program.tables[child].table);
        if related.parent.len() != related.child.len() || related.parent.is_empty() {
            return Err(BuildError::Correlation {
                parent: parent.name.to_string(),
                child: child.name.to_string(),
                parent_columns: related.parent.len(),
                child_columns: related.child.len(),
            });
        }
        let columns = |table: &Table, names: &[String]| {
            names.iter().map(|name| comparable(table, name, "a join")).collect::<Result<Vec<_>, _>>()
        };
        let (from, to) = (columns(parent, &related.parent)?, columns(child, &related.child)?);
        Ok(Correlation::new(parent, from, child, to))
    }

    fn order(&self, keyed: &KeyedTable, order_by: &[(String, Direction)]) -> Result<SortKey, BuildError> {
        let mut order: Vec<(usize, Direction)> = Vec::with_capacity(order_by.len() + keyed.key.len());
        for (name, direction) in order_by {
            let column = comparable(&keyed.table, name, "orderBy")?;
            if order.iter().all(|(c, _)| *c != column) {
                order.push((column, *direction));
            }
        }
        for &column in &keyed.key {
            if order.iter().all(|(c, _)| *c != column) {
                order.push((column, Direction::Asc));
            }
        }
        Ok(SortKey(order))
    }

    fn table(&mut self, name: &str) -> Result<usize, BuildError> {
        if let Some(&index) = self.by_name.get(name) {
            return Ok(index);
        }
        let Some(table) = self.schema.tables.get(name) else {
            return Err(match self.schema.hidden.get(name) {
                Some(reason) => BuildError::HiddenTable { table: name.to_owned(), reason: reason.clone() },
                None => BuildError::UnknownTable {
                    table: name.to_owned(),
                    known: list(self.schema.tables.keys().map(|n| &**n)),
                },
            });
        };
        let key = (self.keys)(table);
        if key.is_empty() || key.iter().any(|&c| c >= table.columns.len()) {
            return Err(BuildError::Key { table: name.to_owned() });
        }
        let index = self.program.tables.len();
        self.program.tables.push(Arc::new(KeyedTable::new(Arc::clone(table), key)));
        self.by_name.insert(Arc::clone(&table.name), index);
        Ok(index)
    }
}

fn literal_bytes(value: &Value) -> usize {
    match value {
        Value::Str(text) | Value::Json(text) => text.len(),
        _ => size_of::<Value>(),
    }
}

fn check_depth(depth: usize) -> Result<(), BuildError> {
    if depth > MAX_DEPTH {
        return Err(BuildError::TooLarge { what: "nested queries and conditions", limit: MAX_DEPTH });
    }
    Ok(())
}

/// The EXISTS conditions of a filter and all columns that it reads.
fn survey(filter: &Filter, exists: &mut Vec<usize>, reads: &mut Vec<usize>) {
    match filter {
        Filter::And(parts) | Filter::Or(parts) => parts.iter().for_each(|part| survey(part, exists, reads)),
        Filter::Compare { column, .. } | Filter::In { column, .. } | Filter::Like { column, .. } => reads.push(*column),
        Filter::Exists(condition) => {
            exists.push(condition.id);
            reads.extend(&condition.parent);
        }
    }
}

fn start_position(table: &Table, order: &SortKey, start: &crate::query::Start) -> Result<Start, BuildError> {
    let mut cells = vec![Value::Null; order.0.len()];
    for (name, value) in &start.row {
        let column = position(table, name)?;
        let Some(at) = order.0.iter().position(|(c, _)| *c == column) else { continue };
        let ty = table.columns[column].ty;
        if *value != Value::Null && !fold::same_class(ty, value) {
            return Err(BuildError::Type {
                table: table.name.to_string(),
                column: name.clone(),
                op: "start".to_owned(),
                wants: fold::type_name(ty),
            });
        }
        cells[at] = fold::exact(ty, value).unwrap_or_else(|| value.clone());
    }
    Ok(Start { position: Key::from_values(&cells), inclusive: !start.exclusive })
}

fn comparable(table: &Table, name: &str, role: &'static str) -> Result<usize, BuildError> {
    let column = position(table, name)?;
    if table.columns[column].ty == ColumnType::Json {
        return Err(BuildError::Json { table: table.name.to_string(), column: name.to_owned(), role });
    }
    Ok(column)
}

fn position(table: &Table, name: &str) -> Result<usize, BuildError> {
    table.position(name).ok_or_else(|| BuildError::UnknownColumn {
        table: table.name.to_string(),
        column: name.to_owned(),
        known: list(table.columns.iter().map(|c| &*c.name)),
    })
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}
