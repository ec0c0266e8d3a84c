//! A tab that somebody keeps open: a scripted client that reconnects by itself, by the rules of the published client, and
//! remembers what its user would have noticed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::client::{Client, Query, Store, Watch};

/// The published client's own limits.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(5);
const PONG_LIMIT: Duration = Duration::from_secs(5);
/// The published client waits for 5 s after a failure; tests have less time.
const RETRY_MS: std::ops::Range<u64> = 50..250;

/// What has happened to a tab.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    pub connects: u64,
    /// Attempts that ended before `connected`.
    pub failed_connects: u64,
    /// Connections ended by `Rehome`.
    pub rehomes: u64,
    /// Connections ended without an error.
    pub closes: u64,
    /// Connections given up because no pong came.
    pub silences: u64,
    /// The error that made the client stop, as its user would see it.
    pub stopped: Option<String>,
}

/// The handle of a tab; dropping it closes the tab.
#[derive(Debug)]
pub struct Tab {
    name: String,
    group: String,
    client_id: String,
    client: Arc<tokio::sync::Mutex<Client>>,
    watch: Watch,
    journal: Arc<Mutex<Journal>>,
    keeper: JoinHandle<()>,
}

impl Tab {
    /// Keeps the client connected from now on.
    #[must_use]
    pub fn keep(name: &str, client: Client) -> Tab {
        let (group, client_id) = (client.options.client_group_id.clone(), client.options.client_id.clone());
        let watch = client.watch();
        let client = Arc::new(tokio::sync::Mutex::new(client));
        let journal = Arc::new(Mutex::new(Journal::default()));
        let keeper = Keeper { client: Arc::clone(&client), watch: watch.clone(), journal: Arc::clone(&journal) };
        Tab { name: name.to_owned(), group, client_id, client, watch, journal, keeper: tokio::spawn(keeper.run()) }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }

    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    #[must_use]
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    #[must_use]
    pub fn journal(&self) -> Journal {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs a mutator; without a connection it is sent with the next one. Returns its id.
    pub async fn push(&self, name: &str, args: Value) -> Result<u64> {
        self.client.lock().await.push_or_keep(name, args).await
    }

    /// Wants other queries; without a connection the next one says so.
    pub async fn change_queries(&self, add: &[Query], remove: &[Query]) {
        // What could not be sent is part of the next connection's first message.
        let _ = self.client.lock().await.change_queries(add, remove).await;
    }

    /// The queries that the tab wants.
    pub async fn wanted(&self) -> Vec<Query> {
        self.client.lock().await.wanted().cloned().collect()
    }

    /// Loses the connection without a word, as a laptop whose lid closes.
    pub async fn lose_connection(&self) {
        self.client.lock().await.kill();
        self.watch.announce();
    }

    /// Waits through lost connections. Fails at once when the client has stopped, with what its user would see.
    pub async fn wait(&self, limit: Duration, what: &str, mut condition: impl FnMut(&Store) -> bool) -> Result<()> {
        let waited = self.watch.wait(limit, what, |store| {
            if condition(store) {
                return Ok(Some(()));
            }
            match self.journal().stopped {
                Some(error) => bail!("the user sees an error: {error}"),
                None => Ok(None),
            }
        });
        waited.await.map_err(|error| error.context(format!("{} ({:?})", self.name, self.journal())))
    }

    pub async fn wait_got(&self, limit: Duration, queries: &[Query]) -> Result<()> {
        let hashes: Vec<_> = queries.iter().map(Query::hash).collect();
        self.wait(limit, "its queries", |store| hashes.iter().all(|hash| store.got.contains(hash))).await
    }

    /// Fails if the server broke a rule or the user saw an error.
    pub fn check(&self) -> Result<()> {
        if let Some(error) = self.journal().stopped {
            bail!("{}: the user sees an error: {error}", self.name);
        }
        match self.watch.look(|store| store.violation.clone()) {
            Some(violation) => bail!("{}: the server broke the protocol: {violation}", self.name),
            None => Ok(()),
        }
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

struct Keeper {
    client: Arc<tokio::sync::Mutex<Client>>,
    watch: Watch,
    journal: Arc<Mutex<Journal>>,
}

impl Keeper {
    /// Until an error stops the client.
    async fn run(self) {
        let mut pause = Duration::ZERO;
        loop {
            sleep(pause).await;
            pause = Duration::from_millis(rand::random_range(RETRY_MS));
            let connected = timeout(CONNECT_LIMIT, async { self.client.lock().await.connect().await }).await;
            if !matches!(connected, Ok(Ok(()))) {
                self.note(|journal| journal.failed_connects += 1);
                if let Some(error) = self.watch.look(|store| store.error.clone()) {
                    let Some(wished) = self.pause_after(&error) else { return };
                    pause = pause.max(wished);
                }
                continue;
            }
            self.note(|journal| journal.connects += 1);
            match self.end().await {
                Some(error) => match self.pause_after(&error) {
                    Some(wished) => pause = pause.max(wished),
                    None => return,
                },
                None => self.note(|journal| journal.closes += 1),
            }
        }
    }

    /// Pings until the connection ends; the server's error, if it sent one.
    async fn end(&self) -> Option<Value> {
        loop {
            if let Ok((error, _)) = timeout(PING_EVERY, self.watch.closed()).await {
                return error;
            }
            let before = self.watch.look(|store| store.counts.pongs);
            let _ = self.client.lock().await.send(&json!(["ping", {}])).await;
            let answered = self.watch.wait(PONG_LIMIT, "a pong", |store| {
                Ok((store.counts.pongs > before || store.closed.is_some()).then_some(()))
            });
            if answered.await.is_err() {
                self.note(|journal| journal.silences += 1);
                self.client.lock().await.kill();
            }
        }
    }

    /// What the client does after an error: how long it waits, or `None` when it stops and shows it.
    fn pause_after(&self, error: &Value) -> Option<Duration> {
        if matches!(error["kind"].as_str(), Some("Rehome" | "Rebalance" | "ServerOverloaded"))
            && error["origin"] == json!("zeroCache")
        {
            self.note(|journal| journal.rehomes += 1);
            let least = error["minBackoffMs"].as_u64().unwrap_or(0);
            return Some(Duration::from_millis(least.min(error["maxBackoffMs"].as_u64().unwrap_or(u64::MAX))));
        }
        self.note(|journal| journal.stopped = Some(error.to_string()));
        self.watch.announce();
        None
    }

    fn note(&self, change: impl FnOnce(&mut Journal)) {
        change(&mut self.journal.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
