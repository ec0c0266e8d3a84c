//! Many tabs in client groups, and the question whether all of them are right.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use testkit::client::{Client, Options, Query};
use testkit::oracle::{Snapshot, check_store};
use testkit::postgres::Database;
use testkit::tab::Tab;
use tokio::sync::watch;

use crate::app::{TABLES, asts, client_schema, fence, query};
use crate::chaos::random;

/// How long anybody may take to come back after the last fault, on a busy machine of two cores.
const CALM: Duration = Duration::from_secs(60);

/// An operation that takes longer has failed for its user, connected or not.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// What came of using an application for a while.
pub struct Use {
    pub crowd: Crowd,
    pub operations: u32,
    pub slowest: Duration,
}

/// The tabs, and what they have asked for.
#[derive(Default)]
pub struct Crowd {
    pub tabs: Vec<Tab>,
    /// Every query ever wanted, by hash: tabs of a group receive each other's.
    known: BTreeMap<String, Query>,
    /// The last mutation of each tab, by client.
    pushed: BTreeMap<String, u64>,
}

impl Crowd {
    /// `groups` client groups of `size` tabs each, with random queries of which groups share some.
    pub fn gather(options: impl Fn() -> Options, groups: usize, size: usize, dice: &mut StdRng) -> Crowd {
        let mut crowd = Crowd::default();
        crowd.known.insert(fence().hash(), fence());
        let pool: Vec<_> = (0..groups + 5).map(|_| crowd.random_query(dice)).collect();
        for group in 0..groups {
            let first = options();
            for member in 0..size {
                let mut options = if member == 0 { first.clone() } else { first.sibling() };
                options.init_in_header = dice.random();
                let mut client = Client::new(options);
                client.want(&[fence(), pool[dice.random_range(0..pool.len())].clone()]);
                crowd.tabs.push(Tab::keep(&format!("tab {member} of group {group}"), client));
            }
        }
        crowd
    }

    fn random_query(&mut self, dice: &mut StdRng) -> Query {
        let query = query(random::ast(dice));
        self.known.insert(query.hash(), query.clone());
        query
    }

    /// One tab adds a query, and removes one when it has many.
    pub async fn change_queries(&mut self, dice: &mut StdRng) {
        let index = dice.random_range(0..self.tabs.len());
        self.change_queries_of(index, dice).await;
    }

    pub async fn change_queries_of(&mut self, index: usize, dice: &mut StdRng) {
        let wanted: Vec<_> = self.tabs[index].wanted().await.into_iter().filter(|query| *query != fence()).collect();
        let remove =
            if wanted.len() > 2 { vec![wanted[dice.random_range(0..wanted.len())].clone()] } else { Vec::new() };
        let known: Vec<_> = self.known.values().cloned().collect();
        let add = if dice.random_bool(0.7) {
            known[dice.random_range(0..known.len())].clone()
        } else {
            self.random_query(dice)
        };
        let add = if remove.contains(&add) { Vec::new() } else { vec![add] };
        self.tabs[index].change_queries(&add, &remove).await;
    }

    /// One tab runs a mutator that counts itself.
    pub async fn push(&mut self, dice: &mut StdRng) -> Result<()> {
        let index = dice.random_range(0..self.tabs.len());
        self.push_from(index).await.map(drop)
    }

    /// The mutation's number.
    pub async fn push_from(&mut self, index: usize) -> Result<u64> {
        let tab = &self.tabs[index];
        let id = tab.push("count", Value::Null).await?;
        self.pushed.insert(tab.client_id().to_owned(), id);
        Ok(id)
    }

    /// Mutations and changes of queries by one tab after the other until somebody says that it is over; each must be answered.
    pub async fn use_until(
        mut self,
        mut dice: StdRng,
        is_over: watch::Receiver<bool>,
        patience: Duration,
    ) -> Result<Use> {
        let (mut operations, mut slowest) = (0, Duration::ZERO);
        for turn in 0.. {
            if *is_over.borrow() {
                break;
            }
            let index = turn % self.tabs.len();
            let begin = Instant::now();
            let mutation = self.push_from(index).await?;
            self.change_queries_of(index, &mut dice).await;
            let tab = &self.tabs[index];
            let answered = tab.wait(patience, "its mutation", |store| {
                store.last_mutation_ids.get(tab.client_id()).is_some_and(|last| *last >= mutation)
            });
            answered.await?;
            tab.wait_got(patience, &tab.wanted().await).await?;
            slowest = slowest.max(begin.elapsed());
            operations += 2;
            self.check()?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Use { crowd: self, operations, slowest })
    }

    pub fn pushes(&self) -> u64 {
        self.pushed.values().sum()
    }

    pub async fn lose_a_connection(&self, dice: &mut StdRng) {
        self.tabs[dice.random_range(0..self.tabs.len())].lose_connection().await;
    }

    /// Fails if any user saw an error or any tab a breach of the protocol.
    pub fn check(&self) -> Result<()> {
        self.tabs.iter().try_for_each(Tab::check)
    }

    /// Waits until every tab has its queries, its mutations and all commits so far, each mutation run exactly once, and compares
    /// the rows of each with Postgres. Nobody else may write meanwhile.
    pub async fn settle(&self, database: &Database<'_>) -> Result<()> {
        for tab in &self.tabs {
            tab.wait_got(CALM, &tab.wanted().await).await?;
            if let Some(last) = self.pushed.get(tab.client_id()) {
                tab.wait(CALM, "its mutations", |store| store.last_mutation_ids.get(tab.client_id()) == Some(last))
                    .await?;
            }
        }
        let mut upstream = database.connect().await?;
        let counted = "SELECT COALESCE(sum(value), 0)::int8 FROM fence WHERE id = 2";
        let ran: i64 = upstream.query_one(counted, &[]).await?.get(0);
        ensure!(ran == i64::try_from(self.pushes())?, "{} mutations were asked for and {ran} ran", self.pushes());
        let raise = "UPDATE fence SET value = value + 1 WHERE id = 1 RETURNING value";
        let value: i32 = upstream.query_one(raise, &[]).await?.get(0);
        for tab in &self.tabs {
            let seen = tab.wait(CALM, "the fence", |store| {
                let row = store.rows.get("fence").and_then(|rows| rows.get("[1]"));
                row.is_some_and(|row| row["value"] == json!(value))
            });
            seen.await?;
        }
        let snapshot = Snapshot::read(&mut upstream, &TABLES).await?;
        for tab in &self.tabs {
            tab.check()?;
            let store = tab.watch().look(Clone::clone);
            let got: Vec<_> = store.got.iter().filter_map(|hash| self.known.get(hash)).cloned().collect();
            check_store(&snapshot, &store, &asts(&got), &client_schema()).with_context(|| {
                format!(
                    "{} at {:?} with {}; its last messages were\n{}",
                    tab.name(),
                    store.cookie,
                    json!(asts(&got)),
                    store.transcript.iter().cloned().collect::<Vec<_>>().join("\n")
                )
            })?;
        }
        Ok(())
    }

    /// What the tabs have been through, in one line.
    pub fn summary(&self) -> String {
        let journals: Vec<_> = self.tabs.iter().map(Tab::journal).collect();
        let sum = |of: fn(&testkit::tab::Journal) -> u64| journals.iter().map(of).sum::<u64>();
        format!(
            "{} tabs: {} connections, {} failed attempts, {} rehomed, {} closed, {} silent",
            self.tabs.len(),
            sum(|j| j.connects),
            sum(|j| j.failed_connects),
            sum(|j| j.rehomes),
            sum(|j| j.closes),
            sum(|j| j.silences)
        )
    }
}
