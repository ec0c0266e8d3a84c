//! Replication slots: names, creation with an exported snapshot, health, take-over, clean-up.

use std::time::Duration;

use fault::Backoff;
use rows::Version;
use tokio_postgres::Client;

use crate::connect::{connect, quote_identifier, quote_literal};
use crate::error::ServerError;
use crate::options::{App, Options, parse_lsn};
use crate::requirements::Server;
use crate::wire::Connection;
use crate::{Error, Result, identity, shard, tenant, waits};

/// Between two looks at a slot that is being released; clients wait as long for their changes.
const RELEASE_PAUSE: Duration = Duration::from_millis(10);
const RELEASE_ATTEMPTS: u32 = 500;
/// The process that was just ended may hold a slot for another moment: about two seconds.
const DROP_RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(150));
const DROP_ATTEMPTS: u32 = 20;
const NO_FREE_SLOT: &str = "53400";
const NOT_PERMITTED: &str = "42501";
const DUPLICATE_OBJECT: &str = "42710";
const LOCK_NOT_AVAILABLE: &str = "55P03";

/// A slot that was just made. The snapshot lives until the next statement on `connection`.
pub(crate) struct Created {
    pub name: String,
    pub consistent_point: Version,
    pub snapshot: String,
    /// Held for the snapshot's sake.
    _connection: Connection,
}

impl Created {
    /// The version of what the snapshot shows. A transaction whose commit record begins exactly at the consistent point is not
    /// in the snapshot and comes with the stream, so the version must be below that point.
    pub(crate) fn version_before(&self) -> Version {
        Version::new(self.consistent_point.as_u64().saturating_sub(1))
    }
}

/// Creates the slot of a new replica.
pub(crate) async fn create(client: &Client, options: &Options, server: Server) -> Result<Created> {
    let mut retried = false;
    loop {
        // Slots belong to the whole server: another database may take a name between the look and the creation.
        let name = unused_name(client, &options.app).await?;
        let failover = if options.slot_failover && server.version >= 170_000 { " (FAILOVER)" } else { "" };
        match try_create(options, &name, failover).await? {
            Ok(created) => return Ok(created),
            Err(error) if error.code == DUPLICATE_OBJECT => continue,
            Err(error) if !retried && error.code == NO_FREE_SLOT => {
                tracing::warn!("no replication slot is free; dropping our own that nobody uses");
                let schema = quote_identifier(&options.app.shard_schema());
                client
                    .batch_execute(&format!(
                        "DELETE FROM {schema}.\"replicas\" WHERE \"slot\" IN (SELECT slot_name FROM pg_replication_slots WHERE NOT active AND database = current_database())"
                    ))
                    .await
                    .map_err(|e| Error::statement("forget replicas that nobody uses", e))?;
                drop_unclaimed(client, &options.app).await?;
            }
            Err(error) if !retried && error.code == NOT_PERMITTED => {
                client
                    .batch_execute("ALTER ROLE current_user WITH REPLICATION")
                    .await
                    .map_err(|e| Error::statement("give this role the right to replicate", e))?;
            }
            Err(error) => return Err(creation_failed(&error)),
        }
        retried = true;
    }
}

fn creation_failed(error: &ServerError) -> Error {
    if error.code == NO_FREE_SLOT {
        return Error::configuration(
            "Postgres has no free replication slot: raise max_replication_slots (and max_wal_senders), or drop slots that are not needed (see pg_replication_slots)",
        );
    }
    Error::response("create a replication slot", error)
}

/// Creation waits for every transaction that writes, however long that is: who it is, is said meanwhile.
async fn try_create(
    options: &Options,
    name: &str,
    failover: &str,
) -> Result<std::result::Result<Created, ServerError>> {
    let mut connection = Connection::open(&options.address, "zero-initial-sync", true).await?;
    let pid = connection.pid();
    let sql = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput{failover}", quote_identifier(name));
    let creation = async {
        loop {
            match connection.query(&sql).await? {
                // So that a server does not wait for long for one who has gone.
                Err(error) if error.code == LOCK_NOT_AVAILABLE => {}
                answer => return Ok::<_, Error>(answer),
            }
        }
    };
    let rows = match waits::attend(&options.address, pid, "create a replication slot", creation).await? {
        Ok(rows) => rows,
        Err(error) => return Ok(Err(error)),
    };
    let field = |i: usize| rows.first().and_then(|r| r.get(i)).cloned().flatten();
    let (Some(point), Some(snapshot)) = (field(1), field(2)) else {
        return Err(Error::transient("Postgres did not describe the replication slot that it created"));
    };
    Ok(Ok(Created { name: name.to_owned(), consistent_point: parse_lsn(&point)?, snapshot, _connection: connection }))
}

