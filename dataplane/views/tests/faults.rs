//! The CVR database away, clients that do not read, damaged records, the end.

use std::time::Duration;

use serde_json::json;
use testkit::postgres::{Postgres, Version};
use views::api::Frame;

use crate::client::{Seen, Store, put};
use crate::data::all;
use crate::sync::A_WHILE;
use crate::world::{World, again, init, shared};

#[tokio::test]
async fn nothing_is_promised_while_the_cvr_database_is_away() {
    let postgres = Postgres::start(Version::V15).unwrap();
    let mut world = World::on(&postgres.url("postgres")).await;
    world.api.ask("q", all("issue"));
    world.api.ask("r", all("issue").by("owner", "b"));
    world.issue("i1", "a", 1).await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
    let mut idle = world.connect("h", "c1", Store::default(), init(&[put("r", 1000)]));
    idle.until("r", |s| s.got.contains("r")).await;
    let idle_store = idle.store.clone();

    postgres.stop().unwrap();
    world.issue("i2", "a", 2).await;
    world.issue("i3", "b", 3).await;
    c.change(json!([put("r", 1000)]));
    // What fits one write leaves in one write, when it is durable.
    assert!(tokio::time::timeout(A_WHILE, c.outbox.recv()).await.is_err(), "a part of a small poke");
    c.silent(A_WHILE).await;
    assert_eq!(c.store.rows.len(), 1);
    // An error does not wait for the database.
    let stranger = Store { cookie: Some("12i".into()), ..Store::default() };
    let mut refused = world.connect_as("g", "x", stranger, again(&[]), Some("another user"));
    assert_eq!(refused.refused().await.0["kind"], "Unauthorized");
    // One that gives up and comes back meanwhile waits as well, and is not told anything wrong.
    idle.cut();
    let mut back = world.connect("h", "c1", idle_store, again(&[]));
    back.silent(A_WHILE).await;
    let mut new = world.connect("new group", "c1", Store::default(), init(&[put("q", 1000)]));
    new.silent(A_WHILE).await;

    postgres.resume().unwrap();
    let expected = world.expected([&all("issue")]);
    c.until("everything", |s| s.rows == expected && s.got.len() == 2).await;
    new.until("everything", |s| s.rows == expected).await;
    back.until("its row", |s| s.rows.len() == 1).await;
    let store = c.cut();
    // What was delivered is there after a kill.
    world.kill();
    world.start().await;
    let mut c = world.connect("g", "c1", store, again(&[]));
    assert!(c.poke().await.parts.is_empty());
    assert!(world.metrics().cvr_flush_failures.get() == 0);
}

#[tokio::test]
async fn a_kill_while_the_cvr_database_is_away_loses_nothing_that_was_seen() {
    let postgres = Postgres::start(Version::V15).unwrap();
    let mut world = World::on(&postgres.url("postgres")).await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
    postgres.stop().unwrap();
    world.issue("i2", "a", 2).await;
    world.delete("issue", json!({"id": "i1"})).await;
    c.silent(A_WHILE).await;
    let store = c.cut();
    world.kill();
    postgres.resume().unwrap();
    world.start().await;
    let mut c = world.connect("g", "c1", store, again(&[]));
    let poke = c.poke().await;
    assert_eq!((poke.keys("put"), poke.keys("del")), (vec![r#"issue/"i2""#.into()], vec![r#"issue/"i1""#.into()]));
}

#[tokio::test]
async fn a_drain_closes_everything_and_takes_nobody_in() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
    let mut silent = world.socket("h", "c1", Store::default(), None, 1000);
    world.issue("i2", "a", 1).await;
    world.drain().await;
    let seen = c.drain(A_WHILE).await;
    assert!(matches!(seen.last(), Some(Seen::Close(Some((1001, _))))), "{seen:?}");
    assert!(matches!(silent.refused().await, (_, Some((1001, _)))));
    world.start().await;
    let mut c = world.connect("g", "c1", c.store.clone(), again(&[]));
    c.until("what it may have missed", |s| s.rows.len() == 2).await;
}

#[tokio::test]
async fn what_is_damaged_in_the_database_makes_clients_start_over() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
    let store = c.cut();
    let schema = world.cvr_schema.clone();
    let sql = async |world: &World, text: &str| {
        world.cvr().await.batch_execute(&text.replace("cvr.", &format!("\"{schema}\"."))).await.unwrap();
    };
    // The row history of the query: the group can be told all rows anew, but not what this client lost since.
    world.kill();
    sql(&world, r"UPDATE cvr.lineages SET base = '\x07'").await;
    world.start().await;
    world.issue("i2", "a", 1).await;
    let mut c = world.connect("g", "c1", store.clone(), again(&[]));
    assert_eq!(c.refused().await.0["kind"], "ClientNotFound");
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 1000)]));
    c.until("all", |s| s.rows.len() == 2).await;
    let store = c.cut();
    world.kill();
    world.start().await;
    let mut c = world.connect("g", "c1", store.clone(), again(&[]));
    assert!(c.poke().await.parts.is_empty(), "the new history works");
    // The record of the group.
    world.kill();
    sql(&world, "UPDATE cvr.groups SET record = '{'").await;
    world.start().await;
    let mut c = world.connect("g", "c1", store, again(&[]));
    assert_eq!(c.refused().await.0["kind"], "ClientNotFound");
}

