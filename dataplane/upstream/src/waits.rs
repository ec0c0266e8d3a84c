//! Says whom a statement waits for, so that a person can end what holds everything up.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::address::Address;
use crate::{Error, Result, connect};

/// The sessions that the backend `pid` waits for. What a role may not see of others is left out.
const BLOCKERS: &str = "SELECT a.pid, a.usename::text, a.application_name, a.state, a.datname::text,
       extract(epoch FROM clock_timestamp() - a.xact_start)::int8, b.pid
 FROM unnest(pg_blocking_pids($1)) b(pid) LEFT JOIN pg_stat_activity a ON a.pid = b.pid ORDER BY a.xact_start NULLS LAST";

/// Waits for `work` of the backend `pid`, and says every few seconds whom that waits for. `doing` completes "waiting to ...".
pub(crate) async fn attend<T>(address: &Address, pid: i32, doing: &str, work: impl Future<Output = T>) -> T {
    let telling = async {
        let mut client = None;
        loop {
            // Five seconds as a rule.
            tokio::time::sleep(address.patience() / 6).await;
            if let Err(error) = tell(address, &mut client, pid, doing).await {
                tracing::debug!(%error, "cannot see whom a statement waits for");
            }
        }
    };
    tokio::select! {
        done = work => done,
        () = telling => unreachable!("it goes on for ever"),
    }
}

/// The process at the server that works for `client`.
pub(crate) async fn backend(client: &Client) -> Result<i32> {
    let row = client.query_typed_one("SELECT pg_catalog.pg_backend_pid()", &[]).await;
    Ok(row.map_err(|e| Error::statement("ask for the process at the server", e))?.get(0))
}

async fn tell(address: &Address, client: &mut Option<Client>, pid: i32, doing: &str) -> Result<()> {
    if client.as_ref().is_none_or(Client::is_closed) {
        *client = Some(connect::connect(address, "zero-change-source").await?);
    }
    let Some(client) = client else { return Ok(()) };
    let found = client.query_typed(BLOCKERS, &[(&pid, Type::INT4)]).await;
    for row in found.map_err(|e| Error::statement("see whom a statement waits for", e))? {
        let waited_for: i32 = row.get(6);
        if waited_for == 0 {
            tracing::warn!("waiting to {doing}: a prepared transaction must end first (see pg_prepared_xacts)");
            continue;
        }
        let text = |column: usize| row.get::<_, Option<String>>(column).unwrap_or_default();
        tracing::warn!(
            pid = waited_for,
            user = text(1),
            application = text(2),
            state = text(3),
            database = text(4),
            age_seconds = row.get::<_, Option<i64>>(5),
            "waiting to {doing}: a transaction must end first; SELECT pg_terminate_backend({waited_for}) ends it"
        );
    }
    Ok(())
}
