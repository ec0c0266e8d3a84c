//! What is remembered of client groups: bounded, whoever's it is, and whatever happens to the tables or to the connection.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use testkit::pgbouncer::PgBouncer;
use testkit::postgres::{Postgres, Version};
use views::Ending;
use views::api::ConnectionContext;

use crate::client::{Client, PATIENCE, Seen, Store, del, put};
use crate::cluster::{Cluster, eventually};
use crate::data::all;
use crate::sync::A_WHILE;
use crate::world::{Reply, World, again, context, init, shared};

async fn sql(world: &World, text: &str) {
    let text = text.replace("cvr.", &format!("\"{}\".", world.cvr_schema));
    world.cvr().await.batch_execute(&text).await.unwrap();
}

async fn client_of(world: &World, group: &str, query: &str) -> Client {
    let mut c = world.connect(group, "c1", Store::default(), init(&[put(query, 60_000)]));
    c.until("the query", |s| s.got.contains(query)).await;
    c
}

/// Another node may take the group right after it: what is told and not stored is lost.
#[tokio::test]
async fn what_a_client_is_told_is_stored_whoever_joins_meanwhile() {
    let world = World::new().await;
    for query in ["q", "r"] {
        world.api.ask(query, all("issue").by("owner", query));
    }
    world.api.0.lock().unwrap().delay = Duration::from_millis(15);
    let database = world.cvr().await;
    let text = format!("SELECT coalesce((SELECT record FROM \"{}\".groups WHERE id = $1), '')", world.cvr_schema);
    let recorded = database.prepare(&text).await.unwrap();
    for n in 0..10 {
        let group = format!("g{n}");
        // It waits for its query for a moment, and the one that comes a little later for a moment longer.
        let mut first = world.connect(&group, "c1", Store::default(), init(&[put("q", 60_000)]));
        tokio::time::sleep(Duration::from_millis(10)).await;
        let mut second = world.connect(&group, "c2", Store::default(), init(&[put("r", 60_000)]));
        first.poke().await;
        let record: String = database.query_one(&recorded, &[&group]).await.unwrap().get(0);
        assert!(record.contains("\"q\""), "its desire: {record}");
        for (client, query) in [(&mut first, "q"), (&mut second, "r")] {
            client.until("its query", |s| s.got.contains(query)).await;
        }
    }
}

#[tokio::test]
async fn a_record_that_the_database_refuses_concerns_its_group_only() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    let mut good = client_of(&world, "good", "q").await;
    sql(&world, "ALTER TABLE cvr.groups ADD CHECK (id <> 'bad') NOT VALID").await;
    let mut bad = world.connect("bad", "c1", Store::default(), init(&[put("q", 60_000)]));
    let (error, _) = bad.refused().await;
    assert_eq!(error["kind"], "Internal");
    assert!(bad.store.rows.is_empty() && bad.store.cookie.is_none(), "nothing is promised to it");
    world.issue("i1", "a", 1).await;
    good.until("the row", |s| s.rows.len() == 1).await;
    let other = client_of(&world, "other", "q").await;
    assert_eq!(other.store.rows.len(), 1);
    eventually("the flush", async || world.unflushed_since().is_none()).await;
    world.alive();
}

#[tokio::test]
async fn rows_that_the_database_refuses_make_their_clients_start_over_later() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.api.ask("r", all("comment"));
    let mut c = client_of(&world, "g", "q").await;
    let mut other = client_of(&world, "h", "r").await;
    let before = c.store.clone();
    sql(&world, "ALTER TABLE cvr.deltas ADD CHECK (octet_length(entries) < 500) NOT VALID").await;
    let rows = (0..100).map(|n| world.put("issue", crate::world::issue(&format!("i{n}"), "a", n))).collect();
    world.apply(rows).await;
    c.until("the rows", |s| s.rows.len() == 100).await;
    world.upsert("comment", json!({"id": "m1", "issueID": "i1", "body": "x"})).await;
    other.until("its row", |s| s.rows.len() == 1).await;
    // What follows would have a gap before it.
    world.issue("i1", "b", 7).await;
    c.until("the change", |s| s.rows.values().any(|row| row["owner"] == "b")).await;
    let (after, other_after) = (c.cut(), other.cut());
    world.kill();
    world.start().await;
    for store in [before, after] {
        let mut c = world.connect("g", "c1", store, again(&[]));
        assert_eq!(c.refused().await.0["kind"], "ClientNotFound");
    }
    let mut other = world.connect("h", "c1", other_after, again(&[]));
    assert!(other.poke().await.rows().is_empty());
    let c = client_of(&world, "g", "q").await;
    assert_eq!(c.store.rows.len(), 100);
}

