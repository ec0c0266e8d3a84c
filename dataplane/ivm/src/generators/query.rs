//! Random queries that a schema can answer.

use rows::{Column, ColumnType, Direction, Schema, Table, Value};

use super::Rng;
use super::world::value;
use crate::query::{Condition, Literal, Op, Query, Related, Start};

const PATTERNS: [&str; 12] = ["", "%", "_", "a%", "%b", "_%_", "A", "ž%", "a\\_", "\\%", "a\\", "%\\"];

pub(super) fn query(rng: &mut Rng, schema: &Schema) -> Query {
    let table = table(rng, schema).clone();
    level(rng, schema, &table, 3)
}

fn table<'a>(rng: &mut Rng, schema: &'a Schema) -> &'a Table {
    schema.tables.values().nth(rng.below(schema.tables.len())).expect("a schema has tables")
}

fn level(rng: &mut Rng, schema: &Schema, table: &Table, depth: usize) -> Query {
    let filter = if rng.one_in(2) { Condition::And(Vec::new()) } else { condition(rng, schema, table, depth) };
    let order_by = (0..rng.below(3)).filter_map(|_| Some((sortable(rng, table)?, direction(rng)))).collect();
    let related = if depth == 0 {
        Vec::new()
    } else {
        (0..rng.below(3)).filter_map(|_| related(rng, schema, table, depth - 1)).collect()
    };
    Query {
        table: table.name.to_string(),
        filter,
        order_by,
        start: rng.one_in(5).then(|| start(rng, table)),
        limit: limit(rng),
        related,
    }
}

fn limit(rng: &mut Rng) -> Option<u64> {
    match rng.below(20) {
        0 => Some(0),
        1..=9 => Some(1 + rng.below(4) as u64),
        _ => None,
    }
}

fn start(rng: &mut Rng, table: &Table) -> Start {
    let row = table
        .columns
        .iter()
        .filter(|c| c.ty != ColumnType::Json)
        .filter_map(|c| {
            let cell = match rng.below(4) {
                0 => return None,
                1 if !c.not_null => Value::Null,
                _ => value(rng, c.ty),
            };
            Some((c.name.to_string(), cell))
        })
        .collect();
    Start { row, exclusive: rng.one_in(2) }
}

fn related(rng: &mut Rng, schema: &Schema, parent: &Table, depth: usize) -> Option<Related> {
    let child = table(rng, schema);
    let (from, to) = correlation(rng, parent, child)?;
    Some(Related { parent: from, child: to, query: level(rng, schema, child, depth) })
}

/// One or two pairs of columns. Most have the same class; numbers of different types join too.
fn correlation(rng: &mut Rng, parent: &Table, child: &Table) -> Option<(Vec<String>, Vec<String>)> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let any_class = rng.one_in(40);
    for a in parent.columns.iter().filter(|c| c.ty != ColumnType::Json) {
        for b in child.columns.iter().filter(|c| c.ty != ColumnType::Json) {
            if any_class || a.ty.client_name() == b.ty.client_name() {
                pairs.push((a.name.to_string(), b.name.to_string()));
            }
        }
    }
    if pairs.is_empty() {
        return None;
    }
    Some((0..=usize::from(rng.one_in(4))).map(|_| rng.pick(&pairs).clone()).unzip())
}

fn condition(rng: &mut Rng, schema: &Schema, table: &Table, depth: usize) -> Condition {
    match rng.below(if depth == 0 { 4 } else { 10 }) {
        0..=3 => comparison(rng, table),
        4 | 5 => Condition::And((0..rng.below(4)).map(|_| condition(rng, schema, table, depth - 1)).collect()),
        6 | 7 => Condition::Or((0..=rng.below(3)).map(|_| condition(rng, schema, table, depth - 1)).collect()),
        _ => exists(rng, schema, table, depth - 1).unwrap_or_else(|| comparison(rng, table)),
    }
}

fn exists(rng: &mut Rng, schema: &Schema, table: &Table, depth: usize) -> Option<Condition> {
    let related = Box::new(related(rng, schema, table, depth)?);
    Some(Condition::Exists { negated: rng.one_in(3), synced: !rng.one_in(3), related })
}

fn comparison(rng: &mut Rng, table: &Table) -> Condition {
    let column = rng.pick(&table.columns);
    let (op, value) = literal(rng, column);
    Condition::Compare { column: column.name.to_string(), op, value }
}

fn literal(rng: &mut Rng, column: &Column) -> (Op, Literal) {
    let null_test = *rng.pick(&[Op::Is, Op::IsNot]);
    if column.ty == ColumnType::Json {
        return (null_test, Literal::One(Value::Null));
    }
    let op = *rng.pick(&[Op::Eq, Op::Eq, Op::Ne, Op::Is, Op::IsNot, Op::Lt, Op::Gt, Op::Le, Op::Ge, Op::In, Op::NotIn]);
    if column.ty == ColumnType::Str && rng.one_in(3) {
        let op = *rng.pick(&[Op::Like, Op::NotLike, Op::ILike, Op::NotILike]);
        return (op, Literal::One(Value::Str((*rng.pick(&PATTERNS)).into())));
    }
    if matches!(op, Op::In | Op::NotIn) {
        let values = (0..rng.below(4))
            .map(|_| match rng.below(8) {
                0 => Value::Null,
                1 => other_class(rng, column.ty),
                _ => {
                    let value = value(rng, column.ty);
                    number_as_either(rng, value)
                }
            })
            .collect();
        return (op, Literal::Many(values));
    }
    match rng.below(12) {
        0 => (op, Literal::One(Value::Null)),
        1 | 2 => (null_test, Literal::One(Value::Null)),
        3 if matches!(op, Op::Eq | Op::Ne | Op::Is | Op::IsNot) => {
            let value = other_class(rng, column.ty);
            (op, Literal::One(value))
        }
        _ => {
            let value = value(rng, column.ty);
            (op, Literal::One(number_as_either(rng, value)))
        }
    }
}

/// Clients send numbers without their type.
fn number_as_either(rng: &mut Rng, value: Value) -> Value {
    match value {
        Value::Int(i) if rng.one_in(2) => Value::Float(i as f64),
        Value::Int(i) if rng.one_in(6) => Value::Float(i as f64 + 0.5),
        Value::Float(f) if f.trunc() == f && rng.one_in(2) => Value::Int(f as i64),
        other => other,
    }
}

fn other_class(rng: &mut Rng, ty: ColumnType) -> Value {
    let ty = *rng.pick(match ty {
        ColumnType::Str => &[ColumnType::Int, ColumnType::Bool],
        ColumnType::Bool => &[ColumnType::Int, ColumnType::Str],
        _ => &[ColumnType::Str, ColumnType::Bool],
    });
    value(rng, ty)
}

fn direction(rng: &mut Rng) -> Direction {
    if rng.one_in(2) { Direction::Asc } else { Direction::Desc }
}

fn sortable(rng: &mut Rng, table: &Table) -> Option<String> {
    let columns: Vec<&Column> = table.columns.iter().filter(|c| c.ty != ColumnType::Json).collect();
    Some(rng.pick(&columns).name.to_string())
}
