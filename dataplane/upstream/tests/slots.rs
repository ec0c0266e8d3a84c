//! Positions, acknowledgements, ownership of the slot, restarts.

use std::time::Duration;

use rows::{Change, Version};
use tokio::sync::mpsc;
use upstream::{CopyMessage, Error, Event, Stream, initial_copy};

use crate::model::{Fixture, MARK, assert_equals_copy, catch_up, copied, resume};

async fn text(fixture: &Fixture, sql: &str) -> String {
    fixture.client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn confirmed(fixture: &Fixture) -> u64 {
    let n = text(
        fixture,
        "SELECT (confirmed_flush_lsn - '0/0')::text FROM pg_replication_slots WHERE slot_name LIKE 'zero%'",
    )
    .await;
    n.parse().unwrap()
}

async fn next_transaction(stream: &mut Stream) -> rows::Transaction {
    loop {
        let event =
            tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("an event arrives").unwrap();
        if let Event::Transaction(t) = event {
            return t;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_continues_after_the_version_and_loses_nothing() {
    let fixture = Fixture::start(MARK).await;
    let (plan, mut model) = copied(&fixture.options).await;
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    fixture.run("CREATE TABLE t (id int PRIMARY KEY)").await;
    for i in 0..20 {
        fixture.run(&format!("INSERT INTO t VALUES ({i})")).await;
        if i % 5 == 2 {
            fixture.run(&format!("ALTER TABLE t ADD COLUMN c{i} int DEFAULT {i}")).await;
        }
    }
    // Each connection takes two transactions and dies.
    for _ in 0..11 {
        for _ in 0..2 {
            model.apply(next_transaction(&mut stream).await);
        }
        drop(stream);
        stream = Stream::start(&fixture.options, resume(&plan, model.version)).await.unwrap();
    }
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_eq!(model.sorted("t").len(), 20);
    assert_eq!(model.spec("t").unwrap().columns.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_before_the_caller_says_so() {
    let fixture = Fixture::start(MARK).await;
    let (plan, mut model) = copied(&fixture.options).await;
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    let before = confirmed(&fixture).await;
    assert_eq!(before, plan.version.as_u64() + 1);
    for _ in 0..3 {
        catch_up(&mut stream, &mut model, &fixture.client).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(confirmed(&fixture).await, before);
    stream.acks().ack(model.version);
    // An acknowledgement never goes back.
    stream.acks().ack(plan.version);
    for _ in 0..100 {
        if confirmed(&fixture).await == model.version.as_u64() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the acknowledgement did not reach the slot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keepalive_comes_when_unpublished_tables_change() {
    let fixture = Fixture::start(&format!("{MARK} CREATE SCHEMA hidden; CREATE TABLE hidden.t (id int)")).await;
    fixture.run("ALTER SYSTEM SET wal_sender_timeout = '4s'").await;
    fixture.run("SELECT pg_reload_conf()").await;
    let (plan, _) = copied(&fixture.options).await;
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    fixture.run("INSERT INTO hidden.t SELECT generate_series(1, 100000)").await;
    let lsn = loop {
        let event =
            tokio::time::timeout(Duration::from_secs(30), stream.next()).await.expect("a keepalive arrives").unwrap();
        if let Event::Keepalive { lsn } = event {
            break lsn;
        }
    };
    assert!(lsn > plan.version);
    stream.acks().ack(lsn);
    while confirmed(&fixture).await < lsn.as_u64() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(stream);
    // The slot is ahead of the last transaction, but nothing was published between.
    Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_says_what_brings_its_caller_to_where_upstream_was() {
    let fixture = Fixture::start(&format!("{MARK} CREATE TABLE t (id int PRIMARY KEY)")).await;
    let (plan, mut model) = copied(&fixture.options).await;
    let goal = async |stream: &Stream| {
        let mut reached = stream.reached();
        let goal = tokio::time::timeout(Duration::from_secs(30), reached.wait_for(Option::is_some)).await;
        goal.expect("it is told soon").unwrap().unwrap()
    };
    let stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    assert_eq!(goal(&stream).await, plan.version, "nothing was committed since");
    drop(stream);
    for i in 0..20 {
        fixture.run(&format!("INSERT INTO t VALUES ({i})")).await;
    }
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    catch_up(&mut stream, &mut model, &fixture.client).await;
    let goal = goal(&stream).await;
    assert!(goal > plan.version && goal < model.version, "{goal} is the last that was there at the beginning");
    assert_eq!(model.sorted("t").len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_went_ahead_asks_for_a_rebuild() {
    let fixture = Fixture::start(MARK).await;
    let (plan, mut model) = copied(&fixture.options).await;
    let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    catch_up(&mut stream, &mut model, &fixture.client).await;
    drop(stream);
    tokio::time::sleep(Duration::from_millis(300)).await;
    fixture.run("SELECT pg_replication_slot_advance(slot_name, pg_current_wal_lsn()) FROM pg_replication_slots").await;
    let error = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap_err();
    assert!(matches!(&error, Error::ResetRequired { message, .. } if message.contains("advanced")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_in_use_is_named_or_taken_over() {
    let fixture = Fixture::start(MARK).await;
    let (plan, _) = copied(&fixture.options).await;
    let mut first = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    let mut polite = fixture.options.clone();
    polite.take_over = false;
    let error = Stream::start(&polite, resume(&plan, plan.version)).await.unwrap_err();
    let Error::SlotInUse { slot, pid, application } = &error else { panic!("{error}") };
    assert_eq!((slot.as_str(), application.as_str()), (plan.slot.as_str(), "zero-replicator"));
    assert!(*pid > 0);
    let _second = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let Err(e) = first.next().await {
                return e;
            }
        }
    });
    assert!(matches!(ended.await.unwrap(), Error::Transient { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_slot_and_other_publications_ask_for_a_rebuild() {
    let fixture = Fixture::start(&format!("{MARK} CREATE PUBLICATION mine FOR TABLE mark")).await;
    let (plan, _) = copied(&fixture.options).await;
    let mut other = fixture.options.clone();
    other.publications = vec!["mine".to_owned()];
    let error = Stream::start(&other, resume(&plan, plan.version)).await.unwrap_err();
    assert!(
        matches!(&error, Error::ResetRequired { message, is_slot_lost: false } if message.contains("publications")),
        "{error}"
    );
    let error = Stream::start(&fixture.options, resume(&plan, Version::new(1))).await.unwrap_err();
    assert!(matches!(&error, Error::ResetRequired { .. }), "{error}");
    fixture.run("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await;
    let error = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap_err();
    assert!(
        matches!(&error, Error::ResetRequired { message, is_slot_lost: true } if message.contains("gone")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfinished_copy_is_dropped_by_the_next() {
    let fixture = Fixture::start(&format!("{MARK} INSERT INTO mark SELECT generate_series(1, 100000)")).await;
    let (sender, mut receiver) = mpsc::channel(1);
    let options = fixture.options.clone();
    let copy = tokio::spawn(async move { initial_copy(&options, sender).await });
    assert!(matches!(receiver.recv().await, Some(CopyMessage::Plan(_))));
    // Another attempt at the same time is refused.
    let (second, _second_receiver) = mpsc::channel(1);
    let error = initial_copy(&fixture.options, second).await.unwrap_err();
    assert!(matches!(&error, Error::Transient { message, .. } if message.contains("another process")), "{error}");
    copy.abort();
    let _ = copy.await;
    let slots = "SELECT count(*)::text FROM pg_replication_slots";
    assert_eq!(text(&fixture, slots).await, "1");
    let (plan, model) = loop {
        // The server needs a moment to see that the first one is gone, and releases its lock then.
        tokio::time::sleep(Duration::from_millis(200)).await;
        if text(&fixture, "SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory'").await == "0" {
            break copied(&fixture.options).await;
        }
    };
    assert_eq!(text(&fixture, slots).await, "1");
    assert_eq!(text(&fixture, "SELECT count(*)::text FROM zero_0.replicas").await, "1");
    assert_eq!(model.sorted("mark").len(), 100_000);
    Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transaction_arrives_whole_while_the_caller_is_slow() {
    let fixture = Fixture::start(MARK).await;
    fixture.run("ALTER SYSTEM SET wal_sender_timeout = '2s'").await;
    fixture.run("SELECT pg_reload_conf()").await;
    let (plan, mut model) = copied(&fixture.options).await;
    let mut options = fixture.options.clone();
    options.queue_bytes_max = 1 << 16;
    let mut stream = Stream::start(&options, resume(&plan, plan.version)).await.unwrap();
    fixture.run("INSERT INTO mark SELECT generate_series(1000, 60000)").await;
    for i in 0..50 {
        fixture.run(&format!("INSERT INTO mark SELECT generate_series({0}, {0} + 1000)", 100_000 + i * 2000)).await;
    }
    // Far longer than the server's patience: statuses must go out meanwhile.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let first = next_transaction(&mut stream).await;
    assert_eq!(first.changes.iter().filter(|c| matches!(c, Change::Insert { .. })).count(), 59_001);
    model.apply(first);
    catch_up(&mut stream, &mut model, &fixture.client).await;
    assert_eq!(model.sorted("mark").len(), 59_001 + 50 * 1001 + 1);
}

/// A transaction that commits exactly where the slot begins is in the snapshot or in the stream, never in both or neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_under_load_misses_nothing() {
    let fixture = Fixture::start(&format!("{MARK} CREATE TABLE busy (id bigserial PRIMARY KEY, n int)")).await;
    for _ in 0..3 {
        let mut writers = Vec::new();
        for n in 0..3 {
            let client = fixture.postgres.connect("postgres").await.unwrap();
            writers.push(tokio::spawn(async move {
                for i in 0.. {
                    let sql =
                        format!("INSERT INTO busy (n) VALUES ({n}); UPDATE busy SET n = n + 1 WHERE id = {}", i / 2);
                    if client.batch_execute(&sql).await.is_err() {
                        return;
                    }
                }
            }));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (plan, mut model) = copied(&fixture.options).await;
        for writer in writers {
            writer.abort();
            let _ = writer.await;
        }
        let mut stream = Stream::start(&fixture.options, resume(&plan, plan.version)).await.unwrap();
        catch_up(&mut stream, &mut model, &fixture.client).await;
        assert_equals_copy(&model, &fixture.postgres).await;
    }
}
