//! Tables and statements of the CVR database.

use tokio_postgres::{Client, Error};

/// Numbers that one process takes for new lineages, so that no two processes ever use one twice.
const LINEAGES_PER_PROCESS: i64 = 1 << 32;

/// Creates what is missing and forgets what is too old. Returns the first lineage number of this process and the known lineages
/// by key.
pub async fn prepare(client: &Client, schema: &str, purge_hours: i32) -> Result<(i64, Vec<(String, i64)>), Error> {
    let s = quoted(schema);
    client
        .batch_execute(&format!(
            r#"CREATE SCHEMA IF NOT EXISTS {s};
            CREATE TABLE IF NOT EXISTS {s}.processes (
                one integer PRIMARY KEY CHECK (one = 1),
                started bigint NOT NULL);
            CREATE TABLE IF NOT EXISTS {s}.groups (
                id text PRIMARY KEY,
                record text NOT NULL,
                lineages bigint[] NOT NULL,
                last_active timestamptz NOT NULL DEFAULT now());
            CREATE INDEX IF NOT EXISTS groups_last_active ON {s}.groups (last_active);
            CREATE TABLE IF NOT EXISTS {s}.lineages (
                id bigint PRIMARY KEY,
                key text NOT NULL,
                version bigint NOT NULL,
                base bytea NOT NULL,
                last_active timestamptz NOT NULL DEFAULT now());
            CREATE TABLE IF NOT EXISTS {s}.deltas (
                lineage bigint NOT NULL,
                version bigint NOT NULL,
                entries bytea NOT NULL,
                created timestamptz NOT NULL DEFAULT now(),
                PRIMARY KEY (lineage, version));"#
        ))
        .await?;
    client.execute(&purge_groups(schema), &[&purge_hours]).await?;
    client.query(&purge_lineages(schema), &[&purge_hours]).await?;
    let known = client
        .query(&format!("SELECT key, max(id) FROM {s}.lineages GROUP BY key"), &[])
        .await?
        .into_iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let process: i64 = client
        .query_one(
            &format!(
                "INSERT INTO {s}.processes (one, started) VALUES (1, 1)
                 ON CONFLICT (one) DO UPDATE SET started = processes.started + 1 RETURNING started"
            ),
            &[],
        )
        .await?
        .get(0);
    Ok((process * LINEAGES_PER_PROCESS, known))
}

/// `schema` as an identifier.
pub fn quoted(schema: &str) -> String {
    format!("\"{}\"", schema.replace('"', "\"\""))
}

/// One statement, so one round trip and one transaction. A replayed flush (the answer to the first attempt was lost) changes
/// nothing the second time: a lineage has one delta per version, and what stands there may be merged already.
pub fn flush(schema: &str) -> String {
    let s = quoted(schema);
    format!(
        "WITH l AS (
            INSERT INTO {s}.lineages (id, key, version, base)
            SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bytea[])
            ON CONFLICT (id) DO NOTHING),
         d AS (
            INSERT INTO {s}.deltas (lineage, version, entries)
            SELECT * FROM unnest($5::bigint[], $6::bigint[], $7::bytea[])
            ON CONFLICT (lineage, version) DO NOTHING)
         INSERT INTO {s}.groups (id, record, lineages)
         SELECT g.id, g.record, g.lineages::bigint[]
         FROM unnest($8::text[], $9::text[], $10::text[]) AS g (id, record, lineages)
         ON CONFLICT (id) DO UPDATE
         SET record = EXCLUDED.record, lineages = EXCLUDED.lineages, last_active = now()"
    )
}

/// The common flush: nothing but deltas.
pub fn flush_deltas(schema: &str) -> String {
    let s = quoted(schema);
    format!(
        "INSERT INTO {s}.deltas (lineage, version, entries)
         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[])
         ON CONFLICT (lineage, version) DO NOTHING"
    )
}

pub fn load_group(schema: &str) -> String {
    format!("SELECT record FROM {}.groups WHERE id = $1", quoted(schema))
}

pub fn load_base(schema: &str) -> String {
    format!("SELECT version, base FROM {}.lineages WHERE id = $1", quoted(schema))
}

pub fn load_deltas(schema: &str) -> String {
    format!(
        "SELECT version, entries, created < now() - make_interval(hours => $2) FROM {}.deltas
         WHERE lineage = $1 ORDER BY version",
        quoted(schema)
    )
}

/// Lineages with many small deltas.
pub fn fragmented(schema: &str) -> String {
    format!(
        "SELECT lineage FROM {}.deltas GROUP BY lineage HAVING count(*) >= $1 ORDER BY count(*) DESC LIMIT 200",
        quoted(schema)
    )
}

/// Removes what no client can come back for.
pub fn purge_groups(schema: &str) -> String {
    format!("DELETE FROM {}.groups WHERE last_active < now() - make_interval(hours => $1)", quoted(schema))
}

/// Marks groups in memory, so that [`purge_groups`] spares them: a client that stays connected changes no record.
pub fn touch_groups(schema: &str) -> String {
    format!("UPDATE {}.groups SET last_active = now() WHERE id = ANY($1)", quoted(schema))
}

/// Marks live lineages, so that [`purge_lineages`] spares them.
pub fn touch_lineages(schema: &str) -> String {
    format!("UPDATE {}.lineages SET last_active = now() WHERE id = ANY($1)", quoted(schema))
}

/// Lineages that no group names and that were not live for as long.
pub fn purge_lineages(schema: &str) -> String {
    let s = quoted(schema);
    format!(
        "WITH gone AS (
            DELETE FROM {s}.lineages WHERE last_active < now() - make_interval(hours => $1)
            AND NOT EXISTS (SELECT FROM (SELECT unnest(lineages) AS id FROM {s}.groups) AS used WHERE used.id = lineages.id)
            RETURNING id),
         deltas AS (DELETE FROM {s}.deltas WHERE lineage IN (SELECT id FROM gone))
         SELECT id FROM gone"
    )
}

pub fn delete_deltas(schema: &str) -> String {
    format!("DELETE FROM {}.deltas WHERE lineage = $1 AND version BETWEEN $2 AND $3", quoted(schema))
}

pub fn insert_delta(schema: &str) -> String {
    format!("INSERT INTO {}.deltas (lineage, version, entries) VALUES ($1, $2, $3)", quoted(schema))
}

/// Moves the beginning of a lineage's history.
pub fn rebase(schema: &str) -> String {
    format!("UPDATE {}.lineages SET version = $2, base = $3 WHERE id = $1", quoted(schema))
}
