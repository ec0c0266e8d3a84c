//! The schemas, tables and publications that an application's shard has upstream.
//!
//! `clients` and `mutations` are written by the application's API servers and `permissions` by its deployment: their shape is an
//! interface. The rest is ours.

use rows::Version;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::connect::{quote_identifier, quote_literal};
use crate::options::{App, Options};
use crate::{Error, Result, ddl};

/// One finished initial copy, as the `replicas` table remembers it.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub id: String,
    pub slot: String,
    pub version: Version,
    /// Positions between which nothing was published.
    pub idle: Option<(Version, Version)>,
}

/// Creates what is missing; changes nothing that is right. Returns whether schema changes can be watched.
pub(crate) async fn ensure(client: &mut Client, options: &Options) -> Result<bool> {
    check_publications(client, &options.publications).await?;
    let publications = options.all_publications();
    let transaction = client.transaction().await.map_err(|e| Error::statement("begin the set-up of the shard", e))?;
    let setup = |e| Error::statement("set the shard up", e);
    transaction
        .execute(
            "SELECT pg_advisory_xact_lock(hashtext($1))",
            &[&format!("migrate-schema:{}", options.app.shard_schema())],
        )
        .await
        .map_err(setup)?;
    transaction.batch_execute(&tables(&options.app)).await.map_err(setup)?;
    transaction.batch_execute(&metadata_publication(&options.app)).await.map_err(setup)?;
    if options.publications.is_empty() {
        transaction.batch_execute(&default_publication(&options.app)).await.map_err(default_publication_failed)?;
    }
    transaction.batch_execute(&ddl::functions(&options.app, &publications)).await.map_err(setup)?;
    let schema = quote_identifier(&options.app.shard_schema());
    transaction.batch_execute(&format!("SELECT {schema}.update_schemas('SETUP')")).await.map_err(setup)?;

    transaction.batch_execute("SAVEPOINT triggers").await.map_err(setup)?;
    let watching = match transaction.batch_execute(&ddl::triggers(&options.app)).await {
        Ok(()) => true,
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            transaction.batch_execute("ROLLBACK TO SAVEPOINT triggers").await.map_err(setup)?;
            tracing::warn!(
                "this role may not create event triggers, so a schema change upstream will rebuild the whole replica; use a superuser, or the role that your provider allows to create event triggers"
            );
            false
        }
        Err(e) => return Err(setup(e)),
    };
    transaction
        .execute(
            &format!(
                "INSERT INTO {schema}.\"shardConfig\" (\"publications\", \"ddlDetection\") VALUES ($1, $2)
                 ON CONFLICT (lock) DO UPDATE SET \"publications\" = $1, \"ddlDetection\" = $2"
            ),
            &[&publications, &watching],
        )
        .await
        .map_err(setup)?;
    transaction.commit().await.map_err(setup)?;
    use_unique_indexes_as_identity(client, options).await?;
    Ok(watching)
}

fn default_publication_failed(e: tokio_postgres::Error) -> Error {
    if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return Error::configuration(
            "this role may not publish every table of schema public (Postgres wants a superuser for that): create a publication for the tables to sync, and name it in ZERO_APP_PUBLICATIONS",
        );
    }
    Error::statement("publish schema public", e)
}

