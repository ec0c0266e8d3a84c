//! A scan plan as SQL.

use ivm::filter::{Exists, Filter};
use ivm::like::Pattern;
use ivm::query::Op;
use ivm::source::ScanPlan;
use rows::{Column, ColumnType, Direction, Key, Table, Value, ValueRef};
use rusqlite::Connection;

use crate::bound::{self, Bound, Segment};
use crate::cells::{bind, literal};
use crate::error::Fault;
use crate::estimate::{ByExists, Estimator, fixed_columns};
use crate::layout::{Catalog, Layout, VERSION_COLUMN};

/// Children of an EXISTS are listed once instead of being probed per parent up to this many.
const LIST_CHILDREN: f64 = 20_000.0;
/// Relative costs of handling one row, measured: a child put into a list, a correlated probe, a parent looked up by key and
/// sorted, a parent visited in index order.
const COST_LISTED: f64 = 0.6;
const COST_PROBE: f64 = 1.5;
const COST_LOOKUP: f64 = 3.0;
const COST_VISIT: f64 = 1.0;
/// Tables with fewer rows are not worth counting in.
const COUNT_FROM: f64 = 2_000.0;
/// Longer IN lists travel as one JSON parameter.
const MAX_LIST: usize = 64;

/// What distinguishes the SQL of one plan's scans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Variant<'a> {
    /// Only whether there is a row.
    pub probe: bool,
    pub reverse: bool,
    pub limit: Option<u64>,
    pub after: Option<(&'a Key, bool)>,
}

#[derive(Clone, Debug)]
pub(crate) enum Param {
    Fixed(Value),
    Constraint(usize),
    After(usize),
    Limit,
}

/// Statements whose results, one after the other, are the scan.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub statements: Vec<(String, Vec<Param>)>,
}

#[derive(Clone, Copy)]
pub(crate) struct Planner<'a> {
    pub conn: &'a Connection,
    pub catalog: &'a Catalog,
    pub estimator: Estimator<'a>,
}

impl Planner<'_> {
    pub(crate) fn compile(self, plan: &ScanPlan, variant: Variant<'_>) -> Result<Compiled, Fault> {
        self.count_children(&plan.filter)?;
        let layout = self.layout(&plan.table)?;
        let order: Vec<(usize, Direction)> =
            plan.order.0.iter().map(|&(c, d)| (c, if variant.reverse { flip(d) } else { d })).collect();
        let after =
            variant.after.map(|(position, inclusive)| Bound::new(&plan.table, &order, position, inclusive, None));
        let start = plan.start.as_ref().map(|s| {
            // In a reverse scan the start is where rows end; the comparison itself stays that of the forward order.
            Bound::new(&plan.table, &plan.order.0, &s.position, s.inclusive, Some(&s.position))
        });
        let split = match (&after, &start) {
            (Some(after), _) => after.segments(),
            (None, Some(start)) if !variant.reverse => start.segments(),
            _ => vec![Segment::Whole],
        };
        let mut statements = Vec::with_capacity(split.len());
        for segment in split {
            let mut text = Text { planner: self, sql: String::new(), params: Vec::new(), aliases: 1 };
            let first = if after.is_some() { (segment, Segment::Whole) } else { (Segment::Whole, segment) };
            text.select(layout, plan, &order, variant, (after.as_ref(), first.0), (start.as_ref(), first.1))?;
            statements.push((text.sql, text.params));
        }
        Ok(Compiled { statements })
    }

    /// Counts the children of every EXISTS that an index can list, innermost first, up to where the number no longer matters.
    fn count_children(self, filter: &Filter) -> Result<(), Fault> {
        let exists = match filter {
            Filter::And(parts) | Filter::Or(parts) => {
                return parts.iter().try_for_each(|part| self.count_children(part));
            }
            Filter::Compare { .. } | Filter::In { .. } | Filter::Like { .. } => return Ok(()),
            Filter::Exists(exists) => exists,
        };
        self.count_children(&exists.plan.filter)?;
        let plan = &*exists.plan;
        let child = self.layout(&plan.table)?;
        if self.estimator.counted.borrow().contains_key(&plan.id) || self.estimator.rows(child) < COUNT_FROM {
            return Ok(());
        }
        let access = self.estimator.access(child, &plan.filter, &[], ByExists::Yes);
        if access.columns.is_empty() {
            return Ok(());
        }
        let mut text = Text { planner: self, sql: String::new(), params: Vec::new(), aliases: 1 };
        text.push("SELECT count(*) FROM (SELECT 1");
        text.from(child, 0);
        text.push("TRUE");
        let level = Level {
            layout: child,
            table: &plan.table,
            alias: 0,
            filter: &plan.filter,
            equal: &[],
            limit: None,
            in_order: false,
        };
        text.conjuncts_on(&level, &plan.filter, &access.columns)?;
        text.push(&format!(" LIMIT {})", LIST_CHILDREN + 1.0));
        let mut statement = self.conn.prepare_cached(&text.sql)?;
        for (i, param) in text.params.iter().enumerate() {
            if let Param::Fixed(value) = param {
                bind(&mut statement, i + 1, literal(value.as_ref()))?;
            }
        }
        let mut rows = statement.raw_query();
        let count: i64 = rows.next()?.map_or(Ok(0), |row| row.get(0))?;
        // A full count is a lower bound only.
        let count = if count as f64 > LIST_CHILDREN { access.rows.max(count as f64) } else { count as f64 };
        self.estimator.counted.borrow_mut().insert(plan.id, count);
        Ok(())
    }

    fn layout(&self, table: &Table) -> Result<&Layout, Fault> {
        let layout =
            self.catalog.by_name(&table.name).ok_or_else(|| Fault::diverged("the table is not in the replica"))?;
        match &layout.table {
            Ok(current) if current.columns == table.columns => Ok(layout),
            _ => Err(Fault::diverged("the table has changed since the query was built")),
        }
    }
}

