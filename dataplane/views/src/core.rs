//! The views' thread: takes events, changes state, and runs a step when anything is to be told.
//!
//! The event queue is unbounded; what fills it is bounded elsewhere: sockets by the gateway, batches by [`Batches`], answers by
//! the questions asked.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use protocol::down;
use protocol::error::ErrorBody;
use replica::Reader;
use rows::{Batch, Schema, Version};
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::Notify;
use tracing::{error, info, warn};

use crate::api::{ClientMessage, Command, Connect, ConnectionId, Frame, Handle, Transformer};
use crate::connection::{Connection, Phase};
use crate::group::record::Record;
use crate::group::{Group, GroupId};
use crate::hydrate::{self, Pool};
use crate::materialisations::Materialisations;
use crate::metrics::Metrics;
use crate::mutations::Internal;
use crate::outgoing::{Dropped, Mark, Outgoing, now_us};
use crate::store::{self, Connector, Flush, Request, Store};
use crate::transform::Answer;

/// How long a group without connections stays in memory: a page that reloads finds it there.
const GROUP_IDLE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(200);
/// Events handled before a step is run, so that a flood of messages cannot delay pokes.
const EVENTS_PER_STEP_MAX: usize = 512;
/// Row changes that may wait for the views before replication waits for them.
const BACKLOG_ROWS_MAX: usize = 400_000;

pub struct Options {
    /// Wire names of the tables that hold mutation ids and results.
    pub clients_table: String,
    pub mutations_table: String,
    /// Schema of the CVR tables in the CVR database.
    pub cvr_schema: String,
    pub cvr: Connector,
    /// Age at which an unused client group is forgotten.
    pub cvr_purge_hours: i32,
    pub hydrators: usize,
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
}

/// Where the replica's writer hands over its commits.
#[derive(Clone)]
pub struct Batches {
    events: Sender<Event>,
    backlog: Arc<Backlog>,
}

#[derive(Default)]
struct Backlog {
    rows: std::sync::atomic::AtomicUsize,
    drained: Notify,
}

impl Batches {
    /// Publishes a commit. Waits while the views are far behind, which in turn slows replication down.
    pub async fn publish(&self, batch: Arc<Batch>) {
        use std::sync::atomic::Ordering;
        loop {
            let drained = self.backlog.drained.notified();
            if self.backlog.rows.load(Ordering::Acquire) < BACKLOG_ROWS_MAX {
                break;
            }
            drained.await;
        }
        self.backlog.rows.fetch_add(row_count(&batch), Ordering::AcqRel);
        // The thread ends only with the process.
        let _ = self.events.send(Event::Batch(batch));
    }
}

fn row_count(batch: &Batch) -> usize {
    batch.tables.iter().map(|t| t.rows.len()).sum()
}

/// The views, running.
pub struct Started {
    pub handle: Handle,
    pub batches: Batches,
    /// Ends with an error when the replica cannot be read any more; the process should then stop.
    pub ended: tokio::sync::oneshot::Receiver<String>,
}

