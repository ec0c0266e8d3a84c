//! Joining connections: what leads from a client's cookie to the group's present state.
//!
//! A row is sent if it may have changed for the client since its cookie, and what is sent is its present state: a put if any query
//! that the client holds has it, else a del. So a superset of the changed rows is always right, and a missing history is never
//! guessed: the client then starts over.
//!
//! Where the client was served by another node, that node's history leads to some version, and comparing the rows there with the
//! present ones leads on from it. It must be the history of the very node that handed the cookie out: nodes that are behind take
//! several versions in one step, and what came and went in between is in none of their deltas.
//!
//! A client that was served by Rocicorp's server may hold any row that is remembered for its group: it is sent all that its queries
//! have, and what none of them has is deleted.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use protocol::down::QueryOp;
use protocol::error::ErrorBody;
use protocol::poke::PartBuilder;
use rows::{Cookie, Version};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::api::{ConnectionId, Frame};
use crate::body::{Body, BodyError};
use crate::connection::{Connection, History, Phase};
use crate::core::Core;
use crate::deliver::{Bodies, Poke, add_all, no_room};
use crate::group::{Group, GroupId};
use crate::lineage::del_op;
use crate::materialisation::{Materialisation, MaterialisationId};
use crate::row_id::RowId;
use crate::spool::Piece;
use crate::store::{LineageId, Question, Request, RowSet, Touched};

/// The version from which on rows are missed, and which ones the database names; `None`: all rows are.
type Since<Rows> = Option<(Version, Option<Rows>)>;

/// What a connection misses: of each query all rows, or those that changed since a version, with what the database knows of them.
pub struct Missed(Vec<(MaterialisationId, Since<Arc<Vec<RowId>>>)>);

impl Missed {
    /// Answers of the database are told apart by where they are.
    fn parts(&self) -> impl Iterator<Item = (MaterialisationId, Since<*const Vec<RowId>>)> + '_ {
        let place = |(version, rows): &(Version, Option<Arc<Vec<RowId>>>)| (*version, rows.as_ref().map(Arc::as_ptr));
        self.0.iter().map(move |(id, since)| (*id, since.as_ref().map(place)))
    }
}

impl PartialEq for Missed {
    fn eq(&self, other: &Missed) -> bool {
        self.parts().eq(other.parts())
    }
}

impl Eq for Missed {}

impl Hash for Missed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().for_each(|part| part.hash(state));
    }
}

impl Core {
    /// Lets in every connection of the group that has all it needs.
    pub(crate) fn join_waiting(
        &mut self,
        group: GroupId,
        bodies: &mut Bodies,
        pokes: &mut Vec<Poke>,
    ) -> Result<(), String> {
        let joining: Vec<ConnectionId> = self
            .groups
            .get(&group)
            .into_iter()
            .flat_map(|g| &g.connections)
            .copied()
            .filter(|c| self.connections.get(c).is_some_and(|c| c.phase == Phase::Joining && c.validated))
            .collect();
        for id in joining {
            if self.has_drained(id) && self.prepared(group, id) {
                pokes.extend(self.join(group, id, bodies)?);
            }
        }
        Ok(())
    }

