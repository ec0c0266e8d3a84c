//! From what changed for a group to the frames of its active connections.

use std::sync::Arc;
use std::time::Instant;

use protocol::down::{self, QueryOp};
use protocol::error::ErrorBody;
use rows::{Cookie, Version};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::api::{ConnectionId, Frame};
use crate::body::{Body, BodyError};
use crate::catch_up::Missed;
use crate::connection::{Connection, Phase};
use crate::core::Core;
use crate::group::record::Holding;
use crate::group::{GroupId, Left, Pending, QueryRun};
use crate::lineage::del_op;
use crate::materialisation::{Entry, Materialisation, MaterialisationId};
use crate::outgoing::{Mark, now_ms};
use crate::row_id::RowId;
use crate::spool::Piece;
use crate::store::GroupRow;

/// Encoded rows are shared as they are with clients that know at most one in so many of them.
const KNOWN_ROWS_SENT_AGAIN: usize = 4;

/// When clients that the node has no room for come back.
const OVERLOADED_BACKOFF_MS: [u64; 2] = [5_000, 60_000];

/// A poke for one connection: frames that may leave at once, and the end that waits for the flush.
pub struct Poke {
    pub connection: ConnectionId,
    pub frames: Vec<Frame>,
    pub end: Frame,
    pub mark: Option<Mark>,
}

/// Bodies of this step by what they carry: groups that are affected alike, and connections that missed the same, share them.
#[derive(Default)]
pub struct Bodies {
    shared: FxHashMap<Vec<MaterialisationId>, Arc<[Frame]>>,
    pub(crate) missed: FxHashMap<Missed, Arc<[Frame]>>,
}

impl Core {
    /// Pokes the group's active connections with everything that is pending, and stores what changed of its record. Only after
    /// that may anybody join, as what is told then must be stored. False: it is to wait.
    pub(crate) fn deliver(
        &mut self,
        group_id: GroupId,
        mark: Option<Mark>,
        bodies: &mut Bodies,
        pokes: &mut Vec<Poke>,
    ) -> Result<bool, String> {
        let version = self.version;
        self.hold_back(group_id);
        let Some(group) = self.groups.get_mut(&group_id) else { return Ok(false) };
        // Nothing of a client is stored or told before anybody's credentials were found good.
        if !group.is_served() || !group.is_admitted || self.is_about_to_join(group_id) {
            return Ok(false);
        }
        let Some(group) = self.groups.get_mut(&group_id) else { return Ok(false) };
        let active: Vec<ConnectionId> = group
            .connections
            .iter()
            .copied()
            .filter(|c| self.connections.get(c).is_some_and(|c| c.phase == Phase::Active))
            .collect();
        let arrived = std::mem::take(&mut group.pending.arrived);
        let (arrived, waiting) = self.split_arrived(group_id, arrived, !active.is_empty());
        let Some(group) = self.groups.get_mut(&group_id) else { return Ok(false) };
        let mut pending = std::mem::take(&mut group.pending);
        group.pending.arrived = waiting;
        group.retain_held(&mut pending.affected);
        if active.is_empty() {
            pending.nobody_is_told();
        }
        if pending.is_empty() && arrived.is_empty() {
            return Ok(true);
        }
        let visible = pending.is_visible() || !arrived.is_empty();
        if visible {
            group.cookie = group.next_cookie(version);
        }
        let cookie = group.cookie;
        let fresh = self.take_arrived(group_id, &arrived, cookie, &mut pending);
        let Some(group) = self.groups.get_mut(&group_id) else { return Ok(false) };
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
            let mark = mark.filter(|_| !pending.affected.is_empty() || !pending.last_mutation_ids.is_empty());
            match self.body(group_id, &pending, &fresh, bodies) {
                Ok(frames) => {
                    for connection in active {
                        pokes.extend(self.poke(connection, cookie, &frames, mark));
                    }
                }
                Err(error) => {
                    let body = no_room(error)?;
                    for connection in active {
                        self.reject(connection, &body);
                    }
                }
            }
        }
        let now = Instant::now();
        for id in pending.left.iter().filter_map(|l| l.held) {
            self.release(group_id, id, now);
        }
        Ok(true)
    }

    /// Whether there is nobody to tell anything yet, and all who join wait for new queries for a moment: what they changed is
    /// stored together with what they will be told, in one flush. As soon as one has waited long enough, nobody waits, so those
    /// who come later keep nobody waiting.
    fn is_about_to_join(&mut self, group_id: GroupId) -> bool {
        let Some(group) = self.groups.get_mut(&group_id) else { return false };
        let is_awaited = |run: &QueryRun| {
            let is_live = |id| self.materialisations.get(id).is_some_and(|m| m.graph().is_some());
            run.asked.is_some() || run.coming.is_some_and(|id| !is_live(id))
        };
        if !group.queries.values().any(is_awaited) {
            return false;
        }
        let now = Instant::now();
        let connections = || group.connections.iter().filter_map(|id| self.connections.get(id));
        let is_patient = |c: &Connection| c.patience.is_some_and(|until| until > now);
        let is_waiting = connections().any(|c| c.phase == Phase::Joining)
            && connections().all(|c| c.phase == Phase::New || (c.phase == Phase::Joining && is_patient(c)));
        if is_waiting {
            group.pending.nobody_is_told();
        }
        is_waiting
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
    ) -> Result<Arc<[Frame]>, BodyError> {
        let Some(group) = self.groups.get(&group_id) else { return Ok(Arc::default()) };
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
            return Ok(Arc::clone(frames));
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
            return Ok(Arc::clone(frames));
        }
        let mut body = Body::new(self.version, &self.materialisations.spool);
        for patch in &pending.desires {
            let op = if patch.put {
                QueryOp::Put { hash: patch.hash.clone() }
            } else {
                QueryOp::Del { hash: patch.hash.clone() }
            };
            body.patches.desired(&patch.client, op);
        }
        for op in &pending.got {
            body.patches.got(op.clone());
        }
        for (client, id) in &pending.last_mutation_ids {
            body.patches.last_mutation_id(client, *id);
        }
        for op in &pending.mutations {
            body.patches.mutation(op);
        }
        let mut done: FxHashSet<&RowId> = FxHashSet::default();
        let several = entries.len() > 1;
        for entry in &entries {
            for (id, op) in &entry.dels {
                if !kept.contains(id) && (!several || done.insert(id)) {
                    body.row(op)?;
                }
            }
        }
        let left = pending.left.iter().filter_map(|l| self.materialisations.get(l.held?));
        let mut left: Vec<RowId> = left.flat_map(|m| m.rows_left(self.version)).collect();
        left.sort_unstable();
        left.dedup();
        for id in left.iter().filter(|id| !done.contains(*id) && !held.iter().any(|m| m.holds(id))) {
            if let Some(op) = del_op(&self.schema, &group.keys, id) {
                body.row(&op)?;
            }
        }
        // Puts come after every del: a row that left one query and entered another is held by `held` and was not deleted.
        for entry in &entries {
            for (id, op) in &entry.puts {
                if !several || done.insert(id) {
                    body.lying_row(op)?;
                }
            }
        }
        let fresh: Vec<&Materialisation> = fresh.iter().filter_map(|id| self.materialisations.get(*id)).collect();
        let mut told: Vec<&Materialisation> =
            held.iter().copied().filter(|m| !fresh.iter().any(|f| std::ptr::eq(*f, *m))).collect();
        for materialisation in fresh {
            add_all(materialisation, self.version, &told, &mut body)?;
            told.push(materialisation);
        }
        self.options.metrics.poked_rows.inc_by(body.rows);
        let frames: Arc<[Frame]> = body.finish()?.into();
        if shareable {
            bodies.shared.insert(affected, Arc::clone(&frames));
        }
        Ok(frames)
    }
}

