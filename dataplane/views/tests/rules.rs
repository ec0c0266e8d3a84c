//! Client-defined queries: what deployed permissions let each user see, and what happens when they or a user's claims change.

use std::time::Duration;

use serde_json::{Value as Json, json};
use views::api::ConnectionContext;

use crate::client::{Client, Seen, Store, put};
use crate::data::all;
use crate::world::{Reply, World, again, init, issue};

/// A context with claims, of the user that they name.
pub fn claiming(claims: &Json) -> ConnectionContext {
    let user_id = claims["sub"].as_str().map(str::to_owned);
    ConnectionContext { user_id, claims: Some(claims.clone()), ..ConnectionContext::default() }
}

pub fn define(hash: &str, ast: &Json) -> Json {
    json!({"op": "put", "hash": hash, "ast": ast, "ttl": 600_000})
}

/// A connection with claims, that has sent `initConnection`.
pub fn connect(world: &World, group: &str, client: &str, store: Store, body: &Json, claims: &Json) -> Client {
    let client = world.socket(group, client, store, claims["sub"].as_str(), 64 << 20);
    client.init(body, claiming(claims));
    client
}

pub fn column(name: &str) -> Json {
    json!({"type": "column", "name": name})
}

pub fn claim(field: impl Into<Json>) -> Json {
    json!({"type": "static", "anchor": "authData", "field": field.into()})
}

pub fn literal(value: impl Into<Json>) -> Json {
    json!({"type": "literal", "value": value.into()})
}

pub fn simple(left: Json, op: &str, right: Json) -> Json {
    json!({"type": "simple", "left": left, "op": op, "right": right})
}

pub fn anyone() -> Json {
    json!({"type": "and", "conditions": []})
}

pub fn exists(op: &str, parent: &str, child: &str, subquery: Json, system: &str) -> Json {
    json!({"type": "correlatedSubquery", "op": op, "related": {"system": system, "subquery": subquery,
        "correlation": {"parentField": [parent], "childField": [child]}}})
}

/// Rules for reading, by table.
pub fn reading<const N: usize>(tables: [(&str, Vec<Json>); N]) -> Json {
    let tables = tables.into_iter().map(|(table, rules)| {
        let rules: Vec<Json> = rules.into_iter().map(|rule| json!(["allow", rule])).collect();
        (table.to_owned(), json!({"row": {"select": rules}}))
    });
    json!({"tables": tables.collect::<serde_json::Map<_, _>>()})
}

fn own() -> Json {
    simple(column("owner"), "=", claim("sub"))
}

fn ids(store: &Store, table: &str) -> Vec<String> {
    let of = |(name, key): &(String, String)| (name == table).then(|| key.trim_matches('"').to_owned());
    store.rows.keys().filter_map(of).collect()
}

/// All tables that any frame put a row of.
fn tables_put(client: &Client) -> Vec<String> {
    let pokes = client.log.iter().filter_map(|seen| match seen {
        Seen::Poke(poke) => Some(poke),
        _ => None,
    });
    let rows = pokes.flat_map(|poke| poke.rows());
    let mut tables: Vec<String> =
        rows.filter(|row| row["op"] == "put").map(|row| row["tableName"].as_str().unwrap().to_owned()).collect();
    tables.sort();
    tables.dedup();
    tables
}

async fn world() -> World {
    let world = World::new().await;
    world.api.with(|state| state.unconfigured = true);
    world
}

