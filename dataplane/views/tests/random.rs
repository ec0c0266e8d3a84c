//! Seeded random lives: whatever happens, every client's rows come to equal those of its queries, computed from scratch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rows::Change;
use serde_json::{Value as Json, json};
use views::limits::Limits;

use crate::client::{Client, PATIENCE, Seen, Store, del, put};
use crate::data::{Ask, CLIENTS, Keys, MUTATIONS, all};
use crate::schema::add_column;
use crate::world::{Reply, World, acct, again, context, init_by, issue, mine, shared};

const STEPS: usize = 60;

pub fn asks() -> Vec<Ask> {
    vec![
        all("issue").by("owner", "a"),
        all("issue").by("owner", "b").with(),
        all("issue").by("open", true),
        all("issue").top("n", 3).with(),
        all("issue").having(),
        all("comment"),
        all("comment").by("issueID", "i1"),
        all("label").by("b", "x"),
        all("label").top("a", 2),
        all("issue"),
    ]
}

/// Odd queries are dropped as soon as nobody wants them, the others stay for longer than a test.
pub fn hash(n: usize) -> String {
    format!("h{n}")
}

pub fn ttl(hash: &str) -> i64 {
    if hash.as_bytes()[1] % 2 == 1 { 0 } else { 600_000 }
}

pub const HASHES: usize = 8;

/// The query for what a user owns: the same hash means other rows for each group.
const MINE: &str = "h9";

/// One tab: its database, past and present, and what it wants.
struct Tab {
    group: String,
    user: String,
    keys: Keys,
    id: String,
    wanted: BTreeSet<String>,
    past: Vec<Store>,
    open: Option<Client>,
}

/// Limits that are reached all the time.
pub fn small(rng: &mut StdRng) -> Limits {
    Limits {
        group_idle: Duration::from_millis(rng.random_range(0..300)),
        materialisation_idle: Duration::from_millis(rng.random_range(0..300)),
        payload_bytes: rng.random_range(0..2_000),
        backlog_bytes: rng.random_range(0..2_000),
        payload_in_use: Duration::from_millis(rng.random_range(0..300)),
        history_bytes: rng.random_range(0..1_000),
        history_entries: rng.random_range(0..5),
        merge_deltas: rng.random_range(2..6),
        merge_interval: Duration::from_millis(rng.random_range(1..100)),
        purge_interval: Duration::from_millis(rng.random_range(1..300)),
        ..Limits::default()
    }
}

/// A row that is put or deleted upstream, and its description.
pub fn random_change(rng: &mut StdRng, world: &mut World) -> (String, Change) {
    let (table, row) = match rng.random_range(0..10) {
        0..5 => {
            let id = format!("i{}", rng.random_range(0..8));
            let owner = ["a", "b", "c"].choose(rng).unwrap();
            ("issue", issue(&id, owner, rng.random_range(0..9)))
        }
        5..8 => {
            let id = format!("m{}", rng.random_range(0..8));
            let of = format!("i{}", rng.random_range(0..8));
            ("comment", json!({"id": id, "issueID": of, "body": rng.random_range(0..100).to_string()}))
        }
        _ => {
            let b = ["x", "y"].choose(rng).unwrap();
            let a = rng.random_range(0..5);
            ("label", json!({"a": a, "b": b, "info": [rng.random_range(0..100)]}))
        }
    };
    let present: Vec<Json> = world.model.get(table).map(|t| t.values().cloned().collect()).unwrap_or_default();
    if !present.is_empty() && rng.random_bool(0.3) {
        let row = present.choose(rng).unwrap().clone();
        return (format!("delete {table} {row}"), world.del(table, &row));
    }
    (format!("put {table} {row}"), world.put(table, row))
}

/// What happens to rows that users own: they come and go, change their owner, and exchange the number by which some clients know
/// them.
fn acct_change(rng: &mut StdRng, world: &mut World) -> Vec<(String, Change)> {
    let present: Vec<Json> = world.model.get("acct").map(|t| t.values().cloned().collect()).unwrap_or_default();
    let owner = *["u0", "u1", "u2"].choose(rng).unwrap();
    let put = |world: &mut World, row: Json| (format!("put acct {row}"), world.put("acct", row));
    let id_of = |row: &Json| (row["id"].as_i64().unwrap(), row["num"].as_i64().unwrap());
    match (rng.random_range(0..6), present.choose(rng).cloned(), present.choose(rng).cloned()) {
        (0, Some(row), _) => vec![(format!("delete acct {row}"), world.del("acct", &row))],
        (1 | 2, Some(a), Some(b)) if a != b => {
            let ((a_id, a_num), (b_id, b_num)) = (id_of(&a), id_of(&b));
            let owners = [a["owner"].as_str().unwrap(), b["owner"].as_str().unwrap()];
            vec![put(world, acct(a_id, owners[0], b_num)), put(world, acct(b_id, owners[1], a_num))]
        }
        (3, Some(row), _) => {
            let (id, num) = id_of(&row);
            vec![put(world, acct(id, owner, num))]
        }
        _ => {
            let id = rng.random_range(0..8);
            let num = rng.random_range(0..12);
            let is_taken = present.iter().any(|row| row["num"] == num && row["id"] != id);
            if is_taken { vec![] } else { vec![put(world, acct(id, owner, num))] }
        }
    }
}

