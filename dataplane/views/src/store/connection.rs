//! A connection to the CVR database that comes back when it breaks.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};
use tracing::warn;

use super::session::Session;

/// Opens a connection to the CVR database; the error is for a log line and has no secrets.
pub type Connector = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Client, String>> + Send>> + Send + Sync>;

/// A value for a statement, with its type: asking the server for the type would take a prepared statement.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A connection that is opened on first use and again after it broke. Two tasks may share one, in turns.
pub(super) struct Connection {
    connector: Connector,
    open: Arc<Mutex<Option<Session>>>,
    retry: Duration,
}

impl Connection {
    pub(super) fn new(connector: Connector) -> Connection {
        Connection { connector, open: Arc::default(), retry: RETRY_MIN }
    }

    /// Another user of the same connection.
    pub(super) fn share(&self) -> Connection {
        Connection { connector: Arc::clone(&self.connector), open: Arc::clone(&self.open), retry: RETRY_MIN }
    }

    /// The session, for one transaction; waits until the database is there.
    pub(super) async fn client(&mut self) -> MappedMutexGuard<'_, Session> {
        let mut open = self.open.lock().await;
        // Whoever shares the connection waits for the same database.
        while open.as_ref().is_none_or(Session::is_closed) {
            match (self.connector)().await {
                Ok(client) => *open = Some(Session::new(client)),
                Err(error) => {
                    warn!(error, retry_ms = self.retry.as_millis() as u64, "CVR database: cannot connect, will retry");
                    tokio::time::sleep(self.retry).await;
                    self.retry = (self.retry * 2).min(RETRY_MAX);
                }
            }
        }
        MutexGuard::map(open, |open| open.as_mut().expect("opened above"))
    }

    pub(super) async fn broken(&mut self, what: &str, error: &Error) {
        let error = describe(error);
        warn!(error, retry_ms = self.retry.as_millis() as u64, "CVR database: cannot {what}, will retry");
        *self.open.lock().await = None;
        tokio::time::sleep(self.retry).await;
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }

    pub(super) fn succeeded(&mut self) {
        self.retry = RETRY_MIN;
    }
}

/// The server's message without the statement's parameters.
pub(super) fn describe(error: &Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => error.to_string(),
    }
}
