//! Who has the shard: this server, or the reference of whichever version, which may have set it up and may come back.
//!
//! Knows nothing of how schema changes are watched for ([`ddl`]) nor of what is in the tables. The reference notes in
//! `versionHistory` which of its migrations ran. What this server notes there is what the reference's migrations come to, so that it
//! finds its tables made; and a version of the data that no release of it has, so that whatever release comes writes another, which
//! gives the shard back to it.
//!
//! Invariants: nothing is changed while the reference may be at work. Who takes the shard over continues no replica of before: each
//! of the two sees only the schema changes of its own time.

use tokio_postgres::{GenericClient, Transaction};

use crate::connect::{quote_identifier, quote_literal};
use crate::options::App;
use crate::{Error, Result, ddl};

/// Between what releases of the reference note.
pub(crate) const DATA_VERSION: i32 = 17;
/// The reference's tables are like this here. Its next migration makes its own triggers.
const SCHEMA_VERSION: i32 = 22;
/// The newest migration of the reference that is known here.
const SCHEMA_VERSION_MAX: i32 = 25;
/// The reference has begun, and is given so long until it makes a copy or streams.
const BEGINNING_SECONDS: u32 = 60;

pub(crate) enum Tenant {
    /// This server, or nobody.
    Ours,
    /// The reference; with the migration that it was at, if it says so.
    Reference(Option<i32>),
}

/// What the reference had, for when it comes back.
pub(crate) struct Former {
    /// Statements that make its functions and triggers; `None` if there were none.
    pub watch: Option<String>,
    pub replicas: i64,
}

/// Slots that this server or the reference makes for the shard, of every release. For `~`.
pub(crate) fn slot_pattern(app: &App) -> String {
    format!("^{}(_([a-z]+|[0-9]{{10,}})(_bf_[0-9]+)?)?$", app.shard_schema())
}

fn doing(e: tokio_postgres::Error) -> Error {
    Error::statement("see who has the shard", e)
}

/// Who has the shard. An error if it is a release of the reference that is not known here.
pub(crate) async fn look(client: &impl GenericClient, app: &App) -> Result<Tenant> {
    let schema = app.shard_schema();
    let history = format!("{}.\"versionHistory\"", quote_identifier(&schema));
    let row = client
        .query_one(
            &format!(
                "SELECT to_regclass($1) IS NOT NULL,
                        EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass($1) AND tgname = $2 AND tgenabled <> 'D'),
                        w.* FROM ({}) w",
                ddl::former(app)
            ),
            &[&history, &ddl::HAND_BACK_TRIGGER],
        )
        .await
        .map_err(doing)?;
    let (is_noted, waits_for_it, watches): (bool, bool, bool) = (row.get(0), row.get(1), row.get(2));
    if !is_noted {
        return Ok(if watches { Tenant::Reference(None) } else { Tenant::Ours });
    }
    let row =
        client.query_opt(&format!("SELECT to_jsonb(v)::text FROM {history} v LIMIT 1"), &[]).await.map_err(doing)?;
    let Some(row) = row else { return Ok(Tenant::Reference(None)) };
    let noted: serde_json::Value = serde_json::from_str(row.get(0)).unwrap_or_default();
    let version = |name: &str| noted.get(name).and_then(serde_json::Value::as_i64);
    let (Some(data), Some(schema_version)) = (version("dataVersion"), version("schemaVersion")) else {
        return Err(Error::configuration(format!(
            "the table {history} does not say which version set the shard up; nothing was changed: restore it from a backup, or remove the shard with zero-cache decommission"
        )));
    };
    let newest = data.max(schema_version).max(version("minSafeVersion").unwrap_or(0));
    if newest > i64::from(SCHEMA_VERSION_MAX) {
        return Err(Error::configuration(format!(
            "the shard {schema} was set up by a release of Rocicorp's zero-cache that is newer than this server knows (schema version {newest}, at most {SCHEMA_VERSION_MAX} is known); nothing was changed: use a newer release of this server, or another ZERO_APP_ID"
        )));
    }
    if data == i64::from(DATA_VERSION) && waits_for_it && !watches {
        return Ok(Tenant::Ours);
    }
    Ok(Tenant::Reference(i32::try_from(schema_version).ok()))
}

