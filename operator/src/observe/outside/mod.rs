//! What the operator learns from outside Kubernetes: from Postgres, from the data plane's own report, from the backup's store.
//!
//! Asking takes time and servers fail, so no reconcile waits for it: [`Outside::look`] says what is known and has the rest asked
//! in the background. Whenever an answer changes what planning comes to, the resource is named on [`Changes`].
//!
//! Invariants: at most so many questions are asked at a time, each with a limit of time and size; one resource's dead servers
//! delay nobody else's status; nothing is asked about a resource that nobody looks at any longer; values of Secrets are neither
//! stored anywhere nor printed.

mod certificates;
mod data_plane;
mod facts;
mod inputs;
mod postgres;
mod release;
mod slot;
mod store;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use crds::ZeroCache;
use futures_util::Stream;
use kube::runtime::reflector::{Lookup, ObjectRef};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;

use super::{Databases, Pending};
use certificates::Certificates;
pub use facts::Facts;
pub use inputs::{Door, Encryption, Inputs, Node, Reached, SecretText, Shard, Store};
pub use slot::Rhythm;
use slot::{Question, Slot};

/// Databases asked at the same time, and data planes, and stores.
const DATABASES_AT_ONCE: usize = 32;
const NODES_AT_ONCE: usize = 32;
const STORES_AT_ONCE: usize = 8;
/// Between two attempts to release the same upstream.
const RELEASE_PAUSE: Duration = Duration::from_secs(15);

/// Names a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    #[must_use]
    pub fn of(cache: &ZeroCache) -> Key {
        let metadata = &cache.metadata;
        Key {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }
}

/// How often questions are asked.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub databases: Rhythm,
    pub nodes: Rhythm,
    pub store: Rhythm,
    /// Resources that nobody looked at for so long are forgotten.
    pub forget_after: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        let rhythm = |quick, slow| Rhythm { quick: Duration::from_secs(quick), slow: Duration::from_secs(slow) };
        Timing {
            databases: rhythm(15, 60),
            nodes: rhythm(5, 15),
            store: rhythm(15, 300),
            // Three times as long as a resource stays without a reconcile.
            forget_after: Duration::from_secs(900),
        }
    }
}

/// What the operator knows of the world outside. Cheap to clone; the background ends with the last clone.
#[derive(Clone)]
pub struct Outside {
    shared: Arc<Shared>,
}

/// Resources about which something new is known, each named once until it is looked at.
#[derive(Debug)]
pub struct Changes {
    receiver: mpsc::UnboundedReceiver<Key>,
}

struct Shared {
    entries: Mutex<HashMap<Key, Entry>>,
    timing: Timing,
    servers: Arc<Servers>,
    changed: mpsc::UnboundedSender<Key>,
    /// Something may be due.
    wake: Notify,
    databases: Arc<Semaphore>,
    nodes: Arc<Semaphore>,
    stores: Arc<Semaphore>,
}

/// What all questions share.
struct Servers {
    stores: store::Client,
    certificates: Certificates,
}

struct Entry {
    inputs: Inputs,
    looked_at: Instant,
    /// Named on the channel and not looked at since: at most one place in the channel for each resource.
    is_told: bool,
    upstream: Slot<postgres::Database>,
    cvr: Slot<postgres::Database>,
    change: Slot<postgres::Database>,
    node: Slot<data_plane::Status>,
    store: Slot<store::Prefix>,
    release: Release,
}

#[derive(Debug)]
enum Release {
    NotAsked,
    Running,
    Done,
    Failed { text: String, again_at: Instant },
}

