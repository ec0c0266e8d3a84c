//! Takes away what the data plane made upstream: the slot that holds back the server's log for ever, the publications, and the
//! schemas of its own.
//!
//! Everything is named one by one and dropped only if nothing else depends on it, so that nothing of others goes with it; what
//! is gone already is no error, so it can be repeated. A slot that somebody else reads from is left to them, with an error.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};

use super::postgres::{Address, Session, connect, described, identity, slot_pattern};
use super::{Inputs, SecretText, Servers, Shard};
use crate::observe::Fault;

const TIME_MAX: Duration = Duration::from_secs(20);
/// A slot becomes free a moment after its reader was ended.
const FREE_TRIES: u32 = 40;
const FREE_PAUSE: Duration = Duration::from_millis(100);
/// Names that the data plane's replication connections give themselves.
const READERS: [&str; 3] = ["zero-replicator", "zero-initial-sync", "zero-backfill-stream"];

/// Tables of the shard's schema. The order is that of their dependence.
const TABLES: [&str; 9] = [
    "schemaHistory",
    "replicas",
    "publishedSchema",
    "publishedTables",
    "partitionFiles",
    "schemaEvents",
    "shardConfig",
    "mutations",
    "clients",
];
/// Functions of the shard's schema, those of former releases included.
const FUNCTIONS: [&str; 16] = [
    "emit_ddl_start()",
    "emit_ddl_end()",
    "emit_ddl_drop()",
    "emit_ddl_rewrite()",
    "emit_event(json)",
    "emit_failure(text, text)",
    "update_schemas(text)",
    "update_schemas()",
    "record_tables(text, oid[])",
    "take_turn(text, bool)",
    "publish_public()",
    "check_partitions()",
    "schema_specs()",
    "table_specs(oid[])",
    "descendants(oid[])",
    "family(oid[])",
];

/// Says what was not released, and why.
pub(super) async fn release(inputs: &Inputs, servers: &Servers) -> Result<(), String> {
    let Some(upstream) = &inputs.upstream else {
        return Err(
            "databases.upstream.urlSecretRef: the Secret or its key does not exist; make it again, or annotate the \
                    ZeroCache with zerocache.dev/skip-cleanup=true"
                .to_owned(),
        );
    };
    within("upstream", release_upstream(upstream, inputs, servers)).await?;
    // Where these are databases of their own.
    for (name, url, schema) in [("cvr", &inputs.cvr, "cvr"), ("change", &inputs.change, "cdc")] {
        if let Some(url) = url {
            within(name, release_records(url, inputs, schema, servers)).await?;
        }
    }
    Ok(())
}

async fn within(name: &str, releasing: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let late = || Err(format!("not done within {} s", TIME_MAX.as_secs()));
    let outcome = tokio::time::timeout(TIME_MAX, releasing).await.unwrap_or_else(|_| late());
    outcome.map_err(|text| format!("databases.{name}.urlSecretRef: {text}"))
}

/// Nothing where the database is gone, and everything in it.
async fn open(url: &SecretText, inputs: &Inputs, servers: &Servers) -> Result<Option<Session>, String> {
    let address: Address = url.reveal().parse()?;
    match connect(&address, &inputs.namespace, &servers.certificates).await {
        Ok(session) => Ok(Some(session)),
        Err(Fault::NoDatabase(_)) => Ok(None),
        Err(fault) => Err(fault.text().to_owned()),
    }
}

async fn release_upstream(url: &SecretText, inputs: &Inputs, servers: &Servers) -> Result<(), String> {
    let Some(session) = open(url, inputs, servers).await? else { return Ok(()) };
    let shard = &inputs.shard;
    if let (Some(known), Some(found)) = (&inputs.database, identity(&session.client).await)
        && *known != found.database
    {
        return Err("this is another database than the one that was replicated; nothing is dropped there".to_owned());
    }
    drop_slots(&session.client, shard).await?;
    let statements = [
        // The triggers come first, for they would watch the rest.
        triggers(shard),
        publications(shard),
        records(shard, "cvr"),
        records(shard, "cdc"),
        own_schema(shard),
        shared_schema(shard),
    ];
    carry_out(&session.client, &statements.concat()).await?;
    session.close().await;
    Ok(())
}

async fn release_records(url: &SecretText, inputs: &Inputs, schema: &str, servers: &Servers) -> Result<(), String> {
    let Some(session) = open(url, inputs, servers).await? else { return Ok(()) };
    carry_out(&session.client, &records(&inputs.shard, schema)).await?;
    session.close().await;
    Ok(())
}

/// All or nothing, without waiting for others for long.
async fn carry_out(client: &Client, statements: &str) -> Result<(), String> {
    let text = format!("BEGIN; SET LOCAL lock_timeout = '5s'; {statements} COMMIT;");
    client.batch_execute(&text).await.map_err(|error| refusal(&error))
}

