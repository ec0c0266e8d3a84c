//! What gives way when the node's memory for queries is full, in this order:
//!
//! 1. Encoded rows go to disk instead of memory (`spool`), and those that nobody asked for lately are dropped (`tidy`).
//! 2. Queries that nobody uses any more are forgotten before their time, the longest unused first.
//!    A query that has no room even for its own text and plan then is refused as in 4.
//! 3. The newest hydrations wait. What they had is freed; they start again when there is half as much room again as they had.
//! 4. Clients whose queries have waited for long, or whose queries were the last to come when those that are there grow beyond the
//!    budget by themselves, are told that the server is overloaded, and come back after a while.

use std::sync::Arc;
use std::time::Instant;

use protocol::ast::Ast;
use rows::Version;
use tracing::{debug, warn};

use crate::convert::KeyChoice;
use crate::core::Core;
use crate::deliver::overloaded;
use crate::group::GroupId;
use crate::limits::Limits;
use crate::materialisation::{MaterialisationId, State};
use crate::materialisations::{Materialisations, Unserved};

/// A hydration that found no room.
#[derive(Debug)]
pub struct Crowded {
    pub id: MaterialisationId,
    /// How much it had of the budget when there was no more.
    pub had: usize,
    /// Since when it waits, and when it was tried last.
    pub times: Option<(Instant, Instant)>,
    /// It is under way again.
    pub is_retried: bool,
}

impl Materialisations {
    /// A job found no room.
    pub(crate) fn crowd(&mut self, id: MaterialisationId, had: usize) {
        match self.crowded.iter_mut().find(|c| c.id == id) {
            Some(crowded) => {
                crowded.had = had;
                crowded.is_retried = false;
            }
            None => self.crowded.push(Crowded { id, had, times: None, is_retried: false }),
        }
    }

    /// Makes room if there is little, and goes on with what waits for room. Returns those whose clients must go.
    pub fn relieve(
        &mut self,
        now: Instant,
        version: Version,
        durable: Version,
        limits: &Limits,
    ) -> Vec<MaterialisationId> {
        self.measure();
        self.metrics.graph_bytes.set(i64::try_from(self.graphs.used()).unwrap_or(i64::MAX));
        let (used, max) = (self.graphs.used(), self.graphs.max());
        if !self.crowded.is_empty() || used > max / 4 * 3 {
            self.forget_unused(durable, max);
        }
        let mut overdue = self.grown_beyond(now, limits);
        let mut retry = None;
        let mut gone = Vec::new();
        for crowded in &mut self.crowded {
            let Some(m) = self.by_id.get_mut(&crowded.id) else {
                gone.push(crowded.id);
                continue;
            };
            if m.subscribers.is_empty() && !crowded.is_retried {
                m.payload_pending = false;
                if m.graph().is_some() || m.can_be_forgotten(durable) {
                    gone.push(crowded.id);
                } else {
                    m.payload_pending = true;
                }
                continue;
            }
            let (since, tried) = *crowded.times.get_or_insert((now, now));
            if now - since >= limits.crowded_max {
                overdue.push(crowded.id);
                crowded.times = Some((now, tried));
            }
            let room = max.saturating_sub(self.graphs.used());
            let is_due = now - tried >= limits.crowded_retry && room >= (crowded.had + crowded.had / 2).min(max);
            // One at a time: each would take the room from the others again.
            if is_due && !crowded.is_retried && retry.is_none() {
                crowded.is_retried = true;
                crowded.times = Some((since, now));
                retry = Some(crowded.id);
            }
        }
        self.crowded.retain(|c| !gone.contains(&c.id));
        for id in gone {
            // One that is live goes on without encoded rows; another one would wait for a job that nobody sends.
            if self.by_id.get(&id).is_some_and(|m| m.graph().is_none()) {
                self.forget_if_idle(id);
            }
        }
        if let Some(id) = retry {
            debug!("trying again what found no room");
            self.submit(id, version);
        }
        overdue
    }

    /// Counts what the live graphs and their histories take by now.
    fn measure(&mut self) {
        for m in self.by_id.values_mut() {
            if let (State::Live(graph), Some(room)) = (&m.state, &mut m.room) {
                room.share.set(room.row_bytes * graph.row_count() + m.history.size());
            }
        }
    }

    /// Forgets what nobody subscribes to, the longest unused first, until half of the budget is free.
    fn forget_unused(&mut self, durable: Version, max: usize) {
        let mut unused: Vec<(Instant, MaterialisationId)> = self
            .by_id
            .iter()
            .filter(|(_, m)| m.can_be_forgotten(durable))
            .filter_map(|(&id, m)| Some((m.idle_since?, id)))
            .collect();
        unused.sort_unstable();
        for (_, id) in unused {
            if self.graphs.used() <= max / 2 {
                break;
            }
            self.metrics.shed.with_label_values(&["query"]).inc();
            self.forget_if_idle(id);
        }
    }

    /// The newest query in use, if those that are there have grown beyond the budget.
    fn grown_beyond(&mut self, now: Instant, limits: &Limits) -> Vec<MaterialisationId> {
        let (used, max) = (self.graphs.used(), self.graphs.max());
        let is_over = used > max.saturating_add(max / 8);
        if !is_over || self.shed_at.is_some_and(|at| now - at < limits.crowded_retry) {
            return Vec::new();
        }
        let newest = self.by_id.iter().rev().find(|(_, m)| m.graph().is_some() && !m.subscribers.is_empty());
        self.shed_at = Some(now);
        newest.map(|(&id, _)| id).into_iter().collect()
    }
}

impl Core {
    /// The materialisation of a query, for which room is made first.
    pub(crate) fn materialise(
        &mut self,
        group: GroupId,
        ast: &Ast,
        keys: &Arc<KeyChoice>,
    ) -> Result<MaterialisationId, Unserved> {
        match self.materialisations.subscribe(group, ast, keys, self.version, &self.store) {
            Err(Unserved::NoRoom) => {
                let (durable, max) = (self.durable_version(), self.materialisations.graphs.max());
                self.materialisations.forget_unused(durable, max);
                self.materialisations.subscribe(group, ast, keys, self.version, &self.store)
            }
            made => made,
        }
    }

    /// Tells those who are concerned why a query of their group is not served.
    pub(crate) fn unserved(&mut self, group: GroupId, hash: &str, why: Unserved) {
        match why {
            Unserved::Query(message) => self.query_failed(group, hash, &message),
            Unserved::NoRoom => self.send_away_for_want_of_room(group),
        }
    }

    fn send_away_for_want_of_room(&mut self, group: GroupId) {
        let connections = self.groups.get(&group).map(|g| g.connections.clone()).unwrap_or_default();
        for connection in connections {
            warn!("the node has no room for a client's queries");
            self.options.metrics.shed.with_label_values(&["client"]).inc();
            self.reject(connection, &overloaded());
        }
    }

    /// Makes room, and sends clients away for whom there is none.
    pub(crate) fn relieve(&mut self, now: Instant) {
        let durable = self.durable_version();
        for id in self.materialisations.relieve(now, self.version, durable, &self.limits) {
            let groups: Vec<_> =
                self.materialisations.get(id).map(|m| m.subscribers.iter().copied().collect()).unwrap_or_default();
            for group in groups {
                self.send_away_for_want_of_room(group);
            }
        }
    }
}
