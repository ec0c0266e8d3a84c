//! One accepted socket: reads what the client says, in order, and hands it on.
//!
//! To the views at once: they judge whose it is. To the application only when they have found its credentials good; a stranger that
//! says more than a little meanwhile is read no further.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use protocol::connect::ConnectParams;
use protocol::error::ErrorBody;
use protocol::up::{InitConnection, UpMessage, UpdateAuth};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use views::api::{ClientMessage, Command, ConnectionContext, ConnectionId, Handle, OutboxReceiver};

use crate::auth::Auth;
use crate::control::{Control, Ending};
use crate::expiry::Expiry;
use crate::held::{Act, Held};
use crate::meter::{Meter, Metered};
use crate::mutate::{PushContext, unix_ms};
use crate::room::{Room, no_room};
use crate::server::Shared;
use crate::standing::Standing;
use crate::writer::Writer;

/// How long, and for how much, a closed socket is still read, so that what was sent last is not lost to a reset.
const LINGER: Duration = Duration::from_secs(3);
const LINGER_BYTES: usize = 64 * 1024 * 1024;

/// Messages that a client may send at once before its average rate counts.
const BURST: f64 = 1000.0;

/// A client whose handshake succeeded.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) views: Handle,
    pub(crate) id: ConnectionId,
    pub(crate) params: ConnectParams,
    pub(crate) control: Arc<Control>,
    pub(crate) auth: Auth,
    pub(crate) context: Arc<ConnectionContext>,
    pub(crate) push: Arc<PushContext>,
    pub(crate) expiry: Expiry,
    pub(crate) standing: Arc<Standing>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) room: Room,
    pub(crate) held: Held,
    /// The views have had this socket's `initConnection`.
    pub(crate) initialized: bool,
}

/// Runs the socket to its end and returns why it ended, and the connection to linger on.
pub(crate) async fn serve(
    stream: WebSocketStream<Metered<TcpStream>>,
    mut outbox: OutboxReceiver,
    mut session: Session,
    first: Option<String>,
) -> (&'static str, Option<TcpStream>) {
    let shared = Arc::clone(&session.shared);
    let control = Arc::clone(&session.control);
    let expiry = session.expiry.clone();
    let (sink, mut source) = stream.split();
    let mut writer = Writer {
        sink,
        stall_timeout: shared.limits.send_stall_timeout,
        pong_after: shared.limits.pong_after,
        metrics: shared.metrics.clone(),
    };
    let writing = async {
        let reason = writer.run(&mut outbox, &control).await;
        control.end(Ending::Gone(reason));
        reason
    };
    let reading = async {
        tokio::select! {
            () = control.ended() => {}
            () = expiry.passed() => control.end(fail(ErrorBody::auth_invalidated("the token has expired"))),
            ending = session.read(&mut source, first) => control.end(ending),
        }
    };
    let (reason, ()) = tokio::join!(writing, reading);
    (reason, source.reunite(writer.sink).ok().map(|stream| stream.into_inner().into_inner()))
}

/// Waits for the peer to close first. Closing with unread data would reset the connection under the goodbye.
pub(crate) async fn linger(mut stream: TcpStream) {
    let drain = async {
        stream.shutdown().await?;
        let mut buffer = [0_u8; 4096];
        let mut budget = LINGER_BYTES;
        loop {
            let n = stream.read(&mut buffer).await?;
            if n == 0 || budget < n {
                return Ok::<(), std::io::Error>(());
            }
            budget -= n;
        }
    };
    // Whatever goes wrong here, the socket is dropped next.
    let _ = timeout(LINGER, Box::pin(drain)).await;
}

