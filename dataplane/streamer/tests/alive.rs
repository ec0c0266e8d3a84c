//! Asking a node whether it is alive.

use std::time::{Duration, Instant};

use streamer::{Role, ServerOptions, is_alive};
use tokio::net::TcpListener;

use crate::harness::{Port, server_options};

const LIMIT: Duration = Duration::from_millis(300);

async fn failure(address: &str, node: &str) -> String {
    is_alive(address, node, LIMIT).await.expect_err("it is not alive").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_alive_in_every_role_and_answers_for_itself_only() {
    let mut port = Port::start(ServerOptions { node: "rm-1".to_owned(), ..server_options() }).await;
    let address = format!("ws://{}", port.address);
    for role in [Role::Starting, Role::Standby { owner: String::new(), is_ready: false }, Role::Draining] {
        port.gate.set(role);
        is_alive(&address, "rm-1", LIMIT).await.unwrap();
    }
    let failure = failure(&address, "rm-2").await;
    assert!(failure.contains("another node") && failure.contains("rm-1"), "{failure}");
    assert!(port.stop().await.is_graceful);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_answer_is_not_alive() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // The system accepts connections for a process that is stopped.
    let begun = Instant::now();
    let silent = failure(&address, "rm-1").await;
    assert!(silent.contains("no answer") && begun.elapsed() < 3 * LIMIT, "{silent}");
    drop(listener);
    let refused = failure(&address, "rm-1").await;
    assert!(refused.contains("cannot reach"), "{refused}");
}
