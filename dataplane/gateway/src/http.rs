//! Plain HTTP: probes, metrics, statistics.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use port::text;
use serde_json::json;

use crate::server::Shared;

pub(crate) async fn answer<B>(shared: &Shared, request: &Request<B>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let (label, mut response) = match path {
        "/" if is_read => ("/", ready(shared)),
        "/keepalive" if is_read => {
            shared.gate.saw_keepalive();
            ("/keepalive", alive(shared))
        }
        "/metrics" if is_read => ("/metrics", port::metrics(&shared.prometheus)),
        "/statz" if is_read => ("/statz", shared.status_page.answer(request).await),
        _ => ("other", not_found(request.method(), path)),
    };
    if shared.gate.is_draining() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    shared.metrics.http_requests.with_label_values(&[label, response.status().as_str()]).inc();
    response
}

/// For those that keep the process alive, and for load balancers of deployments that ask nothing else: not before the node is
/// ready, but until it ends.
fn alive(shared: &Shared) -> Response<Full<Bytes>> {
    if shared.gate.is_draining() { text(StatusCode::OK, "OK") } else { ready(shared) }
}

/// For load balancers: whether to send clients here. They turn away while the node is draining, before its sockets close.
fn ready(shared: &Shared) -> Response<Full<Bytes>> {
    if shared.gate.is_ready() {
        text(StatusCode::OK, "OK")
    } else if shared.gate.is_draining() {
        text(StatusCode::SERVICE_UNAVAILABLE, "shutting down")
    } else {
        text(StatusCode::SERVICE_UNAVAILABLE, "starting")
    }
}

fn not_found(method: &Method, path: &str) -> Response<Full<Bytes>> {
    let body = json!({"message": format!("Route {method}:{path} not found"), "error": "Not Found", "statusCode": 404});
    port::respond(StatusCode::NOT_FOUND, "application/json; charset=utf-8", body.to_string().into())
}