struct Life {
    rng: StdRng,
    world: World,
    tabs: Vec<Tab>,
    asks: BTreeMap<String, Ask>,
    application: String,
    serial: u64,
    /// Last mutation of each group.
    lmids: BTreeMap<String, i64>,
    trace: Vec<String>,
}

impl Life {
    async fn new(seed: u64) -> Life {
        let mut rng = StdRng::seed_from_u64(seed);
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let application = format!("random-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut world = World::stopped(&format!("{}?application_name={application}", shared().url("postgres")));
        if rng.random_bool(0.6) {
            world.limits = Limits { node_live: Duration::ZERO, ..small(&mut rng) };
        }
        world.start().await;
        let mut asked = BTreeMap::new();
        for n in 0..HASHES {
            let ask = asks().choose(&mut rng).unwrap().clone();
            world.api.ask(&hash(n), ask.clone());
            asked.insert(hash(n), ask);
        }
        world.api.set(MINE, Reply::Mine);
        let choices = [Keys::Usual, Keys::Other, *[Keys::Usual, Keys::Other].choose(&mut rng).unwrap()];
        let tabs = (0..5)
            .map(|n| Tab {
                group: format!("g{}", n % 3),
                user: format!("u{}", n % 3),
                keys: choices[n % 3],
                id: format!("c{n}"),
                wanted: BTreeSet::new(),
                past: vec![Store::default()],
                open: None,
            })
            .collect();
        let trace = vec![format!("{:#?}\n{asked:?}", world.limits)];
        Life { rng, world, tabs, asks: asked, application, serial: 0, lmids: BTreeMap::new(), trace }
    }

    fn note(&mut self, what: String) {
        self.trace.push(what);
    }

    fn change(&mut self) -> Change {
        let (what, change) = random_change(&mut self.rng, &mut self.world);
        self.note(what);
        change
    }

    async fn transaction(&mut self) {
        let mut changes = Vec::new();
        if self.rng.random_bool(0.03) {
            let table = ["issue", "comment", "label"].choose(&mut self.rng).copied().unwrap();
            self.note(format!("truncate {table}"));
            self.world.model.remove(table);
            changes.push(Change::Truncate { tables: vec![self.world.spec(table)] });
        }
        for _ in 0..self.rng.random_range(1..5) {
            changes.push(self.change());
        }
        for _ in 0..self.rng.random_range(0..3) {
            for (what, change) in acct_change(&mut self.rng, &mut self.world) {
                self.note(what);
                changes.push(change);
            }
        }
        if self.rng.random_bool(0.3) {
            let group = format!("g{}", self.rng.random_range(0..3));
            let last = self.lmids.entry(group.clone()).or_default();
            *last += 1;
            let n = *last;
            changes.push(
                self.world.put(
                    CLIENTS,
                    json!({"clientGroupID": group, "clientID": "c", "lastMutationID": n, "userID": null}),
                ),
            );
            changes.push(
                self.world.put(
                    MUTATIONS,
                    json!({"clientGroupID": group, "clientID": "c", "mutationID": n, "result": {"n": n}}),
                ),
            );
        }
        if self.rng.random_bool(0.02) {
            self.serial += 1;
            let (name, spec) = (format!("x{}", self.serial), self.world.spec("comment"));
            self.note(format!("add column {name}"));
            changes.push(add_column(&spec, &name));
        }
        self.world.apply(changes).await;
    }

    fn connect(&mut self, at: usize) {
        let tab = &mut self.tabs[at];
        let store = match self.rng.random_range(0..10) {
            0 => Store::default(),
            1..4 => tab.past.choose(&mut self.rng).unwrap().clone(),
            _ => tab.past.last().unwrap().clone(),
        };
        if self.rng.random_bool(0.2) {
            // A new page over the same database.
            self.serial += 1;
            tab.id = format!("{}-{}", &tab.id[..2], self.serial);
        }
        // An older state of the database may not know what became of its desires; so nothing is left out here.
        let mut ops: Vec<Json> = tab.wanted.iter().map(|h| put(h, ttl(h))).collect();
        ops.extend(hashes().filter(|h| !tab.wanted.contains(h)).map(|h| del(&h)));
        let body = if store.cookie.is_none() { init_by(tab.keys, &ops) } else { again(&ops) };
        let line = format!("connect {} of {} at {:?} with {ops:?}", tab.id, tab.group, store.cookie);
        let mut client = self.world.connect_as(&tab.group, &tab.id, store, body, Some(&tab.user));
        client.keys = tab.keys;
        tab.open = Some(client);
        self.note(line);
    }

    /// Cuts a connection; what its tab took until then stays in its database.
    async fn cut(&mut self, at: usize) {
        let Some(mut client) = self.tabs[at].open.take() else { return };
        if self.rng.random_bool(0.5) {
            take(&mut client).await;
        }
        let line = format!("cut {} of {} at {:?}", client.id, client.group, client.store.cookie);
        self.note(line);
        let past = std::mem::take(&mut client.past);
        client.cut();
        // The first is where the connection began.
        self.tabs[at].past.extend(past.into_iter().skip(1));
        let excess = self.tabs[at].past.len().saturating_sub(40);
        self.tabs[at].past.drain(..excess);
    }

    async fn cut_all(&mut self) {
        for at in 0..self.tabs.len() {
            self.cut(at).await;
        }
    }

    async fn step(&mut self) {
        let at = self.rng.random_range(0..self.tabs.len());
        match self.rng.random_range(0..100) {
            0..40 => self.transaction().await,
            40..58 => {
                let n = self.rng.random_range(0..=HASHES);
                let tab = &mut self.tabs[at];
                let h = hashes().nth(n).unwrap();
                let op = if tab.wanted.remove(&h) {
                    del(&h)
                } else {
                    tab.wanted.insert(h.clone());
                    put(&h, ttl(&h))
                };
                if let Some(client) = &tab.open {
                    client.change(json!([op]));
                }
                let line = format!("{} {op}", tab.id);
                self.note(line);
            }
            58..60 => {
                let tab = &mut self.tabs[at];
                tab.wanted.clear();
                if let Some(client) = &tab.open {
                    client.change(json!([{"op": "clear"}]));
                }
                let line = format!("{} clear", tab.id);
                self.note(line);
            }
            60..68 => self.cut(at).await,
            68..82 => {
                if self.tabs[at].open.is_some() {
                    self.cut(at).await;
                }
                self.connect(at);
            }
            82..85 => {
                self.note("kill".into());
                self.cut_all().await;
                self.world.kill();
                for _ in 0..self.rng.random_range(0..3) {
                    self.transaction().await;
                }
                self.world.start().await;
            }
            85..87 => {
                self.note("drain".into());
                self.world.drain().await;
                // The sockets end when everything was handed over.
                for tab in &mut self.tabs {
                    if let Some(mut client) = tab.open.take() {
                        while !matches!(client.next().await, Seen::Close(_)) {}
                        tab.past.extend(client.past.into_iter().skip(1));
                    }
                }
                for _ in 0..self.rng.random_range(0..3) {
                    self.transaction().await;
                }
                self.world.start().await;
            }
            87..91 => {
                self.note("terminate".into());
                let admin = shared().connect("postgres").await.unwrap();
                admin
                    .execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
                        &[&self.application],
                    )
                    .await
                    .unwrap();
            }
            91..92 => {
                // A tab that is closed is deleted by another of its group.
                let group = self.tabs[at].group.clone();
                let gone = (0..self.tabs.len()).find(|&n| n != at && self.tabs[n].group == group);
                if let (Some(gone), true) = (gone, self.tabs[at].open.is_some()) {
                    self.cut(gone).await;
                    let id = self.tabs[gone].id.clone();
                    self.tabs[gone].wanted.clear();
                    self.note(format!("delete {id}"));
                    let client = self.tabs[at].open.as_ref().unwrap();
                    client.delete_clients(&[&id]);
                }
            }
            92..95 => {
                let h = hash(self.rng.random_range(0..HASHES));
                let ask = asks().choose(&mut self.rng).unwrap().clone();
                self.note(format!("{h} is now {ask:?}"));
                self.world.api.ask(&h, ask.clone());
                self.asks.insert(h, ask);
                // The application tells its clients to refresh their credentials: queries are transformed anew.
                for tab in &self.tabs {
                    if let Some(client) = &tab.open {
                        client.update_auth(context(Some(&tab.user)));
                    }
                }
            }
            _ => self.quiet().await,
        }
    }