impl Session {
    async fn read(
        &mut self,
        source: &mut (impl Stream<Item = Result<Message, Error>> + Unpin),
        first: Option<String>,
    ) -> Ending {
        if let Some(text) = first
            && let ControlFlow::Break(ending) = self.receive(&text).await
        {
            return ending;
        }
        let mut pace = Pace::new(self.shared.limits.messages_per_second);
        let init_by = Instant::now() + self.shared.limits.init_timeout;
        let standing = Arc::clone(&self.standing);
        loop {
            let is_known = standing.is_known();
            if is_known && let Err(error) = self.carry_out_held() {
                return self.failed(error);
            }
            let next = tokio::select! {
                biased;
                () = standing.known(), if !is_known => continue,
                next = source.next(), if is_known || !self.held.is_full() => next,
                // Whoever comes back may do better.
                () = sleep_until(init_by), if !self.initialized => return Ending::Silent("no_init"),
            };
            let message = match next {
                Some(Ok(message)) => message,
                Some(Err(_)) if self.meter.is_over() => return self.failed(no_room()),
                Some(Err(error)) => return ending_of(&error, self.shared.limits.payload_bytes_max),
                None => return Ending::Gone("client_closed"),
            };
            let flow = match &message {
                Message::Text(text) => self.receive(text.as_str()).await,
                Message::Binary(bytes) => match std::str::from_utf8(bytes) {
                    Ok(text) => self.receive(text).await,
                    Err(_) => ControlFlow::Break(fail(ErrorBody::invalid_message("the frame is not UTF-8"))),
                },
                // Answered by the WebSocket layer.
                Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {
                    ControlFlow::Continue(())
                }
            };
            if let ControlFlow::Break(ending) = flow {
                return ending;
            }
            drop(message);
            self.meter.settle();
            if let Some(pause) = pace.spend() {
                tokio::time::sleep(pause).await;
            }
        }
    }

    async fn receive(&mut self, text: &str) -> ControlFlow<Ending> {
        let metrics = &self.shared.metrics;
        metrics.bytes_received.inc_by(text.len() as u64);
        if let Err(error) = self.room.check(text) {
            metrics.messages_received.with_label_values(&["invalid"]).inc();
            return ControlFlow::Break(fail(error));
        }
        let message = match UpMessage::parse(text) {
            Ok(message) => message,
            Err(error) => {
                metrics.messages_received.with_label_values(&["invalid"]).inc();
                tracing::warn!(connection = self.id.0, %error, "client sent an invalid message");
                return ControlFlow::Break(fail(error.into()));
            }
        };
        metrics.messages_received.with_label_values(&[message.tag()]).inc();
        match self.handle(message, text).await {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(self.failed(error)),
        }
    }

    fn failed(&self, error: ErrorBody) -> Ending {
        tracing::warn!(connection = self.id.0, kind = error.kind_name(), error = error.message(), "client failed");
        fail(error)
    }

    async fn handle(&mut self, message: UpMessage, text: &str) -> Result<(), ErrorBody> {
        match message {
            UpMessage::Ping => self.control.pong(),
            UpMessage::InitConnection(body) => return self.init_connection(body, text).await,
            UpMessage::ChangeDesiredQueries(body) => {
                return self.forward(ClientMessage::ChangeDesiredQueries(body), text).await;
            }
            UpMessage::DeleteClients(body) => {
                if self.initialized {
                    self.act(Act::Forget(body.client_ids.clone()))?;
                }
                return self.forward(ClientMessage::DeleteClients(body), text).await;
            }
            UpMessage::Inspect(body) => return self.forward(ClientMessage::Inspect(body), text).await,
            UpMessage::Push(push) => return self.act(Act::Push(push)),
            UpMessage::AckMutationResponses(ack) => {
                return self.act(Act::Acknowledge { client_id: ack.client_id, up_to: ack.id });
            }
            UpMessage::UpdateAuth(update) => return self.update_auth(update, text).await,
            UpMessage::Pull | UpMessage::CloseConnection => {
                tracing::debug!(connection = self.id.0, "ignored an obsolete message");
            }
        }
        Ok(())
    }

    /// For the application: now, or when the views have let this socket in.
    fn act(&mut self, act: Act) -> Result<(), ErrorBody> {
        let lease = self.standing.purse.take(act.bytes()).ok_or_else(no_room)?;
        self.held.keep(act, lease);
        if self.standing.is_known() { self.carry_out_held() } else { Ok(()) }
    }

    fn carry_out_held(&mut self) -> Result<(), ErrorBody> {
        let (group, client) = (&self.params.client_group_id, &self.params.client_id);
        let pusher = &self.shared.pusher;
        while let Some((act, lease)) = self.held.next() {
            match act {
                Act::Push(push) => pusher.push(group, client, self.id, &self.push, *push, lease)?,
                Act::Acknowledge { client_id, up_to } => pusher.clean_up(group, &client_id, up_to, &self.push, lease),
                Act::Forget(clients) => pusher.clean_up_clients(group, &clients, unix_ms(), &self.push, lease),
            }
        }
        Ok(())
    }

