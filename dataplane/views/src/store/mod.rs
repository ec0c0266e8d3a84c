//! The CVR database: what must survive a restart so that a client with a cookie is sent the difference only.
//!
//! * `groups`: one record per client group: clients, desired queries, which lineage each got query is served from. Written
//!   when these change, never per poke.
//! * `lineages`: one per materialisation: a base row set at a version. `deltas`: what changed since, one row per version in
//!   which the materialisation changed, appended for all materialisations of the node in one statement per flush.
//!
//! Cost is by distinct query and by changed row, never by (groups x rows).
//!
//! Invariant: flushes are applied in order and each is one transaction; [`Event::Flushed`] is reported after the
//! commit. While the database is away, flushes wait and are retried: nothing is dropped, and nothing that depends on them is sent.

mod answer;
mod connection;
mod history;
mod sql;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rows::{Cookie, Version};
use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, watch};

use crate::limits::Limits;
use crate::row_id::RowId;

pub use connection::Connector;
pub use sql::prepare;
pub use write::Metrics;

/// Identifies the stored history of one materialisation.
pub type LineageId = i64;

/// One unit of durability: everything a set of pokes depends on.
#[derive(Debug, Default)]
pub struct Flush {
    /// New lineages, or lineages whose history starts anew.
    pub lineages: Vec<Lineage>,
    pub deltas: Vec<Delta>,
    /// Group records, as JSON text.
    pub groups: Vec<GroupRow>,
}

impl Flush {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lineages.is_empty() && self.deltas.is_empty() && self.groups.is_empty()
    }
}

#[derive(Debug)]
pub struct Lineage {
    pub id: LineageId,
    /// The materialisation's key.
    pub key: String,
    pub version: Version,
    pub base: Vec<u8>,
}

#[derive(Debug)]
pub struct Delta {
    pub lineage: LineageId,
    pub version: Version,
    pub entries: Vec<u8>,
}

#[derive(Debug)]
pub struct GroupRow {
    pub id: String,
    pub record: String,
    /// Every lineage that the record names, which keeps them from being purged.
    pub lineages: Vec<LineageId>,
}

/// What the store tells the views.
#[derive(Debug)]
pub enum Event {
    /// Everything up to this flush number is durable.
    Flushed {
        up_to: u64,
    },
    Group {
        id: String,
        record: Option<String>,
    },
    /// The latest row set of a lineage; `None` when it is unknown or damaged.
    RowSet {
        lineage: LineageId,
        rows: Option<RowSet>,
    },
    Touched(Touched),
    /// Unused groups and lineages are about to be purged: [`Request::Purge`] must say which are in use.
    PurgeDue,
    /// These lineages are gone.
    Purged {
        lineages: Vec<LineageId>,
    },
}

/// The rows of a lineage and the version at which it had them.
#[derive(Debug)]
pub struct RowSet {
    pub version: Version,
    pub rows: FxHashMap<RowId, Version>,
}

/// Rows of a lineage that a client at `since` may hold in another state than the present one.
#[derive(Debug)]
pub struct Touched {
    pub lineage: LineageId,
    pub since: Cookie,
    pub held: bool,
    /// `None`: the stored history does not reach back so far.
    pub rows: Option<Vec<RowId>>,
}

/// Questions of the views, answered by an [`Event`] each, in order. An answer shows everything that was handed over for a flush
/// before the question.
#[derive(Debug)]
pub enum Request {
    Group {
        id: String,
    },
    RowSet {
        lineage: LineageId,
    },
    /// Rows that changed after `since`; with `held`, also all rows that were in the set then.
    Touched {
        lineage: LineageId,
        since: Cookie,
        held: bool,
    },
    /// Removes what nobody can come back for, except these.
    Purge {
        lineages: Vec<LineageId>,
        groups: Vec<String>,
    },
}

/// Handle to the store's two tasks: one writes flushes in order, one answers questions and tidies up.
///
/// Queues are unbounded in count and bounded by their sources: the views keep what waits for a flush under a byte limit and
/// close connections beyond it; a connection asks at most one question per lineage it needs.
#[derive(Clone, Debug)]
pub struct Store {
    flushes: mpsc::UnboundedSender<(u64, Flush)>,
    requests: mpsc::UnboundedSender<(u64, Request)>,
    handed_over: Arc<AtomicU64>,
}

impl Store {
    /// Flush numbers ascend; [`Event::Flushed`] names the highest that is durable.
    pub fn flush(&self, number: u64, flush: Flush) {
        self.handed_over.store(number, Ordering::Release);
        // The task ends only with the process.
        let _ = self.flushes.send((number, flush));
    }

    pub fn ask(&self, request: Request) {
        let _ = self.requests.send((self.handed_over.load(Ordering::Acquire), request));
    }
}

/// Starts the tasks on the current runtime. Groups that were away for `purge_hours` are forgotten.
pub fn spawn(
    connector: Connector,
    schema: String,
    purge_hours: i32,
    limits: &Limits,
    metrics: Metrics,
    events: impl Fn(Event) + Send + Sync + 'static,
) -> Store {
    let events = Arc::new(events);
    let (flushes, flush_receiver) = mpsc::unbounded_channel();
    let (requests, request_receiver) = mpsc::unbounded_channel();
    let (durable, durable_receiver) = watch::channel(0);
    let writer = write::Writer::new(Arc::clone(&connector), &schema, metrics, durable, Arc::clone(&events));
    tokio::spawn(writer.run(flush_receiver));
    let answerer = answer::Answerer::new(connector, schema, purge_hours, limits.clone(), durable_receiver, events);
    tokio::spawn(answerer.run(request_receiver));
    Store { flushes, requests, handed_over: Arc::default() }
}
