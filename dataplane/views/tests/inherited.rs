//! Client groups that Rocicorp's server knew go on here, from whatever cookie it gave their clients.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value as Json, json};

use crate::client::{Client, Seen, Store, put};
use crate::cluster::{eventually, quick, rehomed};
use crate::data::{Ask, Keys, all};
use crate::reference::{Reference, store};
use crate::rules::{claim, column, connect, reading, simple};
use crate::sync::A_WHILE;
use crate::world::{Reply, World, acct, again, init, issue, mine, shared};

/// A world that does not run yet, with the tables of the newest release beside it.
async fn beside() -> (World, Reference) {
    beside_shape(17).await
}

async fn beside_shape(shape: i32) -> (World, Reference) {
    let world = World::stopped(&shared().url("postgres"));
    let reference = Reference::beside(&world, shape).await;
    (world, reference)
}

fn issues() -> Ask {
    all("issue").by("owner", "a")
}

fn held(id: &str, n: i64) -> (&'static str, String, Json) {
    ("issue", format!("{id:?}"), issue(id, "a", n))
}

fn holding(cookie: &str, rows: &[(&'static str, String, Json)]) -> Store {
    let rows: Vec<(&str, &str, Json)> = rows.iter().map(|(t, k, row)| (*t, k.as_str(), row.clone())).collect();
    store(cookie, &["q"], &rows)
}

fn counted(world: &World) -> [u64; 2] {
    ["continued", "started_over"].map(|outcome| world.metrics().inherited.with_label_values(&[outcome]).get())
}

/// Group `g` at cookie `08:01`: it has `same`, `changed` and `gone`, and had `before`. Upstream has `same`, another `changed`,
/// and `new`.
async fn usual(shape: i32) -> (World, Reference) {
    let (mut world, reference) = beside_shape(shape).await;
    world.api.ask("q", issues());
    reference.group("g", "08:01").await;
    reference.query("g", "q", "03").await;
    for (id, since, is_held) in
        [("same", "03", true), ("changed", "05", true), ("gone", "08:01", true), ("before", "07", false)]
    {
        reference.row("g", "issue", json!({"id": id}), since, is_held).await;
    }
    for (id, n) in [("same", 1), ("changed", 20), ("new", 3)] {
        world.issue(id, "a", n).await;
    }
    world.start().await;
    (world, reference)
}

async fn caught_up(world: &World, client: &str, store: Store) -> Client {
    let base = store.cookie.clone();
    let mut c = world.connect("g", client, store, again(&[]));
    let poke = c.poke().await;
    assert_eq!(poke.base, base);
    assert_eq!(c.store.rows, world.expected([&issues()]), "from {base:?}");
    assert!(c.store.got.contains("q"));
    c
}

#[tokio::test]
async fn a_client_with_any_cookie_is_sent_the_difference_at_once() {
    for shape in [16, 17] {
        let (mut world, reference) = usual(shape).await;
        let newest = holding("08:01", &[held("same", 1), held("changed", 2), held("gone", 4)]);
        let older = holding("06", &[held("same", 1), held("changed", 2), held("before", 5)]);
        let oldest = holding("00:01", &[]);
        let mut past = Vec::new();
        for store in [&newest, &older, &oldest] {
            let c = caught_up(&world, "c1", store.clone()).await;
            past.push(c.cut());
        }
        // A page that is new in the browser, and one whose database is lost.
        caught_up(&world, "c3", newest.clone()).await.cut();
        let mut c = world.connect("g", "c4", Store::default(), again(&[]));
        c.until("the rows", |s| s.got.contains("q")).await;
        assert_eq!(c.store.rows, world.expected([&issues()]));
        past.push(c.cut());
        assert_eq!(counted(&world), [1, 0]);
        assert!(reference.is_tombstone("g").await);
        // From now on it is a group like others, and those who did not come yet can still come.
        world.kill();
        world.start().await;
        for store in past {
            let poke = world.connect("g", "c1", store, again(&[])).poke().await;
            assert!(poke.rows().is_empty(), "{poke:?}");
        }
        world.issue("later", "a", 1).await;
        world.delete("issue", issue("same", "a", 1)).await;
        for store in [newest, older, oldest] {
            caught_up(&world, "c2", store).await;
        }
        assert_eq!(counted(&world), [0, 0]);
    }
}

/// As the reference's own clean-up would.
#[tokio::test]
async fn what_was_taken_over_is_cleared_away() {
    let (mut world, reference) = usual(17).await;
    reference.group("h", "08").await;
    world.kill();
    world.limits.merge_interval = std::time::Duration::from_millis(100);
    world.start().await;
    caught_up(&world, "c1", holding("08:01", &[])).await.cut();
    eventually("an empty table", async || {
        let left = r#"SELECT concat_ws(' ', 'left', (SELECT string_agg(DISTINCT "clientGroupID", ',') FROM {s}.rows),
            (SELECT string_agg(DISTINCT "clientGroupID", ',') FROM {s}.queries),
            (SELECT string_agg(DISTINCT "clientGroupID", ',') FROM {s}.clients))"#;
        reference.text(left).await.as_deref() == Some("left h h h")
    })
    .await;
    assert!(reference.is_tombstone("g").await);
    caught_up(&world, "c1", holding("06", &[held("before", 1)])).await;
}

#[tokio::test]
async fn rows_never_vanish_while_queries_are_on_their_way() {
    let (world, _reference) = usual(17).await;
    world.api.with(|api| api.delay = A_WHILE);
    let mut c = world.connect("g", "c1", holding("08:01", &[held("same", 1), held("gone", 4)]), again(&[put("r", 1)]));
    world.api.ask("r", all("comment"));
    let poke = c.poke().await;
    assert_eq!(poke.keys("del"), [r#"issue/"before""#, r#"issue/"gone""#]);
    assert_eq!(c.store.rows, world.expected([&issues()]));
}

#[tokio::test]
async fn queries_go_on_as_they_were_desired() {
    let (mut world, reference) = beside().await;
    for (name, owner) in [("q", "a"), ("expired", "b"), ("resting", "c"), ("new", "d"), ("own", "e")] {
        world.api.ask(name, all("issue").by("owner", owner));
        world.issue(name, owner, 1).await;
    }
    world
        .upsert("zero_0.clients", json!({"clientGroupID": "g", "clientID": "c1", "lastMutationID": 7, "userID": null}))
        .await;
    reference.group("g", "08:01").await;
    reference.query("g", "q", "03").await;
    for (name, ttl_ms, since_ms) in [("expired", 100, 900.25), ("resting", 500_000, 500.0)] {
        reference.query_with("g", name, json!({"patchVersion": "04"})).await;
        let inactive = json!({"patchVersion": "05", "deleted": true, "ttlMs": ttl_ms, "inactivatedAtMs": since_ms});
        reference.desire("g", "c2", name, inactive).await;
    }
    reference.query_with("g", "new", json!({})).await;
    reference.desire("g", "c2", "new", json!({"patchVersion": "08:01", "ttlMs": null})).await;
    reference.query_with("g", "dropped", json!({"patchVersion": "06", "deleted": true})).await;
    for name in ["q", "expired", "resting", "dropped"] {
        reference.row("g", "issue", json!({"id": name}), "04", name != "dropped").await;
    }
    world.start().await;
    let names = ["q", "expired", "resting", "dropped"];
    let rows: Vec<_> = names.iter().map(|id| ("issue", format!("{id:?}"), issue(id, "x", 1))).collect();
    let rows: Vec<(&str, &str, Json)> = rows.iter().map(|(t, k, row)| (*t, k.as_str(), row.clone())).collect();
    let mut c = world.connect("g", "c1", store("05", &names, &rows), again(&[]));
    let held = ["a", "c", "d"].map(|owner| all("issue").by("owner", owner));
    let expected = world.expected(&held);
    c.until("what is still wanted", |s| {
        s.got == ["new", "q", "resting"].map(str::to_owned).into() && s.rows == expected
    })
    .await;
    assert_eq!(c.store.lmids, [("c1".to_owned(), 7)].into());
    assert_eq!(c.store.desired["c2"], ["new".to_owned()].into());
    assert_eq!(
        c.store.desired["c1"],
        names.iter().map(|n| (*n).to_owned()).collect(),
        "what is not in the record is left alone"
    );
}

/// Keys as the reference has them, and whether those by which the clients know the rows follow from them.
#[tokio::test]
async fn rows_are_known_by_the_keys_of_the_client_schema() {
    let odd = "\"quoted\" \\ snow ☃ ' \u{1F600}";
    let cases = [
        (Keys::Usual, "label", json!({"a": 7, "b": odd}), Some(json!({"a": 7, "b": odd, "info": null}))),
        (
            Keys::Usual,
            "label",
            json!({"a": -9_007_199_254_740_991_i64, "b": ""}),
            Some(json!({"a": -9_007_199_254_740_991_i64, "b": ""})),
        ),
        (Keys::Usual, "acct", json!({"id": 5}), Some(acct(5, "a", 50))),
        (Keys::Other, "acct", json!({"num": 50}), Some(acct(5, "a", 50))),
        (Keys::Other, "acct", json!({"id": 5, "num": 50}), Some(acct(5, "a", 50))),
        // Which row it was is not known.
        (Keys::Other, "acct", json!({"id": 5}), None),
        (Keys::Usual, "acct", json!({"id": "5"}), None),
        (Keys::Usual, "acct", json!({"id": 5.5}), None),
        (Keys::Usual, "acct", json!({"id": null}), None),
        (Keys::Usual, "acct", json!([5]), None),
        (Keys::Usual, "issue", json!({"id": 5}), None),
    ];
    let (mut world, reference) = beside().await;
    world.start().await;
    for table in ["label", "acct", "issue"] {
        world.api.ask(table, all(table));
    }
    for (n, (keys, table, key, row)) in cases.into_iter().enumerate() {
        let group = format!("g{n}");
        reference.group_by(&group, "08", keys).await;
        reference.query(&group, table, "03").await;
        reference.row(&group, table, key, "03", true).await;
        // Of a table that clients do not know any more.
        reference.row(&group, "dropped", json!({"id": 1}), "03", true).await;
        let text = row.as_ref().map(|row| crate::client::key_text(keys, table, row)).unwrap_or_default();
        let rows: Vec<(&str, &str, Json)> = row.iter().map(|row| (table, text.as_str(), row.clone())).collect();
        let mut c = world.connect(&group, "c1", store("08", &[table], &rows), again(&[]));
        c.keys = keys;
        if row.is_none() {
            assert_eq!(c.refused().await.0["kind"], "ClientNotFound", "case {n}");
            continue;
        }
        let poke = c.poke().await;
        assert_eq!(poke.keys("del"), [format!("{table}/{text}")], "case {n}");
        assert!(c.store.rows.is_empty(), "case {n}");
    }
    assert_eq!(counted(&world), [5, 6]);
}

/// A group that has the one issue that there is.
async fn damaged(reference: &Reference, group: &str, damage: &str) {
    reference.group(group, "08").await;
    reference.query(group, "q", "03").await;
    reference.row(group, "issue", json!({"id": "i"}), "03", true).await;
    reference.run(&damage.replace("{g}", &format!("\"clientGroupID\" = '{group}'"))).await;
}

async fn start_over(world: &World, group: &str, what: &str) -> Store {
    let mut c = world.connect(group, "c1", holding("08", &[held("i", 1)]), again(&[]));
    assert_eq!(c.refused().await.0["kind"], "ClientNotFound", "{what}");
    // Whoever holds nothing goes on, be it in the same group.
    let mut c = world.connect(group, "c1", Store::default(), init(&[put("q", 60_000)]));
    c.until("the rows", |s| s.rows.len() == 1).await;
    c.cut()
}

#[tokio::test]
async fn a_record_that_cannot_be_used_makes_its_clients_start_over() {
    let cases = [
        r#"UPDATE {s}.instances SET version = '07' WHERE {g}"#,
        r#"UPDATE {s}.instances SET version = 'x' WHERE {g}; UPDATE {s}."rowsVersion" SET version = 'x' WHERE {g}"#,
        r#"UPDATE {s}.instances SET version = '2zzz' WHERE {g}; UPDATE {s}."rowsVersion" SET version = '2zzz' WHERE {g}"#,
        r#"DELETE FROM {s}."rowsVersion" WHERE {g}"#,
        r#"UPDATE {s}.instances SET "clientSchema" = NULL WHERE {g}"#,
        r#"UPDATE {s}.instances SET "clientSchema" = '{"tables": []}' WHERE {g}"#,
        r#"UPDATE {s}.instances SET "ttlClock" = 'NaN' WHERE {g}"#,
        r#"UPDATE {s}.queries SET "queryArgs" = NULL WHERE "queryHash" = 'q' AND {g}"#,
        r#"UPDATE {s}.queries SET "queryName" = NULL, "clientAST" = '{"no": "table"}' WHERE "queryHash" = 'q' AND {g}"#,
        r#"UPDATE {s}.queries SET "patchVersion" = '1' WHERE "queryHash" = 'q' AND {g}"#,
        r#"UPDATE {s}.desires SET "patchVersion" = '' WHERE {g}"#,
        r#"UPDATE {s}.desires SET "ttlMs" = -5 WHERE {g}"#,
        r#"UPDATE {s}.rows SET "rowKey" = '"i"' WHERE "table" = 'issue' AND {g}"#,
        r#"INSERT INTO {s}.clients SELECT "clientGroupID", 'many' || n FROM generate_series(1, 6000) n, {s}.instances WHERE {g}"#,
        r#"UPDATE {s}.instances SET deleted = true, version = '00', owner = NULL WHERE {g}"#,
    ];
    let (mut world, reference) = beside().await;
    world.api.ask("q", issues());
    world.issue("i", "a", 1).await;
    world.start().await;
    let mut stores = Vec::new();
    for (n, damage) in cases.iter().enumerate() {
        let group = format!("g{n}");
        damaged(&reference, &group, damage).await;
        stores.push(start_over(&world, &group, damage).await);
        assert!(reference.is_tombstone(&group).await, "{damage}");
    }
    // A tombstone says what it says without being used.
    assert_eq!(counted(&world), [0, cases.len() as u64 - 1]);
    world.kill();
    world.start().await;
    for (n, store) in stores.into_iter().enumerate() {
        let poke = world.connect(&format!("g{n}"), "c1", store, again(&[])).poke().await;
        assert!(poke.rows().is_empty(), "{}: {poke:?}", cases[n]);
    }
}

#[tokio::test]
async fn tables_that_are_not_understood_are_left_alone() {
    let cases = [
        r#"UPDATE {s}."versionHistory" SET "schemaVersion" = 18"#,
        r#"UPDATE {s}."versionHistory" SET "dataVersion" = 15"#,
        r#"DROP TABLE {s}."versionHistory""#,
        r#"ALTER TABLE {s}.desires DROP COLUMN "ttlMs""#,
        r#"ALTER TABLE {s}.instances DROP COLUMN deleted"#,
    ];
    for damage in cases {
        let (mut world, reference) = beside().await;
        world.api.ask("q", issues());
        world.issue("i", "a", 1).await;
        damaged(&reference, "g", damage).await;
        world.start().await;
        let store = start_over(&world, "g", damage).await;
        let [continued, started_over] = counted(&world);
        assert!(continued == 0 && started_over > 0, "{damage}");
        let poke = world.connect("g", "c1", store, again(&[])).poke().await;
        assert!(poke.rows().is_empty(), "{damage}: {poke:?}");
    }
}

#[tokio::test]
async fn a_cookie_ahead_of_the_record_starts_over() {
    let (mut world, _reference) = usual(17).await;
    // What came after the record was written is nowhere.
    for cookie in ["08:02", "09", "0c"] {
        let mut c = world.connect("g", "c1", holding(cookie, &[held("lost", 1)]), again(&[]));
        assert_eq!(c.refused().await.0["kind"], "ClientNotFound", "{cookie}");
    }
    world.kill();
    world.start().await;
    let mut c = world.connect("g", "c1", holding("09", &[held("lost", 1)]), again(&[]));
    assert_eq!(c.refused().await.0["kind"], "ClientNotFound");
    caught_up(&world, "c1", holding("08:01", &[])).await;
}

/// Until the reference has written what it is about to write, and the replica here has what it told clients of.
#[tokio::test]
async fn a_record_that_is_not_complete_yet_is_waited_for() {
    let until = async |world: &World, reference: &Reference, then: &str, store: Store| {
        let mut c = world.connect("g", "c1", store.clone(), again(&[]));
        rehomed(&c.refused().await.0);
        assert!(!reference.is_tombstone("g").await);
        reference.run(then).await;
        store
    };
    let recent = r#"UPDATE {s}.instances SET "lastActive" = now()"#;
    let (mut world, reference) = usual(17).await;
    reference.run(&format!(r#"{recent}; UPDATE {{s}}."rowsVersion" SET version = '07'"#)).await;
    let store = holding("06", &[held("before", 1)]);
    let store = until(&world, &reference, r#"UPDATE {s}."rowsVersion" SET version = '08:01'"#, store).await;
    caught_up(&world, "c1", store).await;
    assert_eq!(counted(&world), [1, 0]);

    let ahead = rows::Version::new(world.version + 10);
    reference.run(r#"UPDATE {s}.instances SET deleted = false, "clientSchema" = '{"tables": {}}' WHERE false"#).await;
    reference.group("h", &ahead.to_string()).await;
    reference.query("h", "q", "03").await;
    reference.run(recent).await;
    let mut c = world.connect("h", "c1", holding("06", &[]), again(&[]));
    rehomed(&c.refused().await.0);
    world.issue("later", "a", 1).await;
    let mut c = world.connect("h", "c1", holding("06", &[]), again(&[]));
    c.poke().await;
    assert_eq!(c.store.rows, world.expected([&issues()]));
}

#[tokio::test]
async fn a_group_that_the_reference_has_served_since_starts_over() {
    let (mut world, reference) = usual(17).await;
    let ours = caught_up(&world, "c1", holding("08:01", &[held("gone", 1)])).await.cut();
    world.kill();
    // It was forgotten there, and made anew by a client without a cookie.
    reference.run(r#"UPDATE {s}.instances SET version = '2abc', deleted = false"#).await;
    world.start().await;
    for store in [ours.clone(), holding("08:01", &[]), ours] {
        let mut c = world.connect("g", "c1", store, again(&[]));
        assert_eq!(c.refused().await.0["kind"], "ClientNotFound");
    }
    assert!(reference.is_tombstone("g").await);
    let mut c = world.connect("g", "c1", Store::default(), init(&[put("q", 60_000)]));
    c.until("the rows", |s| s.rows == world.expected([&issues()])).await;
}

#[tokio::test]
async fn nobody_is_told_anything_before_the_credentials_are_good() {
    let (mut world, reference) = beside().await;
    world.api.set("mine", Reply::Mine);
    for (id, owner) in [(1, "a"), (2, "b")] {
        world.upsert("acct", acct(id, owner, id * 10)).await;
    }
    reference.group("g", "08").await;
    reference.query("g", "mine", "03").await;
    for id in [1, 9] {
        reference.row("g", "acct", json!({"id": id}), "03", true).await;
    }
    world.api.with(|api| api.failing_user = Some(("eve".into(), crate::queries::failure(401))));
    world.start().await;
    let store = store("08", &["mine"], &[("acct", "9", acct(9, "a", 90))]);
    let mut c = world.connect_as("g", "c1", store.clone(), again(&[]), Some("eve"));
    assert!(matches!(c.next().await, Seen::Message(tag, _) if tag == "error"));
    assert!(!reference.is_tombstone("g").await, "a stranger changes nothing");
    // The first user whose credentials are good is the group's, and its rows are that user's.
    let mut c = world.connect_as("g", "c1", store.clone(), again(&[]), Some("a"));
    let poke = c.poke().await;
    assert_eq!(poke.keys("del"), ["acct/9"]);
    assert_eq!(c.store.rows, world.expected([&mine("a")]));
    let mut c = world.connect_as("g", "c2", store, again(&[]), Some("b"));
    assert_eq!(c.refused().await.0["kind"], "Unauthorized");
}

#[tokio::test]
async fn queries_that_clients_defined_go_on_under_the_deployed_rules() {
    let (mut world, reference) = beside().await;
    world.api.with(|api| api.unconfigured = true);
    world.deploy(&reading([("issue", vec![simple(column("owner"), "=", claim("sub"))])])).await;
    for (id, owner) in [("mine", "a"), ("theirs", "b")] {
        world.issue(id, owner, 1).await;
    }
    reference.group("g", "08").await;
    reference
        .query_with("g", "q", json!({"clientAST": all("issue").ast(), "queryName": null, "patchVersion": "03"}))
        .await;
    reference.desire("g", "c1", "q", json!({"patchVersion": "03", "ttlMs": 300_000})).await;
    for id in ["theirs", "gone"] {
        reference.row("g", "issue", json!({"id": id}), "03", true).await;
    }
    world.start().await;
    let store = holding("08", &[("issue", r#""theirs""#.into(), issue("theirs", "b", 1)), held("gone", 1)]);
    let mut c = connect(&world, "g", "c1", store, &again(&[]), &json!({"sub": "a"}));
    c.poke().await;
    assert_eq!(c.store.rows, world.expected([&issues()]));
    assert!(c.store.got.contains("q"));
}

/// Whatever the reference remembers and whatever came after that.
#[tokio::test]
async fn every_client_of_every_record_ends_with_the_present_rows() {
    let (mut world, reference) = beside().await;
    world.api.ask("q", issues());
    let mut rng = StdRng::seed_from_u64(testkit::seed("inherited"));
    for n in 0..10 {
        if rng.random_range(0..3) > 0 {
            world.issue(&format!("i{n}"), ["a", "b"][rng.random_range(0..2)], 50 + n).await;
        }
    }
    world.start().await;
    for round in 0..12 {
        let group = format!("g{round}");
        // What the reference's clients held after each of its versions, and since when each row is as it is.
        let mut snapshots = vec![(Some("00:01".to_owned()), BTreeMap::new())];
        let mut since: BTreeMap<usize, (String, bool)> = BTreeMap::new();
        for version in 1..=8 {
            let mut rows = snapshots.last().map(|(_, rows)| rows.clone()).unwrap_or_default();
            let cookie = if rng.random_range(0..3) == 0 { format!("0{version}:01") } else { format!("0{version}") };
            for _ in 0..rng.random_range(0..4) {
                let id = rng.random_range(0..10);
                let is_held = rng.random_range(0..3) > 0;
                if !is_held && rows.remove(&id).is_none() {
                    continue;
                }
                if is_held {
                    rows.insert(id, version);
                }
                since.insert(id, (cookie.clone(), is_held));
            }
            snapshots.push((Some(cookie), rows));
        }
        snapshots.push((None, BTreeMap::new()));
        let newest = snapshots[8].0.clone().unwrap();
        reference.group(&group, &newest).await;
        reference.query(&group, "q", "01").await;
        for (id, (since, is_held)) in since {
            reference.row(&group, "issue", json!({"id": format!("i{id}")}), &since, is_held).await;
        }
        while !snapshots.is_empty() {
            let (cookie, rows) = snapshots.swap_remove(rng.random_range(0..snapshots.len()));
            let rows: Vec<_> = rows.into_iter().map(|(id, version)| held(&format!("i{id}"), version)).collect();
            let store = Store { cookie: cookie.clone(), ..holding("00", &rows) };
            let mut c = world.connect(&group, ["c1", "c2", "c3"][rng.random_range(0..3)], store, again(&[]));
            c.until("the query", |s| s.got.contains("q") && s.cookie != cookie).await;
            assert_eq!(c.store.rows, world.expected([&issues()]), "round {round} from {cookie:?}");
            c.cut();
        }
        let id = format!("i{}", rng.random_range(0..10));
        let row = world.model["issue"].values().find(|row| row["id"] == *id).cloned();
        match row.filter(|_| rng.random_range(0..2) == 0) {
            Some(row) => world.delete("issue", row).await,
            None => world.issue(&id, ["a", "b"][rng.random_range(0..2)], round).await,
        }
    }
    assert_eq!(counted(&world), [12, 0]);
}

#[tokio::test]
async fn one_of_two_nodes_takes_the_group() {
    let (mut first, reference) = beside().await;
    first.limits = quick();
    let mut second = World::stopped(&shared().url("postgres"));
    (second.limits, second.cvr_schema) = (quick(), first.cvr_schema.clone());
    for world in [&mut first, &mut second] {
        world.api.ask("q", issues());
        world.issue("new", "a", 1).await;
        world.start().await;
    }
    for n in 0..8 {
        let group = format!("g{n}");
        reference.group(&group, "08").await;
        reference.query(&group, "q", "03").await;
        reference.row(&group, "issue", json!({"id": "gone"}), "03", true).await;
        let store = holding("08", &[held("gone", 1)]);
        let mut clients = [&first, &second].map(|world| world.connect(&group, "c1", store.clone(), again(&[])));
        let mut served = 0;
        for c in &mut clients {
            match c.next().await {
                Seen::Poke(poke) => {
                    served += 1;
                    assert_eq!(
                        (poke.keys("del"), poke.keys("put")),
                        (vec![r#"issue/"gone""#.into()], vec![r#"issue/"new""#.into()])
                    );
                }
                Seen::Message(_, error) => drop(rehomed(&error)),
                Seen::Close(_) => panic!("a close without a reason"),
            }
        }
        assert!(served > 0);
    }
    let continued: u64 = [&first, &second].iter().map(|world| counted(world)[0]).sum();
    assert_eq!(continued, 8);
}

#[tokio::test]
async fn many_rows_are_read_in_pieces() {
    let (mut world, reference) = beside().await;
    world.api.ask("q", issues());
    world.issue("row 5", "a", 1).await;
    reference.group("g", "08").await;
    reference.query("g", "q", "03").await;
    let rows = r#"INSERT INTO {s}.rows SELECT 'g', '', 'issue', jsonb_build_object('id', 'row ' || n), '01', '03',
        CASE WHEN n % 2 = 0 THEN '{"q": 1}'::jsonb END FROM generate_series(1, 100000) n"#;
    reference.run(rows).await;
    world.start().await;
    let mut c = world.connect("g", "c1", holding("08", &[held("row 5", 1), held("row 6", 1)]), again(&[]));
    let poke = c.poke().await;
    assert_eq!(poke.rows().len(), 100_000);
    assert_eq!(c.store.rows, world.expected([&issues()]));
    eventually("the flush", async || world.unflushed_since().is_none()).await;
    // More than a million is more than is remembered of one group.
    reference.group("h", "08").await;
    reference.run(r#"INSERT INTO {s}.rows SELECT 'h', '', 'issue', jsonb_build_object('id', repeat('x', 1000) || n), '01', '03', NULL
        FROM generate_series(1, 40000) n"#).await;
    let mut c = world.connect("h", "c1", holding("08", &[]), again(&[]));
    assert_eq!(c.refused().await.0["kind"], "ClientNotFound");
    world.alive();
}
