//! Where a call goes and what headers it carries.

use hyper::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use url::Url;
use urlpattern::regexp::RegExp;
use urlpattern::{UrlPattern, UrlPatternInit, UrlPatternMatchInput, UrlPatternOptions};
use views::api::ConnectionContext;

use super::{Bounds, CallError, Lanes};
use crate::options::{ApiOptions, Secret};

/// A configured URL that is no URL pattern.
#[derive(Debug, thiserror::Error)]
#[error("{url} is not a URL pattern: {reason}")]
pub struct EndpointError {
    pub url: String,
    pub reason: String,
}

/// A configured endpoint.
pub(crate) struct Endpoint {
    default_url: String,
    patterns: Vec<UrlPattern>,
    api_key: Option<Secret>,
    forward_cookies: bool,
    allowed_client_headers: Vec<String>,
    allowed_request_headers: Vec<String>,
    app_id: String,
    schema: String,
    /// Turns of its calls.
    pub(crate) lanes: Lanes,
}

/// Destination and headers of a call: all that tells one caller from another.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
}

impl Request {
    /// Equal for requests that an API server cannot tell apart. Holds secrets: a key of a map, never of a log.
    pub(crate) fn fingerprint(&self, user_id: Option<&str>) -> String {
        let mut headers: Vec<(&str, &[u8])> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        headers.sort_unstable();
        format!("{user_id:?} {} {headers:?}", self.url)
    }
}

impl Endpoint {
    /// `None` when nothing is configured.
    pub(crate) fn build(
        options: &ApiOptions,
        app_id: &str,
        shard: u32,
        bounds: Bounds,
    ) -> Result<Option<Endpoint>, EndpointError> {
        let Some(default_url) = options.urls.first() else { return Ok(None) };
        let lower = |names: &[String]| names.iter().map(|name| name.trim().to_ascii_lowercase()).collect();
        Ok(Some(Endpoint {
            default_url: default_url.clone(),
            patterns: options.urls.iter().map(|url| pattern(url)).collect::<Result<_, _>>()?,
            api_key: options.api_key.clone(),
            forward_cookies: options.forward_cookies,
            allowed_client_headers: lower(&options.allowed_client_headers),
            allowed_request_headers: lower(&options.allowed_request_headers),
            app_id: app_id.to_owned(),
            schema: format!("{app_id}_{shard}"),
            lanes: Lanes::new(bounds),
        }))
    }

    /// The request on behalf of a connection, to the URL of its choice if that is allowed.
    pub(crate) fn request(
        &self,
        chosen_url: Option<&str>,
        client_headers: &[(String, String)],
        context: &ConnectionContext,
    ) -> Result<Request, CallError> {
        Ok(Request { url: self.url(chosen_url)?, headers: self.headers(client_headers, context)? })
    }

    fn url(&self, chosen: Option<&str>) -> Result<Url, CallError> {
        let text = chosen.unwrap_or(&self.default_url);
        let refuse = |why: &str| CallError::Refused(format!("the URL \"{text}\" {why}"));
        let mut url = Url::parse(text).map_err(|_| refuse("is not a URL"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refuse("is not http or https"));
        }
        if chosen.is_some() && !self.allows(&url) {
            return Err(refuse("is not one of the configured URLs"));
        }
        if let Some((name, _)) = url.query_pairs().find(|(name, _)| name == "schema" || name == "appID") {
            return Err(refuse(&format!("must not have the reserved parameter \"{name}\"")));
        }
        url.set_fragment(None);
        url.query_pairs_mut().append_pair("schema", &self.schema).append_pair("appID", &self.app_id);
        Ok(url)
    }

    fn allows(&self, url: &Url) -> bool {
        let mut bare = url.clone();
        bare.set_query(None);
        bare.set_fragment(None);
        self.patterns.iter().any(|pattern| pattern.test(UrlPatternMatchInput::Url(bare.clone())).unwrap_or(false))
    }

    fn headers(
        &self,
        client_headers: &[(String, String)],
        context: &ConnectionContext,
    ) -> Result<HeaderMap, CallError> {
        let mut headers = HeaderMap::new();
        let allowed = |list: &[String], name: &str| list.iter().any(|allowed| allowed.eq_ignore_ascii_case(name));
        for (name, value) in client_headers.iter().filter(|(name, _)| allowed(&self.allowed_client_headers, name)) {
            insert(&mut headers, name, value)?;
        }
        let sent = |name: &str| context.request_headers.iter().find(|(n, _)| n == name).map(|(_, value)| value);
        for name in &self.allowed_request_headers {
            if let Some(value) = sent(name) {
                insert(&mut headers, name, value)?;
            }
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(Secret(key)) = &self.api_key {
            insert(&mut headers, "x-api-key", key)?;
        }
        if let Some(token) = &context.token {
            insert(&mut headers, AUTHORIZATION.as_str(), &format!("Bearer {token}"))?;
        }
        if let Some(cookie) = sent("cookie").filter(|_| self.forward_cookies) {
            insert(&mut headers, COOKIE.as_str(), cookie)?;
        }
        if let Some(origin) = sent("origin") {
            insert(&mut headers, ORIGIN.as_str(), origin)?;
        }
        for name in OURS {
            headers.remove(*name);
        }
        Ok(headers)
    }
}

/// Headers that describe the message itself and are set by the HTTP client alone.
const OURS: &[&str] =
    &["host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer", "keep-alive", "expect"];

fn insert(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), CallError> {
    let refuse = |what| CallError::Refused(format!("the {what} of the header \"{name}\" is not allowed in HTTP"));
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refuse("name"))?;
    let mut value = HeaderValue::from_str(value).map_err(|_| refuse("value"))?;
    value.set_sensitive(true);
    headers.insert(parsed, value);
    Ok(())
}

