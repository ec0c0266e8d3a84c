//! Seeded random lives of several nodes: replicas at different speeds, groups that come to any node at any time, nodes that are
//! killed, drained, cut off from the database or stopped for a while. At every quiet point each client has its rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rows::Change;
use serde_json::{Value as Json, json};
use tokio::time::Instant;
use views::Ending;
use views::limits::Limits;

use crate::client::{Client, PATIENCE, Seen, Store, del, put};
use crate::cluster::{Cluster, quick, rehomed};
use crate::data::{Ask, CLIENTS, MUTATIONS};
use crate::random::{HASHES, asks, check, hash, random_change, small, ttl};
use crate::schema::add_column;
use crate::world::{again, context, init, shared};

const STEPS: usize = 70;

/// One tab: its database, past and present, what it wants, and where it is.
struct Tab {
    group: String,
    id: String,
    wanted: BTreeSet<String>,
    past: Vec<Store>,
    open: Option<(usize, Client)>,
    /// When it may connect again, as it was told.
    retry_at: Instant,
}

struct Life {
    rng: StdRng,
    cluster: Cluster,
    tabs: Vec<Tab>,
    asks: BTreeMap<String, Ask>,
    serial: u64,
    lmids: BTreeMap<String, i64>,
    trace: Vec<String>,
    /// Routing sends a group to one node, most of the time.
    is_sticky: bool,
    rehomes: usize,
}

impl Life {
    async fn new(seed: u64) -> Life {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(2..4);
        let mut cluster = Cluster::stopped(count).await;
        let limits = if rng.random_bool(0.6) {
            let quick = quick();
            Limits {
                heartbeat: Duration::from_millis(rng.random_range(5..200)),
                node_live: Duration::from_millis(rng.random_range(0..600)),
                contested_max: Duration::from_millis(rng.random_range(0..400)),
                behind: Duration::from_millis(rng.random_range(50..800)),
                node_dead: Duration::from_secs(if rng.random_bool(0.3) { 2 } else { 900 }),
                ..if rng.random_bool(0.7) { small(&mut rng) } else { quick }
            }
        } else {
            quick()
        };
        for node in &mut cluster.nodes {
            node.world.limits = limits.clone();
            node.world.cvr_connections_max = rng.random_range(1..3);
            node.world.start().await;
        }
        let mut asked = BTreeMap::new();
        for n in 0..HASHES {
            let ask = asks().choose(&mut rng).unwrap().clone();
            cluster.api().ask(&hash(n), ask.clone());
            asked.insert(hash(n), ask);
        }
        let tabs = (0..6)
            .map(|n| Tab {
                group: format!("g{}", n % 3),
                id: format!("c{n}"),
                wanted: BTreeSet::new(),
                past: vec![Store::default()],
                open: None,
                retry_at: Instant::now(),
            })
            .collect();
        let trace = vec![format!("{count} nodes, {limits:#?}\n{asked:?}")];
        let is_sticky = rng.random_bool(0.5);
        let (serial, lmids, rehomes) = (0, BTreeMap::new(), 0);
        Life { rng, cluster, tabs, asks: asked, serial, lmids, trace, is_sticky, rehomes }
    }

    fn note(&mut self, what: String) {
        self.trace.push(what);
    }