/// The user `a` with nothing to tell but that.
fn user(name: &str) -> Json {
    json!({"sub": name})
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rules_there_is_nothing_and_changed_rules_take_effect_by_difference() {
    let mut world = world().await;
    world.issue("i1", "a", 1).await;
    world.issue("i2", "b", 2).await;
    let body = init(&[define("q", &all("issue").ast())]);
    let mut client = connect(&world, "g", "c", Store::default(), &body, &user("a"));
    client.until("the query", |store| store.got.contains("q")).await;
    assert!(client.store.rows.is_empty());
    // Rules for writing, or for another table, allow no reading.
    let mut rules = reading([("comment", vec![anyone()]), ("issue", vec![])]);
    rules["tables"]["issue"]["row"]["insert"] = json!([["allow", anyone()]]);
    world.deploy(&rules).await;
    world.issue("i3", "a", 3).await;
    client.silent(Duration::from_millis(300)).await;
    world.deploy(&reading([("issue", vec![own()])])).await;
    client.until("its own rows", |store| ids(store, "issue") == ["i1", "i3"]).await;
    world.deploy(&reading([("issue", vec![own(), simple(column("n"), ">", literal(1))])])).await;
    client.until("more rows", |store| ids(store, "issue") == ["i1", "i2", "i3"]).await;
    world.deploy(&reading([("issue", vec![simple(column("n"), ">", literal(1))])])).await;
    let pokes = client.until("fewer rows", |store| ids(store, "issue") == ["i2", "i3"]).await;
    let deleted: Vec<String> = pokes.iter().flat_map(|poke| poke.keys("del")).collect();
    assert_eq!(deleted, ["issue/\"i1\""]);
    // What is live goes on.
    world.issue("i4", "a", 4).await;
    world.issue("i2", "b", 0).await;
    client.until("changes", |store| ids(store, "issue") == ["i3", "i4"]).await;
    world.deploy(&json!({})).await;
    client.until("nothing", |store| store.rows.is_empty()).await;
    world.alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_commit_of_rules_and_rows_shows_nothing_by_the_old_rules() {
    let mut world = world().await;
    world.deploy(&reading([("issue", vec![anyone()])])).await;
    world.issue("i1", "a", 1).await;
    let body = init(&[define("q", &all("issue").ast()), define("r", &all("issue").by("n", 7).ast())]);
    let mut clients = Vec::new();
    for n in 0..3 {
        let mut client = connect(&world, &format!("g{n}"), "c", Store::default(), &body, &user("a"));
        client.until("the first row", |store| ids(store, "issue") == ["i1"] && store.got.len() == 2).await;
        // Not even which rows there are.
        let secret = |message: &Json| {
            let text = message.to_string();
            text.contains("\"b\"") || text.contains("\"s")
        };
        client.watch = Some(Box::new(move |message| assert!(!secret(message), "{message}")));
        clients.push(client);
    }
    for round in 0..8 {
        let rules =
            world.deployment(&reading([("issue", vec![own(), simple(column("n"), "=", literal(100 + round))])]));
        let secret = world.put("issue", issue(&format!("s{round}"), "b", 7));
        let own = world.put("issue", issue(&format!("o{round}"), "a", 7));
        // In any order within the commit, and by commits that the views take in one step.
        let changes = if round % 2 == 0 { vec![secret, rules, own] } else { vec![rules, own, secret] };
        if round % 4 < 2 {
            world.apply(changes).await;
        } else {
            let batches: Vec<_> = changes.into_iter().rev().map(|change| world.commit(vec![change])).collect();
            // The rules come last but one or first here: what is shown in one step follows the last.
            for batch in batches {
                world.publish(batch).await;
            }
        }
        for client in &mut clients {
            let wanted = format!("o{round}");
            client.until("its own row", |store| ids(store, "issue").contains(&wanted)).await;
        }
    }
    for client in &mut clients {
        client.watch = None;
    }
    world.alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_only_a_rule_looked_at_are_never_sent() {
    let mut world = world().await;
    let of_issue = |filter: Json, system: &str| {
        exists("EXISTS", "id", "issueID", json!({"table": "comment", "alias": "c", "where": filter}), system)
    };
    // Two levels: a comment of the user on the issue, whose author has an account.
    let with_acct = exists("EXISTS", "body", "owner", json!({"table": "acct", "alias": "a"}), "permissions");
    let rule = of_issue(
        json!({"type": "and", "conditions": [simple(column("body"), "=", claim("sub")), with_acct]}),
        "permissions",
    );
    let rules = |comments: Json| reading([("issue", vec![rule.clone()]), ("comment", vec![comments])]);
    world.deploy(&rules(simple(column("body"), "=", claim("sub")))).await;
    world.upsert("acct", json!({"id": 1, "owner": "a", "secret": "s", "num": 1})).await;
    for n in 1..4 {
        world.issue(&format!("i{n}"), "x", n).await;
        world
            .upsert(
                "comment",
                json!({"id": format!("m{n}"), "issueID": format!("i{n}"), "body": if n < 3 { "a" } else { "z" }}),
            )
            .await;
    }
    let plain = init(&[define("q", &all("issue").ast())]);
    let mut client = connect(&world, "g", "c", Store::default(), &plain, &user("a"));
    client.until("rows by hydration", |store| ids(store, "issue") == ["i1", "i2"]).await;
    // By a change, after a return, and by another node's knowledge.
    world.upsert("comment", json!({"id": "m9", "issueID": "i3", "body": "a"})).await;
    client.until("a row by a change", |store| ids(store, "issue") == ["i1", "i2", "i3"]).await;
    assert_eq!(tables_put(&client), ["issue"]);
    let store = client.cut();
    world.delete("comment", json!({"id": "m1"})).await;
    world.drain().await;
    world.upsert("comment", json!({"id": "m8", "issueID": "i1", "body": "z"})).await;
    world.start().await;
    let mut client = connect(&world, "g", "c", store, &again(&[]), &user("a"));
    client.until("the difference", |store| ids(store, "issue") == ["i2", "i3"]).await;
    assert_eq!(tables_put(&client), [""; 0]);
    // What the client's own EXISTS and relations look at is sent as far as it may be seen, however they are marked.
    for (n, system) in ["client", "permissions", "test"].into_iter().enumerate() {
        let mut ast = all("issue").ast();
        ast["where"] = of_issue(anyone(), system);
        ast["related"] = json!([{"system": system, "subquery": {"table": "acct", "alias": "r"},
            "correlation": {"parentField": ["owner"], "childField": ["owner"]}}]);
        let group = format!("h{n}");
        let mut client = connect(&world, &group, "c", Store::default(), &init(&[define("q", &ast)]), &user("a"));
        client.until("issues and comments", |store| ids(store, "comment") == ["m2", "m9"]).await;
        assert_eq!(ids(&client.store, "issue"), ["i2", "i3"]);
        assert_eq!(tables_put(&client), ["comment", "issue"]);
        client.cut();
    }
    // A comment that may not be seen makes no EXISTS of the client true, and no NOT EXISTS false.
    world.deploy(&rules(simple(column("body"), "=", literal("nobody")))).await;
    let mut ast = all("issue").ast();
    ast["where"] = exists("NOT EXISTS", "id", "issueID", json!({"table": "comment", "alias": "c"}), "client");
    let mut client = connect(&world, "n", "c", Store::default(), &init(&[define("q", &ast)]), &user("a"));
    client.until("issues without a visible comment", |store| ids(store, "issue") == ["i2", "i3"]).await;
    world.alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_claims_share_and_others_never_do() {
    let mut world = world().await;
    let admin = simple(claim("role"), "=", literal("admin"));
    world.deploy(&reading([("issue", vec![admin, own()])])).await;
    world.issue("i1", "a", 1).await;
    world.issue("i2", "b", 2).await;
    let body = init(&[define("q", &all("issue").ast())]);
    let mut held = Vec::new();
    for (n, (sub, role, wanted)) in [
        ("x", "admin", vec!["i1", "i2"]),
        ("y", "admin", vec!["i1", "i2"]),
        ("a", "user", vec!["i1"]),
        ("a", "guest", vec!["i1"]),
        ("b", "user", vec!["i2"]),
    ]
    .into_iter()
    .enumerate()
    {
        let claims = json!({"sub": sub, "role": role, "other": n});
        let mut client = connect(&world, &format!("g{n}"), "c", Store::default(), &body, &claims);
        client.until("rows", |store| ids(store, "issue") == wanted).await;
        held.push(client);
    }
    let counted = || (world.metrics().materialisations.get(), world.metrics().subscriptions.get());
    for _ in 0..100 {
        if counted() == (3, 5) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(counted(), (3, 5), "one for administrators, one for each other user");
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_claims_take_effect_and_nothing_of_the_old_ones_follows() {
    let mut world = World::new().await;
    world.api.set("named", Reply::Ask(all("comment")));
    let rule = simple(column("owner"), "IN", claim("teams"));
    world.deploy(&reading([("issue", vec![rule])])).await;
    for (n, team) in ["red", "blue", "green"].into_iter().enumerate() {
        world.issue(&format!("{team}0"), team, n as i64).await;
    }
    let claims = |teams: &[&str], iat: i64| json!({"sub": "a", "teams": teams, "iat": iat});
    let body = init(&[define("q", &all("issue").ast()), put("named", 600_000)]);
    let mut one = connect(&world, "g", "one", Store::default(), &body, &claims(&["red"], 1));
    one.until("the red row", |store| ids(store, "issue") == ["red0"] && store.got.len() == 2).await;
    let mut two = connect(&world, "g", "two", Store::default(), &init(&[]), &claims(&["red"], 1));
    two.until("the red row", |store| ids(store, "issue") == ["red0"]).await;
    // While the API server has not judged the new token, neither the old claims count for the connection nor the new ones.
    let asked = world.api.with(|state| {
        state.delay = Duration::from_millis(300);
        state.calls
    });
    one.update_auth(claiming(&claims(&["blue"], 5)));
    while world.api.with(|state| state.calls) == asked {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    one.watch = Some(Box::new(|message| assert!(!message.to_string().contains("red1"), "{message}")));
    world.issue("red1", "red", 9).await;
    world.issue("blue1", "blue", 9).await;
    one.until("blue rows", |store| ids(store, "issue") == ["blue0", "blue1"]).await;
    // One group, one user, one result: that of the newest token. An older one that comes later changes nothing.
    two.until("blue rows", |store| ids(store, "issue") == ["blue0", "blue1"]).await;
    world.api.with(|state| state.delay = Duration::ZERO);
    let mut three = connect(&world, "g", "three", Store::default(), &init(&[]), &claims(&["red", "green"], 3));
    three.until("blue rows", |store| ids(store, "issue") == ["blue0", "blue1"]).await;
    one.silent(Duration::from_millis(200)).await;
    // When whoever brought the newest token goes, the newest of the others counts.
    let store = one.cut();
    three.until("red and green", |store| ids(store, "issue") == ["green0", "red0", "red1"]).await;
    two.until("red and green", |store| ids(store, "issue") == ["green0", "red0", "red1"]).await;
    // And so it does for one that comes back with it.
    let mut one = connect(&world, "g", "one", store, &again(&[]), &claims(&["blue"], 5));
    one.until("blue again", |store| ids(store, "issue") == ["blue0", "blue1"]).await;
    two.until("blue again", |store| ids(store, "issue") == ["blue0", "blue1"]).await;
    world.alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn permissions_that_cannot_be_read_allow_nothing_and_end_nothing() {
    let mut world = World::new().await;
    world.api.set("named", Reply::Ask(all("comment")));
    world.upsert("comment", json!({"id": "m", "issueID": "i", "body": "b"})).await;
    world.issue("i1", "a", 1).await;
    let good = reading([("issue", vec![anyone()])]);
    world.deploy(&good).await;
    let body = init(&[define("q", &all("issue").ast()), put("named", 600_000)]);
    let mut client = connect(&world, "g", "c", Store::default(), &body, &user("a"));
    client.until("rows", |store| store.rows.len() == 2).await;
    let mut deep = anyone();
    for _ in 0..200 {
        deep = json!({"type": "or", "conditions": [deep]});
    }
    for bad in [
        json!([]),
        json!({"tables": {"issue": {"row": {"select": [["deny", anyone()]]}}}}),
        reading([("issue", vec![deep])]),
    ] {
        world.deploy(&bad).await;
        client.until("named queries only", |store| store.rows.len() == 1).await;
        assert_eq!(world.metrics().permissions_unreadable.get(), 1);
        world.deploy(&good).await;
        client.until("rows", |store| store.rows.len() == 2).await;
        assert_eq!(world.metrics().permissions_unreadable.get(), 0);
    }
    // Also when a node starts with them.
    world.deploy(&json!({"tables": 5})).await;
    let store = client.cut();
    world.drain().await;
    world.start().await;
    let mut client = connect(&world, "g", "c", store, &again(&[]), &user("a"));
    client.until("named queries only", |store| store.rows.len() == 1).await;
    world.deploy(&good).await;
    client.until("rows", |store| store.rows.len() == 2).await;
    world.alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_and_claims_that_changed_while_a_client_or_the_node_was_away() {
    let mut world = world().await;
    for n in 0..6 {
        world.issue(&format!("i{n}"), if n < 3 { "a" } else { "b" }, n).await;
    }
    world.deploy(&reading([("issue", vec![simple(column("n"), "<", claim("max"))])])).await;
    let claims = |max: i64| json!({"sub": "a", "max": max});
    let body = init(&[define("q", &all("issue").ast())]);
    let mut client = connect(&world, "g", "c", Store::default(), &body, &claims(4));
    client.until("four", |store| ids(store, "issue").len() == 4).await;
    let store = client.cut();
    let mut client = connect(&world, "g", "c", store, &again(&[]), &claims(2));
    client.until("two", |store| ids(store, "issue").len() == 2).await;
    let mut store = client.cut();
    for (n, max) in [(3, 5), (5, 1), (4, 4)] {
        world.drain().await;
        world.deploy(&reading([("issue", vec![simple(column("n"), "<", literal(n))]), ("comment", vec![])])).await;
        world.start().await;
        let mut client = connect(&world, "g", "c", store, &again(&[]), &claims(max));
        client
            .until("as many as the rules say", |store| ids(store, "issue").len() == usize::try_from(n).unwrap())
            .await;
        store = client.cut();
    }
    world.alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_queries_are_replaced_at_once() {
    let mut world = world().await;
    world.deploy(&reading([("issue", vec![anyone()])])).await;
    for n in 0..400 {
        let changes = vec![world.put("issue", issue(&format!("i{n}"), if n % 2 == 0 { "a" } else { "b" }, n))];
        if n < 399 {
            world.commit(changes);
        } else {
            world.apply(changes).await;
        }
    }
    let queries: Vec<Json> = (0..400).map(|n| define(&format!("q{n}"), &all("issue").by("n", n).ast())).collect();
    let mut client = connect(&world, "g", "c", Store::default(), &init(&queries), &user("a"));
    client.until("all", |store| store.rows.len() == 400).await;
    world.deploy(&reading([("issue", vec![own()])])).await;
    client.until("half", |store| store.rows.len() == 200).await;
    world.deploy(&reading([("issue", vec![anyone()])])).await;
    client.until("all again", |store| store.rows.len() == 400).await;
    world.alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn client_defined_queries_can_be_switched_off() {
    let mut world = World::stopped(&crate::world::shared().url("postgres"));
    world.client_queries = false;
    world.start().await;
    world.api.set("named", Reply::Ask(all("issue")));
    world.deploy(&reading([("issue", vec![anyone()])])).await;
    world.issue("i1", "a", 1).await;
    let body = init(&[define("q", &all("issue").ast()), put("named", 600_000)]);
    let mut client = connect(&world, "g", "c", Store::default(), &body, &user("a"));
    let failed = client.message_of("transformError").await;
    assert_eq!((&failed[0]["id"], &failed[0]["error"]), (&json!("q"), &json!("app")));
    assert!(failed[0]["message"].as_str().unwrap().contains("ZERO_ALLOW_LEGACY_QUERIES"), "{failed}");
    client.until("the named query", |store| store.got.contains("named") && store.rows.len() == 1).await;
    assert!(!client.store.got.contains("q"));
    world.alive();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_query_or_rule_has_wrong_concerns_nobody_else() {
    let mut world = world().await;
    world.issue("i1", "a", 1).await;
    world.upsert("comment", json!({"id": "m", "issueID": "i1", "body": "b"})).await;
    let broken = simple(column("nowhere"), "=", claim("sub"));
    let by_list = simple(column("owner"), "IN", claim("teams"));
    let not_blocked = exists(
        "NOT EXISTS",
        "owner",
        "owner",
        json!({"table": "acct", "alias": "a", "where": simple(column("secret"), "=", claim("teams"))}),
        "permissions",
    );
    world
        .deploy(&reading([
            ("issue", vec![by_list, not_blocked, own()]),
            ("comment", vec![anyone()]),
            ("acct", vec![broken]),
        ]))
        .await;
    let mut wide: Vec<Json> = Vec::new();
    for n in 0..5_000 {
        wide.push(simple(column("n"), "=", literal(n)));
    }
    let mut huge = all("issue").ast();
    huge["where"] = json!({"type": "or", "conditions": wide});
    let hidden_parameter = {
        let mut ast = all("issue").ast();
        ast["where"] = simple(column("owner"), "=", claim("sub"));
        ast
    };
    let queries = [
        ("issues", all("issue").ast()),
        ("comments", all("comment").ast()),
        ("broken", all("acct").ast()),
        ("unknown", json!({"table": "nowhere"})),
        ("huge", huge),
        ("mine", hidden_parameter),
    ];
    // `teams` must be a list for one rule and text for another: each rule that it does not fit allows nothing.
    for (n, (claims, wanted)) in [
        (json!({"sub": "a", "teams": {"an": "object"}}), vec!["i1"]),
        (json!({"sub": "z", "teams": ["a"]}), vec!["i1"]),
        (json!({"sub": "z", "teams": vec!["a"; 20_000]}), vec![]),
        (json!({"sub": "z", "teams": [["a"]]}), vec![]),
        (json!({"sub": "z", "teams": 5}), vec!["i1"]),
        (json!({"sub": "z"}), vec!["i1"]),
        (json!("no object"), vec!["i1"]),
    ]
    .into_iter()
    .enumerate()
    {
        let ops: Vec<Json> = queries.iter().map(|(hash, ast)| define(hash, ast)).collect();
        let mut client = connect(&world, &format!("g{n}"), "c", Store::default(), &init(&ops), &claims);
        let mut failed = std::collections::BTreeSet::new();
        // A rule that is false for whoever has no claims is not looked at for them.
        let expected: &[&str] = if claims.is_object() { &["broken", "huge", "unknown"] } else { &["huge", "unknown"] };
        while failed.len() < expected.len()
            || client.store.got.len() < queries.len() - expected.len()
            || !ids(&client.store, "comment").contains(&"m".to_owned())
        {
            match client.next().await {
                Seen::Message(tag, errors) if tag == "transformError" => {
                    failed.insert(errors[0]["id"].as_str().unwrap().to_owned());
                }
                Seen::Poke(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(failed.into_iter().collect::<Vec<_>>(), expected);
        assert_eq!(ids(&client.store, "issue"), wanted, "{n}");
    }
    // Better rules serve what failed.
    let ops = [define("broken", &all("acct").ast())];
    world.upsert("acct", json!({"id": 1, "owner": "z", "secret": "s", "num": 1})).await;
    let mut client = connect(&world, "later", "c", Store::default(), &init(&ops), &user("z"));
    client.message_of("transformError").await;
    world.deploy(&reading([("acct", vec![own()])])).await;
    client.until("the row", |store| ids(store, "acct") == ["1"] && store.got.contains("broken")).await;
    world.alive();
}
