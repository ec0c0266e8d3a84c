//! The step: from one version to the next, for everything at once.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use protocol::error::{ErrorBody, Kind};
use rows::Version;
use tracing::info;

use crate::api::{ConnectionId, Frame};
use crate::connection::Phase;
use crate::convert::check_client_schema;
use crate::core::{Core, Event};
use crate::deliver::{Bodies, Poke};
use crate::group::GroupId;
use crate::materialisation::{MaterialisationId, State};
use crate::materialisations::Advanced;
use crate::mutations::Internal;
use crate::outgoing::Mark;

/// The writer publishes a commit right after it; if that does not come, the writer is broken and so is the process. Counted in
/// slices: when the process was stopped for a while, only one of them has passed for all threads alike.
const PUBLISH_SLICE: Duration = Duration::from_millis(100);
const PUBLISH_SLICES: u32 = 300;

/// A socket takes so much at once: three writes instead of one would be most of what a small poke costs.
const ONE_WRITE_BYTES: usize = 8 << 10;

impl Core {
    /// Brings everything to the newest version and tells whoever is concerned.
    pub(crate) fn step(&mut self, receiver: &Receiver<Event>) -> Result<(), String> {
        let timer = self.options.metrics.step_seconds.start_timer();
        let version = self.reader.begin().map_err(|e| e.to_string())?;
        let others = self.await_batches(version, receiver)?;
        self.take_schema();
        if self.rules_are_touched() {
            self.take_rules()?;
        }
        self.settle_rules();
        let advanced =
            self.materialisations.advance(self.version, version, &self.schema, &mut self.reader, &mut self.flush)?;
        self.history_bytes += advanced.history_bytes;
        let previous = std::mem::replace(&mut self.version, version);
        self.distribute(&advanced);
        self.retry_behind();
        if std::mem::take(&mut self.any_behind) {
            self.serve_all_reached();
        }
        let mark = (version > previous).then_some(Mark { commit_time_us: self.commit_time_us });
        let pokes = self.tell_groups(mark)?;
        let needs = self.submit_flush(!pokes.is_empty());
        for poke in pokes {
            // What fits one write leaves in one write. Parts of what is larger may leave before the flush: a client applies nothing
            // before the end of the poke.
            let bytes: usize = poke.frames.iter().map(Frame::len).sum();
            let parts_need = if bytes <= ONE_WRITE_BYTES { needs } else { 0 };
            let end = (needs, poke.end, poke.mark);
            self.send(poke.connection, poke.frames.into_iter().map(|f| (parts_need, f, None)).chain([end]));
        }
        self.reader.end();
        self.free_leaving();
        timer.observe_duration();
        for event in others {
            self.event(event);
        }
        Ok(())
    }

