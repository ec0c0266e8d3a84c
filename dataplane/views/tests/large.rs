//! Results, changes and differences that are many times larger than anything that may wait for a socket, with next to no memory
//! for encoded rows; clients that read slowly; nodes without room.

use std::time::Duration;

use rows::Change;
use serde_json::{Value as Json, json};

use crate::client::{Client, PATIENCE, Store, put};
use crate::data::all;
use crate::sync::A_WHILE;
use crate::world::{World, again, context, init, shared};

const MEMORY: usize = 100_000;
const ROWS: usize = 400;

/// Encoded rows have 100 kB of memory, everything beside pokes 50 kB per socket.
async fn world() -> World {
    let mut world = World::stopped(&shared().url("postgres"));
    world.limits.payload_bytes = MEMORY;
    world.limits.backlog_bytes = MEMORY;
    world.start().await;
    world.api.ask("all", all("comment"));
    world.api.ask("some", all("comment").by("issueID", "i1"));
    world
}

fn comment(n: usize, text: char) -> Json {
    json!({"id": format!("m{n:04}"), "issueID": format!("i{}", n % 10), "body": text.to_string().repeat(10_000)})
}

/// Writes all rows in one transaction.
async fn write(world: &mut World, text: char) {
    let changes = (0..ROWS).map(|n| world.put("comment", comment(n, text))).collect();
    world.apply(changes).await;
}

fn socket(world: &World, group: &str, store: Store, body: &Json) -> Client {
    let client = world.socket(group, "c1", store, None, 50_000);
    client.init(body, context(None));
    client
}

