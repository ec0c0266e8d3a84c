//! What a group's clients want: overlaps, lifetimes, deleted clients, answers of the API server.

use std::time::Duration;

use protocol::error::{ErrorBody, Failure, TransformFailed};
use protocol::up::{QueryDefinition, UpQueryOp};
use serde_json::json;

use crate::client::{Seen, Store, del, put};
use crate::data::all;
use crate::sync::A_WHILE;
use crate::world::{Reply, World, again, context, init};

#[tokio::test]
async fn a_row_of_two_queries_is_sent_once_and_leaves_with_the_last() {
    let mut world = World::new().await;
    world.api.ask("owner", all("issue").by("owner", "a"));
    world.api.ask("open", all("issue").by("open", true));
    // The same AST under another hash: one materialisation, two holders.
    world.api.ask("twin", all("issue").by("owner", "a"));
    world.issue("both", "a", 2).await;
    world.issue("owned", "a", 1).await;
    world.issue("opened", "b", 2).await;
    let hashes = [put("owner", 0), put("open", 0), put("twin", 0)];
    let mut c = world.connect("g", "c1", Store::default(), init(&hashes));
    let pokes = c.until("all", |s| s.got.len() == 3).await;
    let mut puts: Vec<String> = pokes.iter().flat_map(|p| p.keys("put")).collect();
    puts.sort();
    assert_eq!(puts, [r#"issue/"both""#, r#"issue/"opened""#, r#"issue/"owned""#], "each once");

    // One change, one operation, though three queries have the row.
    world.issue("both", "a", 4).await;
    assert_eq!(c.poke().await.keys("put"), [r#"issue/"both""#]);
    // Leaves `open`, stays in `owner`: not deleted.
    world.issue("both", "a", 5).await;
    let poke = c.poke().await;
    assert_eq!((poke.keys("put"), poke.keys("del").len()), (vec![r#"issue/"both""#.to_owned()], 0));
    world.issue("both", "a", 6).await;
    c.poke().await;

    c.change(json!([del("owner")]));
    let pokes = c.until("owner is gone", |s| s.got.len() == 2).await;
    assert!(pokes.iter().all(|p| p.rows().is_empty()), "its twin has every row: {pokes:?}");
    c.change(json!([del("twin")]));
    let pokes = c.until("twin is gone", |s| s.got.len() == 1).await;
    assert_eq!(pokes.iter().flat_map(|p| p.keys("del")).collect::<Vec<_>>(), [r#"issue/"owned""#]);
    assert_eq!(c.store.rows, world.expected([&all("issue").by("open", true)]));
    // The row moves from no query's result: silence.
    world.issue("owned", "a", 3).await;
    c.silent(A_WHILE).await;
}

#[tokio::test]
async fn a_twin_that_arrives_with_a_change_hides_none_of_it() {
    let mut world = World::new().await;
    for hash in 0..8 {
        world.api.ask(&format!("q{hash}"), all("issue").by("owner", "a"));
    }
    world.api.ask("comments", all("comment"));
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q0", 0), put("comments", 0)]));
    c.until("q0", |s| s.got.len() == 2).await;
    for hash in 1..8 {
        for n in 0..12 {
            world.issue(&format!("i{n}"), "a", n).await;
        }
        c.change(json!([put(&format!("q{hash}"), 0)]));
        for n in 0..12 {
            world.delete("issue", json!({"id": format!("i{n}")})).await;
        }
        let twins = hash + 2;
        c.until("its twin, and no row", |s| s.got.len() == twins && s.rows.is_empty()).await;
    }
}

#[tokio::test]
async fn lifetimes() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 700)]));
    c.until("q", |s| s.got.contains("q")).await;
    // Wanted again before it expires: it stays, without a row sent.
    c.change(json!([del("q")]));
    assert_eq!(c.poke().await.desired("c1"), [del("q")]);
    let calls = world.metrics().hydrations.get();
    c.change(json!([put("q", 700)]));
    let poke = c.poke().await;
    assert!(poke.rows().is_empty() && poke.got().is_empty());
    c.silent(Duration::from_millis(1100)).await;
    assert_eq!(world.metrics().hydrations.get(), calls);
    // The same wish again changes nothing.
    c.change(json!([put("q", 700), put("q", 3)]));
    c.silent(A_WHILE).await;
    // It expires, not before its time. Rows that changed in between reach the client until then.
    c.change(json!([del("q")]));
    let at = tokio::time::Instant::now();
    c.poke().await;
    world.issue("i2", "a", 1).await;
    assert_eq!(c.poke().await.keys("put"), [r#"issue/"i2""#]);
    c.until("the end", |s| s.got.is_empty()).await;
    assert!(at.elapsed() >= Duration::from_millis(690), "{:?}", at.elapsed());
    assert!(c.store.rows.is_empty());
    // The clock stands still while nobody is connected.
    c.change(json!([put("q", 900)]));
    c.until("q", |s| s.got.contains("q")).await;
    c.change(json!([del("q")]));
    c.poke().await;
    let store = c.cut();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let mut c = world.connect("g", "c1", store, again(&[]));
    assert!(c.poke().await.got().is_empty(), "still there");
    c.until("the end", |s| s.got.is_empty() && s.rows.is_empty()).await;
    // `clear` skips the grace period.
    c.change(json!([put("q", 60_000)]));
    c.until("q", |s| s.got.contains("q")).await;
    c.change(json!([{"op": "clear"}]));
    c.until("the end", |s| s.got.is_empty() && s.rows.is_empty()).await;
}

#[tokio::test]
async fn a_query_that_expires_in_the_step_of_a_change_takes_all_its_rows_along() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue").by("owner", "a"));
    world.issue("i1", "a", 1).await;
    world.issue("i2", "a", 1).await;
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 0)]));
    c.until("q", |s| s.got.contains("q")).await;
    c.change(json!([del("q")]));
    c.poke().await;
    // A row leaves the result. The views see that when the query expires, in the next tick, and wait for the batch.
    let change = world.put("issue", crate::world::issue("i1", "b", 1));
    let batch = world.commit(vec![change]);
    c.silent(Duration::from_millis(500)).await;
    world.publish(batch).await;
    c.until("the end", |s| s.got.is_empty()).await;
    assert!(c.store.rows.is_empty(), "{:?}", c.store.rows);
}

#[tokio::test]
async fn a_query_that_is_replaced_in_the_step_of_a_change_leaves_no_row_behind() {
    let mut world = World::new().await;
    let owners = ["a", "b"];
    world.api.ask("q", all("issue").by("owner", owners[0]));
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 0)]));
    c.until("q", |s| s.got.contains("q")).await;
    for round in 1..80 {
        let (now, next) = (owners[(round + 1) % 2], owners[round % 2]);
        for n in 0..8 {
            world.issue(&format!("i{n}"), now, n).await;
        }
        let expected = world.expected([&all("issue").by("owner", now)]);
        c.until("the rows", |s| s.rows == expected).await;
        world.api.ask("q", all("issue").by("owner", next));
        c.update_auth(context(None));
        // Rows leave the old result while the new one takes its place.
        for n in 0..8 {
            world.issue(&format!("i{n}"), "nobody", n).await;
        }
        c.change(json!([put("marker", 0)]));
        c.message_of("transformError").await;
        c.until("nothing", |s| s.rows.is_empty()).await;
    }
}

