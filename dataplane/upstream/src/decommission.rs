//! Removes what this server, or the reference, has made upstream for an application and shard; and says beforehand what that is.
//!
//! Invariants: only what has the shard's names is removed, and only while nobody streams from its slots. What is gone already is
//! no error, so that an attempt that was cut off is repeated.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::address::Address;
use crate::connect::{connect_pooled, quote_identifier, quote_literal};
use crate::options::App;
use crate::{Error, Result, ddl, slot, tenant};

/// What there is, in words, in the order in which it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Belongings {
    pub goes: Vec<String>,
    /// Of the application: other shards use it as well, or it was not asked for.
    pub stays: Vec<String>,
    /// Who streams from a slot of the shard, if anybody.
    pub streaming: Option<String>,
}

/// A schema that the shard has in another database, which may be behind a pooler.
pub struct Schema {
    client: Client,
    name: String,
}

impl Schema {
    pub async fn open(address: &Address, name: String) -> Result<Schema> {
        Ok(Schema { client: connect_pooled(address, "zero-decommission").await?, name })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub async fn is_there(&self) -> Result<bool> {
        let sql = "SELECT to_regnamespace(quote_ident($1)) IS NOT NULL";
        let row = self.client.query_typed_one(sql, &[(&self.name, Type::TEXT)]).await;
        Ok(row.map_err(doing)?.get(0))
    }

    /// With all that is in it.
    pub async fn remove(&self) -> Result<()> {
        let sql = format!("DROP SCHEMA IF EXISTS {} CASCADE", quote_identifier(&self.name));
        self.client.batch_execute(&sql).await.map_err(|e| Error::statement("remove a schema of the shard", e))
    }
}

fn doing(e: tokio_postgres::Error) -> Error {
    Error::statement("see what the shard has", e)
}

async fn texts(client: &Client, sql: &str, value: &str) -> Result<Vec<String>> {
    let rows = client.query(sql, &[&value]).await.map_err(doing)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Other shards of the application.
async fn siblings(client: &Client, app: &App) -> Result<Vec<String>> {
    let pattern = format!("^{}_[0-9]+$", app.id);
    let all = texts(
        client,
        "SELECT n.nspname::text FROM pg_namespace n WHERE n.nspname ~ $1
         AND to_regclass(format('%I.\"shardConfig\"', n.nspname)) IS NOT NULL ORDER BY 1",
        &pattern,
    )
    .await?;
    Ok(all.into_iter().filter(|schema| *schema != app.shard_schema()).collect())
}

/// Looks, and changes nothing. The permissions are the application's, and go only if that is asked for.
pub async fn belongings(client: &Client, app: &App, with_permissions: bool) -> Result<Belongings> {
    let mut found = Belongings::default();
    let schema = app.shard_schema();
    let slots = client
        .query(
            "SELECT s.slot_name::text, s.active_pid, a.application_name, host(a.client_addr)
             FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
             WHERE s.slot_name ~ $1 AND s.database = current_database() ORDER BY 1",
            &[&tenant::slot_pattern(app)],
        )
        .await
        .map_err(doing)?;
    for row in &slots {
        let slot: &str = row.get(0);
        found.goes.push(format!("replication slot {slot}"));
        if let Some(pid) = row.get::<_, Option<i32>>(1) {
            let application = row.get::<_, Option<&str>>(2).filter(|name| !name.is_empty()).unwrap_or("unnamed");
            let from = row.get::<_, Option<&str>>(3).map(|host| format!(" from {host}")).unwrap_or_default();
            found.streaming =
                Some(format!("{application}{from} (pid {pid} at the Postgres server) streams from slot {slot}"));
        }
    }
    let triggers = "SELECT t.evtname::text FROM pg_event_trigger t JOIN pg_proc f ON f.oid = t.evtfoid
                    WHERE f.pronamespace = to_regnamespace(quote_ident($1)) ORDER BY 1";
    found.goes.extend(texts(client, triggers, &schema).await?.iter().map(|name| format!("event trigger {name}")));
    for publication in [app.default_publication(), app.metadata_publication()] {
        let there = texts(client, "SELECT pubname::text FROM pg_publication WHERE pubname = $1", &publication).await?;
        found.goes.extend(there.iter().map(|name| format!("publication {name}")));
    }
    let tables = "SELECT coalesce(string_agg(c.relname, ', ' ORDER BY c.relname), 'no tables') FROM pg_namespace n
                  LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v') WHERE n.nspname = $1 GROUP BY n.oid";
    found
        .goes
        .extend(texts(client, tables, &schema).await?.iter().map(|tables| format!("schema {schema} with {tables}")));
    for tables in texts(client, tables, &app.id).await? {
        let line = format!("schema {} with {tables}", app.id);
        let siblings = siblings(client, app).await?;
        if !siblings.is_empty() {
            found.stays.push(format!("{line}: other shards use it: {}", siblings.join(", ")));
        } else if with_permissions {
            found.goes.push(line);
        } else {
            found.stays.push(line);
        }
    }
    Ok(found)
}

/// Removes what [`belongings`] says that goes, `clients` and `mutations` included. Fails while somebody streams.
pub async fn decommission(client: &mut Client, app: &App, with_permissions: bool) -> Result<()> {
    if let Some(who) = belongings(client, app, with_permissions).await?.streaming {
        return Err(Error::configuration(format!("{who}: stop it first; nothing was removed")));
    }
    slot::drop_matching(client, &tenant::slot_pattern(app)).await?;
    let application = if with_permissions && siblings(client, app).await?.is_empty() {
        format!("DROP SCHEMA IF EXISTS {} CASCADE;", quote_identifier(&app.id))
    } else {
        String::new()
    };
    let doing = |e| Error::statement("remove the shard", e);
    let transaction = client.transaction().await.map_err(doing)?;
    transaction
        .batch_execute(&format!(
            "SELECT pg_advisory_xact_lock(hashtext({}));
             {} DROP PUBLICATION IF EXISTS {}; DROP PUBLICATION IF EXISTS {}; DROP SCHEMA IF EXISTS {} CASCADE; {application}",
            quote_literal(&format!("migrate-schema:{}", app.shard_schema())),
            // First, for the triggers would watch the rest.
            ddl::removal(app),
            quote_identifier(&app.default_publication()),
            quote_identifier(&app.metadata_publication()),
            quote_identifier(&app.shard_schema()),
        ))
        .await
        .map_err(doing)?;
    transaction.commit().await.map_err(doing)
}
