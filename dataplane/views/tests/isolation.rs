//! Users apart: whatever is asked, whatever the rules become, nobody is sent a row of another, and everybody has exactly what an
//! independent judge says they may see.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value as Json, json};
use testkit::oracle::{Snapshot, Table, bound, check_store, visible};
use testkit::rules;

use crate::client::{Client, PATIENCE, Seen, Store};
use crate::rules::{claim, claiming, column, connect, define, reading, simple};
use crate::world::{World, again, init};

/// Where each table says whose a row is.
const OWNERS: [(&str, &str); 3] = [("issue", "owner"), ("comment", "body"), ("acct", "owner")];
const KEPT_MAX: usize = 10;

/// Fails on a row of anybody else, in whatever message.
fn only_of(user: &'static str) -> Box<dyn Fn(&Json) + Send> {
    Box::new(move |message| {
        for op in message[1]["rowsPatch"].as_array().into_iter().flatten().filter(|op| op["op"] == "put") {
            let (_, owner) = OWNERS.iter().find(|(table, _)| op["tableName"] == *table).expect("a table of the test");
            assert_eq!(op["value"][owner], user, "{user} is sent {op}");
        }
    })
}

/// The tables as upstream has them.
fn snapshot(world: &World) -> Snapshot {
    let schema = rules::client_schema();
    let tables = rules::tables().into_iter().map(|name| {
        let rows = world.model.get(name).into_iter().flat_map(BTreeMap::values);
        let table = Table {
            primary_key: vec!["id".to_owned()],
            columns: schema["tables"][name]["columns"].as_object().unwrap().keys().cloned().collect(),
            rows: rows.map(|row| row.as_object().unwrap().clone()).collect(),
        };
        (name.to_owned(), table)
    });
    Snapshot { tables: tables.collect() }
}

fn judged(store: &Store) -> testkit::client::Store {
    let mut judged = testkit::client::Store::default();
    for ((table, _), row) in &store.rows {
        let row = row.as_object().unwrap().clone();
        let key = testkit::client::row_key(&["id".to_owned()], &row);
        judged.rows.entry(table.clone()).or_default().insert(key, row);
    }
    judged
}

/// Rules by which everybody sees rows of their own only, beside random ones that may say less.
fn own_only(rng: &mut StdRng, depth: usize) -> Json {
    reading(OWNERS.map(|(table, owner)| {
        let mine = || simple(column(owner), "=", claim("sub"));
        let rules = (0..rng.random_range(0..4)).map(|_| {
            let mut parts = vec![mine(), rules::rule(rng, table, depth)];
            if rng.random_bool(0.5) {
                parts.swap(0, 1);
            }
            json!({"type": "and", "conditions": parts})
        });
        (table, rules.collect())
    }))
}

struct User {
    claims: Json,
    client: Option<Client>,
    store: Store,
    queries: BTreeMap<String, Json>,
    failed: Vec<String>,
}

/// Marks that a client may put on its subqueries in the hope that rows or rules are treated otherwise.
fn disguised(rng: &mut StdRng, query: Json) -> Json {
    match query {
        Json::Object(fields) => {
            let mut fields: serde_json::Map<_, _> =
                fields.into_iter().map(|(name, value)| (name, disguised(rng, value))).collect();
            if fields.contains_key("system") && rng.random_bool(0.3) {
                fields["system"] = json!(["permissions", "test", "client"][rng.random_range(0..3)]);
            }
            Json::Object(fields)
        }
        Json::Array(items) => items.into_iter().map(|item| disguised(rng, item)).collect(),
        other => other,
    }
}

async fn settle(world: &World, permissions: &Json, user: &mut User) {
    let seen = visible(&snapshot(world), permissions, &user.claims).unwrap();
    let client = user.client.as_mut().unwrap();
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        let queries: Vec<Json> = user.queries.values().map(|ast| bound(ast, &user.claims).unwrap()).collect();
        let verdict = match user.queries.keys().all(|hash| client.store.got.contains(hash)) {
            true => check_store(&seen, &judged(&client.store), &queries, &rules::client_schema())
                .map_err(|problem| format!("{problem:#}")),
            false => Err("not all queries are got".to_owned()),
        };
        let Err(problem) = verdict else { return };
        match client.next_within(until.saturating_duration_since(tokio::time::Instant::now())).await {
            Some(Seen::Poke(_)) => {}
            Some(Seen::Message(tag, body)) if tag == "transformError" => user.failed.push(body.to_string()),
            Some(other) => panic!("{other:?}"),
            None => panic!("{problem}\nclaims {}\npermissions {permissions}\nfailed {:?}", user.claims, user.failed),
        }
    }
}

