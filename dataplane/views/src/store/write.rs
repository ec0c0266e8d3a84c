//! Writes flushes in order; those that queue up share a commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus::{Histogram, IntCounter};
use tokio::sync::{mpsc, watch};
use tokio_postgres::Error;

use super::connection::{Connection, Connector, describe};
use super::history::as_i64;
use super::{Event, Flush, GroupRow, sql};

#[derive(Clone, Debug)]
pub struct Metrics {
    pub flush_seconds: Histogram,
    pub flush_failures: IntCounter,
}

/// The task that writes.
pub(super) struct Writer<E> {
    connection: Connection,
    /// The whole flush, and the one for deltas only.
    sql: [String; 2],
    metrics: Metrics,
    durable: watch::Sender<u64>,
    events: Arc<E>,
}

impl<E: Fn(Event)> Writer<E> {
    pub(super) fn new(
        connector: Connector,
        schema: &str,
        metrics: Metrics,
        durable: watch::Sender<u64>,
        events: Arc<E>,
    ) -> Writer<E> {
        let sql = [sql::flush(schema), sql::flush_deltas(schema)];
        Writer { connection: Connection::new(connector), sql, metrics, durable, events }
    }

    pub(super) async fn run(mut self, mut queue: mpsc::UnboundedReceiver<(u64, Flush)>) {
        while let Some((mut up_to, first)) = queue.recv().await {
            // Everything that queued while the last commit was under way goes into the next one.
            let mut flush = Columns::default();
            flush.add(first);
            while let Ok((number, more)) = queue.try_recv() {
                up_to = number;
                flush.add(more);
            }
            let timer = self.metrics.flush_seconds.start_timer();
            while let Err(error) = self.write(&flush).await {
                self.metrics.flush_failures.inc();
                self.connection.broken("flush", &describe(&error)).await;
            }
            timer.observe_duration();
            self.connection.succeeded();
            self.durable.send_replace(up_to);
            (self.events)(Event::Flushed { up_to });
        }
    }

    async fn write(&mut self, f: &Columns) -> Result<(), Error> {
        if f.is_empty() {
            return Ok(());
        }
        if f.lineage_ids.is_empty() && f.groups.is_empty() {
            let (client, statement) = self.connection.prepared(&self.sql[1]).await;
            client.execute(&statement, &[&f.delta_lineages, &f.delta_versions, &f.delta_entries]).await?;
            return Ok(());
        }
        let group_ids: Vec<&str> = f.groups.keys().map(String::as_str).collect();
        let group_records: Vec<&str> = f.groups.values().map(|g| g.record.as_str()).collect();
        // Arrays of arrays must be rectangular in Postgres: each list of lineages goes as the text of an array.
        let group_lineages: Vec<String> = f
            .groups
            .values()
            .map(|g| format!("{{{}}}", g.lineages.iter().map(i64::to_string).collect::<Vec<_>>().join(",")))
            .collect();
        let (client, statement) = self.connection.prepared(&self.sql[0]).await;
        client
            .execute(
                &statement,
                &[
                    &f.lineage_ids,
                    &f.lineage_keys,
                    &f.lineage_versions,
                    &f.lineage_bases,
                    &f.delta_lineages,
                    &f.delta_versions,
                    &f.delta_entries,
                    &group_ids,
                    &group_records,
                    &group_lineages,
                ],
            )
            .await?;
        Ok(())
    }
}

/// Several flushes as the columns of one statement.
#[derive(Default)]
struct Columns {
    lineage_ids: Vec<i64>,
    lineage_keys: Vec<String>,
    lineage_versions: Vec<i64>,
    lineage_bases: Vec<Vec<u8>>,
    delta_lineages: Vec<i64>,
    delta_versions: Vec<i64>,
    delta_entries: Vec<Vec<u8>>,
    /// The last record of a group wins; a statement must not touch a row twice.
    groups: BTreeMap<String, GroupRow>,
}

impl Columns {
    fn add(&mut self, flush: Flush) {
        for lineage in flush.lineages {
            self.lineage_ids.push(lineage.id);
            self.lineage_keys.push(lineage.key);
            self.lineage_versions.push(as_i64(lineage.version));
            self.lineage_bases.push(lineage.base);
        }
        for delta in flush.deltas {
            self.delta_lineages.push(delta.lineage);
            self.delta_versions.push(as_i64(delta.version));
            self.delta_entries.push(delta.entries);
        }
        for group in flush.groups {
            self.groups.insert(group.id.clone(), group);
        }
    }

    fn is_empty(&self) -> bool {
        self.lineage_ids.is_empty() && self.delta_lineages.is_empty() && self.groups.is_empty()
    }
}
