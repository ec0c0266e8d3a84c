//! Asking the API server: which AST a named query stands for, and whether a connection's credentials are good. What a client defines
//! itself is for `rules`.

use std::sync::Arc;
use std::time::Instant;

use protocol::down;
use protocol::error::ErrorBody;
use serde_json::json;
use tracing::{debug, warn};

use crate::api::{ConnectionContext, ConnectionId, Frame, NamedQuery, TransformFuture, Transformed};
use crate::connection::Phase;
use crate::core::{Core, Event};
use crate::group::record::Definition;
use crate::group::user::User;
use crate::group::{Asked, GroupId, QueryRun};
use crate::materialisation::MaterialisationId;
use crate::outgoing::{due, now_ms};
use crate::rules::Which;

/// What the API server said.
pub enum Answer {
    Validated { connection: ConnectionId, revision: u64, result: Result<(), ErrorBody> },
    Transformed(Answers),
}

pub struct Answers {
    group: GroupId,
    /// On whose behalf; its failure is told to it.
    connection: ConnectionId,
    /// Of the credentials.
    revision: u64,
    attempt: u64,
    hashes: Vec<String>,
    result: Result<Vec<Transformed>, ErrorBody>,
}

/// What the API server says; whoever waits for it is told as well when the call ends without an answer.
pub async fn answer_of(call: TransformFuture) -> Result<Vec<Transformed>, ErrorBody> {
    let failed = |_| Err(ErrorBody::internal("the call of the API server failed in the server; its log says how"));
    tokio::spawn(call).await.unwrap_or_else(failed)
}

impl Core {
    /// Checks a connection's credentials again.
    pub(crate) fn validate(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.revalidate_at = None;
        if !self.options.transformer.configured() {
            self.validated(id);
            return;
        }
        let (revision, context) = (connection.revision, Arc::clone(&connection.context));
        self.ask_to_validate(id, revision, context);
    }