fn flip(direction: Direction) -> Direction {
    match direction {
        Direction::Asc => Direction::Desc,
        Direction::Desc => Direction::Asc,
    }
}

/// A table in a FROM clause.
#[derive(Clone, Copy)]
struct Level<'a> {
    layout: &'a Layout,
    table: &'a Table,
    alias: usize,
    filter: &'a Filter,
    /// Visible columns fixed from outside.
    equal: &'a [usize],
    limit: Option<u64>,
    /// Visit rows in index order rather than collecting them by listed keys.
    in_order: bool,
}

pub(crate) struct Text<'a> {
    planner: Planner<'a>,
    pub(crate) sql: String,
    params: Vec<Param>,
    aliases: usize,
}

impl<'a> Text<'a> {
    fn select(
        &mut self,
        layout: &Layout,
        plan: &ScanPlan,
        order: &[(usize, Direction)],
        variant: Variant<'_>,
        after: (Option<&Bound>, Segment),
        start: (Option<&Bound>, Segment),
    ) -> Result<(), Fault> {
        self.sql.push_str("SELECT ");
        if variant.probe {
            self.sql.push('1');
        } else {
            for i in 0..plan.table.columns.len() {
                self.column(0, layout, i);
                self.sql.push_str(", ");
            }
            self.push(&format!("t0.\"{VERSION_COLUMN}\""));
        }
        self.from(layout, 0);
        for (i, &column) in plan.constraint.iter().enumerate() {
            self.column(0, layout, column);
            self.sql.push_str(" = ");
            self.param(Param::Constraint(i));
            self.sql.push_str(" AND ");
        }
        for (bound, segment) in [after, start] {
            if let Some(bound) = bound {
                bound.write(self, layout, segment);
                self.sql.push_str(" AND ");
            }
        }
        let mut level = Level {
            layout,
            table: &plan.table,
            alias: 0,
            filter: &plan.filter,
            equal: &plan.constraint,
            limit: variant.limit,
            in_order: false,
        };
        level.in_order = self.better_in_order(&level, order);
        self.condition(&level, &plan.filter)?;
        if !variant.probe {
            for (i, &(column, direction)) in order.iter().enumerate() {
                self.sql.push_str(if i == 0 { " ORDER BY " } else { ", " });
                self.column(0, layout, column);
                if direction == Direction::Desc {
                    self.sql.push_str(" DESC");
                }
            }
        }
        if variant.limit.is_some() {
            self.sql.push_str(" LIMIT ");
            self.param(Param::Limit);
        }
        Ok(())
    }

