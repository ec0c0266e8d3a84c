//! What is published at this moment, with what SQL about it needs: for those who write upstream, or ask it.

use std::collections::BTreeMap;
use std::sync::Arc;

use rows::TableSpec;
use serde::Deserialize;
use tokio_postgres::Client;

use crate::catalog::Catalog;
use crate::connect::quote_identifier;
use crate::options::App;
use crate::{Error, Result, session};

/// A table that clients may see, as far as it is published.
#[derive(Clone, Debug)]
pub struct PublishedTable {
    pub spec: Arc<TableSpec>,
    /// Rows that are not published fail this SQL condition over the table's own columns.
    pub filter: Option<String>,
    /// One per column of the spec.
    pub columns: Vec<SqlColumn>,
}

#[derive(Clone, Debug)]
pub struct SqlColumn {
    /// The type to cast to, with its schema, and without a length or precision: a cast to those would cut values off in silence.
    pub cast: String,
    /// Of an array's elements.
    pub element: Option<u32>,
    /// Object id of the collation; 0 for types without one.
    pub collation: u32,
    /// Equal under the column's collation means equal in bytes.
    pub is_deterministic: bool,
}

#[derive(Deserialize)]
struct RawColumn(i64, i16, String, u32, u32, bool);

/// Reads it from `app`'s shard, which must be set up; its own tables are left out.
pub async fn published(client: &Client, app: &App) -> Result<Vec<PublishedTable>> {
    let sql = format!(
        "SELECT {}.schema_specs(), (
           SELECT json_agg(json_build_array(a.attrelid::int8, a.attnum, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname),
             CASE WHEN t.typcategory = 'A' THEN t.typelem::int8 ELSE 0 END, a.attcollation::int8,
             coalesce(l.collisdeterministic, true)))::text
           FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
           JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
           JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
           WHERE c.relkind IN ('r', 'p') AND c.oid >= 16384 AND a.attnum > 0 AND NOT a.attisdropped)",
        quote_identifier(&app.shard_schema())
    );
    let doing = |e| Error::statement("read what is published", e);
    let row = session::isolated(client, false, client.query_typed_one(&sql, &[])).await.map_err(doing)?;
    let catalog = Catalog::parse(row.get(0))?;
    let columns: Option<&str> = row.get(1);
    let columns: Vec<RawColumn> = serde_json::from_str(columns.unwrap_or("[]"))
        .map_err(|error| Error::transient(format!("the catalog cannot be read: {error}")))?;
    let columns: BTreeMap<(u32, i16), SqlColumn> = columns
        .into_iter()
        .filter_map(|RawColumn(table, attnum, cast, element, collation, is_deterministic)| {
            let element = (element > 0).then_some(element);
            Some(((u32::try_from(table).ok()?, attnum), SqlColumn { cast, element, collation, is_deterministic }))
        })
        .collect();
    let own = [app.id.clone(), app.shard_schema()];
    let tables = catalog.tables.into_values().filter(|table| !own.contains(&table.spec.schema));
    let known = |table: crate::catalog::Published| {
        let of = |attnum| columns.get(&(table.spec.oid, attnum)).cloned();
        // One statement has one view of the catalog: what is described in one part is there in the other.
        let columns = table.spec.columns.iter().map(|column| of(column.attnum)).collect::<Option<Vec<_>>>()?;
        Some(PublishedTable { spec: table.spec, filter: table.filter, columns })
    };
    Ok(tables.filter_map(known).collect())
}