fn has_all(store: &Store, text: char) -> bool {
    store.rows.len() == ROWS && store.rows.values().all(|row| row["body"].as_str().is_some_and(|b| b.starts_with(text)))
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let until = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < until, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_client_that_reads_gets_an_answer_of_any_size() {
    let mut world = world().await;
    write(&mut world, 'a').await;
    let mut c = socket(&world, "g", Store::default(), &init(&[put("all", 1000)]));
    c.until("a result of 4 MB", |s| has_all(s, 'a')).await;
    write(&mut world, 'b').await;
    c.until("one change of 4 MB", |s| has_all(s, 'b')).await;
    let store = c.cut();
    write(&mut world, 'c').await;
    let mut c = socket(&world, "g", store.clone(), &again(&[]));
    c.until("a difference of 4 MB", |s| has_all(s, 'c')).await;
    c.cut();
    // The same from the database's history, and partly: every third row changed, some are gone.
    world.kill();
    let mut changes: Vec<_> = (0..ROWS).step_by(3).map(|n| world.put("comment", comment(n, 'd'))).collect();
    changes.extend((1..ROWS).step_by(50).map(|n| world.del("comment", &comment(n, 'c'))));
    world.apply(changes).await;
    world.start().await;
    let expected = world.expected([&all("comment")]);
    let mut c = socket(&world, "g", store, &again(&[]));
    c.until("what differs", |s| s.rows == expected).await;
    // Two queries of one table, the large one behind the small one and the other way round.
    for (group, order) in [("h", ["some", "all"]), ("i", ["all", "some"])] {
        let mut c = socket(&world, group, Store::default(), &init(&[put(order[0], 1000)]));
        c.until("the first", |s| s.got.len() == 1).await;
        c.change(json!([put(order[1], 1000)]));
        c.until("both", |s| s.got.len() == 2 && s.rows == expected).await;
    }
    eventually("the disk is seen in the metrics", || world.metrics().spool_disk_bytes.get() > 0).await;
    assert!(world.metrics().spool_memory_bytes.get() <= MEMORY as i64);
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_told_the_difference_and_nothing_twice() {
    let mut world = world().await;
    let mut c = socket(&world, "g", Store::default(), &init(&[put("all", 1000), put("some", 1000)]));
    c.until("the queries", |s| s.got.len() == 2).await;
    let mut other = world.connect("h", "c1", Store::default(), init(&[put("all", 1000)]));
    other.until("the query", |s| s.got.contains("all")).await;
    // It reads nothing while 20 rows change 20 times: 4 MB.
    for round in 0..20 {
        let text = char::from(b'a' + round);
        let changes = (0..20).map(|n| world.put("comment", comment(n, text))).collect();
        world.apply(changes).await;
        let seen =
            |s: &Store| s.rows.len() == 20 && s.rows.values().all(|r| r["body"].as_str().unwrap().starts_with(text));
        other.until("each change, at once", seen).await;
    }
    world.upsert("issue", crate::world::issue("i", "a", 1)).await;
    world.delete("comment", comment(0, 'a')).await;
    let expected = world.expected([&all("comment")]);
    assert_eq!(world.metrics().held_back.get(), 1);
    let pokes = c.until("the present state", |s| s.rows == expected).await;
    assert!(pokes.len() <= 4, "{} pokes", pokes.len());
    // And then it is told everything at once again.
    world.upsert("comment", comment(77, 'z')).await;
    assert_eq!(c.poke().await.keys("put"), [r#"comment/"m0077""#]);
    c.silent(A_WHILE).await;
}

#[tokio::test]
async fn a_client_that_goes_in_the_middle_leaves_nothing_behind() {
    let mut world = world().await;
    write(&mut world, 'a').await;
    let mut clients = Vec::new();
    for n in 0..10 {
        clients.push(socket(&world, &format!("g{n}"), Store::default(), &init(&[put("all", 1000)])));
    }
    for c in &mut clients {
        c.outbox.recv().await.expect("a frame");
    }
    clients.into_iter().for_each(|c| drop(c.cut()));
    // The encoded rows are dropped when nobody asks for them, and what sockets held of them with it.
    world.kill();
    world.limits.payload_in_use = Duration::ZERO;
    world.start().await;
    let mut c = socket(&world, "h", Store::default(), &init(&[put("all", 1000)]));
    c.until("all", |s| has_all(s, 'a')).await;
    eventually("only one file is kept to write to", || world.metrics().spool_disk_bytes.get() <= 32 << 20).await;
    eventually("encoded rows are gone", || world.metrics().payload_bytes.get() <= MEMORY as i64).await;
}

#[tokio::test]
async fn a_node_without_room_sheds_what_is_unused_then_lets_wait_then_sends_away() {
    let mut world = World::stopped(&shared().url("postgres"));
    world.limits.graph_bytes = 60_000;
    world.limits.crowded_max = Duration::from_millis(800);
    world.limits.crowded_retry = Duration::from_millis(20);
    world.limits.group_idle = Duration::ZERO;
    world.limits.materialisation_idle = Duration::from_secs(600);
    world.start().await;
    let rows: Vec<_> = (0..600)
        .map(|n| world.put("issue", crate::world::issue(&format!("i{n}"), ["a", "b", "c"][n % 3], 1)))
        .collect();
    world.apply(rows).await;
    for owner in ["a", "b", "c"] {
        world.api.ask(owner, all("issue").by("owner", owner));
    }
    world.api.ask("all", all("issue"));
    let ask = |world: &World, group: &str, query: &str| {
        world.connect(group, "c1", Store::default(), init(&[put(query, 1000)]))
    };
    // There is room for two of them.
    let mut a = ask(&world, "ga", "a");
    a.until("a", |s| s.rows.len() == 200).await;
    let mut b = ask(&world, "gb", "b");
    b.until("b", |s| s.rows.len() == 200).await;
    a.cut();
    let mut c = ask(&world, "gc", "c");
    c.until("what took the place of an unused one", |s| s.rows.len() == 200).await;
    let shed = |world: &World, what: &str| world.metrics().shed.with_label_values(&[what]).get();
    assert!(shed(&world, "query") >= 1);
    // One more waits for as long as the others are used, and is served as soon as one is not.
    let mut again = ask(&world, "ga", "a");
    eventually("it waits", || shed(&world, "hydration") >= 1).await;
    b.cut();
    again.until("a", |s| s.rows.len() == 200).await;
    // What does not fit at all is refused, and the others are not disturbed.
    let mut all = ask(&world, "gall", "all");
    let (error, close) = loop {
        // The first poke tells what is desired.
        match all.next().await {
            crate::client::Seen::Message(_, error) => break (error, all.next().await),
            crate::client::Seen::Poke(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error["kind"], "ServerOverloaded");
    assert!(error["minBackoffMs"].as_u64().unwrap() > 0, "{error}");
    assert!(matches!(close, crate::client::Seen::Close(_)));
    assert!(shed(&world, "client") >= 1);
    world.issue("i0", "c", 2).await;
    c.until("a change", |s| s.rows.len() == 201).await;
}

#[tokio::test]
async fn what_grows_beyond_the_budget_by_itself_sends_the_newest_away() {
    let mut world = World::stopped(&shared().url("postgres"));
    world.limits.graph_bytes = 60_000;
    world.limits.history_bytes = 1_000;
    world.limits.crowded_retry = Duration::from_secs(5);
    world.limits.group_idle = Duration::ZERO;
    world.start().await;
    let rows = |world: &mut World, owner: &str, n: std::ops::Range<usize>| {
        n.map(|n| world.put("issue", crate::world::issue(&format!("{owner}{n}"), owner, 1))).collect::<Vec<_>>()
    };
    let mut changes = rows(&mut world, "a", 0..200);
    changes.extend(rows(&mut world, "b", 0..200));
    world.apply(changes).await;
    let mut clients = Vec::new();
    for owner in ["a", "b"] {
        world.api.ask(owner, all("issue").by("owner", owner));
        let mut c = world.connect(owner, "c1", Store::default(), init(&[put(owner, 1000)]));
        c.until("200 rows", |s| s.rows.len() == 200).await;
        clients.push(c);
    }
    let changes = rows(&mut world, "a", 200..500);
    world.apply(changes).await;
    let mut b = clients.pop().unwrap();
    assert_eq!(b.refused().await.0["kind"], "ServerOverloaded");
    let mut a = clients.pop().unwrap();
    a.until("500 rows", |s| s.rows.len() == 500).await;
    world.issue("a0", "a", 2).await;
    assert_eq!(a.poke().await.keys("put"), [r#"issue/"a0""#]);
}

#[tokio::test]
async fn clients_that_miss_the_same_share_its_bytes() {
    let mut world = world().await;
    write(&mut world, 'a').await;
    let mut clients = Vec::new();
    for n in 0..10 {
        let mut c = socket(&world, &format!("g{n}"), Store::default(), &init(&[put("all", 1000)]));
        c.until("all", |s| has_all(s, 'a')).await;
        clients.push(c);
    }
    // A table whose contents change as a whole is read anew, and all join again where they were.
    let before = world.metrics().rehydrations.get();
    let tables = vec![world.spec("comment")];
    world.model.remove("comment");
    let rows = (0..ROWS).map(|n| world.put("comment", comment(n, 'b')));
    let changes = std::iter::once(Change::Truncate { tables }).chain(rows).collect();
    world.apply(changes).await;
    clients[7].until("one change of 4 MB", |s| has_all(s, 'b')).await;
    assert_eq!(world.metrics().rehydrations.get(), before + 1);
    // The others have read nothing yet; for them alone it would be 36 MB.
    tokio::time::sleep(A_WHILE).await;
    let disk = world.metrics().spool_disk_bytes.get();
    assert!(disk <= 32 << 20, "{disk} bytes for one change");
    for c in &mut clients[..2] {
        c.until("the change", |s| has_all(s, 'b')).await;
    }
}
