//! Which database a connection has led to, whatever its address is.
//!
//! Host names, ports and database names say where a database is at present; what is remembered in a database is carried along when
//! it is dumped and loaded elsewhere. So what is remembered names the database that it was written in, and counts in no other.
//! A copy of all files of a server is the same database to this, and is told apart by its history (`continuity`).

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::{Error, Result};

/// The system identifier of the server, and the number of the database in it. Works through a pooler.
pub async fn home(client: &Client) -> Result<String> {
    let sql = |system: &str| {
        format!(
            "SELECT {system} || '/' || (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"
        )
    };
    let system = "(SELECT system_identifier::text FROM pg_catalog.pg_control_system())";
    let row = match client.query_typed(&sql(system), &[]).await {
        // A provider may keep it to itself: databases of one server are told apart all the same.
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            client.query_typed(&sql("'unknown'"), &[]).await
        }
        row => row,
    }
    .map_err(|e| Error::statement("read the identity of the database", e))?;
    row.first().map(|row| row.get(0)).ok_or_else(|| Error::transient("Postgres did not say which database this is"))
}