    async fn transaction(&mut self) {
        let mut changes = Vec::new();
        if self.rng.random_bool(0.03) {
            let table = ["issue", "comment", "label"].choose(&mut self.rng).copied().unwrap();
            self.note(format!("truncate {table}"));
            self.cluster.source.model.remove(table);
            changes.push(Change::Truncate { tables: vec![self.cluster.source.spec(table)] });
        }
        for _ in 0..self.rng.random_range(1..5) {
            let (what, change) = random_change(&mut self.rng, &mut self.cluster.source);
            self.note(what);
            changes.push(change);
        }
        if self.rng.random_bool(0.3) {
            let group = format!("g{}", self.rng.random_range(0..3));
            let last = self.lmids.entry(group.clone()).or_default();
            *last += 1;
            let n = *last;
            self.note(format!("mutation {n} of {group}"));
            let source = &mut self.cluster.source;
            let id = json!({"clientGroupID": group, "clientID": "c", "lastMutationID": n, "userID": null});
            changes.push(source.put(CLIENTS, id));
            let result = json!({"clientGroupID": group, "clientID": "c", "mutationID": n, "result": {"n": n}});
            changes.push(source.put(MUTATIONS, result));
        }
        if self.rng.random_bool(0.02) {
            self.serial += 1;
            let (name, spec) = (format!("x{}", self.serial), self.cluster.source.spec("comment"));
            self.note(format!("add column {name}"));
            changes.push(add_column(&spec, &name));
        }
        self.cluster.commit(changes).await;
        for n in 0..self.cluster.nodes.len() {
            if self.rng.random_bool(0.7) {
                let count = self.rng.random_range(1..4);
                self.advance(n, count).await;
            }
        }
    }

    async fn advance(&mut self, n: usize, count: usize) {
        // A node that is not running does not apply anything either, but for what it does at its start.
        if self.cluster.nodes[n].world.is_running() {
            if self.rng.random_bool(0.5) {
                self.cluster.advance(n, count).await;
            } else {
                self.cluster.advance_at_once(n, count).await;
            }
        }
    }

    fn running(&self) -> Vec<usize> {
        (0..self.cluster.nodes.len()).filter(|&n| self.cluster.nodes[n].world.is_running()).collect()
    }

    /// Where routing sends a group. A node that is held is known to be unwell after a while.
    fn route(&mut self, group: &str) -> Option<usize> {
        let mut running = self.running();
        if self.rng.random_bool(0.8) {
            running.retain(|&n| !self.cluster.nodes[n].is_held);
        }
        if self.is_sticky && self.rng.random_bool(0.8) {
            let turn = usize::from(group.as_bytes()[1]);
            return running.get(turn % running.len().max(1)).copied();
        }
        running.choose(&mut self.rng).copied()
    }

    fn connect(&mut self, at: usize, is_exact: bool) {
        let group = self.tabs[at].group.clone();
        let Some(n) = self.route(&group) else { return };
        let tab = &mut self.tabs[at];
        let store = match self.rng.random_range(0..10) {
            _ if is_exact => tab.past.last().unwrap().clone(),
            0 => Store::default(),
            1..4 => tab.past.choose(&mut self.rng).unwrap().clone(),
            _ => tab.past.last().unwrap().clone(),
        };
        if !is_exact && self.rng.random_bool(0.2) {
            self.serial += 1;
            tab.id = format!("{}-{}", &tab.id[..2], self.serial);
        }
        let mut ops: Vec<Json> = tab.wanted.iter().map(|h| put(h, ttl(h))).collect();
        ops.extend((0..HASHES).map(hash).filter(|h| !tab.wanted.contains(h)).map(|h| del(&h)));
        let body = if store.cookie.is_none() { init(&ops) } else { again(&ops) };
        let line = format!("connect {} of {} to node {n} at {:?}", tab.id, tab.group, store.cookie);
        let client = self.cluster.nodes[n].world.connect(&tab.group, &tab.id, store, body);
        tab.open = Some((n, client));
        self.note(line);
    }

    /// Takes what has come; a tab that is sent away has no connection then.
    async fn take(&mut self, at: usize, patience: Duration) {
        let Some((n, mut client)) = self.tabs[at].open.take() else { return };
        let mut wait = patience;
        while let Some(seen) = client.next_within(wait).await {
            wait = Duration::ZERO;
            match seen {
                Seen::Poke(poke) => self.trace.push(format!(
                    "{} of {} from node {n}: {:?} to {}, put {:?}, del {:?}, got {:?}",
                    client.id,
                    client.group,
                    poke.base,
                    poke.cookie,
                    poke.keys("put"),
                    poke.keys("del"),
                    poke.got()
                )),
                Seen::Message(tag, _) if tag == "deleteClients" => {}
                Seen::Message(tag, error) if tag == "error" => {
                    let after = rehomed(&error);
                    self.rehomes += 1;
                    self.note(format!("{} is sent away by node {n}: {}", client.id, error["message"]));
                    // Scaled like the limits.
                    self.tabs[at].retry_at = Instant::now() + Duration::from_millis(after.min(100));
                    self.keep(at, client);
                    return;
                }
                Seen::Close(_) => {
                    self.keep(at, client);
                    return;
                }
                other => panic!("{} of {} got {other:?}", client.id, client.group),
            }
        }
        self.tabs[at].open = Some((n, client));
    }

