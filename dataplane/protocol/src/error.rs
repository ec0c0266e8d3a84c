//! Error bodies. The kind decides what a client does next, so each constructor says for what it is meant.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::node::{Node, ParseError};

/// Longest part of an API server's answer that is shown to clients, in characters.
const PREVIEW_CHARS: usize = 512;

/// The body of an `error` message.
#[derive(Clone, Debug, PartialEq)]
pub enum ErrorBody {
    Basic {
        kind: Kind,
        message: String,
        origin: Origin,
    },
    /// The client retries after a delay: 5 s, raised to the minimum, then lowered to the maximum.
    Backoff {
        kind: BackoffKind,
        message: String,
        min_backoff_ms: Option<u64>,
        max_backoff_ms: Option<u64>,
        /// Added to the URL of the following attempts.
        reconnect_params: Vec<(String, String)>,
    },
    PushFailed(Box<PushFailed>),
    TransformFailed(Box<TransformFailed>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct PushFailed {
    pub failure: Failure,
    pub message: String,
    pub details: Option<Value>,
    pub mutation_ids: Vec<MutationId>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TransformFailed {
    pub failure: Failure,
    pub message: String,
    pub details: Option<Value>,
    pub query_ids: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct MutationId {
    pub id: i64,
    #[serde(rename = "clientID")]
    pub client_id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Kind {
    AuthInvalidated,
    Unauthorized,
    ClientNotFound,
    InvalidConnectionRequest,
    InvalidConnectionRequestBaseCookie,
    InvalidConnectionRequestLastMutationID,
    InvalidConnectionRequestClientDeleted,
    InvalidMessage,
    InvalidPush,
    MutationFailed,
    MutationRateLimited,
    VersionNotSupported,
    SchemaVersionNotSupported,
    Internal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum BackoffKind {
    Rebalance,
    Rehome,
    ServerOverloaded,
}

/// Who found the fault: the application's API server or this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Origin {
    #[serde(rename = "server")]
    Server,
    #[serde(rename = "zeroCache")]
    ZeroCache,
}

/// Why a call of the API server gave no result.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// The API server answered with a failure of its own.
    Server(ServerReason),
    /// It answered with another status than 2xx.
    Http { status: u16, body_preview: Option<String> },
    /// It could not be called, or its answer made no sense.
    ZeroCache(CallReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ServerReason {
    #[serde(rename = "database")]
    Database,
    #[serde(rename = "parse")]
    Parse,
    #[serde(rename = "oooMutation")]
    OutOfOrderMutation,
    #[serde(rename = "unsupportedPushVersion")]
    UnsupportedPushVersion,
    #[serde(rename = "internal")]
    Internal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CallReason {
    Timeout,
    Parse,
    Internal,
}

impl ErrorBody {
    #[must_use]
    pub fn new(kind: Kind, message: impl Into<String>) -> ErrorBody {
        ErrorBody::Basic { kind, message: message.into(), origin: Origin::ZeroCache }
    }

    /// An unexpected fault. Stops the client until the application intervenes: for anything that passes, use
    /// [`ErrorBody::rehome`] or close without an error.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> ErrorBody {
        ErrorBody::new(Kind::Internal, message)
    }

    #[must_use]
    pub fn unauthorized(message: impl Into<String>) -> ErrorBody {
        ErrorBody::new(Kind::Unauthorized, message)
    }

    #[must_use]
    pub fn auth_invalidated(message: impl Into<String>) -> ErrorBody {
        ErrorBody::new(Kind::AuthInvalidated, message)
    }

    #[must_use]
    pub fn invalid_message(message: impl Into<String>) -> ErrorBody {
        ErrorBody::new(Kind::InvalidMessage, message)
    }

    #[must_use]
    pub fn invalid_push(message: impl Into<String>) -> ErrorBody {
        ErrorBody::new(Kind::InvalidPush, message)
    }

    #[must_use]
    pub fn client_not_found(message: impl Into<String>) -> ErrorBody {
        ErrorBody::new(Kind::ClientNotFound, message)
    }

    #[must_use]
    pub fn invalid_connection_request(message: impl Into<String>) -> ErrorBody {
        ErrorBody::new(Kind::InvalidConnectionRequest, message)
    }

    /// The client group lives elsewhere, or will; the client reconnects at once when `max_backoff_ms` is 0.
    #[must_use]
    pub fn rehome(message: impl Into<String>, max_backoff_ms: Option<u64>) -> ErrorBody {
        ErrorBody::backoff(BackoffKind::Rehome, message, None, max_backoff_ms)
    }

    #[must_use]
    pub fn overloaded(message: impl Into<String>, min_backoff_ms: u64, max_backoff_ms: u64) -> ErrorBody {
        ErrorBody::backoff(BackoffKind::ServerOverloaded, message, Some(min_backoff_ms), Some(max_backoff_ms))
    }

    fn backoff(
        kind: BackoffKind,
        message: impl Into<String>,
        min_backoff_ms: Option<u64>,
        max_backoff_ms: Option<u64>,
    ) -> ErrorBody {
        ErrorBody::Backoff {
            kind,
            message: message.into(),
            min_backoff_ms,
            max_backoff_ms,
            reconnect_params: Vec::new(),
        }
    }

    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            ErrorBody::Basic { message, .. } | ErrorBody::Backoff { message, .. } => message,
            ErrorBody::PushFailed(failed) => &failed.message,
            ErrorBody::TransformFailed(failed) => &failed.message,
        }
    }

    /// The name of the kind, as a metric label for example.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match self {
            ErrorBody::Basic { kind, .. } => kind.name(),
            ErrorBody::Backoff { kind, .. } => match kind {
                BackoffKind::Rebalance => "Rebalance",
                BackoffKind::Rehome => "Rehome",
                BackoffKind::ServerOverloaded => "ServerOverloaded",
            },
            ErrorBody::PushFailed(_) => "PushFailed",
            ErrorBody::TransformFailed(_) => "TransformFailed",
        }
    }

    /// Whether the socket is closed after this error. Only two kinds leave it open.
    #[must_use]
    pub fn closes(&self) -> bool {
        !matches!(self, ErrorBody::Basic { kind: Kind::MutationFailed | Kind::MutationRateLimited, .. })
    }

    /// Whether the client asks its application for new credentials.
    #[must_use]
    pub fn is_auth(&self) -> bool {
        match self {
            ErrorBody::Basic { kind, .. } => matches!(kind, Kind::AuthInvalidated | Kind::Unauthorized),
            ErrorBody::Backoff { .. } => false,
            ErrorBody::PushFailed(failed) => failed.failure.is_auth(),
            ErrorBody::TransformFailed(failed) => failed.failure.is_auth(),
        }
    }
}

impl From<PushFailed> for ErrorBody {
    fn from(failed: PushFailed) -> ErrorBody {
        ErrorBody::PushFailed(Box::new(failed))
    }
}

impl From<TransformFailed> for ErrorBody {
    fn from(failed: TransformFailed) -> ErrorBody {
        ErrorBody::TransformFailed(Box::new(failed))
    }
}

impl Kind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::AuthInvalidated => "AuthInvalidated",
            Kind::Unauthorized => "Unauthorized",
            Kind::ClientNotFound => "ClientNotFound",
            Kind::InvalidConnectionRequest => "InvalidConnectionRequest",
            Kind::InvalidConnectionRequestBaseCookie => "InvalidConnectionRequestBaseCookie",
            Kind::InvalidConnectionRequestLastMutationID => "InvalidConnectionRequestLastMutationID",
            Kind::InvalidConnectionRequestClientDeleted => "InvalidConnectionRequestClientDeleted",
            Kind::InvalidMessage => "InvalidMessage",
            Kind::InvalidPush => "InvalidPush",
            Kind::MutationFailed => "MutationFailed",
            Kind::MutationRateLimited => "MutationRateLimited",
            Kind::VersionNotSupported => "VersionNotSupported",
            Kind::SchemaVersionNotSupported => "SchemaVersionNotSupported",
            Kind::Internal => "Internal",
        }
    }
}

