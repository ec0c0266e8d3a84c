//! What the gateway and the views say to each other. The gateway owns sockets and HTTP; the views own client groups.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::ast::Ast;
use protocol::error::ErrorBody;
use protocol::up;
use tokio::sync::mpsc;

pub use crate::admission::{Admission, Admitted};

/// One accepted socket, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// A socket whose handshake succeeded and whose token, where the gateway can judge it, is good; `connected` has been queued on `outbox` before this is sent.
#[derive(Debug)]
pub struct Connect {
    pub id: ConnectionId,
    pub client_group_id: String,
    pub client_id: String,
    pub wsid: String,
    pub profile_id: String,
    /// Text of the URL's `baseCookie`; `None` when empty.
    pub base_cookie: Option<String>,
    pub protocol_version: u32,
    /// When the socket was accepted.
    pub accepted_at: Instant,
    pub context: Arc<ConnectionContext>,
    pub outbox: Outbox,
    /// To be used when the connection's `initConnection` is applied.
    pub admission: Admission,
}

/// On whose behalf API servers are called for this connection. Replaced as a whole by `updateAuth`.
#[derive(Default)]
pub struct ConnectionContext {
    pub user_id: Option<String>,
    pub token: Option<String>,
    /// Verified JWT claims, for legacy deployments.
    pub claims: Option<serde_json::Value>,
    /// Headers of the upgrade request that may be forwarded, lower-case names, multiple values joined with ", ".
    pub request_headers: Vec<(String, String)>,
    pub user_query_url: Option<String>,
    pub user_query_headers: Vec<(String, String)>,
}

impl std::fmt::Debug for ConnectionContext {
    /// Headers, token and claims are secrets and stay out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionContext")
            .field("user_id", &self.user_id)
            .field("has_token", &self.token.is_some())
            .field("user_query_url", &self.user_query_url)
            .finish_non_exhaustive()
    }
}

/// A message of a client, already parsed and checked against the protocol.
#[derive(Debug)]
pub enum ClientMessage {
    InitConnection {
        body: Box<up::InitConnection>,
        /// The context with the message's URLs and headers filled in.
        context: Arc<ConnectionContext>,
    },
    ChangeDesiredQueries(Box<up::ChangeDesiredQueries>),
    DeleteClients(up::DeleteClients),
    /// The token was accepted by the gateway and differs from the one before.
    UpdateAuth(Arc<ConnectionContext>),
    Inspect(Box<serde_json::Value>),
}

/// Room that a message takes in what its socket may have under way; given back when the views are done with it.
#[derive(Debug, Default)]
pub struct Credit {
    _room: Option<Box<dyn Any + Send>>,
}

impl Credit {
    /// What is given back by dropping it.
    #[must_use]
    pub fn of(room: impl Any + Send) -> Credit {
        Credit { _room: Some(Box::new(room)) }
    }
}

/// Sent to the views in the order of events on the socket.
#[derive(Debug)]
pub enum Command {
    Connect(Box<Connect>),
    Message(ConnectionId, ClientMessage, Credit),
    /// The socket is gone.
    Disconnect(ConnectionId),
    /// Send all clients elsewhere, one group after the other `within` so long, and take no others; `done` is dropped when all
    /// state is flushed and the groups are free.
    Drain {
        done: tokio::sync::oneshot::Sender<()>,
        within: Duration,
    },
}

/// Cheap handle to the views. Unbounded because the gateway bounds what each socket has under way, by [`Credit`].
#[derive(Clone, Debug)]
pub struct Handle {
    pub commands: mpsc::UnboundedSender<Command>,
}

/// A frame for one socket.
#[derive(Clone, Debug)]
pub enum Frame {
    /// One JSON text message.
    Text(Bytes),
    /// One message whose text is the concatenation of these parts (shared between clients).
    Parts(Arc<[Bytes]>),
    /// Close after everything queued before; `None` closes without a status code.
    Close(Option<(u16, String)>),
}

/// The sending half of a socket's queue. Bounded in bytes: a client that does not read is disconnected, because its store can
/// catch up by cookie later while memory here cannot grow.
#[derive(Clone, Debug)]
pub struct Outbox {
    sender: mpsc::UnboundedSender<Frame>,
    queued: Arc<AtomicUsize>,
    overflowed: Arc<AtomicBool>,
    limit: usize,
}

