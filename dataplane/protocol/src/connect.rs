//! The URL and the header of a connection request.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Protocol versions that are understood.
pub const MIN_PROTOCOL_VERSION: u32 = 30;
pub const MAX_PROTOCOL_VERSION: u32 = 52;

/// Longest reason that a close frame can carry.
pub const CLOSE_REASON_BYTES: usize = 123;

/// Why a connection request makes no sense; becomes the reason of a close with status 1002. Whoever tests a server compares the
/// reasons of the first two to the letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    #[error("Error: Invalid URL: {0}")]
    Url(String),
    #[error("Error: Invalid version: {0}")]
    Version(String),
    #[error("Error: invalid query parameter: {0}")]
    Param(String),
    #[error("Error: invalid sec-websocket-protocol header: {0}")]
    Header(String),
}

/// What a connection request says about its client.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectParams {
    /// `None` when the number is outside of what is understood; [`ConnectParams::requested_version`] has its text.
    pub protocol_version: Option<u32>,
    pub requested_version: String,
    pub client_id: String,
    pub client_group_id: String,
    pub user_id: Option<String>,
    /// `None`: nothing is synced yet.
    pub base_cookie: Option<String>,
    pub wsid: String,
    pub profile_id: String,
}

impl ConnectParams {
    /// Reads path and query of a request, `/sync/v51/connect?clientID=…`.
    pub fn parse(path_and_query: &str) -> Result<ConnectParams, ConnectError> {
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let version = version_of(path).ok_or_else(|| ConnectError::Url(path_and_query.to_owned()))?;
        let number = javascript_number(&version).ok_or_else(|| ConnectError::Version(path_and_query.to_owned()))?;
        let query = Query::parse(query);
        query.number("ts")?;
        query.number("lmid")?;
        let client_group_id = query.required("clientGroupID")?;
        Ok(ConnectParams {
            protocol_version: supported(number),
            requested_version: version,
            client_id: query.required("clientID")?,
            user_id: query.get("userID"),
            base_cookie: query.get("baseCookie"),
            wsid: query.get("wsid").unwrap_or_default(),
            profile_id: query.get("profileID").unwrap_or_else(|| format!("cg{client_group_id}")),
            client_group_id,
        })
    }
}

fn supported(number: f64) -> Option<u32> {
    let range = f64::from(MIN_PROTOCOL_VERSION)..=f64::from(MAX_PROTOCOL_VERSION);
    // Lossless: the range and the absence of a fraction are checked first.
    (range.contains(&number) && number.fract() == 0.0).then_some(number as u32)
}

/// The version in `[/{base}]/sync/v{version}/{action}`.
fn version_of(path: &str) -> Option<String> {
    let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    let (worker, version, action) = match segments.as_slice() {
        [worker, version, action] => (worker, version, action),
        [base, worker, version, action] if is_segment(base) => (worker, version, action),
        _ => return None,
    };
    let version = version.strip_prefix('v')?;
    (*worker == "sync" && is_segment(version) && is_segment(action))
        .then(|| percent_decode_str(version).decode_utf8_lossy().into_owned())
}

fn is_segment(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'~' | b' ' | b'%'))
}

/// JavaScript's `Number(text)` for text without a dot; `None` is NaN.
fn javascript_number(text: &str) -> Option<f64> {
    let text = text.trim();
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).ok().map(|n| n as f64);
    match text.get(..2) {
        Some("0x" | "0X") => radix(&text[2..], 16),
        Some("0o" | "0O") => radix(&text[2..], 8),
        Some("0b" | "0B") => radix(&text[2..], 2),
        _ if text.is_empty() => Some(0.0),
        _ if matches!(text, "Infinity" | "-Infinity") => Some(f64::INFINITY),
        _ if text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'e' | b'E' | b'-' | b'+')) => text.parse().ok(),
        _ => None,
    }
}

struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: &str) -> Query {
        let decode = |text: &str| {
            let spaced = text.replace('+', " ");
            percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
        };
        Query(
            query
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// The first value; an empty one counts as absent.
    fn get(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    }

    fn required(&self, name: &str) -> Result<String, ConnectError> {
        self.get(name).ok_or_else(|| ConnectError::Param(format!("{name} is missing")))
    }

    /// Checks what JavaScript's `parseInt` accepts: a leading integer, whatever follows (clients send `10532.4`).
    fn number(&self, name: &str) -> Result<(), ConnectError> {
        let text = self.required(name)?;
        let digits = text.trim_start();
        let digits = digits.strip_prefix(['-', '+']).unwrap_or(digits);
        if digits.starts_with(|c: char| c.is_ascii_digit()) {
            Ok(())
        } else {
            Err(ConnectError::Param(format!("{name} is not a number")))
        }
    }
}

/// What the subprotocol header carries. Its message goes the ordinary way once the socket is accepted.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProtocolHeader {
    /// JSON text of an `initConnection` message.
    pub init_connection: Option<String>,
    /// `None` when absent or empty.
    pub auth_token: Option<String>,
}

impl std::fmt::Debug for ProtocolHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProtocolHeader")
            .field("init_connection", &self.init_connection.is_some())
            .field("auth_token", &self.auth_token.is_some())
            .finish()
    }
}

