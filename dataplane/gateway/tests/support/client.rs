use std::net::SocketAddr;

use base64::Engine;
use futures_util::{SinkExt, StreamExt};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::PATIENCE;

/// The encoding of `{}`.
pub const EMPTY: &str = "e30%3D";

pub struct Client {
    pub stream: WebSocketStream<TcpStream>,
    pub response: Response,
}

/// What a client puts into its subprotocol header.
pub fn subprotocol(content: &Value) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(content.to_string());
    utf8_percent_encode(&encoded, NON_ALPHANUMERIC).to_string()
}

impl Client {
    pub async fn connect(address: SocketAddr, path: &str) -> Client {
        Client::connect_with(address, path, EMPTY, &[]).await.expect("handshake")
    }

    pub async fn connect_with(
        address: SocketAddr,
        path: &str,
        subprotocol: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Client, Error> {
        let mut request = format!("ws://{address}{path}").into_client_request()?;
        if !subprotocol.is_empty() {
            request.headers_mut().insert("sec-websocket-protocol", subprotocol.parse().unwrap());
        }
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(address).await.unwrap();
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let (stream, response) =
            timeout(PATIENCE, tokio_tungstenite::client_async_with_config(request, stream, Some(config)))
                .await
                .expect("handshake within the time")?;
        Ok(Client { stream, response })
    }

    pub async fn send(&mut self, text: impl Into<String>) {
        self.stream.send(Message::Text(text.into().into())).await.expect("send");
    }

    pub async fn raw(&mut self) -> Option<Result<Message, Error>> {
        timeout(PATIENCE, self.stream.next()).await.expect("a frame within the time")
    }

    pub async fn receive(&mut self) -> (String, Value) {
        match self.raw().await {
            Some(Ok(Message::Text(text))) => {
                let mut value: Value = serde_json::from_str(&text).expect("JSON");
                let tag = value[0].as_str().expect("a tag").to_owned();
                (tag, value[1].take())
            }
            other => panic!("expected a message, got {other:?}"),
        }
    }

    pub async fn expect(&mut self, tag: &str) -> Value {
        let (got, body) = self.receive().await;
        assert_eq!(got, tag, "{body}");
        body
    }

    /// The `error` message with which the server ends this socket.
    pub async fn error(&mut self) -> Value {
        let body = self.expect("error").await;
        assert!(body["origin"] == "zeroCache" || body["origin"] == "server", "an error without origin: {body}");
        body
    }

    /// The status and reason of the close; `None` is a close without status.
    pub async fn closed(&mut self) -> Option<(u16, String)> {
        match self.raw().await {
            Some(Ok(Message::Close(frame))) => frame.map(|f| (f.code.into(), f.reason.to_string())),
            other => panic!("expected a close, got {other:?}"),
        }
    }
}

/// One plain HTTP exchange on a connection of its own.
pub async fn exchange(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A server that refuses a request early may reset the connection under what it did not read.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer within the time");
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {answer:?}")).parse().unwrap();
    (status, answer)
}

pub async fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    request(address, "GET", path, headers).await
}

pub async fn request(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let headers: String = headers.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    exchange(address, &format!("{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{headers}\r\n")).await
}
