//! From the wire's query tree to the engine's, and from a client schema to the row keys it implies.

use std::collections::BTreeMap;
use std::sync::Arc;

use ivm::query::{self, Query};
use protocol::ast::{
    Ast, Condition, CorrelatedSubquery, Direction, ExistsOperator, Literal, Operator, System, ValuePosition,
};
use protocol::schema::ClientSchema;
use rows::{ColumnType, Schema, Table, Value};

/// A tree that the engine cannot run; the message is for the developer of the application.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Unsupported(String);

/// The engine's form of a transformed AST. Parameters that were not bound are null, as for a user without claims.
pub fn to_query(ast: &Ast) -> Result<Query, Unsupported> {
    Ok(Query {
        table: ast.table.clone(),
        filter: ast.filter.as_ref().map_or(Ok(query::Condition::And(Vec::new())), to_condition)?,
        order_by: ast
            .order_by
            .iter()
            .map(|(column, direction)| {
                let direction = match direction {
                    Direction::Asc => rows::Direction::Asc,
                    Direction::Desc => rows::Direction::Desc,
                };
                (column.clone(), direction)
            })
            .collect(),
        start: match &ast.start {
            None => None,
            Some(start) => Some(query::Start {
                row: start
                    .row
                    .iter()
                    .map(|(column, value)| Ok((column.clone(), to_cell(column, value)?)))
                    .collect::<Result<_, Unsupported>>()?,
                exclusive: start.exclusive,
            }),
        },
        limit: ast.limit,
        related: ast.related.iter().map(to_related).collect::<Result<_, _>>()?,
    })
}

fn to_related(related: &CorrelatedSubquery) -> Result<query::Related, Unsupported> {
    Ok(query::Related {
        parent: related.correlation.parent_field.clone(),
        child: related.correlation.child_field.clone(),
        query: to_query(&related.subquery)?,
    })
}

fn to_condition(condition: &Condition) -> Result<query::Condition, Unsupported> {
    let all = |conditions: &[Condition]| conditions.iter().map(to_condition).collect::<Result<Vec<_>, _>>();
    Ok(match condition {
        Condition::And { conditions } => query::Condition::And(all(conditions)?),
        Condition::Or { conditions } => query::Condition::Or(all(conditions)?),
        Condition::CorrelatedSubquery { related, op, .. } => query::Condition::Exists {
            negated: *op == ExistsOperator::NotExists,
            synced: related.system != Some(System::Permissions),
            related: Box::new(to_related(related)?),
        },
        Condition::Simple { left, right, op } => {
            let op = to_op(*op);
            let value = match right {
                ValuePosition::Literal { value } => to_literal(value),
                ValuePosition::Static { .. } => query::Literal::One(Value::Null),
                ValuePosition::Column { name } => {
                    return Err(Unsupported(format!("column '{name}' stands on the right side of a comparison")));
                }
            };
            match left {
                ValuePosition::Column { name } => query::Condition::Compare { column: name.clone(), op, value },
                ValuePosition::Literal { value: left } => fold(&to_literal(left), op, &value),
                ValuePosition::Static { .. } => fold(&query::Literal::One(Value::Null), op, &value),
            }
        }
    })
}

/// A comparison of two literals is decided now.
fn fold(left: &query::Literal, op: query::Op, right: &query::Literal) -> query::Condition {
    if holds(left, op, right) { query::Condition::And(Vec::new()) } else { query::Condition::Or(Vec::new()) }
}

/// What a comparison of two literals comes to.
pub(crate) fn constant(left: &Literal, op: Operator, right: &Literal) -> bool {
    holds(&to_literal(left), to_op(op), &to_literal(right))
}

fn holds(left: &query::Literal, op: query::Op, right: &query::Literal) -> bool {
    use query::Op::{Ge, Gt, ILike, In, Le, Like, Lt, NotILike, NotIn, NotLike};
    match (left, right) {
        (query::Literal::One(left), query::Literal::One(right)) => match (op, left, right) {
            (Like | NotLike | ILike | NotILike, Value::Str(text), Value::Str(pattern)) => {
                let pattern = ivm::like::Pattern::new(pattern, matches!(op, ILike | NotILike));
                pattern.matches(text) != matches!(op, NotLike | NotILike)
            }
            // What is of another kind comes neither before nor after.
            (Lt | Gt | Le | Ge, left, right) if !are_ordered(left, right) => false,
            _ => ivm::eval::compare(left.as_ref(), op, right),
        },
        (query::Literal::One(left), query::Literal::Many(list)) => match op {
            In => ivm::eval::within(left.as_ref(), false, list),
            NotIn => ivm::eval::within(left.as_ref(), true, list),
            _ => false,
        },
        (query::Literal::Many(_), _) => false,
    }
}

