//! All materialisations of the node: who subscribes to which, and their common march from version to version.
//!
//! Invariant: after [`Materialisations::advance`] every live graph is at the same version, and each one that changed has a history
//! entry of that version, whose stored form is in the flush.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ivm::{AdvanceError, Changes, Delta, Graph, Router};
use protocol::ast::Ast;
use replica::Reader;
use rows::{Batch, Schema, Version};
use rustc_hash::{FxHashMap, FxHashSet};
use tracing::{debug, warn};

use crate::convert::{KeyChoice, tables_of, to_query};
use crate::encode;
use crate::group::GroupId;
use crate::hydrate::{self, Failure, Hydrated, Job, Outcome, Pool};
use crate::materialisation::{Entry, History, Materialisation, MaterialisationId, Payload, State, Stored};
use crate::metrics::Metrics;
use crate::row_id::{Encoder, Presence, RowId};
use crate::store::{self, Flush, Lineage, LineageId, Request};

/// How long a materialisation without subscribers is kept for whoever comes back.
const IDLE: Duration = Duration::from_secs(60);
/// Payloads are dropped, oldest use first, beyond this many bytes in all.
const PAYLOAD_BYTES_MAX: usize = 256 << 20;

pub struct Materialisations {
    by_id: BTreeMap<MaterialisationId, Materialisation>,
    by_key: FxHashMap<Arc<str>, MaterialisationId>,
    by_lineage: FxHashMap<LineageId, MaterialisationId>,
    router: Router,
    pool: Pool,
    next_id: u64,
    next_lineage: LineageId,
    /// Lineages in the CVR database by key.
    known: FxHashMap<String, LineageId>,
    /// The version the views were at when a job was submitted; its snapshot is at least as new.
    jobs: FxHashMap<MaterialisationId, Version>,
    /// Those whose job failed since the last step.
    failed: Vec<MaterialisationId>,
    /// Batches that a job under way may need.
    ring: VecDeque<Arc<Batch>>,
    metrics: Metrics,
}

/// What one step did, for the groups.
#[derive(Debug, Default)]
pub struct Advanced {
    /// Materialisations with an entry at the new version.
    pub changed: Vec<MaterialisationId>,
    /// Materialisations that became live.
    pub arrived: Vec<MaterialisationId>,
    /// Materialisations that cannot be served any more.
    pub failed: Vec<MaterialisationId>,
}

impl Materialisations {
    pub fn new(pool: Pool, next_lineage: LineageId, known: Vec<(String, LineageId)>, metrics: Metrics) -> Self {
        Materialisations {
            by_id: BTreeMap::new(),
            by_key: FxHashMap::default(),
            by_lineage: FxHashMap::default(),
            router: Router::default(),
            pool,
            next_id: 1,
            next_lineage,
            known: known.into_iter().collect(),
            jobs: FxHashMap::default(),
            failed: Vec::new(),
            ring: VecDeque::new(),
            metrics,
        }
    }

    pub fn get(&self, id: MaterialisationId) -> Option<&Materialisation> {
        self.by_id.get(&id)
    }

    /// The materialisation of `ast` with `keys`, made if it is not there yet, with `group` as a subscriber.
    pub fn subscribe(
        &mut self,
        group: GroupId,
        ast: &Ast,
        keys: &Arc<KeyChoice>,
        schema: &Arc<Schema>,
        version: Version,
        store: &store::Store,
    ) -> Result<MaterialisationId, String> {
        let hash = protocol::normalize::transformation_hash(ast);
        let key: Arc<str> = format!("{hash}{}", keys.share_key(&tables_of(ast))).into();
        let id = match self.by_key.get(&key) {
            Some(&id) => id,
            None => {
                let query = Arc::new(to_query(ast).map_err(|e| e.to_string())?);
                self.create(key, query, keys, schema, version, store)
            }
        };
        let materialisation = self.by_id.get_mut(&id).expect("indexed by key");
        if let State::Failed(message) = &materialisation.state {
            let message = message.clone();
            self.forget_if_idle(id);
            return Err(message);
        }
        materialisation.subscribers.insert(group);
        materialisation.idle_since = None;
        Ok(id)
    }

