//! Writes flushes in order; those that queue up share a commit. Also says from time to time that this node lives, and learns in
//! either case which groups others took over.
//!
//! What the database refuses for good concerns one thing and holds nobody else up: the clients of a group whose record is
//! refused are told, and a lineage whose rows are refused is forgotten in the database as a whole, so that who would be caught
//! up from it starts over.

use std::sync::Arc;

use prometheus::{Histogram, IntCounter, IntCounterVec};
use rows::Version;
use rustc_hash::FxHashSet;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_postgres::types::Type;
use tracing::{error, warn};

use super::connection::{Connection, Parameter};
use super::fault::{Class, Fault};
use super::history::as_i64;
use super::parts::{Columns, Item, Taken};
use super::{Copy, Event, Flush, LineageId, NodeId, Tenure, sql, tables};
use crate::limits::Limits;

#[derive(Clone, Debug)]
pub struct Metrics {
    pub flush_seconds: Histogram,
    pub flush_failures: IntCounter,
    /// Flushes that were refused because a group was taken over.
    pub flushes_fenced: IntCounter,
    /// Client groups that Rocicorp's server knew, by what became of them.
    pub inherited: IntCounterVec,
}

/// The task that writes.
pub(super) struct Writer<E> {
    pub connection: Connection,
    pub node: NodeId,
    pub copy: Copy,
    pub schema: String,
    pub limits: Limits,
    pub metrics: Metrics,
    pub durable: watch::Sender<u64>,
    pub events: Arc<E>,
    pub state: State,
}

#[derive(Default)]
pub(super) struct State {
    /// Groups that others took from this node, as far as it knows.
    losses: i64,
    /// Counts attempts: one that arrives late, after the next one, stores nothing.
    attempt: i64,
    /// Lineages that the database does not have because it refused them.
    refused: FxHashSet<LineageId>,
}

/// What became of a statement.
enum Written {
    /// Stored, but for the records of these groups.
    Done(Vec<String>),
    /// Nothing was stored: a group was taken over.
    Fenced,
}

/// This node is not registered any more.
struct Gone;

impl<E: Fn(Event)> Writer<E> {
    pub(super) async fn run(mut self, mut queue: mpsc::UnboundedReceiver<(u64, Flush)>) {
        let mut beat = tokio::time::interval(self.limits.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let first = tokio::select! {
                biased;
                first = queue.recv() => first,
                _ = beat.tick() => {
                    if self.store(&mut Taken::default()).await.is_err() {
                        return (self.events)(Event::Gone);
                    }
                    continue;
                }
            };
            let Some((mut up_to, first)) = first else { return };
            // Everything that queued while the last commit was under way goes into the next one, within bounds.
            let mut taken = Taken::default();
            taken.add(first, &self.state.refused);
            while !taken.is_full()
                && let Ok((number, more)) = queue.try_recv()
            {
                up_to = number;
                taken.add(more, &self.state.refused);
            }
            let timer = self.metrics.flush_seconds.start_timer();
            let stored = self.store(&mut taken).await;
            timer.observe_duration();
            if stored.is_err() {
                return (self.events)(Event::Gone);
            }
            self.release(&taken.released).await;
            if taken.leave {
                self.leave().await;
            }
            self.connection.succeeded();
            self.durable.send_replace(up_to);
            (self.events)(Event::Flushed { up_to });
            if taken.leave {
                return;
            }
        }
    }

    /// Stores what was taken, however long it takes. What is not to be told any more because of it is reported before this
    /// returns.
    async fn store(&mut self, taken: &mut Taken) -> Result<(), Gone> {
        let mut parts = taken.parts();
        while let Some(mut part) = parts.pop_front() {
            if let Some(at) = part.iter().position(Item::is_too_large) {
                let item = part.remove(at);
                self.refuse(item, "it is too large").await;
                parts.push_front(part);
                continue;
            }
            match self.write(taken.version, &part).await {
                Ok(Written::Done(lost)) => {
                    for id in lost {
                        self.metrics.flushes_fenced.inc();
                        (self.events)(Event::Lost(Tenure { epoch: epoch_of(&part, &id), group: id }));
                    }
                    continue;
                }
                Ok(Written::Fenced) => {
                    self.metrics.flushes_fenced.inc();
                    self.learn_all_losses().await?;
                }
                Err(fault) => {
                    self.metrics.flush_failures.inc();
                    match fault.class() {
                        Class::Missing => self.make_anew(&fault).await,
                        Class::Refused if part.len() > 1 => parts.push_front(part.split_off(part.len() / 2)),
                        Class::Refused if !part.is_empty() => {
                            for item in part.drain(..) {
                                self.refuse(item, &fault.describe()).await;
                            }
                        }
                        Class::Refused | Class::Passes => self.connection.broken("flush", &fault).await,
                    }
                }
            }
            parts.push_front(part);
        }
        Ok(())
    }

