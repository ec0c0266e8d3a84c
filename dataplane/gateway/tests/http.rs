use base64::Engine;
use serde_json::Value;

use crate::support::client::{get, request};
use crate::support::{ADMIN_PASSWORD, Harness, options};

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a body").1
}

#[tokio::test]
async fn probes_say_whether_the_node_is_ready() {
    let (harness, views) = Harness::start_closed(options()).await;
    for path in ["/", "/keepalive"] {
        let (status, answer) = get(harness.address, path, &[]).await;
        assert_eq!((status, body(&answer)), (503, "starting"), "{path}");
    }
    assert_eq!(get(harness.address, "/livez", &[]).await.0, 200, "nobody kills a node that copies for hours");
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
    let (harness, _handle) = Harness::start_closed(options()).await;
    let basic = |text: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
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
