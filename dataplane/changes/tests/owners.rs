//! Who owns the log: hand-over, fencing, and two who want it at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use changes::{Error, Log, Options, Reader, discover};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rows::Version;

use crate::{owner, read_all, start, start_pooled, table, transaction, v};

/// Appends what follows the log's end, as a node does that streams from the slot: whoever owns the log stores the same
/// transactions. Counts how often it took the log over.
async fn contend(options: Options, name: &'static str, end: u64, seed: u64, takings: Arc<AtomicU64>) {
    let mut random = StdRng::seed_from_u64(seed);
    let table = table();
    let mut log = Log::open(&options).await.unwrap();
    loop {
        let mut last = log.take_over(&owner(name)).await.unwrap().last.as_u64();
        takings.fetch_add(1, Ordering::Relaxed);
        loop {
            if last >= end {
                return;
            }
            let next = (last + random.random_range(1..8)).min(end);
            let some: Vec<_> = (last + 1..=next).map(|n| transaction(&table, n, 2, "same from all")).collect();
            match log.append(&some).await {
                Ok(()) => last = next,
                Err(Error::NotOwner) => break,
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_micros(random.random_range(0..3000))).await;
        }
        tokio::time::sleep(Duration::from_micros(random.random_range(0..6000))).await;
    }
}

async fn check_race(options: &Options, seed: u64) {
    let mut log = Log::open(options).await.unwrap();
    log.begin(v(10), &owner("first")).await.unwrap();
    let takings = Arc::new(AtomicU64::new(0));
    // Until the log was taken over a hundred times.
    let mut end = 10;
    while takings.load(Ordering::Relaxed) < 100 {
        end += 60;
        let racers =
            ["a", "b"].map(|name| tokio::spawn(contend(options.clone(), name, end, seed ^ end, Arc::clone(&takings))));
        for racer in racers {
            racer.await.unwrap();
        }
        // The first owner never learns of it, and is still fenced off.
        let late = log.append(&[transaction(&table(), end + 1, 1, "late")]).await;
        assert!(matches!(late, Err(Error::NotOwner)), "{late:?}");
    }
    let reader = Reader::open(options).await.unwrap();
    let read = read_all(&log, v(10)).await;
    let versions: Vec<u64> = read.iter().map(|t| t.version.as_u64()).collect();
    assert_eq!(versions, (11..=end).collect::<Vec<_>>(), "each once, in order");
    let expected = table();
    for stored in &read {
        let same = transaction(&expected, stored.version.as_u64(), 2, "same from all");
        assert_eq!(format!("{stored:?}"), format!("{same:?}"));
    }
    let lineage = reader.lineage().await.unwrap().unwrap();
    assert_eq!((lineage.last, lineage.epoch), (v(end), 1 + takings.load(Ordering::Relaxed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_owners_race_and_nothing_is_lost_or_stored_twice() {
    check_race(&start().options, testkit::seed("two_owners_race")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_owners_race_through_a_pooler() {
    let (fixture, _pooler) = start_pooled();
    check_race(&fixture.options, testkit::seed("two_owners_race_pooled")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_one_successor_replaces_an_owner() {
    let fixture = start();
    let mut old = Log::open(&fixture.options).await.unwrap();
    old.begin(v(10), &owner("old")).await.unwrap();
    assert_eq!(old.epoch(), Some(1));
    let seen = old.lineage().await.unwrap().unwrap();
    assert_eq!(seen.epoch, 1);
    let mut successors = Vec::new();
    for _ in 0..4 {
        let (options, seen) = (fixture.options.clone(), seen.clone());
        successors.push(tokio::spawn(async move {
            let mut log = Log::open(&options).await.unwrap();
            match log.succeed(&owner("new"), &seen).await {
                Ok(lineage) => assert_eq!((lineage.epoch, log.epoch()), (2, Some(2))),
                Err(Error::NotOwner) => return 0,
                Err(error) => panic!("{error}"),
            }
            1
        }));
    }
    let mut won = 0;
    for successor in successors {
        won += successor.await.unwrap();
    }
    assert_eq!(won, 1);
    assert!(matches!(old.check_ownership().await, Err(Error::NotOwner)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_is_found_until_it_resigns() {
    let fixture = start();
    assert_eq!(discover(&fixture.options).await.unwrap(), None, "there is no log, and asking creates none");
    let mut log = Log::open(&fixture.options).await.unwrap();
    assert_eq!(discover(&fixture.options).await.unwrap(), None);
    log.begin(v(10), &owner("a")).await.unwrap();
    assert_eq!(discover(&fixture.options).await.unwrap().unwrap().address, "a:4849");
    let mut other = Log::open(&fixture.options).await.unwrap();
    other.take_over(&owner("b")).await.unwrap();
    // What is no longer ours is not given up.
    log.resign().await.unwrap();
    assert_eq!(discover(&fixture.options).await.unwrap().unwrap().id, "b");
    other.resign().await.unwrap();
    assert_eq!(discover(&fixture.options).await.unwrap(), None);
    assert!(matches!(other.append(&[transaction(&table(), 11, 1, "x")]).await, Err(Error::NotOwner)));
    assert!(matches!(other.purge(v(10), 0).await, Err(Error::NotOwner)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_waits_for_what_is_under_way() {
    let fixture = start();
    let mut log = Log::open(&fixture.options).await.unwrap();
    log.begin(v(10), &owner("a")).await.unwrap();
    let reader = Reader::open(&fixture.options).await.unwrap();
    assert!(!reader.wait_for(v(10), v(12), Duration::from_millis(60)).await.unwrap());
    let waiting = tokio::spawn(async move { reader.wait_for(v(10), v(12), Duration::from_secs(20)).await });
    log.append(&[transaction(&table(), 11, 1, "x")]).await.unwrap();
    log.append(&[transaction(&table(), 12, 1, "x")]).await.unwrap();
    assert!(waiting.await.unwrap().unwrap());
    let reader = Reader::open(&fixture.options).await.unwrap();
    log.begin(v(50), &owner("a")).await.unwrap();
    let other = reader.wait_for(Version::new(10), v(13), Duration::from_secs(5)).await;
    assert!(matches!(other, Err(Error::TooOld { .. })), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_raises_its_epoch_and_goes_on() {
    let fixture = start();
    let options = &fixture.options;
    let mut log = Log::open(options).await.unwrap();
    log.begin(v(10), &owner("a")).await.unwrap();
    let mut other = Log::open(options).await.unwrap();
    assert!(matches!(other.raise_epoch(5).await, Err(Error::NotOwner)), "it owns nothing");
    assert_eq!(log.raise_epoch(41).await.unwrap(), 42);
    assert_eq!((log.epoch(), log.lineage().await.unwrap().unwrap().epoch), (Some(42), 42));
    // A lower one is as good as none.
    assert_eq!(log.raise_epoch(7).await.unwrap(), 43);
    log.append(&[transaction(&table(), 11, 1, "still the owner")]).await.unwrap();
    log.check_ownership().await.unwrap();
    assert_eq!(other.take_over(&owner("b")).await.unwrap().epoch, 44);
    assert!(matches!(log.raise_epoch(100).await, Err(Error::NotOwner)));
    assert_eq!(other.lineage().await.unwrap().unwrap().epoch, 44, "nothing was raised for a former owner");
}
