//! Plain HTTP: probes, metrics, statistics.

use std::net::IpAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use crate::server::Shared;

pub(crate) async fn answer<B>(shared: &Shared, request: &Request<B>, peer: IpAddr) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let page = shared.pages.answer(request, shared.gate.health(), peer).await;
    let (label, mut response) = page.unwrap_or_else(|| ("other", not_found(request.method(), path)));
    if label == "/keepalive" {
        shared.gate.saw_keepalive();
    }
    if shared.gate.is_draining() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    shared.metrics.http_requests.with_label_values(&[label, response.status().as_str()]).inc();
    response
}

fn not_found(method: &Method, path: &str) -> Response<Full<Bytes>> {
    let body = json!({"message": format!("Route {method}:{path} not found"), "error": "Not Found", "statusCode": 404});
    port::respond(StatusCode::NOT_FOUND, "application/json; charset=utf-8", body.to_string().into())
}
