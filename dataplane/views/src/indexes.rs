//! Indexes that queries need and upstream does not have.
//!
//! A query that relates two tables by columns without an index reads one table as a whole for every row of the other. Upstream is
//! rarely asked in that way, and does not index foreign keys by itself; so the replica gets an index of its own, made by its
//! writer between two commits. Bounded: only tables whose index is made within seconds, and a fixed number of them.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ivm::query::{Condition, Query, Related};
use replica::Reader;
use rustc_hash::FxHashSet;
use tokio::sync::mpsc;
use tracing::warn;

/// A table and columns of it by which rows are looked up.
type Lookup = (String, Vec<String>);

/// Making an index holds commits up, a second for about a million rows.
const ROWS_MAX: u64 = 2_000_000;
/// Lookups that are remembered as asked for. Whatever queries come, no more indexes than this are wished for.
const WISHES_MAX: usize = 64;
/// A hydration waits so long for its indexes; it is right without them.
const PATIENCE: Duration = Duration::from_secs(5);

/// An index to be made. Whoever waits for it goes on when this is dropped.
#[derive(Debug)]
pub struct Wanted {
    pub table: String,
    pub columns: Vec<String>,
    _waiting: Sender<()>,
}

/// Where hydrations ask for indexes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Wishes {
    wanted: mpsc::UnboundedSender<Wanted>,
    asked: Arc<Mutex<FxHashSet<Lookup>>>,
}

impl Wishes {
    pub(crate) fn new() -> (Wishes, mpsc::UnboundedReceiver<Wanted>) {
        let (wanted, receiver) = mpsc::unbounded_channel();
        (Wishes { wanted, asked: Arc::default() }, receiver)
    }

    /// Asks for what a query needs and a reader's snapshot lacks, once each. Returns what to wait for.
    pub(crate) fn ask(&self, query: &Query, reader: &Reader) -> Option<Waiting> {
        let mut lookups = FxHashSet::default();
        collect(query, &mut lookups);
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let (waiting, done) = channel();
        let mut is_any = false;
        for lookup in lookups {
            let columns: Vec<&str> = lookup.1.iter().map(String::as_str).collect();
            let Some(rows) = reader.lacks_index(&lookup.0, &columns) else { continue };
            if asked.len() >= WISHES_MAX || !asked.insert(lookup.clone()) {
                continue;
            }
            let (table, columns) = lookup;
            if rows > ROWS_MAX {
                warn!(table, ?columns, rows, "queries look rows up by columns without an index: create one upstream");
                continue;
            }
            is_any |= self.wanted.send(Wanted { table, columns, _waiting: waiting.clone() }).is_ok();
        }
        is_any.then_some(Waiting(done))
    }
}

/// For indexes to be made, or refused.
#[derive(Debug)]
pub(crate) struct Waiting(Receiver<()>);

impl Waiting {
    pub(crate) fn wait(self) {
        // Nothing is ever sent: either all are dropped, or time is up.
        let _ = self.0.recv_timeout(PATIENCE);
    }
}

/// Every lookup that hydrating or advancing the query may do.
fn collect(query: &Query, lookups: &mut FxHashSet<Lookup>) {
    for related in &query.related {
        below(related, lookups);
    }
    conditions(query, &query.filter, lookups);
}

fn below(related: &Related, lookups: &mut FxHashSet<Lookup>) {
    lookups.insert((related.query.table.clone(), related.child.clone()));
    collect(&related.query, lookups);
}

fn conditions(query: &Query, condition: &Condition, lookups: &mut FxHashSet<Lookup>) {
    match condition {
        Condition::And(parts) | Condition::Or(parts) => parts.iter().for_each(|part| conditions(query, part, lookups)),
        Condition::Exists { related, .. } => {
            // A change below is followed upwards.
            lookups.insert((query.table.clone(), related.parent.clone()));
            below(related, lookups);
        }
        Condition::Compare { .. } => {}
    }
}
