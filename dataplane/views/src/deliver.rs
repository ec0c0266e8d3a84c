//! From what changed for a group to the frames of its active connections.

use std::sync::Arc;

use bytes::Bytes;
use protocol::down::{self, QueryOp};
use protocol::poke::{Part, PartBuilder};
use rows::{Cookie, Version};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::api::{ConnectionId, Frame};
use crate::connection::Phase;
use crate::core::Core;
use crate::group::record::Holding;
use crate::group::{GroupId, Left, Pending};
use crate::lineage::del_op;
use crate::materialisation::{Entry, Materialisation, MaterialisationId};
use crate::outgoing::{Mark, now_ms};
use crate::row_id::RowId;
use crate::store::GroupRow;

/// A poke for one connection: frames that may leave at once, and the end that waits for the flush.
pub struct Poke {
    pub connection: ConnectionId,
    pub frames: Vec<Frame>,
    pub end: Frame,
    pub mark: Option<Mark>,
}

/// Bodies of this step by the materialisations they carry: groups that are affected alike share them.
#[derive(Default)]
pub struct Bodies {
    shared: FxHashMap<Vec<MaterialisationId>, Arc<[Frame]>>,
}

impl Core {
    /// Pokes the group's active connections with everything that is pending, and stores what changed of its record.
    pub(crate) fn deliver(
        &mut self,
        group_id: GroupId,
        mark: Option<Mark>,
        bodies: &mut Bodies,
        pokes: &mut Vec<Poke>,
    ) {
        let version = self.version;
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        // Nothing of a client is stored or told before anybody's credentials were found good.
        if !group.is_served() || !group.is_admitted {
            return;
        }
        let active: Vec<ConnectionId> = group
            .connections
            .iter()
            .copied()
            .filter(|c| self.connections.get(c).is_some_and(|c| c.phase == Phase::Active))
            .collect();
        let arrived = std::mem::take(&mut group.pending.arrived);
        let (arrived, waiting) = self.split_arrived(group_id, arrived, !active.is_empty());
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        let mut pending = std::mem::take(&mut group.pending);
        group.pending.arrived = waiting;
        group.retain_held(&mut pending.affected);
        if active.is_empty() {
            // Nobody to tell: whoever joins is told the state, not the changes.
            pending.last_mutation_ids.clear();
            pending.mutations.clear();
            pending.affected.clear();
        }
        if pending.is_empty() && arrived.is_empty() {
            return;
        }
        let visible = pending.is_visible() || !arrived.is_empty();
        if visible {
            group.cookie = group.next_cookie(version);
        }
        let cookie = group.cookie;
        let fresh = self.take_arrived(group_id, &arrived, cookie, &mut pending);
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        for left in &pending.left {
            group.record.remember_removed(&left.hash, left.holding.clone(), cookie, now_ms());
        }
        group.record.remember_desire_removals(&pending.desires, cookie);
        group.record.remember_failures(cookie);
        // A cookie with a counter is greater than any after a restart only if it is written down.
        let counted = visible && cookie.config > 0;
        let changed = pending.record || !arrived.is_empty() || !pending.left.is_empty() || !pending.desires.is_empty();
        if counted || changed {
            self.store_record(group_id, visible);
        }
        if visible && !active.is_empty() {
            let frames = self.body(group_id, &pending, &fresh, bodies);
            let mark = mark.filter(|_| !pending.affected.is_empty() || !pending.last_mutation_ids.is_empty());
            for connection in active {
                pokes.extend(self.poke(connection, cookie, &frames, mark));
            }
        }
        let now = std::time::Instant::now();
        for id in pending.left.iter().filter_map(|l| l.held) {
            self.release(group_id, id, now);
        }
    }

    /// Frames of one poke for one connection, which is at `cookie` afterwards.
    pub(crate) fn poke(
        &mut self,
        id: ConnectionId,
        cookie: Cookie,
        body: &[Frame],
        mark: Option<Mark>,
    ) -> Option<Poke> {
        let poke_id = self.version.to_string();
        let connection = self.connections.get_mut(&id)?;
        debug_assert!(
            connection.cookie.is_none_or(|base| base < cookie || (base == cookie && body.is_empty())),
            "a poke with content moves the cookie forward"
        );
        let base = connection.cookie.map(|c| c.to_string());
        let mut frames = Vec::with_capacity(body.len() + 1);
        frames.push(Frame::Text(down::poke_start(&poke_id, base.as_deref())));
        frames.extend(body.iter().cloned());
        connection.cookie = Some(cookie);
        self.options.metrics.pokes.inc();
        Some(Poke { connection: id, frames, end: Frame::Text(down::poke_end(&poke_id, &cookie.to_string())), mark })
    }

