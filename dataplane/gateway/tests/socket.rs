use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use serde_json::json;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use views::api::{Admitted, ClientMessage, Command, Frame, Piece, Spool};

use crate::support::client::Client;
use crate::support::{Harness, options, params};

#[tokio::test]
async fn what_is_no_message_is_told_and_ends_the_socket() {
    let mut harness = Harness::start(options()).await;
    for (frame, reason) in [
        ("", "not a JSON array"),
        ("nonsense", "not a JSON array"),
        ("{}", "not a JSON array"),
        ("[\"ping\"]", "not a JSON array"),
        (r#"["unheardOf",{}]"#, "unknown message \"unheardOf\""),
        (r#"["ping",[]]"#, "ping: expected an object"),
        (r#"["initConnection",{}]"#, "initConnection: missing property \"desiredQueriesPatch\""),
        (
            r#"["changeDesiredQueries",{"desiredQueriesPatch":[{"op":"put","hash":"h","ast":{"table":1}}]}]"#,
            "changeDesiredQueries.desiredQueriesPatch[0].ast.table: expected a string, got a number",
        ),
        (r#"["push",{"clientGroupID":"g"}]"#, "missing property \"mutations\""),
        (r#"["updateAuth",{"auth":null}]"#, "updateAuth.auth: expected a string"),
    ] {
        let (mut client, _) = harness.client("c").await;
        client.send(frame).await;
        let error = client.error().await;
        assert_eq!(error["kind"], "InvalidMessage", "{frame}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(reason), "{frame}: {message}");
        assert_eq!(client.closed().await, None, "{frame}");
        harness.disconnect().await;
    }
}

#[tokio::test]
async fn messages_reach_the_views_in_order_and_after_init_connection_only() {
    let mut harness = Harness::start(options()).await;
    let mut client = Client::connect(harness.address, &params("c")).await;
    let id = harness.connect().await.id;
    client.expect("connected").await;
    client.send(r#"["changeDesiredQueries",{"desiredQueriesPatch":[{"op":"clear"}]}]"#).await;
    client.send(r#"["inspect",{"id":"early","op":"version"}]"#).await;
    client.send(r#"["pull",{"clientGroupID":"g","cookie":null,"requestID":"r"}]"#).await;
    client.send(r#"["closeConnection",[]]"#).await;
    client.send(r#"["initConnection",{"desiredQueriesPatch":[],"unknown":1}]"#).await;
    for i in 0..50 {
        client.send(format!(r#"["inspect",{{"id":"{i}","op":"version"}}]"#)).await;
    }
    let binary = Bytes::from_static(br#"["deleteClients",{"clientIDs":["x"]}]"#);
    client.stream.send(Message::Binary(binary)).await.unwrap();
    let (from, ClientMessage::InitConnection { .. }) = harness.message().await else { panic!("init first") };
    assert_eq!(from, id);
    for i in 0..50 {
        let (_, ClientMessage::Inspect(body)) = harness.message().await else { panic!("inspect {i}") };
        assert_eq!(body["id"], i.to_string());
    }
    let (_, ClientMessage::DeleteClients(body)) = harness.message().await else { panic!("deleteClients") };
    assert_eq!(body.client_ids, ["x"]);
    client.send(r#"["initConnection",{"desiredQueriesPatch":[]}]"#).await;
    assert_eq!(client.error().await["kind"], "Internal");
    assert_eq!(client.closed().await, None);
}

#[tokio::test]
async fn a_newer_socket_displaces_the_older_silently() {
    let mut harness = Harness::start(options()).await;
    let (mut old, first) = harness.client("c").await;
    let (mut other, _) = harness.client("d").await;
    harness.is_trusting = false;
    let mut new = Client::connect(harness.address, &params("c")).await;
    let mut second = harness.connect().await;
    assert_eq!(second.admission.admit(), Admitted::InsteadOf(first.id), "the views hear of it at once");
    assert_eq!(old.closed().await, None, "no error, no status");
    new.expect("connected").await;
    new.send(r#"["ping",{}]"#).await;
    new.expect("pong").await;
    other.send(r#"["ping",{}]"#).await;
    other.expect("pong").await;
    drop(new);
    assert_eq!(harness.disconnect().await, second.id, "the displaced socket says nothing more");
}

#[tokio::test]
async fn frames_arrive_whole_whatever_their_size() {
    let mut harness = Harness::start(options()).await;
    let (mut client, connect) = harness.client("c").await;
    let text = |n: usize| format!("[\"x\",\"{}\"]", "€".repeat(n));
    for n in [0, 1, 5461, 5462, 40_000, 1_000_000] {
        let whole = text(n);
        let chunks = whole.as_bytes().chunks(whole.len() / 3 + 1);
        let parts: Vec<Piece> = chunks.map(|chunk| Bytes::copy_from_slice(chunk).into()).collect();
        connect.outbox.send(Frame::Text(whole.clone().into())).unwrap();
        connect.outbox.send(Frame::Parts(parts.into())).unwrap();
        for _ in 0..2 {
            let Some(Ok(Message::Text(got))) = client.raw().await else { panic!("text") };
            assert!(got.as_str() == whole, "{n}");
        }
    }
    assert_eq!(connect.outbox.queued(), 0);
    connect.outbox.send(Frame::Close(Some((3000, "é".repeat(100))))).unwrap();
    let (code, reason) = client.closed().await.unwrap();
    assert_eq!(code, 3000);
    assert!(reason.len() <= 123 && reason.ends_with("..."), "{reason}");
}

#[tokio::test]
async fn what_a_client_is_owed_may_be_larger_than_any_limit_and_on_disk() {
    let mut options = options();
    options.limits.outbox_bytes_max = 100_000;
    let mut harness = Harness::start(options).await;
    let (mut client, connect) = harness.client("c").await;
    let folder = tempfile::tempdir().unwrap();
    // One part of the text is in memory.
    let spool = Spool::new(folder.path(), 400_000);
    let whole = format!("[\"x\",\"{}\"]", "€".repeat(100_000));
    let piece = |text: &[u8]| spool.keep(text.to_vec()).unwrap();
    for _ in 0..100 {
        let parts = whole.as_bytes().chunks(whole.len() / 3 + 1).map(piece).collect::<Vec<Piece>>();
        connect.outbox.send(Frame::Parts(parts.into())).unwrap();
    }
    assert!(connect.outbox.queued() > 20_000_000);
    for _ in 0..100 {
        let Some(Ok(Message::Text(got))) = client.raw().await else { panic!("text") };
        assert!(got.as_str() == whole);
    }
    // The last frame counts until the socket has it.
    connect.outbox.send(Frame::Text(Bytes::from_static(b"[\"last\",{}]"))).unwrap();
    client.expect("last").await;
    assert!(connect.outbox.queued() < 100);
}

#[tokio::test]
async fn a_socket_ends_when_the_views_let_go_of_it() {
    let mut harness = Harness::start(options()).await;
    let (mut client, connect) = harness.client("c").await;
    connect.outbox.send(Frame::Text(Bytes::from_static(b"[\"last\",{}]"))).unwrap();
    let id = connect.id;
    harness.outboxes.clear();
    drop(connect);
    client.expect("last").await;
    assert_eq!(client.closed().await, None);
    assert_eq!(harness.disconnect().await, id);
}

#[tokio::test]
async fn a_pong_overtakes_queued_pokes() {
    let mut harness = Harness::start(options()).await;
    let (mut client, connect) = harness.client("c").await;
    let poke = Bytes::from(format!("[\"pokePart\",\"{}\"]", "x".repeat(256 * 1024)));
    let frames = 200;
    for _ in 0..frames {
        connect.outbox.send(Frame::Text(poke.clone())).unwrap();
    }
    client.send(r#"["ping",{}]"#).await;
    let mut before = 0;
    while client.receive().await.0 != "pong" {
        before += 1;
    }
    assert!(before < frames / 2, "the pong came after {before} of {frames} pokes");
}

#[tokio::test]
async fn silence_is_broken_by_a_pong() {
    let mut options = options();
    options.limits.pong_after = Duration::from_millis(200);
    let mut harness = Harness::start(options).await;
    let (mut client, _connect) = harness.client("c").await;
    let started = Instant::now();
    client.expect("pong").await;
    client.expect("pong").await;
    assert!(started.elapsed() >= Duration::from_millis(350), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_client_that_does_not_read_is_disconnected() {
    let mut options = options();
    options.limits.outbox_bytes_max = 4 * 1024 * 1024;
    let mut harness = Harness::start(options).await;
    let (_client, connect) = harness.client("slow").await;
    let (mut quick, _quick_connect) = harness.client("quick").await;
    let poke = Bytes::from(vec![b'x'; 1024 * 1024]);
    let mut sent = 0;
    while connect.outbox.send(Frame::Text(poke.clone())).is_ok() {
        sent += 1;
        assert!(sent < 1000, "the queue is bounded");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    quick.send(r#"["ping",{}]"#).await;
    quick.expect("pong").await;
    // The writer is stuck in a frame; reading a little lets it see what happened.
    let mut client = _client;
    let ended = tokio::spawn(async move { while let Some(Ok(_)) = client.raw().await {} });
    assert_eq!(harness.disconnect().await, connect.id);
    ended.await.unwrap();
    assert!(harness.metrics().await.contains("disconnects_total{reason=\"slow_client\"} 1"));
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_disconnected() {
    let mut options = options();
    options.limits.send_stall_timeout = Duration::from_millis(300);
    let mut harness = Harness::start(options).await;
    let (_client, connect) = harness.client("c").await;
    connect.outbox.send(Frame::Text(Bytes::from(vec![b'x'; 32 * 1024 * 1024]))).unwrap();
    assert_eq!(harness.disconnect().await, connect.id);
    assert!(harness.metrics().await.contains("disconnects_total{reason=\"send_stalled\"} 1"));
}

#[tokio::test]
async fn a_message_over_the_limit_closes_with_1009() {
    let mut options = options();
    options.limits.payload_bytes_max = 100_000;
    let mut harness = Harness::start(options).await;
    let (mut client, connect) = harness.client("c").await;
    let text = |n: usize| json!(["inspect", {"id": "x".repeat(n), "op": "version"}]).to_string();
    client.send(text(90_000)).await;
    let Command::Message(..) = harness.command().await else { panic!("below the limit") };
    // More than fits into the socket's buffers, so that the server closes while the client still writes.
    let _ = client.stream.feed(Message::Text(text(100_000).into())).await;
    let _ = client.stream.flush().await;
    let (code, _) = client.closed().await.unwrap();
    assert_eq!(code, 1009);
    assert_eq!(harness.disconnect().await, connect.id);
}

#[tokio::test]
async fn a_flood_is_slowed_down_and_not_lost() {
    let mut options = options();
    options.limits.messages_per_second = 1000;
    let mut harness = Harness::start(options).await;
    let (mut client, _connect) = harness.client("c").await;
    let started = Instant::now();
    for i in 0..1500 {
        client.stream.feed(Message::Text(format!(r#"["inspect",{{"id":"{i}","op":"v"}}]"#).into())).await.unwrap();
    }
    client.stream.flush().await.unwrap();
    for i in 0..1500 {
        let (_, ClientMessage::Inspect(body)) = harness.message().await else { panic!("inspect {i}") };
        assert_eq!(body["id"], i.to_string());
    }
    assert!(started.elapsed() > Duration::from_millis(250), "{:?}", started.elapsed());
}

#[tokio::test]
async fn control_pings_are_answered_and_a_goodbye_is_heard() {
    let mut harness = Harness::start(options()).await;
    let (mut client, connect) = harness.client("c").await;
    client.stream.send(Message::Ping(Bytes::from_static(b"x"))).await.unwrap();
    assert_eq!(client.raw().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"x")));
    client.stream.close(None).await.unwrap();
    assert_eq!(client.closed().await, None);
    assert_eq!(harness.disconnect().await, connect.id);
    assert!(harness.metrics().await.contains("disconnects_total{reason=\"client_closed\"} 1"));
}