    async fn end(&mut self) {
        for at in 0..self.tabs.len() {
            if self.tabs[at].open.is_none() {
                self.connect(at);
            }
        }
        self.quiet().await;
    }

    /// Waits until every connected client has what it must have.
    async fn quiet(&mut self) {
        self.note("quiet".into());
        self.world.alive();
        let until = tokio::time::Instant::now() + PATIENCE;
        for tab in &mut self.tabs {
            let Some(client) = &mut tab.open else { continue };
            let mut asks = self.asks.clone();
            asks.insert(MINE.to_owned(), mine(&tab.user));
            loop {
                take(client).await;
                let last = self.lmids.get(&tab.group).copied();
                let Err(wrong) = check(&self.world, &asks, &tab.wanted, last, client) else { break };
                if tokio::time::Instant::now() > until {
                    panic!("{} of {}: {wrong}", tab.id, tab.group);
                }
                match client.next_within(Duration::from_millis(100)).await {
                    Some(seen) if !is_usual(&seen) => panic!("{} of {} got {seen:?}", tab.id, tab.group),
                    _ => {}
                }
            }
        }
    }
}

fn hashes() -> impl Iterator<Item = String> {
    (0..HASHES).map(hash).chain([MINE.to_owned()])
}

fn is_usual(seen: &Seen) -> bool {
    match seen {
        Seen::Poke(_) => true,
        Seen::Message(tag, _) => tag == "deleteClients",
        Seen::Close(_) => false,
    }
}

