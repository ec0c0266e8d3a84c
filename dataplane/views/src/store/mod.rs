//! The CVR database: what must survive a restart so that a client with a cookie is sent the difference only, on any node.
//!
//! * `nodes`: one row per running process. `groups`: one record per client group: clients, desired queries, which lineage each
//!   got query is served from. Written when these change, never per poke. At most one node owns a group.
//! * `lineages`: one per materialisation of a node, written by that node only: a base row set at a version. `deltas`: what
//!   changed since, one row per version in which the materialisation changed, appended for all materialisations of the node in
//!   one statement per flush. Others read them to catch up clients that were served from them.
//!
//! Where Rocicorp's server has its tables in the same schema, the groups that it knows are taken over from them (`reference`).
//!
//! Cost is by distinct query and by changed row, never by (groups x rows).
//!
//! Connections: one that writes and one that reads, or a single one in turns if no more are allowed; one more for a moment at
//! the start. Everything works through a pooler that gives each transaction another connection.
//!
//! Invariants:
//! * Flushes are applied in order, large ones in several transactions, rows before the records that name them;
//!   [`Event::Flushed`] is reported after the last commit. While the
//!   database is away, flushes wait and are retried: nothing is dropped but what the database refuses for good, and nothing that
//!   depends on them is sent.
//! * No flush is stored after a group was taken from the node before that was reported by [`Event::Lost`].

mod answer;
mod asked;
mod claims;
mod connection;
mod fault;
mod history;
mod parts;
mod reference;
mod sql;
mod tables;
mod write;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rows::{Cookie, Schema, Version};
use rustc_hash::FxHashMap;
use tokio::sync::{mpsc, watch};
use tokio_postgres::types::Type;

use crate::limits::Limits;
use crate::row_id::RowId;

use connection::Connection;

pub use connection::Connector;
pub use fault::Unopened;
pub use reference::{Inherit, Remembered, RememberedDesire, RememberedQuery};
pub use write::Metrics;

/// One process, registered in the database; never used twice.
pub type NodeId = i64;

/// Epoch of a group's first owner.
pub const FIRST_EPOCH: i64 = 1;

/// Identifies the stored history of one materialisation.
pub type LineageId = i64;

/// One unit of durability: everything a set of pokes depends on.
#[derive(Debug, Default)]
pub struct Flush {
    /// The newest version that any client is told of on the strength of this flush.
    pub version: Version,
    /// New lineages, or lineages whose history starts anew.
    pub lineages: Vec<Lineage>,
    pub deltas: Vec<Delta>,
    /// Group records, as JSON text.
    pub groups: Vec<GroupRow>,
    /// Groups that this node gives up, after everything else is stored.
    pub released: Vec<Tenure>,
    /// The last flush of the node: whatever it owns is free.
    pub leave: bool,
}

impl Flush {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lineages.is_empty()
            && self.deltas.is_empty()
            && self.groups.is_empty()
            && self.released.is_empty()
            && !self.leave
    }

    /// What it takes until it is stored.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const AROUND: usize = 128;
        let lineages: usize = self.lineages.iter().map(|lineage| AROUND + lineage.key.len() + lineage.base.len()).sum();
        let deltas: usize = self.deltas.iter().map(|delta| AROUND + delta.entries.len()).sum();
        let groups: usize = self.groups.iter().map(|group| AROUND + group.record.len()).sum();
        AROUND + lineages + deltas + groups
    }
}

/// One node's ownership of a group; the epoch grows with every change of the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    pub group: String,
    pub epoch: i64,
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
    pub epoch: i64,
    pub record: String,
    /// It has no connections: who takes it over is not contested.
    pub is_idle: bool,
    /// When the newest of its connections was accepted.
    pub connected_at: Instant,
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
    Claimed {
        id: String,
        verdict: Verdict,
    },
    /// Another node owns the group; no flush that is reported from now on stored anything for it.
    Lost(Tenure),
    /// The database refuses the group's record for good: nothing that depends on it is ever sent.
    Refused(Tenure),
    /// Tables were missing and were made anew: what was stored is gone.
    MadeAnew,
    /// A task of the store ended in a way that it must not.
    Broken(String),
    /// This node was taken for dead: everything it owned is free or another's, its histories may be gone.
    Gone,
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

/// Asks for the rows that a client at `since` may hold in another state than the present one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    /// Which serves the query now.
    pub present: LineageId,
    /// Which served the client at `since`, maybe on another node.
    pub lineage: LineageId,
    pub since: Cookie,
    /// Also all rows that were in the set at `since`.
    pub held: bool,
}

/// Answers that come from one lineage.
#[derive(Debug)]
pub struct Touched {
    pub present: LineageId,
    /// `None`: the stored history does not reach back so far.
    pub answers: Vec<(Question, Option<Vec<RowId>>)>,
    /// Where the history ends, if it is another node's: what changed after that shows by comparison.
    pub latest: Option<RowSet>,
}

/// Asks to own a group.
#[derive(Debug)]
pub struct Claim {
    pub group: String,
    /// When the connection that asks for the group was accepted: one that waited for long must not take a group from one that
    /// came later.
    pub connected_at: Instant,
    /// The replica's version here.
    pub version: Version,
    /// And its tables.
    pub schema: Arc<Schema>,
    /// A number for the rows that clients hold if the group comes from Rocicorp's server.
    pub lineage: LineageId,
}

