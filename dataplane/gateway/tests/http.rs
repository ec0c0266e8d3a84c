use std::time::Duration;

use base64::Engine;
use port::Inside;
use serde_json::Value;

use crate::support::client::{Client, EMPTY, get, request};
use crate::support::{ADMIN_PASSWORD, Harness, options, pages, params};

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a body").1
}

fn basic(text: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
}

#[tokio::test]
async fn who_comes_too_early_waits_for_the_node() {
    let mut options = options();
    options.limits.start_timeout = Duration::from_millis(300);
    let (mut harness, views) = Harness::start_closed(options).await;
    let address = harness.address;
    let connect = || async move { Client::connect_with(address, &params("c"), EMPTY, &[]).await };
    let refused = connect().await.err().expect("not for ever").to_string();
    assert!(refused.contains("503"), "{refused}");
    let early = tokio::spawn(connect());
    harness.gate.open(Some(views));
    let mut client = early.await.unwrap().expect("let in");
    client.expect("connected").await;
    harness.connect().await;
}

#[tokio::test]
async fn passwords_are_guessed_slowly() {
    let harness = Harness::start(options()).await;
    let good = basic(&format!("anyone:{ADMIN_PASSWORD}"));
    let guess = basic("admin:guess");
    let headers = [("Authorization", guess.as_str())];
    let guesses = (0..8).map(|_| get(harness.address, "/statz", &headers));
    let mut answers: Vec<u16> =
        futures_util::future::join_all(guesses).await.into_iter().map(|(status, _)| status).collect();
    answers.sort_unstable();
    assert_eq!(answers, [401, 401, 401, 401, 401, 429, 429, 429]);
    assert_eq!(get(harness.address, "/statz", &[("Authorization", &good)]).await.0, 429, "not even looked at");
    assert_eq!(get(harness.address, "/statz", &[]).await.0, 401, "nobody asked for a password yet");
    assert!(harness.metrics().await.contains("zero_failed_logins_total 9"));
}

#[tokio::test]
async fn a_port_of_its_own_leaves_nothing_inside_on_the_port_for_clients() {
    let pages = pages(Inside::Hidden);
    let server = gateway::Server::build(options(), &prometheus::Registry::new(), pages).await.unwrap();
    let (address, gate) = (server.address(), server.gate());
    gate.open(None);
    let serving = tokio::spawn(server.run(std::future::pending()));
    let good = basic(&format!("anyone:{ADMIN_PASSWORD}"));
    for path in ["/metrics", "/statz", "/statz?group=os"] {
        assert_eq!(get(address, path, &[("Authorization", &good)]).await.0, 404, "{path}");
    }
    for path in ["/", "/keepalive", "/livez"] {
        assert_eq!(get(address, path, &[]).await.0, 200, "{path}");
    }
    serving.abort();
}

#[tokio::test]
async fn probes_say_whether_the_node_is_ready() {
    let (harness, views) = Harness::start_closed(options()).await;
    for path in ["/", "/keepalive"] {
        let (status, answer) = get(harness.address, path, &[]).await;
        assert_eq!((status, body(&answer)), (503, "starting"), "{path}");
    }
    assert_eq!(get(harness.address, "/livez", &[]).await.0, 200, "nobody kills a node that copies for hours");
    let good = basic(&format!("anyone:{ADMIN_PASSWORD}"));
    let (status, answer) = get(harness.address, "/statz", &[("Authorization", &good)]).await;
    assert_eq!((status, body(&answer)), (503, "starting"), "some wait for it before they send clients");
    let (status, _) = get(harness.address, "/statz?group=os", &[("Authorization", &good)]).await;
    assert_eq!(status, 200, "whoever asks for a group wants to know why it takes so long");
    harness.gate.open(Some(views));
    assert!(harness.gate.last_keepalive().is_some());
    for path in ["/", "/keepalive", "/keepalive?x=1", "/livez"] {
        let (status, answer) = get(harness.address, path, &[]).await;
        assert_eq!((status, body(&answer)), (200, "OK"), "{path}");
        let (status, answer) = request(harness.address, "HEAD", path, &[]).await;
        assert_eq!((status, body(&answer)), (200, ""), "{path}");
    }
}

#[tokio::test]
async fn other_paths_are_not_found() {
    let harness = Harness::start(options()).await;
    for (method, path) in [("GET", "/nothing"), ("POST", "/"), ("GET", "/heapz")] {
        let (status, answer) = request(harness.address, method, path, &[]).await;
        let error: Value = serde_json::from_str(body(&answer)).expect("JSON");
        assert_eq!((status, error["statusCode"].as_u64()), (404, Some(404)), "{method} {path}");
    }
}

#[tokio::test]
async fn statistics_need_the_password() {
    let harness = Harness::start(options()).await;
    let (status, answer) = get(harness.address, "/statz", &[]).await;
    assert_eq!(status, 401);
    assert!(answer.to_ascii_lowercase().contains("www-authenticate: basic realm=\"statz protected area\""), "{answer}");
    assert_eq!(get(harness.address, "/statz", &[("Authorization", &basic("u:no"))]).await.0, 401);
    let good = basic(&format!("anyone:{ADMIN_PASSWORD}"));
    let (status, answer) = get(harness.address, "/statz?group=os,cvr", &[("Authorization", &good)]).await;
    assert_eq!(status, 200);
    assert!(body(&answer).contains("groups: os+cvr"), "{answer}");
    let (_, answer) = get(harness.address, "/statz?format=json", &[("Authorization", &good)]).await;
    assert_eq!(serde_json::from_str::<Value>(body(&answer)).expect("JSON")["os"]["cpus"], 2);
}

#[tokio::test]
async fn metrics_are_open() {
    let mut harness = Harness::start(options()).await;
    let _client = harness.client("c").await;
    let metrics = harness.metrics().await;
    assert!(metrics.contains("zero_sync_websocket_open_connections{protocol_version=\"51\"} 1"), "{metrics}");
    assert!(metrics.contains("zero_sync_messages_received_total{tag=\"initConnection\"} 1"), "{metrics}");
}
