//! Leaving: client groups go one after the other, so that the nodes that take them over are not hit by all of them at once.
//!
//! Of each group the sockets are closed behind what is on its way to them, without an error: clients connect again at once. What
//! it changed is stored and then the group is free, so that the next node need not contest it. Groups that are not yet told are
//! served on. Who comes anew meanwhile is sent on at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::api::{ConnectionId, Frame, Outbox};
use crate::core::Core;
use crate::group::GroupId;
use crate::store::Tenure;

/// Sockets of a group that are closed behind what waits for the database. Should the group have been lost before, that must not
/// reach them.
pub struct Closing {
    group: String,
    epoch: i64,
    sockets: Vec<(ConnectionId, Outbox)>,
}

/// A database that has stored nothing for so long is not waited for. Who was sent away is caught up from what is stored.
const STALLED: Duration = Duration::from_secs(10);
/// Groups that leave per second, if time allows.
const GROUPS_PER_SECOND: u32 = 50;

pub struct Drain {
    done: Option<oneshot::Sender<()>>,
    queue: VecDeque<GroupId>,
    interval: Duration,
    next: Instant,
    /// Closed, and free as soon as what they changed is on its way to the database.
    leaving: Vec<GroupId>,
    /// The flush that ends this node's part, once it is handed over. Nothing may follow it.
    last_flush: Option<u64>,
    /// The last flush that was stored, and since when that has been so.
    stored: (u64, Instant),
}

impl Core {
    /// Begins to send everybody away, all `within` so long.
    pub(crate) fn drain(&mut self, done: oneshot::Sender<()>, within: Duration) {
        if let Some(drain) = &mut self.draining {
            drain.done = Some(done);
            return;
        }
        self.send_strangers_on();
        let mut queue: Vec<(usize, GroupId)> =
            self.groups.values().map(|group| (group.connections.len(), group.id)).collect();
        // Small ones first: that frees most groups soonest.
        queue.sort_unstable();
        let count = u32::try_from(queue.len()).unwrap_or(u32::MAX).max(1);
        let interval = (Duration::from_secs(1) / GROUPS_PER_SECOND).min(within / count);
        info!(groups = queue.len(), connections = self.connections.len(), "sending all clients away");
        self.draining = Some(Drain {
            done: Some(done),
            queue: queue.into_iter().map(|(_, id)| id).collect(),
            interval,
            next: Instant::now(),
            leaving: Vec::new(),
            last_flush: None,
            stored: (self.outgoing.durable(), Instant::now()),
        });
    }

    /// When the next group is to go.
    pub(crate) fn drain_at(&self) -> Option<Instant> {
        self.draining.as_ref().filter(|drain| !drain.queue.is_empty()).map(|drain| drain.next)
    }

    /// Sends groups away whose time has come.
    pub(crate) fn drain_due(&mut self, now: Instant) {
        while let Some(drain) = &mut self.draining
            && drain.next <= now
            && let Some(id) = drain.queue.pop_front()
        {
            drain.next += drain.interval;
            drain.leaving.push(id);
            self.options.metrics.draining_groups.set(i64::try_from(drain.queue.len()).unwrap_or(i64::MAX));
            let connections = self.groups.get(&id).map(|g| g.connections.clone()).unwrap_or_default();
            self.options.metrics.rehomes.with_label_values(&["drain"]).inc_by(connections.len() as u64);
            let mut sockets = Vec::new();
            for connection in connections {
                sockets.extend(self.connections.get(&connection).map(|c| (connection, c.outbox.clone())));
                self.close(connection, Frame::Close(Some((1001, "shutting down".into()))));
                self.disconnect(connection, None);
            }
            self.close_behind(id, sockets);
            self.want_step = true;
        }
    }

    /// Remembers sockets that are closed once what they wait for is stored.
    pub(crate) fn close_behind(&mut self, group: GroupId, sockets: Vec<(ConnectionId, Outbox)>) {
        if let Some(group) = self.groups.get(&group) {
            self.closing.push(Closing { group: group.name.clone(), epoch: group.epoch, sockets });
        }
    }

    /// What closed sockets of a lost group still wait for is void.
    pub(crate) fn void_closing(&mut self, lost: &Tenure) {
        for closing in self.closing.iter().filter(|c| c.group == lost.group && c.epoch <= lost.epoch) {
            for (id, outbox) in &closing.sockets {
                if self.outgoing.is_held(*id) {
                    self.outgoing.forget(*id);
                    // They connect again at once.
                    let _ = outbox.send(Frame::Close(Some((1001, "the client group is elsewhere".into()))));
                }
            }
        }
    }

    pub(crate) fn forget_closed(&mut self) {
        let outgoing = &self.outgoing;
        self.closing.retain(|closing| closing.sockets.iter().any(|(id, _)| outgoing.is_held(*id)));
    }

    /// Frees groups that were sent away, once a step has taken up what they changed.
    pub(crate) fn free_leaving(&mut self) {
        let Some(drain) = &mut self.draining else { return };
        let (stay, free): (Vec<GroupId>, Vec<GroupId>) =
            std::mem::take(&mut drain.leaving).into_iter().partition(|id| self.dirty.contains(id));
        drain.leaving = stay;
        let now = Instant::now();
        for id in free {
            self.unload(id, now);
        }
    }

    /// Whether everything is told, stored and free after a drain.
    pub(crate) fn finish_drain(&mut self) -> bool {
        let is_quiet = self.dirty.is_empty() && self.flush.is_empty() && self.outgoing.is_empty() && !self.want_step;
        let (all_durable, durable) = (self.all_durable(), self.outgoing.durable());
        let Some(drain) = &mut self.draining else { return false };
        if drain.stored.0 != durable {
            drain.stored = (durable, Instant::now());
        }
        if drain.queue.is_empty() && !all_durable && drain.stored.1.elapsed() >= STALLED {
            warn!("the CVR database does not answer: not waiting any longer for what clients were not told yet");
            return true;
        }
        match drain.last_flush {
            None if !(drain.queue.is_empty() && drain.leaving.is_empty() && is_quiet) => false,
            None => {
                self.flush.leave = true;
                let number = self.submit_flush(false);
                if let Some(drain) = &mut self.draining {
                    drain.last_flush = Some(number);
                }
                false
            }
            Some(_) if all_durable => {
                if let Some(done) = drain.done.take() {
                    // Dropping the sender would do; sending says that it was on purpose.
                    let _ = done.send(());
                }
                true
            }
            Some(_) => false,
        }
    }

    /// Whether this node's part is over, but for the database's answer.
    pub(crate) fn has_left(&self) -> bool {
        self.draining.as_ref().is_some_and(|drain| drain.last_flush.is_some())
    }
}