#[tokio::test]
async fn what_is_too_large_to_remember_fails_alone() {
    let world = World::new().await;
    world.api.ask("q", all("issue"));
    let large = json!({"op": "put", "hash": "large", "name": "q", "args": ["x".repeat(3 << 20)], "ttl": 1_000});
    let mut c = world.connect("g", "c1", Store::default(), init(&[large, put("q", 1_000)]));
    let error = c.message_of("transformError").await;
    assert_eq!(error[0]["id"], "large");
    assert!(error[0]["message"].as_str().unwrap().contains("bytes"), "{error}");
    c.until("the other", |s| s.got.contains("q")).await;
    assert!(c.store.desired["c1"].contains("large"), "it need not say so again");
    let long = "h".repeat(5_000);
    c.change(json!([put(&long, 1_000)]));
    let error = c.message_of("error").await;
    assert!(error["message"].as_str().unwrap().contains("hash"), "{error}");
}

#[tokio::test]
async fn the_age_of_what_is_not_stored_is_known() {
    let postgres = Postgres::start(Version::V15).unwrap();
    let mut world = World::on(&postgres.url("postgres")).await;
    world.api.ask("q", all("issue"));
    let mut c = client_of(&world, "g", "q").await;
    eventually("the flush", async || world.unflushed_since().is_none()).await;
    postgres.stop().unwrap();
    world.issue("i1", "a", 1).await;
    eventually("the first to wait", async || world.unflushed_since().is_some()).await;
    let since = world.unflushed_since();
    world.issue("i2", "a", 1).await;
    c.silent(A_WHILE).await;
    assert_eq!(world.unflushed_since(), since, "the oldest counts");
    postgres.resume().unwrap();
    c.until("the rows", |s| s.rows.len() == 2).await;
    eventually("the flush", async || world.unflushed_since().is_none()).await;
}

#[tokio::test]
async fn tables_that_are_dropped_are_made_anew() {
    let mut world = World::stopped(&shared().url("postgres"));
    world.limits.group_idle = Duration::from_millis(10);
    world.start().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    let mut c = client_of(&world, "g", "q").await;
    let away = client_of(&world, "away", "q").await.cut();
    let before = c.store.clone();
    eventually("one group in memory", async || world.metrics().client_groups.get() == 1).await;
    sql(&world, "DROP SCHEMA cvr. CASCADE".replace("cvr. ", &format!("\"{}\" ", world.cvr_schema)).as_str()).await;
    // Who is connected goes on, who comes is served, who was away starts over if nobody knows it any more.
    world.issue("i2", "a", 1).await;
    c.until("the row", |s| s.rows.len() == 2).await;
    let new = client_of(&world, "new", "q").await;
    assert_eq!(new.store.rows.len(), 2);
    eventually("the record", async || {
        let text = format!("SELECT count(*) FROM \"{}\".groups WHERE record IS NOT NULL", world.cvr_schema);
        world.cvr().await.query_one(&text, &[]).await.unwrap().get::<_, i64>(0) == 2
    })
    .await;
    // What was connected then is known after a restart.
    world.issue("i3", "a", 1).await;
    c.until("the row", |s| s.rows.len() == 3).await;
    let store = c.cut();
    world.kill();
    world.start().await;
    world.issue("i4", "a", 1).await;
    let mut c = world.connect("g", "c1", store, again(&[]));
    c.until("the row", |s| s.rows.len() == 4).await;
    assert!(c.past.len() < 4, "the difference, in a poke");
    c.cut();
    for (group, store) in [("away", away), ("g", before)] {
        let mut c = world.connect(group, "c1", store, again(&[]));
        assert_eq!(c.refused().await.0["kind"], "ClientNotFound", "{group}");
    }
}