#[derive(Debug)]
pub enum Verdict {
    /// The node owns the group.
    Owned {
        tenure: Tenure,
        /// `None`: it was forgotten before.
        record: Option<String>,
        /// No client of the group was sent a plain cookie beyond this version.
        bound: Version,
        is_taken_over: bool,
    },
    /// The node owns the group and what was known of it is void: it was of a copy of the database that is no more.
    Reset { tenure: Tenure },
    /// Nobody knows the group: the first record that is stored makes its node the owner.
    Unknown,
    /// Another node keeps it, for so long at least.
    Elsewhere { wait: Duration },
    /// The group is served from a newer copy of the database than this node has.
    NewerCopy,
    /// This node is not registered any more.
    Gone,
}

/// Questions of the views, answered by an [`Event`] each, in order. An answer shows everything that was handed over for a flush
/// before the question.
#[derive(Debug)]
pub enum Request {
    Claim(Claim),
    RowSet {
        lineage: LineageId,
    },
    Touched(Question),
    /// Removes what nobody can come back for, except these.
    Purge {
        lineages: Vec<LineageId>,
    },
}

/// Handle to the store's two tasks: one writes flushes in order, one answers questions and tidies up.
///
/// Queues are unbounded in count and bounded by their sources: the views make no step while too many bytes wait to be stored; a
/// connection asks at most one question per lineage it needs.
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

/// The copy of the upstream database that a node's replica began with.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Names it; a new copy has a new one.
    pub id: String,
    pub version: Version,
}

/// What the store needs to know.
pub struct Settings {
    pub connector: Connector,
    pub schema: String,
    /// Groups that were away for so long are forgotten.
    pub purge_hours: i32,
    /// Most connections that may be open at once.
    pub connections_max: usize,
    pub copy: Copy,
    pub limits: Limits,
    pub inherit: Inherit,
    pub metrics: Metrics,
}

/// Creates what is missing, forgets what is too old and registers this process.
pub async fn register(settings: &Settings) -> Result<NodeId, Unopened> {
    let mut connection = Connection::new(Arc::clone(&settings.connector), settings.limits.answer);
    // It is tried once: whoever starts the process says what to do about it.
    connection.try_open().await?;
    registered(&mut connection, settings)
        .await
        .map_err(|fault| Unopened::from(fault).while_doing("prepare the CVR tables"))
}

async fn registered(connection: &mut Connection, settings: &Settings) -> Result<NodeId, fault::Fault> {
    let (schema, copy) = (&settings.schema, &settings.copy);
    connection.run(&tables::create(schema)).await?;
    answer::purge(connection, schema, settings.purge_hours, &settings.limits).await?;
    let version = history::as_i64(copy.version);
    loop {
        let own = [(&copy.id as &(dyn tokio_postgres::types::ToSql + Sync), Type::TEXT), (&version, Type::INT8)];
        if let Some(row) = connection.query(&sql::register(schema), &own, 0).await?.first() {
            return Ok(row.get(0));
        }
    }
}

/// Starts the tasks on the current runtime.
pub fn spawn(settings: Settings, node: NodeId, events: impl Fn(Event) + Send + Sync + 'static) -> Store {
    let Settings { connector, schema, purge_hours, connections_max, copy, limits, inherit, metrics } = settings;
    let events = Arc::new(events);
    let (flushes, flush_receiver) = mpsc::unbounded_channel();
    let (requests, request_receiver) = mpsc::unbounded_channel();
    let (durable, durable_receiver) = watch::channel(0);
    let connection = Connection::new(Arc::clone(&connector), limits.answer);
    let reading = if connections_max < 2 { connection.share() } else { Connection::new(connector, limits.answer) };
    let writer = write::Writer {
        connection,
        node,
        copy,
        schema: schema.clone(),
        limits: limits.clone(),
        metrics: metrics.clone(),
        durable,
        events: Arc::clone(&events),
        state: write::State::default(),
    };
    watched("writes to the CVR database", Arc::clone(&events), writer.run(flush_receiver));
    let answerer = answer::Answerer {
        connection: reading,
        node,
        schema,
        purge_hours,
        limits,
        inherit,
        is_beside: false,
        metrics,
        durable: durable_receiver,
        events: Arc::clone(&events),
    };
    watched("reads from the CVR database", events, answerer.run(request_receiver));
    Store { flushes, requests, handed_over: Arc::default() }
}

/// Runs a task; should it panic, that is told.
fn watched(
    what: &'static str,
    events: Arc<impl Fn(Event) + Send + Sync + 'static>,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let task = tokio::spawn(task);
    tokio::spawn(async move {
        if task.await.is_err_and(|error| error.is_panic()) {
            events(Event::Broken(format!("the task that {what} panicked")));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_told() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let events = Arc::new(move |event| drop(sender.send(event)));
        watched("ends as it should", Arc::clone(&events), async {});
        watched("does not", events, async { panic!("as the test wants it") });
        let Some(Event::Broken(reason)) = receiver.recv().await else { panic!("another event") };
        assert!(reason.contains("does not"), "{reason}");
        assert!(receiver.recv().await.is_none());
    }
}
