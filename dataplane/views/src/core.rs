//! The views' thread: takes events, changes state, and runs a step when anything is to be told.
//!
//! The event queue is unbounded; what fills it is bounded elsewhere: sockets by the gateway, commits by [`Batches`], answers by
//! the questions asked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use replica::Reader;
use rows::{Batch, Schema, Version};
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::watch;
use tracing::{error, info};

use crate::api::{Command, ConnectionId, Handle, Transformer};
use crate::batches::{Batches, Waiting, bytes_of};
use crate::budget::Budget;
use crate::connection::{Connection, Phase};
use crate::door::Stranger;
use crate::drain::{Closing, Drain};
use crate::group::{Group, GroupId, inherit};
use crate::hydrate::{self, Pool};
use crate::indexes::Wishes;
use crate::limits::Limits;
use crate::materialisations::Materialisations;
use crate::metrics::Metrics;
use crate::mutations::Internal;
use crate::outgoing::{Dropped, Mark, Outgoing, now_us};
use crate::rules::Rules;
use crate::spool::Spool;
use crate::store::{self, Connector, Copy, Flush, Question, Request, Store, Unopened};
use crate::transform::Answer;
use crate::turns::Turns;
use crate::unflushed::Unflushed;

const TICK: Duration = Duration::from_millis(200);
/// Events handled before a step is run, so that a flood of messages cannot delay pokes.
const EVENTS_PER_STEP_MAX: usize = 512;
/// Numbers that one node takes for its lineages, so that no two nodes ever use one twice.
const LINEAGES_PER_NODE: i64 = 1 << 32;

pub struct Options {
    /// Wire names of the tables that hold mutation ids and results.
    pub clients_table: String,
    pub mutations_table: String,
    /// That of the table of deployed permissions.
    pub permissions_table: String,
    /// Whether clients may define queries themselves.
    pub client_queries: bool,
    /// Schema of the CVR tables in the CVR database.
    pub cvr_schema: String,
    pub cvr: Connector,
    /// Most connections to the CVR database at once: two are used, or one in turns.
    pub cvr_connections_max: usize,
    /// The copy that the replica began with.
    pub copy: Copy,
    /// No other node serves this application's clients: client groups of former processes are taken without waiting.
    pub is_alone: bool,
    /// What the process may use of memory; budgets are parts of it. `None`: not known.
    pub memory_bytes: Option<usize>,
    /// Age at which an unused client group is forgotten.
    pub cvr_purge_hours: i32,
    pub hydrators: usize,
    /// Where encoded rows go that have no room in memory.
    pub spool_folder: PathBuf,
    pub open_reader: Arc<dyn Fn() -> Result<Reader, replica::Error> + Send + Sync>,
    pub schema: Arc<Schema>,
    pub transformer: Arc<dyn Transformer>,
    /// How often each connection's credentials are checked again, and each group's named queries are transformed again.
    pub revalidate: Duration,
    pub retransform: Duration,
    pub metrics: Metrics,
}

pub enum Event {
    Command(Command),
    Batch(Arc<Batch>),
    Hydrated(Box<hydrate::Outcome>),
    Store(store::Event),
    Answer(Answer),
    /// So much of what waited for a connection has gone that it can be told more.
    Drained(ConnectionId),
    /// Every handle to the views is gone.
    Abandoned,
}

/// Ends the views when nobody can reach them any more.
struct Lifeline(Sender<Event>);

impl Drop for Lifeline {
    fn drop(&mut self) {
        let _ = self.0.send(Event::Abandoned);
    }
}

/// How the views ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// As they were told to.
    Drained,
    /// They cannot go on, for this reason.
    Failed(String),
}