/// Signals the server processes of a world's connections.
async fn signal(application: &str, signal: &str) -> Vec<i32> {
    let admin = shared().connect("postgres").await.unwrap();
    let text = "SELECT pid FROM pg_stat_activity WHERE application_name = $1";
    let pids: Vec<i32> = admin.query(text, &[&application]).await.unwrap().iter().map(|row| row.get(0)).collect();
    send(signal, &pids);
    pids
}

fn send(signal: &str, pids: &[i32]) {
    for pid in pids {
        std::process::Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    }
}

#[tokio::test]
async fn a_connection_that_does_not_answer_is_given_up() {
    const APPLICATION: &str = "silent-connections";
    let mut world = World::stopped(&format!("{}?application_name={APPLICATION}", shared().url("postgres")));
    world.limits.answer = Duration::from_millis(500);
    world.limits.heartbeat = Duration::from_secs(10);
    world.start().await;
    world.api.ask("q", all("issue"));
    let mut c = client_of(&world, "g", "q").await;
    let stopped = signal(APPLICATION, "-STOP").await;
    assert!(!stopped.is_empty());
    // Both directions: what is stored, and what is asked.
    world.issue("i1", "a", 1).await;
    let mut new = world.connect("new", "c1", Store::default(), init(&[put("q", 60_000)]));
    c.until("the row", |s| s.rows.len() == 1).await;
    new.until("the row", |s| s.rows.len() == 1).await;
    c.change(json!([del("q")]));
    c.until("the end of the query", |s| s.desired["c1"].is_empty()).await;
    let record = async || {
        let text = format!("SELECT record FROM \"{}\".groups WHERE id = 'g'", world.cvr_schema);
        world.cvr().await.query_one(&text, &[]).await.unwrap().get::<_, String>(0)
    };
    eventually("the flush", async || world.unflushed_since().is_none()).await;
    let before = record().await;
    // What was given up arrives late.
    send("-CONT", &stopped);
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(record().await, before, "an older record must not take the place of a newer one");
    world.issue("i2", "a", 1).await;
    new.until("the row", |s| s.rows.len() == 2).await;
}

#[tokio::test]
async fn what_a_database_sets_for_its_sessions_does_not_reach_the_records() {
    let admin = shared().connect("postgres").await.unwrap();
    admin.batch_execute("CREATE DATABASE impatient").await.unwrap();
    for setting in ["statement_timeout = '150ms'", "default_transaction_read_only = on", "synchronous_commit = off"] {
        admin.batch_execute(&format!("ALTER DATABASE impatient SET {setting}")).await.unwrap();
    }
    // A pooler gives each transaction another session: nothing can be set for good.
    let pooler = PgBouncer::start(shared(), 2).unwrap();
    for url in [shared().url("impatient"), pooler.url("impatient")] {
        let mut world = World::on(&url).await;
        world.api.ask("q", all("issue"));
        let slow = format!(
            "BEGIN READ WRITE; SET LOCAL statement_timeout = 0;
             CREATE FUNCTION \"{0}\".slow() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN PERFORM pg_sleep(0.4); RETURN NEW; END';
             CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON \"{0}\".groups FOR EACH ROW EXECUTE FUNCTION \"{0}\".slow();
             CREATE TRIGGER slow BEFORE INSERT ON \"{0}\".deltas FOR EACH ROW EXECUTE FUNCTION \"{0}\".slow();
             COMMIT",
            world.cvr_schema
        );
        world.cvr().await.batch_execute(&slow).await.unwrap();
        let mut c = client_of(&world, "g", "q").await;
        world.issue("i1", "a", 1).await;
        c.until("the row", |s| s.rows.len() == 1).await;
        assert_eq!(world.metrics().cvr_flush_failures.get(), 0);
        let store = c.cut();
        world.drain().await;
        world.start().await;
        let mut c = world.connect("g", "c1", store, again(&[]));
        assert!(c.poke().await.rows().is_empty());
    }
}

