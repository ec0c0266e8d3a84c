//! Following the log: live, from behind, and what the log keeps for it.

use std::time::Duration;

use streamer::{Error, Event, Fanout, FanoutOptions, Options, Refusal, Role, Subscriber};
use tokio::time::timeout;

use crate::harness::{
    LIMIT, Owner, Port, Relay, bytes, database, log_options, next, read_to, server_options, some, subscriber_at,
    transaction, until, v, versions,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_gets_what_is_stored_and_what_comes() {
    let database = database("stored_and_live").await;
    let mut owner = Owner::begin(&database).await;
    let stored = some(11..40);
    owner.append(&stored[..20]).await;
    owner.append(&stored[20..]).await;
    let mut subscribers = Vec::new();
    for after in [10, 25, 30, 38, 39] {
        let (welcome, mut subscriber) =
            Subscriber::connect(&owner.subscriber(&format!("n{after}")), v(10), v(after)).await.unwrap();
        assert_eq!((welcome.replica, welcome.start, welcome.head), (v(10), v(10), v(39)));
        assert_eq!((welcome.epoch, welcome.backup, welcome.has_snapshot), (1, None, false));
        if after < 39 {
            let read = read_to(&mut subscriber, 39).await;
            assert_eq!(versions(&read), (after + 1..40).collect::<Vec<_>>());
            assert_eq!(bytes(&read[0]), bytes(&stored[after as usize - 10]));
        }
        subscribers.push(subscriber);
    }
    owner.append(&some([50])).await;
    owner.append(&some([60, 70])).await;
    for mut subscriber in subscribers {
        assert_eq!(versions(&read_to(&mut subscriber, 70).await), [50, 60, 70]);
        assert!(subscriber.try_next().is_none_or(|event| !matches!(event, Ok(Event::Transactions(_)))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_follows_an_owner_is_told_when_that_is_where_upstream_was() {
    let database = database("abreast").await;
    let mut owner = Owner::begin(&database).await;
    owner.append(&some(11..20)).await;
    owner.server.gate.set_behind(true);
    let (_, mut subscriber) = Subscriber::connect(&owner.subscriber("n"), v(10), v(10)).await.unwrap();
    assert!(subscriber.is_told_abreast());
    let mut told = None;
    let mut seen = v(10);
    while told.is_none() {
        match timeout(LIMIT, subscriber.next()).await.unwrap().unwrap() {
            Event::Transactions(transactions) => {
                seen = transactions[transactions.len() - 1].version;
                if seen == v(19) {
                    owner.append(&some([30])).await;
                } else if seen == v(30) {
                    owner.server.gate.set_behind(false);
                }
            }
            Event::Abreast { version } => told = Some(version),
            Event::Head { .. } => {}
        }
    }
    assert_eq!((seen, told), (v(30), Some(v(30))), "it was told too early, or of something else");
    // At once, where it is so already; and never to a node that does not know of it.
    let (_, mut second) = Subscriber::connect(&owner.subscriber("m"), v(10), v(30)).await.unwrap();
    while !matches!(timeout(LIMIT, second.next()).await.unwrap().unwrap(), Event::Abreast { version } if version == v(30))
    {
    }
    let former = Options { versions: 1..=1, ..owner.subscriber("o") };
    let (_, mut third) = Subscriber::connect(&former, v(10), v(30)).await.unwrap();
    assert!(!third.is_told_abreast());
    owner.append(&some([40])).await;
    assert!(!matches!(timeout(LIMIT, third.next()).await.unwrap().unwrap(), Event::Abreast { .. }));
}

/// A fresh fanout knows nothing of what was stored before it: everything comes from the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catch_up_and_live_join_without_gap_or_repetition() {
    let database = database("join").await;
    // A ring that holds next to nothing: subscribers fall out of it all the time.
    let mut owner = Owner::begin_with(&database, server_options(), |options| options.ring_bytes_max = 2000).await;
    owner.append(&some(11..200)).await;
    let (_, mut subscriber) = Subscriber::connect(&owner.subscriber("n"), v(10), v(10)).await.unwrap();
    let reading = tokio::spawn(async move { read_to(&mut subscriber, 1999).await });
    for n in (200..2000).step_by(10) {
        owner.append(&some(n..n + 10)).await;
        // A page in several parts, larger than the ring.
        if n == 1000 {
            owner.append(&[transaction(1010, 5, &"y".repeat(1 << 20))]).await;
        } else if n % 300 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if n == 1000 {
            owner.append(&some(1011..1020)).await;
        }
    }
    let read = timeout(LIMIT, reading).await.unwrap().unwrap();
    let expected: Vec<u64> = (11..2000).collect();
    assert_eq!(versions(&read), expected);
    assert!(owner.server.metrics.pages_read.get() > 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_larger_than_the_window_arrives() {
    let database = database("large").await;
    let mut owner = Owner::begin(&database).await;
    let large = transaction(11, 40, &"z".repeat(1 << 20));
    let mut options = owner.subscriber("n");
    options.window_bytes = 3 << 20;
    let (_, mut live) = Subscriber::connect(&options, v(10), v(10)).await.unwrap();
    owner.append(std::slice::from_ref(&large)).await;
    owner.append(&some([12])).await;
    let read = read_to(&mut live, 12).await;
    assert_eq!((versions(&read), bytes(&read[0]) == bytes(&large)), (vec![11, 12], true));
    options.node = "late".to_owned();
    let mut late = Owner::take_over(&database, "second", server_options(), |_| {}).await;
    options.uri = format!("ws://{}", late.server.address);
    let (_, mut subscriber) = Subscriber::connect(&options, v(10), v(10)).await.unwrap();
    let read = read_to(&mut subscriber, 12).await;
    assert_eq!((versions(&read), bytes(&read[0]) == bytes(&large)), (vec![11, 12], true));
    assert!(late.server.stop().await.is_graceful);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_kept_for_the_slowest() {
    let database = database("floor").await;
    let mut owner = Owner::begin(&database).await;
    assert_eq!(owner.fanout.floor(), v(10));
    owner.append(&some(11..31)).await;
    assert_eq!(owner.fanout.floor(), v(30), "nobody needs anything");
    let (_, mut fast) = Subscriber::connect(&owner.subscriber("fast"), v(10), v(30)).await.unwrap();
    let (_, mut slow) = Subscriber::connect(&owner.subscriber("slow"), v(10), v(15)).await.unwrap();
    assert_eq!(owner.fanout.floor(), v(15));
    let mut nodes = owner.fanout.subscribers();
    nodes.sort();
    assert_eq!(nodes, [("fast".to_owned(), v(30)), ("slow".to_owned(), v(15))]);
    owner.append(&some(31..41)).await;
    read_to(&mut fast, 40).await;
    let acks = slow.acks();
    while next(&mut slow).await.unwrap().last().unwrap().version < v(40) {}
    owner.purge(0).await;
    assert_eq!(owner.log.lineage().await.unwrap().unwrap().start, v(10), "one page holds 11 to 30");
    acks.ack(v(33));
    until("the acknowledgement", || owner.fanout.floor() == v(33)).await;
    owner.purge(0).await;
    assert_eq!(owner.log.lineage().await.unwrap().unwrap().start, v(30));
    drop(slow);
    until("the subscriber to be gone", || owner.fanout.floor() == v(40)).await;
    let (welcome, _again) = Subscriber::connect(&owner.subscriber("slow"), v(10), v(33)).await.unwrap();
    assert_eq!((welcome.start, owner.fanout.floor()), (v(30), v(33)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_is_told_when_nothing_changes() {
    let database = database("head").await;
    let mut options = server_options();
    options.heartbeat = Duration::from_millis(50);
    let mut owner = Owner::begin_with(&database, options, |_| {}).await;
    let mut options = owner.subscriber("n");
    (options.heartbeat, options.silence_max) = (Duration::from_millis(50), Duration::from_millis(400));
    let (welcome, mut subscriber) = Subscriber::connect(&options, v(10), v(10)).await.unwrap();
    owner.append(&some([11])).await;
    let mut heads = Vec::new();
    // Longer than the silence that either end would take for the end.
    let begin = std::time::Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        if let Event::Head { head, owner_clock_us } = timeout(LIMIT, subscriber.next()).await.unwrap().unwrap() {
            assert!(owner_clock_us >= welcome.owner_clock_us);
            heads.push(head);
        }
    }
    assert!(heads.len() > 5, "{heads:?}");
    assert_eq!(heads.last(), Some(&v(11)));
}

/// A subscriber that takes nothing is not sent more than its window, does not slow the others down, and is let go in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_subscriber_harms_nobody() {
    let database = database("stalled").await;
    let mut options = server_options();
    options.stall_max = Some(Duration::from_secs(2));
    options.heartbeat = Duration::from_millis(200);
    let mut owner = Owner::begin_with(&database, options, |options| options.ring_bytes_max = 1 << 20).await;
    let mut options = owner.subscriber("stalled");
    options.window_bytes = 200_000;
    let (_, mut stalled) = Subscriber::connect(&options, v(10), v(10)).await.unwrap();
    let (_, mut good) = Subscriber::connect(&owner.subscriber("good"), v(10), v(10)).await.unwrap();
    let text = "x".repeat(1000);
    for n in 11..411 {
        owner.append(&[transaction(n, 10, &text)]).await;
    }
    assert_eq!(read_to(&mut good, 410).await.len(), 400);
    let sent = owner.server.metrics.bytes_sent.get();
    assert!(sent < 400 * 10_500 + 220_000, "{sent} bytes were sent to both");
    assert_eq!(owner.fanout.floor(), v(10));
    until("the stalled one to be let go", || owner.fanout.floor() == v(410)).await;
    assert_eq!(owner.server.metrics.endings.with_label_values(&["stalled"]).get(), 1);
    // What it was sent before is still there, then comes the reason.
    let error = loop {
        match next(&mut stalled).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, Error::Transient { message, .. } if message.contains("progress")), "{error}");
    assert!(matches!(stalled.next().await, Err(Error::Transient { .. })), "and nothing more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_owner_is_left() {
    let database = database("silent").await;
    let owner = Owner::begin(&database).await;
    let relay = testkit::proxy::Proxy::relay(owner.server.address.port()).await.unwrap();
    let mut options = subscriber_at(([127, 0, 0, 1], relay.port()).into(), "n");
    options.silence_max = Duration::from_millis(600);
    options.heartbeat = Duration::from_millis(100);
    let (_, mut subscriber) = Subscriber::connect(&options, v(10), v(10)).await.unwrap();
    relay.hold(owner.server.address.port());
    let error = next(&mut subscriber).await.unwrap_err();
    assert!(matches!(&error, Error::Transient { message, .. } if message.contains("silent")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_subscriber_is_let_go() {
    let database = database("silent_subscriber").await;
    let mut options = server_options();
    options.silence_max = Duration::from_millis(500);
    let owner = Owner::begin_with(&database, options, |_| {}).await;
    let mut options = owner.subscriber("n");
    options.heartbeat = Duration::from_secs(3600);
    let (_, _subscriber) = Subscriber::connect(&options, v(10), v(10)).await.unwrap();
    let silent = owner.server.metrics.endings.with_label_values(&["silent"]);
    until("the socket to end", || silent.get() == 1).await;
    assert!(owner.fanout.subscribers().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_moves_subscribers_to_the_new_owner() {
    let database = database("hand_over").await;
    let mut first = Owner::begin(&database).await;
    first.append(&some(11..21)).await;
    let relay = Relay::start(first.server.address, || None).await;
    let options = subscriber_at(relay.address, "n");
    let (welcome, mut subscriber) = Subscriber::connect(&options, v(10), v(10)).await.unwrap();
    assert_eq!(welcome.epoch, 1);
    assert_eq!(read_to(&mut subscriber, 20).await.len(), 10);
    let mut second = Owner::take_over(&database, "second", server_options(), |_| {}).await;
    assert!(matches!(first.try_append(&some([21])).await, Err(changes::Error::NotOwner)));
    first.server.gate.set(Role::Standby { owner: "second:4849".to_owned(), is_ready: true });
    match next(&mut subscriber).await.unwrap_err() {
        Error::Transient { owner, .. } => assert_eq!(owner.as_deref(), Some("second:4849")),
        other => panic!("{other}"),
    }
    second.append(&some(21..31)).await;
    // The old one says where to go; asking it tells it that it is wanted.
    let gate = first.server.gate.clone();
    let wanted = tokio::spawn(async move { gate.wanted().await });
    tokio::task::yield_now().await;
    let error = Subscriber::connect(&options, v(10), v(20)).await.unwrap_err();
    assert!(error.to_string().contains("second:4849"), "{error}");
    timeout(LIMIT, wanted).await.unwrap().unwrap();
    relay.point_to(second.server.address);
    let (welcome, mut subscriber) = Subscriber::connect(&options, v(10), v(20)).await.unwrap();
    assert_eq!(welcome.epoch, 2);
    assert_eq!(versions(&read_to(&mut subscriber, 30).await), (21..31).collect::<Vec<_>>());
    assert!(first.server.stop().await.is_graceful);
    let refusal = Refusal::Draining.to_string();
    assert!(second.server.stop().await.is_graceful);
    let error = next(&mut subscriber).await.unwrap_err();
    assert_eq!(error.to_string(), refusal);
}

/// An owner that was replaced and does not know it serves nobody who must ask the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_owner_that_has_not_noticed_sends_subscribers_on() {
    let database = database("replaced").await;
    let mut first = Owner::begin_with(&database, server_options(), |options| options.ring_bytes_max = 500).await;
    first.append(&some(11..21)).await;
    let mut second = Owner::take_over(&database, "second", server_options(), |_| {}).await;
    second.append(&some(21..31)).await;
    for after in [10, 25] {
        // The first is refused while it catches up, the second at once, because it is ahead.
        let error = match Subscriber::connect(&first.subscriber("n"), v(10), v(after)).await {
            Ok((_, mut subscriber)) => next(&mut subscriber).await.unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(&error, Error::Transient { owner: Some(owner), .. } if owner == "second:4849"), "{error}");
    }
}

/// The change database going away ends no live stream; whoever is behind retries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_subscribers_outlast_the_change_database() {
    let server = testkit::postgres::Postgres::start(testkit::postgres::Version::V15).unwrap();
    let database = testkit::postgres::Database { postgres: &server, name: "postgres".to_owned() };
    let mut owner = Owner::begin(&database).await;
    owner.append(&some(11..21)).await;
    let (_, mut live) = Subscriber::connect(&owner.subscriber("live"), v(10), v(20)).await.unwrap();
    let lineage = owner.log.lineage().await.unwrap().unwrap();
    server.stop().unwrap();
    assert!(owner.try_append(&some([21])).await.is_err());
    let (_, mut within_ring) = Subscriber::connect(&owner.subscriber("late"), v(10), v(15)).await.unwrap();
    assert_eq!(versions(&read_to(&mut within_ring, 20).await), (16..21).collect::<Vec<_>>());
    // A node that has just become the owner holds nothing in memory.
    let port = Port::start(server_options()).await;
    let fanout = Fanout::new(FanoutOptions::new(log_options(&database), lineage), port.metrics.clone());
    port.gate.set(Role::Owner(fanout));
    let (_, mut behind) = Subscriber::connect(&subscriber_at(port.address, "behind"), v(10), v(10)).await.unwrap();
    let error = next(&mut behind).await.unwrap_err();
    assert!(matches!(error, Error::Transient { .. }), "{error}");
    server.resume().unwrap();
    owner.log.reconnect().await.unwrap();
    owner.append(&some([21])).await;
    assert_eq!(versions(&read_to(&mut live, 21).await), [21]);
}
