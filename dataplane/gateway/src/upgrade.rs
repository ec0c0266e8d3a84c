//! From an upgrade request to a registered client.
//!
//! A request that is no proper WebSocket handshake is refused over HTTP. Everything else is upgraded first and told what is
//! wrong over the socket, because browsers hide the HTTP answer from the client.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderValue, ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use hyper::{Request, Response, StatusCode};
use port::text;
use port::websocket::{self, Handshake};
use protocol::connect::{self, ConnectError, ConnectParams, ProtocolHeader};
use protocol::down;
use protocol::error::{ErrorBody, Kind};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use views::api::{Admission, Admitted, Command, Connect, ConnectionContext, ConnectionId, Frame, Handle, Outbox};

use bytes::Bytes;

use crate::auth::Auth;
use crate::control::{Control, Ending};
use crate::expiry::Expiry;
use crate::held::Held;
use crate::meter::{Meter, Metered};
use crate::mutate::{PushContext, unix_ms};
use crate::room::Room;
use crate::server::Shared;
use crate::socket::{self, Session, linger};
use crate::standing::Standing;
use crate::writer::{FRAGMENT_BYTES, Writer};

/// Bytes read from a socket at once. Every idle socket holds a buffer of this size.
const READ_BUFFER_BYTES: usize = 4 * 1024;
/// Who connects to a node that is leaving may be routed to it again for a moment.
const RETRY_WHILE_DRAINING_MS: u64 = 250;

/// Answers an upgrade request; the socket itself goes on in a task of its own.
pub(crate) async fn accept(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
    peer: IpAddr,
) -> Response<Full<Bytes>> {
    shared.metrics.connection_attempts.inc();
    let refuse = |label: &str, status, reason: &str| {
        shared.metrics.connection_failures.with_label_values(&[label]).inc();
        text(status, reason)
    };
    let handshake = match Handshake::check(&request) {
        Ok(handshake) => handshake,
        Err(refusal) => return refuse("http", refusal.status, refusal.reason),
    };
    if !shared.origins.admits(request.headers().get(ORIGIN).map(|origin| origin.to_str().unwrap_or_default())) {
        return refuse("origin", StatusCode::FORBIDDEN, "pages of this origin may not connect");
    }
    // Whoever waited for the port alone comes too early, and would not come back for a while.
    let _ = timeout(shared.limits.start_timeout, shared.gate.opened()).await;
    let Some(views) = shared.gate.views() else {
        return refuse("http", StatusCode::SERVICE_UNAVAILABLE, "this node does not take clients now");
    };
    if shared.sockets.live() >= shared.limits.connections_max {
        return refuse("http", StatusCode::SERVICE_UNAVAILABLE, "too many connections");
    }
    let Some(guest) = shared.addresses.admit(peer) else {
        return refuse("address", StatusCode::SERVICE_UNAVAILABLE, "too many connections from this address");
    };
    let offered = request.headers().get(SEC_WEBSOCKET_PROTOCOL).cloned();
    let asked = ask(&request, offered.as_ref(), &shared.forwarded);
    let Some(standing) = Standing::stranger(shared.budget.purse(), guest, kept_bytes(&request, &asked)) else {
        return refuse("memory", StatusCode::SERVICE_UNAVAILABLE, "too many connections wait to be judged");
    };
    let mut response = handshake.response();
    // Browsers abort a handshake that offered a subprotocol and got none.
    if let Some(echo) = offered.as_ref().and_then(first_offer) {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, echo);
    }
    let upgrading = hyper::upgrade::on(&mut request);
    let shared_in_task = Arc::clone(shared);
    shared.sockets.spawn("socket", async move {
        let shared = shared_in_task;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(FRAGMENT_BYTES)
            .max_write_buffer_size(64 * FRAGMENT_BYTES)
            .max_message_size(Some(shared.limits.payload_bytes_max))
            .max_frame_size(Some(shared.limits.payload_bytes_max));
        let meter = Meter::new(standing);
        let metered = |stream| Metered::new(stream, Arc::clone(&meter));
        let Some(stream) = websocket::upgraded(upgrading, config, metered).await else { return };
        admit(&shared, views, asked, stream, meter).await;
    });
    response
}

