//! Which node serves a client group, and what follows from that.
//!
//! One node at a time owns a group, in the CVR database. A connection that was let in (`door`) claims its group if it is not in
//! memory; the node that had it learns of its loss with its next flush, or a heartbeat later, and sends its clients away
//! (`Rehome`, to be followed at once). Nothing depends on clocks, leases or the loser's being quick, only on this:
//!
//! * A node writes the version up to which it is going to tell clients (its *mark*) in every flush, before the ends of the pokes
//!   that reach so far. A flush that does not know of all groups that the node lost stores nothing, not even the mark.
//! * Who takes a group reads the loser's mark while the loser's flushes wait. So the mark is the *bound* of the cookies that the
//!   loser's clients have or may still be sent, be it after a pause of hours; cookies with a counter are in the record.
//! * The new owner says nothing before its replica has reached the bound, and everything it says has a greater cookie. A client
//!   that comes with any older cookie, even one that it got from the loser after the take-over, is told all that it missed.
//!
//! So pokes need no look at the owner each: they ride on the mark of the flush that they wait for anyway. Only a record names its
//! owner, and one that was written too late is refused by the database and its pokes are dropped.
//!
//! Two nodes with sockets of one group (tabs that a proxy without stickiness sends to different nodes) would take it from each
//! other for ever, as whoever is sent away comes back somewhere. Therefore:
//!
//! * A connect that was accepted before the owner's newest one does not take the group.
//! * Each time a group is taken from a node that lives, the new owner keeps it for longer against others: half a second, then
//!   twice as long, up to eight seconds; a quiet minute ends that. Those who come elsewhere meanwhile are told to try again in
//!   a moment. With any routing that reaches the owner with some probability, all its clients get there. Where routing never
//!   lets two tabs meet, they are served in turns of eight seconds.
//! * A node that has no connection of the group, that drained, or that is no more, keeps nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::error::ErrorBody;
use rows::{Cookie, Version};
use tracing::{info, warn};

use crate::api::ConnectionId;
use crate::core::Core;
use crate::group::record::Record;
use crate::group::{Group, GroupId, Standing};
use crate::store::{Claim, FIRST_EPOCH, Request, Tenure, Verdict};

/// To try elsewhere after, when this node cannot serve the group and it is not known who can.
const RETRY: Duration = Duration::from_secs(2);
/// Who comes to a node that does not own the group may reach the owner at the next attempt.
const RETRY_ELSEWHERE: Duration = Duration::from_millis(200);

impl Core {
    /// The group of that name, in memory from now on. It is claimed when a connection can be served.
    pub(crate) fn group_named(&mut self, name: &str) -> GroupId {
        if let Some(&id) = self.group_names.get(name) {
            return id;
        }
        self.next_group += 1;
        let id = GroupId(self.next_group);
        self.group_names.insert(name.to_owned(), id);
        self.groups.insert(id, Group::new(id, name.to_owned()));
        id
    }

    /// Asks to own the group, unless that was done.
    pub(crate) fn claim(&mut self, id: GroupId) {
        let version = self.version;
        let Some(group) = self.groups.get_mut(&id) else { return };
        if matches!(group.standing, Standing::Unclaimed) {
            group.standing = Standing::Claimed;
            self.store.ask(Request::Claim(Claim {
                group: group.name.clone(),
                connected_at: group.connected_at,
                version,
                schema: Arc::clone(&self.schema),
                lineage: self.materialisations.reserve_lineage(),
            }));
        }
    }

    /// Takes the answer to a claim.
    pub(crate) fn claimed(&mut self, name: &str, verdict: Verdict) {
        let id = self.group_names.get(name).copied();
        let is_waiting =
            id.and_then(|id| self.groups.get(&id)).is_some_and(|group| matches!(group.standing, Standing::Claimed));
        let Some(id) = id.filter(|_| is_waiting) else {
            // Nobody waits for it any more.
            let is_known = id.is_some();
            if let Verdict::Owned { tenure, .. } | Verdict::Reset { tenure } = verdict
                && !is_known
            {
                self.flush.released.push(tenure);
                self.want_step = true;
            }
            return;
        };
        match verdict {
            Verdict::Owned { tenure, record, bound, is_taken_over } => {
                if is_taken_over {
                    self.options.metrics.take_overs.inc();
                }
                let record = record.and_then(|text| match serde_json::from_str::<Record>(&text) {
                    Ok(record) => Some(record),
                    Err(error) => {
                        // Treated as unknown: its clients start over, which is always right.
                        warn!(%error, "CVR: a client group's record cannot be read");
                        None
                    }
                });
                self.owned(id, tenure.epoch, record, bound);
            }
            Verdict::Reset { tenure } => {
                info!(
                    "a client group is of a copy of the database that is no more, or Rocicorp's server has served it since: \
                     its clients start over"
                );
                if let Some(group) = self.groups.get_mut(&id) {
                    // Cookies of the former copy say nothing here, even if they look old.
                    group.record.floor = Cookie::new(self.version, 0);
                }
                self.owned(id, tenure.epoch, None, Version::ZERO);
            }
            // Its first record makes it this node's.
            Verdict::Unknown => self.owned(id, FIRST_EPOCH, None, Version::ZERO),
            Verdict::Elsewhere { wait } => {
                let body = rehome("another node serves the client group", wait.min(RETRY_ELSEWHERE));
                self.send_away(id, "elsewhere", &body);
            }
            Verdict::NewerCopy => {
                let body = rehome("the client group is served from a newer copy of the database", RETRY);
                self.send_away(id, "newer_copy", &body);
            }
            Verdict::Gone => self.gone = true,
        }
    }

