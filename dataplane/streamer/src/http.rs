//! Plain HTTP of the port: probes, metrics, statistics.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode};
use port::text;

use crate::server::Shared;
use crate::upgrade::STREAM_PATH;

pub(crate) async fn answer<B>(shared: &Shared, request: &Request<B>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    match path {
        "/" if is_read => readiness(shared),
        "/keepalive" if is_read => text(StatusCode::OK, "OK"),
        "/metrics" if is_read => port::metrics(&shared.prometheus),
        "/statz" if is_read => shared.status_page.answer(request).await,
        _ if path.starts_with(STREAM_PATH) => {
            text(StatusCode::UPGRADE_REQUIRED, "the change stream is a WebSocket: send an upgrade request")
        }
        _ => text(StatusCode::NOT_FOUND, "not found: this port serves the change stream to other nodes"),
    }
}

fn readiness(shared: &Shared) -> Response<Full<Bytes>> {
    if shared.gate.is_ready() {
        text(StatusCode::OK, "OK")
    } else if shared.gate.is_draining() {
        text(StatusCode::SERVICE_UNAVAILABLE, "shutting down")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, "not ready")
    }
}
