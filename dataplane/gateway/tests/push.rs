use std::time::Duration;

use gateway::{Options, Secret};
use serde_json::{Value, json};

use crate::support::api::{Api, Reply, ok, status};
use crate::support::client::{Client, subprotocol};
use crate::support::{Harness, options, params};

pub fn configured(api: &Api) -> Options {
    let mut options = options();
    options.mutate.urls = vec![api.url("/api/mutate")];
    options
}

pub fn push(client: &str, id: i64) -> String {
    format!(
        r#"["push",{{"clientGroupID":"g","mutations":[{{"type":"custom","id":{id},"clientID":"{client}","name":"issue.create","args":[{{"big":12345678901234567890,"f":1.0}}],"timestamp":1732200000000}}],"pushVersion":1,"timestamp":1732200000000,"requestID":"{client}-{id}","traceparent":"00-ab-cd-01"}}]"#
    )
}

pub fn ids(body: &Value) -> Vec<(String, i64)> {
    let mutations = body["mutations"].as_array().unwrap();
    mutations.iter().map(|m| (m["clientID"].as_str().unwrap().to_owned(), m["id"].as_i64().unwrap())).collect()
}

pub fn processed() -> Reply {
    ok(json!({"kind": "MutateResponse", "mutations": []}))
}

#[tokio::test]
async fn forwards_what_the_client_said() {
    let mut api = Api::start(|_| processed()).await;
    let mut options = configured(&api);
    options.query.urls = vec![api.url("/api/query")];
    options.shard_num = 2;
    options.mutate.api_key = Some(Secret("key".to_owned()));
    options.mutate.forward_cookies = true;
    options.mutate.allowed_client_headers = vec!["X-Client".to_owned()];
    let mut harness = Harness::start(options).await;
    let content = json!({"authToken": "tok", "initConnectionMessage": ["initConnection", {
        "desiredQueriesPatch": [], "userPushURL": api.url("/api/mutate?tenant=1"),
        "userPushHeaders": {"x-client": "yes", "x-other": "no"}}]});
    let path = format!("{}&userID=u", params("c"));
    let headers = [("cookie", "s=1"), ("origin", "https://o")];
    let mut client = Client::connect_with(harness.address, &path, &subprotocol(&content), &headers).await.unwrap();
    client.expect("connected").await;
    harness.connect().await;
    client.send(push("c", 4)).await;
    let seen = api.request().await;
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/api/mutate?tenant=1&schema=zero_2&appID=zero"));
    for (name, value) in [
        ("content-type", Some("application/json")),
        ("x-api-key", Some("key")),
        ("authorization", Some("Bearer tok")),
        ("cookie", Some("s=1")),
        ("origin", Some("https://o")),
        ("x-client", Some("yes")),
        ("x-other", None),
    ] {
        assert_eq!(seen.header(name), value, "{name}");
    }
    let sent: Value = serde_json::from_str(&push("c", 4)).unwrap();
    assert_eq!(seen.body(), sent[1]);
    assert!(seen.text.contains(r#"{"big":12345678901234567890,"f":1.0}"#), "to the letter: {}", seen.text);
    // Success is said by replication, not by a message.
    client.send(r#"["ping",{}]"#).await;
    client.expect("pong").await;
}

#[tokio::test]
async fn waiting_pushes_are_combined_per_socket_in_order() {
    let mut api = Api::start(|_| processed()).await;
    let mut harness = Harness::start(configured(&api)).await;
    let (mut a, _a) = harness.client("a").await;
    let (mut b, _b) = harness.client("b").await;
    api.hold();
    a.send(push("a", 1)).await;
    assert_eq!(ids(&api.request().await.body()), [("a".to_owned(), 1)]);
    // Each ping answered means that the pushes before it are queued.
    for id in 2..=3 {
        a.send(push("a", id)).await;
    }
    a.send(r#"["ping",{}]"#).await;
    a.expect("pong").await;
    // Mutations of another client of the group are not this socket's, and are forwarded all the same.
    b.send(push("a", 2)).await;
    b.send(push("b", 1)).await;
    b.send(r#"["ping",{}]"#).await;
    b.expect("pong").await;
    a.send(push("a", 4)).await;
    a.send(r#"["ping",{}]"#).await;
    a.expect("pong").await;
    assert_eq!(api.pending(), 0, "one request at a time");
    api.release();
    let second = api.request().await.body();
    assert_eq!(ids(&second), [("a".to_owned(), 2), ("a".to_owned(), 3), ("a".to_owned(), 4)]);
    assert_eq!(second["requestID"], "a-2", "the first body is kept");
    assert_eq!(ids(&api.request().await.body()), [("a".to_owned(), 2), ("b".to_owned(), 1)]);
}

/// Sends one push of client `c` and returns the error that ends its socket.
async fn failed(harness: &mut Harness) -> Value {
    let (mut client, _connect) = harness.client("c").await;
    client.send(push("c", 4)).await;
    let error = client.error().await;
    assert_eq!(client.closed().await, None);
    harness.disconnect().await;
    error
}

#[tokio::test]
async fn failures_say_what_happened() {
    let mut api = Api::start(|_| processed()).await;
    let mut harness = Harness::start(configured(&api)).await;
    let own = json!([{"id": 4, "clientID": "c"}]);

    let long = "é".repeat(600);
    api.answer(move |_| status(400, &long));
    let error = failed(&mut harness).await;
    assert_eq!(
        error,
        json!({"kind": "PushFailed", "message": error["message"], "origin": "zeroCache", "reason": "http", "status": 400,
            "bodyPreview": format!("{}...", "é".repeat(512)), "mutationIDs": own})
    );
    assert_eq!(api.pending(), 1, "a 4xx is final");

    api.answer(|_| status(401, "who?"));
    let error = failed(&mut harness).await;
    assert_eq!((&error["reason"], &error["status"]), (&json!("http"), &json!(401)));
    assert_eq!(api.pending(), 1);

    api.answer(|_| status(503, ""));
    let error = failed(&mut harness).await;
    assert_eq!((&error["reason"], &error["status"]), (&json!("http"), &json!(503)));
    assert_eq!(api.pending(), 4, "a 5xx is tried four times");

    for garbage in ["<html>", "{}", ""] {
        api.answer(move |_| ok(garbage));
        let error = failed(&mut harness).await;
        assert_eq!((&error["origin"], &error["reason"]), (&json!("zeroCache"), &json!("parse")), "{garbage}");
    }

    let reported = json!({"kind": "PushFailed", "origin": "server", "reason": "database", "message": "m",
        "details": {"x": 1}, "mutationIDs": [{"id": 4, "clientID": "c"}, {"id": 9, "clientID": "elsewhere"}]});
    let answer = reported.clone();
    api.answer(move |_| ok(&answer));
    assert_eq!(failed(&mut harness).await, reported);

    api.answer(|_| ok(json!({"mutations": [{"id": {"id": 4, "clientID": "c"}, "result": {"error": "oooMutation"}}]})));
    let error = failed(&mut harness).await;
    assert_eq!((&error["origin"], &error["reason"]), (&json!("server"), &json!("oooMutation")));

    api.answer(|_| ok(json!({"kind": "MutateResponse", "userID": "someone", "mutations": []})));
    let error = failed(&mut harness).await;
    assert_eq!((&error["reason"], &error["status"]), (&json!("http"), &json!(401)));
}

#[tokio::test]
async fn application_errors_are_no_failures() {
    let mut api = Api::start(|_| {
        ok(json!({"mutations": [
            {"id": {"id": 4, "clientID": "c"}, "result": {"error": "app", "message": "no"}},
            {"id": {"id": 5, "clientID": "c"}, "result": {"error": "alreadyProcessed"}}]}))
    })
    .await;
    let mut harness = Harness::start(configured(&api)).await;
    let (mut client, _connect) = harness.client("c").await;
    for id in 4..6 {
        client.send(push("c", id)).await;
        api.request().await;
    }
    client.send(r#"["ping",{}]"#).await;
    client.expect("pong").await;
}

#[tokio::test]
async fn a_failure_ends_those_whose_mutations_failed() {
    let api = Api::start(|_| {
        ok(json!({"kind": "PushFailed", "origin": "server", "reason": "internal", "message": "m",
            "mutationIDs": [{"id": 1, "clientID": "b"}]}))
    })
    .await;
    let mut harness = Harness::start(configured(&api)).await;
    let (mut a, _a) = harness.client("a").await;
    let (mut b, _b) = harness.client("b").await;
    a.send(push("b", 1)).await;
    assert_eq!(b.error().await["kind"], "PushFailed");
    assert_eq!(b.closed().await, None);
    a.send(r#"["ping",{}]"#).await;
    a.expect("pong").await;
}

#[tokio::test]
async fn refused_credentials_end_nobody_elses_socket() {
    let api = Api::start(|_| status(401, "who?")).await;
    let mut harness = Harness::start(configured(&api)).await;
    let (mut stranger, _stranger) = harness.client("a").await;
    let (mut known, _known) = harness.client("b").await;
    stranger.send(push("b", 1)).await;
    let error = stranger.error().await;
    assert_eq!((&error["kind"], &error["status"]), (&json!("PushFailed"), &json!(401)));
    assert_eq!(stranger.closed().await, None);
    known.send(r#"["ping",{}]"#).await;
    known.expect("pong").await;
}

#[tokio::test]
async fn an_api_server_that_is_down_is_tried_again() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mutate", listener.local_addr().unwrap());
    drop(listener);
    let mut options = options();
    options.mutate.urls = vec![url];
    let mut harness = Harness::start(options).await;
    let error = failed(&mut harness).await;
    assert_eq!((&error["origin"], &error["reason"]), (&json!("zeroCache"), &json!("internal")));
    assert!(error["message"].as_str().unwrap().contains("refused"), "{error}");
    assert!(harness.metrics().await.contains("api_attempts_total{operation=\"mutate\"} 4"));
}

#[tokio::test]
async fn a_slow_api_server_times_out() {
    let api = Api::start(|_| processed()).await;
    let mut options = configured(&api);
    options.limits.api_timeout = Duration::from_millis(200);
    let mut harness = Harness::start(options).await;
    api.hold();
    let error = failed(&mut harness).await;
    assert_eq!(error["reason"], "timeout");
}

#[tokio::test]
async fn a_url_that_is_not_allowed_is_not_called() {
    let mut api = Api::start(|_| processed()).await;
    let mut harness = Harness::start(configured(&api)).await;
    for url in [api.url("/other"), "http://169.254.169.254/".to_owned(), api.url("/api/mutate?schema=x")] {
        let mut client = Client::connect(harness.address, &params("c")).await;
        harness.connect().await;
        client.expect("connected").await;
        client.send(json!(["initConnection", {"desiredQueriesPatch": [], "userPushURL": url}]).to_string()).await;
        harness.message().await;
        client.send(push("c", 1)).await;
        let error = client.error().await;
        assert_eq!((&error["kind"], &error["reason"]), (&json!("PushFailed"), &json!("internal")), "{url}");
        harness.disconnect().await;
    }
    assert_eq!(api.pending(), 0);
}

#[tokio::test]
async fn pushes_that_make_no_sense_are_invalid() {
    let mut api = Api::start(|_| processed()).await;
    let mut harness = Harness::start(configured(&api)).await;
    let crud = push("c", 1).replace("\"custom\"", "\"crud\"");
    // Nobody is there who applies it.
    let other_group = push("c", 1).replace("\"clientGroupID\":\"g\"", "\"clientGroupID\":\"h\"");
    for text in [crud, other_group] {
        let (mut client, _connect) = harness.client("c").await;
        client.send(text).await;
        assert_eq!(client.error().await["kind"], "InvalidPush");
        assert_eq!(client.closed().await, None);
        harness.disconnect().await;
    }
    let (mut client, _connect) = harness.client("c").await;
    client.send(r#"["push",{"clientGroupID":"g","mutations":[],"pushVersion":1,"timestamp":1,"requestID":"r"}]"#).await;
    client.send(r#"["ping",{}]"#).await;
    client.expect("pong").await;
    assert_eq!(api.pending(), 0);

    let mut harness = Harness::start(options()).await;
    assert_eq!(failed(&mut harness).await["kind"], "InvalidPush", "no mutate URL");
}

#[tokio::test]
async fn a_queue_that_is_full_sends_the_client_away_for_a_while() {
    let mut api = Api::start(|_| processed()).await;
    let mut options = configured(&api);
    options.limits.push_queue_bytes_max = 2000;
    let mut harness = Harness::start(options).await;
    let (mut client, _connect) = harness.client("c").await;
    api.hold();
    client.send(push("c", 1)).await;
    api.request().await;
    for id in 2..20 {
        client.send(push("c", id)).await;
    }
    let error = client.error().await;
    assert_eq!(error["kind"], "ServerOverloaded");
    assert!(error["minBackoffMs"].is_number() && error["maxBackoffMs"].is_number(), "{error}");
}

#[tokio::test]
async fn seen_results_are_cleaned_up() {
    let mut api = Api::start(|_| status(500, "cleanups may fail")).await;
    let mut harness = Harness::start(configured(&api)).await;
    let (mut client, _connect) = harness.client("c").await;
    client.send(r#"["ackMutationResponses",{"id":7,"clientID":"c"}]"#).await;
    let seen = api.request().await;
    let body = seen.body();
    assert_eq!(body["requestID"], "cleanup-g-c-7");
    assert_eq!(
        body["mutations"],
        json!([{"type": "custom", "id": 0, "clientID": "c", "name": "_zero_cleanupResults",
            "args": [{"type": "single", "clientGroupID": "g", "clientID": "c", "upToMutationID": 7}],
            "timestamp": body["mutations"][0]["timestamp"]}])
    );
    assert_eq!((&body["pushVersion"], &body["clientGroupID"]), (&json!(1), &json!("g")));
    api.answer(|_| processed());
    client.send(r#"["deleteClients",{"clientIDs":["x","y"]}]"#).await;
    harness.message().await;
    let body = loop {
        let body = api.request().await.body();
        if body["requestID"] != "cleanup-g-c-7" {
            break body;
        }
    };
    assert!(body["requestID"].as_str().unwrap().starts_with("cleanup-bulk-g-"));
    assert_eq!(body["mutations"][0]["args"], json!([{"type": "bulk", "clientGroupID": "g", "clientIDs": ["x", "y"]}]));
    client.send(r#"["ping",{}]"#).await;
    client.expect("pong").await;
}
