//! Plain HTTP of the port: probes and metrics.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use prometheus::{Encoder, TextEncoder};

use crate::server::Shared;
use crate::upgrade::STREAM_PATH;

pub(crate) fn answer<B>(shared: &Shared, request: &Request<B>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    match path {
        "/" if is_read => readiness(shared),
        "/keepalive" if is_read => text(StatusCode::OK, "OK"),
        "/metrics" if is_read => metrics(shared),
        _ if path.starts_with(STREAM_PATH) => {
            text(StatusCode::UPGRADE_REQUIRED, "the change stream is a WebSocket: send an upgrade request")
        }
        _ => text(StatusCode::NOT_FOUND, "not found: this port serves the change stream to other nodes"),
    }
}

pub(crate) fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body.to_owned().into())
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
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

fn metrics(shared: &Shared) -> Response<Full<Bytes>> {
    let mut body = Vec::new();
    match TextEncoder::new().encode(&shared.prometheus.gather(), &mut body) {
        Ok(()) => respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body.into()),
        Err(error) => {
            tracing::error!(%error, "encode metrics");
            text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded")
        }
    }
}