    /// Stores the group's record with the step's flush. `visible`: clients are sent the group's present cookie.
    pub(crate) fn store_record(&mut self, group_id: GroupId, visible: bool) {
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        if visible {
            group.record.cookie = group.cookie;
        }
        group.known = true;
        group.record.forget_expired_desires();
        let remembered_ms = u64::try_from(self.options.cvr_purge_hours).unwrap_or(0) * 3_600_000;
        group.record.forget_before(now_ms().saturating_sub(remembered_ms));
        match serde_json::to_string(&group.record) {
            Ok(record) => {
                let lineages = group.record.lineages();
                self.flush.groups.push(GroupRow {
                    id: group.name.clone(),
                    epoch: group.epoch,
                    record,
                    is_idle: group.connections.is_empty(),
                    connected_at: group.connected_at,
                    lineages,
                });
            }
            Err(error) => tracing::error!(%error, "a client group's record cannot be written as JSON"),
        }
    }

    /// Which of the arrived queries can be delivered now; the others wait for their encoded rows.
    fn split_arrived(
        &mut self,
        group_id: GroupId,
        hashes: Vec<String>,
        rows_needed: bool,
    ) -> (Vec<String>, Vec<String>) {
        let mut ready = Vec::new();
        let mut waiting = Vec::new();
        for hash in hashes {
            let coming = self.groups.get(&group_id).and_then(|g| g.queries.get(&hash)).and_then(|r| r.coming);
            let Some((id, materialisation)) = coming.and_then(|id| Some((id, self.materialisations.get(id)?))) else {
                continue;
            };
            if materialisation.graph().is_none() {
                waiting.push(hash);
            } else if rows_needed && materialisation.rows_at(self.version).is_none() {
                self.materialisations.renew_payload(id, self.version);
                waiting.push(hash);
            } else {
                ready.push(hash);
            }
        }
        (ready, waiting)
    }

    /// Makes arrived queries got. Returns the materialisations whose rows clients do not have yet.
    fn take_arrived(
        &mut self,
        group_id: GroupId,
        hashes: &[String],
        cookie: Cookie,
        pending: &mut Pending,
    ) -> Vec<MaterialisationId> {
        let mut fresh = Vec::new();
        for hash in hashes {
            let Some(group) = self.groups.get_mut(&group_id) else { break };
            let Some(coming) = group.queries.get(hash).and_then(|run| run.coming) else { continue };
            // Another query of the group may have the same AST; then its clients have the rows.
            let had = group.held().any(|held| held == coming);
            let Some(run) = group.queries.get_mut(hash) else { continue };
            run.coming = None;
            let previous = run.held.replace(coming);
            let Some(materialisation) = self.materialisations.get(coming) else { continue };
            let Some(query) = group.record.queries.get_mut(hash) else { continue };
            let holding = Holding::new(&materialisation.key, materialisation.lineage, cookie);
            if let Some(old) = query.holding.replace(holding) {
                pending.left.push(Left { hash: hash.clone(), held: previous, holding: old });
            }
            pending.got.push(QueryOp::Put { hash: hash.clone() });
            if !had {
                fresh.push(coming);
            }
        }
        fresh.sort_unstable();
        fresh.dedup();
        fresh
    }

