//! Clients that read more slowly than things change for them.
//!
//! While much waits for a connection, be it for its socket or for the database, it is told nothing more: it joins anew from its
//! cookie, by the difference, when that has gone. So however slowly a client reads, it is owed one answer of any size, whose
//! bytes are in the spool, and a little beside it; and what changed twice meanwhile is sent once.

use crate::api::ConnectionId;
use crate::connection::Phase;
use crate::core::{Core, Event};
use crate::group::GroupId;

/// What may wait for one connection before it is told nothing more, if all connections together stay within their share.
const BACKLOG_BYTES_MAX: usize = 1 << 20;
const BACKLOG_BYTES_MIN: usize = 16 << 10;

impl Core {
    /// What may wait for one connection.
    fn backlog_bytes_max(&self) -> usize {
        let share = self.limits.backlog_bytes / self.connections.len().max(1);
        share.clamp(BACKLOG_BYTES_MIN.min(self.limits.backlog_bytes), BACKLOG_BYTES_MAX)
    }

    /// Whether too much waits for a connection to tell it more.
    fn is_congested(&self, id: ConnectionId) -> bool {
        let queued = self.connections.get(&id).map_or(0, |c| c.outbox.queued());
        queued + self.outgoing.held_bytes(id) > self.backlog_bytes_max()
    }

    /// Takes those of a group's active connections for which too much waits out of its pokes.
    pub(crate) fn hold_back(&mut self, group: GroupId) {
        let Some(group) = self.groups.get(&group) else { return };
        let congested: Vec<ConnectionId> = group
            .connections
            .iter()
            .copied()
            .filter(|id| self.connections.get(id).is_some_and(|c| c.phase == Phase::Active) && self.is_congested(*id))
            .collect();
        for id in congested {
            self.options.metrics.held_back.inc();
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.phase = Phase::Joining;
            }
        }
    }

    /// Whether a connection has taken enough to be told more. If not, its group is looked at again when it has.
    pub(crate) fn has_drained(&mut self, id: ConnectionId) -> bool {
        if !self.is_congested(id) {
            return true;
        }
        let low = self.backlog_bytes_max() / 2;
        let Some(connection) = self.connections.get(&id) else { return false };
        if self.outgoing.is_held(id) {
            // Nothing behind it moves before the database has answered.
            self.held_back.insert(id);
        } else {
            let events = self.events.clone();
            connection.outbox.when_drained(low, move || {
                let _ = events.send(Event::Drained(id));
            });
        }
        false
    }

    /// Looks again at a connection that was held back.
    pub(crate) fn drained(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get(&id) {
            self.dirty.insert(connection.group);
            self.want_step = true;
        }
    }

    /// Looks again at those for which the database has answered.
    pub(crate) fn look_at_held_back(&mut self) {
        let free: Vec<ConnectionId> = self.held_back.iter().copied().filter(|id| !self.outgoing.is_held(*id)).collect();
        for id in free {
            self.held_back.remove(&id);
            self.drained(id);
        }
    }
}