#[tokio::test]
async fn the_replica_went_back() {
    // As after a loss of power: the CVR knows more than the replica that is restored.
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
    let saved = world.save();
    world.issue("i2", "a", 1).await;
    c.until("i2", |s| s.rows.len() == 2).await;
    let changes = world.put("issue", crate::world::issue("i2", "a", 1));
    let store = c.cut();
    world.kill();
    world.restore(saved);
    world.start().await;
    let mut other = world.connect("g2", "c1", Store::default(), init(&[put("q", 1000)]));
    other.until("q", |s| s.rows.len() == 1).await;
    let mut c = world.connect("g", "c1", store.clone(), again(&[]));
    c.silent(A_WHILE).await;
    // The stream brings the same again.
    let rows::Change::Update { table, new, .. } = changes else { panic!("an update") };
    world.apply_at(world.version, vec![rows::Change::Insert { table, new }]).await;
    let poke = c.next().await;
    assert!(matches!(poke, Seen::Poke(_)), "{poke:?}");
    assert_eq!(c.store.rows, world.expected([&all("issue")]));
    other.until("i2", |s| s.rows.len() == 2).await;
}

#[tokio::test]
async fn what_nobody_can_come_back_for_is_purged() {
    let mut world = World::stopped(&shared().url("postgres"));
    world.limits.node_dead = Duration::from_millis(100);
    world.limits.heartbeat = Duration::from_millis(10);
    world.limits.purge_interval = Duration::from_millis(20);
    world.start().await;
    world.api.ask("old", all("issue"));
    world.api.ask("kept", all("comment"));
    world.issue("i1", "a", 1).await;
    let mut old = world.connect("old", "c1", Store::default(), init(&[put("old", 1000)]));
    old.until("old", |s| s.got.contains("old")).await;
    let mut kept = world.connect("kept", "c1", Store::default(), init(&[put("kept", 1000)]));
    kept.until("kept", |s| s.got.contains("kept")).await;
    let (old, kept) = (old.cut(), kept.cut());
    world.kill();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let schema = world.cvr_schema.clone();
    let cvr = world.cvr().await;
    cvr.batch_execute(&format!(
        "UPDATE \"{schema}\".groups SET last_active = now() - interval '3 days' WHERE id = 'old';
         UPDATE \"{schema}\".lineages SET last_active = now() - interval '9 days';
         UPDATE \"{schema}\".nodes SET seen = now() - interval '3 days'"
    ))
    .await
    .unwrap();
    world.start().await;
    let count = async |table: &str| -> i64 {
        cvr.query_one(&format!("SELECT count(*) FROM \"{schema}\".{table}"), &[]).await.unwrap().get(0)
    };
    crate::cluster::eventually("the purge", async || (count("groups").await, count("lineages").await) == (1, 1)).await;
    let mut c = world.connect("old", "c1", old, again(&[]));
    assert_eq!(c.refused().await.0["kind"], "ClientNotFound");
    let mut c = world.connect("kept", "c1", kept, again(&[]));
    assert!(c.poke().await.parts.is_empty());
}

#[tokio::test]
async fn a_queue_takes_one_frame_of_any_size_and_closes_when_it_is_full() {
    let (outbox, mut receiver) = views::api::Outbox::new(10);
    outbox.send(Frame::Text("more than ten bytes".into())).unwrap();
    assert!(outbox.send(Frame::Text("x".into())).is_err());
    assert!(receiver.overflowed());
    assert!(matches!(receiver.recv().await, Some(Frame::Text(_))));
    assert!(matches!(receiver.recv().await, Some(Frame::Close(None))));
}