    /// Whether to walk the ordering index until the limit is reached, although EXISTS could name the rows by key.
    fn better_in_order(&self, level: &Level<'_>, order: &[(usize, Direction)]) -> bool {
        let (Some(limit), Some(&(first, _))) = (level.limit, order.first()) else { return false };
        let estimator = self.planner.estimator;
        let named = estimator.accessed(level.layout, level.filter, level.equal, ByExists::Yes);
        let all = estimator.accessed(level.layout, level.filter, level.equal, ByExists::No);
        let mut equal = level.equal.to_vec();
        fixed_columns(level.filter, &mut equal);
        if named >= all || !estimator.ordered(level.layout, &equal, first) {
            return false;
        }
        let visited = (limit as f64 * all / named.max(1.0)).min(all);
        visited * COST_VISIT < named * COST_LOOKUP
    }

    fn condition(&mut self, level: &Level<'_>, filter: &Filter) -> Result<(), Fault> {
        match filter {
            Filter::And(parts) => self.list(level, parts, " AND ", "TRUE"),
            Filter::Or(parts) => self.list(level, parts, " OR ", "FALSE"),
            Filter::Compare { column, op, value } => {
                self.compare(level, *column, *op, value);
                Ok(())
            }
            Filter::In { column, negated, values } => {
                self.within(level, *column, *negated, values);
                Ok(())
            }
            Filter::Like { column, negated, pattern } => {
                self.like(level, *column, *negated, pattern);
                Ok(())
            }
            Filter::Exists(exists) => self.exists(level, exists),
        }
    }

    fn list(&mut self, level: &Level<'_>, parts: &[Filter], separator: &str, empty: &str) -> Result<(), Fault> {
        if parts.is_empty() {
            self.sql.push_str(empty);
            return Ok(());
        }
        self.sql.push('(');
        for (i, part) in parts.iter().enumerate() {
            if i > 0 {
                self.sql.push_str(separator);
            }
            self.condition(level, part)?;
        }
        self.sql.push(')');
        Ok(())
    }

    /// The parts of a conjunction that fix one of these columns.
    fn conjuncts_on(&mut self, level: &Level<'_>, filter: &Filter, attnums: &[i16]) -> Result<(), Fault> {
        let column = match filter {
            Filter::And(parts) => return parts.iter().try_for_each(|part| self.conjuncts_on(level, part, attnums)),
            Filter::Compare { column, op: Op::Eq | Op::Is, .. } | Filter::In { column, negated: false, .. } => *column,
            Filter::Exists(e) if !e.negated && e.parent.len() == 1 => e.parent[0],
            _ => return Ok(()),
        };
        if attnums.contains(&level.layout.attnum(column)) {
            self.push(" AND ");
            self.condition(level, filter)?;
        }
        Ok(())
    }

    fn compare(&mut self, level: &Level<'_>, column: usize, op: Op, value: &Value) {
        let spec = &level.table.columns[column];
        if value.as_ref().is_null() {
            match op {
                Op::Is => self.term(level, column, " IS NULL"),
                Op::IsNot => self.term(level, column, " IS NOT NULL"),
                _ => self.sql.push_str("FALSE"),
            }
            return;
        }
        let class = bound::class(spec.ty, value.as_ref());
        let operator = match op {
            Op::Eq | Op::Is => "=",
            Op::Ne => "<>",
            Op::IsNot => "IS NOT",
            Op::Lt => "<",
            Op::Gt => ">",
            Op::Le => "<=",
            Op::Ge => ">=",
            Op::Like | Op::NotLike | Op::ILike | Op::NotILike | Op::In | Op::NotIn => {
                return self.sql.push_str("FALSE");
            }
        };
        match (op, class) {
            (_, bound::Class::Same) => {
                self.term(level, column, " ");
                self.push(operator);
                self.sql.push(' ');
                self.param(Param::Fixed(value.clone()));
            }
            // A literal of another class equals nothing and sorts as a whole before or after the column.
            (Op::IsNot, _) => self.sql.push_str("TRUE"),
            (Op::Ne, _) | (Op::Gt | Op::Ge, bound::Class::Below) | (Op::Lt | Op::Le, bound::Class::Above) => {
                self.term(level, column, " IS NOT NULL");
            }
            _ => self.sql.push_str("FALSE"),
        }
    }

