//! Asking a node whether it is alive.

use std::time::{Duration, Instant};

use streamer::{Alive, Authority, Error, Role, ServerOptions, is_alive};
use testkit::tls::{self, Mount};
use tokio::net::TcpListener;

use crate::harness::{self, Port, server_options};
use crate::tls::encrypted;

const LIMIT: Duration = Duration::from_millis(300);

async fn failure(address: &str, node: &str) -> String {
    is_alive(address, node, None, LIMIT).await.expect_err("it is not alive").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_alive_in_every_role_and_answers_for_itself_only() {
    let mut port = Port::start(ServerOptions { node: "rm-1".to_owned(), ..server_options() }).await;
    let address = format!("ws://{}", port.address);
    for role in [Role::Starting, Role::Standby { owner: String::new(), is_ready: false }, Role::Draining] {
        port.gate.set(role);
        let alive = is_alive(&address, "rm-1", None, LIMIT).await.unwrap();
        assert_eq!(alive.streams, Some(false));
    }
    let streaming = port.gate.streaming();
    assert_eq!(is_alive(&address, "rm-1", None, LIMIT).await.unwrap().streams, Some(true));
    drop(streaming);
    assert_eq!(is_alive(&address, "rm-1", None, LIMIT).await.unwrap().streams, Some(false));
    let failure = failure(&address, "rm-2").await;
    assert!(failure.contains("another node") && failure.contains("rm-1"), "{failure}");
    assert!(port.stop().await.is_graceful);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_part_that_is_stuck_is_not_alive() {
    let (liveness, pulse) = (port::Liveness::default(), port::Pulse::default());
    let age = pulse.clone();
    let watched = liveness.watch("the writer", Duration::ZERO, move || age.age());
    let port = Port::start(ServerOptions { liveness, node: "rm-1".to_owned(), ..server_options() }).await;
    let address = format!("ws://{}", port.address);
    is_alive(&address, "rm-1", None, LIMIT).await.unwrap();
    pulse.begin();
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(failure(&address, "rm-1").await.contains("503"));
    // What a replica's life ends with is not watched in the next.
    drop(watched);
    is_alive(&address, "rm-1", None, LIMIT).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_be_recognized_is_told_from_one_that_is_silent() {
    let authority = tls::Authority::new().unwrap();
    let issued = authority.issue("DNS:localhost").unwrap();
    let stranger = tls::Authority::new().unwrap();
    let mut mount = Mount::new(&[
        ("tls.crt", &issued.certificate),
        ("tls.key", &issued.key),
        ("ca.crt", &authority.certificate),
        ("other.crt", &stranger.certificate),
    ])
    .unwrap();
    let (ours, other) =
        (Authority::open(mount.file("ca.crt")).unwrap(), Authority::open(mount.file("other.crt")).unwrap());
    let port = Port::start(ServerOptions { node: "rm-1".to_owned(), ..encrypted(&mount) }).await;
    let named = format!("wss://localhost:{}", port.address.port());
    let ask = async |address: &str, node: &str, authority: &Authority| {
        is_alive(address, node, Some(authority), harness::LIMIT).await
    };
    let unverified = |answer: Result<Alive, Error>, told: &str| match answer {
        Err(Error::Unverified { message }) => assert!(message.contains(told), "{message}"),
        answer => panic!("{answer:?}"),
    };
    ask(&named, "rm-1", &ours).await.unwrap();
    assert!(matches!(ask(&named, "rm-2", &ours).await, Err(Error::Transient { .. })), "another node");
    unverified(ask(&named, "rm-1", &other).await, "ZERO_CHANGE_STREAMER_TLS_CA_FILE");
    unverified(ask(&format!("wss://{}", port.address), "rm-1", &ours).await, "127.0.0.1");

    // Not what is registered: the address may have been given anew.
    let plain = Port::start(server_options()).await;
    let mismatched = ask(&format!("wss://localhost:{}", plain.address.port()), "rm-1", &ours).await;
    assert!(matches!(mismatched, Err(Error::Transient { .. })), "{mismatched:?}");
    let mismatched = ask(&format!("ws://{}", port.address), "rm-1", &ours).await;
    assert!(matches!(mismatched, Err(Error::Transient { .. })), "{mismatched:?}");

    // A process that is stopped says nothing, in TLS either.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let silent = format!("wss://localhost:{}", listener.local_addr().unwrap().port());
    let answer = is_alive(&silent, "rm-1", Some(&ours), LIMIT).await;
    assert!(matches!(answer, Err(Error::Transient { .. })), "{answer:?}");
    drop(listener);
    let answer = ask(&silent, "rm-1", &ours).await;
    assert!(matches!(answer, Err(Error::Gone { .. })), "{answer:?}");

    mount.put(&[]).unwrap();
    unverified(ask(&named, "rm-1", &ours).await, "ca.crt cannot be read");
}
