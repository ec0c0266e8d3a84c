//! Whoever is not known to be let in changes nothing for those who are.

use std::time::Duration;

use serde_json::json;

use crate::client::{Store, del, put};
use crate::cluster::{Cluster, rehomed};
use crate::data::all;
use crate::queries::failure;
use crate::sync::A_WHILE;
use crate::world::{World, again, context, init};

const RECORD: &str = "SELECT owner || ' ' || epoch || ' ' || record FROM cvr.groups WHERE id = 'g'";

#[tokio::test]
async fn a_stranger_takes_no_group_from_its_node_nor_from_its_clients() {
    let mut cluster = Cluster::new(2).await;
    cluster.api().ask("mine", all("issue").by("owner", "a"));
    cluster.issue("i1", "a", 1).await;
    let mut c = cluster.nodes[0].world.connect("g", "c1", Store::default(), init(&[put("mine", 60_000)]));
    c.until("the query", |s| s.got.contains("mine") && s.rows.len() == 1).await;
    c.silent(A_WHILE).await;
    let before = cluster.text(RECORD).await;
    // Strangers who know all ids and the cookie, while the API server thinks and after it has refused them.
    cluster.api().with(|api| {
        api.validation_failure = Some(failure(401));
        api.delay = Duration::from_millis(300);
    });
    let mut strangers = Vec::new();
    for n in [1, 0] {
        let mut hostile = again(&[del("mine")]);
        hostile["activeClients"] = json!(["s"]);
        hostile["deleted"] = json!({ "clientIDs": ["c1"] });
        let stranger = cluster.nodes[n].world.connect("g", "s", c.store.clone(), hostile);
        stranger.change(json!([{ "op": "clear" }]));
        stranger.delete_clients(&["c1"]);
        let silent = cluster.nodes[n].world.socket("g", "t", c.store.clone(), None, 1 << 20);
        strangers.push((stranger, silent));
    }
    c.silent(Duration::from_millis(150)).await;
    assert_eq!(cluster.text(RECORD).await, before, "nothing is claimed for those who are not known");
    for (stranger, silent) in &mut strangers {
        let (error, close) = stranger.refused().await;
        assert_eq!(
            (error["kind"].as_str(), error["status"].as_i64(), close),
            (Some("TransformFailed"), Some(401), None)
        );
        assert_eq!(stranger.log.len(), 2, "and nothing else");
        silent.silent(Duration::ZERO).await;
    }
    c.silent(A_WHILE).await;
    assert_eq!(cluster.text(RECORD).await, before);
    for n in [0, 1] {
        assert_eq!((cluster.metric(n).take_overs.get(), cluster.metric(n).cvr_flushes_fenced.get()), (0, 0));
    }
    // The owner serves on; a client that is known is let in elsewhere.
    cluster.issue("i2", "a", 1).await;
    c.until("the row", |s| s.rows.len() == 2).await;
    cluster.api().with(|api| (api.validation_failure, api.delay) = (None, Duration::ZERO));
    let mut known = cluster.nodes[1].world.connect("g", "c2", c.store.clone(), again(&[]));
    assert!(known.poke().await.parts.is_empty());
    assert_eq!(rehomed(&c.refused().await.0), 0);
}

#[tokio::test]
async fn credentials_that_are_replaced_at_the_door_are_judged_anew() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.api.ask("r", all("comment"));
    world.issue("i1", "a", 1).await;
    world.api.with(|api| {
        api.failing_user = Some(("old".into(), failure(401)));
        api.delay = Duration::from_millis(100);
    });
    let mut c = world.connect_as("g", "c", Store::default(), init(&[put("q", 1000)]), Some("old"));
    c.update_auth(context(Some("new")));
    c.change(json!([put("r", 1000)]));
    c.until("what it asked for, in order", |s| s.got.contains("q") && s.desired["c"].len() == 2).await;
    // Good ones that are replaced by bad ones let nobody in.
    let mut d = world.connect_as("h", "d", Store::default(), init(&[put("q", 1000)]), Some("new"));
    d.update_auth(context(Some("old")));
    assert_eq!(d.refused().await.0["status"], 401);
    assert_eq!(d.log.len(), 2);
}

#[tokio::test]
async fn who_waits_at_the_door_of_a_node_that_leaves_is_sent_on() {
    let mut world = World::new().await;
    world.api.with(|api| api.delay = Duration::from_secs(600));
    let mut c = world.connect("g", "c", Store::default(), init(&[]));
    let mut silent = world.socket("g", "d", Store::default(), None, 1 << 20);
    world.drain().await;
    for client in [&mut c, &mut silent] {
        let (error, close) = client.refused().await;
        assert!(rehomed(&error) <= 1_000, "{error}");
        assert_eq!(close.map(|(code, _)| code), Some(1001));
    }
}

#[tokio::test]
async fn ids_that_no_database_stores_stop_nobody_else() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    // Random enough that it cannot be stored compressed.
    let long: String =
        (0..4_000u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8 % 26)).collect();
    for id in ["a\0b", &long] {
        let mut hostile = world.connect(id, "c", Store::default(), init(&[put("q", 1000)]));
        assert_eq!(hostile.refused().await.0["kind"], "InvalidConnectionRequest");
    }
    // Ids of clients and queries are part of a text that can say anything.
    let mut odd = world.connect("g\u{1}\u{10ffff}\"'", "c\0\"", Store::default(), init(&[put("q", 1000)]));
    odd.until("q", |s| s.got.contains("q")).await;
    let mut c = world.connect(&"g".repeat(1024), "c", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
}

#[tokio::test]
async fn only_who_is_known_and_of_the_groups_user_is_let_in() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    let admitted = |world: &World| world.admitted.lock().unwrap().get(&("g".to_owned(), "c".to_owned())).copied();
    let mut c = world.connect_as("g", "c", Store::default(), init(&[put("q", 1000)]), Some("u"));
    c.until("q", |s| s.got.contains("q")).await;
    assert_eq!(admitted(&world), Some(c.connection));
    // Credentials that are refused, and good ones of somebody else: the client that is connected stays.
    world.api.with(|api| api.failing_user = Some(("bad".into(), failure(401))));
    let mut refused = world.connect_as("g", "c", c.store.clone(), again(&[]), Some("bad"));
    assert_eq!(refused.refused().await.0["status"], 401);
    let mut foreign = world.connect_as("g", "c", c.store.clone(), again(&[]), Some("v"));
    assert_eq!(foreign.refused().await.0["kind"], "Unauthorized");
    assert_eq!(admitted(&world), Some(c.connection));
    world.issue("i2", "a", 1).await;
    c.until("the row", |s| s.rows.len() == 2).await;
    // The client itself, on a newer socket.
    let mut back = world.connect_as("g", "c", c.store.clone(), again(&[]), Some("u"));
    assert!(back.poke().await.parts.is_empty());
    assert_eq!(admitted(&world), Some(back.connection));
    world.issue("i3", "a", 1).await;
    back.until("the row", |s| s.rows.len() == 3).await;
    assert!(c.outbox.recv().await.is_none(), "the older one is let go of");
}

#[tokio::test]
async fn a_cookie_that_is_none_makes_its_client_start_over() {
    let world = World::new().await;
    for cookie in ["nonsense", "00:01:02", "", "zz", "-1"] {
        let store = Store { cookie: Some(cookie.into()), ..Store::default() };
        let mut client = world.connect("g", "c", store, again(&[]));
        assert_eq!(client.refused().await.0["kind"], "InvalidConnectionRequestBaseCookie", "{cookie}");
    }
}