    /// What a tab took until its connection ended stays in its database.
    fn keep(&mut self, at: usize, mut client: Client) {
        let past = std::mem::take(&mut client.past);
        client.cut();
        let tab = &mut self.tabs[at];
        // The first is where the connection began.
        tab.past.extend(past.into_iter().skip(1));
        let excess = tab.past.len().saturating_sub(40);
        tab.past.drain(..excess);
    }

    async fn cut(&mut self, at: usize) {
        if self.rng.random_bool(0.5) {
            self.take(at, Duration::ZERO).await;
        }
        let Some((n, client)) = self.tabs[at].open.take() else { return };
        self.note(format!("cut {} from node {n} at {:?}", client.id, client.store.cookie));
        self.keep(at, client);
    }

    async fn stop(&mut self, n: usize, is_graceful: bool) {
        if is_graceful {
            self.note(format!("drain node {n}"));
            self.cluster.nodes[n].world.drain().await;
        }
        for at in 0..self.tabs.len() {
            if self.tabs[at].open.as_ref().is_some_and(|(of, _)| *of == n) {
                if is_graceful {
                    // The sockets end when everything was handed over.
                    while self.tabs[at].open.is_some() {
                        self.take(at, PATIENCE).await;
                    }
                } else {
                    self.cut(at).await;
                }
            }
        }
        if !is_graceful {
            self.note(format!("kill node {n}"));
            self.cluster.nodes[n].world.kill();
            self.cluster.release(n);
        }
    }

    async fn start(&mut self, n: usize) {
        self.note(format!("start node {n}"));
        let count = self.rng.random_range(0..4);
        self.cluster.advance(n, count).await;
        self.cluster.nodes[n].world.start().await;
    }

    async fn step(&mut self) {
        let at = self.rng.random_range(0..self.tabs.len());
        let n = self.rng.random_range(0..self.cluster.nodes.len());
        let is_running = self.cluster.nodes[n].world.is_running();
        let is_held = self.cluster.nodes[n].is_held;
        match self.rng.random_range(0..100) {
            0..34 => self.transaction().await,
            34..40 => {
                let count = self.rng.random_range(1..6);
                self.advance(n, count).await;
            }
            40..54 => {
                let h = hash(self.rng.random_range(0..HASHES));
                let tab = &mut self.tabs[at];
                let op = if tab.wanted.remove(&h) {
                    del(&h)
                } else {
                    tab.wanted.insert(h.clone());
                    put(&h, ttl(&h))
                };
                if let Some((_, client)) = &tab.open {
                    client.change(json!([op]));
                }
                let line = format!("{} {op}", tab.id);
                self.note(line);
            }
            54..60 => self.cut(at).await,
            60..78 => {
                if self.tabs[at].open.is_some() {
                    self.cut(at).await;
                }
                self.connect(at, false);
            }
            78..82 if is_running && self.running().len() > 1 => self.stop(n, false).await,
            82..84 if is_running && !is_held && self.running().len() > 1 => self.stop(n, true).await,
            78..86 if !is_running => self.start(n).await,
            86..89 if is_running && !is_held => {
                self.note(format!("hold node {n}"));
                self.cluster.hold(n);
            }
            86..91 if is_held => {
                self.note(format!("release node {n}"));
                self.cluster.release(n);
            }
            91..92 => {
                self.note(format!("cut node {n} from the database"));
                self.cluster.cut(n);
            }
            92..93 => {
                self.note("terminate".into());
                let admin = shared().connect("postgres").await.unwrap();
                let text = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
                admin.execute(text, &[&self.cluster.application]).await.unwrap();
            }
            93..96 => {
                let h = hash(self.rng.random_range(0..HASHES));
                let ask = asks().choose(&mut self.rng).unwrap().clone();
                self.note(format!("{h} is now {ask:?}"));
                self.cluster.api().ask(&h, ask.clone());
                self.asks.insert(h, ask);
                for (_, client) in self.tabs.iter().filter_map(|t| t.open.as_ref()) {
                    client.update_auth(context(None));
                }
            }
            _ => self.quiet().await,
        }
    }

