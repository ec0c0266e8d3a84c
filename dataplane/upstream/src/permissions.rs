//! The row that holds an application's permissions upstream. Its text is the business of others.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::connect::quote_identifier;
use crate::options::App;
use crate::{Error, Result, shard};

/// What is deployed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    /// JSON; `None` if nothing was deployed yet.
    pub text: Option<String>,
    pub hash: Option<String>,
}

/// The table.
pub(crate) fn table(app: &App) -> String {
    let global = quote_identifier(&app.id);
    format!(
        r#"
CREATE SCHEMA IF NOT EXISTS {global};
CREATE TABLE IF NOT EXISTS {global}.permissions (
  "permissions" JSONB,
  "hash" TEXT,
  "lock" BOOL PRIMARY KEY DEFAULT true CHECK (lock)
);
"#
    )
}

/// Its row and what keeps the hash, once the table is known to be of the right shape.
pub(crate) fn contents(app: &App) -> String {
    let global = quote_identifier(&app.id);
    format!(
        r#"
CREATE OR REPLACE FUNCTION {global}.set_permissions_hash() RETURNS TRIGGER LANGUAGE plpgsql AS $body$
BEGIN
  NEW.hash := md5(NEW.permissions::text);
  RETURN NEW;
END
$body$;
CREATE OR REPLACE TRIGGER on_set_permissions BEFORE INSERT OR UPDATE ON {global}.permissions
  FOR EACH ROW EXECUTE FUNCTION {global}.set_permissions_hash();
INSERT INTO {global}.permissions ("permissions") VALUES (NULL) ON CONFLICT DO NOTHING;
"#
    )
}

/// What is deployed; `None` if the database was not set up for the application yet.
pub async fn deployed(client: &Client, app: &App) -> Result<Option<Deployed>> {
    let doing = |e| Error::statement("read the deployed permissions", e);
    let name = format!("{}.permissions", quote_identifier(&app.id));
    let exists = client.query_typed_one("SELECT to_regclass($1) IS NOT NULL", &[(&name, Type::TEXT)]).await;
    if !exists.map_err(doing)?.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = client.query_typed_opt(&format!("SELECT permissions::text, hash FROM {name}"), &[]).await;
    let row = row.map_err(doing)?;
    Ok(Some(row.map_or(Deployed { text: None, hash: None }, |row| Deployed { text: row.get(0), hash: row.get(1) })))
}

/// Deploys `text`, which must be JSON, and returns its hash. Makes the table if it is not there.
pub async fn deploy(client: &Client, app: &App, text: &str) -> Result<String> {
    let doing = |e| Error::statement("deploy permissions", e);
    if deployed(client, app).await?.is_none() {
        client.batch_execute(&format!("{}{}", table(app), contents(app))).await.map_err(doing)?;
    }
    let statement = format!(
        "INSERT INTO {}.permissions (permissions) VALUES ($1::text::jsonb)
         ON CONFLICT (lock) DO UPDATE SET permissions = excluded.permissions RETURNING hash",
        quote_identifier(&app.id)
    );
    let row = client.query_typed_one(&statement, &[(&text, Type::TEXT)]).await.map_err(doing)?;
    Ok(row.get(0))
}

/// The columns of every table that the application publishes, by names as clients know them; `None` if no server has set it up
/// yet, so that nobody knows what it publishes.
pub async fn published_columns(client: &Client, app: &App) -> Result<Option<BTreeMap<String, BTreeSet<String>>>> {
    let doing = |e| Error::statement("list the published columns", e);
    let Some(publications) = shard::configured_publications(client, app).await? else { return Ok(None) };
    let statement =
        "SELECT schemaname, tablename, attnames::text[] FROM pg_catalog.pg_publication_tables WHERE pubname = ANY ($1)";
    let rows = client.query_typed(statement, &[(&publications, Type::TEXT_ARRAY)]).await.map_err(doing)?;
    let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows {
        let (schema, name, columns): (String, String, Vec<String>) = (row.get(0), row.get(1), row.get(2));
        let name = if schema == "public" { name } else { format!("{schema}.{name}") };
        tables.entry(name).or_default().extend(columns);
    }
    Ok(Some(tables))
}
