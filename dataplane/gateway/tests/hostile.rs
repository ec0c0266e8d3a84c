//! What an outsider can do with nothing but the port's address.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as WireFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use views::api::Command;

use crate::support::client::{Client, get};
use crate::support::{Harness, PATIENCE, options, params};

#[tokio::test]
async fn connections_that_say_nothing_are_bounded() {
    let mut options = options();
    options.limits.requests_max = 3;
    options.limits.handshake_timeout = Duration::from_millis(600);
    let mut harness = Harness::start(options).await;
    // A socket is not one of them.
    let (mut client, _connect) = harness.client("c").await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(harness.address).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut one_more = TcpStream::connect(harness.address).await.unwrap();
    let closed = timeout(Duration::from_millis(300), one_more.read(&mut [0; 16])).await.expect("closed at once");
    assert!(matches!(closed, Ok(0) | Err(_)));
    client.send(r#"["ping",{}]"#).await;
    client.expect("pong").await;
    // They are cut off in their turn, and then the port answers again.
    for stream in &mut silent {
        timeout(PATIENCE, stream.read(&mut [0; 1024])).await.expect("cut off").ok();
    }
    drop(silent);
    assert_eq!(get(harness.address, "/livez", &[]).await.0, 200);
    assert!(harness.metrics().await.contains("connection_failures_total{reason=\"requests\"} 1"));
}

#[tokio::test]
async fn a_socket_that_asks_for_nothing_is_closed() {
    let mut options = options();
    options.limits.init_timeout = Duration::from_millis(300);
    let mut harness = Harness::start(options).await;
    let (mut kept, _connect) = harness.client("kept").await;
    let mut idle = Client::connect(harness.address, &params("idle")).await;
    let id = harness.connect().await.id;
    idle.expect("connected").await;
    let started = Instant::now();
    // Signs of life alone do not count.
    while started.elapsed() < Duration::from_millis(150) {
        idle.send(r#"["ping",{}]"#).await;
        idle.expect("pong").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(idle.closed().await, None, "without an error: it may come back");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(harness.disconnect().await, id);
    kept.send(r#"["ping",{}]"#).await;
    kept.expect("pong").await;
}

#[tokio::test]
async fn control_frames_count_as_messages() {
    let mut options = options();
    options.limits.messages_per_second = 1000;
    let mut harness = Harness::start(options).await;
    let (mut client, _connect) = harness.client("c").await;
    let started = Instant::now();
    for _ in 0..1500 {
        client.stream.feed(Message::Ping(Bytes::from_static(b"x"))).await.unwrap();
    }
    client.stream.feed(Message::Text(r#"["inspect",{"id":"last","op":"v"}]"#.into())).await.unwrap();
    client.stream.flush().await.unwrap();
    let Command::Message(..) = harness.command().await else { panic!("the message behind the pings") };
    assert!(started.elapsed() > Duration::from_millis(250), "{:?}", started.elapsed());
}

#[tokio::test]
async fn compressed_and_endless_frames_end_the_socket() {
    let mut options = options();
    options.limits.payload_bytes_max = 100_000;
    let mut harness = Harness::start(options).await;
    // Compression is offered and not agreed to, so a frame that says it is compressed is an error.
    let offered = [("sec-websocket-extensions", "permessage-deflate; client_max_window_bits")];
    let subprotocol = crate::support::client::EMPTY;
    let mut client = Client::connect_with(harness.address, &params("a"), subprotocol, &offered).await.unwrap();
    assert!(!client.response.headers().contains_key("sec-websocket-extensions"));
    let id = harness.connect().await.id;
    client.expect("connected").await;
    let mut frame = WireFrame::message(Bytes::from_static(b"\x03\x00"), OpCode::Data(Data::Text), true);
    frame.header_mut().rsv1 = true;
    client.stream.send(Message::Frame(frame)).await.unwrap();
    assert_eq!(client.closed().await.map(|(code, _)| code), Some(1002));
    assert_eq!(harness.disconnect().await, id);
    // A message in fragments without end.
    let (mut client, connect) = harness.client("b").await;
    let mut opcode = Data::Text;
    let code = loop {
        let frame = WireFrame::message(Bytes::from(vec![b' '; 10_000]), OpCode::Data(opcode), false);
        opcode = Data::Continue;
        if client.stream.send(Message::Frame(frame)).await.is_err() {
            break None;
        }
        if let Ok(closed) = timeout(Duration::from_millis(5), client.closed()).await {
            break closed.map(|(code, _)| code);
        }
    };
    assert!(matches!(code, None | Some(1009)), "{code:?}");
    assert_eq!(harness.disconnect().await, connect.id);
}

#[tokio::test]
async fn a_short_text_of_very_many_values_is_not_read() {
    let mut options = options();
    options.limits.message_memory_max = 1 << 20;
    let mut harness = Harness::start(options).await;
    let (mut client, connect) = harness.client("c").await;
    client.send(json!(["inspect", {"id": "x".repeat(100_000), "op": "v"}]).to_string()).await;
    let Command::Message(..) = harness.command().await else { panic!("long is not many") };
    client.send(format!(r#"["inspect",{{"id":"i","op":"v","x":[{}0]}}]"#, "0,".repeat(50_000))).await;
    let error = client.error().await;
    assert_eq!(error["kind"], "InvalidMessage");
    assert!(error["message"].as_str().unwrap().contains("too many JSON values"), "{error}");
    assert_eq!(client.closed().await, None);
    assert_eq!(harness.disconnect().await, connect.id);
}

#[tokio::test]
async fn a_client_is_read_no_further_than_the_views_can_hold() {
    let mut options = options();
    options.limits.message_memory_max = 100_000;
    // Five eighths of it.
    options.limits.inbound_memory_max = 256_000;
    let mut harness = Harness::start(options).await;
    let (mut client, _connect) = harness.client("a").await;
    let (mut other, _other) = harness.client("b").await;
    let message = json!(["inspect", {"id": "x".repeat(60_000), "op": "v"}]).to_string();
    client.send(message.clone()).await;
    let held = harness.command().await;
    let Command::Message(..) = held else { panic!("the first") };
    client.send(r#"["ping",{}]"#).await;
    client.expect("pong").await;
    client.send(message.clone()).await;
    assert!(timeout(Duration::from_millis(200), harness.command()).await.is_err(), "the second waits");
    // Others are served as long as there is room for all, and sent away for a moment when there is none.
    other.send(r#"["inspect",{"id":"small","op":"v"}]"#).await;
    let Command::Message(..) = harness.command().await else { panic!("the other's") };
    let (mut third, _third) = harness.client("c").await;
    third.send(json!(["inspect", {"id": "x".repeat(95_000), "op": "v"}]).to_string()).await;
    assert_eq!(third.error().await["kind"], "ServerOverloaded");
    assert_eq!(third.closed().await, None);
    harness.disconnect().await;
    drop(held);
    let Command::Message(..) = harness.command().await else { panic!("the second at last") };
}

#[tokio::test]
async fn pages_of_others_are_refused() {
    let mut options = options();
    options.origins = vec!["https://app.example.com".to_owned()];
    let harness = Harness::start(options).await;
    let empty = crate::support::client::EMPTY;
    let from = async |headers: &[(&'static str, &str)]| {
        Client::connect_with(harness.address, &params("c"), empty, headers).await.err().map(|error| error.to_string())
    };
    assert_eq!(from(&[("origin", "https://app.example.com")]).await, None);
    assert_eq!(from(&[]).await, None, "what is no browser says what it likes anyway");
    let refused = from(&[("origin", "https://evil.example.net")]).await.expect("refused");
    assert!(refused.contains("403"), "{refused}");
    assert!(harness.metrics().await.contains("connection_failures_total{reason=\"origin\"} 1"));
}

#[tokio::test]
async fn garbage_instead_of_http_is_no_trouble() {
    let harness = Harness::start(options()).await;
    for garbage in
        [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(harness.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("closed");
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(get(harness.address, "/livez", &[]).await.0, 200);
}