/// Random lives of two users. `own_rules`: by the rules that everybody sees their own rows only, every frame is looked at.
async fn live(seed: u64, rounds: usize, own_rules: bool) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World::new().await;
    world.api.with(|state| state.unconfigured = true);
    let mut permissions = json!({});
    let mut queries = 0;
    let mut users: Vec<User> = rules::USERS[..2]
        .iter()
        .map(|name| User {
            claims: rules::claims(&mut rng, name),
            client: None,
            store: Store::default(),
            queries: BTreeMap::new(),
            failed: vec![],
        })
        .collect();
    for round in 0..rounds {
        for (n, user) in users.iter_mut().enumerate() {
            let mut ops = Vec::new();
            while user.queries.len() >= KEPT_MAX {
                let (gone, _) = user.queries.pop_first().unwrap();
                ops.push(json!({"op": "del", "hash": gone}));
            }
            for k in 0..8 {
                let ast = rules::query(&mut rng, 3);
                let hash = format!("q{round:04}.{k}");
                ops.push(define(&hash, &disguised(&mut rng, ast.clone())));
                ops.last_mut().unwrap()["ttl"] = json!(0);
                user.queries.insert(hash, ast);
                queries += 1;
            }
            match &user.client {
                Some(client) => client.change(json!(ops)),
                None => {
                    let body = desired(user);
                    let name = user.claims["sub"].as_str().unwrap();
                    let mut client = connect(&world, name, "c", user.store.clone(), &body, &user.claims);
                    let name = rules::USERS[n];
                    client.watch = own_rules.then(|| only_of(name));
                    client.user = None;
                    user.client = Some(client);
                }
            }
        }
        for _ in 0..rng.random_range(1..4) {
            let mut changes = Vec::new();
            for _ in 0..rng.random_range(1..5) {
                let names = rules::tables();
                let table = names[rng.random_range(0..names.len())];
                let present = world.model.get(table).and_then(|rows| rows.values().next().cloned());
                changes.push(match present.filter(|_| rng.random_bool(0.2)) {
                    Some(row) => world.del(table, &row),
                    None => {
                        let row = rules::row(&mut rng, table);
                        world.put(table, row)
                    }
                });
            }
            if rng.random_bool(0.4) {
                permissions = if own_rules { own_only(&mut rng, 3) } else { rules::permissions(&mut rng, 3) };
                let at = rng.random_range(0..=changes.len());
                changes.insert(at, world.deployment(&permissions));
            }
            world.apply(changes).await;
        }
        for (n, user) in users.iter_mut().enumerate() {
            match rng.random_range(0..6) {
                0 => {
                    user.claims = rules::claims(&mut rng, rules::USERS[n]);
                    user.client.as_ref().unwrap().update_auth(claiming(&user.claims));
                }
                1 => {
                    user.store = user.client.take().unwrap().cut();
                    if rng.random_bool(0.5) {
                        user.claims = rules::claims(&mut rng, rules::USERS[n]);
                    }
                    let name = rules::USERS[n];
                    let mut client = connect(&world, name, "c", user.store.clone(), &desired(user), &user.claims);
                    client.watch = own_rules.then(|| only_of(name));
                    client.user = None;
                    user.client = Some(client);
                }
                _ => {}
            }
        }
        if rng.random_bool(0.2) {
            for user in &mut users {
                settle(&world, &permissions, user).await;
            }
        }
        if rng.random_bool(0.02) {
            for user in &mut users {
                user.store = user.client.take().unwrap().cut();
            }
            world.drain().await;
            world.start().await;
        }
    }
    for user in users.iter_mut().filter(|user| user.client.is_some()) {
        settle(&world, &permissions, user).await;
    }
    world.alive();
    queries
}

/// What a client says that comes back: all it wants, for the last messages may have been lost.
fn desired(user: &User) -> Json {
    let mut ops: Vec<Json> = vec![json!({"op": "clear"})];
    ops.extend(user.queries.iter().map(|(hash, ast)| define(hash, ast)));
    for op in ops.iter_mut().skip(1) {
        op["ttl"] = json!(0);
    }
    if user.store.cookie.is_none() { init(&ops) } else { again(&ops) }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_sent_a_row_of_another() {
    let queries = live(testkit::seed("isolation"), 125, true).await;
    assert_eq!(queries, 2_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_has_what_random_rules_allow() {
    live(testkit::seed("rules"), 30, false).await;
}
