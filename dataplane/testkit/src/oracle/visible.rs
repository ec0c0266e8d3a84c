//! Which rows a user may see, decided row by row over the whole tables: a query is then evaluated over those rows alone. So rules are
//! judged here in another way than by writing them into queries.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::evaluate::holds;
use super::read::{Snapshot, Table};

/// The rows that a user with `claims` may see by deployed permissions. No rules: none.
pub fn visible(snapshot: &Snapshot, permissions: &Value, claims: &Value) -> Result<Snapshot> {
    let mut seen = Snapshot::default();
    for (name, table) in &snapshot.tables {
        let rules = permissions["tables"][name]["row"]["select"].as_array().map(Vec::as_slice).unwrap_or_default();
        let rules = rules.iter().map(|rule| bound(&rule[1], claims)).collect::<Result<Vec<_>>>()?;
        let mut rows = Vec::new();
        for row in &table.rows {
            for rule in &rules {
                if holds(snapshot, rule, row).with_context(|| format!("a rule of {name}"))? {
                    rows.push(row.clone());
                    break;
                }
            }
        }
        seen.tables.insert(name.clone(), Table { rows, ..table.clone() });
    }
    Ok(seen)
}

/// A tree with what the claims say in place of its parameters.
pub fn bound(tree: &Value, claims: &Value) -> Result<Value> {
    Ok(match tree {
        Value::Object(fields) if fields.get("type") == Some(&json!("static")) => {
            let value = match (fields["anchor"].as_str(), &fields["field"]) {
                (Some("authData"), Value::String(name)) => claims[name].clone(),
                (Some("authData"), Value::Array(path)) => {
                    path.iter().filter_map(Value::as_str).fold(claims.clone(), |value, step| value[step].clone())
                }
                (Some("preMutationRow"), _) => Value::Null,
                (anchor, _) => bail!("unknown anchor {anchor:?}"),
            };
            json!({"type": "literal", "value": value})
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| Ok((name.clone(), bound(value, claims)?)));
            Value::Object(fields.collect::<Result<Map<_, _>>>()?)
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| bound(item, claims)).collect::<Result<_>>()?),
        other => other.clone(),
    })
}