    /// Whether everything is here that the connection's first poke is made of. Asks for what is not.
    fn prepared(&mut self, group_id: GroupId, id: ConnectionId) -> bool {
        let (Some(group), Some(connection)) = (self.groups.get(&group_id), self.connections.get(&id)) else {
            return false;
        };
        // What the group holds is not this connection's before its own credentials lead to it.
        let is_transforming = connection.transforming.is_some() || self.rules.unsettled.contains(&group_id);
        let impatient = connection.patience.is_none_or(|until| until <= Instant::now());
        let mut ready = true;
        let mut renew = Vec::new();
        let mut ask = Vec::new();
        // While it waited here, more left the group at once than is remembered, or what was remembered became too old.
        let mut is_forgotten = connection.cookie.is_some_and(|c| Cookie::EMPTY < c && c < group.record.floor);
        for (hash, query) in &group.record.queries {
            let run = group.queries.get(hash);
            let Some(holding) = &query.holding else {
                // A new query: worth a short wait, not more.
                ready &= impatient || run.is_none_or(|r| r.coming.is_none() && r.asked.is_none());
                continue;
            };
            let Some((held, materialisation)) =
                run.and_then(|r| r.held).and_then(|id| Some((id, self.materialisations.get(id)?)))
            else {
                // What clients hold must be known before they are told differences.
                ready = false;
                continue;
            };
            // Something else is to take its place, for this connection or another one.
            let is_replaced = run.is_some_and(|run| run.coming.is_some());
            if materialisation.graph().is_none() || is_transforming || is_replaced {
                ready = false;
                continue;
            }
            let since = connection.cookie.filter(|cookie| holding.got_at <= *cookie);
            let floor = materialisation.history.floor;
            let lineage = since.and_then(|cookie| holding.lineage_at(cookie));
            is_forgotten |= since.is_some() && lineage.is_none();
            let from_store =
                since.filter(|cookie| cookie.version < floor || lineage.is_some_and(|l| l != holding.lineage));
            if let (Some(cookie), Some(lineage)) = (from_store, lineage)
                // While it waited for something else, memory may have gone beyond what the answer covers.
                && connection.touched.get(&(holding.lineage, false)).is_none_or(|h| h.covers < floor)
            {
                ready = false;
                ask.push(Question { present: holding.lineage, lineage, since: cookie, held: false });
            }
            // All rows are sent, or rows of which only the identity is known: both need the encoded rows.
            if (since.is_none() || from_store.is_some()) && materialisation.rows_at(self.version).is_none() {
                ready = false;
                renew.push(held);
            }
        }
        if let Some(cookie) = connection.cookie {
            for (present, lineage) in group.record.departed(cookie) {
                if connection.touched.contains_key(&(present, true)) {
                    continue;
                }
                ready = false;
                match lineage {
                    Some(lineage) => ask.push(Question { present, lineage, since: cookie, held: true }),
                    None => is_forgotten = true,
                }
            }
        }
        if is_forgotten {
            self.reject(id, &away_too_long());
            return false;
        }
        for held in renew {
            self.materialisations.renew_payload(held, self.version);
        }
        for question in ask {
            self.ask_history(id, question);
        }
        ready
    }

    fn ask_history(&mut self, id: ConnectionId, question: Question) {
        let covers = self.durable_version();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if !connection.asked.insert((question.present, question.held)) {
            return;
        }
        if let Some((_, waiting)) = self.histories.get_mut(&question) {
            waiting.push(id);
        } else {
            self.store.ask(Request::Touched(question.clone()));
            self.histories.insert(question, (covers, vec![id]));
        }
    }

    /// Takes a stored history for the connections that wait for it.
    pub(crate) fn touched(&mut self, touched: Touched) {
        let Touched { present, answers, latest } = touched;
        let beyond = latest.map(|latest| self.beyond(present, &latest));
        for (question, rows) in answers {
            let Some((mut covers, waiting)) = self.histories.remove(&question) else { continue };
            let mut rows = rows;
            // What a client held of a query that is no more needs no comparison: all of it goes.
            let is_ready = match &beyond {
                Some(beyond) if !question.held => {
                    if let (Some(rows), Some(beyond)) = (&mut rows, beyond) {
                        rows.extend(beyond.iter().cloned());
                    }
                    covers = self.version;
                    beyond.is_some()
                }
                _ => true,
            };
            let rows = rows.map(Arc::new);
            for id in waiting {
                let joining = self.connections.get(&id).is_some_and(|c| c.phase == Phase::Joining);
                let Some(rows) = &rows else {
                    // Its query may have gone meanwhile, and with it the need.
                    if !joining {
                        continue;
                    }
                    self.reject(id, &away_too_long());
                    continue;
                };
                if let Some(connection) = self.connections.get_mut(&id).filter(|c| c.phase == Phase::Joining) {
                    connection.asked.remove(&(present, question.held));
                    if is_ready {
                        let history = History { covers, rows: Arc::clone(rows) };
                        connection.touched.insert((present, question.held), history);
                    }
                    self.dirty.insert(connection.group);
                    self.want_step = true;
                }
            }
        }
    }

    /// Rows that are not now as they were at the end of another node's history. `None`: they are not known at the moment.
    fn beyond(&self, present: LineageId, latest: &RowSet) -> Option<Vec<RowId>> {
        let materialisation = self.materialisations.by_lineage.get(&present)?;
        let graph = self.materialisations.get(*materialisation)?.graph()?;
        let mut rows: Vec<RowId> = latest
            .rows
            .iter()
            .filter(|(id, version)| graph.version_of(&id.table, &id.key) != Some(**version))
            .map(|(id, _)| id.clone())
            .collect();
        let now = graph.rows().map(|(table, key, _)| RowId::of(table, key));
        rows.extend(now.filter(|id| !latest.rows.contains_key(id)));
        Some(rows)
    }

