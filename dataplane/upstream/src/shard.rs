//! The schemas, tables and publications that an application's shard has upstream.
//!
//! `clients` and `mutations` are written by the application's API servers and `permissions` by its deployment: their shape is an
//! interface. The rest is ours.

use rows::Version;
use tokio_postgres::Client;

use crate::connect::{quote_identifier, quote_literal};
use crate::options::App;
use crate::{Error, Result, ddl, permissions};

/// One finished initial copy, as the `replicas` table remembers it.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub id: String,
    pub slot: String,
    pub version: Version,
    /// Positions between which nothing was published.
    pub idle: Option<(Version, Version)>,
}

/// Compares what is published with what is known of it, and reports the difference into the stream.
pub(crate) async fn update_schemas(client: &Client, app: &App) -> Result<()> {
    let schema = quote_identifier(&app.shard_schema());
    client
        .batch_execute(&format!("SELECT {schema}.update_schemas()"))
        .await
        .map_err(|e| Error::statement("compare the published schema", e))
}

/// Looks whether part of a table was truncated, and reports it into the stream.
pub(crate) async fn check_partitions(client: &Client, app: &App) -> Result<()> {
    let schema = quote_identifier(&app.shard_schema());
    client
        .batch_execute(&format!("SELECT {schema}.check_partitions()"))
        .await
        .map_err(|e| Error::statement("look for truncated partitions", e))
}