#[tokio::test]
async fn clients_are_deleted_for_everybody() {
    let world = World::new().await;
    world.api.ask("q", all("issue"));
    world.api.ask("r", all("comment"));
    let mut a = world.connect("g", "a", Store::default(), init(&[put("q", 0)]));
    a.until("q", |s| s.got.contains("q")).await;
    let mut b = world.connect("g", "b", Store::default(), init(&[put("r", 0)]));
    b.until("both", |s| s.got.len() == 2).await;
    a.until("r", |s| s.got.len() == 2).await;
    b.delete_clients(&["a", "never-heard-of"]);
    for c in [&mut a, &mut b] {
        assert_eq!(c.message_of("deleteClients").await["clientIDs"], json!(["a", "never-heard-of"]));
        c.until("q is gone", |s| !s.got.contains("q") && s.desired["a"].is_empty()).await;
    }
    b.delete_clients(&["b"]);
    assert_eq!(b.refused().await.0["kind"], "Internal");
    drop(b);
    // Whoever is not listed by a page that knows all pages is deleted, without an acknowledgement.
    let body = json!({"desiredQueriesPatch": [put("q", 0)], "activeClients": ["c", "a"], "clientSchema": crate::data::client_schema(crate::data::Keys::Usual)});
    let mut c = world.connect("g", "c", Store::default(), body);
    c.until("q alone", |s| s.got.len() == 1 && s.got.contains("q")).await;
    a.until("q alone", |s| s.got.len() == 1 && s.got.contains("q")).await;
    assert!(a.store.desired["b"].is_empty());
    // With initConnection too.
    let body = json!({"desiredQueriesPatch": [], "deleted": {"clientIDs": ["c"]}, "clientSchema": crate::data::client_schema(crate::data::Keys::Usual)});
    let mut d = world.connect("g", "d", Store::default(), body);
    assert_eq!(d.message_of("deleteClients").await["clientIDs"], json!(["c"]));
    assert_eq!(a.message_of("deleteClients").await["clientIDs"], json!(["c"]));
}

