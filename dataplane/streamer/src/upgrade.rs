//! From an upgrade request to a served socket.
//!
//! The token is judged first, then the versions; only then is the socket read. A peer that is no node of ours but one of the
//! original server is told so in the way it reads: over the socket, in the close frame.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::http::text;
use crate::line::End;
use crate::server::Shared;
use crate::socket::{self, Ended, Sink, Source, finish, receive, split};
use crate::wire::{
    ERROR_HEADER, FromOwner, FromSubscriber, Hello, SUBSCRIBER_FRAME_BYTES_MAX, VERSIONS_HEADER, negotiate,
    parse_versions, print_versions,
};
use crate::{hold, session};

pub(crate) const STREAM_PATH: &str = "/replication/v";
const FOREIGN: &str =
    "this server does not speak the original's replication protocol: run the same software on all nodes";

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Changes,
    Snapshot,
    /// A peer of the original server.
    Foreign,
}

pub(crate) fn is_upgrade<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(UPGRADE)
}

/// Answers an upgrade request; the socket itself goes on in a task of its own.
pub(crate) async fn accept(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
    peer: String,
) -> Response<Full<Bytes>> {
    let refuse = |status, name: &'static str, reason: &str| {
        shared.metrics.refusals.with_label_values(&[name]).inc();
        if shared.may_warn() {
            tracing::warn!(peer, reason, "refused a request for the change stream");
        }
        let mut response = text(status, reason);
        if let Ok(value) = HeaderValue::from_str(reason) {
            response.headers_mut().insert(ERROR_HEADER, value);
        }
        response
    };
    let Some((lowest, purpose)) = parse_path(request.uri().path()) else {
        return refuse(StatusCode::NOT_FOUND, "path", "this port serves the change stream to other nodes only");
    };
    let offered = request.headers().get(VERSIONS_HEADER).map(|value| value.to_str().ok().and_then(parse_versions));
    let (purpose, version) = match offered {
        None => (Purpose::Foreign, 0),
        Some(offered) => {
            if let Some(token) = &shared.options.token
                && !token.is_in(request.headers())
            {
                tokio::time::sleep(shared.options.refusal_delay).await;
                let reason = "the change stream's token is missing or wrong: ZERO_CHANGE_STREAMER_TOKEN (or ZERO_ADMIN_PASSWORD) must be the same on all nodes";
                let mut response = refuse(StatusCode::UNAUTHORIZED, "unauthorized", reason);
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                return response;
            }
            let ours = &shared.options.versions;
            let chosen = offered.as_ref().and_then(|theirs| negotiate(ours, theirs));
            let Some(version) = chosen else {
                let theirs = offered.as_ref().map_or_else(|| lowest.to_string(), print_versions);
                let reason = format!(
                    "this node speaks versions {} of the change stream, the peer {theirs}: upgrade step by step",
                    print_versions(ours)
                );
                return refuse(StatusCode::BAD_REQUEST, "version", &reason);
            };
            (purpose, version)
        }
    };
    let key = match check(&request) {
        Ok(key) => key,
        Err((status, reason)) => return refuse(status, "handshake", reason),
    };
    let Some(member) = shared.sockets.admit("change stream", shared.options.connections_max) else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "connections", "too many connections");
    };
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, key);
    if purpose != Purpose::Foreign {
        headers.insert(VERSIONS_HEADER, HeaderValue::from(version));
    }
    let upgrading = hyper::upgrade::on(&mut request);
    let shared = Arc::clone(shared);
    member.spawn(async move {
        let Ok(upgraded) = upgrading.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else { return };
        let stream = WebSocketStream::from_partially_read(
            parts.io.into_inner(),
            parts.read_buf.into(),
            Role::Server,
            Some(socket::config(SUBSCRIBER_FRAME_BYTES_MAX)),
        )
        .await;
        let (sink, source) = split(stream);
        if purpose == Purpose::Foreign {
            shared.metrics.refusals.with_label_values(&["foreign"]).inc();
            if shared.may_warn() {
                tracing::warn!(peer, "refused a node of the original server");
            }
            return finish(sink, source, None, FOREIGN).await;
        }
        serve(&shared, sink, source, purpose, &peer).await;
    });
    response
}

