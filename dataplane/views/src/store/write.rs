//! Writes flushes in order; those that queue up share a commit. Also says from time to time that this node lives, and learns in
//! either case which groups others took over.

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus::{Histogram, IntCounter};
use rows::Version;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_postgres::Error;
use tokio_postgres::types::Type;

use super::connection::{Connection, Parameter};
use super::history::as_i64;
use super::{Event, Flush, GroupRow, NodeId, Tenure, sql};
use crate::limits::Limits;

#[derive(Clone, Debug)]
pub struct Metrics {
    pub flush_seconds: Histogram,
    pub flush_failures: IntCounter,
    /// Flushes that were refused because a group was taken over.
    pub flushes_fenced: IntCounter,
}

/// The task that writes.
pub(super) struct Writer<E> {
    connection: Connection,
    node: NodeId,
    /// Groups that others took from this node, as far as it knows.
    losses: i64,
    schema: String,
    /// The whole flush, the one for deltas only, and the one for nothing but the version.
    sql: [String; 3],
    limits: Limits,
    metrics: Metrics,
    durable: watch::Sender<u64>,
    events: Arc<E>,
}

/// What became of a flush.
enum Written {
    /// Stored, but for the records of these groups.
    Done(Vec<String>),
    /// Nothing was stored: a group was taken over.
    Fenced,
}

/// This node is not registered any more.
struct Gone;

impl<E: Fn(Event)> Writer<E> {
    pub(super) fn new(
        connection: Connection,
        node: NodeId,
        schema: &str,
        limits: Limits,
        metrics: Metrics,
        durable: watch::Sender<u64>,
        events: Arc<E>,
    ) -> Writer<E> {
        let sql = [sql::flush(schema), sql::flush_deltas(schema), sql::flush_version(schema)];
        Writer { connection, node, losses: 0, schema: schema.to_owned(), sql, limits, metrics, durable, events }
    }

