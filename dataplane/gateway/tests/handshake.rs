use serde_json::json;
use tokio_tungstenite::tungstenite::Error;
use views::api::ClientMessage;

use crate::support::client::{Client, EMPTY, exchange, subprotocol};
use crate::support::{Harness, options, params};

#[tokio::test]
async fn welcomes_a_client() {
    let mut options = options();
    options.query.forward_cookies = true;
    options.mutate.allowed_request_headers = vec!["X-Kept".to_owned()];
    let mut harness = Harness::start(options).await;
    let path =
        "/zero/sync/v52/connect?clientID=c&clientGroupID=g&userID=u&baseCookie=00%3A01&ts=1.5&lmid=7x&wsid=w%2B&x=y";
    let headers = [("origin", "https://o.example"), ("cookie", "a=b"), ("x-kept", "k"), ("x-other", "o")];
    let mut client = Client::connect_with(harness.address, path, EMPTY, &headers).await.unwrap();
    assert_eq!(client.response.headers()["sec-websocket-protocol"], EMPTY, "echoed to the letter");
    let connected = client.expect("connected").await;
    assert_eq!(connected["wsid"], "w+");
    assert!(connected["timestamp"].as_u64().unwrap() > 1_600_000_000_000);
    let connect = harness.connect().await;
    assert_eq!(connect.client_group_id, "g");
    assert_eq!(connect.client_id, "c");
    assert_eq!(connect.profile_id, "cgg");
    assert_eq!(connect.base_cookie.as_deref(), Some("00:01"));
    assert_eq!(connect.protocol_version, 52);
    assert_eq!(connect.context.user_id.as_deref(), Some("u"));
    let header = |name: &str| connect.context.request_headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    assert_eq!(header("origin"), Some("https://o.example"));
    assert_eq!(header("cookie"), Some("a=b"));
    assert_eq!(header("x-kept"), Some("k"));
    assert_eq!(connect.context.request_headers.len(), 3, "others are of no use, and one of them holds the token");
}

#[tokio::test]
async fn the_header_carries_init_connection() {
    let mut harness = Harness::start(options()).await;
    // Longer than what many stacks take for a header block.
    let long = "x".repeat(12_000);
    let content = json!({"initConnectionMessage": ["initConnection", {
        "desiredQueriesPatch": [{"op": "put", "hash": "h", "name": long, "args": [], "ttl": 300_000}],
        "activeClients": ["c"],
        "userQueryURL": "https://q",
    }]});
    let offered = subprotocol(&content);
    let mut client = Client::connect_with(harness.address, &params("c"), &offered, &[]).await.unwrap();
    assert_eq!(client.response.headers()["sec-websocket-protocol"], offered.as_str());
    client.expect("connected").await;
    harness.connect().await;
    let (_, ClientMessage::InitConnection { body, context }) = harness.message().await else { panic!("init") };
    assert_eq!(body.active_clients, Some(vec!["c".to_owned()]));
    assert_eq!(context.user_query_url.as_deref(), Some("https://q"));
}

#[tokio::test]
async fn nonsense_is_upgraded_and_told() {
    let harness = Harness::start(options()).await;
    let good = "?clientID=c&clientGroupID=g&ts=1&lmid=0";
    let long = format!("/{}/sync/v51/nothing/connect", "é".repeat(100).replace('é', "%C3%A9"));
    for (path, header, reason) in [
        (format!("/a/b/sync/v51/connect{good}"), EMPTY, "Invalid URL"),
        (format!("/sync/v51/connect/{good}"), EMPTY, "Invalid URL"),
        (format!("/sync/v51.1/connect{good}"), EMPTY, "Invalid URL"),
        (format!("/sync/vx/connect{good}"), EMPTY, "Invalid version: /sync/vx/connect?clientID"),
        (format!("/mutate/v51/connect{good}"), EMPTY, "Invalid URL"),
        ("/".to_owned(), EMPTY, "Invalid URL"),
        (long, EMPTY, "..."),
        ("/sync/v51/connect?clientGroupID=g&ts=1&lmid=0".to_owned(), EMPTY, "clientID is missing"),
        ("/sync/v51/connect?clientID=&clientGroupID=g&ts=1&lmid=0".to_owned(), EMPTY, "clientID is missing"),
        ("/sync/v51/connect?clientID=c&ts=1&lmid=0".to_owned(), EMPTY, "clientGroupID is missing"),
        ("/sync/v51/connect?clientID=c&clientGroupID=g&lmid=0".to_owned(), EMPTY, "ts is missing"),
        ("/sync/v51/connect?clientID=c&clientGroupID=g&ts=x&lmid=0".to_owned(), EMPTY, "ts is not a number"),
        ("/sync/v51/connect?clientID=c&clientGroupID=g&ts=1&lmid=".to_owned(), EMPTY, "lmid is missing"),
        (params("c"), "", "header is missing"),
        (params("c"), "e30", ""), /* padding is optional */
        (params("c"), "!!!", "not base64"),
        (params("c"), "bm90IGpzb24%3D", "not a JSON object"),
        (params("c"), "W10%3D", "not"),
    ] {
        let mut client = Client::connect_with(harness.address, &path, header, &[]).await.unwrap();
        if reason.is_empty() {
            client.expect("connected").await;
            continue;
        }
        let (code, told) = client.closed().await.expect("a status");
        assert_eq!(code, 1002, "{path}");
        assert!(told.starts_with("Error: ") && told.contains(reason), "{path}: {told}");
        assert!(told.len() <= 123, "{told}");
    }
}