/// The lowest version that the peer speaks, and what it wants.
fn parse_path(path: &str) -> Option<(u16, Purpose)> {
    let (version, purpose) = path.strip_prefix(STREAM_PATH)?.split_once('/')?;
    let purpose = match purpose {
        "changes" => Purpose::Changes,
        "snapshot" => Purpose::Snapshot,
        _ => return None,
    };
    Some((version.parse().ok()?, purpose))
}

/// The accept key, or why this is no WebSocket handshake.
fn check<B>(request: &Request<B>) -> Result<HeaderValue, (StatusCode, &'static str)> {
    let bad = |reason| Err((StatusCode::BAD_REQUEST, reason));
    if request.method() != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "a WebSocket handshake is a GET request"));
    }
    let headers = request.headers();
    if !headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        return bad("only upgrades to websocket are known");
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|value| value != "13") {
        return bad("the Sec-WebSocket-Version must be 13");
    }
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24) else {
        return bad("the Sec-WebSocket-Key is missing or malformed");
    };
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).or_else(|_| bad("the Sec-WebSocket-Key is malformed"))
}

/// Serves an authenticated socket to its end, and says why it ended to the peer, the log and the metrics.
async fn serve(
    shared: &Shared,
    mut sink: Sink<TcpStream>,
    mut source: Source<TcpStream>,
    purpose: Purpose,
    peer: &str,
) {
    let (node, end) = match hello(&mut source, shared.options.handshake_timeout).await {
        Err(end) => (String::new(), end),
        Ok(hello) => {
            let end = converse(shared, &mut sink, &mut source, purpose, &hello).await;
            (hello.node, end)
        }
    };
    match end {
        End::Refused(refusal) => {
            shared.metrics.endings.with_label_values(&[refusal.name()]).inc();
            tracing::info!(peer, node, reason = %refusal, "ended a change stream");
            let reason = refusal.to_string();
            finish(sink, source, Some(FromOwner::Refused(refusal).encode()), &reason).await;
        }
        End::Socket(ended) => {
            shared.metrics.endings.with_label_values(&[ended.name()]).inc();
            tracing::info!(peer, node, reason = %ended, "a change stream ended");
        }
    }
}

async fn hello(source: &mut Source<TcpStream>, limit: Duration) -> Result<Hello, End> {
    match tokio::time::timeout(limit, receive(source, limit)).await {
        Err(_) => Err(Ended::Silent(limit).into()),
        Ok(frame) => match FromSubscriber::decode(frame?) {
            Ok(FromSubscriber::Hello(hello)) => Ok(hello),
            Ok(_) => Err(End::protocol("the first frame must say who subscribes")),
            Err(error) => Err(End::protocol(&error.to_string())),
        },
    }
}

async fn converse(
    shared: &Shared,
    sink: &mut Sink<TcpStream>,
    source: &mut Source<TcpStream>,
    purpose: Purpose,
    hello: &Hello,
) -> End {
    let fanout = match shared.gate.fanout() {
        Ok(fanout) => fanout,
        Err(refusal) => return End::Refused(refusal),
    };
    let window = hello.window.min(shared.options.window_bytes_max);
    let serving = async {
        let membership = match purpose {
            Purpose::Changes => fanout.subscribe(hello).await,
            Purpose::Snapshot | Purpose::Foreign => fanout.reserve(hello),
        };
        let membership = match membership {
            Ok(membership) => membership,
            Err(refusal) => return End::Refused(refusal),
        };
        if let Err(ended) = sink.send(FromOwner::Welcome(fanout.welcome()).encode()).await {
            return ended.into();
        }
        let Hello { node, after, .. } = hello;
        tracing::info!(node, %after, ?purpose, "a node follows the change stream");
        match purpose {
            Purpose::Changes => {
                session::stream(sink, source, &fanout, &membership, (*after, window), shared.pace()).await
            }
            Purpose::Snapshot | Purpose::Foreign => {
                hold::hold(sink, source, &fanout, &membership, window, shared.pace()).await
            }
        }
    };
    tokio::select! {
        end = serving => end,
        refusal = shared.gate.left(&fanout) => End::Refused(refusal),
    }
}
