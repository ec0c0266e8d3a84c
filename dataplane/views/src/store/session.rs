//! Statements on which nothing has an influence that a role, a database or somebody else's session has set.
//!
//! The database may be behind a pooler in transaction mode, which keeps no settings: each transaction makes its own, and a statement
//! is a transaction of its own, in one round trip.

use tokio_postgres::{Client, Error, IsolationLevel, Row, Transaction};

use super::connection::Parameter;

/// What is stored here only saves work (a client whose state is lost starts over), so it does not wait for standbys. What the server
/// does not know is left out: `transaction_timeout` came with Postgres 17.
const SETTINGS: &str = "SELECT count(pg_catalog.set_config(s.name, s.value, true)) FROM (VALUES
   ('statement_timeout', '0'), ('lock_timeout', '30s'), ('idle_in_transaction_session_timeout', '10s'),
   ('transaction_timeout', '0'), ('search_path', 'pg_catalog, pg_temp'), ('row_security', 'off'),
   ('synchronous_commit', 'local')) s(name, value)
 WHERE pg_catalog.current_setting(s.name, true) IS NOT NULL";

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE";

/// A connection to the CVR database.
pub(super) struct Session(Client);

impl Session {
    pub(super) fn new(client: Client) -> Session {
        Session(client)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// SQL without parameters and results, in one transaction.
    pub(super) async fn batch_execute(&self, sql: &str) -> Result<(), Error> {
        self.alone(self.0.batch_execute(sql)).await
    }

    pub(super) async fn query_typed(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, Error> {
        self.alone(self.0.query_typed(sql, parameters)).await
    }

    pub(super) async fn query_typed_one(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Row, Error> {
        self.alone(self.0.query_typed_one(sql, parameters)).await
    }

    pub(super) async fn execute_typed(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<u64, Error> {
        self.alone(self.0.execute_typed(sql, parameters)).await
    }

    /// For several statements. Should this process stop within it, others do not wait for long.
    pub(super) async fn transaction(&mut self) -> Result<Transaction<'_>, Error> {
        let plain = self.0.build_transaction().isolation_level(IsolationLevel::ReadCommitted);
        let transaction = plain.read_only(false).deferrable(false).start().await?;
        transaction.batch_execute(SETTINGS).await?;
        Ok(transaction)
    }

    /// Each part is sent when it is first polled, so in this order; the server takes the statement for the transaction's, and ends
    /// that with whatever came of it.
    async fn alone<T>(&self, statement: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let begin = format!("{BEGIN}; {SETTINGS}");
        let (begun, done, ended) =
            tokio::join!(biased; self.0.batch_execute(&begin), statement, self.0.batch_execute("COMMIT"));
        begun?;
        let done = done?;
        ended?;
        Ok(done)
    }
}