    fn create(
        &mut self,
        key: Arc<str>,
        query: Arc<ivm::query::Query>,
        keys: &Arc<KeyChoice>,
        schema: &Arc<Schema>,
        version: Version,
        store: &store::Store,
    ) -> MaterialisationId {
        let id = MaterialisationId(self.next_id);
        self.next_id += 1;
        let (lineage, stored) = match self.known.get(&*key) {
            Some(&lineage) => {
                store.ask(Request::RowSet { lineage });
                (lineage, Stored::Asked)
            }
            None => (self.new_lineage(&key), Stored::New),
        };
        self.by_key.insert(Arc::clone(&key), id);
        self.by_lineage.insert(lineage, id);
        self.by_id.insert(
            id,
            Materialisation {
                key,
                query,
                keys: Arc::clone(keys),
                lineage,
                state: State::Hydrating { stored, hydrated: None },
                subscribers: std::collections::BTreeSet::new(),
                payload: None,
                payload_pending: true,
                history: History::default(),
                idle_since: None,
            },
        );
        self.submit(id, schema, version);
        id
    }

    fn new_lineage(&mut self, key: &str) -> LineageId {
        let lineage = self.next_lineage;
        self.next_lineage += 1;
        self.known.insert(key.to_owned(), lineage);
        lineage
    }

    fn submit(&mut self, id: MaterialisationId, schema: &Arc<Schema>, version: Version) {
        let Some(m) = self.by_id.get_mut(&id) else { return };
        m.payload_pending = true;
        self.jobs.insert(id, version);
        self.pool.submit(Job {
            id,
            query: Arc::clone(&m.query),
            schema: Arc::clone(schema),
            keys: Arc::clone(&m.keys),
        });
    }

    pub fn unsubscribe(&mut self, group: GroupId, id: MaterialisationId, now: Instant) {
        if let Some(m) = self.by_id.get_mut(&id) {
            m.subscribers.remove(&group);
            if m.subscribers.is_empty() {
                m.idle_since = Some(now);
            }
        }
    }

    /// Asks for the rows of a live materialisation to be encoded again, unless that is under way.
    pub fn renew_payload(&mut self, id: MaterialisationId, schema: &Arc<Schema>, version: Version) {
        if self.by_id.get(&id).is_some_and(|m| !m.payload_pending) {
            self.submit(id, schema, version);
        }
    }

    /// Takes the answer of a job. Returns whether a step is wanted.
    pub fn hydrated(&mut self, outcome: Outcome) -> bool {
        let Some(m) = self.by_id.get_mut(&outcome.id) else {
            self.jobs.remove(&outcome.id);
            return false;
        };
        match outcome.result {
            Ok(hydrated) => {
                self.metrics.hydrations.inc();
                self.metrics.hydration_seconds.observe(hydrated.elapsed.as_secs_f64());
                match &mut m.state {
                    State::Hydrating { hydrated: slot, .. } => *slot = Some(Box::new(hydrated)),
                    // A renewed payload: the graph goes on as it is.
                    State::Live(_) => {
                        m.payload_pending = false;
                        m.payload = Some(hydrated.payload);
                        self.jobs.remove(&outcome.id);
                    }
                    State::Failed(_) => {
                        self.jobs.remove(&outcome.id);
                    }
                }
            }
            Err(Failure::Query(message) | Failure::Replica(message)) => {
                debug!(message, "a query cannot be served");
                m.payload_pending = false;
                self.router.remove(outcome.id.0);
                m.state = State::Failed(message);
                self.jobs.remove(&outcome.id);
                self.failed.push(outcome.id);
            }
        }
        true
    }

    /// Takes what the database knew of a lineage. Returns whether a step is wanted.
    pub fn stored(&mut self, lineage: LineageId, rows: Option<FxHashMap<RowId, Version>>) -> bool {
        let Some(m) = self.by_lineage.get(&lineage).and_then(|id| self.by_id.get_mut(id)) else { return false };
        if let State::Hydrating { stored, .. } = &mut m.state {
            *stored = rows.map_or(Stored::Lost, Stored::Rows);
        }
        true
    }

    /// Keeps `batch` for jobs under way.
    pub fn retain_batch(&mut self, batch: Arc<Batch>) {
        self.ring.push_back(batch);
    }

    pub fn newest_batch(&self) -> Option<Version> {
        self.ring.back().map(|b| b.version)
    }

    pub fn batches_after(&self, version: Version) -> impl Iterator<Item = &Arc<Batch>> {
        self.ring.iter().filter(move |b| b.version > version)
    }