/// Prepares the CVR database and starts the thread.
pub async fn start(options: Options) -> Result<Started, String> {
    let client = (options.cvr)().await?;
    let (next_lineage, known) =
        store::prepare(&client, &options.cvr_schema).await.map_err(|e| format!("prepare the CVR tables: {e}"))?;
    drop(client);
    let (events, receiver) = channel();
    let store = {
        let events = events.clone();
        let metrics = store::Metrics {
            flush_seconds: options.metrics.cvr_flush_seconds.clone(),
            flush_failures: options.metrics.cvr_flush_failures.clone(),
        };
        store::spawn(
            Arc::clone(&options.cvr),
            options.cvr_schema.clone(),
            options.cvr_purge_hours,
            metrics,
            move |event| {
                let _ = events.send(Event::Store(event));
            },
        )
    };
    let pool = {
        let (events, open) = (events.clone(), Arc::clone(&options.open_reader));
        Pool::start(
            options.hydrators,
            move || open(),
            move |outcome| {
                let _ = events.send(Event::Hydrated(Box::new(outcome)));
            },
        )
        .map_err(|e| format!("start the hydration threads: {e}"))?
    };
    let reader = (options.open_reader)().map_err(|e| e.to_string())?;
    let (commands, mut command_receiver) = tokio::sync::mpsc::unbounded_channel();
    {
        let events = events.clone();
        tokio::spawn(async move {
            while let Some(command) = command_receiver.recv().await {
                if events.send(Event::Command(command)).is_err() {
                    return;
                }
            }
        });
    }
    let backlog = Arc::new(Backlog::default());
    let batches = Batches { events: events.clone(), backlog: Arc::clone(&backlog) };
    let (ended_sender, ended) = tokio::sync::oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new()
        .name("views".into())
        .spawn(move || {
            let materialisations = Materialisations::new(pool, next_lineage, known, options.metrics.clone());
            let core = Core::new(options, reader, materialisations, store, events, runtime, backlog);
            let reason = core.run(&receiver);
            let _ = ended_sender.send(reason);
        })
        .map_err(|e| format!("start the views' thread: {e}"))?;
    Ok(Started { handle: Handle { commands }, batches, ended })
}

/// All state of the views.
pub struct Core {
    pub(crate) options: Options,
    pub(crate) reader: Reader,
    pub(crate) version: Version,
    pub(crate) schema: Arc<Schema>,
    pub(crate) internal: Internal,
    pub(crate) materialisations: Materialisations,
    pub(crate) groups: BTreeMap<GroupId, Group>,
    pub(crate) group_names: FxHashMap<String, GroupId>,
    pub(crate) connections: FxHashMap<ConnectionId, Connection>,
    pub(crate) store: Store,
    pub(crate) flush: Flush,
    flush_number: u64,
    /// Flush numbers with the version they carried, until they are durable.
    flushed_versions: VecDeque<(u64, Version)>,
    pub(crate) durable_version: Version,
    pub(crate) outgoing: Outgoing,
    pub(crate) events: Sender<Event>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) next_attempt: u64,
    next_group: u64,
    /// Groups to look at in the next step.
    pub(crate) dirty: FxHashSet<GroupId>,
    pub(crate) want_step: bool,
    pub(crate) draining: Option<tokio::sync::oneshot::Sender<()>>,
    pub(crate) commit_time_us: i64,
    backlog: Arc<Backlog>,
}

impl Core {
    fn new(
        options: Options,
        reader: Reader,
        materialisations: Materialisations,
        store: Store,
        events: Sender<Event>,
        runtime: tokio::runtime::Handle,
        backlog: Arc<Backlog>,
    ) -> Core {
        let schema = Arc::clone(&options.schema);
        Core {
            internal: Internal::of(&schema, &options.clients_table, &options.mutations_table),
            schema,
            reader,
            version: Version::ZERO,
            materialisations,
            groups: BTreeMap::new(),
            group_names: FxHashMap::default(),
            connections: FxHashMap::default(),
            store,
            flush: Flush::default(),
            flush_number: 0,
            flushed_versions: VecDeque::new(),
            durable_version: Version::ZERO,
            outgoing: Outgoing::default(),
            events,
            runtime,
            next_attempt: 0,
            next_group: 0,
            dirty: FxHashSet::default(),
            want_step: false,
            draining: None,
            commit_time_us: 0,
            backlog,
            options,
        }
    }