    fn body(
        &mut self,
        group_id: GroupId,
        pending: &Pending,
        fresh: &[MaterialisationId],
        bodies: &mut Bodies,
    ) -> Arc<[Frame]> {
        let Some(group) = self.groups.get(&group_id) else { return Arc::default() };
        let mut affected: Vec<MaterialisationId> = pending.affected.clone();
        affected.sort_unstable();
        affected.dedup();
        if !fresh.is_empty() || !pending.left.is_empty() {
            // Some may have been replaced since they changed.
            affected.retain(|id| !fresh.contains(id) && group.held().any(|held| held == *id));
        }
        let entries: Vec<&Arc<Entry>> =
            affected.iter().filter_map(|id| self.materialisations.get(*id)?.entry_at(self.version)).collect();
        let rows_only = pending.desires.is_empty()
            && pending.got.is_empty()
            && pending.left.is_empty()
            && pending.last_mutation_ids.is_empty()
            && pending.mutations.is_empty()
            && fresh.is_empty();
        let adds_only = entries.iter().all(|e| e.dels.is_empty());
        if rows_only
            && adds_only
            && let Some(frames) = bodies.shared.get(&affected)
        {
            return Arc::clone(frames);
        }
        let held: Vec<&Materialisation> = if rows_only && adds_only {
            Vec::new()
        } else {
            let mut ids: Vec<MaterialisationId> = group.held().collect();
            ids.sort_unstable();
            ids.dedup();
            ids.into_iter().filter_map(|id| self.materialisations.get(id)).collect()
        };
        // A row that left one query may still be held by another; then the body is the group's own.
        let kept: FxHashSet<&RowId> = entries
            .iter()
            .flat_map(|e| &e.dels)
            .map(|(id, _)| id)
            .filter(|id| held.iter().any(|m| m.holds(id)))
            .collect();
        let shareable = rows_only && kept.is_empty();
        if shareable && let Some(frames) = bodies.shared.get(&affected) {
            return Arc::clone(frames);
        }
        let mut builder = PartBuilder::new(&self.version.to_string());
        for patch in &pending.desires {
            let op = if patch.put {
                QueryOp::Put { hash: patch.hash.clone() }
            } else {
                QueryOp::Del { hash: patch.hash.clone() }
            };
            builder.desired(&patch.client, op);
        }
        for op in &pending.got {
            builder.got(op.clone());
        }
        for (client, id) in &pending.last_mutation_ids {
            builder.last_mutation_id(client, *id);
        }
        for op in &pending.mutations {
            builder.mutation(op);
        }
        let mut rows = 0;
        let mut done: FxHashSet<&RowId> = FxHashSet::default();
        let several = entries.len() + fresh.len() > 1;
        for entry in &entries {
            for (id, op) in &entry.dels {
                if !kept.contains(id) && (!several || done.insert(id)) {
                    builder.row(op);
                    rows += 1;
                }
            }
        }
        let left = pending.left.iter().filter_map(|l| self.materialisations.get(l.held?));
        let mut left: Vec<RowId> = left.flat_map(|m| m.rows_left(self.version)).collect();
        left.sort_unstable();
        left.dedup();
        for id in left.iter().filter(|id| !done.contains(*id) && !held.iter().any(|m| m.holds(id))) {
            if let Some(op) = del_op(&self.schema, &group.keys, id) {
                builder.row(&op);
                rows += 1;
            }
        }
        // Puts come after every del: a row that left one query and entered another is held by `held` and was not deleted.
        for entry in &entries {
            for (id, op) in &entry.puts {
                if !several || done.insert(id) {
                    builder.row(op);
                    rows += 1;
                }
            }
        }
        let before: Vec<&&Materialisation> = held
            .iter()
            .filter(|m| !fresh.iter().any(|id| self.materialisations.get(*id).is_some_and(|f| std::ptr::eq(f, **m))))
            .collect();
        for id in fresh {
            let Some(materialisation) = self.materialisations.get(*id) else { continue };
            rows += add_all(materialisation, self.version, &before, several, &mut done, &mut builder);
        }
        self.options.metrics.poked_rows.inc_by(rows);
        let frames: Arc<[Frame]> = builder.finish().into_iter().map(frame_of).collect();
        if shareable {
            bodies.shared.insert(affected, Arc::clone(&frames));
        }
        frames
    }
}

/// Adds all rows of a materialisation that became got, without those that the clients hold through `before`.
pub fn add_all<'a>(
    materialisation: &'a Materialisation,
    version: Version,
    before: &[&&'a Materialisation],
    several: bool,
    done: &mut FxHashSet<&'a RowId>,
    builder: &mut PartBuilder,
) -> u64 {
    let Some((payload, after)) = materialisation.rows_at(version) else { return 0 };
    let after: Vec<&Arc<Entry>> = after.collect();
    if before.is_empty() && !several {
        // The common case: one query for clients that hold nothing. Shared with everyone who asks for it.
        for chunk in &payload.chunks {
            builder.joined_rows(chunk.clone());
        }
        for entry in &after {
            for (_, op) in entry.dels.iter().chain(&entry.puts) {
                builder.row(op);
            }
        }
        return payload.rows.len() as u64;
    }
    let mut newest: FxHashMap<&RowId, Option<&Bytes>> = FxHashMap::default();
    for entry in &after {
        newest.extend(entry.dels.iter().map(|(id, _)| (id, None)));
        newest.extend(entry.puts.iter().map(|(id, op)| (id, Some(op))));
    }
    let mut rows = 0;
    let mut add = |id: &'a RowId, op: &Bytes| {
        if !before.iter().any(|m| m.holds(id)) && done.insert(id) {
            builder.row(op);
            rows += 1;
        }
    };
    for row in &payload.rows {
        if !newest.contains_key(&row.id) {
            add(&row.id, &payload.op(row));
        }
    }
    for entry in &after {
        for (id, _) in &entry.puts {
            if let Some(Some(op)) = newest.get(id) {
                add(id, op);
            }
        }
    }
    rows
}

pub fn frame_of(part: Part) -> Frame {
    let mut pieces = part.0;
    if pieces.len() == 1 { Frame::Text(pieces.swap_remove(0)) } else { Frame::Parts(pieces.into()) }
}