fn tables(app: &App) -> String {
    let global = quote_identifier(&app.id);
    let shard = quote_identifier(&app.shard_schema());
    format!(
        r#"
CREATE SCHEMA IF NOT EXISTS {global};
CREATE TABLE IF NOT EXISTS {global}.permissions (
  "permissions" JSONB,
  "hash" TEXT,
  "lock" BOOL PRIMARY KEY DEFAULT true CHECK (lock)
);
CREATE OR REPLACE FUNCTION {global}.set_permissions_hash() RETURNS TRIGGER LANGUAGE plpgsql AS $body$
BEGIN
  NEW.hash := md5(NEW.permissions::text);
  RETURN NEW;
END
$body$;
CREATE OR REPLACE TRIGGER on_set_permissions BEFORE INSERT OR UPDATE ON {global}.permissions
  FOR EACH ROW EXECUTE FUNCTION {global}.set_permissions_hash();
INSERT INTO {global}.permissions ("permissions") VALUES (NULL) ON CONFLICT DO NOTHING;

CREATE SCHEMA IF NOT EXISTS {shard};
CREATE TABLE IF NOT EXISTS {shard}."clients" (
  "clientGroupID" TEXT NOT NULL,
  "clientID" TEXT NOT NULL,
  "lastMutationID" BIGINT NOT NULL,
  "userID" TEXT,
  PRIMARY KEY ("clientGroupID", "clientID")
);
CREATE TABLE IF NOT EXISTS {shard}."mutations" (
  "clientGroupID" TEXT NOT NULL,
  "clientID" TEXT NOT NULL,
  "mutationID" BIGINT NOT NULL,
  "result" JSON NOT NULL,
  PRIMARY KEY ("clientGroupID", "clientID", "mutationID")
);
CREATE TABLE IF NOT EXISTS {shard}."shardConfig" (
  "publications" TEXT[] NOT NULL,
  "ddlDetection" BOOL NOT NULL,
  "lock" BOOL PRIMARY KEY DEFAULT true CHECK (lock)
);
CREATE TABLE IF NOT EXISTS {shard}."replicas" (
  "id" TEXT PRIMARY KEY,
  "rank" BIGSERIAL,
  "slot" TEXT NOT NULL,
  "version" TEXT NOT NULL,
  "initialSchema" JSON,
  "initialSyncContext" JSON,
  "subscriberContext" JSON
);
-- Nothing was published between these positions, so the slot may be at the second when the replica is at the first.
ALTER TABLE {shard}."replicas" ADD COLUMN IF NOT EXISTS "idleFrom" TEXT, ADD COLUMN IF NOT EXISTS "idleTo" TEXT;
-- The database that the row was written in: a dump carries rows to where they mean nothing.
ALTER TABLE {shard}."replicas" ADD COLUMN IF NOT EXISTS "home" TEXT;
CREATE TABLE IF NOT EXISTS {shard}."publishedSchema" (
  "current" JSON,
  "exists" BOOL PRIMARY KEY DEFAULT true CHECK ("exists")
);
INSERT INTO {shard}."publishedSchema" ("current") VALUES (NULL) ON CONFLICT DO NOTHING;
-- The schema as of each transaction that changed it, so that a restart decodes with the schema of its position.
CREATE TABLE IF NOT EXISTS {shard}."schemaHistory" (
  "replica" TEXT NOT NULL REFERENCES {shard}."replicas" ("id") ON DELETE CASCADE,
  "version" TEXT COLLATE "C" NOT NULL,
  "schema" TEXT NOT NULL,
  -- Tables whose changes below a position are part of contents that were read separately.
  "skipped" JSON NOT NULL,
  PRIMARY KEY ("replica", "version")
);
"#
    )
}

fn create_publication_unless_exists(name: &str, definition: &str) -> String {
    format!(
        "DO $body$ BEGIN
           IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = {}) THEN
             CREATE PUBLICATION {} {definition};
           END IF;
         END $body$;",
        quote_literal(name),
        quote_identifier(name),
    )
}

fn metadata_publication(app: &App) -> String {
    let global = quote_identifier(&app.id);
    let shard = quote_identifier(&app.shard_schema());
    create_publication_unless_exists(
        &app.metadata_publication(),
        &format!("FOR TABLE {global}.permissions, {shard}.\"clients\", {shard}.\"mutations\""),
    )
}

fn default_publication(app: &App) -> String {
    create_publication_unless_exists(
        &app.default_publication(),
        "FOR TABLES IN SCHEMA public WITH (publish_via_partition_root = true)",
    )
}

async fn check_publications(client: &Client, names: &[String]) -> Result<()> {
    for name in names {
        let first_is_letter = name.as_bytes().first().is_some_and(u8::is_ascii_alphabetic);
        if !first_is_letter || name.len() > 63 || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(Error::configuration(format!(
                "the publication name '{name}' is not usable: it must start with a letter, hold letters, digits and _ only, and be at most 63 long"
            )));
        }
    }
    let found = client
        .query(
            "SELECT pubname::text, pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication WHERE pubname = ANY ($1)",
            &[&names],
        )
        .await
        .map_err(|e| Error::statement("read the publications", e))?;
    let missing: Vec<&str> =
        names.iter().filter(|n| !found.iter().any(|r| r.get::<_, &str>(0) == n.as_str())).map(String::as_str).collect();
    if !missing.is_empty() {
        return Err(Error::configuration(format!(
            "ZERO_APP_PUBLICATIONS names publications that do not exist: {}; create them with CREATE PUBLICATION",
            missing.join(", ")
        )));
    }
    if let Some(partial) = found.iter().find(|r| !r.get::<_, bool>(1)) {
        let name: &str = partial.get(0);
        return Err(Error::configuration(format!(
            "publication {name} leaves some operations out: run ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate')"
        )));
    }
    Ok(())
}

