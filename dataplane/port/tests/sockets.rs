use futures_util::{SinkExt, StreamExt};
use hyper::{Request, StatusCode};
use port::websocket::{Handshake, is_upgrade, upgraded};
use port::{HeadLimits, text};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn request(changes: &[(&str, &str)]) -> Request<()> {
    let mut headers = vec![
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", KEY),
    ];
    headers.retain(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
    let mut request = Request::builder().uri("/x");
    for (name, value) in headers.iter().chain(changes).filter(|(_, value)| !value.is_empty()) {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

#[test]
fn only_handshakes_in_order_are_taken() {
    for good in [
        &[][..],
        &[("upgrade", "WebSocket"), ("connection", "keep-alive, UPGRADE")],
        &[("sec-websocket-protocol", "a, b%20c")],
    ] {
        let response = Handshake::check(&request(good)).unwrap().response();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        // The example of RFC 6455, section 1.3.
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!response.headers().contains_key("sec-websocket-protocol"));
    }
    for (bad, reason) in [
        (("upgrade", "h2c"), "only upgrades to websocket"),
        (("connection", "close"), "Connection"),
        (("connection", ""), "Connection"),
        (("sec-websocket-version", "8"), "Version"),
        (("sec-websocket-version", ""), "Version"),
        (("sec-websocket-key", ""), "Key"),
        (("sec-websocket-key", "short=="), "Key"),
        (("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQAA"), "Key"),
        (("sec-websocket-key", "dGhlIHNhbXBsZSBub25j Q=="), "Key"),
        (("sec-websocket-protocol", "a,,b"), "Protocol"),
        (("sec-websocket-protocol", "a b"), "Protocol"),
    ] {
        let refusal = Handshake::check(&request(&[bad])).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST, "{bad:?}");
        assert!(refusal.reason.contains(reason), "{bad:?}: {}", refusal.reason);
    }
    let mut posted = request(&[]);
    *posted.method_mut() = hyper::Method::POST;
    assert_eq!(Handshake::check(&posted).unwrap_err().status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(!is_upgrade(&request(&[("upgrade", "")])));
}

#[tokio::test]
async fn an_upgraded_connection_is_a_socket() {
    let (listener, address) = port::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    tokio::spawn(async move {
        let stream = port::accept(&listener).await;
        let limits = HeadLimits { timeout: Duration::from_secs(5), bytes_max: 0 };
        let answer = async |mut request| match Handshake::check(&request) {
            Ok(handshake) => {
                let upgrading = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let mut stream = upgraded(upgrading, Default::default(), |stream: TcpStream| stream).await.unwrap();
                    let message = stream.next().await.unwrap().unwrap();
                    stream.send(message).await.unwrap();
                });
                handshake.response()
            }
            Err(refusal) => text(refusal.status, refusal.reason),
        };
        port::serve(stream, limits, std::future::pending(), answer).await;
    });
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut stream, _) = tokio_tungstenite::client_async(format!("ws://{address}/"), stream).await.unwrap();
    stream.send(Message::text("hello")).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), Message::text("hello"));
}
