//! What a query means, by plain recursion over full tables: slow, and independent of the engine.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use ivm::like::Pattern;
use ivm::query::{Condition, EXISTS_SAMPLE, Literal, Op, Query, Related};
use rows::{ColumnType, Direction, Key, Row, Schema, Table, Value, ValueRef};

/// Rows by table name and client key.
pub type RowSet = BTreeMap<(String, Key), Row>;

pub struct Oracle<'a> {
    pub schema: &'a Schema,
    pub rows: &'a dyn Fn(&str) -> Vec<Row>,
    pub client_key: &'a dyn Fn(&Table) -> Vec<usize>,
}

impl Oracle<'_> {
    pub fn result(&self, query: &Query) -> RowSet {
        let mut out = RowSet::new();
        self.collect(query, None, &mut out);
        out
    }

    /// Adds the rows of a level that join `parent`, and those below them.
    fn collect(&self, query: &Query, parent: Option<(&Related, &Table, &Row)>, out: &mut RowSet) {
        let table = &self.schema.tables[&*query.table];
        let key = (self.client_key)(table);
        let mut order: Vec<(usize, Direction)> =
            query.order_by.iter().map(|(name, d)| (table.position(name).unwrap(), *d)).collect();
        order.extend(key.iter().map(|&c| (c, Direction::Asc)));
        let mut rows: Vec<Row> = (self.rows)(&query.table)
            .into_iter()
            .filter(|row| parent.is_none_or(|(related, from, above)| joins(related, from, above, table, row)))
            .filter(|row| self.holds(&query.filter, table, row))
            .filter(|row| {
                let Some(start) = &query.start else { return true };
                let order = order.iter().map(|&(column, direction)| {
                    let name = &table.columns[column].name;
                    let bound = start.row.iter().find(|(n, _)| **n == **name);
                    let bound = bound.map_or(ValueRef::Null, |(_, v)| v.as_ref());
                    direction.apply(sort(row.get(column), bound))
                });
                match order.fold(Ordering::Equal, Ordering::then) {
                    Ordering::Less => false,
                    Ordering::Equal => !start.exclusive,
                    Ordering::Greater => true,
                }
            })
            .collect();
        rows.sort_by(|a, b| {
            let order = order.iter().map(|&(c, direction)| direction.apply(sort(a.get(c), b.get(c))));
            order.fold(Ordering::Equal, Ordering::then)
        });
        rows.truncate(query.limit.map_or(usize::MAX, |l| l as usize));
        for row in rows {
            out.insert((query.table.clone(), row.key(&key)), row.clone());
            for related in &query.related {
                self.collect(&related.query, Some((related, table, &row)), out);
            }
            self.samples(&query.filter, table, &row, out);
        }
    }

    /// Adds the rows that a client needs to find the EXISTS conditions of a row true.
    fn samples(&self, condition: &Condition, table: &Table, row: &Row, out: &mut RowSet) {
        match condition {
            // Where the answer cannot vary, a client needs nothing to find it.
            decided if self.constant(decided, table).is_some() => {}
            Condition::And(parts) | Condition::Or(parts) => {
                parts.iter().for_each(|part| self.samples(part, table, row, out));
            }
            Condition::Exists { negated: false, synced: true, related } => {
                let sample = Query {
                    table: related.query.table.clone(),
                    filter: related.query.filter.clone(),
                    order_by: Vec::new(),
                    start: None,
                    limit: Some(EXISTS_SAMPLE),
                    related: Vec::new(),
                };
                self.collect(&sample, Some((related, table, row)), out);
            }
            Condition::Exists { .. } | Condition::Compare { .. } => {}
        }
    }

    /// The answer of a condition if it is the same for all rows of all databases, as far as its literals and types tell.
    fn constant(&self, condition: &Condition, table: &Table) -> Option<bool> {
        let of = |part| self.constant(part, table);
        match condition {
            Condition::And(parts) if parts.iter().any(|p| of(p) == Some(false)) => Some(false),
            Condition::And(parts) => parts.iter().all(|p| of(p) == Some(true)).then_some(true),
            Condition::Or(parts) if parts.iter().any(|p| of(p) == Some(true)) => Some(true),
            Condition::Or(parts) => parts.iter().all(|p| of(p) == Some(false)).then_some(false),
            Condition::Compare { column, op, value } => {
                let ty = table.columns[table.position(column).unwrap()].ty;
                match (op, value) {
                    (Op::In, Literal::Many(values)) => (!values.iter().any(|v| holdable(ty, v))).then_some(false),
                    (Op::Is, Literal::One(v)) => (*v != Value::Null && !holdable(ty, v)).then_some(false),
                    (Op::IsNot, Literal::One(v)) => (*v != Value::Null && !holdable(ty, v)).then_some(true),
                    (Op::Eq, Literal::One(v)) => (!holdable(ty, v)).then_some(false),
                    (_, Literal::One(Value::Null)) => Some(false),
                    _ => None,
                }
            }
            Condition::Exists { negated, related, .. } => {
                let child = &self.schema.tables[&*related.query.table];
                let class = |table: &Table, name: &str| table.columns[table.position(name).unwrap()].ty.client_name();
                let never = related.query.limit == Some(0)
                    || self.constant(&related.query.filter, child) == Some(false)
                    || related.parent.iter().zip(&related.child).any(|(a, b)| class(table, a) != class(child, b));
                never.then_some(*negated)
            }
        }
    }

    fn holds(&self, condition: &Condition, table: &Table, row: &Row) -> bool {
        match condition {
            Condition::And(parts) => parts.iter().all(|part| self.holds(part, table, row)),
            Condition::Or(parts) => parts.iter().any(|part| self.holds(part, table, row)),
            Condition::Compare { column, op, value } => compare(row.get(table.position(column).unwrap()), *op, value),
            Condition::Exists { negated, related, .. } => {
                let child = &self.schema.tables[&*related.query.table];
                let found = related.query.limit != Some(0)
                    && (self.rows)(&related.query.table).iter().any(|candidate| {
                        joins(related, table, row, child, candidate)
                            && self.holds(&related.query.filter, child, candidate)
                    });
                found != *negated
            }
        }
    }
}