    /// Runs until the replica fails; returns the reason.
    fn run(mut self, receiver: &Receiver<Event>) -> String {
        match self.reader.begin() {
            Ok(version) => self.version = version,
            Err(error) => return error.to_string(),
        }
        self.reader.end();
        self.durable_version = self.version;
        let mut next_tick = Instant::now() + TICK;
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(wait) {
                Ok(event) => {
                    self.event(event);
                    let more = receiver.try_iter().take(EVENTS_PER_STEP_MAX);
                    for event in more.collect::<Vec<_>>() {
                        self.event(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return "every handle to the views is gone".into(),
            }
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                self.tick(now);
            }
            if std::mem::take(&mut self.want_step)
                && let Err(reason) = self.step(receiver)
            {
                error!(reason, "the views cannot go on");
                return reason;
            }
            if self.finish_drain() {
                return "drained".into();
            }
        }
    }

    pub(crate) fn event(&mut self, event: Event) {
        match event {
            Event::Command(command) => self.command(command),
            Event::Batch(batch) => self.batch(batch),
            Event::Hydrated(outcome) => self.want_step |= self.materialisations.hydrated(*outcome),
            Event::Answer(answer) => self.answered(answer),
            Event::Store(store::Event::Flushed { up_to }) => self.flushed(up_to),
            Event::Store(store::Event::Group { id, record }) => self.group_loaded(&id, record.as_deref()),
            Event::Store(store::Event::RowSet { lineage, rows }) => {
                self.want_step |= self.materialisations.stored(lineage, rows);
            }
            Event::Store(store::Event::Touched(touched)) => self.touched(touched),
        }
    }

    fn batch(&mut self, batch: Arc<Batch>) {
        self.backlog.rows.fetch_sub(row_count(&batch), std::sync::atomic::Ordering::AcqRel);
        self.backlog.drained.notify_waiters();
        self.note_internal(&batch);
        self.materialisations.retain_batch(batch);
        self.want_step = true;
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Connect(connect) => self.connect(*connect),
            Command::Message(id, message) => self.client_message(id, message),
            Command::Disconnect(id) => self.disconnect(id, None),
            Command::Drain { done } => self.drain(done),
        }
    }

    fn connect(&mut self, connect: Connect) {
        if self.draining.is_some() {
            let frame = down::error(&ErrorBody::rehome("the server is shutting down", None));
            let _ = connect.outbox.send(Frame::Text(frame));
            let _ = connect.outbox.send(Frame::Close(Some((1001, "shutting down".into()))));
            return;
        }
        let cookie = match connect.base_cookie.as_deref().map(str::parse).transpose() {
            Ok(cookie) => cookie,
            Err(error) => {
                let body = ErrorBody::internal(format!("baseCookie: {error}"));
                let _ = connect.outbox.send(Frame::Text(down::error(&body)));
                let _ = connect.outbox.send(Frame::Close(None));
                return;
            }
        };
        let group = self.group_named(&connect.client_group_id);
        let group = self.groups.get_mut(&group).expect("made by group_named");
        group.connections.push(connect.id);
        group.idle_since = None;
        group.clock_since.get_or_insert_with(Instant::now);
        self.connections.insert(
            connect.id,
            Connection {
                id: connect.id,
                group: group.id,
                client: connect.client_id,
                profile_id: connect.profile_id,
                context: connect.context,
                outbox: connect.outbox,
                phase: Phase::New,
                cookie,
                validated: false,
                revision: 0,
                patience: None,
                waiting: VecDeque::new(),
                behind_since: None,
                asked: FxHashSet::default(),
                touched: FxHashMap::default(),
                revalidate_at: None,
                answers: Vec::new(),
            },
        );
    }

    fn group_named(&mut self, name: &str) -> GroupId {
        if let Some(&id) = self.group_names.get(name) {
            return id;
        }
        self.next_group += 1;
        let id = GroupId(self.next_group);
        self.group_names.insert(name.to_owned(), id);
        self.groups.insert(id, Group::new(id, name.to_owned()));
        self.store.ask(Request::Group { id: name.to_owned() });
        id
    }

