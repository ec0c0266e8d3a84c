//! Everything at once: random appends, subscribers that come, stall, are cut off in the middle of anything and come back from
//! wherever, purges, and owners that replace each other. Each subscriber sees exactly the log's transactions after its position,
//! in order, none missing and none twice, or is told truly why it cannot.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use changes::Reader;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rows::Transaction;
use streamer::{Error, Event, FanoutOptions, Options, Role, ServerOptions, Subscriber};
use testkit::postgres::Database;

use crate::harness::{
    LIMIT, Owner, Relay, bytes, database, log_options, owner_row, server_options, subscriber_at, transaction, until, v,
};

const SUBSCRIBERS: usize = 5;
const APPENDS: usize = 250;
const HAND_OVERS: usize = 3;

/// What the log ever held, and how each transaction looks as bytes.
#[derive(Default)]
struct History {
    stored: Mutex<Vec<(u64, Vec<u8>)>>,
    /// The last version that is certainly stored.
    durable: AtomicU64,
    is_complete: AtomicBool,
}

impl History {
    fn end(&self) -> u64 {
        self.stored.lock().unwrap().last().map_or(10, |(version, _)| *version)
    }

    /// Fails unless `received` is what follows `after`.
    fn check(&self, after: u64, received: &[Transaction]) {
        let stored = self.stored.lock().unwrap();
        let from = stored.partition_point(|(version, _)| *version <= after);
        for (n, transaction) in received.iter().enumerate() {
            let (version, expected) = &stored[from + n];
            assert_eq!(transaction.version.as_u64(), *version, "after {after}, number {n}");
            assert!(bytes(transaction) == *expected, "the contents of {version}");
        }
    }
}

fn server() -> ServerOptions {
    ServerOptions {
        heartbeat: Duration::from_millis(300),
        silence_max: Duration::from_secs(3),
        stall_max: Some(Duration::from_secs(20)),
        ..server_options()
    }
}

fn small(options: &mut FanoutOptions) {
    options.ring_bytes_max = 50_000;
    options.readers_max = 1;
}

async fn follow(
    history: Arc<History>,
    options: Options,
    log: changes::Options,
    mut random: StdRng,
    resets: Arc<AtomicU64>,
) -> u64 {
    let reader = Reader::open(&log).await.unwrap();
    let (mut at, mut connections) = (10_u64, 0);
    while !history.is_complete.load(Ordering::Acquire) || at < history.end() {
        if random.random_bool(0.1) {
            // As after the loss of a replica that was newer than its backup.
            let wished = random.random_range(10..=history.durable.load(Ordering::Acquire).max(10));
            let stored = history.stored.lock().unwrap();
            let before = stored.partition_point(|(version, _)| *version <= wished);
            at = before.checked_sub(1).map_or(10, |n| stored[n].0);
        }
        let outcome = stay(&history, &options, &mut at, &mut random).await;
        connections += 1;
        match outcome {
            Ok(()) | Err(Error::Transient { .. } | Error::Gone { .. } | Error::Unverified { .. }) => {}
            Err(Error::Reset { message }) => {
                let start = reader.lineage().await.unwrap().unwrap().start;
                assert!(at < start.as_u64(), "at {at}, the log begins after {start:?}: {message}");
                resets.fetch_add(1, Ordering::Relaxed);
                at = start.as_u64();
            }
            Err(error @ Error::Configuration { .. }) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..20))).await;
    }
    connections
}

/// One connection, until it breaks, or for as long as it pleases.
async fn stay(history: &History, options: &Options, at: &mut u64, random: &mut StdRng) -> Result<(), Error> {
    let mut options = options.clone();
    options.window_bytes = [5_000, 100_000, 16 << 20][random.random_range(0..3)];
    let (welcome, mut subscriber) = Subscriber::connect(&options, v(10), v(*at)).await?;
    assert!(welcome.start <= v(*at), "{welcome:?} {at}");
    let acks = subscriber.acks();
    let mut patience = random.random_range(1..40);
    while !history.is_complete.load(Ordering::Acquire) || *at < history.end() {
        let event = tokio::time::timeout(LIMIT, subscriber.next()).await.expect("heads at least")?;
        let Event::Transactions(transactions) = event else { continue };
        history.check(*at, &transactions);
        *at = transactions.last().unwrap().version.as_u64();
        if random.random_bool(0.9) {
            acks.ack(v(*at));
        }
        if random.random_bool(0.02) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
        }
        patience -= 1;
        if patience == 0 {
            return Ok(());
        }
    }
    Ok(())
}

