//! SQL connections.

use tokio_postgres::Client;

use crate::address::Address;
use crate::dial::{Endpoint, Established, Search, dial};
use crate::{Error, Result, session};

/// Opens an SQL connection to the server itself, with all settings that our statements depend on. Its driver task ends when the
/// client is dropped or the server goes away; the client's calls then fail, so nothing needs to watch the task.
pub async fn connect(address: &Address, application_name: &str) -> Result<Client> {
    open(address, application_name, true).await
}

/// The same where a pooler may stand between: nothing is set, and each transaction sets its own (see [`crate::isolated`]).
pub async fn connect_pooled(address: &Address, application_name: &str) -> Result<Client> {
    open(address, application_name, false).await
}

async fn open(address: &Address, application_name: &str, is_ours: bool) -> Result<Client> {
    let mut search = Search::begin(address).await?;
    while let Some(endpoint) = search.next() {
        let (is_choosy, standby) = (search.is_choosy(), search.standby());
        let opening = async {
            let client = open_at(address, &endpoint, application_name).await?;
            if is_choosy && is_standby(&client).await? {
                return Err(standby);
            }
            if is_ours {
                let prepared = client.batch_execute(session::prepare()).await;
                prepared.map_err(|e| Error::statement("set a connection to Postgres up", e))?;
            }
            Ok(client)
        };
        if let Some(client) = search.attempt(&endpoint, opening).await {
            return Ok(client);
        }
    }
    Err(search.failure())
}

async fn open_at(address: &Address, endpoint: &Endpoint, application_name: &str) -> Result<Client> {
    let channel = dial(address, endpoint, Some(address.patience() * 2)).await?;
    let mut config = address.config().clone();
    config.application_name(application_name);
    let opened = config.connect_raw(channel, Established).await;
    let (client, connection) = opened.map_err(|e| Error::statement(&format!("connect to Postgres at {address}"), e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to Postgres ended");
        }
    });
    Ok(client)
}

async fn is_standby(client: &Client) -> Result<bool> {
    let row = client.query_typed_one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await;
    Ok(row.map_err(|e| Error::statement("ask whether this is a standby", e))?.get(0))
}

/// `name` as an SQL identifier.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as an SQL string literal, whatever `standard_conforming_strings` is.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes() {
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("a'b"), "'a''b'");
        assert_eq!(quote_literal("a\\'b"), " E'a\\\\''b'");
    }
}