    /// Moves every graph to `version`, over the batches in the ring above `from`. `reader` has a snapshot of exactly `version`.
    pub fn advance(
        &mut self,
        from: Version,
        version: Version,
        schema: &Arc<Schema>,
        reader: &mut Reader,
        flush: &mut Flush,
    ) -> Result<Advanced, String> {
        let mut advanced = Advanced { failed: std::mem::take(&mut self.failed), ..Advanced::default() };
        let batches: Vec<Arc<Batch>> = self.ring.iter().filter(|b| b.version > from).cloned().collect();
        if !batches.is_empty() {
            let changes = Changes::merge(&batches);
            let mut encoded = Encoded::default();
            for id in self.router.route(&changes) {
                let id = MaterialisationId(id);
                let Some(m) = self.by_id.get_mut(&id) else { continue };
                let State::Live(graph) = &mut m.state else { continue };
                let timer = self.metrics.advance_seconds.start_timer();
                let outcome = match graph.advance(reader, &changes) {
                    Ok(delta) => encoded.entry(version, &delta),
                    Err(reason @ (AdvanceError::NeedsRehydrate(_) | AdvanceError::SchemaChanged { .. })) => {
                        debug!(%reason, "re-hydrating a query");
                        self.metrics.rehydrations.inc();
                        rebuild(m, schema, reader, version, id)
                    }
                    Err(AdvanceError::Source(error)) => return Err(error.to_string()),
                };
                timer.observe_duration();
                match outcome {
                    Ok(entry) => record(m, id, entry, flush, &mut advanced),
                    Err(message) => fail(m, id, message, &mut self.router, &mut advanced),
                }
            }
        }
        self.arrive(version, schema, reader, flush, &mut advanced)?;
        let oldest = self.jobs.values().min().copied().unwrap_or(version);
        while self.ring.front().is_some_and(|b| b.version <= oldest.min(version)) {
            self.ring.pop_front();
        }
        Ok(advanced)
    }

    /// Makes those live whose job is done and whose stored rows are known.
    fn arrive(
        &mut self,
        version: Version,
        schema: &Arc<Schema>,
        reader: &mut Reader,
        flush: &mut Flush,
        advanced: &mut Advanced,
    ) -> Result<(), String> {
        let ready: Vec<MaterialisationId> = self
            .jobs
            .keys()
            .filter(|id| match self.by_id.get(id).map(|m| &m.state) {
                Some(State::Hydrating { stored, hydrated: Some(h) }) => {
                    h.version <= version && !matches!(stored, Stored::Asked)
                }
                _ => false,
            })
            .copied()
            .collect();
        for id in ready {
            self.jobs.remove(&id);
            let Some(m) = self.by_id.get_mut(&id) else { continue };
            let State::Hydrating { stored, hydrated: Some(hydrated) } =
                std::mem::replace(&mut m.state, State::Failed(String::new()))
            else {
                continue;
            };
            let Hydrated { mut graph, version: hydrated_at, payload, .. } = *hydrated;
            m.payload_pending = false;
            m.payload = Some(payload);
            m.history = History::starting_at(hydrated_at);
            if hydrated_at < version {
                let batches: Vec<Arc<Batch>> = self.ring.iter().filter(|b| b.version > hydrated_at).cloned().collect();
                match graph.advance(reader, &Changes::merge(&batches)) {
                    Ok(delta) if delta.is_empty() => {}
                    Ok(delta) => match Encoded::default().entry(version, &delta) {
                        Ok(entry) => m.history.push(Arc::new(entry)),
                        Err(message) => {
                            fail(m, id, message, &mut self.router, advanced);
                            continue;
                        }
                    },
                    Err(AdvanceError::NeedsRehydrate(_) | AdvanceError::SchemaChanged { .. }) => {
                        let job = Job {
                            id,
                            query: Arc::clone(&m.query),
                            schema: Arc::clone(schema),
                            keys: Arc::clone(&m.keys),
                        };
                        match hydrate::hydrate(&job, reader) {
                            Ok((fresh, payload)) => {
                                graph = fresh;
                                m.payload = Some(payload.finish(version));
                                m.history = History::starting_at(version);
                            }
                            Err(failure) => {
                                fail(m, id, failure.to_string(), &mut self.router, advanced);
                                continue;
                            }
                        }
                    }
                    Err(AdvanceError::Source(error)) => return Err(error.to_string()),
                }
            }
            m.state = State::Live(Box::new(graph));
            self.settle_lineage(id, stored, version, schema, flush);
            if let Some(State::Live(graph)) = self.by_id.get(&id).map(|m| &m.state) {
                self.router.insert(id.0, graph);
            }
            advanced.arrived.push(id);
        }
        Ok(())
    }