pub fn failure(status: u16) -> ErrorBody {
    ErrorBody::from(TransformFailed {
        failure: Failure::http(status, "no"),
        message: "the API server said no".into(),
        details: None,
        query_ids: vec![],
    })
}

#[tokio::test]
async fn one_query_fails_and_the_others_do_not() {
    let mut world = World::new().await;
    world.api.ask("good", all("issue").by("owner", "a"));
    world.api.ask("turning", all("issue").by("owner", "b"));
    world.api.set("bad", Reply::Refuse("not allowed".into()));
    world.api.set("lost", Reply::Omit);
    world.api.set("nonsense", Reply::Ast(json!({"table": "no such table"})));
    world.issue("i1", "a", 1).await;
    world.issue("i2", "b", 1).await;
    let all_of_them = ["good", "turning", "bad", "lost", "nonsense"].map(|h| put(h, 1000));
    let mut c = world.connect("g", "c1", Store::default(), init(&all_of_them));
    let mut errors = Vec::new();
    while errors.len() < 3 || c.store.got.len() < 2 {
        match c.next().await {
            Seen::Message(tag, body) if tag == "transformError" => errors.extend(body.as_array().unwrap().clone()),
            Seen::Poke(_) => {}
            other => panic!("{other:?}"),
        }
    }
    errors.sort_by_key(|e| e["id"].to_string());
    let ids: Vec<&str> = errors.iter().map(|e| e["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["bad", "lost", "nonsense"]);
    assert_eq!(errors[0]["message"], "not allowed");
    assert!(errors[2]["message"].as_str().unwrap().contains("no such table"), "{:?}", errors[2]);
    assert_eq!(c.store.rows.len(), 2);
    // A query that was fine is refused later: it goes, with its rows, and the connection stays.
    world.api.set("turning", Reply::Refuse("no more".into()));
    c.update_auth(context(None));
    let error = c.message_of("transformError").await;
    assert_eq!(error[0]["id"], "turning");
    c.until("its rows are gone", |s| s.got.len() == 1 && s.rows.len() == 1).await;
    // Tried again after it was mended.
    world.api.ask("turning", all("issue").by("owner", "b"));
    c.change(json!([put("turning", 1000)]));
    c.until("it is back", |s| s.got.len() == 2 && s.rows.len() == 2).await;
}

#[tokio::test]
async fn the_whole_call_fails() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.api.ask("r", all("comment"));
    world.issue("i1", "a", 1).await;
    let mut kept = world.connect_as("g", "kept", Store::default(), init(&[put("q", 1000)]), Some("u"));
    kept.until("q", |s| s.got.contains("q")).await;
    // During a client's own message: it is told, and its connection ends.
    world.api.with(|api| api.failing_user = Some(("u".into(), failure(500))));
    let mut c = world.connect_as("g", "c", Store::default(), init(&[put("r", 1000)]), Some("u"));
    let (error, close) = c.refused().await;
    assert_eq!((error["kind"].as_str(), error["status"].as_i64()), (Some("TransformFailed"), Some(500)));
    assert_eq!(error["origin"], "zeroCache");
    assert_eq!(close, None);
    assert!(c.store.cookie.is_none(), "it was sent nothing else");
    // Others go on, and what it wanted is not wanted by anybody.
    world.api.with(|api| api.failing_user = None);
    assert!(kept.store.desired.keys().eq(["kept"]));
    kept.change(json!([put("r", 2000)]));
    kept.until("r", |s| s.got.contains("r")).await;
    world.issue("i2", "a", 1).await;
    kept.until("i2", |s| s.rows.len() == 2).await;
}

#[tokio::test]
async fn bad_credentials_get_the_error_and_nothing_else() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    let mut good = world.connect("g", "good", Store::default(), init(&[put("q", 1000)]));
    good.until("q", |s| s.got.contains("q")).await;
    world.api.with(|api| {
        api.validation_failure = Some(failure(401));
        api.delay = Duration::from_millis(50);
    });
    let mut bad = world.connect("g", "bad", Store::default(), init(&[put("q", 1000)]));
    world.issue("i2", "a", 1).await;
    let (error, _) = bad.refused().await;
    assert_eq!((error["kind"].as_str(), error["status"].as_i64()), (Some("TransformFailed"), Some(401)));
    assert_eq!(bad.log.len(), 2);
    // A new group of someone unknown leaves nothing behind.
    let mut stranger = world.connect("strangers", "bad", Store::default(), init(&[put("q", 1000)]));
    stranger.refused().await;
    tokio::time::sleep(A_WHILE).await;
    let known = world.cvr().await.query(&format!("SELECT id FROM \"{}\".groups", world.cvr_schema), &[]).await.unwrap();
    assert_eq!(known.iter().map(|r| r.get::<_, String>(0)).collect::<Vec<_>>(), ["g"]);
    good.until("i2", |s| s.rows.len() == 2).await;
    // New credentials that are bad end the connection, too.
    good.update_auth(context(None));
    let (error, _) = loop {
        match good.next().await {
            Seen::Poke(_) => {}
            Seen::Message(tag, body) => break (body, tag),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error["status"], 401);
}

#[tokio::test]
async fn pokes_go_on_while_new_credentials_are_checked() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    let mut c = world.connect("g", "c", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
    world.api.with(|api| api.delay = Duration::from_secs(600));
    c.update_auth(context(None));
    world.issue("i2", "a", 1).await;
    c.until("i2", |s| s.rows.len() == 2).await;
    // The answers of an older request that hangs are not waited for.
    world.api.with(|api| api.delay = Duration::ZERO);
    world.api.ask("q", all("issue").by("owner", "b"));
    c.update_auth(context(None));
    c.until("the new result", |s| s.rows.is_empty()).await;
}

#[tokio::test]
async fn another_user_is_turned_away() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    let mut c = world.connect_as("g", "c", Store::default(), init(&[put("q", 1000)]), Some("u1"));
    c.until("q", |s| s.got.contains("q")).await;
    for user in [Some("u2"), None] {
        let mut other = world.connect_as("g", "o", Store::default(), init(&[put("r", 0)]), user);
        let (error, close) = other.refused().await;
        assert_eq!(error["kind"], "Unauthorized");
        assert_eq!(close, Some((3000, error["message"].as_str().unwrap().to_owned())));
        assert_eq!(other.log.len(), 2);
    }
    assert!(c.store.desired.keys().eq(["c"]));
    c.silent(A_WHILE).await;
    c.update_auth(context(Some("u2")));
    assert_eq!(c.refused().await.1.unwrap().0, 3000);
}

