//! Whether tables that were there before have the shape that API servers, and this server, rely on.
//!
//! A schema of our name may be somebody else's, and tables in it as well.

use tokio_postgres::Transaction;

use crate::connect::quote_identifier;
use crate::options::App;
use crate::{Error, Result};

/// A table's name, its columns with their types, and its key.
type Shape = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);

/// Tables of the shard, and `permissions` of the application.
const TABLES: [Shape; 6] = [
    ("permissions", &[("permissions", "jsonb"), ("hash", "text"), ("lock", "bool")], &["lock"]),
    (
        "clients",
        &[("clientGroupID", "text"), ("clientID", "text"), ("lastMutationID", "int8"), ("userID", "text")],
        &["clientGroupID", "clientID"],
    ),
    (
        "mutations",
        &[("clientGroupID", "text"), ("clientID", "text"), ("mutationID", "int8"), ("result", "json")],
        &["clientGroupID", "clientID", "mutationID"],
    ),
    ("shardConfig", &[("publications", "_text"), ("ddlDetection", "bool"), ("lock", "bool")], &["lock"]),
    (
        "replicas",
        &[
            ("id", "text"),
            ("rank", "int8"),
            ("slot", "text"),
            ("version", "text"),
            ("initialSchema", "json"),
            ("initialSyncContext", "json"),
            ("subscriberContext", "json"),
        ],
        &["id"],
    ),
    (
        "versionHistory",
        &[("dataVersion", "int4"), ("schemaVersion", "int4"), ("minSafeVersion", "int4"), ("lock", "bpchar")],
        &["lock"],
    ),
];

/// An error that names the first table that is not as it must be, and how it differs.
pub(crate) async fn check(transaction: &Transaction<'_>, app: &App) -> Result<()> {
    for (table, columns, key) in TABLES {
        let schema = if table == "permissions" { app.id.clone() } else { app.shard_schema() };
        let name = format!("{}.\"{table}\"", quote_identifier(&schema));
        if let Some(difference) = difference(transaction, &name, columns, key).await? {
            return Err(Error::configuration(format!(
                "the table {name} is not the one of Zero: {difference}; nothing was changed: rename it if it is somebody else's, restore it if it is damaged, or use another ZERO_APP_ID"
            )));
        }
    }
    Ok(())
}

async fn difference(
    transaction: &Transaction<'_>,
    table: &str,
    columns: &[(&str, &str)],
    key: &[&str],
) -> Result<Option<String>> {
    let doing = |e| Error::statement("see what tables look like", e);
    let found = transaction
        .query(
            "SELECT a.attname::text, t.typname::text, a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
             WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped",
            &[&table],
        )
        .await
        .map_err(doing)?;
    for (name, kind) in columns {
        let Some(row) = found.iter().find(|row| row.get::<_, &str>(0) == *name) else {
            return Ok(Some(format!("it has no column \"{name}\"")));
        };
        let other: &str = row.get(1);
        if other != *kind {
            return Ok(Some(format!("its column \"{name}\" is of type {other} and not {kind}")));
        }
    }
    let known = |row: &&tokio_postgres::Row| columns.iter().any(|(name, _)| row.get::<_, &str>(0) == *name);
    if let Some(row) = found.iter().find(|row| row.get(2) && !known(row)) {
        return Ok(Some(format!("its column \"{}\" wants a value that nobody gives", row.get::<_, &str>(0))));
    }
    let row = transaction
        .query_one(
            "SELECT c.relkind = 'r' AND c.relpersistence = 'p', EXISTS (
               SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
               AND (SELECT array_agg(a.attname::text ORDER BY a.attname) FROM pg_attribute a
                    WHERE a.attrelid = c.oid AND a.attnum = ANY (i.indkey::int2[])) =
                   (SELECT array_agg(k ORDER BY k) FROM unnest($2::text[]) k))
             FROM pg_class c WHERE c.oid = to_regclass($1)",
            &[&table, &key],
        )
        .await
        .map_err(doing)?;
    if !row.get::<_, bool>(0) {
        return Ok(Some("it is no ordinary table".to_owned()));
    }
    Ok((!row.get::<_, bool>(1)).then(|| format!("no unique index is on \"{}\"", key.join("\", \""))))
}