impl Failure {
    /// A status outside of 2xx, with the beginning of the answer's body.
    #[must_use]
    pub fn http(status: u16, body: &str) -> Failure {
        Failure::Http { status, body_preview: (!body.is_empty()).then(|| preview(body)) }
    }

    #[must_use]
    pub fn is_auth(&self) -> bool {
        matches!(self, Failure::Http { status: 401 | 403, .. })
    }

    fn serialize_into<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        match self {
            Failure::Server(reason) => {
                map.serialize_entry("origin", &Origin::Server)?;
                map.serialize_entry("reason", reason)
            }
            Failure::Http { status, body_preview } => {
                map.serialize_entry("origin", &Origin::ZeroCache)?;
                map.serialize_entry("reason", "http")?;
                map.serialize_entry("status", status)?;
                match body_preview {
                    Some(preview) => map.serialize_entry("bodyPreview", preview),
                    None => Ok(()),
                }
            }
            Failure::ZeroCache(reason) => {
                map.serialize_entry("origin", &Origin::ZeroCache)?;
                map.serialize_entry("reason", reason)
            }
        }
    }
}

/// The first characters of `body`, with `...` when something was left out.
#[must_use]
pub fn preview(body: &str) -> String {
    match body.char_indices().nth(PREVIEW_CHARS) {
        Some((end, _)) => format!("{}...", &body[..end]),
        None => body.to_owned(),
    }
}

