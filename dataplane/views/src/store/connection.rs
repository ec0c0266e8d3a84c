//! A connection to the CVR database that comes back when it breaks.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio_postgres::{Client, Error, Statement};
use tracing::warn;

/// Opens a connection to the CVR database; the error is for a log line and has no secrets.
pub type Connector = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Client, String>> + Send>> + Send + Sync>;

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A connection that is opened on first use and again after it broke.
pub(super) struct Connection {
    connector: Connector,
    pub(super) open: Option<(Client, FxHashMap<String, Statement>)>,
    retry: Duration,
}

impl Connection {
    pub(super) fn new(connector: Connector) -> Connection {
        Connection { connector, open: None, retry: RETRY_MIN }
    }

    /// The client and the prepared form of `text`; waits until the database is there.
    pub(super) async fn prepared(&mut self, text: &str) -> (&Client, Statement) {
        loop {
            if let Some((client, statements)) = &mut self.open {
                if let Some(statement) = statements.get(text) {
                    let statement = statement.clone();
                    // Borrowed anew because of the early return inside the loop.
                    let client = &self.open.as_ref().expect("checked above").0;
                    return (client, statement);
                }
                match client.prepare(text).await {
                    Ok(statement) => {
                        statements.insert(text.to_owned(), statement);
                        continue;
                    }
                    Err(error) => self.broken("prepare a statement", &error.to_string()).await,
                }
            }
            match (self.connector)().await {
                Ok(client) => self.open = Some((client, FxHashMap::default())),
                Err(error) => self.broken("connect", &error).await,
            }
        }
    }

    pub(super) async fn broken(&mut self, what: &str, error: &str) {
        warn!(error, retry_ms = self.retry.as_millis() as u64, "CVR database: cannot {what}, will retry");
        self.open = None;
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