async fn unused_name(client: &Client, app: &App) -> Result<String> {
    let schema = app.shard_schema();
    let rows = client
        .query("SELECT slot_name::text FROM pg_replication_slots", &[])
        .await
        .map_err(|e| Error::statement("read the replication slots", e))?;
    let used: Vec<String> = rows.iter().map(|r| r.get(0)).collect();
    Ok((0..)
        .map(|n| format!("{schema}_{}", letters(n)))
        .find(|name| !used.contains(name))
        .expect("names do not run out"))
}

/// a, b, ..., z, aa, ab, ...
fn letters(mut n: u32) -> String {
    let mut name = Vec::new();
    loop {
        name.push(char::from(b'a' + (n % 26) as u8));
        n /= 26;
        if n == 0 {
            return name.iter().rev().collect();
        }
        n -= 1;
    }
}

#[derive(Clone, Debug)]
pub(crate) struct State {
    /// Pid and application name of the process that streams from it.
    pub active: Option<(i32, String)>,
    pub confirmed: Version,
}

/// The slot, if it can still be streamed from. One of this name that belongs to another database of the server is none of ours.
pub(crate) async fn state(client: &Client, slot: &str) -> Result<State> {
    let row = client
        .query_opt(
            "SELECT s.active_pid, a.application_name, s.confirmed_flush_lsn::text, s.restart_lsn IS NULL, s.wal_status
             FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid
             WHERE s.slot_name = $1 AND s.database = current_database()",
            &[&slot],
        )
        .await
        .map_err(|e| Error::statement("read the state of the replication slot", e))?;
    let Some(row) = row else {
        return Err(Error::slot_lost(format!("replication slot {slot} is gone; somebody dropped it")));
    };
    let wal_status: Option<&str> = row.get(4);
    if row.get::<_, bool>(3) || wal_status == Some("lost") {
        return Err(Error::slot_lost(format!(
            "replication slot {slot} has lost its WAL, because it lagged by more than max_slot_wal_keep_size"
        )));
    }
    let confirmed = parse_lsn(row.get::<_, Option<&str>>(2).unwrap_or("0/0"))?;
    let active = row.get::<_, Option<i32>>(0).map(|pid| {
        (pid, row.get::<_, Option<String>>(1).filter(|a| !a.is_empty()).unwrap_or_else(|| "unknown".to_owned()))
    });
    Ok(State { active, confirmed })
}

