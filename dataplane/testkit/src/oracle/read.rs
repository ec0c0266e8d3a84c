//! Reads tables from Postgres as the JSON that clients receive.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Number, Value};
use tokio_postgres::Client;

use crate::client::Row;

/// Tables as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub tables: BTreeMap<String, Table>,
}

#[derive(Clone, Debug, Default)]
pub struct Table {
    pub primary_key: Vec<String>,
    /// Columns that sync, in table order.
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
}

/// How a column's SQL text becomes JSON.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Number,
    Boolean,
    Text,
    Json,
}

impl Snapshot {
    /// Reads the named tables of schema `public` in one transaction.
    pub async fn read(client: &mut Client, tables: &[&str]) -> Result<Snapshot> {
        let transaction = client
            .build_transaction()
            .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await
            .context("begin a snapshot")?;
        let mut snapshot = Snapshot::default();
        for name in tables {
            let described = transaction
                .query(
                    "SELECT a.attname, t.typname, t.typtype::text, t.typcategory::text, e.typname,
                            COALESCE(a.attnum = ANY (i.indkey), false)
                     FROM pg_attribute a
                     JOIN pg_type t ON t.oid = a.atttypid
                     LEFT JOIN pg_type e ON e.oid = t.typelem
                     LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
                     WHERE a.attrelid = to_regclass('public.' || quote_ident($1)) AND a.attnum > 0 AND NOT a.attisdropped
                     ORDER BY a.attnum",
                    &[name],
                )
                .await
                .with_context(|| format!("describe {name}"))?;
            let mut table = Table::default();
            let mut select = Vec::new();
            let mut kinds = Vec::new();
            for column in &described {
                let column_name: String = column.get(0);
                let (type_name, class, category): (String, String, String) =
                    (column.get(1), column.get(2), column.get(3));
                let element: Option<String> = column.get(4);
                if column.get(5) {
                    table.primary_key.push(column_name.clone());
                }
                let quoted = format!("\"{}\"", column_name.replace('"', "\"\""));
                let Some((kind, expression)) = mapping(&type_name, &class, &category, element.as_deref(), &quoted)
                else {
                    continue;
                };
                kinds.push(kind);
                // A cast to text would trim char(n) and write the host's mask of inet; the output function is what replicates.
                select.push(format!("CASE WHEN {quoted} IS NOT NULL THEN format('%s', {expression}) END"));
                table.columns.push(column_name);
            }
            if select.is_empty() {
                bail!("Postgres has no table public.{name} with columns that sync");
            }
            let sql = format!("SELECT {} FROM public.\"{}\"", select.join(", "), name.replace('"', "\"\""));
            for row in transaction.query(&sql, &[]).await.with_context(|| format!("read {name}"))? {
                let mut json = Map::new();
                for (i, column) in table.columns.iter().enumerate() {
                    let text: Option<String> = row.try_get(i)?;
                    let value = text.map_or(Ok(Value::Null), |text| parse(kinds[i], &text));
                    json.insert(column.clone(), value.with_context(|| format!("{name}.{column}"))?);
                }
                table.rows.push(json);
            }
            snapshot.tables.insert((*name).to_owned(), table);
        }
        transaction.commit().await?;
        Ok(snapshot)
    }
}

/// `None` for types that do not sync.
fn mapping(name: &str, class: &str, category: &str, element: Option<&str>, column: &str) -> Option<(Kind, String)> {
    if category == "A" {
        let element = element?;
        let (_, expression) =
            mapping(element, "b", "", None, "item").or_else(|| Some((Kind::Text, "item".to_owned())))?;
        let list = format!(
            "SELECT COALESCE(json_agg({expression} ORDER BY place), '[]') FROM unnest({column}) WITH ORDINALITY u(item, place)"
        );
        return Some((Kind::Json, format!("CASE WHEN {column} IS NOT NULL THEN ({list}) END")));
    }
    if class == "e" {
        return Some((Kind::Text, column.to_owned()));
    }
    let epoch = |expression: &str| format!("extract(epoch FROM {expression}) * 1000");
    Some(match name {
        "int2" | "int4" | "int8" | "float4" | "float8" | "numeric" => (Kind::Number, column.to_owned()),
        "bool" => (Kind::Boolean, column.to_owned()),
        "text" | "varchar" | "bpchar" | "char" | "uuid" | "inet" | "cidr" | "macaddr" | "macaddr8" | "pg_lsn" => {
            (Kind::Text, column.to_owned())
        }
        "json" | "jsonb" => (Kind::Json, column.to_owned()),
        "date" | "timestamp" | "timestamptz" | "time" => (Kind::Number, epoch(column)),
        "timetz" => (Kind::Number, epoch(&format!("({column} AT TIME ZONE 'UTC')::time"))),
        _ => return None,
    })
}

fn parse(kind: Kind, text: &str) -> Result<Value> {
    Ok(match kind {
        Kind::Text => Value::from(text),
        Kind::Boolean => Value::from(text == "t"),
        Kind::Json => serde_json::from_str(text).context("parse JSON")?,
        Kind::Number => match text.parse::<i64>() {
            Ok(whole) => Value::from(whole),
            // NaN and the infinities have no JSON.
            Err(_) => Number::from_f64(text.parse().with_context(|| format!("parse the number {text}"))?)
                .map_or(Value::Null, Value::Number),
        },
    })
}
