//! From an upgrade request to a WebSocket.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// A handshake that is in order.
#[derive(Debug)]
pub struct Handshake {
    accept: HeaderValue,
}

/// Why a request is no WebSocket handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub reason: &'static str,
}

pub fn is_upgrade<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(UPGRADE)
}

impl Handshake {
    /// Reads the request's headers.
    pub fn check<B>(request: &Request<B>) -> Result<Handshake, Refusal> {
        let bad = |reason| Err(Refusal { status: StatusCode::BAD_REQUEST, reason });
        if request.method() != Method::GET {
            let reason = "a WebSocket handshake is a GET request";
            return Err(Refusal { status: StatusCode::METHOD_NOT_ALLOWED, reason });
        }
        let headers = request.headers();
        if !headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket")) {
            return bad("only upgrades to websocket are known");
        }
        if !headers.get_all(CONNECTION).iter().any(says_upgrade) {
            return bad("the Connection header does not say upgrade");
        }
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|value| value != "13") {
            return bad("the Sec-WebSocket-Version must be 13");
        }
        let Some(key) = headers.get(SEC_WEBSOCKET_KEY).filter(|key| is_key(key.as_bytes())) else {
            return bad("the Sec-WebSocket-Key is missing or malformed");
        };
        if headers.get(SEC_WEBSOCKET_PROTOCOL).is_some_and(|offered| !is_token_list(offered.as_bytes())) {
            return bad("the Sec-WebSocket-Protocol is not a list of tokens");
        }
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
        accept.map(|accept| Handshake { accept }).or_else(|_| bad("the Sec-WebSocket-Key is malformed"))
    }

    /// The answer that begins the socket, without any subprotocol or extension.
    #[must_use]
    pub fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        response
    }
}

/// The socket, once the answer is sent; `None` when the peer went away meanwhile. `S` is what was given to [`crate::serve`], and
/// goes on as what `wrap` makes of it.
pub async fn upgraded<S, T>(
    upgrading: OnUpgrade,
    config: WebSocketConfig,
    wrap: impl FnOnce(S) -> T,
) -> Option<WebSocketStream<T>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let parts = upgrading.await.ok()?.downcast::<TokioIo<S>>().ok()?;
    let stream = wrap(parts.io.into_inner());
    Some(WebSocketStream::from_partially_read(stream, parts.read_buf.into(), Role::Server, Some(config)).await)
}

fn says_upgrade(value: &HeaderValue) -> bool {
    value.to_str().is_ok_and(|v| v.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")))
}

/// Sixteen bytes in base64.
fn is_key(key: &[u8]) -> bool {
    key.len() == 24
        && key.ends_with(b"==")
        && key[..22].iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
}

fn is_token_list(value: &[u8]) -> bool {
    let is_token = |token: &[u8]| {
        let token = token.trim_ascii();
        !token.is_empty() && token.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
    };
    value.split(|b| *b == b',').all(is_token)
}