    fn join(&mut self, group_id: GroupId, id: ConnectionId, bodies: &mut Bodies) -> Result<Option<Poke>, String> {
        let version = self.version;
        let (Some(group), Some(connection)) = (self.groups.get(&group_id), self.connections.get(&id)) else {
            return Ok(None);
        };
        let mut body = Body::new(version, &self.materialisations.spool);
        let cookie = connection.cookie;
        let since = cookie.map_or(Version::ZERO, |c| c.version);
        let mutations = self.internal.read(&mut self.reader, &group.name, since)?;
        for (client, last) in &mutations.last_mutation_ids {
            body.patches.last_mutation_id(client, *last);
        }
        for op in &mutations.results {
            body.patches.mutation(op);
        }
        if cookie != Some(group.cookie) {
            add_query_patches(group, connection, &mut body.patches);
        }
        let made = self.add_rows(group, connection, body, bodies);
        let body = match made {
            Ok(body) => body,
            Err(error) => {
                let error = no_room(error)?;
                self.reject(id, &error);
                return Ok(None);
            }
        };
        let Some(group) = self.groups.get_mut(&group_id) else { return Ok(None) };
        // Content needs a greater cookie, and one that says how far it goes; without content the client is confirmed where it is.
        // What this node says has a greater cookie than what any former owner said, so that it is known who said what.
        let is_of_former = group.cookie == group.taken_at && cookie != Some(group.cookie);
        let needs_new = if body.is_empty() {
            is_of_former && (cookie.is_some() || group.cookie.version == Version::ZERO)
        } else {
            is_of_former || cookie == Some(group.cookie) || group.cookie.version < version
        };
        if needs_new {
            group.cookie = group.next_cookie(version);
        }
        let target = group.cookie;
        if needs_new && target.config > 0 {
            self.store_record(group_id, true);
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.phase = Phase::Active;
            connection.has_joined = true;
            connection.patience = None;
            connection.asked.clear();
            connection.touched.clear();
        }
        Ok(self.poke(id, target, &body, None))
    }

    /// The frames of `body` with the rows that the connection has not.
    fn add_rows(
        &self,
        group: &Group,
        connection: &Connection,
        mut body: Body,
        bodies: &mut Bodies,
    ) -> Result<Vec<Frame>, BodyError> {
        let mut whole: Vec<&Materialisation> = Vec::new();
        let mut part: Vec<(&Materialisation, Version, Option<&History>)> = Vec::new();
        let mut missed = Vec::new();
        for (hash, query) in &group.record.queries {
            let Some(holding) = &query.holding else { continue };
            let held = group.queries.get(hash).and_then(|r| r.held);
            let Some((id, materialisation)) = held.and_then(|id| Some((id, self.materialisations.get(id)?))) else {
                continue;
            };
            let Some(cookie) = connection.cookie.filter(|cookie| holding.got_at <= *cookie) else {
                if !whole.iter().any(|m| std::ptr::eq(*m, materialisation)) {
                    whole.push(materialisation);
                }
                missed.push((id, None));
                continue;
            };
            let stored = connection.touched.get(&(holding.lineage, false));
            part.push((materialisation, cookie.version, stored));
            missed.push((id, Some((cookie.version, stored.map(|history| Arc::clone(&history.rows))))));
        }
        // Rows of queries that were removed since: deleted unless something still holds them.
        let mut orphans: FxHashSet<&RowId> = FxHashSet::default();
        for (present, _) in connection.cookie.into_iter().flat_map(|cookie| group.record.departed(cookie)) {
            orphans.extend(connection.touched.get(&(present, true)).iter().flat_map(|history| history.rows.iter()));
        }
        // Many come back at once, and all clients of a query do when it was hydrated anew: they miss the same. What is sent whole is
        // shared as it is.
        let missed = Missed(missed);
        let is_shared = !part.is_empty() && orphans.is_empty();
        if is_shared && let Some(rows) = bodies.missed.get(&missed) {
            return Ok([&body.finish()?[..], rows].concat());
        }
        let mut candidates: FxHashSet<&RowId> = FxHashSet::default();
        for (materialisation, since, stored) in &part {
            candidates.extend(materialisation.history.since(*since).flat_map(|entry| entry.ids()));
            candidates.extend(stored.iter().flat_map(|history| history.rows.iter()));
        }
        let mut rows = Body::new(self.version, &self.materialisations.spool);
        let body_of_rows = if is_shared { &mut rows } else { &mut body };
        let holds = |id: &RowId| part.iter().map(|(m, ..)| m).chain(&whole).any(|m| m.holds(id));
        let mut gone: Vec<&RowId> = candidates.iter().chain(&orphans).copied().filter(|id| !holds(id)).collect();
        gone.sort_unstable();
        gone.dedup();
        for id in gone {
            if let Some(op) = del_op(&self.schema, &group.keys, id) {
                body_of_rows.row(&op)?;
            }
        }
        let mut sent: FxHashSet<&RowId> = FxHashSet::default();
        for (materialisation, since, stored) in &part {
            self.add_changed(materialisation, *since, stored.is_some(), &candidates, &mut sent, body_of_rows)?;
        }
        let mut told: Vec<&Materialisation> = part.iter().map(|(m, ..)| *m).collect();
        for materialisation in whole {
            add_all(materialisation, self.version, &told, body_of_rows)?;
            told.push(materialisation);
        }
        self.options.metrics.poked_rows.inc_by(body_of_rows.rows);
        let mut frames = body.finish()?;
        if is_shared {
            let rows: Arc<[Frame]> = rows.finish()?.into();
            frames.extend(rows.iter().cloned());
            bodies.missed.insert(missed, rows);
        }
        Ok(frames)
    }