impl ProtocolHeader {
    /// Reads the header's value; of several offers the first counts.
    pub fn decode(value: &str) -> Result<ProtocolHeader, ConnectError> {
        #[derive(Deserialize)]
        struct Content {
            #[serde(rename = "initConnectionMessage")]
            init_connection: Option<Box<RawValue>>,
            #[serde(rename = "authToken")]
            auth_token: Option<String>,
        }

        const BASE64: GeneralPurpose = GeneralPurpose::new(
            &STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let refuse = |what: &str| ConnectError::Header(what.to_owned());
        let base64: Vec<u8> = percent_decode_str(first_offer(value)).collect();
        let json = BASE64.decode(base64).map_err(|_| refuse("not base64"))?;
        let json = String::from_utf8(json).map_err(|_| refuse("not UTF-8"))?;
        if !json.trim_start().starts_with('{') {
            return Err(refuse("not a JSON object"));
        }
        let content: Content = serde_json::from_str(&json).map_err(|_| refuse("not the expected JSON object"))?;
        Ok(ProtocolHeader {
            init_connection: content.init_connection.map(|raw| raw.get().to_owned()).filter(|text| text != "null"),
            auth_token: content.auth_token.filter(|token| !token.is_empty()),
        })
    }
}

/// The first of the offered subprotocols, which is the one to echo.
#[must_use]
pub fn first_offer(value: &str) -> &str {
    value.split(',').next().unwrap_or_default().trim()
}

/// Cuts a reason to what a close frame can carry, on a character boundary.
#[must_use]
pub fn close_reason(reason: &str) -> String {
    if reason.len() <= CLOSE_REASON_BYTES {
        return reason.to_owned();
    }
    let mut end = CLOSE_REASON_BYTES - 3;
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}...", &reason[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUERY: &str = "?clientID=c&clientGroupID=g&ts=10532.400000095&lmid=0";

    fn version(path: &str) -> Result<Option<u32>, ConnectError> {
        ConnectParams::parse(&format!("{path}{QUERY}")).map(|params| params.protocol_version)
    }

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/sync/v51/connect", Some(51)),
            ("/zero/sync/v30/connect", Some(30)),
            ("/a-b_c~%20/sync/v52/anything", Some(52)),
            ("/sync/v29/connect", None),
            ("/sync/v53/connect", None),
            ("/sync/v0x33/connect", Some(51)),
            ("/sync/v5e1/connect", Some(50)),
            ("/sync/v-51/connect", None),
            ("/sync/v%20/connect", None),
        ] {
            assert_eq!(version(path), Ok(expected), "{path}");
        }
        for path in [
            "",
            "/",
            "/sync",
            "/a/b/sync/v51/connect",
            "/sync/v51/connect/",
            "/sync/v51.1/connect",
            "/sync/51/connect",
            "/sync/v/connect",
            "/sync/v51/con.nect",
            "/b.c/sync/v51/connect",
            "/replication/v6/changes",
            "sync/v51/connect",
        ] {
            let told = version(path).map_err(|error| error.to_string());
            assert_eq!(told, Err(format!("Error: Invalid URL: {path}{QUERY}")));
        }
        let told = version("/sync/vNaN/connect").map_err(|error| error.to_string());
        assert_eq!(told, Err(format!("Error: Invalid version: /sync/vNaN/connect{QUERY}")));
    }

    #[test]
    fn parameters() {
        let parse = |query: &str| ConnectParams::parse(&format!("/sync/v51/connect?{query}"));
        let params = parse("clientID=a%2Bb&clientID=second&clientGroupID=g+h&ts=-1&lmid=5x&wsid=&userID=&baseCookie=00%3A01&profileID=p1")
            .expect("valid");
        assert_eq!(params.client_id, "a+b");
        assert_eq!(params.client_group_id, "g h");
        assert_eq!((params.wsid.as_str(), params.user_id), ("", None));
        assert_eq!(params.base_cookie.as_deref(), Some("00:01"));
        assert_eq!(params.profile_id, "p1");
        assert_eq!(parse("clientID=c&clientGroupID=g&ts=1&lmid=1").expect("valid").profile_id, "cgg");
        for query in ["clientID=c&clientGroupID=g&ts=1", "clientID=c&clientGroupID=g&ts=.5&lmid=1", ""] {
            assert!(matches!(parse(query), Err(ConnectError::Param(_))), "{query}");
        }
    }

    #[test]
    fn header_vectors() {
        assert_eq!(ProtocolHeader::decode("e30%3D"), Ok(ProtocolHeader::default()));
        let header = ProtocolHeader::decode("eyJhdXRoVG9rZW4iOiJ0b2sifQ%3D%3D").expect("valid");
        assert_eq!(header.auth_token.as_deref(), Some("tok"));
        assert!(!format!("{header:?}").contains("tok\""), "tokens are not printed");
        let header = ProtocolHeader::decode(
            "eyJpbml0Q29ubmVjdGlvbk1lc3NhZ2UiOlsiaW5pdENvbm5lY3Rpb24iLHsiZGVzaXJlZFF1ZXJpZXNQYXRjaCI6W119XX0%3D",
        )
        .expect("valid");
        assert_eq!(header.init_connection.as_deref(), Some(r#"["initConnection",{"desiredQueriesPatch":[]}]"#));
        for bad in ["", "%", "e30%3D%3D%3D!", "W10%3D", "bnVsbA%3D%3D", "/w%3D%3D", "eyJhdXRoVG9rZW4iOjF9"] {
            assert!(ProtocolHeader::decode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reasons_fit_into_a_close_frame() {
        assert_eq!(close_reason("short"), "short");
        assert_eq!(close_reason(&"x".repeat(123)).len(), 123);
        let cut = close_reason(&"é".repeat(100));
        assert_eq!(cut.len(), 123);
        assert!(cut.ends_with("é..."));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in ".{0,200}", path in "(/[a-z0-9v%.]{0,6}){0,5}", query in "([a-zA-Z]{0,9}=?[%0-9a-f+]{0,5}&?){0,6}") {
            let _ = ConnectParams::parse(&text);
            let _ = ConnectParams::parse(&format!("{path}?{query}"));
            let _ = ProtocolHeader::decode(&text);
            prop_assert!(close_reason(&text).len() <= CLOSE_REASON_BYTES);
        }
    }
}
