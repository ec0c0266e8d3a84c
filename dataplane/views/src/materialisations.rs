//! All materialisations of the node: who subscribes to which, and their common march from version to version.
//!
//! Invariant: after [`Materialisations::advance`] every live graph is at the same version, and each one that changed has a history
//! entry of that version, whose stored form is in the flush.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ivm::{AdvanceError, Changes, Delta, Graph, Router};
use protocol::ast::Ast;
use replica::Reader;
use rows::{Batch, Schema, Version};
use rustc_hash::{FxHashMap, FxHashSet};
use tracing::{debug, warn};

use crate::budget::Budget;
use crate::convert::{KeyChoice, tables_of, to_query};
use crate::encode;
use crate::group::GroupId;
use crate::hydrate::{self, Failure, Hydrated, Job, Outcome, Pool};
use crate::lineage::{sorted_rows, stored_form};
use crate::materialisation::{Entry, History, Materialisation, MaterialisationId, State, Stored};
use crate::metrics::Metrics;
use crate::relief::Crowded;
use crate::row_id::{Identity, RowId};
use crate::spool::Spool;
use crate::store::{self, Flush, LineageId, Request, RowSet};

pub struct Materialisations {
    pub(crate) by_id: BTreeMap<MaterialisationId, Materialisation>,
    by_key: FxHashMap<Arc<str>, MaterialisationId>,
    pub(crate) by_lineage: FxHashMap<LineageId, MaterialisationId>,
    router: Router,
    pool: Pool,
    /// Where encoded rows lie.
    pub(crate) spool: Spool,
    /// What graphs may take.
    pub(crate) graphs: Budget,
    /// Hydrations that found no room, in the order in which they came.
    pub(crate) crowded: Vec<Crowded>,
    /// When clients were sent away last because what is there has grown.
    pub(crate) shed_at: Option<Instant>,
    next_id: u64,
    next_lineage: LineageId,
    /// Lineages that this node has begun, by key.
    known: FxHashMap<String, LineageId>,
    /// The version the views were at when a job was submitted; its snapshot is at least as new.
    jobs: FxHashMap<MaterialisationId, Version>,
    /// Those whose job failed since the last step.
    failed: Vec<MaterialisationId>,
    /// Batches that a job under way may need.
    ring: VecDeque<Arc<Batch>>,
    pub(crate) metrics: Metrics,
}

/// What one step did, for the groups.
#[derive(Debug, Default)]
pub struct Advanced {
    /// Materialisations with an entry at the new version.
    pub changed: Vec<MaterialisationId>,
    /// Materialisations that are hydrated anew: nobody who holds them is told anything until they are live again.
    pub suspended: Vec<MaterialisationId>,
    /// Materialisations that became live.
    pub arrived: Vec<MaterialisationId>,
    /// Materialisations whose rows are there again for whoever needs all of them.
    pub renewed: Vec<MaterialisationId>,
    /// Materialisations that cannot be served any more.
    pub failed: Vec<MaterialisationId>,
    /// What was added to histories.
    pub history_bytes: usize,
}

