//! Connections as they come, speak and go.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use protocol::down;
use protocol::error::{ErrorBody, Kind};
use rows::Cookie;
use rustc_hash::{FxHashMap, FxHashSet};
use tracing::info;

use crate::api::{ClientMessage, Connect, ConnectionId, Credit, Frame};
use crate::connection::{Connection, Phase};
use crate::core::{Core, observe};
use crate::group::Standing;
use crate::outgoing::{Dropped, Mark};

impl Core {
    /// Makes a connection that was let in one of its client group's. `revision` is of its credentials.
    pub(crate) fn enter(&mut self, connect: Connect, cookie: Option<Cookie>, revision: u64) {
        // The replica may be about to catch up. Until then another node may be better.
        let is_behind = cookie.is_some_and(|cookie| cookie.version > self.version);
        let group = self.group_named(&connect.client_group_id);
        let group = self.groups.get_mut(&group).expect("made by group_named");
        if group.idle_since.is_some() && group.known {
            // Others must not take it for idle any more.
            group.pending.record = true;
            self.dirty.insert(group.id);
            self.want_step = true;
        }
        group.connections.push(connect.id);
        group.connected_at = if group.epoch == 0 && group.connections.len() == 1 {
            connect.accepted_at
        } else {
            group.connected_at.max(connect.accepted_at)
        };
        if group.is_served() && !group.known {
            // That nobody knows it says nothing of what happened since it was asked.
            group.standing = Standing::Unclaimed;
        }
        let group_id = group.id;
        group.idle_since = None;
        group.clock_since.get_or_insert_with(Instant::now);
        self.connections.insert(
            connect.id,
            Connection {
                id: connect.id,
                group: group_id,
                client: connect.client_id,
                profile_id: connect.profile_id,
                context: connect.context,
                outbox: connect.outbox,
                admission: connect.admission,
                phase: Phase::New,
                has_joined: false,
                cookie,
                validated: false,
                validated_at: 0,
                revision,
                transforming: None,
                patience: None,
                waiting: VecDeque::new(),
                behind_since: is_behind.then(Instant::now),
                asked: FxHashSet::default(),
                touched: FxHashMap::default(),
                revalidate_at: None,
                answers: Vec::new(),
            },
        );
        if is_behind {
            self.behind.push(connect.id);
        } else {
            self.claim(group_id);
        }
    }

    /// `credit` is given back when the message was applied.
    pub(crate) fn client_message(&mut self, id: ConnectionId, message: ClientMessage, credit: Credit) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(group) = self.groups.get(&connection.group) else { return };
        if !group.is_served() || connection.behind_since.is_some() {
            connection.waiting.push_back((message, credit));
            return;
        }
        let result = match (connection.phase, message) {
            (Phase::New, ClientMessage::InitConnection { body, context }) => self.init_connection(id, *body, context),
            (_, ClientMessage::InitConnection { .. }) => {
                Err(ErrorBody::internal("initConnection was sent twice on one connection"))
            }
            (_, ClientMessage::UpdateAuth(context)) => {
                self.update_auth(id, context);
                Ok(())
            }
            // No view exists for the connection before initConnection: these are dropped.
            (Phase::New, _) => Ok(()),
            (_, ClientMessage::ChangeDesiredQueries(body)) => self.change_desired(id, body.desired_queries_patch),
            (_, ClientMessage::DeleteClients(body)) => self.delete_clients(id, &body.client_ids),
            (_, ClientMessage::Inspect(request)) => {
                self.inspect(id, &request);
                Ok(())
            }
        };
        if let Err(body) = result {
            self.reject(id, &body);
        }
    }

    /// Tells a client why it is cut off, and closes.
    pub(crate) fn reject(&mut self, id: ConnectionId, body: &ErrorBody) {
        let starts_over = matches!(
            body,
            ErrorBody::Basic { kind: Kind::ClientNotFound | Kind::InvalidConnectionRequestBaseCookie, .. }
        );
        if starts_over {
            self.make_start_over(id, body);
        } else {
            self.reject_with(id, body, Frame::Close(None));
        }
    }

    /// A client throws away what it has only if the group is still this node's: another one may know better.
    fn make_start_over(&mut self, id: ConnectionId, body: &ErrorBody) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (group, outbox) = (connection.group, connection.outbox.clone());
        self.outgoing.forget(id);
        let needs = self.confirm();
        for frame in [Frame::Text(down::error(body)), Frame::Close(None)] {
            if self.outgoing.push(needs, id, &outbox, frame, None, &mut |_| {}).is_err() {
                break;
            }
        }
        self.close_behind(group, vec![(id, outbox)]);
        self.disconnect(id, Some(body.kind_name()));
    }

    pub(crate) fn reject_with(&mut self, id: ConnectionId, body: &ErrorBody, close: Frame) {
        if let Some(connection) = self.connections.get(&id) {
            // What is held for it is of no use any more; neither it nor the error should wait for the database.
            self.outgoing.forget(id);
            let _ = connection.outbox.send(Frame::Text(down::error(body)));
            let _ = connection.outbox.send(close);
        }
        self.disconnect(id, Some(body.kind_name()));
    }

    /// Closes behind whatever is held for a connection.
    pub(crate) fn close(&mut self, id: ConnectionId, close: Frame) {
        if let Some(connection) = self.connections.get(&id) {
            let _ = self.outgoing.push(0, id, &connection.outbox, close, None, &mut |_| {});
        }
    }

    pub(crate) fn disconnect(&mut self, id: ConnectionId, reason: Option<&str>) {
        self.strangers.remove(&id);
        self.held_back.remove(&id);
        let Some(connection) = self.connections.remove(&id) else { return };
        if let Some(reason) = reason {
            info!(reason, client = connection.client, "closing a connection");
        }
        let Some(group) = self.groups.get_mut(&connection.group) else { return };
        group.connections.retain(|c| *c != id);
        if group.background.as_ref().is_some_and(|(of, _)| *of == id) {
            group.background = group
                .connections
                .iter()
                .rev()
                .filter_map(|c| self.connections.get(c))
                .find(|c| c.validated)
                .map(|c| (c.id, Arc::clone(&c.context)));
        }
        if group.connections.is_empty() {
            let now = Instant::now();
            group.clock_ms(now);
            group.clock_since = None;
            group.idle_since = Some(now);
            if group.known {
                group.pending.record = true;
                self.dirty.insert(group.id);
                self.want_step = true;
            }
        }
        self.ask_again_without(id, connection.group);
        self.take_claims(connection.group);
    }

    /// Queues frames for a connection; a connection that cannot take them is dropped.
    pub(crate) fn send(&mut self, id: ConnectionId, frames: impl IntoIterator<Item = (u64, Frame, Option<Mark>)>) {
        let Some(connection) = self.connections.get(&id) else { return };
        let outbox = connection.outbox.clone();
        let histogram = self.options.metrics.commit_to_poke_seconds.clone();
        let mut sent = |mark: Mark| observe(&histogram, mark);
        for (needs, frame, mark) in frames {
            if let Err(Dropped(id)) = self.outgoing.push(needs, id, &outbox, frame, mark, &mut sent) {
                self.disconnect(id, Some("slow client"));
                return;
            }
        }
    }
}