/// Tables without a primary key but with a unique index over NOT NULL columns: use that index, so that updates and deletes
/// are possible. A table of another owner is left as it is, and named.
async fn use_unique_indexes_as_identity(client: &Client, options: &Options) -> Result<()> {
    let publications = options.all_publications();
    let doing = |e| Error::statement("look for tables without replica identity", e);
    let rows = client
        .query(
            "SELECT DISTINCT ON (c.oid) n.nspname::text, c.relname::text, x.relname::text
             FROM pg_publication_tables p
             JOIN pg_namespace n ON n.nspname = p.schemaname
             JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename AND c.relreplident = 'd'
             JOIN pg_index i ON i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid
                             AND i.indexprs IS NULL AND i.indpred IS NULL
             JOIN pg_class x ON x.oid = i.indexrelid
             WHERE p.pubname = ANY ($1)
               AND NOT EXISTS (SELECT FROM pg_index k WHERE k.indrelid = c.oid AND k.indisprimary)
               AND NOT EXISTS (SELECT FROM unnest(i.indkey::int2[]) k(attnum)
                               JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
                               WHERE NOT a.attnotnull OR NOT a.attname = ANY (p.attnames))
             ORDER BY c.oid, i.indnkeyatts, x.relname",
            &[&publications],
        )
        .await
        .map_err(doing)?;
    for row in rows {
        let (schema, table, index): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
        let statement = format!(
            "ALTER TABLE {}.{} REPLICA IDENTITY USING INDEX {}",
            quote_identifier(schema),
            quote_identifier(table),
            quote_identifier(index)
        );
        match client.batch_execute(&statement).await {
            Ok(()) => {
                tracing::info!(schema, table, index, "table without primary key is identified by its unique index")
            }
            Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                tracing::warn!(schema, table, "this role may not set the replica identity; run as owner: {statement}");
            }
            Err(e) => return Err(Error::statement("set a replica identity", e)),
        }
    }
    Ok(())
}

/// The newest finished initial copy of this database. A row without a home was written by a version that did not note it.
pub(crate) async fn newest_replica(client: &Client, app: &App, home: &str) -> Result<Option<Replica>> {
    let schema = quote_identifier(&app.shard_schema());
    let row = client
        .query_opt(
            &format!(
                "SELECT \"id\", \"slot\", \"version\", \"idleFrom\", \"idleTo\" FROM {schema}.\"replicas\" r
                 WHERE \"initialSyncContext\" IS NOT NULL AND coalesce(to_jsonb(r) ->> 'home', $1) = $1
                 ORDER BY \"rank\" DESC LIMIT 1"
            ),
            &[&home],
        )
        .await
        .map_err(|e| Error::statement("read the replicas of the shard", e))?;
    row.map(|row| {
        let position = |column| {
            let text: Option<&str> = row.get(column);
            text.map(|t| {
                t.parse::<Version>()
                    .map_err(|e| Error::reset(format!("the replicas table holds no usable version: {e}")))
            })
            .transpose()
        };
        let version = position(2)?.ok_or_else(|| Error::reset("the replicas table holds no version"))?;
        Ok(Replica { id: row.get(0), slot: row.get(1), version, idle: position(3)?.zip(position(4)?) })
    })
    .transpose()
}

/// Remembers that nothing was published between two positions.
pub(crate) async fn remember_idle(client: &Client, app: &App, replica: &str, from: Version, to: Version) -> Result<()> {
    let schema = quote_identifier(&app.shard_schema());
    client
        .execute(
            &format!("UPDATE {schema}.\"replicas\" SET \"idleFrom\" = $2, \"idleTo\" = $3 WHERE \"id\" = $1"),
            &[&replica, &from.to_string(), &to.to_string()],
        )
        .await
        .map_err(|e| Error::statement("remember an idle stretch", e))?;
    Ok(())
}

/// Whether the set-up upstream is for the publications that are wanted now; `None` if there is no set-up.
pub(crate) async fn configured_publications(client: &Client, app: &App) -> Result<Option<Vec<String>>> {
    let doing = |e| Error::statement("read the configuration of the shard", e);
    let table = format!("{}.\"shardConfig\"", quote_identifier(&app.shard_schema()));
    let exists = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]).await.map_err(doing)?;
    if !exists.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = client.query_opt(&format!("SELECT \"publications\" FROM {table}"), &[]).await.map_err(doing)?;
    Ok(row.map(|row| row.get(0)))
}

/// Removes everything that the shard has upstream, `clients` and `mutations` included.
pub async fn decommission(client: &Client, app: &App) -> Result<()> {
    let doing = |e| Error::statement("remove the shard", e);
    let pattern = format!("^{}_[a-z]+$", app.shard_schema());
    client
        .execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name ~ $1 AND active_pid IS NOT NULL
             AND database = current_database()",
            &[&pattern],
        )
        .await
        .map_err(doing)?;
    crate::slot::drop_matching(client, &pattern).await?;
    client
        .batch_execute(&format!(
            "DROP PUBLICATION IF EXISTS {}; DROP PUBLICATION IF EXISTS {}; DROP SCHEMA IF EXISTS {} CASCADE;",
            quote_identifier(&app.default_publication()),
            quote_identifier(&app.metadata_publication()),
            quote_identifier(&app.shard_schema()),
        ))
        .await
        .map_err(doing)
}
