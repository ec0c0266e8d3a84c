//! Statements of one transaction that are sent without waiting for each other's answers.

use std::pin::Pin;

use futures_util::future::{MaybeDone, maybe_done};
use tokio_postgres::{Client, Error, Row};

use crate::statement::Statement;

/// What every transaction begins with. What a role or a session sets for itself must not decide whether a statement does what it
/// says; what triggers of the application see (path, zone, styles) stays as it is, and nothing here depends on it.
const BEGIN: &str = "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE NOT DEFERRABLE;
    SET LOCAL statement_timeout = '50s'; SET LOCAL lock_timeout = '30s';
    SET LOCAL idle_in_transaction_session_timeout = '60s'; SET LOCAL row_security = off;
    SET LOCAL standard_conforming_strings = on";

type Answer = Result<Vec<Row>, Error>;
type Sent<'c> = Pin<Box<MaybeDone<Pin<Box<dyn Future<Output = Answer> + Send + 'c>>>>>;

/// One transaction on a connection.
pub(crate) struct Pipeline<'c> {
    client: &'c Client,
    sent: Vec<Sent<'c>>,
}

impl<'c> Pipeline<'c> {
    pub(crate) async fn begin(client: &'c Client) -> Pipeline<'c> {
        let mut pipeline = Pipeline { client, sent: Vec::new() };
        pipeline.batch(BEGIN).await;
        pipeline
    }

    async fn batch(&mut self, sql: &'static str) {
        let client = self.client;
        self.submit(Box::pin(async move { client.batch_execute(sql).await.map(|()| Vec::new()) })).await;
    }

    /// Sends; the place of its answer among all answers is the order of sending.
    pub(crate) async fn send(&mut self, statement: Statement) {
        let client = self.client;
        self.submit(Box::pin(async move {
            let parameters: Vec<_> = statement.parameters.iter().map(crate::statement::Parameter::typed).collect();
            client.query_typed(&statement.sql, &parameters).await
        }))
        .await;
    }

    async fn submit(&mut self, query: Pin<Box<dyn Future<Output = Answer> + Send + 'c>>) {
        let mut query: Sent<'c> = Box::pin(maybe_done(query));
        // The driver sends when it is first asked.
        let _ = futures_util::poll!(query.as_mut());
        self.sent.push(query);
    }

    /// The answers to what was sent since the last call, in order. What follows an error is refused by the server.
    pub(crate) async fn answers(&mut self) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(self.sent.len());
        for mut query in self.sent.drain(..) {
            query.as_mut().await;
            answers.extend(query.as_mut().take_output());
        }
        answers
    }

    pub(crate) async fn commit(self) -> Result<(), Error> {
        // A transaction that failed already answers COMMIT with a rollback and no error: the caller looked at every answer.
        self.client.batch_execute("COMMIT").await
    }

    pub(crate) async fn roll_back(self) -> Result<(), Error> {
        self.client.batch_execute("ROLLBACK").await
    }
}