impl PushFailed {
    /// Reads the failure that an API server reports, `{kind: "PushFailed", origin: "server", …}`.
    pub fn from_value(value: &Value) -> Result<PushFailed, ParseError> {
        let node = Node::root("PushFailed", value);
        Ok(PushFailed {
            failure: Failure::Server(server_reason(&node)?),
            message: node.string_field("message")?,
            details: value.get("details").cloned(),
            mutation_ids: node.field("mutationIDs")?.elements(|n| mutation_id(&n))?,
        })
    }
}

impl TransformFailed {
    /// Reads the failure that an API server reports, `{kind: "TransformFailed", origin: "server", …}`.
    pub fn from_value(value: &Value) -> Result<TransformFailed, ParseError> {
        let node = Node::root("TransformFailed", value);
        let reason = server_reason(&node)?;
        if !matches!(reason, ServerReason::Database | ServerReason::Parse | ServerReason::Internal) {
            return Err(node.refuse("this reason belongs to pushes"));
        }
        Ok(TransformFailed {
            failure: Failure::Server(reason),
            message: node.string_field("message")?,
            details: value.get("details").cloned(),
            query_ids: node.field("queryIDs")?.strings()?,
        })
    }
}

impl MutationId {
    pub fn from_value(name: &str, value: &Value) -> Result<MutationId, ParseError> {
        mutation_id(&Node::root(name, value))
    }
}

fn mutation_id(node: &Node<'_>) -> Result<MutationId, ParseError> {
    Ok(MutationId { id: node.field("id")?.integer()?, client_id: node.string_field("clientID")? })
}

fn server_reason(node: &Node<'_>) -> Result<ServerReason, ParseError> {
    let reason = node.field("reason")?;
    Ok(match reason.text()? {
        "database" => ServerReason::Database,
        "parse" => ServerReason::Parse,
        "oooMutation" => ServerReason::OutOfOrderMutation,
        "unsupportedPushVersion" => ServerReason::UnsupportedPushVersion,
        "internal" => ServerReason::Internal,
        _ => return Err(reason.refuse("unknown reason")),
    })
}