    fn group_loaded(&mut self, name: &str, record: Option<&str>) {
        let Some(group) = self.group_names.get(name).and_then(|id| self.groups.get_mut(id)) else { return };
        if group.loaded {
            return;
        }
        let record = record.and_then(|text| match serde_json::from_str::<Record>(text) {
            Ok(record) => Some(record),
            Err(error) => {
                // Treated as unknown: its clients start over, which is always right.
                warn!(%error, "CVR: a client group's record cannot be read");
                None
            }
        });
        group.load(record, self.version);
        let connections = group.connections.clone();
        for id in connections {
            let waiting = self.connections.get_mut(&id).map(|c| std::mem::take(&mut c.waiting)).unwrap_or_default();
            for message in waiting {
                self.client_message(id, message);
            }
        }
    }

    pub(crate) fn client_message(&mut self, id: ConnectionId, message: ClientMessage) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(group) = self.groups.get(&connection.group) else { return };
        if !group.loaded || connection.behind_since.is_some() {
            connection.waiting.push_back(message);
            return;
        }
        let result = match (connection.phase, message) {
            (Phase::New, ClientMessage::InitConnection { body, context }) => self.init_connection(id, *body, context),
            (_, ClientMessage::InitConnection { .. }) => {
                Err(ErrorBody::internal("initConnection was sent twice on one connection"))
            }
            (_, ClientMessage::UpdateAuth(context)) => {
                self.update_auth(id, context);
                Ok(())
            }
            // No view exists for the connection before initConnection: these are dropped.
            (Phase::New, _) => Ok(()),
            (_, ClientMessage::ChangeDesiredQueries(body)) => self.change_desired(id, body.desired_queries_patch),
            (_, ClientMessage::DeleteClients(body)) => self.delete_clients(id, &body.client_ids),
            (_, ClientMessage::Inspect(request)) => {
                self.inspect(id, &request);
                Ok(())
            }
        };
        if let Err(body) = result {
            self.reject(id, &body);
        }
    }

    /// Tells a client why it is cut off, and closes.
    pub(crate) fn reject(&mut self, id: ConnectionId, body: &ErrorBody) {
        if let Some(connection) = self.connections.get(&id) {
            // Behind whatever is held for it, so that frames stay in order.
            let outbox = connection.outbox.clone();
            let mut sent = |_| {};
            let _ = self.outgoing.push(0, id, &outbox, Frame::Text(down::error(body)), None, &mut sent);
            let _ = self.outgoing.push(0, id, &outbox, Frame::Close(None), None, &mut sent);
        }
        self.disconnect(id, Some(body.kind_name()));
    }

    pub(crate) fn disconnect(&mut self, id: ConnectionId, reason: Option<&str>) {
        let Some(connection) = self.connections.remove(&id) else { return };
        if let Some(reason) = reason {
            info!(reason, client = connection.client, "closing a connection");
        }
        let Some(group) = self.groups.get_mut(&connection.group) else { return };
        group.connections.retain(|c| *c != id);
        if group.background.as_ref().is_some_and(|(of, _)| *of == id) {
            group.background = group
                .connections
                .iter()
                .rev()
                .filter_map(|c| self.connections.get(c))
                .find(|c| c.validated)
                .map(|c| (c.id, Arc::clone(&c.context)));
        }
        if group.connections.is_empty() {
            let now = Instant::now();
            group.clock_ms(now);
            group.clock_since = None;
            group.idle_since = Some(now);
            if group.known {
                group.pending.record = true;
                self.dirty.insert(group.id);
                self.want_step = true;
            }
        }
        self.ask_again_without(id, connection.group);
    }

    /// Queues frames for a connection; a connection that cannot take them is dropped.
    pub(crate) fn send(&mut self, id: ConnectionId, frames: impl IntoIterator<Item = (u64, Frame, Option<Mark>)>) {
        let Some(connection) = self.connections.get(&id) else { return };
        let outbox = connection.outbox.clone();
        let histogram = self.options.metrics.commit_to_poke_seconds.clone();
        let mut sent = |mark: Mark| observe(&histogram, mark);
        for (needs, frame, mark) in frames {
            if let Err(Dropped(id)) = self.outgoing.push(needs, id, &outbox, frame, mark, &mut sent) {
                self.disconnect(id, Some("slow client"));
                return;
            }
        }
    }

    fn flushed(&mut self, up_to: u64) {
        while let Some((_, version)) = self.flushed_versions.pop_front_if(|(number, _)| *number <= up_to) {
            self.durable_version = self.durable_version.max(version);
        }
        let histogram = self.options.metrics.commit_to_poke_seconds.clone();
        for Dropped(id) in self.outgoing.flushed(up_to, &mut |mark| observe(&histogram, mark)) {
            self.disconnect(id, Some("slow client"));
        }
    }

    /// Hands the step's changes to the store and returns the flush that the step's pokes must wait for.
    pub(crate) fn submit_flush(&mut self) -> u64 {
        let flush = std::mem::take(&mut self.flush);
        if flush.is_empty() {
            if self.flush_number <= self.outgoing.durable() {
                self.durable_version = self.version;
            }
            return self.flush_number;
        }
        self.flush_number += 1;
        self.flushed_versions.push_back((self.flush_number, self.version));
        self.store.flush(self.flush_number, flush);
        self.flush_number
    }

    /// Whether everything handed to the store is durable.
    pub(crate) fn all_durable(&self) -> bool {
        self.flush_number <= self.outgoing.durable()
    }

    fn tick(&mut self, now: Instant) {
        self.tick_groups(now);
        self.materialisations.tidy(now, self.durable_version);
        self.store.set_live(self.materialisations.lineages());
        let (materialisations, subscriptions) = self.materialisations.counts();
        let metrics = &self.options.metrics;
        metrics.materialisations.set(count(materialisations));
        metrics.subscriptions.set(count(subscriptions));
        metrics.client_groups.set(count(self.groups.len()));
        metrics.active_connections.set(count(self.connections.values().filter(|c| c.phase == Phase::Active).count()));
        // A group that comes back is read from the database, so everything must be there first.
        let all_durable = self.all_durable();
        let gone: Vec<GroupId> = self
            .groups
            .values()
            .filter(|g| {
                all_durable
                    && g.idle_since.is_some_and(|since| now - since >= GROUP_IDLE)
                    && !self.dirty.contains(&g.id)
            })
            .map(|g| g.id)
            .collect();
        for id in gone {
            self.unload(id, now);
        }
    }

    fn unload(&mut self, id: GroupId, now: Instant) {
        let Some(group) = self.groups.remove(&id) else { return };
        self.group_names.remove(&group.name);
        for run in group.queries.values() {
            for materialisation in run.held.iter().chain(&run.coming) {
                self.materialisations.unsubscribe(id, *materialisation, now);
            }
        }
    }

    fn drain(&mut self, done: tokio::sync::oneshot::Sender<()>) {
        let ids: Vec<ConnectionId> = self.connections.keys().copied().collect();
        info!(connections = ids.len(), "closing all connections");
        for id in ids {
            // A plain close: clients reconnect at once, elsewhere or here after the restart, and lose nothing.
            self.send(id, [(0, Frame::Close(Some((1001, "shutting down".into()))), None)]);
            self.disconnect(id, None);
        }
        self.draining = Some(done);
        self.want_step = true;
    }

    /// Whether everything is told and stored after a drain.
    fn finish_drain(&mut self) -> bool {
        let finished =
            self.draining.is_some() && self.outgoing.is_empty() && self.all_durable() && self.dirty.is_empty();
        if finished && let Some(done) = self.draining.take() {
            // Dropping the sender would do; sending says that it was on purpose.
            let _ = done.send(());
        }
        finished
    }
}

fn observe(histogram: &prometheus::Histogram, mark: Mark) {
    let elapsed_us = now_us().saturating_sub(mark.commit_time_us).max(0);
    histogram.observe(elapsed_us as f64 / 1e6);
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