/// The views, running.
pub struct Started {
    pub handle: Handle,
    pub batches: Batches,
    /// Ends with an error when the replica cannot be read any more; the process should then stop.
    pub ended: tokio::sync::oneshot::Receiver<Ending>,
    /// Since when the oldest waits of what was handed to the CVR database and is not stored; `None` while everything is. Nobody
    /// is told anything new while it waits, so a node whose oldest grows old does not serve.
    pub unflushed_since: watch::Receiver<Option<Instant>>,
    /// For those who watch that the thread goes on.
    pub turns: Turns,
}

/// Prepares the CVR database and starts the thread.
pub async fn start(options: Options) -> Result<Started, Unopened> {
    let mut limits = options.memory_bytes.map_or_else(Limits::default, Limits::for_memory);
    if options.is_alone {
        limits.node_live = Duration::ZERO;
    }
    start_within(options, limits).await
}

/// Like [`start`], with other limits.
pub async fn start_within(options: Options, limits: Limits) -> Result<Started, Unopened> {
    let settings = store::Settings {
        connector: Arc::clone(&options.cvr),
        schema: options.cvr_schema.clone(),
        purge_hours: options.cvr_purge_hours,
        connections_max: options.cvr_connections_max,
        copy: options.copy.clone(),
        limits: limits.clone(),
        inherit: store::Inherit {
            record: inherit::record,
            own_tables: [options.clients_table.clone(), options.mutations_table.clone()],
        },
        metrics: store::Metrics {
            flush_seconds: options.metrics.cvr_flush_seconds.clone(),
            flush_failures: options.metrics.cvr_flush_failures.clone(),
            flushes_fenced: options.metrics.cvr_flushes_fenced.clone(),
            inherited: options.metrics.inherited.clone(),
        },
    };
    let node = store::register(&settings).await?;
    info!(node, copy = options.copy.id, "registered in the CVR database");
    let (events, receiver) = channel();
    let store = {
        let events = events.clone();
        store::spawn(settings, node, move |event| {
            let _ = events.send(Event::Store(event));
        })
    };
    let (wishes, wanted) = Wishes::new();
    let pool = {
        let (events, open) = (events.clone(), Arc::clone(&options.open_reader));
        Pool::start(
            options.hydrators,
            wishes,
            move || open(),
            move |outcome| {
                let _ = events.send(Event::Hydrated(Box::new(outcome)));
            },
        )
        .map_err(|e| unstarted(format!("start the hydration threads: {e}")))?
    };
    let reader = (options.open_reader)().map_err(|e| unstarted(e.to_string()))?;
    let (commands, mut command_receiver) = tokio::sync::mpsc::unbounded_channel();
    {
        let events = Lifeline(events.clone());
        tokio::spawn(async move {
            while let Some(command) = command_receiver.recv().await {
                if events.0.send(Event::Command(command)).is_err() {
                    return;
                }
            }
        });
    }
    let commits = Waiting::new(limits.commit_bytes);
    let batches = Batches::new(events.clone(), Arc::clone(&commits), wanted);
    let (ended_sender, ended) = tokio::sync::oneshot::channel();
    let (unflushed, unflushed_since) = watch::channel(None);
    let runtime = tokio::runtime::Handle::current();
    let turns = Turns::new();
    let seen = turns.clone();
    std::thread::Builder::new()
        .name("views".into())
        .spawn(move || {
            let spool = Spool::new(&options.spool_folder, limits.payload_bytes);
            let (graphs, first) = (Budget::new(limits.graph_bytes), node * LINEAGES_PER_NODE);
            let materialisations = Materialisations::new(pool, spool, graphs, first, options.metrics.clone());
            let around = Around { store, events, runtime, commits, unflushed: Unflushed::new(unflushed) };
            let core = Core::new(options, limits, reader, materialisations, around);
            let ending = core.run(&receiver, &seen);
            let _ = ended_sender.send(ending);
        })
        .map_err(|e| unstarted(format!("start the views' thread: {e}")))?;
    Ok(Started { handle: Handle { commands }, batches, ended, unflushed_since, turns })
}