    pub(crate) fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Validated { connection: id, revision, result } => {
                if self.judged(id, revision, &result) {
                    return;
                }
                // An answer for credentials that were replaced says nothing.
                if self.connections.get(&id).is_none_or(|c| c.revision != revision) {
                    return;
                }
                match result {
                    Ok(()) => self.validated(id),
                    Err(body) => self.validation_failed(id, &body),
                }
            }
            Answer::Transformed(answers) => self.transformed(answers),
        }
    }

    fn validation_failed(&mut self, id: ConnectionId, body: &ErrorBody) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if connection.validated && !body.is_auth() {
            // A passing fault of the API server must not cut off a client whose credentials were good before.
            debug!(error = body.message(), "could not check credentials again");
            connection.revalidate_at = Some(Instant::now() + self.options.revalidate);
            return;
        }
        self.reject(id, body);
    }

    /// The present credentials are good.
    pub(crate) fn validated(&mut self, id: ConnectionId) {
        let Some(context) = self.connections.get(&id).map(|c| Arc::clone(&c.context)) else { return };
        if self.is_foreign(id, &context) {
            return;
        }
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(group) = self.groups.get_mut(&connection.group) else { return };
        group.is_admitted = true;
        if group.record.user.is_none() {
            group.record.user = Some(User::of(connection.context.user_id.as_deref()));
            group.pending.record = true;
        }
        if !connection.validated {
            self.next_validation += 1;
            connection.validated_at = self.next_validation;
        }
        connection.validated = true;
        connection.revalidate_at = Some(Instant::now() + self.options.revalidate);
        group.background = Some((id, Arc::clone(&connection.context)));
        group.retransform_at.get_or_insert_with(|| Instant::now() + self.options.retransform);
        let held = std::mem::take(&mut connection.answers);
        let group_id = group.id;
        self.dirty.insert(group_id);
        self.want_step = true;
        self.take_claims(group_id);
        for answers in held {
            self.transformed(answers);
        }
    }

    /// Starts what the group's queries need: those that were not asked for yet, or all of them with `again`.
    pub(crate) fn start_queries(&mut self, id: ConnectionId, again: bool) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (group_id, context) = (connection.group, Arc::clone(&connection.context));
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        self.next_attempt += 1;
        let attempt = self.next_attempt;
        let configured = self.options.transformer.configured();
        let mut named = Vec::new();
        let mut unserved = Vec::new();
        for (hash, query) in &group.record.queries {
            let run = group.queries.get(hash);
            let started = run.is_some_and(|r| r.held.is_some() || r.coming.is_some() || r.asked.is_some());
            if (started && !again) || query.failed.is_some() {
                continue;
            }
            match &query.definition {
                Definition::Named { name, args } if configured => {
                    named.push(NamedQuery { id: hash.clone(), name: name.clone(), args: args.clone() });
                }
                Definition::Named { name, .. } => {
                    warn!(query = name, "ZERO_QUERY_URL is not set: a named query stays without result");
                    unserved.push(hash.clone());
                }
                Definition::Ast(_) => {}
            }
        }
        for hash in unserved {
            group.lose_query(&hash);
        }
        for query in &named {
            group.queries.entry(query.id.clone()).or_default().asked = Some(Asked { attempt, by: id });
        }
        self.define(group_id, Which::New);
        if !named.is_empty() {
            if let Some(connection) = self.connections.get_mut(&id).filter(|c| again && !c.has_joined) {
                connection.transforming = Some(attempt);
            }
            self.ask(group_id, id, attempt, context, named);
        }
    }

    /// Asks again for what a connection asked for before it went, on behalf of another of its group: that one may wait for it.
    pub(crate) fn ask_again_without(&mut self, gone: ConnectionId, group_id: GroupId) {
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        let mut open = false;
        for run in group.queries.values_mut().filter(|run| run.asked.is_some_and(|asked| asked.by == gone)) {
            run.asked = None;
            open = true;
        }
        let joined = |id: &ConnectionId| self.connections.get(id).is_some_and(|c| c.phase != Phase::New);
        let heir = group.connections.iter().copied().find(joined).filter(|_| open);
        if let Some(heir) = heir {
            self.start_queries(heir, false);
        }
    }

    fn ask(
        &mut self,
        group: GroupId,
        connection: ConnectionId,
        attempt: u64,
        context: Arc<ConnectionContext>,
        named: Vec<NamedQuery>,
    ) {
        let hashes = named.iter().map(|q| q.id.clone()).collect();
        let revision = self.connections.get(&connection).map_or(0, |c| c.revision);
        let future = self.options.transformer.transform(context, named);
        let events = self.events.clone();
        self.runtime.spawn(async move {
            let result = answer_of(future).await;
            let answers = Answers { group, connection, revision, attempt, hashes, result };
            let _ = events.send(Event::Answer(Answer::Transformed(answers)));
        });
    }

    fn transformed(&mut self, answers: Answers) {
        // What was asked with credentials that are not known to be good must not decide what the group sees.
        let Some(connection) = self.connections.get_mut(&answers.connection) else { return };
        if connection.revision != answers.revision {
            return;
        }
        if !connection.validated {
            connection.answers.push(answers);
            return;
        }
        if connection.transforming == Some(answers.attempt) {
            connection.transforming = None;
        }
        let Answers { group: group_id, connection, attempt, hashes, result, .. } = answers;
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        let asked = Some(Asked { attempt, by: connection });
        // An answer counts even if another connection asked again meanwhile, or went: many that come one after the other must
        // not put it off for ever.
        let awaited = |run: Option<&QueryRun>| run.is_some_and(|r| r.answered < attempt);
        let list = match result {
            Ok(list) => list,
            Err(body) => {
                self.options.metrics.transforms_failed.inc_by(hashes.len() as u64);
                for hash in &hashes {
                    if let Some(run) = group.queries.get_mut(hash).filter(|r| r.asked == asked) {
                        run.asked = None;
                    }
                }
                let concerned = self.connections.get(&connection).is_none_or(|c| {
                    let wants =
                        |hash: &String| group.record.queries.get(hash).is_some_and(|q| q.is_wanted_by(&c.client));
                    let open = |hash: &&String| group.queries.get(*hash).is_some_and(|run| run.held.is_none());
                    !c.has_joined || hashes.iter().filter(open).any(wants)
                });
                if !concerned && !body.is_auth() {
                    debug!(error = body.message(), "could not transform queries again; the present ones stay");
                } else {
                    self.reject(connection, &body);
                }
                return;
            }
        };
        let mut missing: Vec<&String> = hashes.iter().collect();
        for transformed in list {
            match transformed {
                Transformed::Ast { id: hash, ast } => {
                    missing.retain(|h| **h != hash);
                    let Some(group) = self.groups.get_mut(&group_id) else { return };
                    if !awaited(group.queries.get(&hash)) {
                        continue;
                    }
                    let keys = Arc::clone(&group.keys);
                    match self.materialise(group_id, &ast, &keys) {
                        Ok(materialisation) => self.subscribed(group_id, &hash, attempt, materialisation),
                        Err(why) => self.unserved(group_id, &hash, why),
                    }
                }
                Transformed::Failed { id: hash, error } => {
                    missing.retain(|h| **h != hash);
                    let known = self.groups.get(&group_id).is_some_and(|g| awaited(g.queries.get(&hash)));
                    if known {
                        self.refuse_query(group_id, &hash, error);
                    }
                }
            }
        }
        for hash in missing {
            let Some(run) = self.groups.get_mut(&group_id).and_then(|g| g.queries.get_mut(hash)) else { continue };
            if !awaited(Some(run)) {
                continue;
            }
            warn!(hash, "the API server's answer lacks a query it was asked for");
            if run.held.is_none() && run.coming.is_none() {
                self.query_failed(group_id, hash, "the API server's answer lacks this query");
            } else if run.asked == asked {
                run.asked = None;
            }
        }
        self.dirty.insert(group_id);
        self.want_step = true;
    }

    /// A query has its materialisation, which may be the one it had.
    pub(crate) fn subscribed(&mut self, group_id: GroupId, hash: &str, attempt: u64, id: MaterialisationId) {
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        let Some(materialisation) = self.materialisations.get(id) else { return };
        let run = group.queries.entry(hash.to_owned()).or_default();
        if run.asked.is_some_and(|asked| asked.attempt <= attempt) {
            run.asked = None;
        }
        run.answered = attempt;
        let now = Instant::now();
        if run.held == Some(id) {
            // Back to what is held: what was to replace it is not wanted any more.
            if let Some(dropped) = run.coming.take().filter(|dropped| *dropped != id) {
                self.release(group_id, dropped, now);
            }
            return;
        }
        let holding = group.record.queries.get_mut(hash).and_then(|q| q.holding.as_mut());
        if run.held.is_none()
            && let Some(holding) = holding.filter(|h| *h.key == *materialisation.key)
        {
            // Clients hold rows of this very query, be it from another node.
            run.held = Some(id);
            if holding.continue_with(materialisation.lineage, group.taken_at, now_ms()) {
                group.pending.record = true;
                self.dirty.insert(group_id);
            }
            if let Some(dropped) = run.coming.take().filter(|dropped| *dropped != id) {
                self.release(group_id, dropped, now);
            }
            return;
        }
        let replaced = run.coming.replace(id).filter(|old| *old != id);
        if materialisation.graph().is_some() && !group.pending.arrived.iter().any(|h| h == hash) {
            group.pending.arrived.push(hash.to_owned());
        }
        if let Some(replaced) = replaced {
            self.release(group_id, replaced, now);
        }
    }

    /// Ends a group's subscription unless another of its queries needs it.
    pub(crate) fn release(&mut self, group_id: GroupId, id: MaterialisationId, now: Instant) {
        let used = self.groups.get(&group_id).is_some_and(|g| {
            g.queries.values().any(|r| r.held == Some(id) || r.coming == Some(id))
                || g.pending.left.iter().any(|l| l.held == Some(id))
        });
        if !used {
            self.materialisations.unsubscribe(group_id, id, now);
        }
    }

    /// The engine cannot serve a query; its clients are told why.
    pub(crate) fn query_failed(&mut self, group_id: GroupId, hash: &str, message: &str) {
        let name = match self.groups.get(&group_id).and_then(|g| g.record.queries.get(hash)).map(|q| &q.definition) {
            Some(Definition::Named { name, .. }) => name.clone(),
            _ => hash.to_owned(),
        };
        warn!(query = name, message, "a query cannot be served");
        self.refuse_query(group_id, hash, json!({"error": "app", "id": hash, "name": name, "message": message}));
    }

    /// Ends a query that failed and tells every client that wants it.
    fn refuse_query(&mut self, group_id: GroupId, hash: &str, error: serde_json::Value) {
        self.options.metrics.transforms_failed.inc();
        let Some(group) = self.groups.get_mut(&group_id) else { return };
        let Some(query) = group.record.queries.get(hash) else { return };
        let frame = Frame::Text(down::transform_error(&[error]));
        let wanting: Vec<ConnectionId> = group
            .connections
            .iter()
            .copied()
            .filter(|c| self.connections.get(c).is_some_and(|c| query.desires.contains_key(&c.client)))
            .collect();
        let released = group.fail_query(hash);
        for id in wanting {
            self.send(id, [(0, frame.clone(), None)]);
        }
        let now = Instant::now();
        for id in released {
            self.release(group_id, id, now);
        }
        self.dirty.insert(group_id);
        self.want_step = true;
    }

    /// Periodic work of connections and groups.
    pub(crate) fn tick_groups(&mut self, now: Instant) {
        let revalidate: Vec<ConnectionId> =
            self.connections.values().filter(|c| c.validated && due(c.revalidate_at, now)).map(|c| c.id).collect();
        for id in revalidate {
            self.validate(id);
        }
        let mut retransform = Vec::new();
        let mut expired = Vec::new();
        for group in self.groups.values_mut() {
            if group.connections.is_empty() || !group.is_served() {
                continue;
            }
            let clock_ms = group.clock_ms(now);
            if group.may_expire {
                expired.extend(group.record.expired(clock_ms).into_iter().map(|hash| (group.id, hash)));
                group.may_expire = group.record.may_expire();
            }
            if due(group.retransform_at, now) {
                group.retransform_at = Some(now + self.options.retransform);
                retransform.extend(group.background.as_ref().map(|(id, _)| *id));
            }
        }
        for (group_id, hash) in expired {
            let released = self.groups.get_mut(&group_id).map(|g| g.remove_query(&hash)).unwrap_or_default();
            for id in released {
                self.release(group_id, id, now);
            }
            self.dirty.insert(group_id);
            self.want_step = true;
        }
        for id in retransform {
            self.start_queries(id, true);
        }
        self.give_up_waiting(now);
    }
}