#[tokio::test]
async fn what_waits_for_the_cvr_database_is_bounded_and_nobody_is_cut_off() {
    let postgres = Postgres::start(Version::V15).unwrap();
    let mut world = World::stopped(&postgres.url("postgres"));
    world.limits.backlog_bytes = 20_000;
    world.start().await;
    world.api.ask("q", all("comment"));
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
    postgres.stop().unwrap();
    for n in 0..60 {
        let body = format!("{n}").repeat(500);
        world.upsert("comment", json!({"id": format!("m{}", n % 30), "issueID": "i", "body": body})).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    c.silent(A_WHILE).await;
    assert_eq!(world.metrics().held_back.get(), 1);
    postgres.resume().unwrap();
    let expected = world.expected([&all("comment")]);
    let pokes = c.until("all", |s| s.rows == expected).await;
    assert!(pokes.len() < 30, "{} pokes", pokes.len());
}

#[tokio::test]
async fn while_the_cvr_database_is_away_upstream_may_write_without_end() {
    let postgres = Postgres::start(Version::V15).unwrap();
    let mut world = World::stopped(&postgres.url("postgres"));
    world.limits.unflushed_bytes = 50_000;
    world.limits.commit_bytes = 100_000;
    world.start().await;
    world.api.ask("q", all("comment"));
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
    postgres.stop().unwrap();
    let comment =
        |n: usize, body: &str| json!({"id": format!("m{}", n % 30), "issueID": "i", "body": body.repeat(1_000)});
    for n in 0..10 {
        world.upsert("comment", comment(n, "first")).await;
    }
    // Commits of 10 kB each: the views gather some, and then replication waits.
    let mut published = 0;
    let waits = loop {
        let change = world.put("comment", comment(published, "later"));
        let batch = world.commit(vec![change]);
        let mut publishing = world.publishing(batch);
        if tokio::time::timeout(A_WHILE, &mut publishing).await.is_err() {
            break publishing;
        }
        published += 1;
        assert!(published < 100, "replication waits for the views");
    };
    c.silent(A_WHILE).await;
    let kept = world.metrics().cvr_unflushed_bytes.get();
    assert!((50_000..120_000).contains(&kept), "{kept} bytes wait");
    world.alive();
    postgres.resume().unwrap();
    waits.await.unwrap();
    let expected = world.expected([&all("comment")]);
    let pokes = c.until("everything", |s| s.rows == expected).await;
    assert!(pokes.windows(2).all(|two| two[1].base.as_ref() == Some(&two[0].cookie)), "one after the other");
    let store = c.cut();
    world.kill();
    world.start().await;
    let mut c = world.connect("g", "c1", store, again(&[]));
    assert!(c.poke().await.parts.is_empty(), "all of it is stored");
}

#[tokio::test]
async fn many_small_deltas_become_few() {
    let mut world = World::stopped(&shared().url("postgres"));
    world.limits.merge_deltas = 8;
    world.limits.merge_interval = Duration::from_millis(20);
    world.start().await;
    world.api.ask("q", all("issue"));
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
    let mut stores = Vec::new();
    for n in 0..60 {
        world.issue(&format!("i{}", n % 17), "a", n).await;
        c.poke().await;
        stores.push(c.store.clone());
    }
    c.cut();
    tokio::time::sleep(A_WHILE).await;
    let count: i64 = world
        .cvr()
        .await
        .query_one(&format!("SELECT count(*) FROM \"{}\".deltas", world.cvr_schema), &[])
        .await
        .unwrap()
        .get(0);
    assert!(count < 10, "{count} deltas");
    world.kill();
    world.start().await;
    let expected = world.expected([&all("issue")]);
    for store in stores.into_iter().step_by(7) {
        let mut c = world.connect("g", "c1", store, again(&[]));
        c.poke().await;
        assert_eq!(c.store.rows, expected);
        c.cut();
    }
}

#[tokio::test]
async fn a_replica_that_cannot_be_read_for_a_moment_fails_no_query() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    // As when the process is out of descriptors.
    world.unreadable.store(4, std::sync::atomic::Ordering::Relaxed);
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q") && s.rows.len() == 1).await;
    assert_eq!(world.unreadable.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert!(!c.log.iter().any(|seen| matches!(seen, Seen::Message(tag, _) if tag == "transformError")), "{:?}", c.log);
}
