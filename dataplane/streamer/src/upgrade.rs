//! From an upgrade request to a served socket.
//!
//! The token is judged first, then the versions; only then is the socket read. A peer that is no node of ours but one of the
//! original server is told so in the way it reads: over the socket, in the close frame.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, WWW_AUTHENTICATE};
use hyper::{Request, Response, StatusCode};
use port::text;
use port::websocket::{self, Handshake};

use crate::line::End;
use crate::server::Shared;
use crate::socket::{self, Ended, Sink, Source, finish, receive, split};
use crate::tls::Connection;
use crate::wire::{
    ERROR_HEADER, FromOwner, FromSubscriber, Hello, SUBSCRIBER_FRAME_BYTES_MAX, TELLS_ABREAST, VERSIONS_HEADER,
    negotiate, parse_versions, print_versions,
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

/// Answers an upgrade request; the socket itself goes on in a task of its own.
pub(crate) async fn accept(shared: &Arc<Shared>, mut request: Request<Incoming>, peer: &str) -> Response<Full<Bytes>> {
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
    let handshake = match Handshake::check(&request) {
        Ok(handshake) => handshake,
        Err(refusal) => return refuse(refusal.status, "handshake", refusal.reason),
    };
    let Some(member) = shared.sockets.admit("change stream", shared.options.connections_max) else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "connections", "too many connections");
    };
    let mut response = handshake.response();
    if purpose != Purpose::Foreign {
        response.headers_mut().insert(VERSIONS_HEADER, HeaderValue::from(version));
    }
    let upgrading = hyper::upgrade::on(&mut request);
    let (shared, peer) = (Arc::clone(shared), peer.to_owned());
    member.spawn(async move {
        let config = socket::config(SUBSCRIBER_FRAME_BYTES_MAX);
        let as_it_is = |stream: Connection| stream;
        let Some(stream) = websocket::upgraded(upgrading, config, as_it_is).await else { return };
        let (sink, source) = split(stream);
        if purpose == Purpose::Foreign {
            shared.metrics.refusals.with_label_values(&["foreign"]).inc();
            if shared.may_warn() {
                tracing::warn!(peer, "refused a node of the original server");
            }
            return finish(sink, source, None, FOREIGN).await;
        }
        serve(&shared, sink, source, (purpose, version), &peer).await;
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

/// Serves an authenticated socket to its end, and says why it ended to the peer, the log and the metrics.
async fn serve(
    shared: &Shared,
    mut sink: Sink<Connection>,
    mut source: Source<Connection>,
    spoken: (Purpose, u16),
    peer: &str,
) {
    let (node, end) = match hello(&mut source, shared.options.handshake_timeout).await {
        Err(end) => (String::new(), end),
        Ok(hello) => {
            let end = converse(shared, &mut sink, &mut source, spoken, &hello).await;
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

async fn hello(source: &mut Source<Connection>, limit: Duration) -> Result<Hello, End> {
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
    sink: &mut Sink<Connection>,
    source: &mut Source<Connection>,
    (purpose, version): (Purpose, u16),
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
                let behind = (version >= TELLS_ABREAST).then(|| shared.gate.behind());
                session::stream(sink, source, &fanout, &membership, (*after, window), behind, shared.pace()).await
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