impl Materialisations {
    pub fn new(pool: Pool, spool: Spool, graphs: Budget, next_lineage: LineageId, metrics: Metrics) -> Self {
        Materialisations {
            by_id: BTreeMap::new(),
            by_key: FxHashMap::default(),
            by_lineage: FxHashMap::default(),
            router: Router::default(),
            pool,
            spool,
            graphs,
            crowded: Vec::new(),
            shed_at: None,
            next_id: 1,
            next_lineage,
            known: FxHashMap::default(),
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
        version: Version,
        store: &store::Store,
    ) -> Result<MaterialisationId, String> {
        let hash = protocol::normalize::transformation_hash(ast);
        let key: Arc<str> = format!("{hash}{}", keys.share_key(&tables_of(ast))).into();
        if let Some(&id) = self.by_key.get(&key)
            && let State::Failed { message, .. } = &self.by_id[&id].state
        {
            let message = message.clone();
            if !self.forget_if_idle(id) {
                return Err(message);
            }
            // Whoever used it was told that it failed. What made it fail may be gone: it is tried again.
        }
        let id = match self.by_key.get(&key) {
            Some(&id) => id,
            None => {
                let query = Arc::new(to_query(ast).map_err(|e| e.to_string())?);
                self.create(key, query, keys, version, store)
            }
        };
        let materialisation = self.by_id.get_mut(&id).expect("indexed by key");
        materialisation.subscribers.insert(group);
        materialisation.idle_since = None;
        Ok(id)
    }

    fn create(
        &mut self,
        key: Arc<str>,
        query: Arc<ivm::query::Query>,
        keys: &Arc<KeyChoice>,
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
                room: None,
                payload: None,
                payload_pending: true,
                renewed: None,
                history: History::default(),
                idle_since: None,
                payload_used: Cell::new(Instant::now()),
                settled_at: Version::ZERO,
            },
        );
        self.submit(id, version);
        id
    }

    /// A number that no other history has.
    pub(crate) fn reserve_lineage(&mut self) -> LineageId {
        let lineage = self.next_lineage;
        self.next_lineage += 1;
        lineage
    }

    pub(crate) fn new_lineage(&mut self, key: &str) -> LineageId {
        let lineage = self.reserve_lineage();
        self.known.insert(key.to_owned(), lineage);
        lineage
    }

    pub(crate) fn submit(&mut self, id: MaterialisationId, version: Version) {
        let Some(m) = self.by_id.get_mut(&id) else { return };
        m.payload_pending = true;
        self.jobs.insert(id, version);
        self.pool.submit(job(id, m, &self.spool, &self.graphs));
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
    pub fn renew_payload(&mut self, id: MaterialisationId, version: Version) {
        if self.by_id.get(&id).is_some_and(|m| !m.payload_pending) {
            self.submit(id, version);
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
                self.crowded.retain(|c| c.id != outcome.id);
                self.metrics.hydrations.inc();
                self.metrics.hydration_seconds.observe(hydrated.elapsed.as_secs_f64());
                match &mut m.state {
                    State::Hydrating { hydrated: slot, .. } => *slot = Some(Box::new(hydrated)),
                    // A renewed payload: the graph goes on as it is.
                    State::Live(_) => m.renewed = Some(Box::new(hydrated)),
                    State::Failed { .. } => {
                        self.jobs.remove(&outcome.id);
                    }
                }
            }
            Err(Failure::NoRoom { reason, had }) => {
                debug!(reason, "a hydration waits for room");
                self.metrics.shed.with_label_values(&["hydration"]).inc();
                self.jobs.remove(&outcome.id);
                self.crowd(outcome.id, had);
            }
            Err(Failure::Query(message) | Failure::Replica(message)) => {
                debug!(message, "a query cannot be served");
                self.crowded.retain(|c| c.id != outcome.id);
                m.payload_pending = false;
                self.jobs.remove(&outcome.id);
                m.renewed = None;
                if !matches!(m.state, State::Failed { .. }) {
                    set_failed(m, outcome.id, message, Vec::new(), &mut self.router);
                    self.failed.push(outcome.id);
                }
            }
        }
        true
    }

    /// Ends what stands on a key that is not unique any more: it names no row. Clients that chose it are turned away.
    pub fn check_keys(&mut self, schema: &Schema) {
        for (&id, m) in &mut self.by_id {
            let State::Live(graph) = &m.state else { continue };
            let table_of = |keyed: &ivm::KeyedTable| schema.tables.get(&keyed.table.name);
            let ambiguous = graph
                .tables()
                .find(|keyed| {
                    table_of(keyed).is_some_and(|t| t.columns == keyed.table.columns && !keyed.is_unique_in(t))
                })
                .map(|keyed| hydrate::ambiguous(keyed));
            if let Some(message) = ambiguous {
                set_failed(m, id, message, Vec::new(), &mut self.router);
                self.failed.push(id);
            }
        }
    }

    /// Takes what the database knew of a lineage. Returns whether a step is wanted.
    pub fn stored(&mut self, lineage: LineageId, rows: Option<RowSet>) -> bool {
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
        self.ring.range(self.ring.partition_point(|b| b.version <= version)..)
    }

    /// Moves every graph to `version`, over the batches in the ring above `from`. `reader` has a snapshot of exactly `version`.
    pub fn advance(
        &mut self,
        from: Version,
        version: Version,
        schema: &Schema,
        reader: &mut Reader,
        flush: &mut Flush,
    ) -> Result<Advanced, String> {
        let mut advanced = Advanced { failed: std::mem::take(&mut self.failed), ..Advanced::default() };
        let batches: Vec<Arc<Batch>> = self.batches_after(from).cloned().collect();
        if !batches.is_empty() {
            let changes = Changes::merge(&batches);
            let mut encoded = Encoded::default();
            for id in self.router.route(&changes) {
                let id = MaterialisationId(id);
                let Some(m) = self.by_id.get_mut(&id) else { continue };
                let State::Live(graph) = &mut m.state else { continue };
                let timer = self.metrics.advance_seconds.start_timer();
                let outcome = match graph.advance(reader, &changes) {
                    Ok(delta) => encoded.entry(version, &delta).map_err(|message| (message, lost(&delta))),
                    Err(reason @ (AdvanceError::NeedsRehydrate(_) | AdvanceError::SchemaChanged { .. })) => {
                        debug!(%reason, "re-hydrating a query");
                        self.metrics.rehydrations.inc();
                        timer.observe_duration();
                        // What it was until now is what the new rows are compared with.
                        let rows = sorted_rows(graph).into_iter().collect();
                        let stored = Stored::Rows(RowSet { version: from, rows });
                        m.state = State::Hydrating { stored, hydrated: None };
                        m.room = None;
                        m.payload = None;
                        self.router.remove(id.0);
                        advanced.suspended.push(id);
                        continue;
                    }
                    Err(AdvanceError::Source(error)) => return Err(error.to_string()),
                };
                timer.observe_duration();
                match outcome {
                    Ok(entry) => record(m, id, entry, flush, &mut advanced),
                    Err((message, lost)) => {
                        set_failed(m, id, message, lost, &mut self.router);
                        advanced.failed.push(id);
                    }
                }
            }
        }
        for &id in &advanced.suspended {
            // A job that is under way for its rows will do; the batches since its snapshot are kept.
            if self.by_id.get(&id).is_some_and(|m| !m.payload_pending) {
                self.submit(id, version);
            }
            if let Some(m) = self.by_id.get_mut(&id)
                && let Some(renewed) = m.renewed.take()
                && let State::Hydrating { hydrated, .. } = &mut m.state
            {
                *hydrated = Some(renewed);
            }
        }
        self.arrive(version, schema, reader, flush, &mut advanced)?;
        self.take_renewed(version, reader, &mut advanced)?;
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
        schema: &Schema,
        reader: &mut Reader,
        flush: &mut Flush,
        advanced: &mut Advanced,
    ) -> Result<(), String> {
        let ready = |id: &MaterialisationId| match self.by_id.get(id).map(|m| &m.state) {
            Some(State::Hydrating { stored, hydrated: Some(h) }) => {
                h.version <= version && !matches!(stored, Stored::Asked)
            }
            _ => false,
        };
        let mut ready: Vec<MaterialisationId> = self.jobs.keys().copied().filter(ready).collect();
        ready.sort_unstable();
        for id in ready {
            self.jobs.remove(&id);
            let Some(m) = self.by_id.get_mut(&id) else { continue };
            let nothing = State::Failed { message: String::new(), left: Vec::new() };
            let State::Hydrating { stored, hydrated: Some(hydrated) } = std::mem::replace(&mut m.state, nothing) else {
                continue;
            };
            m.payload_pending = false;
            let since = self.ring.partition_point(|b| b.version <= hydrated.version);
            let batches: Vec<Arc<Batch>> = self.ring.range(since..).cloned().collect();
            let job = job(id, m, &self.spool, &self.graphs);
            match follow(m, job, *hydrated, &batches, version, reader)? {
                Ok(graph) => m.state = State::Live(Box::new(graph)),
                Err(message) => {
                    set_failed(m, id, message, Vec::new(), &mut self.router);
                    advanced.failed.push(id);
                    continue;
                }
            }
            self.settle_lineage(id, stored, version, schema, flush).map_err(|e| format!("read encoded rows: {e}"))?;
            if let Some(m) = self.by_id.get(&id)
                && let State::Live(graph) = &m.state
            {
                self.router.insert(id.0, graph);
                advanced.history_bytes += m.history.size();
            }
            advanced.arrived.push(id);
        }
        Ok(())
    }

    /// Takes over payloads that were encoded again and are at the step's version or can be brought there.
    fn take_renewed(&mut self, version: Version, reader: &mut Reader, advanced: &mut Advanced) -> Result<(), String> {
        let ready = |id: &MaterialisationId| {
            self.by_id.get(id).and_then(|m| m.renewed.as_ref()).is_some_and(|h| h.version <= version)
        };
        let mut ready: Vec<MaterialisationId> = self.jobs.keys().copied().filter(ready).collect();
        ready.sort_unstable();
        for id in ready {
            self.jobs.remove(&id);
            let Some(m) = self.by_id.get_mut(&id) else { continue };
            let Some(hydrated) = m.renewed.take() else { continue };
            m.payload_pending = false;
            advanced.renewed.push(id);
            let Hydrated { mut graph, version: hydrated_at, mut payload, .. } = *hydrated;
            if m.graph().is_none() {
                continue;
            }
            if hydrated_at < version {
                let since = self.ring.partition_point(|b| b.version <= hydrated_at);
                let batches: Vec<Arc<Batch>> = self.ring.range(since..).cloned().collect();
                match graph.advance(reader, &Changes::merge(&batches)) {
                    Ok(delta) => match Encoded::default().entry(version, &delta) {
                        Ok(entry) => payload.tail = Some(Arc::new(entry)).filter(|e| !e.is_empty()),
                        // The materialisation fails by itself.
                        Err(_) => continue,
                    },
                    // Whoever still needs it asks again.
                    Err(AdvanceError::NeedsRehydrate(_) | AdvanceError::SchemaChanged { .. }) => continue,
                    Err(AdvanceError::Source(error)) => return Err(error.to_string()),
                }
                payload.version = version;
            }
            m.payload = Some(payload);
        }
        Ok(())
    }

    /// Forgets a materialisation that nobody subscribes to. Returns whether it is gone.
    pub(crate) fn forget_if_idle(&mut self, id: MaterialisationId) -> bool {
        if !self.by_id.get(&id).is_some_and(|m| m.subscribers.is_empty()) {
            return false;
        }
        if let Some(m) = self.by_id.remove(&id) {
            self.by_key.remove(&m.key);
            self.by_lineage.remove(&m.lineage);
            self.router.remove(id.0);
        }
        true
    }

    /// The database has these lineages no longer.
    pub fn purged(&mut self, lineages: &[LineageId]) {
        let gone: FxHashSet<LineageId> =
            lineages.iter().filter(|l| !self.by_lineage.contains_key(l)).copied().collect();
        self.known.retain(|_, lineage| !gone.contains(lineage));
    }

    /// Lineages in use, which the database must not purge.
    pub fn lineages(&self) -> Vec<LineageId> {
        self.by_lineage.keys().copied().collect()
    }

    /// Numbers of materialisations and of subscriptions to them.
    pub fn counts(&self) -> (usize, usize) {
        (self.by_id.len(), self.by_id.values().map(|m| m.subscribers.len()).sum())
    }
}

