//! Random queries and changes over the application's tables.
//!
//! Reached: every simple operator, and/or, EXISTS and NOT EXISTS (nested, under or), related to depth 2 with limits and orders of
//! their own, hidden junctions, limit, start, nulls, changes of primary keys, several statements in one transaction.
//! Not yet: TRUNCATE, JSON columns, correlation by two columns.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use crate::app::cmp;

/// column, and a way of making values that often occur
type Columns = &'static [(&'static str, Domain)];

#[derive(Clone, Copy)]
enum Domain {
    /// Prefix and count of ids.
    Id(&'static str, u32),
    NullableId(&'static str, u32),
    Small(i64),
    NullableSmall(i64),
    Boolean,
    Word(&'static str),
}

struct Table {
    name: &'static str,
    columns: Columns,
    key: &'static [&'static str],
    /// alias, parent columns, child table, child columns
    relations: &'static [(&'static str, &'static str, &'static str, &'static str)],
}

const TABLES: &[Table] = &[
    Table {
        name: "issue",
        columns: &[
            ("id", Domain::Id("i", 40)),
            ("title", Domain::Word("Issue")),
            ("open", Domain::Boolean),
            ("rank", Domain::Small(7)),
            ("owner_id", Domain::NullableId("p", 8)),
        ],
        key: &["id"],
        relations: &[
            ("comments", "id", "comment", "issue_id"),
            ("owner", "owner_id", "person", "id"),
            ("links", "id", "issue_label", "issue_id"),
        ],
    },
    Table {
        name: "person",
        columns: &[("id", Domain::Id("p", 8)), ("name", Domain::Word("Person")), ("age", Domain::NullableSmall(30))],
        key: &["id"],
        relations: &[("issues", "id", "issue", "owner_id"), ("said", "id", "comment", "author_id")],
    },
    Table {
        name: "comment",
        columns: &[
            ("id", Domain::Id("c", 70)),
            ("issue_id", Domain::Id("i", 40)),
            ("author_id", Domain::NullableId("p", 8)),
            ("body", Domain::Word("Body")),
            ("pos", Domain::Small(60)),
        ],
        key: &["id"],
        relations: &[("issue", "issue_id", "issue", "id"), ("author", "author_id", "person", "id")],
    },
    Table {
        name: "label",
        columns: &[("id", Domain::Id("l", 5)), ("name", Domain::Word("label"))],
        key: &["id"],
        relations: &[("links", "id", "issue_label", "label_id")],
    },
    Table {
        name: "issue_label",
        columns: &[("issue_id", Domain::Id("i", 40)), ("label_id", Domain::Id("l", 5))],
        key: &["issue_id", "label_id"],
        relations: &[("issue", "issue_id", "issue", "id"), ("label", "label_id", "label", "id")],
    },
];

fn table(name: &str) -> &'static Table {
    TABLES.iter().find(|table| table.name == name).expect("relations name known tables")
}

impl Domain {
    fn value(self, dice: &mut StdRng) -> Value {
        match self {
            Domain::Id(prefix, count) => json!(format!("{prefix}{}", dice.random_range(1..=count))),
            Domain::NullableId(..) | Domain::NullableSmall(_) if dice.random_bool(0.2) => Value::Null,
            Domain::NullableId(prefix, count) => Domain::Id(prefix, count).value(dice),
            Domain::Small(max) | Domain::NullableSmall(max) => json!(dice.random_range(0..=max)),
            Domain::Boolean => json!(dice.random::<bool>()),
            Domain::Word(prefix) => json!(format!("{prefix} {}", dice.random_range(1..=40))),
        }
    }

    fn is_text(self) -> bool {
        matches!(self, Domain::Id(..) | Domain::NullableId(..) | Domain::Word(_))
    }
}

/// A random query.
pub fn ast(dice: &mut StdRng) -> Value {
    let root = TABLES.choose(dice).expect("there are tables");
    level(dice, root, 2)
}

fn level(dice: &mut StdRng, table: &'static Table, depth: u32) -> Value {
    let mut ast = json!({"table": table.name});
    if dice.random_bool(0.6) {
        ast["where"] = condition(dice, table, 2);
    }
    if depth > 0 && dice.random_bool(0.6) {
        let related: Vec<_> = table
            .relations
            .iter()
            .filter(|_| dice.random_bool(0.5))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|relation| {
                let mut child = level(dice, self::table(relation.2), depth - 1);
                child["alias"] = json!(relation.0);
                let mut related = json!({"correlation": correlation(relation), "subquery": child, "system": "client"});
                if relation.2 == "issue_label" {
                    related["hidden"] = json!(true);
                    if let Some(inner) = related["subquery"].as_object_mut() {
                        inner.remove("limit");
                        inner.remove("start");
                    }
                }
                related
            })
            .collect();
        if !related.is_empty() {
            ast["related"] = json!(related);
        }
    }
    let mut order: Vec<(&str, &str)> = Vec::new();
    for (column, _) in table.columns {
        if dice.random_bool(0.25) {
            order.push((column, if dice.random() { "asc" } else { "desc" }));
        }
    }
    if dice.random_bool(0.5) {
        // Clients complete the order by the key themselves when they use `start`.
        order.extend(
            table
                .key
                .iter()
                .filter(|key| !order.iter().any(|(known, _)| known == *key))
                .map(|key| (*key, "asc"))
                .collect::<Vec<_>>(),
        );
        if dice.random_bool(0.3) {
            let row: serde_json::Map<_, _> = order
                .iter()
                .filter_map(|(column, _)| table.columns.iter().find(|(name, _)| name == column))
                .map(|(column, domain)| ((*column).to_owned(), domain.value(dice)))
                .collect();
            ast["start"] = json!({"row": row, "exclusive": dice.random::<bool>()});
        }
    }
    if !order.is_empty() {
        ast["orderBy"] = json!(order);
    }
    if dice.random_bool(0.5) {
        ast["limit"] = json!(dice.random_range(1..8));
    }
    ast
}

