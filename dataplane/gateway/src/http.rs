//! Plain HTTP: probes, metrics, statistics.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use base64::Engine;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use prometheus::{Encoder, TextEncoder};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use crate::options::Secret;
use crate::server::Shared;

/// Collects the statistics for `/statz`: an object of groups. The argument names the wanted ones; empty means all.
pub type Status = Arc<dyn Fn(Vec<String>) -> StatusFuture + Send + Sync>;
pub type StatusFuture = Pin<Box<dyn Future<Output = Value> + Send>>;

pub(crate) async fn answer<B>(shared: &Shared, request: &Request<B>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let (label, mut response) = match path {
        "/" if is_read => ("/", ready(shared)),
        "/keepalive" if is_read => {
            shared.gate.saw_keepalive();
            ("/keepalive", alive(shared))
        }
        "/metrics" if is_read => ("/metrics", metrics(shared)),
        "/statz" if is_read => ("/statz", statz(shared, request).await),
        _ => ("other", not_found(request.method(), path)),
    };
    if shared.gate.is_draining() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    shared.metrics.http_requests.with_label_values(&[label, response.status().as_str()]).inc();
    response
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

async fn statz<B>(shared: &Shared, request: &Request<B>) -> Response<Full<Bytes>> {
    let given = request.headers().get(AUTHORIZATION).and_then(password);
    if !is_admin(shared.admin_password.as_ref(), shared.development, given.as_deref()) {
        let mut response = text(StatusCode::UNAUTHORIZED, "Unauthorized");
        let realm = HeaderValue::from_static("Basic realm=\"Statz Protected Area\"");
        response.headers_mut().insert(WWW_AUTHENTICATE, realm);
        return response;
    }
    let query = request.uri().query().unwrap_or_default();
    let param = |name: &str| url::form_urlencoded::parse(query.as_bytes()).find(|(n, _)| n == name).map(|(_, v)| v);
    let groups = param("group").map_or_else(Vec::new, |list| {
        list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    });
    let status = (shared.status)(groups).await;
    if param("format").is_some_and(|format| format == "json") {
        let body = if param("pretty").is_some() { format!("{status:#}") } else { status.to_string() };
        respond(StatusCode::OK, "application/json; charset=utf-8", body.into())
    } else {
        text(StatusCode::OK, &plain(&status))
    }
}

/// Groups as paragraphs of `name: value` lines.
fn plain(status: &Value) -> String {
    let mut out = String::new();
    for (group, values) in status.as_object().into_iter().flatten() {
        out.push_str(group);
        out.push('\n');
        match values {
            Value::Object(values) => {
                for (name, value) in values {
                    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    out.push_str(&format!("  {name}: {value}\n"));
                }
            }
            other => out.push_str(&format!("  {other}\n")),
        }
        out.push('\n');
    }
    out
}

/// The password of Basic credentials; the user name does not matter.
fn password(header: &HeaderValue) -> Option<String> {
    let text = header.to_str().ok()?;
    let (scheme, credentials) = text.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(credentials.trim()).ok()?;
    String::from_utf8(decoded).ok()?.split_once(':').map(|(_, password)| password.to_owned())
}

/// Compares in constant time. Without a configured password only development is open, and only to those who send none.
fn is_admin(expected: Option<&Secret>, development: bool, given: Option<&str>) -> bool {
    match (expected, given) {
        (Some(Secret(expected)), Some(given)) => bool::from(expected.as_bytes().ct_eq(given.as_bytes())),
        (Some(_), None) => false,
        (None, given) => development && given.is_none_or(str::is_empty),
    }
}

fn not_found(method: &Method, path: &str) -> Response<Full<Bytes>> {
    let body = json!({"message": format!("Route {method}:{path} not found"), "error": "Not Found", "statusCode": 404});
    respond(StatusCode::NOT_FOUND, "application/json; charset=utf-8", body.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_decides_and_the_name_does_not() {
        let header = |text: &str| {
            let encoded = base64::engine::general_purpose::STANDARD.encode(text);
            HeaderValue::from_str(&format!("Basic {encoded}")).expect("header")
        };
        assert_eq!(password(&header("any:pa:ss")).as_deref(), Some("pa:ss"));
        assert_eq!(password(&header("nothing")), None);
        assert_eq!(password(&HeaderValue::from_static("Bearer x")), None);
        let secret = Secret("pw".to_owned());
        assert!(is_admin(Some(&secret), false, Some("pw")));
        assert!(!is_admin(Some(&secret), true, Some("pW")));
        assert!(!is_admin(Some(&secret), true, None));
        assert!(!is_admin(None, false, None));
        assert!(is_admin(None, true, None));
        assert!(!is_admin(None, true, Some("guess")));
    }

    #[test]
    fn statistics_as_text() {
        let status = json!({"os": {"load": [1, 2], "name": "x"}, "cvr": {"error": "down"}});
        assert_eq!(plain(&status), "os\n  load: [1,2]\n  name: x\n\ncvr\n  error: down\n\n");
    }
}