    /// Adds those of `candidates` that a materialisation holds and whose present state it knows. Only who holds a row knows that.
    fn add_changed<'a>(
        &self,
        materialisation: &'a Materialisation,
        since: Version,
        is_stored: bool,
        candidates: &FxHashSet<&'a RowId>,
        sent: &mut FxHashSet<&'a RowId>,
        body: &mut Body,
    ) -> Result<(), BodyError> {
        let payload = if is_stored { materialisation.rows_at(self.version) } else { None };
        let (payload, after) = payload.map(|(payload, after)| (payload, after.collect::<Vec<_>>())).unzip();
        let entries = materialisation.history.since(since).chain(after.into_iter().flatten());
        let mut newest: FxHashMap<&RowId, &Piece> = FxHashMap::default();
        for entry in entries {
            newest.extend(entry.puts.iter().map(|(id, op)| (id, op)));
        }
        let mut wanted = |id: &RowId| {
            let candidate = candidates.get(id).filter(|id| materialisation.holds(id));
            candidate.is_some_and(|id| sent.insert(id))
        };
        for (id, op) in &newest {
            if wanted(id) {
                body.lying_row(op)?;
            }
        }
        if let Some(payload) = payload {
            payload.each(&mut |id, op| if wanted(&id) { body.row(op) } else { Ok(()) })?;
        }
        Ok(())
    }
}

fn away_too_long() -> ErrorBody {
    ErrorBody::client_not_found("the client was away for longer than the server remembers")
}

/// Everything about the query set, for a client that may have missed some of it: what it has already is no change to it.
fn add_query_patches(group: &Group, connection: &Connection, builder: &mut PartBuilder) {
    let missed = |at: Cookie| connection.cookie.is_none_or(|cookie| at > cookie);
    for removed in &group.record.removed_desires {
        if connection.cookie.is_some() && missed(removed.removed_at) {
            builder.desired(&removed.client, QueryOp::Del { hash: removed.hash.clone() });
        }
    }
    for (hash, query) in &group.record.queries {
        for (client, _) in query.desires.iter().filter(|(_, desire)| desire.inactivated_at_ms.is_none()) {
            builder.desired(client, QueryOp::Put { hash: hash.clone() });
        }
    }
    for removed in &group.record.removed {
        let got = group.record.queries.get(&removed.hash).is_some_and(|q| q.holding.is_some() || q.failed.is_some());
        if connection.cookie.is_some() && missed(removed.removed_at) && !got {
            builder.got(QueryOp::Del { hash: removed.hash.clone() });
        }
    }
    for (hash, query) in &group.record.queries {
        if query.failed.is_some_and(missed) {
            builder.got(QueryOp::Del { hash: hash.clone() });
        }
        if query.holding.as_ref().is_some_and(|h| missed(h.got_at)) {
            builder.got(QueryOp::Put { hash: hash.clone() });
        }
    }
}
