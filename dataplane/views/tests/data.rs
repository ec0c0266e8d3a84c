//! Tables, rows and queries of the tests.

use std::sync::Arc;

use ivm::query::{Condition, Literal, Op, Query, Related};
use rows::schema::{ColumnSpec, IndexSpec};
use rows::transaction::Cell;
use rows::{ColumnType, Direction, TableSpec, Value};
use serde_json::{Value as Json, json};

pub fn column(attnum: i16, name: &str, ty: ColumnType, not_null: bool) -> ColumnSpec {
    let type_name = match ty {
        ColumnType::Bool => "bool",
        ColumnType::Int => "int8",
        ColumnType::Float => "float8",
        ColumnType::Str => "text",
        ColumnType::Json => "jsonb",
        ColumnType::Hidden => "bytea",
    };
    ColumnSpec { attnum, name: name.into(), type_oid: 25, type_name: type_name.into(), ty, not_null }
}

pub fn table(oid: u32, schema: &str, name: &str, columns: &[(&str, ColumnType)], key: &[&str]) -> Arc<TableSpec> {
    let names: Vec<String> = key.iter().map(|c| (*c).to_owned()).collect();
    let pkey = IndexSpec {
        name: format!("{name}_pkey"),
        unique: true,
        columns: names.iter().map(|c| (c.clone(), false)).collect(),
    };
    let columns = (1..).zip(columns).map(|(n, (name, ty))| column(n, name, *ty, key.contains(name))).collect();
    Arc::new(TableSpec {
        oid,
        schema: schema.into(),
        name: name.into(),
        columns,
        primary_key: names.clone(),
        identity: names,
        indexes: vec![pkey],
    })
}

/// `acct` with a second unique key, so that clients may know its rows by either.
fn acct(oid: u32) -> Arc<TableSpec> {
    use ColumnType::{Int, Str};
    let columns = [("id", Int), ("owner", Str), ("secret", Str), ("num", Int)];
    let mut spec = TableSpec::clone(&table(oid, "public", "acct", &columns, &["id"]));
    spec.columns[3].not_null = true;
    spec.indexes.push(IndexSpec { name: "acct_num".into(), unique: true, columns: vec![("num".into(), false)] });
    Arc::new(spec)
}

/// Which keys a client schema declares, where a table has several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keys {
    #[default]
    Usual,
    /// `acct` by `num`.
    Other,
}

/// `issue`, `comment`, `label`, `acct` and the three internal tables.
pub fn tables() -> Vec<Arc<TableSpec>> {
    use ColumnType::{Bool, Int, Json, Str};
    vec![
        table(1, "public", "issue", &[("id", Str), ("owner", Str), ("open", Bool), ("n", Int)], &["id"]),
        table(2, "public", "comment", &[("id", Str), ("issueID", Str), ("body", Str)], &["id"]),
        table(3, "public", "label", &[("a", Int), ("b", Str), ("info", Json)], &["a", "b"]),
        table(
            4,
            "zero_0",
            "clients",
            &[("clientGroupID", Str), ("clientID", Str), ("lastMutationID", Int), ("userID", Str)],
            &["clientGroupID", "clientID"],
        ),
        table(
            5,
            "zero_0",
            "mutations",
            &[("clientGroupID", Str), ("clientID", Str), ("mutationID", Int), ("result", Json)],
            &["clientGroupID", "clientID", "mutationID"],
        ),
        acct(6),
        table(7, "zero", "permissions", &[("lock", Bool), ("permissions", Json), ("hash", Str)], &["lock"]),
    ]
}

pub const PERMISSIONS: &str = "zero.permissions";
pub const CLIENTS: &str = "zero_0.clients";
pub const MUTATIONS: &str = "zero_0.mutations";

/// The client schema of [`tables`].
pub fn client_schema(keys: Keys) -> Json {
    json!({"tables": {
        "acct": {"columns": {"id": {"type": "number"}, "owner": {"type": "string"}, "secret": {"type": "string"},
            "num": {"type": "number"}}, "primaryKey": client_key("acct", keys)},
        "issue": {"columns": {"id": {"type": "string"}, "owner": {"type": "string"}, "open": {"type": "boolean"},
            "n": {"type": "number"}}, "primaryKey": ["id"]},
        "comment": {"columns": {"id": {"type": "string"}, "issueID": {"type": "string"}, "body": {"type": "string"}},
            "primaryKey": ["id"]},
        "label": {"columns": {"a": {"type": "number"}, "b": {"type": "string"}, "info": {"type": "json"}},
            "primaryKey": ["b", "a"]},
    }})
}

/// Columns of a table's key, as [`client_schema`] declares it.
pub fn client_key(table: &str, keys: Keys) -> &'static [&'static str] {
    match (table, keys) {
        ("label", _) => &["b", "a"],
        ("acct", Keys::Other) => &["num"],
        _ => &["id"],
    }
}