    /// Everything is well again, and every tab comes to have what it must have.
    async fn quiet(&mut self) {
        self.note("quiet".into());
        for n in 0..self.cluster.nodes.len() {
            if !self.cluster.nodes[n].world.is_running() {
                self.start(n).await;
            }
            self.cluster.release(n);
            self.cluster.advance(n, usize::MAX).await;
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let mut wrong = None;
            for at in 0..self.tabs.len() {
                self.replace_struck_off().await;
                self.take(at, Duration::ZERO).await;
                if self.tabs[at].open.is_none() {
                    if self.tabs[at].retry_at <= Instant::now() {
                        self.connect(at, true);
                    }
                    wrong = Some(format!("{} is not connected", self.tabs[at].id));
                    continue;
                }
                let tab = &self.tabs[at];
                let last = self.lmids.get(&tab.group).copied();
                let Some((_, client)) = &tab.open else { continue };
                if let Err(what) = check(&self.cluster.source, &self.asks, &tab.wanted, last, client) {
                    wrong = Some(format!("{} of {}: {what}", tab.id, tab.group));
                    self.take(at, Duration::from_millis(10)).await;
                }
            }
            let Some(wrong) = wrong else { return };
            if Instant::now() > until {
                let rows = self.cluster.query("SELECT id, epoch, bound, record FROM cvr.groups").await;
                for row in rows {
                    let record: Option<String> = row.get(3);
                    self.note(format!(
                        "{} {} {} {record:?}",
                        row.get::<_, String>(0),
                        row.get::<_, i64>(1),
                        row.get::<_, i64>(2)
                    ));
                }
                panic!("{wrong}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A node that was held for so long that the others gave it up stops; something starts it again.
    async fn replace_struck_off(&mut self) {
        for n in 0..self.cluster.nodes.len() {
            if let Some(ending) = self.cluster.nodes[n].world.has_ended() {
                let is_struck_off = matches!(&ending, Ending::Failed(reason) if reason.contains("for dead"));
                assert!(is_struck_off, "node {n} ended: {ending:?}");
                self.stop(n, false).await;
                self.start(n).await;
                self.cluster.advance(n, usize::MAX).await;
            }
        }
    }
}

async fn live(seed: u64) -> usize {
    let mut life = Life::new(seed).await;
    for n in 0..=STEPS {
        let step =
            std::panic::AssertUnwindSafe(async { if n < STEPS { life.step().await } else { life.quiet().await } });
        if let Err(panic) = futures_util::FutureExt::catch_unwind(step).await {
            eprintln!("ZERO_SEED={seed} fails after:\n{}", life.trace.join("\n"));
            std::panic::resume_unwind(panic);
        }
    }
    life.rehomes
}

#[test]
fn whatever_happens_on_several_nodes_every_client_has_its_rows() {
    let (first, count) = match std::env::var("ZERO_SEED").ok().and_then(|s| s.parse::<u64>().ok()) {
        Some(seed) => (seed, 1),
        None => {
            (rand::random::<u64>() >> 16, std::env::var("ZERO_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(6))
        }
    };
    println!("ZERO_SEED={first}, {count} seeds from there");
    let (next, rehomes) = (AtomicU64::new(first), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..count.min(4) {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    rehomes.fetch_add(runtime.block_on(live(seed)) as u64, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{} clients were sent away", rehomes.load(Ordering::Relaxed));
}