/// Whether a configured URL is a pattern that clients' choices can be compared with.
pub fn check_url(url: &str) -> Result<(), EndpointError> {
    let parsed: Result<UrlPattern, EndpointError> = pattern(url);
    parsed.map(drop)
}

fn pattern<R: RegExp>(url: &str) -> Result<UrlPattern<R>, EndpointError> {
    let refuse = |reason: String| EndpointError { url: url.to_owned(), reason };
    let mut init = UrlPatternInit::parse_constructor_string::<R>(url, None).map_err(|e| refuse(e.to_string()))?;
    // Query and fragment do not take part in matching.
    init.search = None;
    init.hash = None;
    UrlPattern::parse(init, UrlPatternOptions::default()).map_err(|e| refuse(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { at_once: 1, bytes: 1, wait: std::time::Duration::ZERO };

    fn endpoint(urls: &[&str]) -> Endpoint {
        let options = ApiOptions {
            urls: urls.iter().map(|&u| u.to_owned()).collect(),
            api_key: Some(Secret("k".to_owned())),
            forward_cookies: true,
            allowed_client_headers: vec!["X-One".to_owned(), "x-both".to_owned()],
            allowed_request_headers: vec!["X-Forwarded-For".to_owned(), "x-both".to_owned()],
        };
        Endpoint::build(&options, "zero", 3, BOUNDS).expect("patterns").expect("configured")
    }

    #[test]
    fn a_chosen_url_must_match_a_pattern() {
        let endpoint = endpoint(&["https://*.example.com/mutate", "https://api.example.org/:version/mutate"]);
        for (url, allowed) in [
            ("https://a.example.com/mutate", true),
            ("https://a.example.com/mutate?x=1#f", true),
            ("https://api.example.org/v2/mutate", true),
            ("https://api.example.org/v2/v3/mutate", false),
            ("http://a.example.com/mutate", false),
            ("https://example.com/mutate", false),
            ("https://evil.org/?https://a.example.com/mutate", false),
            ("https://a.example.com:444/mutate", false),
            ("https://a.example.com/mutate?schema=x", false),
            ("file:///etc/passwd", false),
            ("not a url", false),
        ] {
            assert_eq!(endpoint.url(Some(url)).is_ok(), allowed, "{url}");
        }
        let url = endpoint.url(Some("https://a.example.com/mutate?x=1#f")).expect("allowed");
        assert_eq!(url.as_str(), "https://a.example.com/mutate?x=1&schema=zero_3&appID=zero");
    }

    #[test]
    fn the_default_keeps_its_query() {
        let endpoint = endpoint(&["http://localhost:3000/api/push?a=b"]);
        let url = endpoint.url(None).expect("default");
        assert_eq!(url.as_str(), "http://localhost:3000/api/push?a=b&schema=zero_3&appID=zero");
        assert!(endpoint.url(Some("http://localhost:3000/api/push?other=1")).is_ok());
    }

    #[test]
    fn forwards_what_is_allowed_and_nothing_else() {
        let endpoint = endpoint(&["http://h/p"]);
        let own = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect()
        };
        let context = ConnectionContext {
            token: Some("t".to_owned()),
            request_headers: own(&[
                ("cookie", "c=1"),
                ("origin", "https://o"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-both", "request"),
                ("x-secret", "no"),
            ]),
            ..ConnectionContext::default()
        };
        let client = own(&[("x-ONE", "1"), ("x-both", "client"), ("x-other", "no"), ("authorization", "no")]);
        let headers = endpoint.headers(&client, &context).expect("headers");
        let mut got: Vec<(String, String)> =
            headers.iter().map(|(n, v)| (n.to_string(), v.to_str().expect("text").to_owned())).collect();
        got.sort();
        assert_eq!(
            got,
            own(&[
                ("authorization", "Bearer t"),
                ("content-type", "application/json"),
                ("cookie", "c=1"),
                ("origin", "https://o"),
                ("x-api-key", "k"),
                ("x-both", "request"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-one", "1"),
            ])
        );
        assert!(!format!("{headers:?}").contains("Bearer"), "secrets are marked");
    }

    #[test]
    fn refuses_what_is_no_pattern() {
        let options = ApiOptions { urls: vec!["/relative".to_owned()], ..ApiOptions::default() };
        assert!(Endpoint::build(&options, "zero", 0, BOUNDS).is_err());
        assert!(Endpoint::build(&ApiOptions::default(), "zero", 0, BOUNDS).expect("empty is fine").is_none());
    }
}
