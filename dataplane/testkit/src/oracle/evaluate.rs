//! Evaluates a query AST over tables in memory, in the plainest way.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::read::{Snapshot, Table};
use super::same;
use crate::client::Row;

/// (table, position in the snapshot's table)
pub type Place = (String, usize);

/// The result of a query.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Rows of the result and of its related subqueries, hidden junctions too.
    pub required: BTreeSet<Place>,
    /// Rows matched by EXISTS subqueries of those.
    pub sampled: BTreeSet<Place>,
    /// What the application sees: a list of primary keys with the lists of their relationships.
    pub tree: Value,
}

/// Runs the query.
pub fn evaluate(snapshot: &Snapshot, ast: &Value) -> Result<Answer> {
    let mut answer = Answer::default();
    answer.tree = level(snapshot, ast, None, &mut answer)?;
    Ok(answer)
}

/// Parent row and correlation of a subquery.
type Parent<'a> = Option<(&'a Row, &'a Value)>;

/// One level of the result with everything below it.
fn level(snapshot: &Snapshot, ast: &Value, parent: Parent, answer: &mut Answer) -> Result<Value> {
    let table = table(snapshot, ast)?;
    let mut positions = matching(snapshot, ast, parent)?;
    let order = complete_order(ast, table);
    positions.sort_by(|a, b| compare(&table.rows[*a], &table.rows[*b], &order));
    if let Some(start) = ast["start"].as_object() {
        let bound = start["row"].as_object().context("start has a row")?;
        let exclusive = start["exclusive"] == json!(true);
        // Columns that the start row leaves out do not take part.
        let given: Vec<_> = order.iter().filter(|(column, _)| bound.contains_key(column)).cloned().collect();
        positions.retain(|position| match compare(&table.rows[*position], bound, &given) {
            Ordering::Less => false,
            Ordering::Equal => !exclusive,
            Ordering::Greater => true,
        });
    }
    if let Some(limit) = ast["limit"].as_u64() {
        positions.truncate(usize::try_from(limit)?);
    }
    let mut tree = Vec::new();
    for position in positions {
        let row = &table.rows[position];
        answer.required.insert((name(ast)?.to_owned(), position));
        sample(snapshot, &ast["where"], row, answer)?;
        let mut node = vec![Value::Array(table.primary_key.iter().map(|column| row[column].clone()).collect())];
        for related in ast["related"].as_array().into_iter().flatten() {
            let below = level(snapshot, &related["subquery"], Some((row, &related["correlation"])), answer)?;
            node.push(json!([related["subquery"]["alias"], below]));
        }
        tree.push(Value::Array(node));
    }
    Ok(Value::Array(tree))
}

