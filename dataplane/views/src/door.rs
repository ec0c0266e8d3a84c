//! The door: whoever comes is nothing to any client group before its credentials were found good.
//!
//! Where the API server judges credentials, it is asked as soon as a connection has sent its first message; until it has answered,
//! the connection's messages wait here. No group is made, claimed or changed for a stranger, so that nobody who merely knows a
//! group's id takes it from the node that serves it, or from its clients. Without an API server for queries there is nobody to
//! ask, and the gateway's check of the token counts alone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use protocol::down;
use protocol::error::{ErrorBody, Kind};
use protocol::up::{InitConnection, QueryDefinition, UpQueryOp};
use rows::Cookie;
use tracing::info;

use crate::api::{ClientMessage, Connect, ConnectionContext, ConnectionId, Credit, Frame, NamedQuery, Outbox};
use crate::core::{Core, Event};
use crate::ownership::rehome;
use crate::transform::{Answer, answer_of};

/// Who connects to a node that is leaving may be routed to it again for a moment.
const RETRY_WHILE_DRAINING: Duration = Duration::from_millis(250);

/// Longest id of a client group: the database indexes it.
const GROUP_ID_BYTES_MAX: usize = 1024;

/// A connection whose credentials are not known to be good.
pub struct Stranger {
    connect: Box<Connect>,
    cookie: Option<Cookie>,
    /// What it said, beginning with `initConnection`.
    waiting: VecDeque<(ClientMessage, Credit)>,
    /// Of its credentials; answers for older ones are ignored.
    revision: u64,
}

impl Core {
    pub(crate) fn connect(&mut self, connect: Box<Connect>) {
        if self.draining.is_some() {
            return self.send_on(&connect.outbox);
        }
        // What the database cannot store would be tried for ever, with everything else waiting behind it.
        if connect.client_group_id.len() > GROUP_ID_BYTES_MAX || connect.client_group_id.contains('\0') {
            let reason = format!("clientGroupID is longer than {GROUP_ID_BYTES_MAX} bytes or has a NUL character");
            return turn_away(&connect, &ErrorBody::invalid_connection_request(reason));
        }
        let cookie: Option<Cookie> = match connect.base_cookie.as_deref().map(str::parse).transpose() {
            Ok(cookie) => cookie,
            Err(error) => {
                // The client drops what it has and begins anew; it would come with the same cookie for ever.
                let kind = Kind::InvalidConnectionRequestBaseCookie;
                return turn_away(&connect, &ErrorBody::new(kind, format!("baseCookie: {error}")));
            }
        };
        if self.options.transformer.configured() {
            let id = connect.id;
            self.strangers.insert(id, Stranger { connect, cookie, waiting: VecDeque::new(), revision: 0 });
        } else {
            self.enter(*connect, cookie, 0);
        }
    }

    /// Takes a message of a stranger.
    pub(crate) fn stranger_says(&mut self, id: ConnectionId, message: ClientMessage, credit: Credit) {
        let Some(stranger) = self.strangers.get_mut(&id) else { return };
        match (stranger.waiting.front_mut(), message) {
            (None, ClientMessage::InitConnection { body, context }) => {
                let (named, asker) = (named_queries(&body), Arc::clone(&context));
                stranger.waiting.push_back((ClientMessage::InitConnection { body, context }, credit));
                if !named.is_empty() {
                    // The answer will be wanted at once; the transformer keeps it for a moment.
                    let early = self.options.transformer.transform(Arc::clone(&asker), named);
                    self.runtime.spawn(async move { drop(early.await) });
                }
                self.knock(id, asker);
            }
            // No view exists for a connection before initConnection.
            (None, _) => {}
            (Some((ClientMessage::InitConnection { context, .. }, _)), ClientMessage::UpdateAuth(newer)) => {
                *context = Arc::clone(&newer);
                self.knock(id, newer);
            }
            (Some(_), message) => stranger.waiting.push_back((message, credit)),
        }
    }

    /// Asks the API server about a stranger's credentials.
    fn knock(&mut self, id: ConnectionId, context: Arc<ConnectionContext>) {
        let Some(stranger) = self.strangers.get_mut(&id) else { return };
        stranger.revision += 1;
        let revision = stranger.revision;
        self.ask_to_validate(id, revision, context);
    }

    /// Asks the API server, with an empty transform, whether credentials are good.
    pub(crate) fn ask_to_validate(&self, connection: ConnectionId, revision: u64, context: Arc<ConnectionContext>) {
        let future = self.options.transformer.transform(context, Vec::new());
        let events = self.events.clone();
        self.runtime.spawn(async move {
            let result = answer_of(future).await.map(|_| ());
            let _ = events.send(Event::Answer(Answer::Validated { connection, revision, result }));
        });
    }

    /// Takes the API server's word on a stranger. False: it is none.
    pub(crate) fn judged(&mut self, id: ConnectionId, revision: u64, result: &Result<(), ErrorBody>) -> bool {
        let Some(stranger) = self.strangers.get(&id) else { return false };
        if stranger.revision != revision {
            return true;
        }
        let Some(stranger) = self.strangers.remove(&id) else { return true };
        match result {
            Ok(()) => {
                self.enter(*stranger.connect, stranger.cookie, revision);
                for (message, credit) in stranger.waiting {
                    self.client_message(id, message, credit);
                }
            }
            Err(body) => turn_away(&stranger.connect, body),
        }
        true
    }

    /// Sends every stranger to another node.
    pub(crate) fn send_strangers_on(&mut self) {
        for stranger in std::mem::take(&mut self.strangers).into_values() {
            self.send_on(&stranger.connect.outbox);
        }
    }

    fn send_on(&self, outbox: &Outbox) {
        self.options.metrics.rehomes.with_label_values(&["draining"]).inc();
        let error = down::error(&rehome("the server is shutting down", RETRY_WHILE_DRAINING));
        let _ = outbox.send(Frame::Text(error));
        let _ = outbox.send(Frame::Close(Some((1001, "shutting down".into()))));
    }
}

fn named_queries(body: &InitConnection) -> Vec<NamedQuery> {
    let named = |op: &UpQueryOp| match op {
        UpQueryOp::Put { hash, query: Some(QueryDefinition::Named { name, args }), .. } => {
            Some(NamedQuery { id: hash.clone(), name: name.clone(), args: args.clone().into() })
        }
        _ => None,
    };
    body.desired_queries_patch.iter().filter_map(named).collect()
}

fn turn_away(connect: &Connect, body: &ErrorBody) {
    info!(reason = body.kind_name(), client = connect.client_id, "turning a connection away");
    let _ = connect.outbox.send(Frame::Text(down::error(body)));
    let _ = connect.outbox.send(Frame::Close(None));
}
