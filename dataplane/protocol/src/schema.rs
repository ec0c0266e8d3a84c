//! The client schema: what a client group believes the tables look like, in server names.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::node::{Node, ParseError};

/// Equal schemas are equal whatever the order of tables and columns; the order of a primary key counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ClientSchema {
    pub tables: BTreeMap<String, TableSchema>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableSchema {
    pub columns: BTreeMap<String, ColumnSchema>,
    /// Empty when the client sent none, which no table check accepts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub primary_key: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ColumnSchema {
    #[serde(rename = "type")]
    pub kind: ColumnKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnKind {
    String,
    Number,
    Boolean,
    Null,
    Json,
}

impl ColumnKind {
    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ColumnKind::String => "string",
            ColumnKind::Number => "number",
            ColumnKind::Boolean => "boolean",
            ColumnKind::Null => "null",
            ColumnKind::Json => "json",
        }
    }
}

impl ClientSchema {
    pub fn from_value(name: &str, value: &Value) -> Result<ClientSchema, ParseError> {
        parse(&Node::root(name, value))
    }
}

impl<'de> Deserialize<'de> for ClientSchema {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ClientSchema, D::Error> {
        ClientSchema::from_value("clientSchema", &Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

pub(crate) fn parse(node: &Node<'_>) -> Result<ClientSchema, ParseError> {
    let tables = node.field("tables")?.properties(|name, table| Ok((name.to_owned(), parse_table(&table)?)))?;
    Ok(ClientSchema { tables: tables.into_iter().collect() })
}

fn parse_table(node: &Node<'_>) -> Result<TableSchema, ParseError> {
    let columns = node.field("columns")?.properties(|name, column| {
        let kind = column.field("type")?;
        let kind = match kind.text()? {
            "string" => ColumnKind::String,
            "number" => ColumnKind::Number,
            "boolean" => ColumnKind::Boolean,
            "null" => ColumnKind::Null,
            "json" => ColumnKind::Json,
            _ => return Err(kind.refuse("expected \"string\", \"number\", \"boolean\", \"null\" or \"json\"")),
        };
        Ok((name.to_owned(), ColumnSchema { kind }))
    })?;
    Ok(TableSchema {
        columns: columns.into_iter().collect(),
        primary_key: node.optional_strings("primaryKey")?.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equality_ignores_the_order_of_columns_only() {
        let parse = |text: &str| serde_json::from_str::<ClientSchema>(text).expect("schema");
        let a = parse(
            r#"{"tables":{"issue":{"columns":{"closed":{"type":"boolean"},"id":{"type":"string"}},"primaryKey":["a","b"]}}}"#,
        );
        let b = parse(
            r#"{"tables":{"issue":{"primaryKey":["a","b"],"columns":{"id":{"type":"string"},"closed":{"type":"boolean"}}}},"x":1}"#,
        );
        let c = parse(
            r#"{"tables":{"issue":{"primaryKey":["b","a"],"columns":{"id":{"type":"string"},"closed":{"type":"boolean"}}}}}"#,
        );
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_eq!(parse(&serde_json::to_string(&a).expect("text")), a);
    }

    #[test]
    fn refuses_unknown_types_with_their_place() {
        let error = serde_json::from_str::<ClientSchema>(r#"{"tables":{"t":{"columns":{"c":{"type":"bytes"}}}}}"#)
            .expect_err("bytes is no client type");
        assert!(error.to_string().contains("clientSchema.tables.t.columns.c.type: expected"), "{error}");
    }
}
