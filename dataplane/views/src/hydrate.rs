//! Hydration apart from advancement: a fixed set of threads, each with a reader of its own, runs queries from scratch at the
//! replica's newest version while the views go on.
//!
//! A replica that cannot be read for a moment (the process is out of descriptors, the disk is slow) is no fault of a query: its job
//! waits and is done again, for [`PATIENCE`] at most.
//!
//! Invariant: an outcome's graph and payload show the replica at exactly `version`; bringing them to the views' version is the
//! views' business.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fault::Backoff;
use ivm::Graph;
use ivm::query::Query;
use replica::Reader;
use rows::Version;
use tracing::warn;

use crate::budget::{Budget, NoRoom, Share};
use crate::convert::KeyChoice;
use crate::encode;
use crate::indexes::Wishes;
use crate::materialisation::MaterialisationId;
use crate::payload::{Payload, PayloadBuilder, PushError};
use crate::row_id::RowId;
use crate::spool::Spool;

/// What a graph takes for a row beside its key, before it is measured.
const ROW_BYTES: usize = 128;

/// For a replica that cannot be read.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// A query to run from scratch.
#[derive(Debug)]
pub struct Job {
    pub id: MaterialisationId,
    pub query: Arc<Query>,
    pub keys: Arc<KeyChoice>,
    /// Takes the encoded rows.
    pub spool: Spool,
    /// Bounds the graph.
    pub graphs: Budget,
}

#[derive(Debug)]
pub struct Outcome {
    pub id: MaterialisationId,
    pub result: Result<Hydrated, Failure>,
}

#[derive(Debug)]
pub struct Hydrated {
    pub graph: Graph,
    pub room: Room,
    pub version: Version,
    pub payload: Payload,
    pub elapsed: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The query itself cannot be served; says why, for the application's developer.
    #[error("{0}")]
    Query(String),
    /// The replica could not be read.
    #[error("{0}")]
    Replica(String),
    /// There is no room for the result on this node at the moment.
    #[error("{reason}")]
    NoRoom {
        reason: String,
        /// What it had of the budget for graphs.
        had: usize,
    },
}

/// What a graph takes of the node's budget.
#[derive(Debug)]
pub struct Room {
    pub share: Share,
    /// Per row, on average.
    pub row_bytes: usize,
}

/// Handle to the threads; they end when it is dropped.
#[derive(Debug)]
pub struct Pool {
    jobs: Sender<Job>,
}

impl Pool {
    /// Starts `threads` threads; `open` gives each its reader.
    pub fn start(
        threads: usize,
        wishes: Wishes,
        open: impl Fn() -> Result<Reader, replica::Error> + Send + Sync + 'static,
        done: impl Fn(Outcome) + Send + Sync + 'static,
    ) -> std::io::Result<Pool> {
        let (jobs, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let open = Arc::new(open);
        let done = Arc::new(done);
        for n in 0..threads.max(1) {
            let (receiver, open, done) = (Arc::clone(&receiver), Arc::clone(&open), Arc::clone(&done));
            let wishes = wishes.clone();
            std::thread::Builder::new()
                .name(format!("hydrate-{n}"))
                .spawn(move || work(&receiver, &wishes, &*open, &*done))?;
        }
        Ok(Pool { jobs })
    }

    pub fn submit(&self, job: Job) {
        // The threads live as long as this handle.
        let _ = self.jobs.send(job);
    }
}

fn work(
    jobs: &Mutex<Receiver<Job>>,
    wishes: &Wishes,
    open: &dyn Fn() -> Result<Reader, replica::Error>,
    done: &dyn Fn(Outcome),
) {
    let mut reader = None;
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let id = job.id;
        let (started, mut retry) = (Instant::now(), RETRY);
        let result = loop {
            // A job that panics concerns its query only; its clients would wait for ever for an answer that never comes.
            let attempt = || match &mut reader {
                Some(reader) => run(&job, wishes, reader),
                None => match open() {
                    Ok(opened) => run(&job, wishes, reader.insert(opened)),
                    Err(error) => Err(Failure::Replica(error.to_string())),
                },
            };
            let result = fault::caught(attempt).unwrap_or_else(|| {
                reader = None;
                Err(Failure::Query("the server failed while it ran the query; its log says how".to_owned()))
            });
            match result {
                Err(Failure::Replica(reason)) if started.elapsed() < PATIENCE => {
                    let pause = retry.pause();
                    warn!(reason, retry_ms = pause.as_millis() as u64, "cannot read the replica for a query");
                    // It may be the reader that is of no use.
                    reader = None;
                    std::thread::sleep(pause);
                }
                result => break result,
            }
        };
        done(Outcome { id, result });
    }
}

fn run(job: &Job, wishes: &Wishes, reader: &mut Reader) -> Result<Hydrated, Failure> {
    let started = Instant::now();
    let mut version = reader.begin().map_err(|e| Failure::Replica(e.to_string()))?;
    if let Some(waiting) = wishes.ask(&job.query, reader) {
        reader.end();
        waiting.wait();
        version = reader.begin().map_err(|e| Failure::Replica(e.to_string()))?;
    }
    let result = hydrate(job, reader);
    reader.end();
    let (graph, room, payload) = result?;
    let payload = finish(payload, version, &room)?;
    Ok(Hydrated { graph, room, version, payload, elapsed: started.elapsed() })
}

/// The encoded rows of a hydration at `version`.
pub fn finish(payload: PayloadBuilder, version: Version, room: &Room) -> Result<Payload, Failure> {
    payload.finish(version).map_err(|error| Failure::NoRoom { reason: error.to_string(), had: room.share.bytes() })
}

/// Says of a key that it does not name one row.
pub fn ambiguous(keyed: &ivm::KeyedTable) -> String {
    let columns: Vec<&str> = keyed.key.iter().map(|&c| &*keyed.table.columns[c].name).collect();
    format!("the key <{}> of \"{}\" is not unique upstream any more", columns.join(", "), keyed.table.name)
}

/// Runs a query from scratch on a reader with an open snapshot, by the schema of that snapshot.
pub fn hydrate(job: &Job, reader: &mut Reader) -> Result<(Graph, Room, PayloadBuilder), Failure> {
    let mut graph = Graph::build(&job.query, &reader.schema(), &|table| job.keys.columns(table))
        .map_err(|e| Failure::Query(e.to_string()))?;
    if let Some(keyed) = graph.tables().find(|keyed| !keyed.is_unique_in(&keyed.table)) {
        return Err(Failure::Query(ambiguous(keyed)));
    }
    let mut payload = PayloadBuilder::new(&job.spool);
    let mut share = job.graphs.share();
    let mut failed = None;
    graph
        .hydrate_while(reader, &mut |put| {
            let id = RowId { table: Arc::clone(&put.table.table.name), key: put.key };
            if !share.grow(ROW_BYTES + id.key.as_bytes().len()) {
                let reason = "no room in memory for another result".to_owned();
                failed = Some(PushError::NoRoom(NoRoom(reason)));
                return ControlFlow::Break(());
            }
            match payload.push(&id, |out| encode::write_put(out, &put.table, &put.row)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })
        .map_err(|e| Failure::Replica(e.to_string()))?;
    match failed {
        None => {
            share.set(graph.memory());
            let row_bytes = share.bytes() / graph.row_count().max(1);
            Ok((graph, Room { share, row_bytes }, payload))
        }
        Some(PushError::Unencodable(error)) => Err(Failure::Query(error.to_string())),
        Some(PushError::NoRoom(error)) => Err(Failure::NoRoom { reason: error.to_string(), had: share.bytes() }),
    }
}