    /// Takes batches until all up to `version` are here. Returns the other events that came meanwhile.
    fn await_batches(&mut self, version: Version, receiver: &Receiver<Event>) -> Result<Vec<Event>, String> {
        let mut others = Vec::new();
        let mut slices = 0;
        while self.batches_until() < version {
            match receiver.recv_timeout(PUBLISH_SLICE) {
                Ok(event @ Event::Batch(_)) => self.event(event),
                Ok(event) => others.push(event),
                Err(RecvTimeoutError::Timeout) if slices < PUBLISH_SLICES => slices += 1,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(format!("the replica is at version {version}, but its changes were not published"));
                }
            }
        }
        self.want_step = false;
        Ok(others)
    }

    fn batches_until(&self) -> Version {
        self.materialisations.newest_batch().unwrap_or(self.version).max(self.version)
    }

    /// Takes over the newest schema of the batches above the present version.
    fn take_schema(&mut self) {
        let mut changed = None;
        let mut oldest = None;
        for batch in self.materialisations.batches_after(self.version) {
            oldest.get_or_insert(batch.commit_time_us);
            if let Some(schema) = &batch.schema {
                changed = Some(Arc::clone(schema));
            }
        }
        if let Some(oldest) = oldest {
            self.commit_time_us = oldest;
        }
        let Some(schema) = changed else { return };
        info!(tables = schema.tables.len(), "the replica's schema changed");
        self.internal = Internal::of(&schema, &self.options.clients_table, &self.options.mutations_table);
        self.schema = schema;
        self.materialisations.check_keys(&self.schema);
        let mut refused: Vec<(ConnectionId, String)> = Vec::new();
        for group in self.groups.values() {
            let Some(client_schema) = &group.record.client_schema else { continue };
            if let Err(problems) = check_client_schema(client_schema, &self.schema) {
                refused.extend(group.connections.iter().map(|id| (*id, problems.clone())));
            }
        }
        for (id, problems) in refused {
            self.reject(id, &ErrorBody::new(Kind::SchemaVersionNotSupported, problems));
        }
    }

    /// Notes for each group what happened to the materialisations it uses.
    fn distribute(&mut self, advanced: &Advanced) {
        for &id in &advanced.changed {
            for group_id in self.subscribers(id) {
                if let Some(group) = self.groups.get_mut(&group_id) {
                    group.pending.affected.push(id);
                    self.dirty.insert(group_id);
                }
            }
        }
        for &id in &advanced.renewed {
            for group_id in self.subscribers(id) {
                self.dirty.insert(group_id);
            }
        }
        for &id in &advanced.suspended {
            for group_id in self.subscribers(id) {
                self.suspend(group_id, id);
            }
        }
        for &id in &advanced.arrived {
            for group_id in self.subscribers(id) {
                self.arrived(group_id, id);
            }
        }
        for &id in &advanced.failed {
            let message = match self.materialisations.get(id).map(|m| &m.state) {
                Some(State::Failed { message, .. }) => message.clone(),
                _ => continue,
            };
            for group_id in self.subscribers(id) {
                for hash in self.hashes_of(group_id, id) {
                    self.query_failed(group_id, &hash, &message);
                }
            }
        }
    }

    /// Whoever holds rows of it joins anew, from where it is, when the rows are known again: all queries of a group move
    /// together.
    fn suspend(&mut self, group_id: GroupId, id: MaterialisationId) {
        let Some(group) = self.groups.get(&group_id) else { return };
        if group.held().all(|held| held != id) {
            return;
        }
        for id in &group.connections {
            if let Some(connection) = self.connections.get_mut(id).filter(|c| c.phase == Phase::Active) {
                connection.phase = Phase::Joining;
            }
        }
    }

    fn arrived(&mut self, group_id: GroupId, id: MaterialisationId) {
        let Some(lineage) = self.materialisations.get(id).map(|m| m.lineage) else { return };
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        for (hash, run) in &mut group.queries {
            if run.held == Some(id) {
                let holding = group.record.queries.get(hash).and_then(|q| q.holding.as_ref());
                if holding.is_some_and(|h| h.lineage != lineage) {
                    // Its history was lost: it is delivered as if it were new.
                    run.held = None;
                    run.coming = Some(id);
                }
            }
            if run.coming == Some(id) && !group.pending.arrived.contains(hash) {
                group.pending.arrived.push(hash.clone());
            }
        }
        self.dirty.insert(group_id);
    }

    fn subscribers(&self, id: MaterialisationId) -> Vec<GroupId> {
        self.materialisations.get(id).map(|m| m.subscribers.iter().copied().collect()).unwrap_or_default()
    }

    fn hashes_of(&self, group: GroupId, id: MaterialisationId) -> Vec<String> {
        let Some(group) = self.groups.get(&group) else { return Vec::new() };
        let uses = |run: &crate::group::QueryRun| run.held == Some(id) || run.coming == Some(id);
        group.queries.iter().filter(|(_, run)| uses(run)).map(|(hash, _)| hash.clone()).collect()
    }

    fn tell_groups(&mut self, mark: Option<Mark>) -> Result<Vec<Poke>, String> {
        let mut pokes = Vec::new();
        let mut bodies = Bodies::default();
        // What a group causes for another (a failed query, say) is told in the same step.
        for _ in 0..4 {
            let mut dirty: Vec<GroupId> = self.dirty.drain().collect();
            if dirty.is_empty() {
                break;
            }
            dirty.sort_unstable();
            for group in dirty {
                if self.deliver(group, mark, &mut bodies, &mut pokes)? {
                    self.join_waiting(group, &mut bodies, &mut pokes)?;
                }
            }
        }
        self.want_step |= !self.dirty.is_empty();
        Ok(pokes)
    }

    /// Connections whose cookie was ahead of the replica: it may have caught up.
    fn retry_behind(&mut self) {
        if self.behind.is_empty() {
            return;
        }
        let reached = |id: &ConnectionId| {
            let connection = self.connections.get(id);
            connection.is_none_or(|c| c.cookie.is_none_or(|cookie| cookie.version <= self.version))
        };
        let ready: Vec<ConnectionId> = self.behind.iter().copied().filter(reached).collect();
        for id in ready {
            self.resume(id);
        }
    }
}
