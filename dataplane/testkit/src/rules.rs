//! Random permissions, claims and queries over three tables that refer to each other.
//!
//! What is generated is what applications write: every comparison is of values of one kind. Odd things have tests of their own.

use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::{Map, Value, json};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Number,
    Boolean,
}

use Kind::{Boolean, Number, Text};

const TABLES: &[(&str, &[(&str, Kind)])] = &[
    ("issue", &[("id", Text), ("owner", Text), ("open", Boolean), ("n", Number)]),
    ("comment", &[("id", Text), ("issueID", Text), ("body", Text)]),
    ("acct", &[("id", Number), ("owner", Text), ("secret", Text), ("num", Number)]),
];

/// Columns that lead from one table to another, in both directions.
const JOINS: &[(&str, &str, &str, &str)] = &[
    ("issue", "id", "comment", "issueID"),
    ("issue", "owner", "acct", "owner"),
    ("issue", "owner", "comment", "body"),
    ("issue", "n", "acct", "num"),
    ("comment", "body", "acct", "owner"),
];

pub const USERS: [&str; 3] = ["u0", "u1", "u2"];

/// The tables in Postgres.
pub const CREATE: &str = r#"
    CREATE TABLE issue (id TEXT PRIMARY KEY, owner TEXT, open BOOL, n BIGINT);
    CREATE TABLE comment (id TEXT PRIMARY KEY, "issueID" TEXT, body TEXT);
    CREATE TABLE acct (id BIGINT PRIMARY KEY, owner TEXT, secret TEXT, num BIGINT NOT NULL UNIQUE);
"#;

/// The client schema of the tables.
pub fn client_schema() -> Value {
    let tables = TABLES.iter().map(|(name, columns)| {
        let columns: Map<String, Value> = columns
            .iter()
            .map(|(column, kind)| {
                let kind = match kind {
                    Text => "string",
                    Number => "number",
                    Boolean => "boolean",
                };
                ((*column).to_owned(), json!({"type": kind}))
            })
            .collect();
        ((*name).to_owned(), json!({"columns": columns, "primaryKey": ["id"]}))
    });
    json!({"tables": tables.collect::<Map<_, _>>()})
}

/// Names of the tables.
pub fn tables() -> Vec<&'static str> {
    TABLES.iter().map(|(name, _)| *name).collect()
}

/// A row of a table, with null in about every fifth place that may be null.
pub fn row(rng: &mut impl Rng, table: &str) -> Value {
    let columns = columns(table);
    let mut row = Map::new();
    for (column, kind) in columns {
        let key = matches!(*column, "id" | "num");
        let value = match (*column, table) {
            ("id", "issue") | ("issueID", _) => json!(format!("i{}", rng.random_range(0..8))),
            ("id", "comment") => json!(format!("m{}", rng.random_range(0..8))),
            ("num" | "id", _) => json!(rng.random_range(0..8)),
            _ => value(rng, *kind),
        };
        row.insert((*column).to_owned(), if !key && rng.random_bool(0.15) { Value::Null } else { value });
    }
    // A number of an account is unique.
    if table == "acct" {
        row["num"] = row["id"].clone();
    }
    Value::Object(row)
}

fn columns(table: &str) -> &'static [(&'static str, Kind)] {
    TABLES.iter().find(|(name, _)| *name == table).map(|(_, columns)| *columns).unwrap_or_default()
}

fn value(rng: &mut impl Rng, kind: Kind) -> Value {
    match kind {
        Text => json!(USERS[rng.random_range(0..USERS.len())]),
        Number => json!(rng.random_range(0..6)),
        Boolean => json!(rng.random_bool(0.5)),
    }
}

/// What a token says of a user. Every now and then it lacks something.
pub fn claims(rng: &mut impl Rng, user: &str) -> Value {
    let mut claims = json!({"sub": user});
    for (name, value) in [
        ("friend", value(rng, Text)),
        ("role", json!(if rng.random_bool(0.3) { "admin" } else { "user" })),
        ("level", value(rng, Number)),
        ("active", value(rng, Boolean)),
        ("teams", json!((0..rng.random_range(1..3)).map(|_| value(rng, Text)).collect::<Vec<_>>())),
        ("levels", json!((0..rng.random_range(1..4)).map(|_| value(rng, Number)).collect::<Vec<_>>())),
        ("deep", json!({"er": value(rng, Text)})),
    ] {
        if rng.random_bool(0.85) {
            claims[name] = value;
        }
    }
    claims
}

/// Permissions with random rules for reading. A table may have none.
pub fn permissions(rng: &mut impl Rng, depth: usize) -> Value {
    let mut tables = Map::new();
    for (table, _) in TABLES {
        if rng.random_bool(0.1) {
            continue;
        }
        let rules = (0..rng.random_range(1..4)).map(|_| json!(["allow", rule(rng, table, depth)]));
        tables.insert((*table).to_owned(), json!({"row": {"select": rules.collect::<Vec<_>>()}}));
    }
    json!({"tables": tables})
}

/// A random rule of a table.
pub fn rule(rng: &mut impl Rng, table: &str, depth: usize) -> Value {
    condition(rng, table, depth, true)
}

/// A random query that a client defines.
pub fn query(rng: &mut impl Rng, depth: usize) -> Value {
    let (table, _) = TABLES[rng.random_range(0..TABLES.len())];
    ast(rng, table, depth)
}