fn correlation(relation: &(&str, &str, &str, &str)) -> Value {
    json!({"parentField": [relation.1], "childField": [relation.3]})
}

fn condition(dice: &mut StdRng, table: &'static Table, depth: u32) -> Value {
    match dice.random_range(0..10) {
        0..3 if depth > 0 => {
            let parts: Vec<_> = (0..dice.random_range(2..4)).map(|_| condition(dice, table, depth - 1)).collect();
            json!({"type": if dice.random() { "and" } else { "or" }, "conditions": parts})
        }
        3..6 if depth > 0 => {
            let relation = table.relations.choose(dice).expect("every table has relations");
            let child = self::table(relation.2);
            let mut subquery = json!({"table": child.name, "alias": format!("zsubq_{}", relation.0)});
            if dice.random_bool(0.7) {
                subquery["where"] = condition(dice, child, depth - 1);
            }
            json!({
                "type": "correlatedSubquery", "op": if dice.random_bool(0.75) { "EXISTS" } else { "NOT EXISTS" },
                "related": {"correlation": correlation(relation), "subquery": subquery, "system": "client"},
            })
        }
        _ => simple(dice, table),
    }
}

fn simple(dice: &mut StdRng, table: &'static Table) -> Value {
    let (column, domain) = *table.columns.choose(dice).expect("every table has columns");
    let value = loop {
        let value = domain.value(dice);
        if !value.is_null() {
            break value;
        }
    };
    match dice.random_range(0..8) {
        0 => cmp(column, if dice.random() { "IN" } else { "NOT IN" }, json!([domain_value(dice, domain), value])),
        1 => cmp(column, if dice.random() { "IS" } else { "IS NOT" }, if dice.random() { Value::Null } else { value }),
        2 | 3 if domain.is_text() => {
            let op = ["LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"].choose(dice).expect("not empty");
            let text = value.as_str().unwrap_or_default();
            let pattern = match dice.random_range(0..3) {
                0 => format!("{}%", text.chars().take(2).collect::<String>().to_uppercase()),
                1 => format!("%{}", text.chars().last().unwrap_or('1')),
                _ => text.replacen(|c: char| c.is_ascii_digit(), "_", 1),
            };
            cmp(column, op, json!(pattern))
        }
        _ if matches!(domain, Domain::Boolean) => cmp(column, if dice.random() { "=" } else { "!=" }, value),
        _ => cmp(column, ["=", "!=", "<", "<=", ">", ">="].choose(dice).expect("not empty"), value),
    }
}

fn domain_value(dice: &mut StdRng, domain: Domain) -> Value {
    let value = domain.value(dice);
    if value.is_null() { domain_value(dice, domain) } else { value }
}

/// A random change of rows as SQL that cannot fail.
pub fn statement(dice: &mut StdRng, next_row: &mut u32) -> String {
    let table = TABLES.choose(dice).expect("there are tables");
    let sql = |value: &Value| match value {
        Value::String(text) => format!("'{text}'"),
        other => other.to_string(),
    };
    match dice.random_range(0..10) {
        0..4 => {
            let mut values: Vec<_> = table.columns.iter().map(|(_, domain)| sql(&domain.value(dice))).collect();
            if table.key == ["id"] && dice.random_bool(0.3) {
                *next_row += 1;
                values[0] = format!("'new{next_row}'");
            }
            let names: Vec<_> = table.columns.iter().map(|(name, _)| *name).collect();
            let updates: Vec<_> = names.iter().map(|name| format!("{name} = EXCLUDED.{name}")).collect();
            format!(
                "INSERT INTO {} ({}) VALUES ({}) ON CONFLICT ({}) DO UPDATE SET {}",
                table.name,
                names.join(", "),
                values.join(", "),
                table.key.join(", "),
                updates.join(", ")
            )
        }
        4..7 if table.columns.len() > table.key.len() => {
            let free: Vec<_> = table.columns.iter().filter(|(name, _)| !table.key.contains(name)).collect();
            let (column, domain) = free.choose(dice).expect("there is a column besides the key");
            let value = sql(&domain.value(dice));
            format!("UPDATE {} SET {column} = {value} WHERE {}", table.name, some_rows(dice, table))
        }
        7 if table.key == ["id"] => {
            *next_row += 1;
            let Value::String(id) = table.columns[0].1.value(dice) else { unreachable!("ids are text") };
            format!("UPDATE {} SET id = 'moved{next_row}' WHERE id = '{id}'", table.name)
        }
        _ => format!("DELETE FROM {} WHERE {}", table.name, some_rows(dice, table)),
    }
}

/// A condition that holds for few rows.
fn some_rows(dice: &mut StdRng, table: &Table) -> String {
    let (column, domain) =
        table.columns.iter().find(|(_, domain)| matches!(domain, Domain::Id(..))).expect("every table has an id");
    let values: Vec<_> = (0..dice.random_range(1..4))
        .map(|_| format!("'{}'", domain.value(dice).as_str().unwrap_or_default()))
        .collect();
    format!("{column} IN ({})", values.join(", "))
}