pub(crate) fn tables(app: &App) -> String {
    let permissions = permissions::table(app);
    let shard = quote_identifier(&app.shard_schema());
    format!(
        r#"
{permissions}
CREATE SCHEMA IF NOT EXISTS {shard};
CREATE TABLE IF NOT EXISTS {shard}."clients" (
  "clientGroupID" TEXT NOT NULL,
  "clientID" TEXT NOT NULL,
  "lastMutationID" BIGINT NOT NULL,
  "userID" TEXT,
  PRIMARY KEY ("clientGroupID", "clientID")
);
-- Old releases of the reference made it without.
ALTER TABLE {shard}."clients" ADD COLUMN IF NOT EXISTS "userID" TEXT;
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
  -- Releases of the reference that know no ids have the shard back with this table as it is.
  "id" TEXT PRIMARY KEY DEFAULT replace(gen_random_uuid()::text, '-', ''),
  "rank" BIGSERIAL,
  "slot" TEXT NOT NULL,
  "version" TEXT NOT NULL,
  "initialSchema" JSON,
  "initialSyncContext" JSON,
  "subscriberContext" JSON
);
ALTER TABLE {shard}."replicas" ALTER "id" SET DEFAULT replace(gen_random_uuid()::text, '-', '');
-- Which migrations of the reference ran: see the module `tenant`.
CREATE TABLE IF NOT EXISTS {shard}."versionHistory" (
  "dataVersion" INT NOT NULL,
  "schemaVersion" INT NOT NULL,
  "minSafeVersion" INT NOT NULL,
  "lock" CHAR(1) PRIMARY KEY DEFAULT 'v' CHECK (lock = 'v')
);
-- Nothing was published between these positions, so the slot may be at the second when the replica is at the first.
ALTER TABLE {shard}."replicas" ADD COLUMN IF NOT EXISTS "idleFrom" TEXT, ADD COLUMN IF NOT EXISTS "idleTo" TEXT;
-- The database that the row was written in: a dump carries rows to where they mean nothing.
ALTER TABLE {shard}."replicas" ADD COLUMN IF NOT EXISTS "home" TEXT;
-- Former releases and the reference know neither of these.
ALTER TABLE {shard}."shardConfig" ADD COLUMN IF NOT EXISTS "functions" TEXT, ADD COLUMN IF NOT EXISTS "messagesUntil" TEXT;
-- What watched for the reference, and when it last had the shard back, in seconds since 1970.
ALTER TABLE {shard}."shardConfig" ADD COLUMN IF NOT EXISTS "former" TEXT, ADD COLUMN IF NOT EXISTS "handedBack" FLOAT8;
-- Each published table as it was described last, with its indexes and whatever is a part of it.
CREATE TABLE IF NOT EXISTS {shard}."publishedTables" (
  "oid" OID PRIMARY KEY,
  "spec" TEXT NOT NULL,
  "indexes" OID[] NOT NULL,
  "partitions" OID[] NOT NULL
);
-- The files of what is a part of such a table: see check_partitions().
CREATE TABLE IF NOT EXISTS {shard}."partitionFiles" (
  "oid" OID PRIMARY KEY,
  "file" OID NOT NULL
);
-- Schema changes, on their way into the stream: never holds a row.
CREATE TABLE IF NOT EXISTS {shard}."{events}" (
  "id" BIGSERIAL PRIMARY KEY,
  "{event}" TEXT NOT NULL
);
-- The schema as of each transaction that changed it, so that a restart decodes with the schema of its position.
CREATE TABLE IF NOT EXISTS {shard}."schemaHistory" (
  "replica" TEXT NOT NULL REFERENCES {shard}."replicas" ("id") ON DELETE CASCADE,
  "version" TEXT COLLATE "C" NOT NULL,
  "schema" TEXT NOT NULL,
  -- Tables whose changes below a position are part of contents that were read separately.
  "skipped" JSON NOT NULL,
  PRIMARY KEY ("replica", "version")
);
-- Whether an entry stands on its own, or is the difference to the one before it.
ALTER TABLE {shard}."schemaHistory" ADD COLUMN IF NOT EXISTS "whole" BOOL NOT NULL DEFAULT true;
"#,
        events = ddl::EVENTS,
        event = ddl::EVENT,
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

pub(crate) fn metadata_publication(app: &App) -> String {
    let global = quote_identifier(&app.id);
    let shard = quote_identifier(&app.shard_schema());
    let tables = [
        format!("{global}.permissions"),
        format!("{shard}.\"clients\""),
        format!("{shard}.\"mutations\""),
        format!("{shard}.\"{}\"", ddl::EVENTS),
    ];
    let name = app.metadata_publication();
    let create = create_publication_unless_exists(&name, &format!("FOR TABLE {}", tables.join(", ")));
    format!(
        "{create}
         DO $body$
         DECLARE
           missing REGCLASS;
         BEGIN
           FOR missing IN SELECT t.name::regclass FROM unnest(ARRAY[{}]) t(name) WHERE NOT EXISTS (
             SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
             WHERE p.pubname = {} AND r.prrelid = t.name::regclass
           ) LOOP
             EXECUTE format('ALTER PUBLICATION %I ADD TABLE %s', {}, missing);
           END LOOP;
         END $body$;",
        tables.map(|table| quote_literal(&table)).join(", "),
        quote_literal(&name),
        quote_literal(&name),
    )
}

pub(crate) fn default_publication(app: &App) -> String {
    create_publication_unless_exists(
        &app.default_publication(),
        "FOR TABLES IN SCHEMA public WITH (publish_via_partition_root = true)",
    )
}

/// The newest finished initial copy of this database. A row without a home was written by a release that did not note it, or by
/// the reference, which knows no history.
pub(crate) async fn newest_replica(client: &Client, app: &App, home: &str) -> Result<Option<Replica>> {
    let schema = quote_identifier(&app.shard_schema());
    // The reference's rows of this table are not ours, and have no such columns.
    let history = format!("{schema}.\"schemaHistory\"");
    let is_there = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&history]).await;
    if !is_there.map_err(|e| Error::statement("read the replicas of the shard", e))?.get::<_, bool>(0) {
        return Ok(None);
    }
    let row = client
        .query_opt(
            &format!(
                "SELECT \"id\", \"slot\", \"version\", \"idleFrom\", \"idleTo\" FROM {schema}.\"replicas\" r
                 WHERE \"initialSyncContext\" IS NOT NULL AND (
                   to_jsonb(r) ->> 'home' = $1
                   OR to_jsonb(r) ->> 'home' IS NULL AND EXISTS (SELECT FROM {history} h WHERE h.\"replica\" = r.\"id\"))
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
