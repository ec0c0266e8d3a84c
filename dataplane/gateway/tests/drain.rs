use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use views::api::{Command, Frame};

use crate::support::api::{Api, ok};
use crate::support::client::{Client, get};
use crate::support::{Harness, PATIENCE, options, params};

async fn drain(harness: &mut Harness) -> tokio::sync::oneshot::Sender<()> {
    loop {
        if let Command::Drain { done, .. } = harness.command().await {
            return done;
        }
    }
}

#[tokio::test]
async fn sockets_close_when_the_views_have_drained() {
    let mut harness = Harness::start(options()).await;
    let (mut told, connect) = harness.client("a").await;
    let (mut left, _left) = harness.client("b").await;
    harness.stop();
    let done = drain(&mut harness).await;
    assert!(!harness.gate.is_ready());
    assert_eq!(get(harness.address, "/", &[]).await.0, 503, "load balancers turn away");
    for path in ["/keepalive", "/livez"] {
        assert_eq!(get(harness.address, path, &[]).await.0, 200, "and nobody kills the process");
    }
    // Who comes anew is sent elsewhere at once.
    let mut late = Client::connect(harness.address, &params("late")).await;
    let error = late.error().await;
    assert_eq!((&error["kind"], &error["origin"]), (&json!("Rehome"), &json!("zeroCache")));
    assert!(error["maxBackoffMs"].as_u64().is_some_and(|ms| ms <= 1_000), "{error}");
    drop(late);
    // Still served while the views drain.
    left.send(r#"["ping",{}]"#).await;
    left.expect("pong").await;
    connect.outbox.send(Frame::Text("[\"error\",{\"kind\":\"Rehome\",\"origin\":\"zeroCache\"}]".into())).unwrap();
    connect.outbox.send(Frame::Close(None)).unwrap();
    assert_eq!(told.error().await["kind"], "Rehome");
    assert_eq!(told.closed().await, None);
    drop(done);
    assert_eq!(left.closed().await.map(|(code, _)| code), Some(1001));
    drop((told, left));
    let address = harness.address;
    assert!(harness.outcome().await.is_graceful);
    assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn probes_fail_for_a_while_before_any_socket_is_told() {
    let mut options = options();
    options.limits.drain_lead = Duration::from_millis(400);
    let mut harness = Harness::start(options).await;
    let (client, _connect) = harness.client("a").await;
    let started = Instant::now();
    harness.stop();
    while harness.gate.is_ready() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(started.elapsed() < Duration::from_millis(300), "{:?}", started.elapsed());
    assert_eq!(get(harness.address, "/", &[]).await.0, 503);
    drop(drain(&mut harness).await);
    assert!(started.elapsed() >= Duration::from_millis(400), "{:?}", started.elapsed());
    drop(client);
    assert!(harness.outcome().await.is_graceful);
}

#[tokio::test]
async fn pushes_under_way_are_finished() {
    let mut api = Api::start(|_| ok(json!({"mutations": []}))).await;
    let mut options = options();
    options.mutate.urls = vec![api.url("/m")];
    let mut harness = Harness::start(options).await;
    let (mut client, _connect) = harness.client("c").await;
    api.hold();
    let push = |id: i64| {
        json!(["push", {"clientGroupID": "g", "pushVersion": 1, "timestamp": 1, "requestID": "r", "mutations": [
            {"type": "custom", "id": id, "clientID": "c", "name": "n", "args": [null], "timestamp": 1}]}])
        .to_string()
    };
    client.send(push(1)).await;
    api.request().await;
    client.send(push(2)).await;
    client.send(r#"["ping",{}]"#).await;
    client.expect("pong").await;
    harness.stop();
    drop(drain(&mut harness).await);
    tokio::time::sleep(Duration::from_millis(100)).await;
    api.release();
    let second = api.request().await.body();
    assert_eq!(second["mutations"][0]["id"], 2, "what was queued goes out too");
    drop(client);
    assert!(harness.outcome().await.is_graceful);
}

#[tokio::test]
async fn the_time_to_drain_is_bounded() {
    let api = Api::start(|_| ok(json!({"mutations": []}))).await;
    let mut options = options();
    options.mutate.urls = vec![api.url("/m")];
    options.limits.drain_timeout = Duration::from_millis(500);
    let mut harness = Harness::start(options).await;
    let (mut client, connect) = harness.client("c").await;
    api.hold();
    client
        .send(
            r#"["push",{"clientGroupID":"g","pushVersion":1,"timestamp":1,"requestID":"r","mutations":[{"type":"custom","id":1,"clientID":"c","name":"n","args":[null],"timestamp":1}]}]"#,
        )
        .await;
    // A client that takes nothing, views that do not finish, an API server that does not answer.
    connect.outbox.send(Frame::Text(vec![b'x'; 32 * 1024 * 1024].into())).unwrap();
    let started = Instant::now();
    harness.stop();
    let _done = drain(&mut harness).await;
    let outcome = timeout(PATIENCE, harness.outcome()).await.unwrap();
    assert!(!outcome.is_graceful);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_node_without_views_stops_at_once() {
    let (mut harness, _unused) = Harness::start_closed(options()).await;
    harness.gate.open(None);
    assert!(harness.gate.is_ready());
    let refused = Client::connect_with(harness.address, &params("c"), "e30%3D", &[]).await;
    assert!(refused.is_err());
    harness.stop();
    assert!(harness.outcome().await.is_graceful);
}