/// Encodes each changed row once per step, whatever number of queries it is in, and whatever keys their clients know it by.
#[derive(Default)]
struct Encoded {
    puts: FxHashMap<Identity, Bytes>,
}

impl Encoded {
    fn entry(&mut self, version: Version, delta: &Delta) -> Result<Entry, String> {
        let mut puts = Vec::with_capacity(delta.puts.len());
        for put in &delta.puts {
            let identity = Identity::of(put);
            let op = match self.puts.get(&identity) {
                Some(op) => op.clone(),
                None => {
                    let op = encode::put(&put.table, &put.row).map_err(|e| e.to_string())?;
                    self.puts.insert(identity, op.clone());
                    op
                }
            };
            puts.push((RowId::of(&put.table, &put.key), op.into()));
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

fn job(id: MaterialisationId, m: &Materialisation, spool: &Spool, graphs: &Budget) -> Job {
    let (query, keys) = (Arc::clone(&m.query), Arc::clone(&m.keys));
    Job { id, query, keys, spool: spool.clone(), graphs: graphs.clone() }
}

/// Brings what a job hydrated to the step's version; the history begins with the payload. The inner error means that the
/// query cannot be served.
fn follow(
    m: &mut Materialisation,
    job: Job,
    hydrated: Hydrated,
    batches: &[Arc<Batch>],
    version: Version,
    reader: &mut Reader,
) -> Result<Result<Graph, String>, String> {
    let Hydrated { mut graph, room, version: hydrated_at, payload, .. } = hydrated;
    m.room = Some(room);
    m.payload = Some(payload);
    m.history = History::starting_at(hydrated_at);
    if hydrated_at == version {
        return Ok(Ok(graph));
    }
    match graph.advance(reader, &Changes::merge(batches)) {
        Ok(delta) if delta.is_empty() => Ok(Ok(graph)),
        Ok(delta) => Ok(Encoded::default().entry(version, &delta).map(|entry| {
            m.history.push(Arc::new(entry));
            graph
        })),
        Err(AdvanceError::NeedsRehydrate(_) | AdvanceError::SchemaChanged { .. }) => {
            let made = hydrate::hydrate(&job, reader).and_then(|(graph, room, payload)| {
                let payload = hydrate::finish(payload, version, &room)?;
                Ok((graph, room, payload))
            });
            Ok(made.map_err(|e| e.to_string()).map(|(graph, room, payload)| {
                m.room = Some(room);
                m.payload = Some(payload);
                m.history = History::starting_at(version);
                graph
            }))
        }
        Err(AdvanceError::Source(error)) => Err(error.to_string()),
    }
}

fn record(m: &mut Materialisation, id: MaterialisationId, entry: Entry, flush: &mut Flush, advanced: &mut Advanced) {
    if entry.is_empty() {
        return;
    }
    if let State::Live(graph) = &m.state {
        flush.deltas.push(stored_form(m.lineage, &entry, graph));
    }
    advanced.history_bytes += entry.size();
    m.history.push(Arc::new(entry));
    advanced.changed.push(id);
}

fn lost(delta: &Delta) -> Vec<RowId> {
    delta.dels.iter().map(encode::id_of).collect()
}

/// `lost`: rows that left the result and that clients were not told of.
fn set_failed(m: &mut Materialisation, id: MaterialisationId, message: String, lost: Vec<RowId>, router: &mut Router) {
    warn!(message, "a query cannot be served any more");
    router.remove(id.0);
    let mut left = lost;
    if let State::Hydrating { stored: Stored::Rows(rows), .. } = &m.state {
        left.extend(rows.rows.keys().cloned());
    }
    left.extend(m.graph().into_iter().flat_map(Graph::rows).map(|(table, key, _)| RowId::of(table, key)));
    m.state = State::Failed { message, left };
    m.room = None;
    m.payload = None;
}