#[tokio::test]
async fn a_group_stays_its_users() {
    let mut cluster = Cluster::new(2).await;
    cluster.api().ask("q", all("issue"));
    cluster.issue("i1", "a", 1).await;
    for (group, user, others) in [
        ("ann's", Some("ann"), [Some("bob"), None, Some("")]),
        ("nobody's", None, [Some("ann"), Some("bob"), Some("")]),
    ] {
        let world = &cluster.nodes[0].world;
        let mut c = world.connect_as(group, "c1", Store::default(), init(&[put("q", 60_000)]), user);
        c.until("the query", |s| s.got.contains("q")).await;
        let store = c.cut();
        // Here, after a restart, and on another node.
        for step in 0..3 {
            if step == 1 {
                cluster.nodes[0].world.drain().await;
                cluster.nodes[0].world.start().await;
            }
            let n = usize::from(step == 2);
            for other in others {
                let world = &cluster.nodes[n].world;
                let mut c = world.connect_as(group, "x", store.clone(), again(&[put("q", 1_000)]), other);
                let (error, close) = c.refused().await;
                assert_eq!(error["kind"], "Unauthorized", "{group} for {other:?}");
                assert_eq!(close.map(|(code, _)| code), Some(3000));
                assert_eq!(c.log.len(), 2, "and nothing else");
            }
        }
        let mut c = cluster.nodes[1].world.connect_as(group, "c1", store, again(&[]), user);
        c.poke().await;
        let record =
            cluster.text(&format!("SELECT record FROM cvr.groups WHERE id = '{}'", group.replace('\'', "''"))).await;
        assert!(!record.contains("\"ann\""), "{record}");
    }
}

#[tokio::test]
async fn what_a_group_holds_is_sent_to_nobody_before_his_own_queries_are_answered() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    let mut c = world.connect_as("g", "c1", Store::default(), init(&[put("q", 60_000)]), Some("u"));
    c.until("the query", |s| s.got.contains("q")).await;
    // Someone who claims to be the user, with credentials that are good but lead to nothing.
    world.api.with(|api| api.weak_token = Some("weak".into()));
    let weak = || ConnectionContext { token: Some("weak".into()), ..context(Some("u")) };
    for store in [Store::default(), c.store.clone()] {
        let body = if store.cookie.is_none() { init(&[]) } else { again(&[]) };
        let mut claimer = world.socket("g", "x", store, Some("u"), 1 << 20);
        claimer.init(&body, weak());
        world.issue("i2", "a", 1).await;
        let (error, _) = claimer.refused().await;
        assert_eq!(error["kind"], "TransformFailed");
        assert_eq!(claimer.log.len(), 2, "and nothing else");
    }
    // One whose credentials lead to other rows is sent those.
    world.api.with(|api| api.weak_token = None);
    world.api.ask("q", all("issue").by("owner", "b"));
    let mut other = world.connect_as("g", "c2", Store::default(), init(&[]), Some("u"));
    other.until("the query", |s| s.got.contains("q")).await;
    assert!(other.past.iter().all(|store| store.rows.is_empty()), "{:?}", other.log);
}

