//! Peers that know the token and little else, and peers that do not even know that.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use streamer::wire::{FromOwner, FromSubscriber, Hello, PageFrame, Refusal, SnapshotInfo, Welcome};
use streamer::{Error, Reservation, ServerOptions, Subscriber, fetch_snapshot};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async, client_async};

use crate::harness::{
    LIMIT, Owner, Port, bytes, database, next, server_options, some, subscriber_at, transaction, until, v,
};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_place_does_not_take_all_the_room() {
    let database = database("one_place").await;
    let options = ServerOptions { strangers_per_address_max: 2, ..hostile() };
    let owner = Owner::begin_with(&database, options, |_| {}).await;
    // Who has shown the token does not count.
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = socket(&owner.server, "/replication/v1/changes").await;
        stream.send(hello(1 << 20)).await.unwrap();
        let _ = stream.next().await.unwrap().unwrap();
        streams.push(stream);
    }
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stranger = TcpStream::connect(owner.server.address).await.unwrap();
        stranger.write_all(b"GET /replication/v1/changes HTTP/1.1\r\nhost:").await.unwrap();
        idle.push(stranger);
    }
    // The kernel has accepted them; the port may be yet to see them.
    let deadline = std::time::Instant::now() + LIMIT;
    while http::get(&owner.server, "/keepalive", "").await.0 != 0 {
        assert!(std::time::Instant::now() < deadline);
    }
    drop(idle);
    while http::get(&owner.server, "/keepalive", "").await.0 != 200 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(owner.fanout.subscribers().len(), 4);
}

/// Plays an owner that says what it is told to, then nothing. `None` waits until a snapshot is asked for.
#[allow(clippy::result_large_err, reason = "the handshake's callback is made so")]
async fn owner_that_says(frames: Vec<Option<Bytes>>) -> std::net::SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let greet = |_: &Request, mut response: Response| {
                response.headers_mut().insert("zero-stream-versions", "1".parse().unwrap());
                Ok(response)
            };
            let mut socket = accept_hdr_async(stream, greet).await.unwrap();
            for frame in &frames {
                match frame {
                    // The other side may have had enough.
                    Some(frame) => drop(socket.send(Message::Binary(frame.clone())).await),
                    None => {
                        let fetch = Message::Binary(FromSubscriber::Fetch.encode());
                        while socket.next().await.is_some_and(|message| message.is_ok_and(|message| message != fetch)) {
                        }
                    }
                }
            }
            while let Some(Ok(_)) = socket.next().await {}
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_talks_nonsense_is_left() {
    let mut random = StdRng::seed_from_u64(testkit::seed("owner_that_talks_nonsense"));
    let welcome = Welcome {
        epoch: 1,
        replica: v(10),
        start: v(10),
        head: v(99),
        backup: None,
        has_snapshot: true,
        owner_clock_us: 0,
    };
    let page = |is_start, is_end, body: Vec<u8>| {
        let (first, last) = (v(11), v(12));
        FromOwner::Page(PageFrame { first, last, is_start, is_end, body: body.into() }).encode()
    };
    let mut garbage = vec![0; 500];
    random.fill_bytes(&mut garbage);
    let refusal = FromOwner::Refused(Refusal::Other { code: 99, reason: "news".to_owned() }).encode();
    for (name, frame) in [
        ("garbage", Bytes::from(garbage.clone())),
        ("nothing", Bytes::new()),
        ("a page of garbage", page(true, true, garbage)),
        ("a page that ends too early", page(true, true, bytes(&transaction(11, 5, "x"))[..40].to_vec())),
        ("an end without a beginning", page(false, true, Vec::new())),
        ("a second welcome", FromOwner::Welcome(welcome.clone()).encode()),
        ("a frame of enormous length", Bytes::from(vec![0x83; 5 << 20])),
        ("a refusal of the future", refusal.clone()),
        ("a snapshot's end", FromOwner::SnapshotEnd { bytes: 1 }.encode()),
    ] {
        let address =
            owner_that_says(vec![Some(FromOwner::Welcome(welcome.clone()).encode()), Some(frame.clone())]).await;
        let options = subscriber_at(address, "n");
        let (_, mut subscriber) = Subscriber::connect(&options, v(10), v(10)).await.unwrap();
        let error = next(&mut subscriber).await.expect_err(name);
        assert!(matches!(error, Error::Transient { .. }), "{name}: {error}");
        let (_, reservation) = Reservation::open(&options).await.unwrap();
        let error = reservation.lost().await;
        assert!(matches!(error, Error::Transient { .. }), "{name}: {error}");
        // And as the first word.
        let error =
            Subscriber::connect(&subscriber_at(owner_that_says(vec![Some(frame)]).await, "n"), v(10), v(10)).await;
        assert!(name == "a second welcome" || matches!(error, Err(Error::Transient { .. })), "{name}: {error:?}");
    }
    // A snapshot that is shorter than its owner says.
    let info = SnapshotInfo { replica: v(10), version: v(11), bytes: None };
    let frames = [
        Some(FromOwner::Welcome(welcome)),
        None,
        Some(FromOwner::SnapshotStart(info)),
        Some(FromOwner::SnapshotData(Bytes::from_static(b"abc"))),
        Some(FromOwner::SnapshotEnd { bytes: 4 }),
    ];
    let address = owner_that_says(frames.iter().map(|frame| frame.as_ref().map(FromOwner::encode)).collect()).await;
    let (_, _, mut reader, _reservation) = fetch_snapshot(&subscriber_at(address, "n")).await.unwrap();
    let error = reader.read_to_end(&mut Vec::new()).await.expect_err("one byte is missing");
    assert!(error.to_string().contains("incomplete"), "{error}");
}