/// Whether a process streams from the slot of the newest replica. `false` if there is none, or if it has no usable slot.
pub async fn is_streamed(options: &Options) -> Result<bool> {
    let client = connect(&options.address, "zero-change-source").await?;
    if shard::configured_publications(&client, &options.app).await?.is_none() {
        return Ok(false);
    }
    let home = identity::home(&client).await?;
    let Some(replica) = shard::newest_replica(&client, &options.app, &home).await? else { return Ok(false) };
    match state(&client, &replica.slot).await {
        Ok(state) => Ok(state.active.is_some()),
        Err(Error::ResetRequired { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the slot free: fails with [`Error::SlotInUse`], or ends the process that streams from it.
pub(crate) async fn release(client: &Client, slot: &str, take_over: bool) -> Result<State> {
    let mut asked = None;
    for _ in 0..RELEASE_ATTEMPTS {
        let state = state(client, slot).await?;
        let Some((pid, application)) = state.active.clone() else { return Ok(state) };
        if !take_over {
            return Err(Error::SlotInUse { slot: slot.to_owned(), pid, application });
        }
        if asked != Some(pid) {
            tracing::info!(slot, pid, application, "taking the replication slot over");
            client
                .execute("SELECT pg_terminate_backend($1)", &[&pid])
                .await
                .map_err(|e| Error::statement("end the process that uses the replication slot", e))?;
            asked = Some(pid);
        }
        tokio::time::sleep(RELEASE_PAUSE).await;
    }
    let state = state(client, slot).await?;
    match state.active.clone() {
        None => Ok(state),
        Some((pid, application)) => Err(Error::SlotInUse { slot: slot.to_owned(), pid, application }),
    }
}

/// Drops slots of this shard that are idle and that no row of `replicas` references.
pub(crate) async fn drop_unclaimed(client: &Client, app: &App) -> Result<()> {
    let schema = quote_identifier(&app.shard_schema());
    let pattern = tenant::slot_pattern(app);
    let rows = client
        .query(
            &format!(
                "SELECT slot_name::text FROM pg_replication_slots WHERE slot_name ~ {} AND NOT active AND database = current_database()
                 AND slot_name NOT IN (SELECT \"slot\" FROM {schema}.\"replicas\")",
                quote_literal(&pattern)
            ),
            &[],
        )
        .await
        .map_err(|e| Error::statement("look for unused replication slots", e))?;
    for row in rows {
        drop_one(client, row.get(0)).await?;
    }
    Ok(())
}

/// Drops what is left of this server's slots while the reference has the shard. It claims its own under a lock, or names them
/// otherwise.
pub(crate) async fn drop_left(client: &mut Client, app: &App) -> Result<()> {
    let doing = |e| Error::statement("drop the slots that this server has left", e);
    let shard = app.shard_schema();
    let transaction = client.transaction().await.map_err(doing)?;
    let lock = format!("replication-slot-management:{shard}");
    transaction.execute("SELECT pg_advisory_xact_lock(hashtext($1))", &[&lock]).await.map_err(doing)?;
    let dropped = transaction
        .query(
            &format!(
                "SELECT slot_name::text, pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                 WHERE slot_name ~ $1 AND NOT active AND database = current_database()
                 AND slot_name NOT IN (SELECT \"slot\" FROM {}.\"replicas\")",
                quote_identifier(&shard)
            ),
            &[&format!("^{shard}_[a-z]+$")],
        )
        .await
        .map_err(doing)?;
    transaction.commit().await.map_err(doing)?;
    for row in dropped {
        tracing::info!(slot = row.get::<_, &str>(0), "dropped replication slot");
    }
    Ok(())
}

pub(crate) async fn drop_matching(client: &Client, pattern: &str) -> Result<()> {
    let rows = client
        .query(
            "SELECT slot_name::text FROM pg_replication_slots WHERE slot_name ~ $1 AND database = current_database()",
            &[&pattern],
        )
        .await
        .map_err(|e| Error::statement("read the replication slots", e))?;
    for row in rows {
        drop_one(client, row.get(0)).await?;
    }
    Ok(())
}

/// Drops a slot; one that is gone or was taken in the meantime is no error.
async fn drop_one(client: &Client, slot: &str) -> Result<()> {
    use tokio_postgres::error::SqlState;
    let mut retry = DROP_RETRY;
    for _ in 0..DROP_ATTEMPTS {
        match client.execute("SELECT pg_drop_replication_slot($1::text::name)", &[&slot]).await {
            Ok(_) => {
                tracing::info!(slot, "dropped replication slot");
                return Ok(());
            }
            Err(e) if e.code() == Some(&SqlState::UNDEFINED_OBJECT) => return Ok(()),
            Err(e) if e.code() == Some(&SqlState::OBJECT_IN_USE) => {
                tokio::time::sleep(retry.pause()).await;
            }
            Err(e) => return Err(Error::statement("drop a replication slot", e)),
        }
    }
    tracing::warn!(slot, "replication slot stays: it is in use");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::letters;

    #[test]
    fn names_count_in_letters() {
        for (n, name) in
            [(0, "a"), (25, "z"), (26, "aa"), (27, "ab"), (51, "az"), (52, "ba"), (701, "zz"), (702, "aaa")]
        {
            assert_eq!(letters(n), name);
        }
    }
}
