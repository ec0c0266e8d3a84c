//! `/statz`: named groups of facts about the node, for those who know the admin password.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Request, Response, StatusCode};
use prometheus::IntCounter;
use serde_json::Value;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::attempts::Attempts;
use crate::plain::{respond, text};

/// Before a wrong password is answered.
const WRONG_PAUSE: Duration = Duration::from_millis(500);

/// Collects the facts: an object of groups. The argument names the wanted ones; empty means all.
pub type Status = Arc<dyn Fn(Vec<String>) -> StatusFuture + Send + Sync>;
pub type StatusFuture = Pin<Box<dyn Future<Output = Value> + Send>>;

/// The page, the same on every port of a node. Cheap to clone.
#[derive(Clone)]
pub struct StatusPage {
    status: Status,
    access: Access,
    attempts: Arc<Attempts>,
    failed_logins: IntCounter,
}

/// Who may read the page.
#[derive(Clone, PartialEq, Eq)]
enum Access {
    /// Who knows the password with this digest. Digests are of one length, so comparing them tells nothing of the password's.
    Password([u8; 32]),
    /// Everybody, but for those who show a password: they are mistaken about where they are.
    Open,
    Closed,
}

impl StatusPage {
    /// Without a password the page is open in development and closed otherwise. Wrong passwords are counted.
    #[must_use]
    pub fn new(status: Status, password: Option<&str>, is_development: bool, failed_logins: IntCounter) -> StatusPage {
        StatusPage { status, access: Access::new(password, is_development), attempts: Arc::default(), failed_logins }
    }

    /// Answers `?group=a,b` with these groups only, `&format=json` as JSON, `&pretty` indented.
    pub(crate) async fn answer<B>(&self, request: &Request<B>, peer: IpAddr) -> Response<Full<Bytes>> {
        let given = request.headers().get(AUTHORIZATION).and_then(password);
        // Who shows nothing guesses nothing: browsers ask so before they ask their user.
        if given.is_some() && !self.attempts.has_one(peer, Instant::now()) {
            self.failed_logins.inc();
            let mut response = text(StatusCode::TOO_MANY_REQUESTS, "too many wrong passwords");
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
            return response;
        }
        if !self.access.admits(given.as_deref()) {
            if given.is_some() {
                self.failed_logins.inc();
                self.attempts.spend(peer, Instant::now());
                tracing::warn!(%peer, "a wrong admin password");
                tokio::time::sleep(WRONG_PAUSE).await;
            }
            let mut response = text(StatusCode::UNAUTHORIZED, "Unauthorized");
            let realm = HeaderValue::from_static("Basic realm=\"Statz Protected Area\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, realm);
            return response;
        }
        let status = (self.status)(groups(request)).await;
        let param = |name: &str| param(request, name);
        if param("format").is_some_and(|format| format == "json") {
            let body = if param("pretty").is_some() { format!("{status:#}") } else { status.to_string() };
            respond(StatusCode::OK, "application/json; charset=utf-8", body.into())
        } else {
            text(StatusCode::OK, &plain(&status))
        }
    }
}

fn param<B>(request: &Request<B>, name: &str) -> Option<String> {
    let query = request.uri().query().unwrap_or_default();
    url::form_urlencoded::parse(query.as_bytes()).find(|(n, _)| n == name).map(|(_, value)| value.into_owned())
}

fn groups<B>(request: &Request<B>) -> Vec<String> {
    let list = param(request, "group").unwrap_or_default();
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Whether a request is for a part of the page only.
pub(crate) fn names_groups<B>(request: &Request<B>) -> bool {
    !groups(request).is_empty()
}

impl Access {
    fn new(password: Option<&str>, is_development: bool) -> Access {
        match password {
            Some(password) => Access::Password(digest(password)),
            None if is_development => Access::Open,
            None => Access::Closed,
        }
    }

    fn admits(&self, given: Option<&str>) -> bool {
        match self {
            Access::Password(expected) => given.is_some_and(|given| bool::from(expected.ct_eq(&digest(given)))),
            Access::Open => given.is_none_or(str::is_empty),
            Access::Closed => false,
        }
    }
}

fn digest(password: &str) -> [u8; 32] {
    Sha256::digest(password.as_bytes()).into()
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_password_decides_and_the_name_does_not() {
        let header = |text: &str| {
            let encoded = base64::engine::general_purpose::STANDARD.encode(text);
            HeaderValue::from_str(&format!("Basic {encoded}")).expect("header")
        };
        assert_eq!(password(&header("any:pa:ss")).as_deref(), Some("pa:ss"));
        assert_eq!(password(&header("nothing")), None);
        assert_eq!(password(&HeaderValue::from_static("Bearer x")), None);
        assert_eq!(password(&HeaderValue::from_static("Basic %%%")), None);
        assert!(Access::new(Some("pw"), false).admits(Some("pw")));
        assert!(!Access::new(Some("pw"), true).admits(Some("pW")));
        assert!(!Access::new(Some("pw"), true).admits(Some("pw ")));
        assert!(!Access::new(Some("pw"), true).admits(None));
        assert!(!Access::new(None, false).admits(None));
        assert!(!Access::new(None, false).admits(Some("")));
        assert!(Access::new(None, true).admits(None));
        assert!(!Access::new(None, true).admits(Some("guess")));
    }

    #[test]
    fn statistics_as_text() {
        let status = json!({"os": {"load": [1, 2], "name": "x"}, "cvr": {"error": "down"}});
        assert_eq!(plain(&status), "os\n  load: [1,2]\n  name: x\n\ncvr\n  error: down\n\n");
    }
}