    /// Writes down where the history of a materialisation that became live begins, or how its rows differ from where it ended.
    fn settle_lineage(
        &mut self,
        id: MaterialisationId,
        stored: Stored,
        version: Version,
        schema: &Schema,
        flush: &mut Flush,
    ) {
        let fresh = match stored {
            Stored::Lost => {
                let key = self.by_id.get(&id).map(|m| Arc::clone(&m.key)).unwrap_or_default();
                warn!("the stored history of a query cannot be read; clients that hold it start over");
                let lineage = self.new_lineage(&key);
                if let Some(m) = self.by_id.get_mut(&id) {
                    self.by_lineage.remove(&m.lineage);
                    m.lineage = lineage;
                    self.by_lineage.insert(lineage, id);
                }
                None
            }
            Stored::New | Stored::Asked => None,
            Stored::Rows(rows) => Some(rows),
        };
        let Some(m) = self.by_id.get_mut(&id) else { return };
        let State::Live(graph) = &m.state else { return };
        match fresh {
            None => {
                let mut base = Encoder::default();
                for (id, version) in sorted_rows(graph) {
                    base.push(&id, Presence::Present(version));
                }
                flush.lineages.push(Lineage { id: m.lineage, key: m.key.to_string(), version, base: base.finish() });
            }
            Some(old) => {
                let entry = difference(&old, graph, m.payload.as_ref(), &m.history, version, schema, &m.keys);
                // One entry leads from the stored rows to the present ones, and from the payload too. The stored rows
                // are as old as the payload at least: nothing changed in between, or it would have been stored.
                let before = Version::new(version.as_u64().saturating_sub(1));
                m.history = History::starting_at(m.history.floor.min(before));
                if !entry.puts.is_empty() || !entry.dels.is_empty() {
                    flush.deltas.push(stored_form(m.lineage, &entry, graph));
                    m.history.push(Arc::new(entry));
                }
            }
        }
    }

    /// Frees what is idle or over budget.
    pub fn tidy(&mut self, now: Instant, durable: Version) {
        let idle: Vec<MaterialisationId> = self
            .by_id
            .iter()
            .filter(|(_, m)| m.idle_since.is_some_and(|since| now - since >= IDLE) && !m.payload_pending)
            // Whoever makes it again reads the stored history, which must be complete by then.
            .filter(|(_, m)| m.history.entries.back().is_none_or(|last| last.version <= durable))
            .map(|(&id, _)| id)
            .collect();
        for id in idle {
            self.forget_if_idle(id);
        }
        let mut payload_bytes = 0;
        for m in self.by_id.values_mut() {
            m.history.trim(durable);
            let size = m.payload.as_ref().map_or(0, Payload::size);
            let stale = m
                .payload
                .as_ref()
                .is_some_and(|p| p.version < m.history.floor || m.history.size() > size.max(64 << 10));
            if stale || payload_bytes + size > PAYLOAD_BYTES_MAX {
                m.payload = None;
            } else {
                payload_bytes += size;
            }
        }
        self.metrics.payload_bytes.set(i64::try_from(payload_bytes).unwrap_or(i64::MAX));
    }

    fn forget_if_idle(&mut self, id: MaterialisationId) {
        if let Some(m) = self.by_id.get(&id).filter(|m| m.subscribers.is_empty()) {
            self.by_key.remove(&m.key);
            self.by_lineage.remove(&m.lineage);
            self.router.remove(id.0);
            self.by_id.remove(&id);
        }
    }

    /// Lineages in use, which the database must not purge.
    pub fn lineages(&self) -> FxHashSet<LineageId> {
        self.by_lineage.keys().copied().collect()
    }

    /// Numbers of materialisations and of subscriptions to them.
    pub fn counts(&self) -> (usize, usize) {
        (self.by_id.len(), self.by_id.values().map(|m| m.subscribers.len()).sum())
    }
}

/// Encodes each changed row once per step, whatever number of queries it is in.
#[derive(Default)]
struct Encoded {
    puts: FxHashMap<RowId, Bytes>,
}

impl Encoded {
    fn entry(&mut self, version: Version, delta: &Delta) -> Result<Entry, String> {
        let mut puts = Vec::with_capacity(delta.puts.len());
        for put in &delta.puts {
            let id = RowId { table: Arc::clone(&put.table.table.name), key: put.key.clone() };
            let op = match self.puts.get(&id) {
                Some(op) => op.clone(),
                None => {
                    let op = encode::put(&put.table, &put.row).map_err(|e| e.to_string())?;
                    self.puts.insert(id.clone(), op.clone());
                    op
                }
            };
            puts.push((id, op));
        }
        let dels = delta
            .dels
            .iter()
            .map(|del| {
                let id = encode::id_of(del);
                let op = encode::del(&del.table, &id);
                (id, op)
            })
            .collect();
        Ok(Entry { version, puts, dels })
    }
}