fn refusal(error: &tokio_postgres::Error) -> String {
    let cure = match error.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => "; give the role the right to, or drop it by hand",
        Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => "; drop what depends on it",
        Some(&SqlState::LOCK_NOT_AVAILABLE) => "; somebody holds a lock on it",
        _ => "",
    };
    // Which object it is about stands in the detail.
    let detail = error.as_db_error().and_then(|error| error.detail()).map(|it| it.replace('\n', ", "));
    let detail: String = detail.map_or_else(String::new, |it| format!(" ({it})")).chars().take(300).collect();
    format!("{}{detail}{cure}", described(error))
}

/// Its identifiers hold nothing but small letters, digits and underscores.
fn schema(shard: &Shard) -> String {
    format!("{}_{}", shard.app_id, shard.number)
}

fn triggers(shard: &Shard) -> String {
    let Shard { app_id, number } = shard;
    let names = ["start", "end", "drop", "rewrite"].map(|kind| format!("\"{app_id}_ddl_{kind}_{number}\""));
    names.map(|name| format!("DROP EVENT TRIGGER IF EXISTS {name}; ")).concat()
}

fn publications(shard: &Shard) -> String {
    let Shard { app_id, number } = shard;
    let names = ["metadata", "public"].map(|kind| format!("\"_{app_id}_{kind}_{number}\""));
    names.map(|name| format!("DROP PUBLICATION IF EXISTS {name}; ")).concat()
}

/// A schema with a name that only the data plane gives: all in it is its own.
fn records(shard: &Shard, kind: &str) -> String {
    format!("DROP SCHEMA IF EXISTS \"{}/{kind}\" CASCADE; ", schema(shard))
}

/// A schema's name alone does not tell whose it is: only what is known to be ours goes, and the schema if nothing is left.
fn own_schema(shard: &Shard) -> String {
    let schema = schema(shard);
    let tables = TABLES.map(|name| format!("DROP TABLE IF EXISTS \"{schema}\".\"{name}\"; ")).concat();
    let functions = FUNCTIONS.map(|name| format!("DROP FUNCTION IF EXISTS \"{schema}\".{name}; ")).concat();
    format!("{tables}{functions}{}", drop_if_empty(&schema))
}

/// The application's permissions belong to all of its shards.
fn shared_schema(shard: &Shard) -> String {
    let app = &shard.app_id;
    format!(
        "DO $body$ BEGIN
           IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname ~ '^{app}_[0-9]+$') THEN
             DROP TABLE IF EXISTS \"{app}\".permissions;
             DROP FUNCTION IF EXISTS \"{app}\".set_permissions_hash();
           END IF;
         END $body$; {}",
        drop_if_empty(app)
    )
}

fn drop_if_empty(schema: &str) -> String {
    format!(
        "DO $body$ BEGIN
           DROP SCHEMA IF EXISTS \"{schema}\";
         EXCEPTION WHEN dependent_objects_still_exist OR insufficient_privilege THEN
           NULL;
         END $body$; "
    )
}

async fn drop_slots(client: &Client, shard: &Shard) -> Result<(), String> {
    const OURS: &str =
        "SELECT slot_name::text FROM pg_replication_slots WHERE slot_name ~ $1 AND database = current_database()";
    let pattern = slot_pattern(&schema(shard));
    let rows = query(client, OURS, &[(&pattern, Type::TEXT)]).await?;
    for row in rows {
        drop_slot(client, row.get(0)).await?;
    }
    Ok(())
}

async fn drop_slot(client: &Client, slot: &str) -> Result<(), String> {
    const READER: &str = "
SELECT s.active_pid, coalesce(a.application_name, ''), coalesce(a.usename = current_user, false)
FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE s.slot_name = $1";
    let mut ended = None;
    for _ in 0..FREE_TRIES {
        let rows = query(client, READER, &[(&slot, Type::TEXT)]).await?;
        let Some(row) = rows.first() else { return Ok(()) };
        if let Some(process) = row.get::<_, Option<i32>>(0) {
            let (application, is_same_role): (&str, bool) = (row.get(1), row.get(2));
            if !READERS.contains(&application) || !is_same_role {
                return Err(format!(
                    "replication slot {slot} is read by another program ({application}, process {process} of the server); stop it"
                ));
            }
            if ended != Some(process) {
                query(client, "SELECT pg_terminate_backend($1)", &[(&process, Type::INT4)]).await?;
                ended = Some(process);
            }
        } else {
            match client.query_typed("SELECT pg_drop_replication_slot($1::text::name)", &[(&slot, Type::TEXT)]).await {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => return Ok(()),
                Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) => {}
                Err(error) => return Err(format!("replication slot {slot}: {}", refusal(&error))),
            }
        }
        tokio::time::sleep(FREE_PAUSE).await;
    }
    Err(format!("replication slot {slot} does not become free; a pod may still run"))
}

async fn query(
    client: &Client,
    statement: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Vec<tokio_postgres::Row>, String> {
    client.query_typed(statement, parameters).await.map_err(|error| refusal(&error))
}
