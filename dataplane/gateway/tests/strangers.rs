//! What a socket can do before its credentials are known to be good, which is next to nothing.

use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as WireFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use views::api::{Admitted, Command};

use crate::push::{configured, ids, processed, push};
use crate::support::api::Api;
use crate::support::client::Client;
use crate::support::{Harness, PATIENCE, options, params};

const INIT: &str = r#"["initConnection",{"desiredQueriesPatch":[]}]"#;

/// The memory that the server has for what clients sent.
async fn inbound(harness: &Harness) -> usize {
    let page = harness.metrics().await;
    let line = page.lines().find(|line| line.starts_with("zero_sync_inbound_bytes ")).unwrap();
    line.split(' ').next_back().unwrap().parse().unwrap()
}

async fn until_at_most(harness: &Harness, bytes: usize) {
    let given_back = async {
        while inbound(harness).await > bytes {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(2 * PATIENCE, given_back).await.expect("memory is given back");
}

async fn until_empty(harness: &Harness) {
    until_at_most(harness, 0).await;
}

#[tokio::test]
async fn who_knows_the_ids_displaces_nobody_and_reaches_no_application() {
    let mut api = Api::start(|_| processed()).await;
    let mut harness = Harness::start(configured(&api)).await;
    let (mut known, connect) = harness.client("c").await;
    harness.is_trusting = false;
    let mut stranger = Client::connect(harness.address, &params("c")).await;
    let mut second = harness.connect().await;
    stranger.expect("connected").await;
    // Before and after it says what it wants.
    stranger.send(push("c", 1)).await;
    stranger.send(INIT).await;
    harness.message().await;
    stranger.send(r#"["ackMutationResponses",{"id":7,"clientID":"c"}]"#).await;
    stranger.send(r#"["deleteClients",{"clientIDs":["x"]}]"#).await;
    harness.message().await;
    stranger.send(push("c", 2)).await;
    stranger.send(r#"["ping",{}]"#).await;
    stranger.expect("pong").await;
    known.send(r#"["ping",{}]"#).await;
    known.expect("pong").await;
    assert_eq!(api.pending(), 0);
    // Once it is known it is the client, and everything that it said goes on its way in order.
    assert_eq!(second.admission.admit(), Admitted::InsteadOf(connect.id));
    assert_eq!(known.closed().await, None);
    let (mut pushed, mut cleaned) = (Vec::new(), Vec::new());
    while pushed.len() < 2 || cleaned.len() < 2 {
        let body = api.request().await.body();
        match body["requestID"].as_str().unwrap() {
            id if id.starts_with("cleanup-") => cleaned.push(id.to_owned()),
            _ => pushed.extend(ids(&body)),
        }
    }
    assert_eq!(pushed, [("c".to_owned(), 1), ("c".to_owned(), 2)]);
    cleaned.sort();
    assert!(cleaned[0].starts_with("cleanup-bulk-g-") && cleaned[1] == "cleanup-g-c-7", "{cleaned:?}");
    stranger.send(r#"["ping",{}]"#).await;
    stranger.expect("pong").await;
    drop(stranger);
    assert_eq!(harness.disconnect().await, second.id, "the views were told of the other by the admission");
    until_empty(&harness).await;
}

#[tokio::test]
async fn of_two_sockets_of_a_client_the_newer_one_stays() {
    let mut harness = Harness::start(options()).await;
    harness.is_trusting = false;
    let mut older = Client::connect(harness.address, &params("c")).await;
    let mut first = harness.connect().await;
    let mut newer = Client::connect(harness.address, &params("c")).await;
    let mut second = harness.connect().await;
    for client in [&mut older, &mut newer] {
        client.expect("connected").await;
    }
    assert_eq!(second.admission.admit(), Admitted::Alone);
    assert_eq!(first.admission.admit(), Admitted::TooLate);
    assert_eq!(older.closed().await, None);
    assert_eq!(harness.disconnect().await, first.id);
    newer.send(r#"["ping",{}]"#).await;
    newer.expect("pong").await;
    // One that is gone is let in by nobody.
    let third = Client::connect(harness.address, &params("c")).await;
    let mut third_connect = harness.connect().await;
    drop(third);
    assert_eq!(harness.disconnect().await, third_connect.id);
    assert_eq!(third_connect.admission.admit(), Admitted::TooLate);
    newer.send(r#"["ping",{}]"#).await;
    newer.expect("pong").await;
}

/// A message that never ends.
async fn endless(mut client: Client, bytes: usize) -> Client {
    let mut opcode = Data::Text;
    for _ in 0..bytes / (64 << 10) {
        let frame = WireFrame::message(Bytes::from(vec![b' '; 64 << 10]), OpCode::Data(opcode), false);
        opcode = Data::Continue;
        if client.stream.send(Message::Frame(frame)).await.is_err() {
            break;
        }
    }
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_messages_of_strangers_take_their_part_of_the_memory_and_no_more() {
    const INBOUND: usize = 32 << 20;
    let mut options = options();
    options.limits.inbound_memory_max = INBOUND;
    let mut harness = Harness::start(options).await;
    let (mut known, _connect) = harness.client("known").await;
    harness.is_trusting = false;
    let mut sending = tokio::task::JoinSet::new();
    for n in 0..150 {
        let client = Client::connect(harness.address, &params(&format!("s{n}"))).await;
        sending.spawn(endless(client, 9 << 20));
    }
    let mut clients = Vec::new();
    while let Some(client) = sending.join_next().await {
        clients.push(client.unwrap());
        let taken = inbound(&harness).await;
        assert!(taken <= INBOUND * 3 / 8, "{taken} bytes");
    }
    // Those who are known and those who say little are served meanwhile.
    let large = json!(["inspect", {"id": "x".repeat(4 << 20), "op": "v"}]).to_string();
    known.send(large).await;
    loop {
        match harness.command().await {
            Command::Message(_, views::api::ClientMessage::Inspect(_), _) => break,
            Command::Connect(_) | Command::Disconnect(_) => {}
            other => panic!("{other:?}"),
        }
    }
    // The last of the others may still be about to be cut off.
    until_at_most(&harness, 1 << 20).await;
    let mut modest = Client::connect(harness.address, &params("modest")).await;
    modest.expect("connected").await;
    modest.send(INIT).await;
    let said = async {
        loop {
            if let Command::Message(..) = harness.command().await {
                break;
            }
        }
    };
    timeout(PATIENCE, said).await.expect("the modest one is heard");
    drop((clients, modest));
    until_empty(&harness).await;
    let page = harness.metrics().await;
    assert!(page.contains("disconnects_total{reason=\"ServerOverloaded\"}"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pushes_of_strangers_are_held_up_where_they_come_from() {
    let mut api = Api::start(|_| processed()).await;
    let mut options = configured(&api);
    options.limits.inbound_memory_max = 32 << 20;
    // One that is not read shows that it is gone only when it is written to.
    options.limits.pong_after = Duration::from_millis(200);
    let mut harness = Harness::start(options).await;
    harness.is_trusting = false;
    let padding = "x".repeat(1 << 20);
    let heavy = move |client: &str, id| push(client, id).replace("\"f\":1.0", &format!("\"f\":\"{padding}\""));
    let mut pushing = tokio::task::JoinSet::new();
    let mut connects = Vec::new();
    for n in 0..50 {
        let id = format!("s{n}");
        let mut client = Client::connect(harness.address, &params(&id)).await;
        connects.push(harness.connect().await);
        client.send(INIT).await;
        harness.message().await;
        let heavy = heavy.clone();
        pushing.spawn(async move {
            for n in 1..=20 {
                if client.stream.send(Message::Text(heavy(&id, n).into())).await.is_err() {
                    break;
                }
            }
            client
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let taken = inbound(&harness).await;
    assert!((64 << 10..=(50 * 128) << 10).contains(&taken), "{taken} bytes");
    assert_eq!(api.pending(), 0, "nothing is sent on for those who are not known");
    // One that turns out to be known is read on.
    assert_eq!(connects[7].admission.admit(), Admitted::Alone);
    let seen = api.request().await;
    assert_eq!(ids(&seen.body())[0], ("s7".to_owned(), 1));
    pushing.abort_all();
    while pushing.join_next().await.is_some() {}
    // The views let go of them as well.
    drop(connects);
    until_empty(&harness).await;
}

#[tokio::test]
async fn one_address_has_so_many_strangers_at_a_time() {
    let mut options = options();
    options.limits.strangers_per_address_max = Some(2);
    let mut harness = Harness::start(options).await;
    // Those who are known do not count.
    let mut known = Vec::new();
    for n in 0..3 {
        known.push(harness.client(&format!("k{n}")).await);
    }
    harness.is_trusting = false;
    let first = Client::connect(harness.address, &params("a")).await;
    let mut connect = harness.connect().await;
    let _second = Client::connect(harness.address, &params("b")).await;
    let refused = |harness: &Harness| {
        let address = harness.address;
        async move { Client::connect_with(address, &params("c"), crate::support::client::EMPTY, &[]).await.err() }
    };
    let error = refused(&harness).await.expect("refused");
    assert!(error.to_string().contains("503"), "{error}");
    assert!(harness.metrics().await.contains("connection_failures_total{reason=\"address\"} 1"));
    connect.admission.admit();
    assert!(refused(&harness).await.is_none(), "one of them is known now");
    drop(first);
}

#[tokio::test]
async fn what_is_kept_of_a_request_counts_until_its_sender_is_known() {
    let mut options = options();
    options.query.forward_cookies = true;
    options.limits.inbound_memory_max = 160_000;
    let mut harness = Harness::start(options).await;
    harness.is_trusting = false;
    let cookie = "c".repeat(10_000);
    let (mut clients, mut connects) = (Vec::new(), Vec::new());
    let (address, headers) = (harness.address, [("cookie", cookie.as_str())]);
    let empty = crate::support::client::EMPTY;
    let refused = loop {
        let path = params(&format!("s{}", clients.len()));
        match Client::connect_with(address, &path, empty, &headers).await {
            Ok(client) => clients.push(client),
            Err(error) => break error.to_string(),
        }
        connects.push(harness.connect().await);
        assert!(clients.len() <= 6, "three eighths of the memory");
    };
    assert!(refused.contains("503") && clients.len() > 3, "{refused} after {}", clients.len());
    connects[0].admission.admit();
    Client::connect_with(address, &params("next"), empty, &headers).await.expect("room again");
    assert!(harness.metrics().await.contains("connection_failures_total{reason=\"memory\"} 1"));
}
