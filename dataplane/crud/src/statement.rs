//! SQL with its parameters. Whatever comes from outside is a quoted identifier of the catalog or a parameter, never text of SQL.

use tokio_postgres::types::{ToSql, Type};
use upstream::quote_identifier;

use crate::catalog::{Column, Table};

/// Object ids of types whose values are equal where their texts are.
const TEXT: u32 = 25;
const VARCHAR: u32 = 1043;

/// A value, written as text; the statement casts it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Parameter {
    Text(Option<String>),
    Texts(Vec<String>),
}

impl Parameter {
    pub(crate) fn typed(&self) -> (&(dyn ToSql + Sync), Type) {
        match self {
            Parameter::Text(text) => (text, Type::TEXT),
            Parameter::Texts(texts) => (texts, Type::TEXT_ARRAY),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Statement {
    pub sql: String,
    pub parameters: Vec<Parameter>,
}

impl Statement {
    /// The parameter's place in SQL.
    pub(crate) fn bind(&mut self, parameter: Parameter) -> String {
        self.parameters.push(parameter);
        format!("${}", self.parameters.len())
    }

    pub(crate) fn push(&mut self, sql: &str) {
        self.sql.push_str(sql);
    }

    fn value(&mut self, cell: &Cell<'_>) -> String {
        let place = self.bind(Parameter::Text(cell.text.clone()));
        format!("{place}::{}", cell.column.cast)
    }
}

/// A column and what is to be written there, or found there.
#[derive(Clone, Debug)]
pub(crate) struct Cell<'a> {
    pub column: &'a Column,
    pub text: Option<String>,
}

/// A row by one of its table's keys.
#[derive(Clone, Debug)]
pub(crate) struct RowOf<'a> {
    pub table: &'a Table,
    pub key: Vec<Cell<'a>>,
}

impl RowOf<'_> {
    /// `FROM table alias WHERE key`.
    pub(crate) fn find(&self, statement: &mut Statement, alias: &str) {
        let condition = self.condition(statement, alias);
        statement.push(&format!(" FROM {} {alias} WHERE {condition}", self.table.sql));
    }

    fn condition(&self, statement: &mut Statement, alias: &str) -> String {
        let mut equal = |cell: &Cell<'_>| {
            let (column, value) = (format!("{alias}.{}", cell.column.sql), statement.value(cell));
            match cell.column.is_foreign {
                false => format!("{column} OPERATOR(pg_catalog.=) {value}"),
                true => format!("{column}::pg_catalog.text OPERATOR(pg_catalog.=) {value}::pg_catalog.text"),
            }
        };
        self.key.iter().map(&mut equal).collect::<Vec<_>>().join(" AND ")
    }

    /// Whether both may be about the same row: the same value can be written in more than one way.
    pub(crate) fn may_be(&self, other: &RowOf<'_>) -> bool {
        let differ = |cell: &Cell<'_>| {
            let of = |found: &&Cell<'_>| found.column.name == cell.column.name;
            other.key.iter().find(of).is_some_and(|found| differ(cell, found))
        };
        self.table.name == other.table.name && !self.key.iter().any(differ)
    }

    /// Yields a row if it was inserted.
    pub(crate) fn insert(&self, set: &[Cell<'_>]) -> Statement {
        let mut statement = Statement::default();
        self.begin_insert(&mut statement, set);
        statement.push(" DO NOTHING RETURNING 1");
        statement
    }

    pub(crate) fn upsert(&self, set: &[Cell<'_>]) -> Statement {
        let mut statement = Statement::default();
        self.begin_insert(&mut statement, set);
        let changes = set.iter().map(|cell| format!("{0} = EXCLUDED.{0}", cell.column.sql)).collect::<Vec<_>>();
        match changes.is_empty() {
            true => statement.push(" DO NOTHING RETURNING 1"),
            false => statement.push(&format!(" DO UPDATE SET {} RETURNING 1", changes.join(", "))),
        }
        statement
    }

    fn begin_insert(&self, statement: &mut Statement, set: &[Cell<'_>]) {
        let cells: Vec<_> = self.key.iter().chain(set).collect();
        let names =
            |cells: &[&Cell<'_>]| cells.iter().map(|cell| cell.column.sql.as_str()).collect::<Vec<_>>().join(", ");
        let values = cells.iter().map(|cell| statement.value(cell)).collect::<Vec<_>>().join(", ");
        let key = names(&self.key.iter().collect::<Vec<_>>());
        let (table, columns) = (&self.table.sql, names(&cells));
        statement.push(&format!("INSERT INTO {table} ({columns}) VALUES ({values}) ON CONFLICT ({key})"));
    }

    /// `None` if there is nothing to change. Yields a row if there was one.
    pub(crate) fn update(&self, set: &[Cell<'_>]) -> Option<Statement> {
        if set.is_empty() {
            return None;
        }
        let mut statement = Statement::default();
        let assign = |cell: &Cell<'_>| format!("{} = {}", cell.column.sql, statement.value(cell));
        let changes = set.iter().map(assign).collect::<Vec<_>>().join(", ");
        let condition = self.condition(&mut statement, "a0");
        statement.push(&format!("UPDATE {} a0 SET {changes} WHERE {condition} RETURNING 1", self.table.sql));
        Some(statement)
    }

    pub(crate) fn delete(&self) -> Statement {
        let mut statement = Statement::default();
        let condition = self.condition(&mut statement, "a0");
        statement.push(&format!("DELETE FROM {} a0 WHERE {condition} RETURNING 1", self.table.sql));
        statement
    }
}

fn differ(a: &Cell<'_>, b: &Cell<'_>) -> bool {
    let (Some(x), Some(y)) = (&a.text, &b.text) else { return true };
    if x == y {
        return false;
    }
    let is_exact = a.column.is_deterministic && matches!(a.column.type_oid, TEXT | VARCHAR);
    is_exact || matches!((x.parse::<i64>(), y.parse::<i64>()), (Ok(x), Ok(y)) if x != y) || (is_uuid(x) && is_uuid(y))
}

/// As Postgres prints it, so that equal values have equal texts.
pub(crate) fn is_uuid(text: &str) -> bool {
    let is_at = |n: usize, b: u8| match n {
        8 | 13 | 18 | 23 => b == b'-',
        _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
    };
    text.len() == 36 && text.bytes().enumerate().all(|(n, b)| is_at(n, b))
}

/// The first statement of every mutation: takes the number, and says which permissions are in force.
pub(crate) fn bump(app: &upstream::App, group: &str, client: &str) -> Statement {
    let mut statement = Statement::default();
    let group = statement.bind(Parameter::Text(Some(group.to_owned())));
    let client = statement.bind(Parameter::Text(Some(client.to_owned())));
    let (shard, global) = (quote_identifier(&app.shard_schema()), quote_identifier(&app.id));
    // The server's other writers, API servers, leave the user out as well.
    statement.push(&format!(
        r#"INSERT INTO {shard}."clients" AS c ("clientGroupID", "clientID", "lastMutationID") VALUES ({group}, {client}, 1)
           ON CONFLICT ("clientGroupID", "clientID") DO UPDATE SET "lastMutationID" = c."lastMutationID" OPERATOR(pg_catalog.+) 1
           RETURNING c."lastMutationID", (SELECT p."hash" FROM {global}.permissions p)"#
    ));
    statement
}
