//! The port as probes and people see it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use streamer::{Fanout, FanoutOptions, Gate, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{ADMIN_PASSWORD, Owner, Port, database, log_options, server_options};

pub async fn get(port: &Port, path: &str, headers: &str) -> (u16, String) {
    request(port, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n")).await
}

pub async fn request(port: &Port, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(port.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A server that resets the connection has said what it had to say.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_tell_the_role() {
    let database = database("probes").await;
    let mut owner = Owner::begin(&database).await;
    let lineage = owner.log.lineage().await.unwrap().unwrap();
    let mut port = Port::start(server_options()).await;
    let status = async |path: &str| get(&port, path, "").await.0;
    let probes = async || [status("/").await, status("/keepalive").await, status("/livez").await];
    assert_eq!(probes().await, [503, 503, 200], "starting: an initial copy may take hours");
    // What a node says of itself is most wanted before it is ready.
    assert_eq!(status("/statz").await, 401);
    let admin = format!("authorization: Basic {}\r\n", STANDARD.encode(format!("any:{ADMIN_PASSWORD}")));
    let (code, answer) = get(&port, "/statz?group=node&format=json", &admin).await;
    assert!(code == 200 && answer.ends_with(r#"{"node":{"asked":["node"]}}"#), "{answer}");
    port.gate.set(Role::Standby { owner: String::new(), is_ready: false });
    assert_eq!(probes().await, [503, 503, 200], "not ready so far");
    port.gate.set(Role::Standby { owner: String::new(), is_ready: true });
    assert_eq!(probes().await, [200, 200, 200]);
    port.gate.set(Role::Standby { owner: String::new(), is_ready: false });
    assert_eq!(probes().await, [503, 200, 200], "a node that catches up must not be killed");
    let fanout = Fanout::new(FanoutOptions::new(log_options(&database), lineage), port.metrics.clone());
    port.gate.set(Role::Owner(fanout));
    assert_eq!((status("/").await, status("/?x").await), (200, 200));
    let (_, metrics) = get(&port, "/metrics", "").await;
    assert!(metrics.contains("zero_change_stream_reservations 0"), "{metrics}");
    assert_eq!(status("/metrics").await, 200);
    for path in ["/other", "/sync", "/statzx", "/replicationx", "//"] {
        assert_eq!(status(path).await, 404, "{path}");
    }
    assert_eq!(status("/replication/v1/changes").await, 426);
    assert_eq!(request(&port, "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.0, 404);
    port.gate.set(Role::Draining);
    // For good.
    port.gate.set(Role::Starting);
    let fresh: &Gate = &port.gate;
    assert!(matches!(fresh.role(), Role::Draining));
    assert!(port.stop().await.is_graceful);
    assert!(TcpStream::connect(port.address).await.is_err());
    assert!(owner.server.stop().await.is_graceful);
}