/// Takes what has come.
async fn take(client: &mut Client) {
    while let Some(seen) = client.next_within(Duration::ZERO).await {
        assert!(is_usual(&seen), "{} of {} got {seen:?}", client.id, client.group);
    }
}

pub fn check(
    world: &World,
    asks: &BTreeMap<String, Ask>,
    wanted: &BTreeSet<String>,
    last: Option<i64>,
    client: &Client,
) -> Result<(), String> {
    let store = &client.store;
    if client.past.len() < 2 {
        return Err("no poke came".into());
    }
    let desired = store.desired.get(&client.id).cloned().unwrap_or_default();
    if desired != *wanted {
        return Err(format!("desires {desired:?} instead of {wanted:?}"));
    }
    if !wanted.is_subset(&store.got) {
        return Err(format!("got {:?}, wants {wanted:?}", store.got));
    }
    let desired_by_any: BTreeSet<&String> = store.desired.values().flatten().collect();
    if let Some(stale) = store.got.iter().find(|h| ttl(h) == 0 && !desired_by_any.contains(h)) {
        return Err(format!("{stale} is still got"));
    }
    if store.lmids.get("c").copied() != last {
        return Err(format!("last mutation {:?} instead of {last:?}", store.lmids));
    }
    let results = store.mutations.keys().map(|(_, id)| *id);
    if !results.eq(1..=last.unwrap_or(0)) {
        return Err(format!("results of {:?}, not of all up to {last:?}", store.mutations.keys()));
    }
    let expected = world.expected_by(client.keys, store.got.iter().map(|h| &asks[h]));
    if expected == store.rows {
        return Ok(());
    }
    let missing: Vec<_> = expected.iter().filter(|(k, _)| !store.rows.contains_key(*k)).collect();
    let surplus: Vec<_> = store.rows.iter().filter(|(k, _)| !expected.contains_key(*k)).collect();
    let stale: Vec<_> =
        expected.iter().filter(|(k, row)| store.rows.get(*k).is_some_and(|have| have != *row)).collect();
    Err(format!(
        "at {:?}: missing {missing:?}; surplus {surplus:?}; stale {stale:?}; got {:?}",
        store.cookie, store.got
    ))
}

async fn live(seed: u64) {
    let mut life = Life::new(seed).await;
    for n in 0..=STEPS {
        let step = std::panic::AssertUnwindSafe(async { if n < STEPS { life.step().await } else { life.end().await } });
        if let Err(panic) = futures_util::FutureExt::catch_unwind(step).await {
            eprintln!("ZERO_SEED={seed} fails after:\n{}", life.trace.join("\n"));
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn whatever_happens_every_client_has_its_rows() {
    let (first, count) = match std::env::var("ZERO_SEED").ok().and_then(|s| s.parse::<u64>().ok()) {
        Some(seed) => (seed, 1),
        None => {
            (rand::random::<u64>() >> 16, std::env::var("ZERO_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(8))
        }
    };
    println!("ZERO_SEED={first}, {count} seeds from there");
    let next = AtomicU64::new(first);
    std::thread::scope(|scope| {
        for _ in 0..count.min(4) {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    runtime.block_on(live(seed));
                }
            });
        }
    });
}