/// An error that says who it is, if the reference is at work on the shard.
pub(crate) async fn unless_at_work(client: &impl GenericClient, app: &App) -> Result<()> {
    let schema = quote_identifier(&app.shard_schema());
    let occupied = |what: String| {
        Err(Error::Occupied {
            message: format!(
                "Rocicorp's zero-cache is at work on the shard {}: {what}; stop it, and this server takes over by itself",
                app.shard_schema()
            ),
        })
    };
    let session = "pid || ' at the Postgres server, ' || coalesce(nullif(application_name, ''), 'unnamed')
                   || coalesce(' from ' || host(client_addr), '')";
    let row = client
        .query_one(
            &format!(
                "SELECT (SELECT 'replication slot ' || s.slot_name || ' is read by pid ' || coalesce({session}, s.active_pid::text, 'unknown')
                         FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
                         WHERE s.slot_name ~ $1 AND s.database = current_database() AND s.active ORDER BY s.slot_name LIMIT 1),
                        (SELECT 'it makes its copy, pid ' || {session} FROM pg_stat_activity
                         WHERE datname = current_database() AND application_name LIKE '%initial-sync-replication-session' LIMIT 1),
                        to_regclass($2) IS NOT NULL AND to_regclass($3) IS NOT NULL"
            ),
            &[&slot_pattern(app), &format!("{schema}.\"shardConfig\""), &format!("{schema}.\"replicas\"")],
        )
        .await
        .map_err(doing)?;
    if let Some(what) = row.get::<_, Option<String>>(0).or_else(|| row.get(1)) {
        return occupied(what);
    }
    if !row.get::<_, bool>(2) {
        return Ok(());
    }
    // Both tables may be of any release.
    let row = client
        .query_opt(
            &format!(
                "SELECT (extract(epoch FROM clock_timestamp()) - (to_jsonb(c) ->> 'handedBack')::float8)::int8
                 FROM {schema}.\"shardConfig\" c
                 WHERE NOT EXISTS (SELECT FROM {schema}.\"replicas\" r
                                   WHERE to_jsonb(r) ->> 'subscriberContext' IS NOT NULL)"
            ),
            &[],
        )
        .await
        .map_err(doing)?;
    match row.and_then(|row| row.get::<_, Option<i64>>(0)) {
        Some(age) if (0..i64::from(BEGINNING_SECONDS)).contains(&age) => {
            occupied("it has begun just now, after this server had it".to_owned())
        }
        _ => Ok(()),
    }
}

/// Removes what watches for the reference, and its replicas.
pub(crate) async fn evict(transaction: &Transaction<'_>, app: &App) -> Result<Former> {
    let doing = |e| Error::statement("take the shard over", e);
    // Its messages count up to here for a former release of this server, so no transaction that wrote one may be open.
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&ddl::FORMER_LOCK]).await.map_err(doing)?;
    let row = transaction.query_one(&ddl::former(app), &[]).await.map_err(doing)?;
    let watch = row.get::<_, bool>(0).then(|| row.get(1));
    transaction.batch_execute(&ddl::removal(app)).await.map_err(doing)?;
    let schema = quote_identifier(&app.shard_schema());
    let table = format!("{schema}.\"replicas\"");
    let is_there = transaction.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]).await.map_err(doing)?;
    let replicas = if is_there.get(0) {
        transaction.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.map_err(doing)?.get(0)
    } else {
        0
    };
    // Older releases have other columns and another key; nothing else refers to them.
    transaction
        .batch_execute(&format!("DROP TABLE IF EXISTS {schema}.\"schemaHistory\", {table}"))
        .await
        .map_err(doing)?;
    Ok(Former { watch, replicas })
}

/// Whether it is noted that the shard is this server's.
pub(crate) async fn is_settled(transaction: &Transaction<'_>, app: &App) -> Result<bool> {
    let table = format!("{}.\"versionHistory\"", quote_identifier(&app.shard_schema()));
    let row = transaction
        .query_one(&format!("SELECT EXISTS (SELECT FROM {table} WHERE \"dataVersion\" = {DATA_VERSION})"), &[])
        .await
        .map_err(doing)?;
    Ok(row.get(0))
}

/// Notes that the shard is this server's.
pub(crate) async fn settle(transaction: &Transaction<'_>, app: &App, former: Option<&Former>) -> Result<()> {
    let doing = |e| Error::statement("note whose the shard is", e);
    let schema = quote_identifier(&app.shard_schema());
    transaction
        .batch_execute(&format!(
            "INSERT INTO {schema}.\"versionHistory\" AS v (\"dataVersion\", \"schemaVersion\", \"minSafeVersion\")
             VALUES ({DATA_VERSION}, {SCHEMA_VERSION}, 1)
             ON CONFLICT (lock) DO UPDATE
             SET \"dataVersion\" = {DATA_VERSION}, \"schemaVersion\" = greatest(v.\"schemaVersion\", {SCHEMA_VERSION});
             {}",
            ddl::watch_for_reference(app)
        ))
        .await
        .map_err(doing)?;
    if let Some(former) = former {
        transaction
            .execute(
                &format!("UPDATE {schema}.\"shardConfig\" SET \"former\" = $1, \"handedBack\" = NULL"),
                &[&former.watch],
            )
            .await
            .map_err(doing)?;
    }
    Ok(())
}

/// Drops the publications of our names that are not as they have to be; they are made anew then.
pub(crate) fn drop_other_publications(app: &App) -> String {
    let (metadata, default) = (app.metadata_publication(), app.default_publication());
    format!(
        "DROP PUBLICATION IF EXISTS {};
         DO $body$ BEGIN
           IF EXISTS (SELECT FROM pg_publication p WHERE p.pubname = {} AND (
                        p.puballtables OR NOT (p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AND p.pubviaroot)
                        OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid)
                        OR EXISTS (SELECT FROM pg_publication_namespace s JOIN pg_namespace n ON n.oid = s.pnnspid
                                   WHERE s.pnpubid = p.oid AND n.nspname <> 'public'))) THEN
             DROP PUBLICATION {};
           END IF;
         END $body$;",
        quote_identifier(&metadata),
        quote_literal(&default),
        quote_identifier(&default),
    )
}