fn are_ordered(left: &Value, right: &Value) -> bool {
    matches!(
        (left, right),
        (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_))
            | (Value::Str(_), Value::Str(_))
            | (Value::Bool(_), Value::Bool(_))
    )
}

fn to_op(op: Operator) -> query::Op {
    use query::Op;
    match op {
        Operator::Eq => Op::Eq,
        Operator::Ne => Op::Ne,
        Operator::Is => Op::Is,
        Operator::IsNot => Op::IsNot,
        Operator::Lt => Op::Lt,
        Operator::Gt => Op::Gt,
        Operator::Le => Op::Le,
        Operator::Ge => Op::Ge,
        Operator::Like => Op::Like,
        Operator::NotLike => Op::NotLike,
        Operator::ILike => Op::ILike,
        Operator::NotILike => Op::NotILike,
        Operator::In => Op::In,
        Operator::NotIn => Op::NotIn,
    }
}

fn to_literal(literal: &Literal) -> query::Literal {
    match literal {
        Literal::Array(values) => query::Literal::Many(values.iter().map(to_value).collect()),
        one => query::Literal::One(to_value(one)),
    }
}

fn to_value(literal: &Literal) -> Value {
    match literal {
        // Arrays are not nested; the parser refused that.
        Literal::Null | Literal::Array(_) => Value::Null,
        Literal::Bool(b) => Value::Bool(*b),
        Literal::Int(i) => Value::Int(*i),
        Literal::Float(f) => Value::Float(*f),
        Literal::String(s) => Value::Str(s.as_str().into()),
    }
}

fn to_cell(column: &str, value: &serde_json::Value) -> Result<Value, Unsupported> {
    Ok(match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(b) => Value::Bool(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(i), _) => Value::Int(i),
            (None, Some(f)) => Value::Float(f),
            (None, None) => return Err(Unsupported(format!("start.row.{column} is not a usable number"))),
        },
        serde_json::Value::String(s) => Value::Str(s.as_str().into()),
        serde_json::Value::Array(_) | serde_json::Value::Object(_) => {
            return Err(Unsupported(format!("start.row.{column} is an array or object, which has no order")));
        }
    })
}

/// The primary key columns that a client schema declares, per table it names. Row identity on the wire goes by these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyChoice {
    by_table: BTreeMap<String, Vec<String>>,
}

impl KeyChoice {
    #[must_use]
    pub fn of(schema: &ClientSchema) -> KeyChoice {
        let by_table = schema.tables.iter().map(|(name, table)| (name.clone(), table.primary_key.clone()));
        KeyChoice { by_table: by_table.filter(|(_, key)| !key.is_empty()).collect() }
    }

    /// Positions of the key's columns; the replica's own key for tables outside the client schema.
    #[must_use]
    pub fn columns(&self, table: &Table) -> Vec<usize> {
        self.by_table
            .get(&*table.name)
            .and_then(|names| names.iter().map(|name| table.position(name)).collect::<Option<Vec<usize>>>())
            .unwrap_or_else(|| table.key.clone())
    }

    /// The part of the choice that matters for `tables`, as text: two groups that agree on it can share a materialisation.
    #[must_use]
    pub fn share_key(&self, tables: &[&str]) -> String {
        let mut text = String::new();
        for table in tables {
            if let Some(key) = self.by_table.get(*table) {
                let key: Vec<String> = key.iter().map(|column| plain(column)).collect();
                text.push_str(&format!("|{}:{}", plain(table), key.join(",")));
            }
        }
        text
    }
}

/// A name without the signs that separate names, so that two lists of names never have one text.
fn plain(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for sign in name.chars() {
        match sign {
            '\\' | '|' | ':' | ',' => text.extend(['\\', sign]),
            sign => text.push(sign),
        }
    }
    text
}