/// Appends, purges, and hands over now and then.
async fn write(
    database: &Database<'_>,
    history: &History,
    relay: &Relay,
    mut owner: Owner,
    mut random: StdRng,
) -> Owner {
    let mut last = 10;
    let mut hand_overs: Vec<usize> = (0..HAND_OVERS).map(|_| random.random_range(0..APPENDS)).collect();
    for n in 0..APPENDS {
        let mut batch = Vec::new();
        for _ in 0..random.random_range(1..20) {
            last += random.random_range(1..100);
            let rows = if random.random_bool(0.003) { 3000 } else { random.random_range(0..8) };
            batch.push(transaction(last, rows, &"x".repeat(random.random_range(0..400))));
        }
        // Known before it is sent: a subscriber may have it before the call returns.
        history.stored.lock().unwrap().extend(batch.iter().map(|t| (t.version.as_u64(), bytes(t))));
        owner.append(&batch).await;
        history.durable.store(last, Ordering::Release);
        if random.random_bool(0.1) {
            owner.purge(random.random_range(0..200_000)).await;
        }
        if hand_overs.contains(&n) {
            hand_overs.retain(|at| *at != n);
            let name = format!("owner-{n}");
            let next = Owner::take_over(database, &name, server(), small).await;
            let late = owner.try_append(&[transaction(last + 1, 1, "late")]).await;
            assert!(matches!(late, Err(changes::Error::NotOwner)), "{late:?}");
            relay.point_to(next.server.address);
            let mut old = std::mem::replace(&mut owner, next);
            if random.random_bool(0.5) {
                old.server.gate.set(Role::Standby { owner: owner_row(&name).address, is_ready: true });
            }
            assert!(old.server.stop().await.is_graceful);
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..25))).await;
    }
    owner
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_see_exactly_the_log_whatever_happens() {
    let seed = testkit::seed("subscribers_see_exactly_the_log");
    let mut random = StdRng::seed_from_u64(seed);
    let database = database("random").await;
    let owner = Owner::begin_with(&database, server(), small).await;
    let history = Arc::new(History::default());
    let mut cuts = StdRng::from_rng(&mut random);
    let relay = Relay::start(owner.server.address, move || {
        cuts.random_bool(0.7).then(|| 1 << cuts.random_range(8..21)).map(|most| cuts.random_range(0..most))
    })
    .await;
    let resets = Arc::new(AtomicU64::new(0));
    let followers: Vec<_> = (0..SUBSCRIBERS)
        .map(|n| {
            let mut options = subscriber_at(relay.address, &format!("node-{n}"));
            options.heartbeat = Duration::from_millis(300);
            options.silence_max = Duration::from_secs(3);
            let random = StdRng::from_rng(&mut random);
            tokio::spawn(follow(Arc::clone(&history), options, log_options(&database), random, Arc::clone(&resets)))
        })
        .collect();
    let owner = write(&database, &history, &relay, owner, StdRng::from_rng(&mut random)).await;
    history.is_complete.store(true, Ordering::Release);
    relay.set_budget(|| None);
    let mut connections = 0;
    for follower in followers {
        connections += tokio::time::timeout(2 * LIMIT, follower).await.expect("all arrive").unwrap();
    }
    println!("{connections} connections, {} resets, {} versions", resets.load(Ordering::Relaxed), history.end());
    assert!(connections > 10 * SUBSCRIBERS as u64, "{connections}: the faults did not happen");
    until("all to be gone", || owner.fanout.subscribers().is_empty()).await;
    assert_eq!(owner.fanout.floor(), v(history.end()));
}