fn unstarted(message: String) -> Unopened {
    Unopened { message, entry: &fault::path::VIEWS_UNSTARTED }
}

/// What the thread talks to.
struct Around {
    store: Store,
    events: Sender<Event>,
    runtime: tokio::runtime::Handle,
    commits: Arc<Waiting>,
    unflushed: Unflushed,
}

/// All state of the views.
pub struct Core {
    pub(crate) options: Options,
    pub(crate) limits: Limits,
    pub(crate) reader: Reader,
    pub(crate) version: Version,
    pub(crate) schema: Arc<Schema>,
    pub(crate) internal: Internal,
    pub(crate) rules: Rules,
    pub(crate) materialisations: Materialisations,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    pub(crate) group_names: FxHashMap<String, GroupId>,
    /// Not in any group yet.
    pub(crate) strangers: FxHashMap<ConnectionId, Stranger>,
    pub(crate) connections: FxHashMap<ConnectionId, Connection>,
    pub(crate) store: Store,
    pub(crate) flush: Flush,
    flush_number: u64,
    /// The newest version that was handed over as one that clients may be told of.
    marked: Version,
    unflushed: Unflushed,
    /// Of the histories, what the step added that must not be forgotten before it is stored.
    pub(crate) history_bytes: usize,
    pub(crate) outgoing: Outgoing,
    /// Connections that are told nothing more before the database has answered for what is held for them.
    pub(crate) held_back: FxHashSet<ConnectionId>,
    pub(crate) events: Sender<Event>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) next_attempt: u64,
    pub(crate) next_validation: u64,
    pub(crate) next_group: u64,
    /// Groups to look at in the next step.
    pub(crate) dirty: FxHashSet<GroupId>,
    pub(crate) want_step: bool,
    /// When to run a step for connections that waited long enough for their new queries.
    pub(crate) impatient_at: Option<Instant>,
    /// Connections whose cookie is ahead of the replica.
    pub(crate) behind: Vec<ConnectionId>,
    /// Whether a group waits for the replica to reach its bound.
    pub(crate) any_behind: bool,
    /// Stored histories asked for: the version that the answer will cover, and who waits for it.
    pub(crate) histories: FxHashMap<Question, (Version, Vec<ConnectionId>)>,
    pub(crate) draining: Option<Drain>,
    pub(crate) closing: Vec<Closing>,
    /// This node was struck off.
    pub(crate) gone: bool,
    /// What ended that must not.
    broken: Option<String>,
    abandoned: bool,
    pub(crate) commit_time_us: i64,
    commits: Arc<Waiting>,
    /// Of these, what is here and counts as not taken, because no step is made.
    withheld_bytes: usize,
}

impl Core {
    fn new(
        options: Options,
        limits: Limits,
        reader: Reader,
        materialisations: Materialisations,
        around: Around,
    ) -> Core {
        let Around { store, events, runtime, commits, unflushed } = around;
        let schema = Arc::clone(&options.schema);
        Core {
            internal: Internal::of(&schema, &options.clients_table, &options.mutations_table),
            rules: Rules::default(),
            schema,
            reader,
            version: Version::ZERO,
            materialisations,
            groups: BTreeMap::new(),
            group_names: FxHashMap::default(),
            strangers: FxHashMap::default(),
            connections: FxHashMap::default(),
            store,
            flush: Flush::default(),
            flush_number: 0,
            marked: Version::ZERO,
            unflushed,
            history_bytes: 0,
            outgoing: Outgoing::default(),
            held_back: FxHashSet::default(),
            limits,
            events,
            runtime,
            next_attempt: 0,
            next_validation: 0,
            next_group: 0,
            dirty: FxHashSet::default(),
            want_step: false,
            impatient_at: None,
            behind: Vec::new(),
            any_behind: false,
            histories: FxHashMap::default(),
            draining: None,
            closing: Vec::new(),
            gone: false,
            broken: None,
            abandoned: false,
            commit_time_us: 0,
            commits,
            withheld_bytes: 0,
            options,
        }
    }

