//! Everyone who must not follow the stream is told why.

use std::time::{Duration, Instant};

use changes::Log;
use streamer::{Error, Options, Reservation, Role, ServerOptions, Subscriber, Token};

use crate::harness::{
    Owner, Port, database, log_options, next, owner_row, read_to, server_options, some, subscriber_at, token, v,
};
use crate::http::get;

const UPGRADE: &str = "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

async fn refused(options: &Options, after: u64) -> Error {
    Subscriber::connect(options, v(10), v(after)).await.expect_err("a refusal")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_token_nothing_is_read() {
    let database = database("token").await;
    let owner = Owner::begin(&database).await;
    let good = owner.subscriber("n");
    Subscriber::connect(&good, v(10), v(10)).await.unwrap();
    let derived = Token::from_config(None, Some("the-token")).unwrap();
    for token in [None, Token::from_config(Some("the-tokem"), None).unwrap(), derived] {
        let error = refused(&Options { token, ..good.clone() }, 10).await;
        assert!(matches!(&error, Error::Configuration { message } if message.contains("401")), "{error}");
        assert!(error.to_string().contains("ZERO_CHANGE_STREAMER_TOKEN"), "{error}");
        assert!(!error.to_string().contains("the-token"), "{error}");
    }
    let count = owner.server.metrics.refusals.with_label_values(&["unauthorized"]);
    assert_eq!(count.get(), 3);
    let error = Reservation::open(&Options { token: None, ..good }).await.err().unwrap();
    assert!(matches!(error, Error::Configuration { .. }), "{error}");
    // Development: no token at all.
    let open = Owner::take_over(&database, "open", ServerOptions { token: None, ..server_options() }, |_| {}).await;
    for token in [None, Some(token())] {
        Subscriber::connect(&Options { token, ..open.subscriber("n") }, v(10), v(10)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_nodes_derive_the_same_token_from_the_password() {
    let database = database("password").await;
    let token = || Token::from_config(None, Some("admin password")).unwrap();
    let owner = Owner::begin_with(&database, ServerOptions { token: token(), ..server_options() }, |_| {}).await;
    let options = Options { token: token(), ..owner.subscriber("n") };
    Subscriber::connect(&options, v(10), v(10)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbouring_versions_talk_and_others_are_told() {
    let database = database("versions").await;
    let owner = Owner::begin(&database).await;
    let with = |versions| Options { versions, ..owner.subscriber("n") };
    // A newer subscriber that still speaks ours.
    Subscriber::connect(&with(1..=3), v(10), v(10)).await.unwrap();
    let error = refused(&with(3..=4), 10).await;
    let text = error.to_string();
    assert!(matches!(error, Error::Configuration { .. }) && text.contains("1-2") && text.contains("3-4"), "{text}");
    let newer = ServerOptions { versions: 2..=3, ..server_options() };
    let newer = Owner::take_over(&database, "newer", newer, |_| {}).await;
    Subscriber::connect(&newer.subscriber("n"), v(10), v(10)).await.unwrap();
    let newest = ServerOptions { versions: 3..=4, ..server_options() };
    let newest = Owner::take_over(&database, "newest", newest, |_| {}).await;
    let error = refused(&newest.subscriber("n"), 10).await;
    assert!(error.to_string().contains("speaks versions 3-4"), "{error}");
    assert_eq!(newest.server.metrics.refusals.with_label_values(&["version"]).get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_the_original_are_told_over_the_socket() {
    let database = database("foreign").await;
    let owner = Owner::begin(&database).await;
    for path in [
        "/replication/v6/changes?id=serving-replicator-1&taskID=t&mode=serving&replicaVersion=10&watermark=10&initial=true",
        "/replication/v4/snapshot?taskID=t",
    ] {
        let (status, answer) = get(&owner.server, path, UPGRADE).await;
        assert_eq!(status, 101, "{answer}");
        assert!(answer.contains("original's replication protocol"), "{answer}");
    }
    assert_eq!(owner.server.metrics.refusals.with_label_values(&["foreign"]).get(), 2);
    // And a server of the original, which knows nothing of our header, is recognised.
    let relay = testkit::proxy::Proxy::relay(owner.server.address.port()).await.unwrap();
    relay.set_mood(testkit::proxy::Mood::Answers(426));
    let error = refused(&subscriber_at(([127, 0, 0, 1], relay.port()).into(), "n"), 10).await;
    assert!(matches!(error, Error::Configuration { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_position_must_be_in_the_log() {
    let database = database("position").await;
    let mut owner = Owner::begin(&database).await;
    for n in 11..31 {
        owner.append(&some([n])).await;
    }
    let options = owner.subscriber("n");
    let error = refused(&options, 31).await;
    assert!(matches!(&error, Error::Reset { message } if message.contains("ahead")), "{error}");
    owner.log.purge(v(20), 0).await.unwrap();
    // The fanout was not told: the log decides.
    let error = refused(&options, 9).await;
    assert!(matches!(&error, Error::Reset { message } if message.contains(&v(20).to_string())), "{error}");
    let error = refused(&options, 19).await;
    assert!(matches!(&error, Error::Reset { .. }), "{error}");
    let (welcome, mut subscriber) = Subscriber::connect(&options, v(10), v(20)).await.unwrap();
    assert_eq!((welcome.start, read_to(&mut subscriber, 30).await.len()), (v(20), 10));
    // Purged behind the fanout's back after the welcome: from a new owner without anything in memory.
    let mut second = Owner::take_over(&database, "second", server_options(), |_| {}).await;
    second.log.purge(v(25), 0).await.unwrap();
    let (_, mut subscriber) = Subscriber::connect(&second.subscriber("n"), v(10), v(22)).await.unwrap();
    let error = next(&mut subscriber).await.unwrap_err();
    assert!(matches!(&error, Error::Reset { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_and_applications_must_match() {
    let database = database("lineage").await;
    let mut owner = Owner::begin(&database).await;
    let options = owner.subscriber("n");
    let error = Subscriber::connect(&options, v(9), v(10)).await.err().unwrap();
    assert!(matches!(&error, Error::Reset { message } if message.contains("copy of")), "{error}");
    for other in [Options { app: "other".to_owned(), ..options.clone() }, Options { shard: 1, ..options.clone() }] {
        let error = refused(&other, 10).await;
        assert!(matches!(&error, Error::Configuration { message } if message.contains("zero/0")), "{error}");
        assert!(matches!(Reservation::open(&other).await, Err(Error::Configuration { .. })));
    }
    // A log that is begun anew under the fanout serves no old replica.
    let (_, mut subscriber) = Subscriber::connect(&options, v(10), v(10)).await.unwrap();
    owner.append(&some([11])).await;
    read_to(&mut subscriber, 11).await;
    let mut log = Log::open(&log_options(&database)).await.unwrap();
    log.begin(v(100), &owner_row("again")).await.unwrap();
    let error = refused(&options, 9).await;
    assert!(matches!(&error, Error::Transient { owner: Some(owner), .. } if owner == "again:4849"), "{error}");
    let again = Owner::take_over(&database, "again", server_options(), |_| {}).await;
    let error = refused(&again.subscriber("n"), 11).await;
    assert!(matches!(&error, Error::Reset { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_the_owner_says_so() {
    let port = Port::start(server_options()).await;
    let options = subscriber_at(port.address, "n");
    let error = refused(&options, 10).await;
    assert!(matches!(&error, Error::Transient { owner: None, message } if message.contains("started")), "{error}");
    port.gate.set(Role::Standby { owner: "rm-2:4849".to_owned(), is_ready: true });
    let error = refused(&options, 10).await;
    assert!(matches!(&error, Error::Transient { owner: Some(owner), .. } if owner == "rm-2:4849"), "{error}");
    assert!(matches!(Reservation::open(&options).await, Err(Error::Transient { .. })));
    port.gate.set(Role::Draining);
    let error = refused(&options, 10).await;
    assert!(matches!(&error, Error::Transient { owner: Some(owner), .. } if owner == "rm-2:4849"), "{error}");
    // One that knows no other says so, also to those who come only now.
    let leaving = Port::start(server_options()).await;
    leaving.gate.set(Role::Draining);
    let error = refused(&subscriber_at(leaving.address, "n"), 10).await;
    assert!(matches!(&error, Error::Gone { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_cannot_be_reached_is_retried() {
    let port = testkit::free_ports(1).unwrap();
    let options = subscriber_at(([127, 0, 0, 1], port).into(), "n");
    let error = refused(&options, 10).await;
    assert!(matches!(&error, Error::Gone { message } if message.contains("reach")), "{error}");
    // Takes the connection and says nothing.
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let error = refused(&Options { connect_timeout: Duration::from_millis(200), ..options.clone() }, 10).await;
    assert!(matches!(&error, Error::Transient { message, .. } if message.contains("answer")), "{error}");
    // No handshake takes as long as all that there is time for.
    for scheme in ["ws", "wss"] {
        let begun = Instant::now();
        let error = refused(&Options { uri: format!("{scheme}://127.0.0.1:{port}"), ..options.clone() }, 10).await;
        let waited = begun.elapsed();
        assert!(
            matches!(&error, Error::Transient { .. }) && waited < options.connect_timeout / 2,
            "{waited:?}: {error}"
        );
    }
    drop(listener);
    let error = refused(&Options { uri: "ftp://x".to_owned(), ..options }, 10).await;
    assert!(matches!(error, Error::Configuration { .. }), "{error}");
}
