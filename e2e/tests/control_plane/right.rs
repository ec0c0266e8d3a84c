//! A right as roles grant it, requests need it and the API server speaks of it.

use std::fmt;

use hyper::Method;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    pub group: String,
    /// With its subresource.
    pub resource: String,
    pub verb: String,
}

impl Right {
    /// What the API server says to whoever lacks it.
    pub fn refusal(&self) -> String {
        format!("cannot {} resource \"{}\" in API group \"{}\"", self.verb, self.resource, self.group)
    }
}

impl fmt::Display for Right {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.group.is_empty() { "" } else { "." };
        write!(formatter, "{} {}{dot}{}", self.verb, self.resource, self.group)
    }
}

/// The right that a request needs; nothing for discovery.
pub fn needed(method: &Method, path: &str, query: &str) -> Option<Right> {
    let mut words = path.trim_start_matches('/').split('/');
    let group = match words.next()? {
        "api" => String::new(),
        "apis" => words.next()?.to_owned(),
        _ => return None,
    };
    words.next()?;
    let mut rest: Vec<&str> = words.collect();
    if rest.first() == Some(&"namespaces") && rest.len() > 2 {
        rest.drain(..2);
    }
    let (resource, is_named) = match rest.as_slice() {
        [] => return None,
        [resource] => ((*resource).to_owned(), false),
        [resource, _] => ((*resource).to_owned(), true),
        [resource, _, sub, ..] => (format!("{resource}/{sub}"), true),
    };
    let verb = match (method.as_str(), is_named) {
        ("GET", true) => "get",
        ("GET", false) if query.contains("watch=true") => "watch",
        ("GET", false) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        _ => return None,
    };
    Some(Right { group, resource, verb: verb.to_owned() })
}

#[test]
fn rights_are_read_from_requests() {
    let read = |method: Method, path: &str, query: &str| needed(&method, path, query).map(|it| it.to_string());
    assert_eq!(read(Method::GET, "/apis/apps/v1/statefulsets", "watch=true").unwrap(), "watch statefulsets.apps");
    assert_eq!(read(Method::GET, "/api/v1/namespaces/web/secrets/a", "").unwrap(), "get secrets");
    let status = "/apis/zerocache.dev/v1alpha1/namespaces/web/zerocaches/a/status";
    assert_eq!(read(Method::PATCH, status, "force=true").unwrap(), "patch zerocaches/status.zerocache.dev");
    assert_eq!(read(Method::GET, "/version", ""), None);
    assert_eq!(read(Method::GET, "/apis/apps/v1", ""), None);
}