impl Frame {
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Frame::Text(bytes) => bytes.len(),
            Frame::Parts(parts) => parts.iter().map(Bytes::len).sum(),
            Frame::Close(_) => 0,
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The receiving half, owned by the socket's task.
#[derive(Debug)]
pub struct OutboxReceiver {
    receiver: mpsc::UnboundedReceiver<Frame>,
    queued: Arc<AtomicUsize>,
    overflowed: Arc<AtomicBool>,
}

/// The client reads too slowly or is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Outbox {
    #[must_use]
    pub fn new(limit: usize) -> (Outbox, OutboxReceiver) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let overflowed = Arc::new(AtomicBool::new(false));
        (
            Outbox { sender, queued: Arc::clone(&queued), overflowed: Arc::clone(&overflowed), limit },
            OutboxReceiver { receiver, queued, overflowed },
        )
    }

    /// Queues a frame. A single frame larger than the limit passes when the queue is empty.
    pub fn send(&self, frame: Frame) -> Result<(), Full> {
        // Nothing may follow the close, even if the receiver has made room meanwhile.
        if self.overflowed.load(Ordering::Acquire) {
            return Err(Full);
        }
        let size = frame.len();
        let before = self.queued.fetch_add(size, Ordering::Relaxed);
        if before > 0 && before + size > self.limit {
            self.queued.fetch_sub(size, Ordering::Relaxed);
            self.overflowed.store(true, Ordering::Release);
            // Best effort: the receiver sees the close or is gone already.
            let _ = self.sender.send(Frame::Close(None));
            return Err(Full);
        }
        self.sender.send(frame).map_err(|_| Full)
    }

    /// Bytes queued and not yet handed to the socket.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }
}

impl OutboxReceiver {
    /// The next frame, `None` when every sender is gone. Call [`OutboxReceiver::sent`] once the socket has taken it.
    pub async fn recv(&mut self) -> Option<Frame> {
        self.receiver.recv().await
    }

    /// Whether a frame was refused: the receiver then gives up what is queued and disconnects.
    #[must_use]
    pub fn overflowed(&self) -> bool {
        self.overflowed.load(Ordering::Acquire)
    }

    pub fn sent(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A named query to be turned into an AST by the application's API server.
#[derive(Clone, Debug)]
pub struct NamedQuery {
    /// The client's hash of the query, opaque.
    pub id: String,
    pub name: String,
    /// JSON array.
    pub args: serde_json::Value,
}

/// The answer for one query.
#[derive(Debug)]
pub enum Transformed {
    Ast {
        id: String,
        ast: Box<Ast>,
    },
    /// An `app` or `parse` error, passed to the client as it is (`ErroredQuery`).
    Failed {
        id: String,
        error: serde_json::Value,
    },
}

pub type TransformFuture = Pin<Box<dyn Future<Output = Result<Vec<Transformed>, ErrorBody>> + Send>>;

/// Calls `ZERO_QUERY_URL`. An empty list validates the connection's credentials. The error is what the client receives.
pub trait Transformer: Send + Sync + 'static {
    /// `false` when no query URL is configured: named queries then stay un-got and nothing is validated.
    fn configured(&self) -> bool;
    fn transform(&self, context: Arc<ConnectionContext>, queries: Vec<NamedQuery>) -> TransformFuture;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_follows_the_close_after_an_overflow() {
        let (outbox, mut receiver) = Outbox::new(10);
        let frame = |text: &'static str| Frame::Text(Bytes::from_static(text.as_bytes()));
        outbox.send(frame("larger than the limit, but alone")).unwrap();
        assert_eq!(outbox.send(frame("x")), Err(Full));
        // The socket takes what it has, so that there would be room again.
        let Some(Frame::Text(first)) = receiver.recv().await else { panic!("the first frame") };
        receiver.sent(first.len());
        assert!(receiver.overflowed());
        assert_eq!((outbox.queued(), outbox.send(frame("y"))), (0, Err(Full)));
        assert_eq!(outbox.clone().send(Frame::Close(None)), Err(Full));
        drop(outbox);
        assert!(matches!(receiver.recv().await, Some(Frame::Close(None))));
        assert!(receiver.recv().await.is_none());
    }

    #[tokio::test]
    async fn frames_are_counted_until_the_socket_has_them() {
        let (outbox, mut receiver) = Outbox::new(10);
        let parts: Arc<[Bytes]> = [Bytes::from_static(b"123"), Bytes::from_static(b"45")].into();
        outbox.send(Frame::Parts(Arc::clone(&parts))).unwrap();
        outbox.send(Frame::Parts(Arc::clone(&parts))).unwrap();
        outbox.send(Frame::Text(Bytes::new())).unwrap();
        assert_eq!(outbox.queued(), 10);
        let frame = receiver.recv().await.unwrap();
        assert_eq!(outbox.queued(), 10, "received is not sent");
        receiver.sent(frame.len());
        outbox.send(Frame::Parts(parts)).unwrap();
        assert_eq!((outbox.queued(), receiver.overflowed()), (10, false));
    }
}