fn joins(related: &Related, parent: &Table, above: &Row, child: &Table, row: &Row) -> bool {
    related
        .parent
        .iter()
        .zip(&related.child)
        .all(|(a, b)| equal(above.get(parent.position(a).unwrap()), row.get(child.position(b).unwrap())))
}

/// Whether a column of type `ty` can hold a value that equals `value`.
fn holdable(ty: ColumnType, value: &Value) -> bool {
    match (ty, value) {
        (ColumnType::Bool, Value::Bool(_)) | (ColumnType::Str, Value::Str(_)) => true,
        (ColumnType::Int, _) => number(value.as_ref()).is_some_and(|n| n.fract() == 0.0),
        (ColumnType::Float, _) => number(value.as_ref()).is_some(),
        _ => false,
    }
}

/// Equality of non-null values of one class.
fn equal(a: ValueRef<'_>, b: ValueRef<'_>) -> bool {
    match (a, b) {
        (ValueRef::Bool(a), ValueRef::Bool(b)) => a == b,
        (ValueRef::Str(a), ValueRef::Str(b)) => a == b,
        _ => number(a).is_some_and(|a| number(b) == Some(a)),
    }
}

/// Test data is within the exact range of doubles.
fn number(value: ValueRef<'_>) -> Option<f64> {
    match value {
        ValueRef::Int(i) => Some(i as f64),
        ValueRef::Float(f) => Some(f),
        _ => None,
    }
}

fn sort(a: ValueRef<'_>, b: ValueRef<'_>) -> Ordering {
    match (a, b) {
        (ValueRef::Null, ValueRef::Null) => Ordering::Equal,
        (ValueRef::Null, _) => Ordering::Less,
        (_, ValueRef::Null) => Ordering::Greater,
        (ValueRef::Bool(a), ValueRef::Bool(b)) => a.cmp(&b),
        (ValueRef::Str(a), ValueRef::Str(b)) => a.chars().cmp(b.chars()),
        _ => number(a).unwrap().partial_cmp(&number(b).unwrap()).unwrap(),
    }
}

fn compare(cell: ValueRef<'_>, op: Op, literal: &Literal) -> bool {
    let value = match literal {
        Literal::Many(values) => {
            let member = values.iter().any(|v| equal(cell, v.as_ref()));
            return !cell.is_null() && member == (op == Op::In);
        }
        Literal::One(value) => value.as_ref(),
    };
    let is = if value.is_null() { cell.is_null() } else { equal(cell, value) };
    match op {
        Op::Is => return is,
        Op::IsNot => return !is,
        _ if cell.is_null() || value.is_null() => return false,
        _ => {}
    }
    let text = |insensitive| match (cell, value) {
        (ValueRef::Str(text), ValueRef::Str(pattern)) => Pattern::new(pattern, insensitive).matches(text),
        _ => panic!("LIKE compares strings"),
    };
    match op {
        Op::Eq => is,
        Op::Ne => !is,
        Op::Lt => sort(cell, value).is_lt(),
        Op::Gt => sort(cell, value).is_gt(),
        Op::Le => sort(cell, value).is_le(),
        Op::Ge => sort(cell, value).is_ge(),
        Op::Like => text(false),
        Op::NotLike => !text(false),
        Op::ILike => text(true),
        Op::NotILike => !text(true),
        Op::Is | Op::IsNot | Op::In | Op::NotIn => unreachable!("answered above"),
    }
}

/// The key under which a row set is compared.
pub fn entry(table: &Arc<Table>, key: &Key) -> (String, Key) {
    (table.name.to_string(), key.clone())
}