    /// Runs until a drain has ended, or it cannot go on.
    fn run(mut self, receiver: &Receiver<Event>, turns: &Turns) -> Ending {
        match self.reader.begin() {
            Ok(version) => self.version = version,
            Err(error) => return Ending::Failed(error.to_string()),
        }
        if let Err(reason) = self.take_rules() {
            return Ending::Failed(reason);
        }
        self.reader.end();
        let mut next_tick = Instant::now() + TICK;
        loop {
            turns.turn();
            let wake = self.impatient_at.into_iter().chain(self.drain_at()).fold(next_tick, Instant::min);
            let wait = wake.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(wait) {
                Ok(event) => {
                    self.event(event);
                    let more = receiver.try_iter().take(EVENTS_PER_STEP_MAX);
                    for event in more.collect::<Vec<_>>() {
                        self.event(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Ending::Failed("every handle to the views is gone".into());
                }
            }
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick(now);
            }
            if self.impatient_at.is_some_and(|at| at <= now) {
                self.look_at_impatient(now);
            }
            self.drain_due(now);
            let is_free = self.may_step();
            if is_free {
                self.commits.take(std::mem::take(&mut self.withheld_bytes));
            }
            if is_free
                && std::mem::take(&mut self.want_step)
                && !self.has_left()
                && let Err(reason) = self.step(receiver)
            {
                error!(reason, "the views cannot go on");
                return Ending::Failed(reason);
            }
            if let Some(reason) = self.broken.take() {
                error!(reason, "the views cannot go on");
                return Ending::Failed(reason);
            }
            if self.gone && !self.has_left() {
                let reason = "the other nodes took this one for dead: it was not heard of for too long";
                error!(reason, "the views cannot go on");
                return Ending::Failed(reason.into());
            }
            if self.finish_drain() {
                return Ending::Drained;
            }
            if self.abandoned {
                return Ending::Failed("every handle to the views is gone".into());
            }
        }
    }

    pub(crate) fn event(&mut self, event: Event) {
        match event {
            Event::Command(command) => self.command(command),
            Event::Batch(batch) => self.batch(batch),
            Event::Hydrated(outcome) => self.want_step |= self.materialisations.hydrated(*outcome),
            Event::Answer(answer) => self.answered(answer),
            Event::Drained(id) => self.drained(id),
            Event::Store(store::Event::Flushed { up_to }) => self.flushed(up_to),
            Event::Store(store::Event::Claimed { id, verdict }) => self.claimed(&id, verdict),
            Event::Store(store::Event::Lost(lost)) => self.lost(&lost),
            Event::Store(store::Event::Refused(refused)) => self.record_refused(&refused),
            Event::Store(store::Event::MadeAnew) => self.store_again(),
            Event::Store(store::Event::Broken(reason)) => self.broken = Some(reason),
            Event::Store(store::Event::Gone) => self.gone = true,
            Event::Store(store::Event::RowSet { lineage, rows }) => {
                self.want_step |= self.materialisations.stored(lineage, rows);
            }
            Event::Store(store::Event::Touched(touched)) => self.touched(touched),
            Event::Store(store::Event::PurgeDue) => {
                self.store.ask(Request::Purge { lineages: self.materialisations.lineages() });
            }
            Event::Store(store::Event::Purged { lineages }) => self.materialisations.purged(&lineages),
            Event::Abandoned => self.abandoned = true,
        }
    }

    fn batch(&mut self, batch: Arc<Batch>) {
        let bytes = bytes_of(&batch);
        if self.may_step() {
            self.commits.take(bytes);
        } else {
            self.withheld_bytes += bytes;
        }
        self.note_internal(&batch);
        self.materialisations.retain_batch(batch);
        self.want_step = true;
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Connect(connect) => self.connect(connect),
            Command::Message(id, message, credit) if self.strangers.contains_key(&id) => {
                self.stranger_says(id, message, credit);
            }
            Command::Message(id, message, credit) => self.client_message(id, message, credit),
            Command::Disconnect(id) => self.disconnect(id, None),
            Command::Drain { done, within } => self.drain(done, within),
        }
    }