impl Outside {
    /// Starts asking in the background of the present runtime.
    #[must_use]
    pub fn start(timing: Timing) -> (Outside, Changes) {
        let (changed, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            entries: Mutex::default(),
            timing,
            servers: Arc::new(Servers { stores: store::Client::new(), certificates: Certificates::default() }),
            changed,
            wake: Notify::new(),
            databases: Arc::new(Semaphore::new(DATABASES_AT_ONCE)),
            nodes: Arc::new(Semaphore::new(NODES_AT_ONCE)),
            stores: Arc::new(Semaphore::new(STORES_AT_ONCE)),
        });
        tokio::spawn(keep_asking(Arc::downgrade(&shared)));
        (Outside { shared }, Changes { receiver })
    }

    /// What is known, at once. What is asked follows `inputs` from now on.
    #[must_use]
    pub fn look(&self, key: &Key, inputs: Inputs) -> Facts {
        let now = Instant::now();
        let mut entries = self.shared.entries();
        let entry = entries.entry(key.clone()).or_insert_with(|| Entry::new(now));
        if entry.inputs.uid != inputs.uid {
            // Another resource of the same name.
            *entry = Entry::new(now);
        }
        entry.looked_at = now;
        entry.is_told = false;
        entry.pose(inputs, &self.shared.timing, now);
        let facts = entry.facts();
        drop(entries);
        self.shared.wake.notify_one();
        facts
    }

    /// Has the replication slot, the publications and the schemas of a resource dropped, unless that is under way or done. How
    /// it went is among the facts of the next look.
    pub fn release(&self, cache: &ZeroCache) {
        let key = Key::of(cache);
        let mut entries = self.shared.entries();
        let Some(entry) = entries.get_mut(&key) else { return };
        match &entry.release {
            Release::Running | Release::Done => return,
            Release::Failed { again_at, .. } if *again_at > Instant::now() => return,
            Release::NotAsked | Release::Failed { .. } => {}
        }
        entry.release = Release::Running;
        let (inputs, uid) = (entry.inputs.clone(), entry.inputs.uid.clone());
        drop(entries);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let outcome = release::release(&inputs, &shared.servers).await;
            let mut entries = shared.entries();
            let Some(entry) = entries.get_mut(&key).filter(|entry| entry.inputs.uid == uid) else { return };
            entry.release = match outcome {
                Ok(()) => Release::Done,
                Err(text) => Release::Failed { text, again_at: Instant::now() + RELEASE_PAUSE },
            };
            shared.tell(&key, entry);
        });
    }

    /// Nothing is asked about a resource that is gone.
    pub fn forget(&self, key: &Key) {
        self.shared.entries().remove(key);
    }

    /// Resources that are asked about.
    #[must_use]
    pub fn resources(&self) -> usize {
        self.shared.entries().len()
    }
}

impl Changes {
    /// The resources as references of the controller's type.
    pub fn references<K>(self) -> impl Stream<Item = ObjectRef<K>> + Send + 'static
    where
        K: Lookup<DynamicType = ()> + 'static,
    {
        use futures_util::StreamExt as _;
        self.map(|key| ObjectRef::<K>::new(&key.name).within(&key.namespace))
    }
}

impl Stream for Changes {
    type Item = Key;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Key>> {
        self.receiver.poll_recv(context)
    }
}

impl Entry {
    fn new(now: Instant) -> Entry {
        Entry {
            inputs: Inputs::default(),
            looked_at: now,
            is_told: false,
            upstream: Slot::new(now),
            cvr: Slot::new(now),
            change: Slot::new(now),
            node: Slot::new(now),
            store: Slot::new(now),
            release: Release::NotAsked,
        }
    }

    fn pose(&mut self, inputs: Inputs, timing: &Timing, now: Instant) {
        if self.inputs != inputs {
            let database = |part| postgres::Database::of(part, &inputs);
            self.upstream.pose(database(postgres::Part::Upstream), now);
            self.cvr.pose(database(postgres::Part::Cvr), now);
            self.change.pose(database(postgres::Part::Change), now);
            let nodes = inputs.nodes.clone();
            self.node.pose((!nodes.is_empty()).then_some(data_plane::Status(nodes)), now);
            self.store.pose(inputs.store.clone().map(store::Prefix), now);
        }
        if inputs.is_busy && !self.inputs.is_busy {
            self.upstream.hurry(timing.databases.quick, now);
            self.cvr.hurry(timing.databases.quick, now);
            self.change.hurry(timing.databases.quick, now);
            self.node.hurry(timing.nodes.quick, now);
            self.store.hurry(timing.store.quick, now);
        }
        self.inputs = inputs;
    }