/// Adds all rows of a materialisation to a body for clients that hold, or were sent before in the same poke, what is in `told`.
///
/// The encoded rows are shared as they are wherever that is right and nearly as short: a row that a client has already may come
/// again, as long as it comes as it is now. Otherwise they are copied one by one, without those that the client has.
pub fn add_all(
    materialisation: &Materialisation,
    version: Version,
    told: &[&Materialisation],
    body: &mut Body,
) -> Result<(), BodyError> {
    let Some((payload, after)) = materialisation.rows_at(version) else { return Ok(()) };
    let after: Vec<&Arc<Entry>> = after.collect();
    let overlapping: Vec<&Materialisation> =
        told.iter().copied().filter(|other| materialisation.may_share_rows(other)).collect();
    let mut newest: FxHashMap<&RowId, Option<&Piece>> = FxHashMap::default();
    for entry in &after {
        newest.extend(entry.dels.iter().map(|(id, _)| (id, None)));
        newest.extend(entry.puts.iter().map(|(id, op)| (id, Some(op))));
    }
    let known: usize = overlapping.iter().filter_map(|m| m.graph()).map(ivm::Graph::row_count).sum();
    // A row that left this result since its rows were encoded is in them as it was then, and others may hold it as it is now.
    let would_age = newest.iter().any(|(id, op)| op.is_none() && overlapping.iter().any(|other| other.holds(id)));
    if known * KNOWN_ROWS_SENT_AGAIN <= payload.rows() && !would_age {
        for chunk in payload.chunks() {
            body.chunk(&chunk.ops, chunk.rows())?;
        }
        for entry in &after {
            for (_, op) in &entry.dels {
                body.row(op)?;
            }
            for (_, op) in &entry.puts {
                body.lying_row(op)?;
            }
        }
        return Ok(());
    }
    let is_new = |id: &RowId| !overlapping.iter().any(|other| other.holds(id));
    payload.each::<BodyError>(&mut |id, op| {
        if !newest.contains_key(&id) && is_new(&id) {
            body.row(op)?;
        }
        Ok(())
    })?;
    for (id, op) in newest {
        if let Some(op) = op
            && is_new(id)
        {
            body.lying_row(op)?;
        }
    }
    Ok(())
}

/// What clients are told when the node has no room for what they want. They come back after a while.
pub fn overloaded() -> ErrorBody {
    let [min, max] = OVERLOADED_BACKOFF_MS;
    ErrorBody::overloaded("the server has no room for the result at the moment", min, max)
}

/// What clients are told when a body has no room. They come back, and are sent what they are owed by then.
pub fn no_room(error: BodyError) -> Result<ErrorBody, String> {
    match error {
        BodyError::NoRoom(error) => {
            tracing::warn!(%error, "turning clients away");
            Ok(overloaded())
        }
        BodyError::Read(_) => Err(error.to_string()),
    }
}