    fn flushed(&mut self, up_to: u64) {
        self.unflushed.stored(up_to);
        let histogram = self.options.metrics.commit_to_poke_seconds.clone();
        for Dropped(id) in self.outgoing.flushed(up_to, &mut |mark| observe(&histogram, mark)) {
            self.disconnect(id, Some("slow client"));
        }
        self.look_at_held_back();
        self.forget_closed();
    }

    /// Hands the step's changes to the store and returns the flush that the step's pokes must wait for. `is_told`: clients are
    /// about to be told of the present version.
    pub(crate) fn submit_flush(&mut self, is_told: bool) -> u64 {
        if self.flush.is_empty() && !(is_told && self.version > self.marked) {
            return self.flush_number;
        }
        self.confirm()
    }

    /// Hands over what there is, be it nothing: once it is stored, this node has lost no group that it did not hear of.
    pub(crate) fn confirm(&mut self) -> u64 {
        let mut flush = std::mem::take(&mut self.flush);
        flush.version = self.version;
        self.marked = self.version;
        self.flush_number += 1;
        let bytes = flush.bytes() + std::mem::take(&mut self.history_bytes);
        self.unflushed.handed_over(self.flush_number, self.version, bytes);
        self.store.flush(self.flush_number, flush);
        self.flush_number
    }

    /// Whether what waits for the CVR database leaves room for more.
    fn may_step(&self) -> bool {
        self.unflushed.bytes() <= self.limits.unflushed_bytes
    }

    /// Everything up to this version is durable. A version may have more than one step, and so more than one flush.
    pub(crate) fn durable_version(&self) -> Version {
        let mut version = self.unflushed.oldest().map_or(self.version, before);
        if !self.flush.is_empty() {
            version = version.min(before(self.version));
        }
        version
    }

    /// Whether everything handed to the store is durable.
    pub(crate) fn all_durable(&self) -> bool {
        self.flush_number <= self.outgoing.durable()
    }

    fn tick(&mut self, now: Instant) {
        self.tick_groups(now);
        self.materialisations.tidy(now, self.durable_version(), &self.limits);
        self.relieve(now);
        let (materialisations, subscriptions) = self.materialisations.counts();
        let metrics = &self.options.metrics;
        metrics.materialisations.set(count(materialisations));
        metrics.subscriptions.set(count(subscriptions));
        metrics.cvr_unflushed_bytes.set(count(self.unflushed.bytes()));
        metrics.client_groups.set(count(self.groups.len()));
        metrics.owned_groups.set(count(self.groups.values().filter(|g| g.epoch > g.lost_epoch).count()));
        metrics.active_connections.set(count(self.connections.values().filter(|c| c.phase == Phase::Active).count()));
        // A group that comes back is read from the database, so everything must be there first.
        let all_durable = self.all_durable();
        let gone: Vec<GroupId> = self
            .groups
            .values()
            .filter(|g| {
                all_durable
                    && g.idle_since.is_some_and(|since| now - since >= self.limits.group_idle)
                    && !self.dirty.contains(&g.id)
            })
            .map(|g| g.id)
            .collect();
        for id in gone {
            self.unload(id, now);
        }
    }
}

fn before(version: Version) -> Version {
    Version::new(version.as_u64().saturating_sub(1))
}

pub(crate) fn observe(histogram: &prometheus::Histogram, mark: Mark) {
    let elapsed_us = now_us().saturating_sub(mark.commit_time_us).max(0);
    histogram.observe(elapsed_us as f64 / 1e6);
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
