//! What the gateway and the views say to each other. The gateway owns sockets and HTTP; the views own client groups.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::ast::Ast;
use protocol::error::ErrorBody;
use protocol::up;
use tokio::sync::mpsc;

pub use crate::admission::{Admission, Admitted};
pub use crate::spool::{Piece, Spool};

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
    /// On whose account calls wait for each other; it says nothing of rights.
    pub client_group: String,
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
    /// One message whose text is the concatenation of these parts. They are shared between clients, and some may be on disk: the
    /// socket takes them piece by piece.
    Parts(Arc<[Piece]>),
    /// Close after everything queued before; `None` closes without a status code.
    Close(Option<(u16, String)>),
}

impl Frame {
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Frame::Text(bytes) => bytes.len(),
            Frame::Parts(parts) => parts.iter().map(Piece::len).sum(),
            Frame::Close(_) => 0,
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The sending half of a socket's queue.
///
/// Bodies of pokes pass whatever their size: their bytes are shared, or on disk, and the views tell a client nothing more while
/// much waits for its socket. Everything else is bounded in bytes: a client that asks and does not read is disconnected.
#[derive(Clone, Debug)]
pub struct Outbox {
    sender: mpsc::UnboundedSender<Frame>,
    queue: Arc<Queue>,
    text_bytes_max: usize,
}

/// The receiving half, owned by the socket's task.
#[derive(Debug)]
pub struct OutboxReceiver {
    receiver: mpsc::UnboundedReceiver<Frame>,
    queue: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: AtomicUsize,
    /// Of these, in [`Frame::Text`].
    text_bytes: AtomicUsize,
    overflowed: AtomicBool,
    awaited: Mutex<Option<Awaited>>,
    is_awaited: AtomicBool,
}

/// What to call when the queue has no more than so many bytes.
struct Awaited {
    bytes: usize,
    call: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Awaited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Awaited").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Queue {
    fn call_if_drained(&self) {
        if !self.is_awaited.load(Ordering::SeqCst) {
            return;
        }
        let mut awaited = self.awaited.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.bytes.load(Ordering::SeqCst);
        if let Some(due) = awaited.take_if(|awaited| left <= awaited.bytes) {
            self.is_awaited.store(false, Ordering::SeqCst);
            drop(awaited);
            (due.call)();
        }
    }
}

/// The client reads too slowly or is gone.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Outbox {
    /// `text_bytes_max`: what may wait beside the bodies of pokes.
    #[must_use]
    pub fn new(text_bytes_max: usize) -> (Outbox, OutboxReceiver) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let queue = Arc::new(Queue::default());
        (Outbox { sender, queue: Arc::clone(&queue), text_bytes_max }, OutboxReceiver { receiver, queue })
    }

    /// Queues a frame. A single one larger than the limit passes when nothing else is there that the limit counts.
    pub fn send(&self, frame: Frame) -> Result<(), Full> {
        // Nothing may follow the close, even if the receiver has made room meanwhile.
        if self.queue.overflowed.load(Ordering::Acquire) {
            return Err(Full);
        }
        let size = frame.len();
        if matches!(frame, Frame::Text(_)) {
            let before = self.queue.text_bytes.fetch_add(size, Ordering::Relaxed);
            if before > 0 && before + size > self.text_bytes_max {
                self.queue.text_bytes.fetch_sub(size, Ordering::Relaxed);
                self.queue.overflowed.store(true, Ordering::Release);
                // Best effort: the receiver sees the close or is gone already.
                let _ = self.sender.send(Frame::Close(None));
                return Err(Full);
            }
        }
        self.queue.bytes.fetch_add(size, Ordering::SeqCst);
        self.sender.send(frame).map_err(|_| Full)
    }

    /// Bytes queued and not yet handed to the socket.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.bytes.load(Ordering::SeqCst)
    }

    /// Calls once no more than so many bytes are queued; at once if that is so. The last wish counts. Dropped with the queue.
    pub fn when_drained(&self, bytes: usize, call: impl FnOnce() + Send + 'static) {
        {
            let mut awaited = self.queue.awaited.lock().unwrap_or_else(PoisonError::into_inner);
            *awaited = Some(Awaited { bytes, call: Box::new(call) });
            self.queue.is_awaited.store(true, Ordering::SeqCst);
        }
        self.queue.call_if_drained();
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
        self.queue.overflowed.load(Ordering::Acquire)
    }

    /// The socket has taken a frame.
    pub fn sent(&self, frame: &Frame) {
        let size = frame.len();
        if matches!(frame, Frame::Text(_)) {
            self.queue.text_bytes.fetch_sub(size, Ordering::Relaxed);
        }
        self.queue.bytes.fetch_sub(size, Ordering::SeqCst);
        self.queue.call_if_drained();
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

    fn text(text: &'static str) -> Frame {
        Frame::Text(Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test]
    async fn nothing_follows_the_close_after_an_overflow() {
        let (outbox, mut receiver) = Outbox::new(10);
        outbox.send(text("larger than the limit, but alone")).unwrap();
        assert_eq!(outbox.send(text("x")), Err(Full));
        // The socket takes what it has, so that there would be room again.
        let first = receiver.recv().await.unwrap();
        receiver.sent(&first);
        assert!(receiver.overflowed());
        assert_eq!((outbox.queued(), outbox.send(text("y"))), (0, Err(Full)));
        assert_eq!(outbox.clone().send(Frame::Close(None)), Err(Full));
        drop(outbox);
        assert!(matches!(receiver.recv().await, Some(Frame::Close(None))));
        assert!(receiver.recv().await.is_none());
    }

    #[tokio::test]
    async fn frames_are_counted_until_the_socket_has_them_and_bodies_have_no_limit() {
        let (outbox, mut receiver) = Outbox::new(10);
        let parts: Arc<[Piece]> = [Bytes::from_static(b"123456").into(), Bytes::from_static(b"7890").into()].into();
        for _ in 0..3 {
            outbox.send(Frame::Parts(Arc::clone(&parts))).unwrap();
        }
        outbox.send(text("1234567890")).unwrap();
        assert_eq!(outbox.queued(), 40);
        let (called, was_called) = std::sync::mpsc::channel();
        outbox.when_drained(20, move || called.send(()).unwrap());
        for left in [30, 20, 10] {
            let frame = receiver.recv().await.unwrap();
            assert_eq!(outbox.queued(), left + 10, "received is not sent");
            receiver.sent(&frame);
            assert_eq!(outbox.queued(), left);
            assert_eq!(was_called.try_recv().is_ok(), left == 20, "{left}");
        }
        let (called, was_called) = std::sync::mpsc::channel();
        outbox.when_drained(10, move || called.send(()).unwrap());
        assert!(was_called.try_recv().is_ok(), "nothing has to be waited for");
        assert_eq!(outbox.send(text("x")), Err(Full));
    }
}