    fn facts(&self) -> Facts {
        let (prefix, store_fault) = match self.store.answer() {
            Some(Ok(objects)) => (Some(*objects), None),
            Some(Err(fault)) => (None, Some(fault.clone())),
            None => (None, None),
        };
        let generation = self.inputs.store.as_ref().map(|store| store.generation.clone());
        Facts {
            databases: Databases {
                upstream: self.upstream.answer().cloned(),
                cvr: self.cvr.answer().cloned(),
                change: self.change.answer().cloned(),
            },
            nodes: self.node.answer().cloned().flatten(),
            prefixes: generation.zip(prefix).into_iter().collect(),
            store_fault,
            release: match &self.release {
                Release::NotAsked | Release::Running => None,
                Release::Done => Some(Ok(())),
                Release::Failed { text, .. } => Some(Err(text.clone())),
            },
            pending: Pending {
                databases: self.upstream.is_pending() || self.cvr.is_pending() || self.change.is_pending(),
                nodes: self.node.is_pending(),
                store: self.store.is_pending(),
            },
        }
    }

    fn due(&self) -> impl Iterator<Item = Instant> {
        let databases = [self.upstream.due(), self.cvr.due(), self.change.due()];
        databases.into_iter().chain([self.node.due(), self.store.due()]).flatten()
    }
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        // Nothing that holds the lock panics, and entries are whole between two statements.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, key: &Key, entry: &mut Entry) {
        if !entry.is_told {
            entry.is_told = true;
            // Nobody listens while the operator stops.
            let _ = self.changed.send(key.clone());
        }
    }

    /// Asks what is due, the longest overdue first, as far as there are permits.
    fn ask<Q: Question>(
        self: &Arc<Self>,
        permits: &Arc<Semaphore>,
        rhythm: Rhythm,
        slot: fn(&mut Entry) -> &mut Slot<Q>,
    ) {
        let now = Instant::now();
        let mut entries = self.entries();
        let mut due: Vec<(Instant, Key)> = entries
            .iter_mut()
            .filter_map(|(key, entry)| Some((slot(entry).due().filter(|due| *due <= now)?, key.clone())))
            .collect();
        due.sort();
        for (_, key) in due {
            let Ok(permit) = Arc::clone(permits).try_acquire_owned() else { return };
            let Some((question, turn)) = entries.get_mut(&key).and_then(|entry| slot(entry).begin()) else { continue };
            let shared = Arc::clone(self);
            tokio::spawn(async move {
                let answer = question.ask(Arc::clone(&shared.servers)).await;
                drop(permit);
                shared.take(&key, |entry| {
                    let is_busy = entry.inputs.is_busy;
                    slot(entry).finish(turn, answer, rhythm, is_busy, Instant::now())
                });
            });
        }
    }

    fn take(&self, key: &Key, finish: impl FnOnce(&mut Entry) -> bool) {
        let mut entries = self.entries();
        if let Some(entry) = entries.get_mut(key)
            && finish(entry)
        {
            self.tell(key, entry);
        }
        drop(entries);
        self.wake.notify_one();
    }

    /// Starts what is due, and says when to look again.
    fn turn(self: &Arc<Self>) -> Option<Instant> {
        let timing = &self.timing;
        self.ask(&self.nodes, timing.nodes, |entry| &mut entry.node);
        self.ask(&self.databases, timing.databases, |entry| &mut entry.upstream);
        self.ask(&self.databases, timing.databases, |entry| &mut entry.cvr);
        self.ask(&self.databases, timing.databases, |entry| &mut entry.change);
        self.ask(&self.stores, timing.store, |entry| &mut entry.store);
        let now = Instant::now();
        let mut entries = self.entries();
        entries.retain(|_, entry| now - entry.looked_at < timing.forget_after);
        // What is overdue waits for a permit, and whoever gives one back wakes the loop.
        entries.values().flat_map(Entry::due).filter(|due| *due > now).min()
    }
}

async fn keep_asking(shared: Weak<Shared>) {
    /// Long enough to cost nothing, short enough to notice that nobody is left.
    const IDLE: Duration = Duration::from_secs(5);
    loop {
        let Some(strong) = shared.upgrade() else { return };
        let due = strong.turn();
        let idle = Instant::now() + IDLE;
        let next = due.map_or(idle, |due| due.min(idle));
        let notified = strong.wake.notified();
        tokio::select! {
            () = notified => {}
            () = tokio::time::sleep_until(next) => {}
        }
    }
}
