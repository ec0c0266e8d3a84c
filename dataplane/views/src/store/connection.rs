//! A connection to the CVR database that comes back when it breaks, or when it does not answer.
//!
//! What a role or database sets for its sessions (time limits of statements, read-only transactions) must not reach the
//! statements here, and a pooler may give each transaction another session: so where anything of that kind is set, each
//! transaction says first what it depends on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fault::Backoff;
use futures_util::future::try_join_all;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, Transaction};
use tracing::warn;

use super::fault::{Fault, Unopened};

/// Opens a connection to the CVR database.
pub type Connector = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Client, Unopened>> + Send>> + Send + Sync>;

/// A value for a statement, with its type: asking the server for the type would take a prepared statement.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
/// The time for an answer is doubled so often at most.
const SILENCES_COUNTED_MAX: u32 = 4;
/// Large statements may take longer, as over a slow network.
const BYTES_PER_MS: u64 = 1_000;

/// Settings that would cancel or refuse statements, as the role, the database or the server has them: not as a session set
/// them, for the next transaction may be in another one.
const FOREIGN_SETTINGS: &str = "SELECT name, reset_val FROM pg_catalog.pg_settings
    WHERE name IN ('statement_timeout', 'lock_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout',
            'default_transaction_read_only', 'default_transaction_isolation', 'synchronous_commit', 'synchronous_standby_names')
        AND NOT (name, reset_val) IN (('statement_timeout', '0'), ('lock_timeout', '0'), ('transaction_timeout', '0'),
            ('idle_in_transaction_session_timeout', '0'), ('default_transaction_read_only', 'off'),
            ('default_transaction_isolation', 'read committed'), ('synchronous_standby_names', ''))
        AND NOT (name = 'synchronous_commit' AND reset_val <> 'off')
    ORDER BY name";

/// A connection that is opened on first use and again after it broke. Two tasks may share one, in turns.
pub(super) struct Connection {
    connector: Connector,
    open: Arc<Mutex<Option<Open>>>,
    retry: Backoff,
    /// How long an answer may take.
    answer: Duration,
    /// Answers that did not come, one after the other. Each leaves a statement behind that the server may still be at, so the
    /// next one is given twice the time.
    silences: u32,
}

pub(super) struct Open {
    client: Client,
    /// What a transaction begins with, if it must say anything.
    guard: Option<String>,
}

impl Open {
    async fn new(client: Client) -> Result<Open, Fault> {
        let foreign = client.query_typed(FOREIGN_SETTINGS, &[]).await?;
        let own = |row: &Row| match row.get(0) {
            "default_transaction_read_only" => "SET TRANSACTION READ WRITE;".to_owned(),
            "default_transaction_isolation" => "SET TRANSACTION ISOLATION LEVEL READ COMMITTED;".to_owned(),
            "synchronous_commit" => "SET LOCAL synchronous_commit = on;".to_owned(),
            // No poke waits for a standby: clients whose records a failover loses are told everything anew.
            "synchronous_standby_names" => "SET LOCAL synchronous_commit = local;".to_owned(),
            limit => format!("SET LOCAL {limit} = 0;"),
        };
        let guard = (!foreign.is_empty()).then(|| foreign.iter().map(own).collect());
        Ok(Open { client, guard })
    }

    /// A transaction of several statements.
    pub(super) async fn begin(&mut self) -> Result<Transaction<'_>, Fault> {
        let transaction = self.client.transaction().await?;
        // Should this process stop here, others must not wait for it.
        let guard = self.guard.as_deref().unwrap_or_default();
        transaction.batch_execute(&format!("{guard} SET LOCAL idle_in_transaction_session_timeout = '10s'")).await?;
        Ok(transaction)
    }

    /// One statement in a transaction of its own.
    pub(super) async fn query(&self, text: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, Fault> {
        let Some(guard) = &self.guard else { return Ok(self.client.query_typed(text, parameters).await?) };
        let begin = format!("BEGIN; {guard}");
        // All at once, so that it takes no longer, and no lock is held while this process is slow.
        let (begun, rows, committed) = tokio::join!(
            self.client.batch_execute(&begin),
            self.client.query_typed(text, parameters),
            self.client.batch_execute("COMMIT"),
        );
        begun?;
        let rows = rows?;
        committed?;
        Ok(rows)
    }
}

impl Connection {
    pub(super) fn new(connector: Connector, answer: Duration) -> Connection {
        Connection { connector, open: Arc::default(), retry: RETRY, answer, silences: 0 }
    }