fn ast(rng: &mut impl Rng, table: &str, depth: usize) -> Value {
    let mut ast = json!({"table": table});
    if rng.random_bool(0.6) {
        ast["where"] = condition(rng, table, depth, false);
    }
    if rng.random_bool(0.4) {
        let (column, _) = columns(table)[rng.random_range(0..columns(table).len())];
        ast["orderBy"] = json!([[column, if rng.random_bool(0.5) { "asc" } else { "desc" }]]);
    }
    if rng.random_bool(0.3) {
        ast["limit"] = json!(rng.random_range(1..4));
    }
    if depth > 0 && rng.random_bool(0.5) {
        let (parent, child_table, child) = join(rng, table);
        let mut below = self::ast(rng, child_table, depth - 1);
        below["alias"] = json!("below");
        ast["related"] = json!([{"correlation": {"parentField": [parent], "childField": [child]}, "subquery": below,
            "system": "client"}]);
    }
    ast
}

fn join(rng: &mut impl Rng, table: &str) -> (&'static str, &'static str, &'static str) {
    let mut ways = Vec::new();
    for (a, from, b, to) in JOINS {
        if *a == table {
            ways.push((*from, *b, *to));
        }
        if *b == table {
            ways.push((*to, *a, *from));
        }
    }
    ways[rng.random_range(0..ways.len())]
}

fn condition(rng: &mut impl Rng, table: &str, depth: usize, is_rule: bool) -> Value {
    match rng.random_range(0..10) {
        0 | 1 if depth > 0 => {
            let parts: Vec<Value> =
                (0..rng.random_range(1..4)).map(|_| condition(rng, table, depth - 1, is_rule)).collect();
            json!({"type": if rng.random_bool(0.5) { "and" } else { "or" }, "conditions": parts})
        }
        2..5 if depth > 0 => {
            let (parent, child_table, child) = join(rng, table);
            let mut subquery = json!({"table": child_table, "alias": format!("zsubq_{child_table}")});
            if rng.random_bool(0.8) {
                subquery["where"] = condition(rng, child_table, depth - 1, is_rule);
            }
            let system = if is_rule { "permissions" } else { "client" };
            json!({"type": "correlatedSubquery", "op": if rng.random_bool(0.65) { "EXISTS" } else { "NOT EXISTS" },
                "related": {"system": system, "subquery": subquery,
                    "correlation": {"parentField": [parent], "childField": [child]}}})
        }
        5 if is_rule => constant(rng),
        _ => comparison(rng, table, is_rule),
    }
}

/// Of a claim with a constant: it does not look at the row.
fn constant(rng: &mut impl Rng) -> Value {
    match rng.random_range(0..4) {
        0 => simple(parameter(&json!("role")), "=", literal(&json!("admin"))),
        1 => simple(parameter(&json!("active")), "=", literal(&json!(true))),
        2 => simple(parameter(&json!("level")), ">=", literal(&json!(rng.random_range(0..6)))),
        _ => json!({"type": "and", "conditions": []}),
    }
}

fn comparison(rng: &mut impl Rng, table: &str, is_rule: bool) -> Value {
    let (column, kind) = columns(table)[rng.random_range(0..columns(table).len())];
    let left = json!({"type": "column", "name": column});
    if is_rule && rng.random_bool(0.6) {
        let (one, list): (&[Value], Option<&str>) = match kind {
            Text => (&[json!("sub"), json!("friend"), json!(["deep", "er"]), json!("missing")], Some("teams")),
            Number => (&[json!("level"), json!(["missing", "path"])], Some("levels")),
            Boolean => (&[json!("active")], None),
        };
        return match list.filter(|_| rng.random_bool(0.3)) {
            Some(list) => simple(left, pick(rng, &["IN", "NOT IN"]), parameter(&json!(list))),
            None => simple(
                left,
                pick(rng, &["=", "=", "=", "!=", "IS", "IS NOT"]),
                parameter(&one[rng.random_range(0..one.len())]),
            ),
        };
    }
    match (kind, rng.random_range(0..6)) {
        (_, 0) => simple(left, pick(rng, &["IS", "IS NOT"]), literal(&Value::Null)),
        (Text, 1) => simple(left, pick(rng, &["LIKE", "NOT LIKE", "ILIKE"]), literal(&json!("%1"))),
        (Text | Number, 2) => {
            let list = json!([value(rng, kind), value(rng, kind)]);
            simple(left, pick(rng, &["IN", "NOT IN"]), literal(&list))
        }
        (Number, 3 | 4) => simple(left, pick(rng, &["<", ">", "<=", ">="]), literal(&value(rng, kind))),
        _ => simple(left, pick(rng, &["=", "=", "!=", "IS", "IS NOT"]), literal(&value(rng, kind))),
    }
}

fn pick<'a>(rng: &mut impl Rng, among: &[&'a str]) -> &'a str {
    among.choose(rng).copied().unwrap_or_default()
}

fn simple(left: Value, op: &str, right: Value) -> Value {
    json!({"type": "simple", "left": left, "op": op, "right": right})
}

fn literal(value: &Value) -> Value {
    json!({"type": "literal", "value": value})
}

fn parameter(field: &Value) -> Value {
    json!({"type": "static", "anchor": "authData", "field": field})
}