#[tokio::test]
async fn unknown_versions_are_told_before_anything_else() {
    let mut harness = Harness::start(options()).await;
    for version in ["29", "53", "0", "1e9", "Infinity"] {
        let path = params("c").replace("v51", &format!("v{version}"));
        let mut client = Client::connect(harness.address, &path).await;
        let error = client.error().await;
        assert_eq!(error["kind"], "VersionNotSupported", "{version}");
        assert_eq!(client.closed().await, None);
    }
    for version in ["30", "52", "0x33", "%2051"] {
        let path = params("c").replace("v51", &format!("v{version}"));
        let mut client = Client::connect(harness.address, &path).await;
        client.expect("connected").await;
    }
    assert_eq!(harness.connect().await.protocol_version, 30, "those refused never reached the views");
}

#[tokio::test]
async fn what_is_no_handshake_is_refused_over_http() {
    let harness = Harness::start(options()).await;
    let path = params("c");
    let head =
        |method: &str, lines: &[&str]| format!("{method} {path} HTTP/1.1\r\nHost: h\r\n{}\r\n\r\n", lines.join("\r\n"));
    let (upgrade, connection) = ("Upgrade: websocket", "Connection: keep-alive, Upgrade");
    let (key, version) = ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13");
    let protocol = "Sec-WebSocket-Protocol: e30%3D";
    let close = "X-End: 1";
    for (status, request) in [
        (405, head("POST", &[upgrade, connection, key, version, protocol, "Content-Length: 0"])),
        (400, head("GET", &["Upgrade: h2c", connection, key, version, protocol])),
        (400, head("GET", &[upgrade, "Connection: close", key, version, protocol])),
        (400, head("GET", &[upgrade, connection, version, protocol])),
        (400, head("GET", &[upgrade, connection, "Sec-WebSocket-Key: short", version, protocol])),
        (400, head("GET", &[upgrade, connection, key, "Sec-WebSocket-Version: 12", protocol])),
        (400, head("GET", &[upgrade, connection, key, version, "Sec-WebSocket-Protocol: a b"])),
        (400, head("GET", &[upgrade, connection, key, version, "Sec-WebSocket-Protocol: "])),
        (431, head("GET", &[upgrade, connection, key, version, &format!("X-Long: {}", "x".repeat(40_000)), close])),
    ] {
        // Two requests: the second asks for the close that ends the exchange, where the connection is kept.
        let both = format!("{request}GET /keepalive HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        let (got, answer) = exchange(harness.address, &both).await;
        assert_eq!(got, status, "{request}\n{answer}");
    }
}

#[tokio::test]
async fn a_node_that_is_not_ready_takes_no_clients() {
    let (mut harness, views) = Harness::start_closed(options()).await;
    let refused = Client::connect_with(harness.address, &params("c"), EMPTY, &[]).await;
    let Err(Error::Http(response)) = refused.map(|_| ()) else { panic!("expected an HTTP answer") };
    assert_eq!(response.status(), 503);
    harness.gate.open(Some(views));
    Client::connect(harness.address, &params("c")).await.expect("connected").await;
    harness.connect().await;
}

#[tokio::test]
async fn too_many_sockets_are_refused() {
    let mut options = options();
    options.limits.connections_max = 1;
    let mut harness = Harness::start(options).await;
    let _first = harness.client("a").await;
    let refused = Client::connect_with(harness.address, &params("b"), EMPTY, &[]).await;
    let Err(Error::Http(response)) = refused.map(|_| ()) else { panic!("expected an HTTP answer") };
    assert_eq!(response.status(), 503);
}