    fn like(&mut self, level: &Level<'_>, column: usize, negated: bool, pattern: &Pattern) {
        if level.table.columns[column].ty != ColumnType::Str {
            return self.sql.push_str("FALSE");
        }
        if !negated
            && !pattern.is_case_insensitive()
            && let Some((from, to)) = bound::prefix_range(pattern.text())
        {
            // What every match starts with: lets an index find candidates.
            for (comparison, text) in [(" >= ", Some(from)), (" < ", to)] {
                if let Some(text) = text {
                    self.term(level, column, comparison);
                    self.param(Param::Fixed(Value::Str(text.into())));
                    self.sql.push_str(" AND ");
                }
            }
        }
        self.sql.push_str(if negated { "NOT zql_like(" } else { "zql_like(" });
        self.term(level, column, ", ");
        self.param(Param::Fixed(Value::Str(pattern.text().into())));
        self.sql.push_str(if pattern.is_case_insensitive() { ", 1)" } else { ", 0)" });
    }

    fn within(&mut self, level: &Level<'_>, column: usize, negated: bool, values: &[Value]) {
        let spec = &level.table.columns[column];
        let values: Vec<&Value> = values
            .iter()
            .filter(|v| bound::class(spec.ty, v.as_ref()) == bound::Class::Same && !v.as_ref().is_null())
            .collect();
        if values.is_empty() {
            return if negated { self.term(level, column, " IS NOT NULL") } else { self.sql.push_str("FALSE") };
        }
        self.term(level, column, if negated { " NOT IN (" } else { " IN (" });
        if values.len() > MAX_LIST
            && let Some(json) = json_list(&values)
        {
            self.sql.push_str("SELECT value FROM json_each(");
            self.param(Param::Fixed(Value::Str(json.into())));
            self.sql.push_str("))");
            return;
        }
        for (i, value) in values.into_iter().enumerate() {
            if i > 0 {
                self.sql.push_str(", ");
            }
            self.param(Param::Fixed(value.clone()));
        }
        self.sql.push(')');
    }

    fn exists(&mut self, level: &Level<'_>, exists: &Exists) -> Result<(), Fault> {
        let child_table = &*exists.plan.table;
        let constant = if exists.negated { "TRUE" } else { "FALSE" };
        let pairs: Vec<(usize, usize)> =
            exists.parent.iter().copied().zip(exists.plan.constraint.iter().copied()).collect();
        if pairs.iter().any(|&(p, c)| !comparable(&level.table.columns[p], &child_table.columns[c])) {
            self.sql.push_str(constant);
            return Ok(());
        }
        let planner = self.planner;
        let child = planner.layout(child_table)?;
        let alias = self.aliases;
        self.aliases += 1;
        let listed = self.list_children(level, exists, child);
        let inner = Level {
            layout: child,
            table: child_table,
            alias,
            filter: &exists.plan.filter,
            equal: if listed { &[] } else { &exists.plan.constraint },
            limit: None,
            in_order: false,
        };
        if listed {
            self.exists_listed(level, exists, &inner, &pairs)
        } else {
            self.exists_probed(level, exists, &inner, &pairs)
        }
    }

    /// Whether to list all children once rather than look for them per parent.
    fn list_children(&self, level: &Level<'_>, exists: &Exists, child: &Layout) -> bool {
        let estimator = self.planner.estimator;
        if !estimator.indexed(child, &exists.plan.constraint) {
            return true;
        }
        let children = estimator.children(exists);
        let parents = estimator.accessed(level.layout, level.filter, level.equal, ByExists::No);
        let matching = if exists.negated { parents - children } else { children };
        let probed = level.limit.map_or(parents, |limit| (limit as f64 * parents / matching.max(1.0)).min(parents));
        children <= LIST_CHILDREN && children * COST_LISTED < probed * COST_PROBE
    }