pub fn cell(ty: ColumnType, value: &Json) -> Cell {
    match (ty, value) {
        (_, Json::Null) => Cell::Null,
        (ColumnType::Json, value) => Cell::Text(value.to_string().into()),
        (_, Json::Bool(b)) => Cell::Bool(*b),
        (ColumnType::Int, Json::Number(n)) => Cell::Int(n.as_i64().unwrap()),
        (_, Json::Number(n)) => Cell::Float(n.as_f64().unwrap()),
        (_, Json::String(s)) => Cell::Text(s.as_str().into()),
        (ty, value) => panic!("{value} for {ty:?}"),
    }
}

/// The cells of the named columns of `row`.
pub fn cells(spec: &TableSpec, columns: &[String], row: &Json) -> Vec<Cell> {
    columns.iter().map(|name| cell(spec.column(name).unwrap().ty, &row[name])).collect()
}

/// A query that the test can write as an AST for the API server's answer and as the engine's own tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    pub table: &'static str,
    /// column = value
    pub equals: Vec<(&'static str, Json)>,
    pub order: Vec<(&'static str, bool)>,
    pub limit: Option<u64>,
    /// Comments of issues.
    pub comments: bool,
    /// Only issues that have comments.
    pub with_comments: bool,
}

pub fn all(table: &'static str) -> Ask {
    Ask { table, equals: vec![], order: vec![], limit: None, comments: false, with_comments: false }
}

impl Ask {
    pub fn by(mut self, column: &'static str, value: impl Into<Json>) -> Ask {
        self.equals.push((column, value.into()));
        self
    }

    pub fn top(mut self, column: &'static str, limit: u64) -> Ask {
        self.order.push((column, true));
        self.limit = Some(limit);
        self
    }

    pub fn with(mut self) -> Ask {
        self.comments = true;
        self
    }

    pub fn having(mut self) -> Ask {
        self.with_comments = true;
        self
    }

    pub fn ast(&self) -> Json {
        let correlation = json!({"parentField": ["id"], "childField": ["issueID"]});
        let child = json!({"table": "comment", "alias": "comments", "orderBy": [["id", "asc"]]});
        let mut conditions: Vec<Json> = self
            .equals
            .iter()
            .map(|(column, value)| {
                json!({"type": "simple", "op": "=", "left": {"type": "column", "name": column},
                    "right": {"type": "literal", "value": value}})
            })
            .collect();
        if self.with_comments {
            conditions.push(json!({"type": "correlatedSubquery", "op": "EXISTS",
                "related": {"correlation": correlation, "subquery": child}}));
        }
        let mut order: Vec<Json> =
            self.order.iter().map(|(c, desc)| json!([c, if *desc { "desc" } else { "asc" }])).collect();
        order.extend(client_key(self.table, Keys::Usual).iter().map(|c| json!([c, "asc"])));
        let mut ast =
            json!({"table": self.table, "where": {"type": "and", "conditions": conditions}, "orderBy": order});
        if let Some(limit) = self.limit {
            ast["limit"] = limit.into();
        }
        if self.comments {
            ast["related"] = json!([{"correlation": correlation, "subquery": child}]);
        }
        ast
    }

    pub fn query(&self) -> Query {
        let related = || Related {
            parent: vec!["id".into()],
            child: vec!["issueID".into()],
            query: Query {
                table: "comment".into(),
                filter: Condition::And(vec![]),
                order_by: vec![("id".into(), Direction::Asc)],
                start: None,
                limit: None,
                related: vec![],
            },
        };
        let mut conditions: Vec<Condition> = self
            .equals
            .iter()
            .map(|(column, value)| Condition::Compare {
                column: (*column).into(),
                op: Op::Eq,
                value: Literal::One(match value {
                    Json::Bool(b) => Value::Bool(*b),
                    Json::Number(n) => Value::Int(n.as_i64().unwrap()),
                    Json::String(s) => Value::Str(s.as_str().into()),
                    _ => Value::Null,
                }),
            })
            .collect();
        if self.with_comments {
            conditions.push(Condition::Exists { negated: false, synced: true, related: Box::new(related()) });
        }
        let mut order_by: Vec<(String, Direction)> = self
            .order
            .iter()
            .map(|(c, desc)| ((*c).to_owned(), if *desc { Direction::Desc } else { Direction::Asc }))
            .collect();
        order_by.extend(client_key(self.table, Keys::Usual).iter().map(|c| ((*c).to_owned(), Direction::Asc)));
        Query {
            table: self.table.into(),
            filter: Condition::And(conditions),
            order_by,
            start: None,
            limit: self.limit,
            related: if self.comments { vec![related()] } else { vec![] },
        }
    }
}