    pub(super) async fn run(mut self, mut queue: mpsc::UnboundedReceiver<(u64, Flush)>) {
        let mut beat = tokio::time::interval(self.limits.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                biased;
                first = queue.recv() => first,
                _ = beat.tick() => {
                    if self.store(&Columns::default()).await.is_err() {
                        return (self.events)(Event::Gone);
                    }
                    continue;
                }
            };
            let Some((mut up_to, first)) = first else { return };
            // Everything that queued while the last commit was under way goes into the next one.
            let mut flush = Columns::default();
            flush.add(first);
            while let Ok((number, more)) = queue.try_recv() {
                up_to = number;
                flush.add(more);
            }
            let timer = self.metrics.flush_seconds.start_timer();
            let stored = self.store(&flush).await;
            timer.observe_duration();
            if stored.is_err() {
                return (self.events)(Event::Gone);
            }
            self.release(&flush).await;
            if flush.leave {
                self.leave().await;
            }
            self.connection.succeeded();
            self.durable.send_replace(up_to);
            (self.events)(Event::Flushed { up_to });
            if flush.leave {
                return;
            }
        }
    }

    /// Stores a flush, however long it takes. What is not to be told any more because of it is reported before this returns.
    async fn store(&mut self, flush: &Columns) -> Result<(), Gone> {
        loop {
            match self.write(flush).await {
                Ok(Written::Done(refused)) => {
                    for id in refused {
                        self.metrics.flushes_fenced.inc();
                        let epoch = flush.groups.get(&id).map_or(0, |g| g.epoch);
                        (self.events)(Event::Lost(Tenure { group: id, epoch }));
                    }
                    return Ok(());
                }
                Ok(Written::Fenced) => {
                    self.metrics.flushes_fenced.inc();
                    loop {
                        match self.learn_losses().await {
                            Ok(true) => break,
                            Ok(false) => return Err(Gone),
                            Err(error) => self.connection.broken("read which groups were taken over", &error).await,
                        }
                    }
                }
                Err(error) => {
                    self.metrics.flush_failures.inc();
                    self.connection.broken("flush", &error).await;
                }
            }
        }
    }

    async fn write(&mut self, f: &Columns) -> Result<Written, Error> {
        let (node, losses, version) = (self.node, self.losses, as_i64(f.version));
        let fence: [Parameter<'_>; 3] = [(&node, Type::INT8), (&version, Type::INT8), (&losses, Type::INT8)];
        let deltas: [Parameter<'_>; 3] = [
            (&f.delta_lineages, Type::INT8_ARRAY),
            (&f.delta_versions, Type::INT8_ARRAY),
            (&f.delta_entries, Type::BYTEA_ARRAY),
        ];
        let client = self.connection.client().await;
        if f.lineage_ids.is_empty() && f.groups.is_empty() {
            let rows = if f.delta_lineages.is_empty() {
                client.query_typed(&self.sql[2], &fence).await?
            } else {
                client.query_typed(&self.sql[1], &[&fence[..], &deltas[..]].concat()).await?
            };
            return Ok(if rows.is_empty() { Written::Fenced } else { Written::Done(Vec::new()) });
        }
        let now = std::time::Instant::now();
        let group_ids: Vec<&str> = f.groups.keys().map(String::as_str).collect();
        let epochs: Vec<i64> = f.groups.values().map(|g| g.epoch).collect();
        let records: Vec<&str> = f.groups.values().map(|g| g.record.as_str()).collect();
        // Arrays of arrays must be rectangular in Postgres: each list of lineages goes as the text of an array.
        let lineages: Vec<String> = f
            .groups
            .values()
            .map(|g| format!("{{{}}}", g.lineages.iter().map(i64::to_string).collect::<Vec<_>>().join(",")))
            .collect();
        let ages: Vec<i64> = f.groups.values().map(|g| as_ms(now.saturating_duration_since(g.connected_at))).collect();
        let idle: Vec<bool> = f.groups.values().map(|g| g.is_idle).collect();
        let rest: [Parameter<'_>; 10] = [
            (&f.lineage_ids, Type::INT8_ARRAY),
            (&f.lineage_keys, Type::TEXT_ARRAY),
            (&f.lineage_versions, Type::INT8_ARRAY),
            (&f.lineage_bases, Type::BYTEA_ARRAY),
            (&group_ids, Type::TEXT_ARRAY),
            (&epochs, Type::INT8_ARRAY),
            (&records, Type::TEXT_ARRAY),
            (&lineages, Type::TEXT_ARRAY),
            (&idle, Type::BOOL_ARRAY),
            (&ages, Type::INT8_ARRAY),
        ];
        let rows = client.query_typed(&self.sql[0], &[&fence[..], &deltas[..], &rest[..]].concat()).await?;
        Ok(rows.first().map_or(Written::Fenced, |row| Written::Done(row.get(0))))
    }

    /// Reports what was lost since the last time. False when the node itself is not registered any more.
    async fn learn_losses(&mut self) -> Result<bool, Error> {
        let (node, known) = (self.node, self.losses);
        let (lost, registered) = {
            let client = self.connection.client().await;
            let parameters: [Parameter<'_>; 2] = [(&node, Type::INT8), (&known, Type::INT8)];
            client.execute_typed(&sql::forget_losses(&self.schema), &parameters).await?;
            let lost = client.query_typed(&sql::losses(&self.schema), &parameters).await?;
            let registered = client.query_typed_one(&sql::is_registered(&self.schema), &parameters[..1]).await?;
            (lost, registered.get::<_, bool>(0))
        };
        for row in lost {
            self.losses = row.get(0);
            (self.events)(Event::Lost(Tenure { group: row.get(1), epoch: row.get(2) }));
        }
        Ok(registered)
    }

    async fn release(&mut self, flush: &Columns) {
        if flush.released.is_empty() {
            return;
        }
        let text = sql::release(&self.schema);
        let groups: Vec<&str> = flush.released.iter().map(|t| t.group.as_str()).collect();
        let epochs: Vec<i64> = flush.released.iter().map(|t| t.epoch).collect();
        let node = self.node;
        loop {
            let client = self.connection.client().await;
            let result = client
                .execute_typed(&text, &[(&node, Type::INT8), (&groups, Type::TEXT_ARRAY), (&epochs, Type::INT8_ARRAY)])
                .await;
            drop(client);
            match result {
                Ok(_) => return,
                Err(error) => self.connection.broken("release groups", &error).await,
            }
        }
    }

    async fn leave(&mut self) {
        let (text, node) = (sql::retire(&self.schema), self.node);
        loop {
            let client = self.connection.client().await;
            let result = client.query_typed(&text, &[(&node, Type::INT8), (&0_i64, Type::INT8)]).await;
            drop(client);
            match result {
                Ok(_) => return,
                Err(error) => self.connection.broken("leave", &error).await,
            }
        }
    }
}

pub(super) fn as_ms(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Several flushes as the columns of one statement.
#[derive(Default)]
struct Columns {
    version: Version,
    lineage_ids: Vec<i64>,
    lineage_keys: Vec<String>,
    lineage_versions: Vec<i64>,
    lineage_bases: Vec<Vec<u8>>,
    delta_lineages: Vec<i64>,
    delta_versions: Vec<i64>,
    delta_entries: Vec<Vec<u8>>,
    /// The last record of a group wins; a statement must not touch a row twice.
    groups: BTreeMap<String, GroupRow>,
    released: Vec<Tenure>,
    leave: bool,
}

impl Columns {
    fn add(&mut self, flush: Flush) {
        self.version = self.version.max(flush.version);
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
        self.released.extend(flush.released);
        self.leave |= flush.leave;
    }
}