    async fn init_connection(&mut self, body: Box<InitConnection>, text: &str) -> Result<(), ErrorBody> {
        if self.initialized {
            return Err(ErrorBody::internal("initConnection was sent twice on one connection"));
        }
        self.initialized = true;
        self.context = Arc::new(ConnectionContext {
            user_query_url: body.user_query_url.clone(),
            user_query_headers: body.user_query_headers.clone(),
            ..copy(&self.context)
        });
        self.push = Arc::new(PushContext {
            url: body.user_push_url.clone(),
            headers: body.user_push_headers.clone(),
            connection: Arc::clone(&self.context),
        });
        self.forward(ClientMessage::InitConnection { body, context: Arc::clone(&self.context) }, text).await?;
        self.standing.introduce();
        Ok(())
    }

    async fn update_auth(&mut self, update: UpdateAuth, text: &str) -> Result<(), ErrorBody> {
        let next = self.shared.verifier.update(&self.auth, &update.auth, self.params.user_id.as_deref()).await?;
        let Some(auth) = next else { return Ok(()) };
        self.context =
            Arc::new(ConnectionContext { token: auth.token(), claims: auth.claims(), ..copy(&self.context) });
        self.push = Arc::new(PushContext {
            url: self.push.url.clone(),
            headers: self.push.headers.clone(),
            connection: Arc::clone(&self.context),
        });
        self.expiry.set(auth.expires_at());
        self.auth = auth;
        // Before initConnection the views learn the new token with it.
        self.forward(ClientMessage::UpdateAuth(Arc::clone(&self.context)), text).await
    }

    /// To the views. Before `initConnection` nothing is, and nothing after a newer socket of this client took over. Waits while
    /// the views hold too much of this socket.
    async fn forward(&mut self, message: ClientMessage, text: &str) -> Result<(), ErrorBody> {
        if !self.initialized {
            return Ok(());
        }
        if !self.standing.is_known() {
            self.held.count(text.len());
        }
        let credit = self.room.take(text).await?;
        if !self.control.has_ended() {
            // Views that are gone end every socket by dropping its outbox.
            let _ = self.views.commands.send(Command::Message(self.id, message, credit));
        }
        Ok(())
    }
}

/// A context to change fields of; the type itself is shared by reference and not cloned by accident.
fn copy(context: &ConnectionContext) -> ConnectionContext {
    ConnectionContext {
        client_group: context.client_group.clone(),
        user_id: context.user_id.clone(),
        token: context.token.clone(),
        claims: context.claims.clone(),
        request_headers: context.request_headers.clone(),
        user_query_url: context.user_query_url.clone(),
        user_query_headers: context.user_query_headers.clone(),
    }
}

fn fail(error: ErrorBody) -> Ending {
    Ending::Error(error, None)
}

fn ending_of(error: &Error, payload_bytes_max: usize) -> Ending {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            Ending::Close(1009, format!("message is longer than {payload_bytes_max} bytes"))
        }
        Error::Utf8(_) => Ending::Close(1007, "text is not UTF-8".to_owned()),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::Io(_) => Ending::Gone("connection_lost"),
        Error::Protocol(error) => Ending::Close(1002, error.to_string()),
        _ => Ending::Gone("connection_lost"),
    }
}

/// A token bucket: a client that floods is read more slowly, which it feels as back-pressure.
struct Pace {
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl Pace {
    fn new(per_second: u32) -> Pace {
        Pace { per_second: f64::from(per_second.max(1)), tokens: BURST, at: Instant::now() }
    }

    /// Takes one token and says how long to pause for it.
    fn spend(&mut self) -> Option<Duration> {
        let now = Instant::now();
        self.tokens = (self.tokens + now.duration_since(self.at).as_secs_f64() * self.per_second).min(BURST) - 1.0;
        self.at = now;
        (self.tokens < 0.0).then(|| Duration::from_secs_f64(-self.tokens / self.per_second))
    }
}