/// Notes the rows that EXISTS subqueries of a result row match.
fn sample(snapshot: &Snapshot, condition: &Value, row: &Row, answer: &mut Answer) -> Result<()> {
    match condition["type"].as_str() {
        Some("and" | "or") => {
            for part in condition["conditions"].as_array().into_iter().flatten() {
                sample(snapshot, part, row, answer)?;
            }
        }
        Some("correlatedSubquery") if condition["related"]["system"] != json!("permissions") => {
            let ast = &condition["related"]["subquery"];
            let table = table(snapshot, ast)?;
            for position in matching(snapshot, ast, Some((row, &condition["related"]["correlation"])))? {
                answer.sampled.insert((name(ast)?.to_owned(), position));
                sample(snapshot, &ast["where"], &table.rows[position], answer)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn name(ast: &Value) -> Result<&str> {
    ast["table"].as_str().context("a query names its table")
}

fn table<'a>(snapshot: &'a Snapshot, ast: &Value) -> Result<&'a Table> {
    let name = name(ast)?;
    snapshot.tables.get(name).with_context(|| format!("the snapshot was read without {name}"))
}

/// Positions of the rows that fit the correlation and the condition, unordered.
fn matching(snapshot: &Snapshot, ast: &Value, parent: Parent) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    for (position, row) in table(snapshot, ast)?.rows.iter().enumerate() {
        if let Some((parent, correlation)) = parent
            && !correlates(parent, row, correlation)?
        {
            continue;
        }
        if holds(snapshot, &ast["where"], row)? {
            found.push(position);
        }
    }
    Ok(found)
}

fn correlates(parent: &Row, child: &Row, correlation: &Value) -> Result<bool> {
    let fields = |side: &str| correlation[side].as_array().with_context(|| format!("a correlation has {side}"));
    for (parent_field, child_field) in fields("parentField")?.iter().zip(fields("childField")?) {
        let value =
            |row: &Row, field: &Value| field.as_str().and_then(|field| row.get(field)).cloned().unwrap_or(Value::Null);
        let (a, b) = (value(parent, parent_field), value(child, child_field));
        if a.is_null() || !same(&a, &b) {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn holds(snapshot: &Snapshot, condition: &Value, row: &Row) -> Result<bool> {
    let parts = || condition["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(match condition["type"].as_str() {
        None => true,
        Some("and") => {
            for part in parts() {
                if !holds(snapshot, part, row)? {
                    return Ok(false);
                }
            }
            true
        }
        Some("or") => {
            for part in parts() {
                if holds(snapshot, part, row)? {
                    return Ok(true);
                }
            }
            false
        }
        Some("correlatedSubquery") => {
            let related = &condition["related"];
            let exists = !matching(snapshot, &related["subquery"], Some((row, &related["correlation"])))?.is_empty();
            match condition["op"].as_str() {
                Some("EXISTS") => exists,
                Some("NOT EXISTS") => !exists,
                other => bail!("unknown subquery operator {other:?}"),
            }
        }
        Some("simple") => simple(
            condition["op"].as_str().unwrap_or_default(),
            &operand(&condition["left"], row)?,
            &operand(&condition["right"], row)?,
        )?,
        Some(other) => bail!("unknown condition type {other}"),
    })
}

fn operand(position: &Value, row: &Row) -> Result<Value> {
    match position["type"].as_str() {
        Some("literal") => Ok(position["value"].clone()),
        Some("column") => {
            let column = position["name"].as_str().context("a column has a name")?;
            row.get(column).cloned().with_context(|| format!("no column {column}"))
        }
        other => bail!("unknown value position {other:?}"),
    }
}

fn simple(op: &str, left: &Value, right: &Value) -> Result<bool> {
    match op {
        "IS" => return Ok(same(left, right)),
        "IS NOT" => return Ok(!same(left, right)),
        _ => {}
    }
    if left.is_null() || right.is_null() {
        return Ok(false);
    }
    Ok(match op {
        "=" => same(left, right),
        "!=" => !same(left, right),
        "<" => compare_values(left, right).is_lt(),
        "<=" => compare_values(left, right).is_le(),
        ">" => compare_values(left, right).is_gt(),
        ">=" => compare_values(left, right).is_ge(),
        "IN" | "NOT IN" => {
            let list = right.as_array().context("IN takes a list")?;
            list.iter().any(|item| same(left, item)) == (op == "IN")
        }
        "LIKE" | "NOT LIKE" => like(left, right, false)? == (op == "LIKE"),
        "ILIKE" | "NOT ILIKE" => like(left, right, true)? == (op == "ILIKE"),
        _ => bail!("unknown operator {op}"),
    })
}

fn like(left: &Value, right: &Value, fold: bool) -> Result<bool> {
    let text = |value: &Value| -> Result<Vec<char>> {
        let text = value.as_str().context("LIKE takes text")?;
        Ok(if fold { text.to_lowercase().chars().collect() } else { text.chars().collect() })
    };
    Ok(like_from(&text(left)?, &text(right)?))
}

fn like_from(text: &[char], pattern: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['%', rest @ ..] => (0..=text.len()).any(|skip| like_from(&text[skip..], rest)),
        ['_', rest @ ..] => !text.is_empty() && like_from(&text[1..], rest),
        ['\\', literal, rest @ ..] | [literal, rest @ ..] => {
            text.first() == Some(literal) && like_from(&text[1..], rest)
        }
    }
}

/// The query's order with the missing columns of the primary key, ascending.
fn complete_order(ast: &Value, table: &Table) -> Vec<(String, bool)> {
    let mut order: Vec<(String, bool)> = Vec::new();
    for part in ast["orderBy"].as_array().into_iter().flatten() {
        if let Some(column) = part[0].as_str() {
            order.push((column.to_owned(), part[1] == json!("desc")));
        }
    }
    for column in &table.primary_key {
        if !order.iter().any(|(known, _)| known == column) {
            order.push((column.clone(), false));
        }
    }
    order
}

fn compare(a: &Row, b: &Row, order: &[(String, bool)]) -> Ordering {
    for (column, descending) in order {
        let by = compare_values(a.get(column).unwrap_or(&Value::Null), b.get(column).unwrap_or(&Value::Null));
        if by != Ordering::Equal {
            return if *descending { by.reverse() } else { by };
        }
    }
    Ordering::Equal
}

/// Nulls first, numbers by value, text by its UTF-8 bytes.
fn compare_values(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Null, Value::Null) => Ordering::Equal,
        (Value::Null, _) => Ordering::Less,
        (_, Value::Null) => Ordering::Greater,
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal),
        },
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        (Value::String(a), Value::String(b)) => a.as_bytes().cmp(b.as_bytes()),
        (a, b) => a.to_string().cmp(&b.to_string()),
    }
}