#[tokio::test]
async fn a_query_that_failed_is_said_to_have_and_not_asked_for_again() {
    let mut world = World::new().await;
    world.api.set("bad", Reply::Refuse("not allowed".into()));
    world.api.ask("good", all("issue"));
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("bad", 60_000), put("good", 60_000)]));
    c.message_of("transformError").await;
    c.until("the other", |s| s.got.contains("good") && s.desired["c1"].len() == 2).await;
    let gone = |c: &Client| {
        let pokes = c.log.iter().filter_map(|seen| if let Seen::Poke(poke) = seen { Some(poke.got()) } else { None });
        pokes.flatten().filter(|op| *op == json!({"op": "del", "hash": "bad"})).count()
    };
    assert_eq!(gone(&c), 1, "{:?}", c.log);
    let store = c.cut();
    // What is desired is known, so its page does not say it again; nor is it tried for anybody else.
    for restart in [false, true] {
        if restart {
            world.kill();
            world.start().await;
        }
        let mut c = world.connect("g", "c1", store.clone(), again(&[]));
        c.poke().await;
        c.silent(A_WHILE).await;
        assert_eq!((gone(&c), c.store.got.len()), (0, 1));
        c.cut();
    }
    // A new page that wants it has it tried again.
    let mut c = world.connect("g", "c2", store.clone(), again(&[put("bad", 60_000)]));
    c.message_of("transformError").await;
    world.api.ask("bad", all("comment"));
    c.change(json!([put("bad", 60_000)]));
    c.until("it is there", |s| s.got.contains("bad")).await;
    let mut first = world.connect("g", "c1", store, again(&[]));
    first.until("it is there", |s| s.got.contains("bad")).await;
}

#[tokio::test]
async fn a_cookie_that_is_none_makes_a_client_start_over() {
    let world = World::new().await;
    for cookie in ["", "not a cookie", "1", "zzzzzzzzzzzzzzzzzzzzz", "00:", ":", "0\u{0}"].into_iter().skip(1) {
        let store = Store { cookie: Some(cookie.into()), ..Store::default() };
        let mut c = world.connect("g", "c1", store, again(&[]));
        assert_eq!(c.refused().await.0["kind"], "InvalidConnectionRequestBaseCookie", "{cookie:?}");
    }
}

#[tokio::test]
async fn a_node_is_not_dead_because_the_clock_of_the_database_jumped() {
    let mut world = World::stopped(&shared().url("postgres"));
    // So that nothing is heard of it by itself.
    world.limits.heartbeat = Duration::from_secs(60);
    world.start().await;
    world.api.ask("q", all("issue"));
    let mut c = client_of(&world, "g", "q").await;
    sql(&world, "UPDATE cvr.nodes SET seen = now() - interval '20 min'").await;
    let mut other = World::stopped(&shared().url("postgres"));
    other.cvr_schema = world.cvr_schema.clone();
    other.start().await;
    world.issue("i1", "a", 1).await;
    c.until("the row", |s| s.rows.len() == 1).await;
    world.alive();
}

#[tokio::test]
async fn a_panic_is_told_to_whoever_waits() {
    let world = World::new().await;
    world.api.ask("q", all("issue"));
    world.no_readers.store(true, Ordering::Relaxed);
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 60_000)]));
    assert_eq!(c.message_of("transformError").await[0]["id"], "q");
    world.no_readers.store(false, Ordering::Relaxed);
    c.change(json!([put("q", 60_000)]));
    c.until("the query", |s| s.got.contains("q")).await;
    world.api.with(|api| api.panics = Some("r".into()));
    c.change(json!([put("r", 60_000)]));
    assert_eq!(c.message_of("error").await["kind"], "Internal");
}

#[tokio::test]
async fn a_panic_of_a_task_of_the_store_ends_the_views() {
    for (task, heartbeat) in [("writes", Duration::from_millis(20)), ("reads", Duration::from_secs(60))] {
        let mut world = World::stopped(&shared().url("postgres"));
        world.limits.heartbeat = heartbeat;
        world.start().await;
        world.api.ask("q", all("issue"));
        let mut c = client_of(&world, "g", "q").await;
        world.no_connections.store(true, Ordering::Relaxed);
        // Both tasks must connect again: the one with its next heartbeat, the other for the next group.
        sql(
            &world,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%cvr.%' AND pid <> pg_backend_pid()",
        )
        .await;
        if task == "reads" {
            world.connect("h", "c1", Store::default(), init(&[put("q", 60_000)]));
        }
        let Ending::Failed(reason) = world.ended().await else { panic!("a drain") };
        assert!(reason.contains(task) && reason.contains("panicked"), "{reason}");
        // Nobody is left with a socket that says nothing any more.
        while tokio::time::timeout(PATIENCE, c.outbox.recv()).await.expect("an end").is_some() {}
    }
}