#[tokio::test]
async fn the_one_who_asked_goes_before_the_answer() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    world.api.with(|api| api.delay = Duration::from_millis(100));
    let first = world.connect("g", "c1", Store::default(), init(&[put("q", 1000)]));
    let mut second = world.connect("g", "c2", Store::default(), init(&[put("q", 1000)]));
    tokio::time::sleep(Duration::from_millis(20)).await;
    first.cut();
    second.until("q", |s| s.got.contains("q") && s.rows.len() == 1).await;
    // Over and over: somebody's answer counts at last.
    world.api.ask("r", all("comment"));
    let mut third = world.connect("h", "c0", Store::default(), init(&[put("r", 1000)]));
    let knock = async {
        for n in 0.. {
            tokio::time::sleep(Duration::from_millis(60)).await;
            world.connect("h", &format!("c{}", n + 1), Store::default(), init(&[put("r", 1000)])).cut();
        }
    };
    tokio::select! {
        () = knock => {}
        _ = third.until("r", |s| s.got.contains("r")) => {}
    }
}

#[tokio::test]
async fn maintenance_that_fails_leaves_things_as_they_are() {
    let mut world = World::stopped(&crate::world::shared().url("postgres"));
    world.revalidate = Duration::from_millis(250);
    world.retransform = Duration::from_millis(250);
    world.start().await;
    world.api.ask("q", all("issue").by("owner", "a"));
    world.issue("i1", "a", 1).await;
    world.issue("i2", "b", 1).await;
    let mut c = world.connect("g", "c", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
    world.api.with(|api| api.failure = Some(failure(503)));
    c.silent(Duration::from_millis(900)).await;
    world.api.set("q", Reply::Omit);
    world.api.with(|api| api.failure = None);
    c.silent(Duration::from_millis(900)).await;
    // Another AST is taken over without a message of the client.
    world.api.ask("q", all("issue").by("owner", "b"));
    c.until("the new rows", |s| s.rows.len() == 1 && s.rows.contains_key(&("issue".into(), json!("i2").to_string())))
        .await;
    world.api.with(|api| api.failure = Some(failure(401)));
    assert_eq!(c.refused().await.0["status"], 401);
}

#[tokio::test]
async fn without_a_query_url_named_queries_stay_without_result() {
    let mut world = World::new().await;
    world.api.ask("q", all("issue"));
    world.issue("i1", "a", 1).await;
    let mut c = world.connect("g", "c", Store::default(), init(&[put("q", 1000)]));
    c.until("q", |s| s.got.contains("q")).await;
    let store = c.cut();
    world.kill();
    world.api.with(|api| api.unconfigured = true);
    world.start().await;
    let mut c = world.connect("g", "c", store, again(&[]));
    c.until("nothing", |s| s.got.is_empty() && s.rows.is_empty()).await;
    assert_eq!(c.store.desired["c"].len(), 1);
}

#[tokio::test]
async fn limits() {
    let world = World::new().await;
    world.api.with(|api| api.unconfigured = true);
    let mut c = world.connect("g", "c", Store::default(), init(&[]));
    c.poke().await;
    let op = |n: usize| UpQueryOp::Put {
        hash: format!("h{n}"),
        ttl: None,
        query: Some(QueryDefinition::Named { name: "q".into(), args: vec![] }),
    };
    c.desire((0..5_000).map(op).collect());
    c.poke().await;
    c.desire(vec![op(0)]);
    c.desire(vec![op(5_000)]);
    let (error, _) = c.refused().await;
    assert!(error["message"].as_str().unwrap().contains("5000 queries"), "{error}");
    let clients: Vec<_> =
        (0..5_000).map(|n| world.connect("many", &format!("tab{n}"), Store::default(), init(&[]))).collect();
    let mut one_too_many = world.connect("many", "one too many", Store::default(), init(&[]));
    let (error, _) = one_too_many.refused().await;
    assert!(error["message"].as_str().unwrap().contains("5000 clients"), "{error}");
    drop(clients);
    // A hash that is new needs a definition.
    let mut c = world.connect("h", "c", Store::default(), init(&[json!({"op": "put", "hash": "x"})]));
    assert_eq!(c.refused().await.0["kind"], "Internal");
}
