//! Messages of clients: joining a group, changing what is desired, deleting clients, new credentials.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::down;
use protocol::error::{ErrorBody, Kind};
use protocol::up::{InitConnection, UpQueryOp};
use rows::Cookie;
use serde_json::json;

use crate::api::{Admitted, ConnectionContext, ConnectionId, Frame};
use crate::connection::{Connection, Phase};
use crate::convert::{KeyChoice, check_client_schema};
use crate::core::Core;
use crate::group::Group;
use crate::group::record::{DesirePatch, Desired, Inherited, Refused, Unkept};
use crate::ownership::rehome;

/// A joining client's first poke waits so long for its new queries: most answer at once, and one poke is cheaper for everybody
/// than two.
const PATIENCE: Duration = Duration::from_millis(20);
/// To try elsewhere after, when the replica here did not reach the client's cookie.
const RETRY_BEHIND: Duration = Duration::from_secs(2);

impl Core {
    /// Applies the first message of a connection that was let in.
    pub(crate) fn init_connection(
        &mut self,
        id: ConnectionId,
        body: InitConnection,
        context: Arc<ConnectionContext>,
    ) -> Result<(), ErrorBody> {
        if self.is_foreign(id, &context) || !self.admit(id) {
            return Ok(());
        }
        let (version, now) = (self.version, Instant::now());
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        let Some(group) = self.groups.get_mut(&connection.group) else { return Ok(()) };
        if let Some(cookie) = connection.cookie {
            check_cookie(group, cookie, version)?;
        }
        check_sent_schema(group, &body)?;
        // Before it is taken: a schema that cannot be served must not bind the group.
        if let Some(schema) = group.record.client_schema.as_ref().or(body.client_schema.as_ref()) {
            check_client_schema(schema, &self.schema)
                .map_err(|problems| ErrorBody::new(Kind::SchemaVersionNotSupported, problems))?;
        }
        take_client_schema(group, &body);
        let client = connection.client.clone();
        group.record.profile_id = Some(connection.profile_id.clone());
        group.known = true;
        let clock_ms = group.clock_ms(now);
        let new = group.record.ensure_client(&client).map_err(refused)?;
        group.pending.record |= new;
        if let Some(active) = &body.active_clients {
            let gone: Vec<String> =
                group.record.clients.iter().filter(|c| **c != client && !active.contains(c)).cloned().collect();
            for other in gone {
                let patches = group.record.delete_client(&other, clock_ms);
                note(group, patches, true);
            }
        }
        connection.context = context;
        connection.revision += 1;
        connection.phase = Phase::Joining;
        connection.patience = Some(now + PATIENCE);
        self.impatient_at.get_or_insert(now + PATIENCE);
        if let Some(deleted) = &body.deleted {
            self.delete_clients(id, &deleted.client_ids)?;
        }
        self.validated(id);
        self.change(id, body.desired_queries_patch)?;
        // The client may see other results than those before it: every query of the group is transformed for it.
        self.start_queries(id, true);
        Ok(())
    }

    /// Applies a change of what a client desires.
    pub(crate) fn change_desired(&mut self, id: ConnectionId, ops: Vec<UpQueryOp>) -> Result<(), ErrorBody> {
        self.change(id, ops)?;
        self.start_queries(id, false);
        Ok(())
    }

    fn change(&mut self, id: ConnectionId, ops: Vec<UpQueryOp>) -> Result<(), ErrorBody> {
        let Some((connection, group)) = self.connection_and_group(id) else { return Ok(()) };
        let clock_ms = group.clock_ms(Instant::now());
        let client = connection.client.clone();
        let Desired { patches, unkept } = group.record.desire(&client, ops, clock_ms).map_err(refused)?;
        let changed = !patches.is_empty();
        note(group, patches, changed);
        group.may_expire = true;
        let group = group.id;
        for Unkept { hash, reason } in unkept {
            self.query_failed(group, &hash, &reason);
        }
        self.dirty.insert(group);
        self.want_step = true;
        Ok(())
    }

    /// Deletes clients and acknowledges that to every connection of the group.
    pub(crate) fn delete_clients(&mut self, id: ConnectionId, clients: &[String]) -> Result<(), ErrorBody> {
        if clients.is_empty() {
            return Ok(());
        }
        let Some((connection, group)) = self.connection_and_group(id) else { return Ok(()) };
        if clients.contains(&connection.client) {
            return Err(refused(Refused::DeletesItself { client: connection.client.clone() }));
        }
        let clock_ms = group.clock_ms(Instant::now());
        for client in clients {
            let patches = group.record.delete_client(client, clock_ms);
            note(group, patches, true);
        }
        group.may_expire = true;
        let (group_id, connections) = (group.id, group.connections.clone());
        let frame = Frame::Text(down::delete_clients(clients, &[]));
        for connection in connections {
            self.send(connection, [(0, frame.clone(), None)]);
        }
        self.dirty.insert(group_id);
        self.want_step = true;
        Ok(())
    }