/// What the request asks for, if it makes sense.
type Asked = Result<(ConnectParams, ProtocolHeader, Vec<(String, String)>), ConnectError>;

fn ask(request: &Request<Incoming>, offered: Option<&HeaderValue>, forwarded: &[String]) -> Asked {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    let params = ConnectParams::parse(target)?;
    let offered = offered
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| ConnectError::Header("the header is missing".to_owned()))?;
    Ok((params, ProtocolHeader::decode(offered)?, retained(request.headers(), forwarded)))
}

/// Of the request, what is kept as long as the socket: its parameters, token and headers, and for a moment its first message.
fn kept_bytes(request: &Request<Incoming>, asked: &Asked) -> usize {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let Ok((_, header, retained)) = asked else { return target };
    let header = [&header.auth_token, &header.init_connection].into_iter().flatten().map(String::len).sum::<usize>();
    target + header + retained.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
}

/// Headers of the request that may have to be forwarded to API servers. They are kept as long as the socket: the others are not.
fn retained(headers: &HeaderMap, forwarded: &[String]) -> Vec<(String, String)> {
    headers
        .keys()
        .filter(|name| forwarded.iter().any(|forwarded| forwarded == name.as_str()))
        .map(|name| {
            let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
            (name.as_str().to_owned(), values.join(", "))
        })
        .collect()
}

fn first_offer(offered: &HeaderValue) -> Option<HeaderValue> {
    HeaderValue::from_str(connect::first_offer(offered.to_str().ok()?)).ok()
}

type Socket = WebSocketStream<Metered<TcpStream>>;

async fn admit(shared: &Arc<Shared>, views: Handle, asked: Asked, stream: Socket, meter: Arc<Meter>) {
    let accepted_at = Instant::now();
    if shared.gate.is_draining() {
        // A refused handshake makes clients wait for seconds; this sends them to another node at once.
        let error = ErrorBody::rehome("the server is shutting down", Some(RETRY_WHILE_DRAINING_MS));
        return turn_away(shared, stream, "draining", Ending::Error(error, None)).await;
    }
    let (params, header, request_headers) = match asked {
        Ok(asked) => asked,
        Err(error) => return turn_away(shared, stream, "bad_request", Ending::Close(1002, error.to_string())).await,
    };
    let Some(version) = params.protocol_version else {
        let error = ErrorBody::new(
            Kind::VersionNotSupported,
            format!(
                "server supports protocol versions {} to {}, the client asked for {}",
                connect::MIN_PROTOCOL_VERSION,
                connect::MAX_PROTOCOL_VERSION,
                params.requested_version
            ),
        );
        return turn_away(shared, stream, "protocol_version", Ending::Error(error, None)).await;
    };
    let token = header.auth_token.as_deref();
    let checking = shared.verifier.authenticate(token, params.user_id.as_deref());
    let auth = match timeout(shared.limits.handshake_timeout, checking).await {
        Ok(Ok(auth)) => auth,
        Ok(Err(error)) => {
            tracing::info!(kind = error.kind_name(), error = error.message(), "connection refused");
            // Only for credentials that were judged; other failures close plainly.
            let status = error.is_auth().then(|| (3000, error.message().to_owned()));
            return turn_away(shared, stream, "auth", Ending::Error(error, status)).await;
        }
        Err(_) => {
            let error = ErrorBody::overloaded("the token could not be checked in time", 5_000, 30_000);
            return turn_away(shared, stream, "auth", Ending::Error(error, None)).await;
        }
    };
    let asked = Accepted { params, header, request_headers, version, auth, meter, accepted_at };
    // Boxed: the state of the handshake must not stay in the memory of a socket that may live for days.
    Box::pin(welcome(shared, views, asked, stream)).await;
}