    async fn write(&mut self, version: Version, part: &[Item]) -> Result<Written, Fault> {
        self.state.attempt += 1;
        let (node, losses, version, attempt) = (self.node, self.state.losses, as_i64(version), self.state.attempt);
        let fence: [Parameter<'_>; 4] =
            [(&node, Type::INT8), (&version, Type::INT8), (&losses, Type::INT8), (&attempt, Type::INT8)];
        let c = Columns::of(part);
        let delta_lineages: Vec<i64> = c.deltas.iter().map(|d| d.lineage).collect();
        let delta_versions: Vec<i64> = c.deltas.iter().map(|d| as_i64(d.version)).collect();
        let delta_entries: Vec<&[u8]> = c.deltas.iter().map(|d| &*d.entries).collect();
        let deltas: [Parameter<'_>; 3] = [
            (&delta_lineages, Type::INT8_ARRAY),
            (&delta_versions, Type::INT8_ARRAY),
            (&delta_entries, Type::BYTEA_ARRAY),
        ];
        if c.lineages.is_empty() && c.groups.is_empty() {
            let rows = if c.deltas.is_empty() {
                self.connection.query(&sql::flush_version(&self.schema), &fence, 0).await?
            } else {
                let all = [&fence[..], &deltas[..]].concat();
                self.connection.query(&sql::flush_deltas(&self.schema), &all, c.bytes).await?
            };
            return Ok(if rows.is_empty() { Written::Fenced } else { Written::Done(Vec::new()) });
        }
        let now = std::time::Instant::now();
        let lineage_ids: Vec<i64> = c.lineages.iter().map(|l| l.id).collect();
        let lineage_keys: Vec<&str> = c.lineages.iter().map(|l| &*l.key).collect();
        let lineage_versions: Vec<i64> = c.lineages.iter().map(|l| as_i64(l.version)).collect();
        let lineage_bases: Vec<&[u8]> = c.lineages.iter().map(|l| &*l.base).collect();
        let group_ids: Vec<&str> = c.groups.iter().map(|g| &*g.id).collect();
        let epochs: Vec<i64> = c.groups.iter().map(|g| g.epoch).collect();
        let records: Vec<&str> = c.groups.iter().map(|g| g.record.as_str()).collect();
        // Arrays of arrays must be rectangular in Postgres: each list of lineages goes as the text of an array.
        let list = |ids: &[i64]| format!("{{{}}}", ids.iter().map(i64::to_string).collect::<Vec<_>>().join(","));
        let named: Vec<String> = c.groups.iter().map(|g| list(&g.lineages)).collect();
        let ages: Vec<i64> = c.groups.iter().map(|g| as_ms(now.saturating_duration_since(g.connected_at))).collect();
        let idle: Vec<bool> = c.groups.iter().map(|g| g.is_idle).collect();
        let lineages: [Parameter<'_>; 4] = [
            (&lineage_ids, Type::INT8_ARRAY),
            (&lineage_keys, Type::TEXT_ARRAY),
            (&lineage_versions, Type::INT8_ARRAY),
            (&lineage_bases, Type::BYTEA_ARRAY),
        ];
        let groups: [Parameter<'_>; 6] = [
            (&group_ids, Type::TEXT_ARRAY),
            (&epochs, Type::INT8_ARRAY),
            (&records, Type::TEXT_ARRAY),
            (&named, Type::TEXT_ARRAY),
            (&idle, Type::BOOL_ARRAY),
            (&ages, Type::INT8_ARRAY),
        ];
        let rows = if c.lineages.is_empty() && c.deltas.is_empty() {
            self.connection
                .query(&sql::flush_records(&self.schema), &[&fence[..], &groups[..]].concat(), c.bytes)
                .await?
        } else {
            let all = [&fence[..], &deltas[..], &lineages[..], &groups[..]].concat();
            self.connection.query(&sql::flush(&self.schema), &all, c.bytes).await?
        };
        Ok(rows.first().map_or(Written::Fenced, |row| Written::Done(row.get(0))))
    }

    /// Goes on without what the database will never take.
    async fn refuse(&mut self, item: Item, reason: &str) {
        let lineage = match item {
            Item::Group(group) => {
                error!(
                    reason,
                    bytes = group.record.len(),
                    "CVR: a client group's record cannot be stored; its clients are told"
                );
                return (self.events)(Event::Refused(Tenure { group: group.id, epoch: group.epoch }));
            }
            Item::Lineage(lineage) => lineage.id,
            Item::Delta(delta) => delta.lineage,
        };
        error!(reason, lineage, "CVR: the rows of a query cannot be stored; clients that come back to it start over");
        self.state.refused.insert(lineage);
        let text = sql::forget_lineage(&self.schema);
        while let Err(fault) = self.connection.query(&text, &[(&lineage, Type::INT8)], 0).await {
            self.connection.broken("forget a history", &fault).await;
        }
    }

    /// Tables that somebody dropped: what they held is gone, and what is still known here is stored again.
    async fn make_anew(&mut self, fault: &Fault) {
        warn!(error = fault.describe(), "CVR database: tables are missing; they are made anew");
        let (node, losses, version) = (self.node, self.state.losses, as_i64(self.copy.version));
        let made = match self.connection.run(&tables::create(&self.schema)).await {
            Ok(()) => {
                let own: [Parameter<'_>; 4] =
                    [(&node, Type::INT8), (&losses, Type::INT8), (&self.copy.id, Type::TEXT), (&version, Type::INT8)];
                self.connection.query(&sql::register_again(&self.schema), &own, 0).await.map(|_| ())
            }
            Err(fault) => Err(fault),
        };
        match made {
            Ok(()) => {
                (self.events)(Event::MadeAnew);
                self.connection.pause().await;
            }
            Err(fault) => self.connection.broken("make tables", &fault).await,
        }
    }

    async fn learn_all_losses(&mut self) -> Result<(), Gone> {
        loop {
            match self.learn_losses().await {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(Gone),
                Err(fault) if fault.class() == Class::Missing => self.make_anew(&fault).await,
                Err(fault) => self.connection.broken("read which groups were taken over", &fault).await,
            }
        }
    }

    /// Reports what was lost since the last time. False when the node itself is not registered any more.
    async fn learn_losses(&mut self) -> Result<bool, Fault> {
        let (node, known) = (self.node, self.state.losses);
        let parameters: [Parameter<'_>; 2] = [(&node, Type::INT8), (&known, Type::INT8)];
        self.connection.query(&sql::forget_losses(&self.schema), &parameters, 0).await?;
        let lost = self.connection.query(&sql::losses(&self.schema), &parameters, 0).await?;
        let registered = self.connection.query(&sql::is_registered(&self.schema), &parameters[..1], 0).await?;
        for row in lost {
            self.state.losses = row.get(0);
            (self.events)(Event::Lost(Tenure { group: row.get(1), epoch: row.get(2) }));
        }
        Ok(registered.first().is_some_and(|row| row.get(0)))
    }

    async fn release(&mut self, released: &[Tenure]) {
        if released.is_empty() {
            return;
        }
        let text = sql::release(&self.schema);
        let groups: Vec<&str> = released.iter().map(|t| t.group.as_str()).collect();
        let epochs: Vec<i64> = released.iter().map(|t| t.epoch).collect();
        let node = self.node;
        let parameters: [Parameter<'_>; 3] =
            [(&node, Type::INT8), (&groups, Type::TEXT_ARRAY), (&epochs, Type::INT8_ARRAY)];
        while let Err(fault) = self.connection.query(&text, &parameters, 0).await {
            match fault.class() {
                // Nothing is owned in tables that are not there.
                Class::Missing => return,
                Class::Refused | Class::Passes => self.connection.broken("release groups", &fault).await,
            }
        }
    }

    async fn leave(&mut self) {
        let (text, node) = (sql::retire(&self.schema), self.node);
        while let Err(fault) = self.connection.query(&text, &[(&node, Type::INT8), (&0_i64, Type::INT8)], 0).await {
            match fault.class() {
                Class::Missing => return,
                Class::Refused | Class::Passes => self.connection.broken("leave", &fault).await,
            }
        }
    }
}

fn epoch_of(part: &[Item], group: &str) -> i64 {
    let epoch = |item: &Item| match item {
        Item::Group(row) if row.id == group => Some(row.epoch),
        _ => None,
    };
    part.iter().find_map(epoch).unwrap_or(0)
}

pub(super) fn as_ms(duration: std::time::Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
