//! Answers questions and tidies up.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, Interval, MissedTickBehavior};
use tokio_postgres::Error;
use tracing::{info, warn};

use super::connection::{Connection, Connector, describe};
use super::history::{Delta, History, as_i64, as_version};
use super::{Event, LineageId, Request, Touched, sql};
use crate::limits::Limits;

/// Ticks for the first time after one period.
fn interval_after(period: Duration) -> Interval {
    let mut interval = tokio::time::interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// The task that reads.
pub(super) struct Answerer<E> {
    connection: Connection,
    schema: String,
    purge_hours: i32,
    limits: Limits,
    durable: watch::Receiver<u64>,
    events: Arc<E>,
}

impl<E: Fn(Event)> Answerer<E> {
    pub(super) fn new(
        connector: Connector,
        schema: String,
        purge_hours: i32,
        limits: Limits,
        durable: watch::Receiver<u64>,
        events: Arc<E>,
    ) -> Answerer<E> {
        Answerer { connection: Connection::new(connector), schema, purge_hours, limits, durable, events }
    }

    pub(super) async fn run(mut self, mut requests: mpsc::UnboundedReceiver<(u64, Request)>) {
        let mut merge = interval_after(self.limits.merge_interval);
        let mut purge = interval_after(self.limits.purge_interval);
        loop {
            tokio::select! {
                biased;
                request = requests.recv() => {
                    let Some((after, request)) = request else { return };
                    if self.durable.wait_for(|durable| *durable >= after).await.is_err() {
                        return;
                    }
                    loop {
                        match self.answer(&request).await {
                            Ok(event) => {
                                (self.events)(event);
                                break;
                            }
                            Err(error) => self.connection.broken("read", &describe(&error)).await,
                        }
                    }
                    self.connection.succeeded();
                }
                _ = merge.tick() => {
                    if let Err(error) = self.merge_fragmented().await {
                        self.connection.broken("tidy up", &describe(&error)).await;
                    }
                }
                _ = purge.tick() => (self.events)(Event::PurgeDue),
            }
        }
    }

    async fn answer(&mut self, request: &Request) -> Result<Event, Error> {
        Ok(match request {
            Request::Group { id } => {
                let (client, statement) = self.connection.prepared(&sql::load_group(&self.schema)).await;
                let row = client.query_opt(&statement, &[id]).await?;
                Event::Group { id: id.clone(), record: row.map(|r| r.get(0)) }
            }
            Request::RowSet { lineage } => {
                let rows = self.history(*lineage).await?.and_then(|history| history.latest(*lineage));
                Event::RowSet { lineage: *lineage, rows }
            }
            Request::Touched { lineage, since, held } => {
                let rows =
                    self.history(*lineage).await?.and_then(|history| history.touched(*lineage, since.version, *held));
                Event::Touched(Touched { lineage: *lineage, since: *since, held: *held, rows })
            }
            Request::Purge { lineages, groups } => Event::Purged { lineages: self.purge(lineages, groups).await? },
        })
    }

    async fn history(&mut self, lineage: LineageId) -> Result<Option<History>, Error> {
        let (client, statement) = self.connection.prepared(&sql::load_base(&self.schema)).await;
        let Some(row) = client.query_opt(&statement, &[&lineage]).await? else {
            return Ok(None);
        };
        let base_version = as_version(row.get(0));
        let base: Vec<u8> = row.get(1);
        let hours = self.purge_hours;
        let (client, statement) = self.connection.prepared(&sql::load_deltas(&self.schema)).await;
        let deltas = client
            .query(&statement, &[&lineage, &hours])
            .await?
            .into_iter()
            .map(|row| Delta { version: as_version(row.get(0)), entries: row.get(1), old: row.get(2) })
            .collect();
        Ok(Some(History { base_version, base, deltas }))
    }

    async fn purge(&mut self, lineages: &[LineageId], groups: &[String]) -> Result<Vec<LineageId>, Error> {
        let hours = self.purge_hours;
        let (client, statement) = self.connection.prepared(&sql::touch_groups(&self.schema)).await;
        client.execute(&statement, &[&groups]).await?;
        let (client, statement) = self.connection.prepared(&sql::touch_lineages(&self.schema)).await;
        client.execute(&statement, &[&lineages]).await?;
        let (client, statement) = self.connection.prepared(&sql::purge_groups(&self.schema)).await;
        let groups = client.execute(&statement, &[&hours]).await?;
        let (client, statement) = self.connection.prepared(&sql::purge_lineages(&self.schema)).await;
        let gone: Vec<LineageId> =
            client.query(&statement, &[&hours]).await?.into_iter().map(|row| row.get(0)).collect();
        if groups > 0 || !gone.is_empty() {
            info!(groups, lineages = gone.len(), "forgot what was away too long");
        }
        Ok(gone)
    }

    async fn merge_fragmented(&mut self) -> Result<(), Error> {
        let least = self.limits.merge_deltas;
        let (client, statement) = self.connection.prepared(&sql::fragmented(&self.schema)).await;
        let lineages: Vec<i64> = client.query(&statement, &[&least]).await?.into_iter().map(|r| r.get(0)).collect();
        for lineage in lineages {
            self.merge(lineage).await?;
        }
        Ok(())
    }

    async fn merge(&mut self, lineage: LineageId) -> Result<(), Error> {
        let Some(history) = self.history(lineage).await? else {
            return Ok(());
        };
        let (merged, rebased) = match (history.merged(), history.rebased()) {
            (Ok(merged), Ok(rebased)) => (merged, rebased),
            (Err(error), _) | (_, Err(error)) => {
                warn!(lineage, %error, "CVR: left a damaged history alone");
                return Ok(());
            }
        };
        let Some((client, _)) = &mut self.connection.open else { return Ok(()) };
        let transaction = client.transaction().await?;
        if let Some(merged) = merged {
            let first = as_i64(history.deltas[merged.from].version);
            // The newest of those that were read: newer ones may have come since.
            let last = history.deltas.last().map_or(first, |d| as_i64(d.version));
            transaction.execute(&sql::delete_deltas(&self.schema), &[&lineage, &first, &last]).await?;
            transaction.execute(&sql::insert_delta(&self.schema), &[&lineage, &last, &merged.entries]).await?;
        }
        if let Some((version, base)) = rebased {
            let version = as_i64(version);
            transaction.execute(&sql::delete_deltas(&self.schema), &[&lineage, &0_i64, &version]).await?;
            transaction.execute(&sql::rebase(&self.schema), &[&lineage, &version, &base]).await?;
        }
        transaction.commit().await
    }
}