struct Accepted {
    params: ConnectParams,
    header: ProtocolHeader,
    request_headers: Vec<(String, String)>,
    version: u32,
    auth: Auth,
    meter: Arc<Meter>,
    accepted_at: Instant,
}

async fn welcome(shared: &Arc<Shared>, views: Handle, accepted: Accepted, stream: Socket) {
    let Accepted { params, header, request_headers, version, auth, meter, accepted_at } = accepted;
    let context = Arc::new(ConnectionContext {
        client_group: params.client_group_id.clone(),
        user_id: params.user_id.clone(),
        token: auth.token(),
        claims: auth.claims(),
        request_headers,
        user_query_url: None,
        user_query_headers: Vec::new(),
    });
    let (outbox, receiver) = Outbox::new(shared.limits.outbox_bytes_max);
    let id = shared.registry.new_id();
    let control = Arc::new(Control::default());
    let standing = Arc::clone(meter.standing());
    let (group, client) = (params.client_group_id.clone(), params.client_id.clone());
    shared.registry.enter(id, Arc::clone(&control));
    // An empty queue takes any frame.
    let _ = outbox.send(Frame::Text(down::connected(&params.wsid, unix_ms())));
    let connect = Connect {
        id,
        client_group_id: params.client_group_id.clone(),
        client_id: params.client_id.clone(),
        wsid: params.wsid.clone(),
        profile_id: params.profile_id.clone(),
        base_cookie: params.base_cookie.clone(),
        protocol_version: version,
        accepted_at,
        context: Arc::clone(&context),
        outbox,
        admission: admission(shared, &group, &client, id, &standing),
    };
    // Views that are gone drop the outbox with the command, which ends the socket.
    let _ = views.commands.send(Command::Connect(Box::new(connect)));
    shared.metrics.connection_successes.inc();
    let open = shared.metrics.open_connections.with_label_values(&[version.to_string()]);
    open.inc();
    let session = Session {
        shared: Arc::clone(shared),
        views: views.clone(),
        id,
        params,
        control,
        expiry: Expiry::new(auth.expires_at()),
        auth,
        push: Arc::new(PushContext { connection: Arc::clone(&context), ..PushContext::default() }),
        context,
        room: Room::new(shared.limits.message_memory_max, Arc::clone(&standing)),
        standing,
        meter,
        held: Held::default(),
        initialized: false,
    };
    let (reason, stream) = socket::serve(stream, receiver, session, header.init_connection).await;
    open.dec();
    shared.metrics.disconnects.with_label_values(&[reason]).inc();
    tracing::debug!(connection = id.0, reason, "socket closed");
    if shared.registry.remove(&group, &client, id) {
        let _ = views.commands.send(Command::Disconnect(id));
    }
    if let Some(stream) = stream {
        linger(stream).await;
    }
}

/// What happens when the views let a socket in.
fn admission(shared: &Arc<Shared>, group: &str, client: &str, id: ConnectionId, standing: &Arc<Standing>) -> Admission {
    let registry = Arc::clone(&shared.registry);
    let (group, client, standing) = (group.to_owned(), client.to_owned(), Arc::clone(standing));
    Admission::new(move || {
        let admitted = registry.admit(&group, &client, id);
        if admitted != Admitted::TooLate {
            standing.become_known();
        }
        admitted
    })
}

/// Says why and closes; nobody else ever hears of this socket.
async fn turn_away(shared: &Arc<Shared>, stream: Socket, label: &str, ending: Ending) {
    shared.metrics.connection_failures.with_label_values(&[label]).inc();
    let control = Control::default();
    control.end(ending);
    let (_outbox, mut receiver) = Outbox::new(0);
    let mut writer = Writer {
        sink: stream,
        stall_timeout: shared.limits.send_stall_timeout,
        pong_after: shared.limits.pong_after,
        metrics: shared.metrics.clone(),
    };
    writer.run(&mut receiver, &control).await;
    linger(writer.sink.into_inner().into_inner()).await;
}
