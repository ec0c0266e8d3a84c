//! Several nodes over one CVR database, each with a replica that applies the same transactions at its own speed, and with a
//! way to the database that can be held: what a node sends then arrives late, as from a process that was stopped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rows::Change;
use serde_json::Value as Json;
use testkit::proxy::Proxy;
use views::limits::Limits;

use crate::world::{World, issue, shared};

/// Limits under which things that take seconds in production take a moment.
pub fn quick() -> Limits {
    Limits {
        heartbeat: Duration::from_millis(50),
        node_live: Duration::from_millis(500),
        contested_max: Duration::from_millis(400),
        behind: Duration::from_millis(600),
        ..Limits::default()
    }
}

pub struct Node {
    pub world: World,
    /// Transactions of the log that its replica has.
    pub applied: usize,
    proxy: Proxy,
    pub is_held: bool,
}

pub struct Cluster {
    /// Upstream: a replica that has everything, and no views.
    pub source: World,
    pub nodes: Vec<Node>,
    log: Vec<(u64, Vec<Change>)>,
    /// Of the nodes' connections to the database.
    pub application: String,
}

impl Cluster {
    pub async fn new(count: usize) -> Cluster {
        let mut cluster = Cluster::stopped(count).await;
        for node in &mut cluster.nodes {
            node.world.start().await;
        }
        cluster
    }

    pub async fn stopped(count: usize) -> Cluster {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let application = format!("nodes-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut cluster = Cluster { source: World::stopped(""), nodes: vec![], log: vec![], application };
        for _ in 0..count {
            cluster.add("copy-1", 10).await;
        }
        cluster
    }

    /// One more node, not started, over a copy made at a version.
    pub async fn add(&mut self, copy: &str, version: u64) -> usize {
        let proxy = Proxy::relay(shared().port()).await.unwrap();
        let url =
            format!("postgres://postgres@127.0.0.1:{}/postgres?application_name={}", proxy.port(), self.application);
        let mut world = World::of_copy(&url, copy, version);
        world.cvr_schema = self.source.cvr_schema.clone();
        world.api = self.source.api.clone();
        world.limits = quick();
        self.nodes.push(Node { world, applied: 0, proxy, is_held: false });
        self.nodes.len() - 1
    }

    /// Happens upstream; no node has it yet.
    pub async fn commit(&mut self, changes: Vec<Change>) {
        self.source.apply(changes.clone()).await;
        self.log.push((self.source.version, changes));
    }

    /// Happens upstream and arrives everywhere.
    pub async fn everywhere(&mut self, changes: Vec<Change>) {
        self.commit(changes).await;
        for n in 0..self.nodes.len() {
            self.advance(n, usize::MAX).await;
        }
    }

    /// Brings up to so many transactions to a node.
    pub async fn advance(&mut self, n: usize, count: usize) {
        let node = &mut self.nodes[n];
        for (version, changes) in self.log[node.applied..].iter().take(count) {
            node.world.apply_at(*version, changes.clone()).await;
            node.applied += 1;
        }
    }

    /// Brings up to so many transactions to a running node, which takes them in one step.
    pub async fn advance_at_once(&mut self, n: usize, count: usize) {
        let node = &mut self.nodes[n];
        let log = self.log[node.applied..].iter().take(count);
        let batches: Vec<_> = log.map(|(version, changes)| node.world.commit_at(*version, changes.clone())).collect();
        node.applied += batches.len();
        for batch in batches {
            node.world.publish(batch).await;
        }
    }

    pub async fn issue(&mut self, id: &str, owner: &str, n: i64) {
        let change = self.source.put("issue", issue(id, owner, n));
        self.everywhere(vec![change]).await;
    }

    /// From now on nothing passes between a node and the database.
    pub fn hold(&mut self, n: usize) {
        self.nodes[n].is_held = true;
        self.nodes[n].proxy.hold(shared().port());
    }

    pub fn release(&mut self, n: usize) {
        self.nodes[n].is_held = false;
        self.nodes[n].proxy.release(shared().port());
    }

    pub fn cut(&self, n: usize) {
        if !self.nodes[n].is_held {
            self.nodes[n].proxy.cut(shared().port());
        }
    }

    pub async fn query(&self, text: &str) -> Vec<tokio_postgres::Row> {
        let client = shared().connect("postgres").await.unwrap();
        client.query(&text.replace("cvr.", &format!("\"{}\".", self.source.cvr_schema)), &[]).await.unwrap()
    }

    pub async fn owner(&self, group: &str) -> Option<i64> {
        self.query(&format!("SELECT owner FROM cvr.groups WHERE id = '{group}'"))
            .await
            .first()
            .and_then(|row| row.get(0))
    }

    pub async fn text(&self, text: &str) -> String {
        self.query(text).await[0].get::<_, Option<String>>(0).unwrap_or_default()
    }

    pub async fn count(&self, table: &str) -> i64 {
        self.query(&format!("SELECT count(*) FROM cvr.{table}")).await[0].get(0)
    }

    pub fn api(&self) -> &crate::world::Api {
        &self.source.api
    }

    pub fn metric(&self, n: usize) -> &views::metrics::Metrics {
        self.nodes[n].world.metrics()
    }
}

/// What a client is told that another node serves, and how long it may wait.
pub fn rehomed(error: &Json) -> u64 {
    assert_eq!((error["kind"].as_str(), error["origin"].as_str()), (Some("Rehome"), Some("zeroCache")), "{error}");
    error["maxBackoffMs"].as_u64().expect("how long to wait at most")
}

/// Waits until something is so.
pub async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(tokio::time::Instant::now() < until, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