    fn owned(&mut self, id: GroupId, epoch: i64, record: Option<Record>, bound: Version) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.lost_epoch >= epoch {
            // Another node was faster than this answer.
            let body = rehome("another node serves the client group", Duration::ZERO);
            self.send_away(id, "lost", &body);
            return;
        }
        group.epoch = epoch;
        group.take(record, bound);
        group.standing = Standing::Behind { since: Instant::now() };
        self.serve_reached(id);
    }

    /// Begins to serve groups whose bound the replica has reached.
    pub(crate) fn serve_all_reached(&mut self) {
        let behind = |group: &&Group| matches!(group.standing, Standing::Behind { .. });
        let behind: Vec<GroupId> = self.groups.values().filter(behind).map(|group| group.id).collect();
        for id in behind {
            self.serve_reached(id);
        }
    }

    fn serve_reached(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        if group.cookie.version > self.version {
            self.any_behind = true;
            return;
        }
        group.standing = Standing::Served;
        let connections = group.connections.clone();
        for id in connections {
            self.replay(id);
        }
    }

    /// Applies what a connection sent before it could be served.
    pub(crate) fn replay(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.behind_since.is_some() {
            return;
        }
        for (message, credit) in std::mem::take(&mut connection.waiting) {
            self.client_message(id, message, credit);
        }
    }

    /// Another node owns the group.
    pub(crate) fn lost(&mut self, lost: &Tenure) {
        self.void_closing(lost);
        let Some(&id) = self.group_names.get(&lost.group) else { return };
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.lost_epoch = group.lost_epoch.max(lost.epoch);
        if group.epoch != 0 && group.epoch <= lost.epoch {
            let body = rehome("another node has taken the client group over", Duration::ZERO);
            self.send_away(id, "lost", &body);
        }
    }

    /// The database will never take the group's record. Nothing that depends on it may be told; the same would come again if
    /// its clients tried again by themselves.
    pub(crate) fn record_refused(&mut self, refused: &Tenure) {
        self.void_closing(refused);
        let Some(&id) = self.group_names.get(&refused.group) else { return };
        if self.groups.get(&id).is_some_and(|group| group.epoch == refused.epoch) {
            let body = ErrorBody::internal("what the server must remember of the client group cannot be stored");
            let connections = self.groups.get(&id).map(|group| group.connections.clone()).unwrap_or_default();
            for connection in connections {
                self.reject(connection, &body);
            }
            self.unload(id, Instant::now());
        }
    }

    /// The tables of the CVR database were made anew: stores again what is known here. Whoever was away starts over.
    pub(crate) fn store_again(&mut self) {
        warn!("what was stored of client groups is gone; those that are connected are stored again");
        self.materialisations.store_again(self.version, &mut self.flush);
        for group in self.groups.values_mut().filter(|group| group.known && group.is_served()) {
            group.pending.record = true;
            self.dirty.insert(group.id);
        }
        self.want_step = true;
    }

    /// Ends the patience with a replica that does not reach what clients have seen.
    pub(crate) fn give_up_waiting(&mut self, now: Instant) {
        let patience = self.limits.behind;
        let hopeless: Vec<ConnectionId> = self
            .behind
            .iter()
            .copied()
            .filter(|id| {
                let since = self.connections.get(id).and_then(|c| c.behind_since);
                since.is_none_or(|since| now - since > patience)
            })
            .collect();
        for id in hopeless {
            self.resume(id);
        }
        let hopeless: Vec<GroupId> = self
            .groups
            .values()
            .filter(|g| matches!(g.standing, Standing::Behind { since } if now - since > patience))
            .map(|g| g.id)
            .collect();
        for id in hopeless {
            let body = rehome("this node is behind what the client group has seen", RETRY);
            self.send_away(id, "behind", &body);
        }
    }

    /// Tells every client of a group to go elsewhere, and forgets the group.
    fn send_away(&mut self, id: GroupId, reason: &str, body: &ErrorBody) {
        let connections = self.groups.get(&id).map(|g| g.connections.clone()).unwrap_or_default();
        self.options.metrics.rehomes.with_label_values(&[reason]).inc_by(connections.len() as u64);
        for connection in connections {
            self.reject(connection, body);
        }
        self.unload(id, Instant::now());
    }

    /// Forgets a group in memory, and gives it up if it is still this node's.
    pub(crate) fn unload(&mut self, id: GroupId, now: Instant) {
        let Some(group) = self.groups.remove(&id) else { return };
        self.group_names.remove(&group.name);
        self.dirty.remove(&id);
        for run in group.queries.values() {
            for materialisation in run.held.iter().chain(&run.coming) {
                self.materialisations.unsubscribe(id, *materialisation, now);
            }
        }
        for left in &group.pending.left {
            if let Some(held) = left.held {
                self.materialisations.unsubscribe(id, held, now);
            }
        }
        if group.epoch > group.lost_epoch {
            self.flush.released.push(Tenure { group: group.name, epoch: group.epoch });
            self.want_step = true;
        }
    }
}

/// To be followed after at most so long.
pub fn rehome(message: &str, after: Duration) -> ErrorBody {
    ErrorBody::rehome(message, Some(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)))
}