/// Hydrates a live materialisation anew on the step's snapshot; the entry is the difference of its row sets.
fn rebuild(
    m: &mut Materialisation,
    schema: &Arc<Schema>,
    reader: &mut Reader,
    version: Version,
    id: MaterialisationId,
) -> Result<Entry, String> {
    let job = Job { id, query: Arc::clone(&m.query), schema: Arc::clone(schema), keys: Arc::clone(&m.keys) };
    let (graph, payload) = hydrate::hydrate(&job, reader).map_err(|e| e.to_string())?;
    let old: FxHashMap<RowId, Version> = m.graph().map(|g| sorted_rows(g).into_iter().collect()).unwrap_or_default();
    let payload = payload.finish(version);
    let entry = difference(&old, &graph, Some(&payload), &History::starting_at(version), version, schema, &m.keys);
    m.payload = Some(payload);
    m.state = State::Live(Box::new(graph));
    Ok(entry)
}

/// What leads from the row set `old` to that of `graph`, whose encoded rows are `payload` and the history after it.
fn difference(
    old: &FxHashMap<RowId, Version>,
    graph: &Graph,
    payload: Option<&Payload>,
    history: &History,
    version: Version,
    schema: &Schema,
    keys: &KeyChoice,
) -> Entry {
    let mut ops: FxHashMap<&RowId, Bytes> = FxHashMap::default();
    if let Some(payload) = payload {
        ops.extend(payload.rows.iter().map(|row| (&row.id, payload.op(row))));
    }
    for entry in &history.entries {
        ops.extend(entry.puts.iter().map(|(id, op)| (id, op.clone())));
    }
    let recent: FxHashSet<&RowId> =
        history.entries.iter().flat_map(|e| e.puts.iter().chain(&e.dels)).map(|(id, _)| id).collect();
    let mut entry = Entry { version, puts: Vec::new(), dels: Vec::new() };
    for (id, row_version) in sorted_rows(graph) {
        if (old.get(&id) != Some(&row_version) || recent.contains(&id))
            && let Some(op) = ops.get(&id)
        {
            entry.puts.push((id, op.clone()));
        }
    }
    let mut gone: Vec<&RowId> =
        old.keys().chain(recent.iter().copied()).filter(|id| graph.version_of(&id.table, &id.key).is_none()).collect();
    gone.sort_unstable();
    gone.dedup();
    for id in gone {
        if let Some(op) = del_op(schema, keys, id) {
            entry.dels.push((id.clone(), op));
        }
    }
    entry
}

/// The operation that deletes a row; `None` when its table is gone, and with it every client that knew the table.
pub fn del_op(schema: &Schema, keys: &KeyChoice, id: &RowId) -> Option<Bytes> {
    let table = schema.tables.get(&id.table)?;
    let keyed = ivm::KeyedTable::new(Arc::clone(table), keys.columns(table));
    (keyed.key.len() == id.key.len()).then(|| encode::del(&keyed, id))
}

fn sorted_rows(graph: &Graph) -> Vec<(RowId, Version)> {
    let mut rows: Vec<(RowId, Version)> = graph
        .rows()
        .map(|(table, key, version)| (RowId { table: Arc::clone(&table.table.name), key: key.clone() }, version))
        .collect();
    rows.sort_unstable();
    rows
}

fn stored_form(lineage: LineageId, entry: &Entry, graph: &Graph) -> store::Delta {
    let mut encoder = Encoder::default();
    for (id, _) in &entry.puts {
        let version = graph.version_of(&id.table, &id.key).unwrap_or(entry.version);
        encoder.push(id, Presence::Present(version));
    }
    for (id, _) in &entry.dels {
        encoder.push(id, Presence::Gone);
    }
    store::Delta { lineage, version: entry.version, entries: encoder.finish() }
}

fn record(m: &mut Materialisation, id: MaterialisationId, entry: Entry, flush: &mut Flush, advanced: &mut Advanced) {
    if entry.puts.is_empty() && entry.dels.is_empty() {
        return;
    }
    if let State::Live(graph) = &m.state {
        flush.deltas.push(stored_form(m.lineage, &entry, graph));
    }
    m.history.push(Arc::new(entry));
    advanced.changed.push(id);
}

fn fail(m: &mut Materialisation, id: MaterialisationId, message: String, router: &mut Router, advanced: &mut Advanced) {
    warn!(message, "a query cannot be served any more");
    router.remove(id.0);
    m.state = State::Failed(message);
    advanced.failed.push(id);
}