    /// Another user of the same connection.
    pub(super) fn share(&self) -> Connection {
        Connection {
            connector: Arc::clone(&self.connector),
            open: Arc::clone(&self.open),
            retry: RETRY,
            answer: self.answer,
            silences: 0,
        }
    }

    /// Opens the connection, or says why that fails.
    async fn connect(&self) -> Result<Open, Unopened> {
        let connecting = async {
            let client = (self.connector)().await?;
            Open::new(client).await.map_err(Unopened::from)
        };
        match tokio::time::timeout(self.answer, connecting).await {
            Ok(opened) => opened,
            Err(_) => Err(Fault::Silent(self.answer).into()),
        }
    }

    /// Opens the connection now or not at all.
    pub(super) async fn try_open(&mut self) -> Result<(), Unopened> {
        let opened = self.connect().await?;
        *self.open.lock().await = Some(opened);
        Ok(())
    }

    /// The connection, for one transaction; waits until the database is there.
    pub(super) async fn opened(&mut self) -> OwnedMutexGuard<Option<Open>> {
        let mut open = Arc::clone(&self.open).lock_owned().await;
        // Whoever shares the connection waits for the same database.
        while open.as_ref().is_none_or(|open| open.client.is_closed()) {
            match self.connect().await {
                Ok(opened) => *open = Some(opened),
                Err(error) => {
                    let (pause, error) = (self.retry.pause(), error.message);
                    warn!(error, retry_ms = pause.as_millis() as u64, "CVR database: cannot connect, will retry");
                    tokio::time::sleep(pause).await;
                }
            }
        }
        open
    }

    /// One statement in a transaction of its own, whose answer may take as long as `bytes` need in addition.
    pub(super) async fn query(
        &mut self,
        text: &str,
        parameters: &[Parameter<'_>],
        bytes: usize,
    ) -> Result<Vec<Row>, Fault> {
        let within = self.patience(bytes);
        let mut open = self.opened().await;
        let query = open.as_ref().expect("opened above").query(text, parameters);
        match tokio::time::timeout(within, query).await {
            Ok(answer) => {
                self.silences = 0;
                answer
            }
            Err(_) => {
                *open = None;
                self.silences += 1;
                Err(Fault::Silent(within))
            }
        }
    }

    /// The same statement several times, each in a transaction of its own, without waiting for one's answer before the next.
    pub(super) async fn query_each<'a, P: AsRef<[Parameter<'a>]>>(
        &mut self,
        text: &str,
        parameters: &[P],
    ) -> Result<Vec<Vec<Row>>, Fault> {
        let within = self.patience(0);
        let mut open = self.opened().await;
        let opened = open.as_ref().expect("opened above");
        let all = try_join_all(parameters.iter().map(|parameters| opened.query(text, parameters.as_ref())));
        match tokio::time::timeout(within, all).await {
            Ok(answers) => {
                self.silences = 0;
                answers
            }
            Err(_) => {
                *open = None;
                self.silences += 1;
                Err(Fault::Silent(within))
            }
        }
    }

    /// Statements without parameters, as one transaction.
    pub(super) async fn run(&mut self, statements: &str) -> Result<(), Fault> {
        let within = self.patience(0);
        let mut open = self.opened().await;
        let opened = open.as_ref().expect("opened above");
        let text = format!("BEGIN; {} {statements}; COMMIT", opened.guard.as_deref().unwrap_or_default());
        match tokio::time::timeout(within, opened.client.batch_execute(&text)).await {
            Ok(done) => {
                if done.is_err() {
                    // It would stay in the transaction that failed.
                    *open = None;
                }
                Ok(done?)
            }
            Err(_) => {
                *open = None;
                self.silences += 1;
                Err(Fault::Silent(within))
            }
        }
    }

    /// How long to wait for an answer to so many bytes, or with so many.
    fn patience(&self, bytes: usize) -> Duration {
        let once = self.answer + Duration::from_millis(bytes as u64 / BYTES_PER_MS);
        once * (1 << self.silences.min(SILENCES_COUNTED_MAX))
    }

    pub(super) async fn broken(&mut self, what: &str, fault: &Fault) {
        let (error, pause) = (fault.describe(), self.retry.pause());
        let remedy = fault.entry().map(|entry| entry.remedy);
        warn!(error, remedy, retry_ms = pause.as_millis() as u64, "CVR database: cannot {what}, will retry");
        *self.open.lock().await = None;
        tokio::time::sleep(pause).await;
    }

    /// Waits for longer each time, until something succeeds.
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.retry.pause()).await;
    }

    pub(super) fn succeeded(&mut self) {
        self.retry.succeeded();
    }
}