    /// New credentials: they are checked, and every query is transformed with them.
    pub(crate) fn update_auth(&mut self, id: ConnectionId, context: Arc<ConnectionContext>) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let are_others = connection.context.claims != context.claims;
        connection.context = context;
        connection.revision += 1;
        // Answers for the former credentials are of no use.
        connection.answers.clear();
        if connection.phase == Phase::New {
            return;
        }
        connection.validated = false;
        if are_others {
            self.claims_replaced(id);
        }
        self.validate(id);
        self.start_queries(id, true);
    }

    /// The inspector is not there yet; a client that asks is told so in the inspector's own way.
    pub(crate) fn inspect(&mut self, id: ConnectionId, request: &serde_json::Value) {
        let answer =
            json!({"id": request.get("id"), "op": "error", "value": "the inspector is not supported by this server"});
        self.send(id, [(0, Frame::Text(down::inspect(&answer)), None)]);
    }

    /// Goes on with a connection that waited for the replica.
    pub(crate) fn resume(&mut self, id: ConnectionId) {
        self.behind.retain(|behind| *behind != id);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.behind_since = None;
        let group = connection.group;
        if self.groups.get(&group).is_some_and(Group::is_served) {
            self.replay(id);
        } else {
            self.claim(group);
        }
    }

    /// Whether a connection is of another user than the group, which it is then told.
    pub(crate) fn is_foreign(&mut self, id: ConnectionId, context: &ConnectionContext) -> bool {
        const MESSAGE: &str = "the client group belongs to another user";
        let group = self.connections.get(&id).and_then(|c| self.groups.get(&c.group));
        let user = group.and_then(|g| g.record.user.as_ref());
        let foreign = user.is_some_and(|user| !user.is(context.user_id.as_deref()));
        if foreign {
            self.reject_with(id, &ErrorBody::unauthorized(MESSAGE), Frame::Close(Some((3000, MESSAGE.into()))));
        }
        foreign
    }

    /// Lets a connection in, in place of an older one of its client. False: a newer one was let in before.
    fn admit(&mut self, id: ConnectionId) -> bool {
        match self.connections.get_mut(&id).map(|connection| connection.admission.admit()) {
            Some(Admitted::InsteadOf(old)) => self.disconnect(old, Some("displaced")),
            Some(Admitted::Alone) => {}
            Some(Admitted::TooLate) | None => return false,
        }
        true
    }

    /// Looks again at connections that waited long enough for their new queries.
    pub(crate) fn look_at_impatient(&mut self, now: Instant) {
        self.impatient_at = None;
        for connection in self.connections.values() {
            match connection.patience {
                Some(at) if at <= now => {
                    self.dirty.insert(connection.group);
                    self.want_step = true;
                }
                Some(at) => self.impatient_at = Some(self.impatient_at.map_or(at, |other| other.min(at))),
                None => {}
            }
        }
    }

    fn connection_and_group(&mut self, id: ConnectionId) -> Option<(&mut Connection, &mut Group)> {
        let connection = self.connections.get_mut(&id)?;
        let group = self.groups.get_mut(&connection.group)?;
        Some((connection, group))
    }
}

/// Whether the group can go on from a client's cookie (sync-protocol 9.2).
fn check_cookie(group: &mut Group, cookie: Cookie, version: rows::Version) -> Result<(), ErrorBody> {
    if !group.known && cookie > Cookie::EMPTY {
        return Err(ErrorBody::client_not_found(
            "the client group is not known here; its data was removed or never arrived",
        ));
    }
    if cookie.version > version && cookie <= group.cookie {
        return Err(rehome("this node is behind what the client has seen", RETRY_BEHIND));
    }
    let between = |i: &Inherited| i.until < cookie && (cookie < i.since || cookie > group.cookie);
    if group.record.inherited.as_ref().is_some_and(between) {
        // Nobody gave it out of whom anything is remembered. With this answer the client does not drop its database.
        return Err(ErrorBody::client_not_found(
            "the client's cookie is none of those that are remembered of the client group",
        ));
    }
    if cookie > group.cookie {
        // Pokes of row changes are not written down one by one, so a plain version up to ours may have been sent.
        if cookie.config > 0 || cookie.version > version {
            return Err(ErrorBody::new(
                Kind::InvalidConnectionRequestBaseCookie,
                format!("the client's cookie {cookie} is ahead of the client group's {}", group.cookie),
            ));
        }
        group.cookie = cookie;
    }
    if cookie < group.record.floor && cookie > Cookie::EMPTY {
        return Err(ErrorBody::client_not_found("the client was away for longer than the server remembers"));
    }
    Ok(())
}

/// Whether a group can go on with the schema that a client sent, if it sent one.
fn check_sent_schema(group: &Group, body: &InitConnection) -> Result<(), ErrorBody> {
    match (&group.record.client_schema, &body.client_schema) {
        (None, None) => Err(ErrorBody::invalid_connection_request(
            "the first initConnection of a client group must carry a clientSchema",
        )),
        (Some(stored), Some(sent)) if stored != sent => Err(ErrorBody::invalid_connection_request(
            "the clientSchema differs from the one that the client group was made with",
        )),
        _ => Ok(()),
    }
}

fn take_client_schema(group: &mut Group, body: &InitConnection) {
    if group.record.client_schema.is_none()
        && let Some(sent) = &body.client_schema
    {
        group.keys = Arc::new(KeyChoice::of(sent));
        group.record.client_schema = Some(sent.clone());
        group.pending.record = true;
    }
}

fn note(group: &mut Group, patches: Vec<DesirePatch>, record: bool) {
    group.pending.desires.extend(patches);
    group.pending.record |= record;
}

fn refused(reason: Refused) -> ErrorBody {
    ErrorBody::internal(reason.to_string())
}
