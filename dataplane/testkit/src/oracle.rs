//! Recomputes from Postgres what a client must hold: reads whole tables in one snapshot and evaluates query ASTs over them by
//! nested loops, with none of the server's code.
//!
//! A client's store is right when
//! 1. each of its rows equals Postgres's row,
//! 2. it holds every row of the result and of its `related` subqueries,
//! 3. every other row it holds matches an EXISTS subquery of a result row (servers send a sample of those), and
//! 4. the query evaluated over the client's own rows gives the same tree as over Postgres's.

mod evaluate;
mod read;
mod visible;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};
use serde_json::{Value, json};

pub use evaluate::{Answer, evaluate};
pub use read::{Snapshot, Table};
pub use visible::{bound, visible};

use crate::client::{Query, Row, Store, Tables, row_key};

/// Compares all a client holds with the answers of its queries.
pub fn check_store(snapshot: &Snapshot, store: &Store, queries: &[Value], client_schema: &Value) -> Result<()> {
    let keys = client_keys(client_schema);
    let mut required = BTreeSet::new();
    let mut allowed = BTreeSet::new();
    let held = snapshot.restricted_to(&store.rows);
    for ast in queries {
        let answer = evaluate(snapshot, ast)?;
        required.extend(answer.required.iter().cloned());
        allowed.extend(answer.sampled.iter().cloned());
        if !has_not_exists(ast) {
            let own = evaluate(&held, ast)?;
            if own.tree != answer.tree {
                bail!(
                    "evaluated over the client's rows the query gives another result than over Postgres's\nquery {ast}\nclient   {}\npostgres {}",
                    shorten(&own.tree),
                    shorten(&answer.tree)
                );
            }
        }
    }
    let truth = snapshot.keyed(&keys);
    for (table, position) in &required {
        let row = &snapshot.tables[table].rows[*position];
        let Some(key) = keys.get(table) else { bail!("a query reads {table}, which is not in the client schema") };
        let text = row_key(key, row);
        if store.rows.get(table).and_then(|rows| rows.get(&text)).is_none() {
            bail!("the client lacks {table} {text}: {}", json!(row));
        }
    }
    for (table, rows) in &store.rows {
        for (text, row) in rows {
            let Some(position) = truth.get(table).and_then(|rows| rows.get(text)) else {
                bail!("the client holds {table} {text}, which Postgres does not");
            };
            let wanted = &snapshot.tables[table].rows[*position];
            if let Some(difference) = row_difference(row, wanted) {
                bail!("the client's {table} {text} differs from Postgres: {difference}");
            }
            let place = (table.clone(), *position);
            if !required.contains(&place) && !allowed.contains(&place) {
                bail!("the client holds {table} {text}, which none of its queries gives");
            }
        }
    }
    Ok(())
}

/// The ASTs of a client's wanted queries; `named` knows the named ones.
pub fn asts<'a>(queries: impl Iterator<Item = &'a Query>, named: impl Fn(&str, &Value) -> Value) -> Vec<Value> {
    queries
        .map(|query| match query {
            Query::Named { name, args } => named(name, args),
            Query::Ast(ast) => ast.clone(),
        })
        .collect()
}

fn client_keys(schema: &Value) -> BTreeMap<String, Vec<String>> {
    let list = |table: &Value| {
        table["primaryKey"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    schema["tables"].as_object().into_iter().flatten().map(|(name, table)| (name.clone(), list(table))).collect()
}

/// Where two rows differ, `None` if they are the same row. Numbers are compared by value: `1` is `1.0`.
#[must_use]
pub fn row_difference(client: &Row, postgres: &Row) -> Option<String> {
    let columns: BTreeSet<_> = client.keys().chain(postgres.keys()).collect();
    columns.into_iter().find_map(|column| match (client.get(column), postgres.get(column)) {
        (Some(ours), Some(theirs)) if same(ours, theirs) => None,
        (ours, theirs) => Some(format!("column {column} is {ours:?}, in Postgres {theirs:?}")),
    })
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (a, b) => a == b,
    }
}

/// Clients cannot run such a query, because absent rows prove nothing to them.
fn has_not_exists(ast: &Value) -> bool {
    match ast {
        Value::Object(fields) => {
            fields.get("op").is_some_and(|op| op == "NOT EXISTS") || fields.values().any(has_not_exists)
        }
        Value::Array(items) => items.iter().any(has_not_exists),
        _ => false,
    }
}

fn shorten(tree: &Value) -> String {
    let text = tree.to_string();
    if text.len() > 4000 { format!("{} ...", text.chars().take(4000).collect::<String>()) } else { text }
}

impl Snapshot {
    /// The same tables with a client's rows in them.
    fn restricted_to(&self, rows: &Tables) -> Snapshot {
        let tables = self.tables.iter().map(|(name, table)| {
            let rows = rows.get(name).map(|rows| rows.values().cloned().collect()).unwrap_or_default();
            (name.clone(), Table { rows, ..table.clone() })
        });
        Snapshot { tables: tables.collect() }
    }

    /// table -> key text -> position
    fn keyed(&self, keys: &BTreeMap<String, Vec<String>>) -> BTreeMap<String, BTreeMap<String, usize>> {
        let of = |table: &Table, key: &[String]| {
            table.rows.iter().enumerate().map(|(i, row)| (row_key(key, row), i)).collect()
        };
        keys.iter().filter_map(|(name, key)| Some((name.clone(), of(self.tables.get(name)?, key)))).collect()
    }
}