    /// `parent IN (SELECT child …)`
    fn exists_listed(
        &mut self,
        level: &Level<'_>,
        exists: &Exists,
        inner: &Level<'_>,
        pairs: &[(usize, usize)],
    ) -> Result<(), Fault> {
        if exists.negated {
            self.sql.push('(');
            for &(parent, _) in pairs {
                if !level.table.columns[parent].not_null {
                    self.term(level, parent, " IS NULL OR ");
                }
            }
        }
        let several = pairs.len() > 1;
        if several {
            self.sql.push('(');
        }
        for (i, &(parent, _)) in pairs.iter().enumerate() {
            if i > 0 {
                self.sql.push_str(", ");
            }
            if level.in_order && !several {
                // A term that is not a bare column cannot be an index lookup.
                self.sql.push('+');
            }
            self.column(level.alias, level.layout, parent);
        }
        if several {
            self.sql.push(')');
        }
        self.sql.push_str(if exists.negated { " NOT IN (SELECT " } else { " IN (SELECT " });
        for (i, &(_, child)) in pairs.iter().enumerate() {
            if i > 0 {
                self.sql.push_str(", ");
            }
            self.column(inner.alias, inner.layout, child);
        }
        self.from(inner.layout, inner.alias);
        for &(_, child) in pairs {
            if !inner.table.columns[child].not_null {
                self.term(inner, child, " IS NOT NULL AND ");
            }
        }
        self.condition(inner, inner.filter)?;
        self.sql.push(')');
        if exists.negated {
            self.sql.push(')');
        }
        Ok(())
    }

    /// `EXISTS (SELECT 1 … WHERE child = parent …)`
    fn exists_probed(
        &mut self,
        level: &Level<'_>,
        exists: &Exists,
        inner: &Level<'_>,
        pairs: &[(usize, usize)],
    ) -> Result<(), Fault> {
        self.sql.push_str(if exists.negated { "NOT EXISTS (" } else { "EXISTS (" });
        self.push("SELECT 1");
        self.from(inner.layout, inner.alias);
        for &(parent, child) in pairs {
            self.term(inner, child, " = ");
            self.term(level, parent, " AND ");
        }
        self.condition(inner, inner.filter)?;
        self.sql.push(')');
        Ok(())
    }

    /// The rows that queries see; a condition must follow.
    fn from(&mut self, layout: &Layout, alias: usize) {
        self.push(&format!(" FROM {} AS t{alias} WHERE {}", layout.name(), layout.shown(alias)));
    }

    fn term(&mut self, level: &Level<'_>, column: usize, then: &str) {
        self.column(level.alias, level.layout, column);
        self.sql.push_str(then);
    }

    pub(crate) fn column(&mut self, alias: usize, layout: &Layout, visible: usize) {
        self.push(&format!("t{alias}.{}", layout.visible_column(visible)));
    }

    pub(crate) fn push(&mut self, text: &str) {
        self.sql.push_str(text);
    }

    pub(crate) fn param(&mut self, param: Param) {
        self.sql.push('?');
        self.params.push(param);
    }
}

/// Whether cells of the two columns can join; JSON joins nothing.
fn comparable(a: &Column, b: &Column) -> bool {
    a.ty != ColumnType::Json && a.ty.client_name().is_some() && a.ty.client_name() == b.ty.client_name()
}

/// The values as a JSON array, unless they have no exact JSON form.
fn json_list(values: &[&Value]) -> Option<String> {
    let mut out = vec![b'['];
    for (i, value) in values.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        match value.as_ref() {
            ValueRef::Int(n) => out.extend_from_slice(n.to_string().as_bytes()),
            ValueRef::Bool(b) => out.push(if b { b'1' } else { b'0' }),
            ValueRef::Str(s) => rows::json::write_string(&mut out, s),
            ValueRef::Null | ValueRef::Float(_) | ValueRef::Json(_) => return None,
        }
    }
    out.push(b']');
    String::from_utf8(out).ok()
}
