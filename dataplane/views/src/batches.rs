//! Commits of the replica on their way to the views.
//!
//! Must not know: what the views do with them.
//!
//! Invariant: what was published and not yet taken is no more than the limit and one commit. Whoever publishes waits then, and
//! replication with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;

use rows::{Batch, Row, RowChange};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Mutex, Notify};

use crate::core::Event;
use crate::indexes::Wanted;

/// What a changed row takes beside its cells.
const ROW_BYTES: usize = 64;

/// Where the replica's writer hands over its commits.
#[derive(Clone)]
pub struct Batches {
    events: Sender<Event>,
    waiting: Arc<Waiting>,
    indexes: Arc<Mutex<UnboundedReceiver<Wanted>>>,
}

/// Bytes that were published and not taken.
pub(crate) struct Waiting {
    bytes: AtomicUsize,
    bytes_max: usize,
    less: Notify,
}

impl Waiting {
    pub(crate) fn new(bytes_max: usize) -> Arc<Waiting> {
        Arc::new(Waiting { bytes: AtomicUsize::new(0), bytes_max, less: Notify::new() })
    }

    pub(crate) fn take(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.less.notify_waiters();
    }
}

impl Batches {
    pub(crate) fn new(events: Sender<Event>, waiting: Arc<Waiting>, indexes: UnboundedReceiver<Wanted>) -> Batches {
        Batches { events, waiting, indexes: Arc::new(Mutex::new(indexes)) }
    }

    /// Publishes a commit. Waits while the views are far behind, which in turn slows replication down.
    pub async fn publish(&self, batch: Arc<Batch>) {
        loop {
            let less = self.waiting.less.notified();
            if self.waiting.bytes.load(Ordering::Acquire) < self.waiting.bytes_max {
                break;
            }
            less.await;
        }
        self.waiting.bytes.fetch_add(bytes_of(&batch), Ordering::AcqRel);
        // The thread ends only with the process.
        let _ = self.events.send(Event::Batch(batch));
    }

    /// The next index that the replica's writer should make. Never, once the views have ended.
    pub async fn wanted_index(&self) -> Wanted {
        match self.indexes.lock().await.recv().await {
            Some(wanted) => wanted,
            None => std::future::pending().await,
        }
    }
}

/// What a commit takes in memory.
pub(crate) fn bytes_of(batch: &Batch) -> usize {
    let row = |row: &Option<Row>| row.as_ref().map_or(0, Row::size);
    let change = |change: &RowChange| ROW_BYTES + row(&change.old) + row(&change.new);
    batch.tables.iter().flat_map(|table| &table.rows).map(change).sum()
}
