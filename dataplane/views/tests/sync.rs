//! Connecting, being told, coming back.

use std::time::Duration;

use serde_json::json;

use crate::client::{Client, Seen, Store, del, put};
use crate::data::all;
use crate::world::{World, again, context, init, issue};

pub const A_WHILE: Duration = Duration::from_millis(300);

/// A group with one client that holds the issues of owner `a`: `i1` and `i2`.
async fn settled(world: &mut World) -> Client {
    world.api.ask("mine", all("issue").by("owner", "a"));
    world.issue("i1", "a", 1).await;
    world.issue("i2", "a", 2).await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("mine", 60_000)]));
    c.until("the query", |s| s.got.contains("mine")).await;
    assert_eq!(c.store.rows, world.expected([&all("issue").by("owner", "a")]));
    c
}

#[tokio::test]
async fn smoke() {
    let mut world = World::new().await;
    let mut c = settled(&mut world).await;
    assert_eq!(c.past[1].desired["c1"], ["mine".to_owned()].into(), "the first poke tells the desire");
    assert_eq!(c.past[0].cookie, None);

    world.issue("i3", "a", 3).await;
    world.issue("other", "b", 3).await;
    let poke = c.poke().await;
    assert_eq!(poke.keys("put"), [r#"issue/"i3""#]);
    let versions = [world.version - 10, world.version].map(|v| rows::Version::new(v).to_string());
    assert!(versions.contains(&poke.cookie), "a whole version: {}", poke.cookie);
    world.upsert("issue", issue("i3", "b", 3)).await;
    let poke = c.poke().await;
    assert_eq!((poke.keys("put"), poke.keys("del")), (vec![], vec![r#"issue/"i3""#.to_owned()]));
    c.silent(A_WHILE).await;

    // The same client comes back with nothing new: one empty poke.
    let store = c.cut();
    let mut c = world.connect("g", "c1", store.clone(), again(&[]));
    let poke = c.poke().await;
    assert_eq!(poke.base.as_ref(), Some(&poke.cookie));
    assert!(poke.parts.is_empty());
    c.silent(A_WHILE).await;
    c.cut();

    // A new page over the same database.
    let mut c = world.connect("g", "c2", store.clone(), again(&[put("mine", 60_000)]));
    let pokes = c.until("its desire", |s| s.desired.contains_key("c2")).await;
    assert!(pokes.iter().all(|p| p.rows().is_empty()), "{pokes:?}");
    c.cut();

    // A client that lost everything but its first poke.
    let mut c = world.connect("g", "c1", Store { cookie: Some("00:01".into()), ..Store::default() }, again(&[]));
    c.poke().await;
    assert_eq!(c.store.rows, store.rows);
    assert!(c.store.got.contains("mine"));
    c.cut();

    // A cookie from the future, and an unknown group.
    let future = Store { cookie: Some(format!("{}:05", rows::Version::new(world.version))), ..store.clone() };
    let mut c = world.connect("g", "c1", future, again(&[]));
    assert_eq!(c.refused().await.0["kind"], "InvalidConnectionRequestBaseCookie");
    let mut c = world.connect("unknown", "c1", store, again(&[]));
    assert_eq!(c.refused().await.0["kind"], "ClientNotFound");
    let mut c = world.connect("new", "c1", Store::default(), again(&[]));
    assert_eq!(c.refused().await.0["kind"], "InvalidConnectionRequest");
    let mut c = world.connect("new", "c1", Store { cookie: Some("x".into()), ..Store::default() }, again(&[]));
    assert_eq!(c.refused().await.0["kind"], "InvalidConnectionRequestBaseCookie");

    // With TTL 0, a query goes at once.
    let mut c = world.connect("g2", "c1", Store::default(), init(&[put("mine", 0)]));
    c.until("the query", |s| s.got.contains("mine")).await;
    c.change(json!([del("mine")]));
    let pokes = c.until("the end of the query", |s| s.got.is_empty() && s.rows.is_empty()).await;
    assert_eq!(pokes.iter().flat_map(|p| p.desired("c1")).collect::<Vec<_>>(), [del("mine")]);
    assert_eq!(pokes.iter().flat_map(|p| p.got()).collect::<Vec<_>>(), [del("mine")]);
}

#[tokio::test]
async fn groups_with_one_query_share_one_materialisation() {
    let mut world = World::new().await;
    let mut a = settled(&mut world).await;
    let mut b = world.connect("other", "c1", Store::default(), init(&[put("mine", 60_000)]));
    b.until("the query", |s| s.got.contains("mine")).await;
    assert_eq!(a.store.rows, b.store.rows);
    // Gauges are brought up to date by the tick.
    let until = tokio::time::Instant::now() + Duration::from_secs(5);
    while world.metrics().subscriptions.get() != 2 && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.metrics().subscriptions.get(), 2);
    assert_eq!(world.metrics().materialisations.get(), 1);
    assert_eq!(world.metrics().hydrations.get(), 1);
    let before = world.metrics().poked_rows.get();
    world.issue("i3", "a", 3).await;
    assert_eq!(a.poke().await.keys("put"), b.poke().await.keys("put"));
    assert_eq!(world.metrics().poked_rows.get() - before, 1, "one body for both");
}

/// What a client that was away is sent, whatever the views did meanwhile.
async fn only_the_difference(restart: impl AsyncFn(&mut World)) {
    let mut world = World::new().await;
    let c = settled(&mut world).await;
    for n in 10..40 {
        world.issue(&format!("i{n}"), "a", n).await;
    }
    let mut c = c;
    c.until("all", |s| s.rows.len() == 32).await;
    let first = c.past[c.past.len() / 2].clone();
    let store = c.cut();
    restart(&mut world).await;
    world.issue("new", "a", 1).await;
    world.issue("i10", "a", 77).await;
    world.upsert("issue", issue("i11", "b", 11)).await;
    world.delete("issue", issue("i12", "a", 12)).await;
    restart(&mut world).await;
    let mut c = world.connect("g", "c1", store, again(&[]));
    let poke = c.poke().await;
    assert_eq!(poke.keys("put"), [r#"issue/"i10""#, r#"issue/"new""#]);
    assert_eq!(poke.keys("del"), [r#"issue/"i11""#, r#"issue/"i12""#]);
    assert!(poke.got().is_empty(), "{poke:?}");
    assert_eq!(c.store.rows, world.expected([&all("issue").by("owner", "a")]));
    let store = c.cut();
    restart(&mut world).await;
    let mut c = world.connect("g", "c1", store, again(&[]));
    let poke = c.poke().await;
    assert!(poke.parts.is_empty(), "nothing changed: {poke:?}");
    c.cut();
    // From a cookie before several restarts.
    let missed = 32 - first.rows.len();
    let mut c = world.connect("g", "c1", first, again(&[]));
    let poke = c.poke().await;
    assert!(poke.rows().len() <= missed + 4, "{} rows for a client that missed {missed}", poke.rows().len());
    assert_eq!(c.store.rows, world.expected([&all("issue").by("owner", "a")]));
}

#[tokio::test]
async fn a_client_that_was_away_is_sent_the_difference() {
    only_the_difference(async |_| {}).await;
}

#[tokio::test]
async fn also_when_the_views_were_killed_and_started() {
    only_the_difference(async |world| {
        // What was sent is durable by then: a kill loses nothing that a client saw.
        world.kill();
        world.start().await;
    })
    .await;
}

#[tokio::test]
async fn also_when_the_views_were_drained_and_started() {
    only_the_difference(async |world| {
        world.drain().await;
        world.start().await;
    })
    .await;
}

#[tokio::test]
async fn also_when_its_group_was_unloaded() {
    only_the_difference(async |world| {
        let until = tokio::time::Instant::now() + Duration::from_secs(20);
        while world.metrics().client_groups.get() != 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(world.metrics().client_groups.get(), 0, "idle groups leave memory");
    })
    .await;
}

#[tokio::test]
async fn changes_while_nothing_runs_are_caught_up() {
    let mut world = World::new().await;
    let store = settled(&mut world).await.cut();
    world.kill();
    world.issue("new", "a", 1).await;
    world.issue("i1", "a", 99).await;
    world.delete("issue", issue("i2", "a", 2)).await;
    world.start().await;
    let mut c = world.connect("g", "c1", store, again(&[]));
    let poke = c.poke().await;
    assert_eq!(poke.keys("put"), [r#"issue/"i1""#, r#"issue/"new""#]);
    assert_eq!(poke.keys("del"), [r#"issue/"i2""#]);
}

#[tokio::test]
async fn the_query_set_changed_while_a_client_was_away() {
    for restart in [false, true] {
        let mut world = World::new().await;
        world.api.ask("b", all("issue").by("owner", "b"));
        world.api.ask("c", all("issue").by("owner", "c"));
        world.api.ask("changing", all("issue").by("owner", "d"));
        world.issue("b1", "b", 1).await;
        world.issue("c1", "c", 1).await;
        world.issue("d1", "d", 1).await;
        world.issue("e1", "e", 1).await;
        let mut away = settled(&mut world).await;
        away.change(json!([put("b", 0), put("changing", 0)]));
        away.until("its queries", |s| s.got.len() == 3).await;
        let store = away.cut();
        let mut here = world.connect("g", "here", Store::default(), init(&[put("c", 0)]));
        here.until("all", |s| s.got.len() == 4).await;
        // Added: c; removed: b; another AST: changing.
        world.api.ask("changing", all("issue").by("owner", "e"));
        here.delete_clients(&["c1"]);
        here.message_of("deleteClients").await;
        here.change(json!([put("mine", 1000), put("changing", 1000)]));
        here.update_auth(context(None));
        here.until("b is gone", |s| {
            !s.got.contains("b") && s.rows.contains_key(&("issue".into(), json!("e1").to_string()))
        })
        .await;
        if restart {
            world.kill();
            world.start().await;
        } else {
            here.cut();
        }
        let mut away = world.connect("g", "c1", store, again(&[]));
        let pokes = away.until("the new set", |s| s.got.contains("c") && s.rows.len() == 4).await;
        let puts: Vec<String> = pokes.iter().flat_map(|p| p.keys("put")).collect();
        let dels: Vec<String> = pokes.iter().flat_map(|p| p.keys("del")).collect();
        assert_eq!(puts, [r#"issue/"c1""#, r#"issue/"e1""#], "restart: {restart}");
        assert_eq!(dels, [r#"issue/"b1""#, r#"issue/"d1""#], "restart: {restart}");
        let asks = [all("issue").by("owner", "a"), all("issue").by("owner", "c"), all("issue").by("owner", "e")];
        assert_eq!(away.store.rows, world.expected(&asks));
    }
}

#[tokio::test]
async fn who_lost_a_row_does_not_say_what_it_is() {
    let mut world = World::new().await;
    world.api.ask("a", all("issue"));
    world.api.ask("b", all("issue").by("owner", "a"));
    world.issue("i1", "a", 1).await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("a", 1000), put("b", 1000)]));
    c.until("both", |s| s.got.len() == 2).await;
    let store = c.cut();
    let mut other = world.connect("other", "c1", Store::default(), init(&[put("a", 1000), put("b", 1000)]));
    other.until("both", |s| s.got.len() == 2).await;
    // Each in a step of its own: `b` has the row at n = 5 and then no more, `a` has it all the time.
    world.issue("i1", "a", 5).await;
    other.poke().await;
    world.issue("i1", "b", 6).await;
    other.poke().await;
    let mut c = world.connect("g", "c1", store, again(&[]));
    c.poke().await;
    assert_eq!(c.store.rows, world.expected([&all("issue")]));
}

#[tokio::test]
async fn a_cookie_ahead_of_the_replica_waits() {
    let mut world = World::new().await;
    let store = settled(&mut world).await.cut();
    let ahead = Store { cookie: Some(rows::Version::new(world.version + 20).to_string()), ..store };
    let mut c = world.connect("g", "c1", ahead.clone(), again(&[]));
    // Behind the first message in the queue, and applied after it.
    c.change(json!([put("mine", 600_000)]));
    c.silent(A_WHILE).await;
    world.issue("x1", "a", 1).await;
    c.silent(A_WHILE).await;
    world.issue("x2", "a", 1).await;
    c.until("its poke", |s| s.cookie != ahead.cookie || !s.rows.is_empty()).await;
    c.cut();
    let never = Store { cookie: Some(rows::Version::new(world.version + 1).to_string()), ..ahead };
    let mut c = world.connect("g", "c1", never, again(&[]));
    assert_eq!(c.refused().await.0["kind"], "InvalidConnectionRequestBaseCookie");
}

#[tokio::test]
async fn what_changes_while_clients_join_reaches_them() {
    let mut world = World::new().await;
    world.api.with(|api| api.delay = Duration::from_millis(15));
    world.api.ask("all", all("issue").with());
    let mut clients: Vec<Client> = Vec::new();
    for n in 0..40 {
        clients.push(world.connect(
            &format!("g{}", n % 7),
            &format!("c{n}"),
            Store::default(),
            init(&[put("all", 1000)]),
        ));
        world.issue(&format!("i{n}"), "a", n).await;
        world.upsert("comment", json!({"id": format!("m{n}"), "issueID": format!("i{}", n / 2), "body": "x"})).await;
    }
    let expected = world.expected([&all("issue").with()]);
    for client in &mut clients {
        client.until("all rows", |s| s.rows == expected && s.got.contains("all")).await;
    }
}

#[tokio::test]
async fn a_client_may_leave_before_anything_was_said() {
    let mut world = World::new().await;
    settled(&mut world).await.cut();
    for n in 0..20 {
        let c = world.socket("g", "c1", Store::default(), None, 1 << 20);
        if n % 2 == 0 {
            c.init(&again(&[]), context(None));
        }
        c.cut();
    }
    let c = world.socket("g", "c1", Store::default(), None, 1 << 20);
    // Before initConnection there is no view: this is dropped.
    c.change(json!([put("mine", 1)]));
    c.init(&init(&[]), context(None));
    let mut c = c;
    let poke = c.poke().await;
    assert_eq!(poke.keys("put").len(), 2);
    c.init(&again(&[]), context(None));
    assert_eq!(c.refused().await.0["kind"], "Internal");
    let Seen::Poke(_) = c.log[0] else { panic!("{:?}", c.log) };
}

/// What a new client changes of its group's record is stored once, with what it is told: each flush is time that the next one
/// waits for.
#[tokio::test]
async fn a_new_client_costs_one_flush() {
    let mut world = World::new().await;
    let first = settled(&mut world).await;
    // Its answer comes after its first step.
    world.api.with(|api| api.delay = Duration::from_millis(3));
    let flushes = |world: &World| world.metrics().cvr_flush_seconds.get_sample_count();
    let mut least = u64::MAX;
    for n in 0..10 {
        let before = flushes(&world);
        let mut c = world.connect(&format!("new {n}"), "c1", Store::default(), init(&[put("mine", 60_000)]));
        c.until("the query", |s| s.got.contains("mine")).await;
        least = least.min(flushes(&world) - before);
        assert_eq!(c.store.rows, first.store.rows);
        c.cut();
    }
    assert_eq!(least, 1);
}