impl Serialize for ErrorBody {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("kind", self.kind_name())?;
        map.serialize_entry("message", self.message())?;
        match self {
            ErrorBody::Basic { origin, .. } => map.serialize_entry("origin", origin)?,
            ErrorBody::Backoff { min_backoff_ms, max_backoff_ms, reconnect_params, .. } => {
                if let Some(ms) = min_backoff_ms {
                    map.serialize_entry("minBackoffMs", ms)?;
                }
                if let Some(ms) = max_backoff_ms {
                    map.serialize_entry("maxBackoffMs", ms)?;
                }
                if !reconnect_params.is_empty() {
                    let params: serde_json::Map<String, Value> =
                        reconnect_params.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
                    map.serialize_entry("reconnectParams", &params)?;
                }
                map.serialize_entry("origin", &Origin::ZeroCache)?;
            }
            ErrorBody::PushFailed(failed) => {
                failed.failure.serialize_into(&mut map)?;
                if let Some(details) = &failed.details {
                    map.serialize_entry("details", details)?;
                }
                map.serialize_entry("mutationIDs", &failed.mutation_ids)?;
            }
            ErrorBody::TransformFailed(failed) => {
                failed.failure.serialize_into(&mut map)?;
                if let Some(details) = &failed.details {
                    map.serialize_entry("details", details)?;
                }
                map.serialize_entry("queryIDs", &failed.query_ids)?;
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(body: &ErrorBody) -> Value {
        serde_json::to_value(body).expect("JSON")
    }

    #[test]
    fn bodies_as_clients_expect_them() {
        assert_eq!(
            value(&ErrorBody::rehome("CVR moved", Some(0))),
            json!({"kind": "Rehome", "message": "CVR moved", "maxBackoffMs": 0, "origin": "zeroCache"})
        );
        assert_eq!(
            value(&ErrorBody::Backoff {
                kind: BackoffKind::ServerOverloaded,
                message: "busy".to_owned(),
                min_backoff_ms: Some(10_000),
                max_backoff_ms: Some(60_000),
                reconnect_params: vec![("shed".to_owned(), "1".to_owned())],
            }),
            json!({"kind": "ServerOverloaded", "message": "busy", "minBackoffMs": 10_000, "maxBackoffMs": 60_000,
                "reconnectParams": {"shed": "1"}, "origin": "zeroCache"})
        );
        let failed = TransformFailed {
            failure: Failure::http(401, "denied"),
            message: "m".to_owned(),
            details: None,
            query_ids: vec![],
        };
        assert_eq!(
            value(&failed.into()),
            json!({"kind": "TransformFailed", "origin": "zeroCache", "reason": "http", "status": 401,
                "bodyPreview": "denied", "message": "m", "queryIDs": []})
        );
        let reported = json!({"kind": "PushFailed", "origin": "server", "reason": "oooMutation", "message": "m",
            "details": [1], "mutationIDs": [{"id": 4, "clientID": "c"}]});
        assert_eq!(value(&PushFailed::from_value(&reported).expect("valid").into()), reported);
    }

    #[test]
    fn every_kind_has_an_origin_and_its_own_name() {
        let kinds = [
            Kind::AuthInvalidated,
            Kind::Unauthorized,
            Kind::ClientNotFound,
            Kind::InvalidConnectionRequest,
            Kind::InvalidConnectionRequestBaseCookie,
            Kind::InvalidConnectionRequestLastMutationID,
            Kind::InvalidConnectionRequestClientDeleted,
            Kind::InvalidMessage,
            Kind::InvalidPush,
            Kind::MutationFailed,
            Kind::MutationRateLimited,
            Kind::VersionNotSupported,
            Kind::SchemaVersionNotSupported,
            Kind::Internal,
        ];
        for kind in kinds {
            let body = ErrorBody::new(kind, "m");
            assert_eq!(value(&body)["origin"], "zeroCache");
            assert_eq!(value(&body)["kind"], serde_json::to_value(kind).expect("name"));
            assert_eq!(body.closes(), !matches!(kind, Kind::MutationFailed | Kind::MutationRateLimited));
            assert_eq!(body.is_auth(), matches!(kind, Kind::AuthInvalidated | Kind::Unauthorized));
        }
    }

    #[test]
    fn only_401_and_403_are_about_credentials() {
        for (status, expected) in [(401, true), (403, true), (400, false), (500, false)] {
            assert_eq!(Failure::http(status, "").is_auth(), expected, "{status}");
        }
    }

    #[test]
    fn reported_failures_are_checked() {
        for bad in [
            json!({}),
            json!({"reason": "oooMutation", "message": "m", "queryIDs": []}),
            json!({"reason": "database", "queryIDs": []}),
            json!({"reason": "database", "message": "m", "queryIDs": [1]}),
        ] {
            assert!(TransformFailed::from_value(&bad).is_err(), "{bad}");
        }
    }
}
