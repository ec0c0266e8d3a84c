//! Peers that know the token and little else, and peers that do not even know that.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use streamer::ServerOptions;
use streamer::wire::{FromOwner, FromSubscriber, Hello, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::ClientRequestBuilder;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::harness::{LIMIT, Owner, Port, database, server_options, some, until, v};
use crate::http;

fn hostile() -> ServerOptions {
    ServerOptions { handshake_timeout: Duration::from_millis(500), ..server_options() }
}

async fn socket(port: &Port, path: &str) -> WebSocketStream<TcpStream> {
    let uri = format!("ws://{}{path}", port.address).parse().unwrap();
    let request = ClientRequestBuilder::new(uri)
        .with_header("zero-stream-versions", "1-1")
        .with_header("authorization", "Bearer the-token");
    let stream = TcpStream::connect(port.address).await.unwrap();
    client_async(request, stream).await.unwrap().0
}

fn hello(window: u64) -> Message {
    let hello = Hello {
        app: "zero".to_owned(),
        shard: 0,
        node: "hostile".to_owned(),
        replica: Some(v(10)),
        after: v(10),
        window,
    };
    Message::Binary(FromSubscriber::Hello(hello).encode())
}

/// The last word before the socket ends.
async fn last_word(socket: &mut WebSocketStream<TcpStream>) -> Option<Refusal> {
    let mut last = None;
    while let Some(Ok(message)) = timeout(LIMIT, socket.next()).await.expect("the socket ends") {
        if let Message::Binary(frame) = message
            && let FromOwner::Refused(refusal) = FromOwner::decode(frame).unwrap()
        {
            last = Some(refusal);
        }
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_break_the_protocol_are_let_go() {
    let database = database("protocol").await;
    let mut owner = Owner::begin_with(&database, hostile(), |_| {}).await;
    owner.append(&some(11..21)).await;
    let ack = |applied, consumed| Message::Binary(FromSubscriber::Ack { applied: v(applied), consumed }.encode());
    let fetch = || Message::Binary(FromSubscriber::Fetch.encode());
    for (path, name, messages) in [
        ("changes", "garbage first", vec![Message::Binary(Bytes::from_static(b"garbage"))]),
        ("changes", "nothing in it", vec![Message::Binary(Bytes::new())]),
        ("changes", "text", vec![Message::Text("hello".into())]),
        ("changes", "an acknowledgement first", vec![ack(10, 0)]),
        ("changes", "hello twice", vec![hello(1 << 20), hello(1 << 20)]),
        ("changes", "garbage second", vec![hello(1 << 20), Message::Binary(Bytes::from_static(b"\x02\x00"))]),
        ("changes", "an acknowledgement of the future", vec![hello(1 << 20), ack(21, 0)]),
        ("changes", "more consumed than sent", vec![hello(1 << 20), ack(10, 1 << 40)]),
        ("changes", "backwards", vec![hello(1 << 20), ack(9, 0)]),
        ("changes", "a fetch", vec![hello(1 << 20), fetch()]),
        ("changes", "too long", vec![hello(1 << 20), Message::Binary(Bytes::from(vec![2; 1 << 20]))]),
        ("snapshot", "two fetches", vec![hello(1 << 20), fetch(), fetch()]),
        ("snapshot", "more consumed than sent of a snapshot", vec![hello(1 << 20), ack(0, 1 << 40)]),
    ] {
        let mut socket = socket(&owner.server, &format!("/replication/v1/{path}")).await;
        for message in messages {
            // It may have been let go already.
            let _ = socket.send(message).await;
        }
        let last = last_word(&mut socket).await;
        let is_told = matches!(last, Some(Refusal::Protocol { .. } | Refusal::NoSnapshot));
        // A reset may overtake the last word to someone who keeps sending.
        assert!(is_told || name == "too long", "{name}: {last:?}");
    }
    until("all to be gone", || owner.fanout.subscribers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_frames_harm_nobody() {
    let mut random = StdRng::seed_from_u64(testkit::seed("random_frames"));
    let database = database("random_frames").await;
    let mut owner = Owner::begin_with(&database, hostile(), |_| {}).await;
    owner.append(&some(11..21)).await;
    for n in 0..60 {
        let mut stream = TcpStream::connect(owner.server.address).await.unwrap();
        if n % 3 > 0 {
            let head = format!(
                "GET /replication/v1/{} HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n\
                 sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nzero-stream-versions: 1-1\r\nauthorization: Bearer the-token\r\n\r\n",
                if n % 2 == 0 { "changes" } else { "snapshot" }
            );
            stream.write_all(head.as_bytes()).await.unwrap();
        }
        let mut garbage = vec![0; random.random_range(1..3000)];
        random.fill_bytes(&mut garbage);
        if n % 3 == 2 {
            // A frame that looks right and claims to be enormous.
            let claim = [&[0x82, 0xff][..], &random.random_range(1_u64 << 20..1 << 62).to_be_bytes()].concat();
            garbage.splice(..0, claim);
        }
        let _ = stream.write_all(&garbage).await;
        let _ = stream.shutdown().await;
        let _ = timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await.expect("the socket ends");
    }
    let mut good = socket(&owner.server, "/replication/v1/changes").await;
    good.send(hello(1 << 20)).await.unwrap();
    let Some(Ok(Message::Binary(frame))) = good.next().await else { panic!() };
    assert!(matches!(FromOwner::decode(frame), Ok(FromOwner::Welcome(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_handshakes_and_large_heads_end() {
    let database = database("slow_handshake").await;
    let owner = Owner::begin_with(&database, hostile(), |_| {}).await;
    // Half a request head; a whole one and then nothing.
    let mut half = TcpStream::connect(owner.server.address).await.unwrap();
    half.write_all(b"GET /replication/v1/changes HTTP/1.1\r\nhost:").await.unwrap();
    let mut silent = socket(&owner.server, "/replication/v1/changes").await;
    let _ = timeout(LIMIT, half.read_to_end(&mut Vec::new())).await.expect("the half request ends");
    let _ = last_word(&mut silent).await;
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "x".repeat(100_000));
    let (status, _) = http::request(&owner.server, &head).await;
    assert!(status == 431 || status == 0, "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_counted() {
    let database = database("connections").await;
    let owner = Owner::begin_with(&database, ServerOptions { connections_max: 3, ..hostile() }, |_| {}).await;
    let mut sockets = Vec::new();
    for _ in 0..3 {
        let mut socket = socket(&owner.server, "/replication/v1/changes").await;
        socket.send(hello(1 << 20)).await.unwrap();
        let _ = socket.next().await.unwrap().unwrap();
        sockets.push(socket);
    }
    assert_eq!(http::get(&owner.server, "/keepalive", "").await.0, 0, "closed at once");
    drop(sockets.pop());
    until("one to be gone", || owner.fanout.subscribers().len() == 2).await;
    let deadline = std::time::Instant::now() + LIMIT;
    while http::get(&owner.server, "/keepalive", "").await.0 != 200 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