/// Every table that a tree reads, sorted.
#[must_use]
pub fn tables_of(ast: &Ast) -> Vec<&str> {
    fn visit<'a>(ast: &'a Ast, out: &mut Vec<&'a str>) {
        out.push(&ast.table);
        for related in &ast.related {
            visit(&related.subquery, out);
        }
        if let Some(filter) = &ast.filter {
            visit_condition(filter, out);
        }
    }
    fn visit_condition<'a>(condition: &'a Condition, out: &mut Vec<&'a str>) {
        match condition {
            Condition::Simple { .. } => {}
            Condition::And { conditions } | Condition::Or { conditions } => {
                for condition in conditions {
                    visit_condition(condition, out);
                }
            }
            Condition::CorrelatedSubquery { related, .. } => visit(&related.subquery, out),
        }
    }
    let mut tables = Vec::new();
    visit(ast, &mut tables);
    tables.sort_unstable();
    tables.dedup();
    tables
}

/// Whether the replica can serve a client that was built for `client`; every mismatch is named.
pub fn check_client_schema(client: &ClientSchema, replica: &Schema) -> Result<(), String> {
    let mut problems = Vec::new();
    for (name, wanted) in &client.tables {
        let Some(table) = replica.tables.get(name.as_str()) else {
            problems.push(match replica.hidden.get(name.as_str()) {
                Some(reason) => reason.clone(),
                None => format!(
                    "The \"{name}\" table does not exist or is not one of the replicated tables: {}.",
                    list(replica.tables.keys())
                ),
            });
            continue;
        };
        for (column, wanted) in &wanted.columns {
            match table.position(column).map(|p| table.columns[p].ty) {
                None => problems.push(format!(
                    "The \"{name}\".\"{column}\" column does not exist, is not replicated, or has an unsupported type. \
                     Replicated columns: {}.",
                    list(table.columns.iter().map(|c| &c.name))
                )),
                Some(ty) => {
                    let have = ty.client_name().unwrap_or("unsupported");
                    if have != wanted.kind.name() {
                        problems.push(format!(
                            "The \"{name}\".\"{column}\" column's upstream type is \"{have}\", which does not match the \
                             client schema's \"{}\".",
                            wanted.kind.name()
                        ));
                    }
                }
            }
        }
        check_key(name, &wanted.primary_key, table, &mut problems);
    }
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

fn check_key(name: &str, wanted: &[String], table: &Arc<Table>, problems: &mut Vec<String>) {
    if wanted.is_empty() {
        problems.push(format!("The \"{name}\" table has no primary key in the client schema."));
        return;
    }
    let Some(mut positions) = wanted.iter().map(|c| table.position(c)).collect::<Option<Vec<usize>>>() else {
        problems
            .push(format!("The primary key <{}> of \"{name}\" names a column that does not exist.", wanted.join(", ")));
        return;
    };
    positions.sort_unstable();
    if !table.unique_keys.contains(&positions) {
        problems.push(format!(
            "The primary key <{}> of \"{name}\" is not associated with a non-null unique index upstream.",
            wanted.join(", ")
        ));
    }
    debug_assert!(positions.iter().all(|&p| table.columns[p].ty != ColumnType::Hidden));
}

fn list<'a>(names: impl Iterator<Item = &'a Arc<str>>) -> String {
    names.map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_choices_of_keys_have_different_texts() {
        let choice = |table: &str, key: &[&str]| {
            let key = key.iter().map(|c| (*c).to_owned()).collect();
            KeyChoice { by_table: BTreeMap::from([(table.to_owned(), key)]) }.share_key(&[table])
        };
        let texts = [
            choice("t", &["a", "b"]),
            choice("t", &["b", "a"]),
            choice("t", &["a,b"]),
            choice("t", &["a\\", "b"]),
            choice("t", &["a\\,b"]),
            choice("t:a", &["b"]),
            choice("t", &["a:b"]),
        ];
        for (n, text) in texts.iter().enumerate() {
            assert!(!texts[..n].contains(text), "{text}");
        }
        assert_eq!(texts[0], "|t:a,b");
    }
}
