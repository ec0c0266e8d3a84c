//! The two tasks of the store: one writes flushes in order, one answers questions and tidies up. Each owns one connection and
//! makes a new one when it breaks.
//!
//! Queues are unbounded in count and bounded by their sources: the views keep what waits for a flush under a byte limit and
//! close connections beyond it; a connection asks at most one question per lineage it needs.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::{Histogram, IntCounter};
use rows::Version;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::mpsc;
use tokio_postgres::{Client, Error, Statement};
use tracing::{info, warn};

use super::{Event, Flush, LineageId, Request, Touched, sql};
use crate::row_id::{self, Encoder, Presence, RowId};

/// Opens a connection to the CVR database; the error is for a log line and has no secrets.
pub type Connector = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Client, String>> + Send>> + Send + Sync>;

/// A lineage with so many small deltas is merged: at 20 writes per second that is every three seconds' worth of rows per lineage,
/// while a merge costs one read and one write.
const MERGE_DELTAS_MIN: i64 = 64;
const TIDY_INTERVAL: Duration = Duration::from_secs(30);
const PURGE_EVERY_TIDIES: u64 = 120;
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Handle to the store's tasks.
#[derive(Clone, Debug)]
pub struct Store {
    flushes: mpsc::UnboundedSender<(u64, Flush)>,
    requests: mpsc::UnboundedSender<Request>,
    live: Arc<Mutex<FxHashSet<LineageId>>>,
}

#[derive(Clone, Debug)]
pub struct Metrics {
    pub flush_seconds: Histogram,
    pub flush_failures: IntCounter,
}

impl Store {
    /// Flush numbers ascend; [`Event::Flushed`] names the highest that is durable.
    pub fn flush(&self, number: u64, flush: Flush) {
        // The task ends only with the process.
        let _ = self.flushes.send((number, flush));
    }

    pub fn ask(&self, request: Request) {
        let _ = self.requests.send(request);
    }

    /// Lineages that must not be purged.
    pub fn set_live(&self, live: FxHashSet<LineageId>) {
        *self.live.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = live;
    }
}

/// Starts the tasks on the current runtime.
pub fn spawn(
    connector: Connector,
    schema: String,
    purge_hours: i32,
    metrics: Metrics,
    events: impl Fn(Event) + Send + Sync + 'static,
) -> Store {
    let events = Arc::new(events);
    let (flushes, flush_receiver) = mpsc::unbounded_channel();
    let (requests, request_receiver) = mpsc::unbounded_channel();
    let live = Arc::new(Mutex::new(FxHashSet::default()));
    let writer = Writer {
        connection: Connection::new(Arc::clone(&connector)),
        sql: [sql::flush(&schema), sql::flush_deltas(&schema)],
        metrics,
        events: Arc::clone(&events),
    };
    tokio::spawn(writer.run(flush_receiver));
    let reader =
        Answerer { connection: Connection::new(connector), schema, purge_hours, live: Arc::clone(&live), events };
    tokio::spawn(reader.run(request_receiver));
    Store { flushes, requests, live }
}

/// A connection that is opened on first use and again after it broke.
struct Connection {
    connector: Connector,
    open: Option<(Client, FxHashMap<String, Statement>)>,
    retry: Duration,
}

impl Connection {
    fn new(connector: Connector) -> Connection {
        Connection { connector, open: None, retry: RETRY_MIN }
    }

    /// The client and the prepared form of `text`; waits until the database is there.
    async fn prepared(&mut self, text: &str) -> (&Client, Statement) {
        loop {
            if let Some((client, statements)) = &mut self.open {
                if let Some(statement) = statements.get(text) {
                    let statement = statement.clone();
                    // Borrowed anew because of the early return inside the loop.
                    let client = &self.open.as_ref().expect("checked above").0;
                    return (client, statement);
                }
                match client.prepare(text).await {
                    Ok(statement) => {
                        statements.insert(text.to_owned(), statement);
                        continue;
                    }
                    Err(error) => self.broken("prepare a statement", &error.to_string()).await,
                }
            }
            match (self.connector)().await {
                Ok(client) => self.open = Some((client, FxHashMap::default())),
                Err(error) => self.broken("connect", &error).await,
            }
        }
    }

    async fn broken(&mut self, what: &str, error: &str) {
        warn!(error, retry_ms = self.retry.as_millis() as u64, "CVR database: cannot {what}, will retry");
        self.open = None;
        tokio::time::sleep(self.retry).await;
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }

    fn succeeded(&mut self) {
        self.retry = RETRY_MIN;
    }
}

struct Writer<E> {
    connection: Connection,
    /// The whole flush, and the one for deltas only.
    sql: [String; 2],
    metrics: Metrics,
    events: Arc<E>,
}

impl<E: Fn(Event)> Writer<E> {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<(u64, Flush)>) {
        while let Some((mut up_to, first)) = queue.recv().await {
            // Everything that queued while the last commit was under way goes into the next one.
            let mut flush = Columns::default();
            flush.add(first);
            while let Ok((number, more)) = queue.try_recv() {
                up_to = number;
                flush.add(more);
            }
            let timer = self.metrics.flush_seconds.start_timer();
            while let Err(error) = self.write(&flush).await {
                self.metrics.flush_failures.inc();
                self.connection.broken("flush", &describe(&error)).await;
            }
            timer.observe_duration();
            self.connection.succeeded();
            (self.events)(Event::Flushed { up_to });
        }
    }

    async fn write(&mut self, f: &Columns) -> Result<(), Error> {
        if f.is_empty() {
            return Ok(());
        }
        if f.lineage_ids.is_empty() && f.groups.is_empty() {
            let (client, statement) = self.connection.prepared(&self.sql[1]).await;
            client.execute(&statement, &[&f.delta_lineages, &f.delta_versions, &f.delta_entries]).await?;
            return Ok(());
        }
        let group_ids: Vec<&str> = f.groups.keys().map(String::as_str).collect();
        let group_records: Vec<&str> = f.groups.values().map(String::as_str).collect();
        let (client, statement) = self.connection.prepared(&self.sql[0]).await;
        client
            .execute(
                &statement,
                &[
                    &f.lineage_ids,
                    &f.lineage_keys,
                    &f.lineage_versions,
                    &f.lineage_bases,
                    &f.delta_lineages,
                    &f.delta_versions,
                    &f.delta_entries,
                    &group_ids,
                    &group_records,
                ],
            )
            .await?;
        Ok(())
    }
}

/// Several flushes as the columns of one statement.
#[derive(Default)]
struct Columns {
    lineage_ids: Vec<i64>,
    lineage_keys: Vec<String>,
    lineage_versions: Vec<i64>,
    lineage_bases: Vec<Vec<u8>>,
    delta_lineages: Vec<i64>,
    delta_versions: Vec<i64>,
    delta_entries: Vec<Vec<u8>>,
    /// The last record of a group wins; a statement must not touch a row twice.
    groups: BTreeMap<String, String>,
}

impl Columns {
    fn add(&mut self, flush: Flush) {
        for lineage in flush.lineages {
            self.lineage_ids.push(lineage.id);
            self.lineage_keys.push(lineage.key);
            self.lineage_versions.push(as_i64(lineage.version));
            self.lineage_bases.push(lineage.base);
        }
        for delta in flush.deltas {
            self.delta_lineages.push(delta.lineage);
            self.delta_versions.push(as_i64(delta.version));
            self.delta_entries.push(delta.entries);
        }
        for group in flush.groups {
            self.groups.insert(group.id, group.record);
        }
    }

    fn is_empty(&self) -> bool {
        self.lineage_ids.is_empty() && self.delta_lineages.is_empty() && self.groups.is_empty()
    }
}

struct Answerer<E> {
    connection: Connection,
    schema: String,
    purge_hours: i32,
    live: Arc<Mutex<FxHashSet<LineageId>>>,
    events: Arc<E>,
}

impl<E: Fn(Event)> Answerer<E> {
    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        let mut tidy = tokio::time::interval(TIDY_INTERVAL);
        tidy.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut round = 0_u64;
        loop {
            tokio::select! {
                biased;
                request = requests.recv() => {
                    let Some(request) = request else { return };
                    loop {
                        match self.answer(&request).await {
                            Ok(event) => {
                                (self.events)(event);
                                break;
                            }
                            Err(error) => self.connection.broken("read", &describe(&error)).await,
                        }
                    }
                    self.connection.succeeded();
                }
                _ = tidy.tick() => {
                    round += 1;
                    if let Err(error) = self.tidy(round).await {
                        self.connection.broken("tidy up", &describe(&error)).await;
                    }
                }
            }
        }
    }

    async fn answer(&mut self, request: &Request) -> Result<Event, Error> {
        Ok(match request {
            Request::Group { id } => {
                let (client, statement) = self.connection.prepared(&sql::load_group(&self.schema)).await;
                let row = client.query_opt(&statement, &[id]).await?;
                Event::Group { id: id.clone(), record: row.map(|r| r.get(0)) }
            }
            Request::RowSet { lineage } => {
                let rows = match self.history(*lineage).await? {
                    None => None,
                    Some(history) => history.latest(*lineage),
                };
                Event::RowSet { lineage: *lineage, rows }
            }
            Request::Touched { lineage, since, held } => {
                let rows = match self.history(*lineage).await? {
                    None => None,
                    Some(history) => history.touched(*lineage, since.version, *held),
                };
                Event::Touched(Touched { lineage: *lineage, since: *since, rows })
            }
        })
    }

    async fn history(&mut self, lineage: LineageId) -> Result<Option<History>, Error> {
        let (client, statement) = self.connection.prepared(&sql::load_base(&self.schema)).await;
        let Some(row) = client.query_opt(&statement, &[&lineage]).await? else {
            return Ok(None);
        };
        let base_version = as_version(row.get(0));
        let base: Vec<u8> = row.get(1);
        let (client, statement) = self.connection.prepared(&sql::load_deltas(&self.schema)).await;
        let deltas = client
            .query(&statement, &[&lineage])
            .await?
            .into_iter()
            .map(|row| (as_version(row.get(0)), row.get(1)))
            .collect();
        Ok(Some(History { base_version, base, deltas }))
    }

    async fn tidy(&mut self, round: u64) -> Result<(), Error> {
        let (client, statement) = self.connection.prepared(&sql::fragmented(&self.schema, MERGE_DELTAS_MIN)).await;
        let lineages: Vec<i64> = client.query(&statement, &[]).await?.into_iter().map(|r| r.get(0)).collect();
        for lineage in lineages {
            self.merge(lineage).await?;
        }
        if round.is_multiple_of(PURGE_EVERY_TIDIES) {
            let live: Vec<i64> =
                self.live.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter().copied().collect();
            let hours = self.purge_hours;
            let (client, statement) = self.connection.prepared(&sql::touch_lineages(&self.schema)).await;
            client.execute(&statement, &[&live]).await?;
            let (client, statement) = self.connection.prepared(&sql::purge_groups(&self.schema)).await;
            let groups = client.execute(&statement, &[&hours]).await?;
            let (client, statement) = self.connection.prepared(&sql::purge_lineages(&self.schema)).await;
            client.execute(&statement, &[&hours]).await?;
            if groups > 0 {
                info!(groups, "purged client groups that were away too long");
            }
        }
        Ok(())
    }

    /// Makes one delta of all but the newest: a client inside the merged range is sent a superset of what it needs.
    async fn merge(&mut self, lineage: LineageId) -> Result<(), Error> {
        let Some(history) = self.history(lineage).await? else {
            return Ok(());
        };
        let Some((last, _)) = history.deltas.last().cloned() else {
            return Ok(());
        };
        let mut merged: FxHashMap<RowId, Presence> = FxHashMap::default();
        for (_, entries) in &history.deltas {
            if let Err(error) = row_id::decode(entries, |id, presence| {
                merged.insert(id, presence);
            }) {
                warn!(lineage, %error, "CVR: left a damaged delta alone");
                return Ok(());
            }
        }
        let mut ids: Vec<&RowId> = merged.keys().collect();
        ids.sort_unstable();
        let mut encoder = Encoder::default();
        for id in ids {
            encoder.push(id, merged[id]);
        }
        let entries = encoder.finish();
        let delete = sql::delete_deltas(&self.schema);
        let insert = sql::insert_delta(&self.schema);
        self.connection.prepared(&delete).await;
        self.connection.prepared(&insert).await;
        if let Some((client, _)) = &mut self.connection.open {
            let version = as_i64(last);
            let transaction = client.transaction().await?;
            transaction.execute(&delete, &[&lineage, &version]).await?;
            transaction.execute(&insert, &[&lineage, &version, &entries]).await?;
            transaction.commit().await?;
        }
        Ok(())
    }
}

struct History {
    base_version: Version,
    base: Vec<u8>,
    deltas: Vec<(Version, Vec<u8>)>,
}

impl History {
    fn latest(&self, lineage: LineageId) -> Option<FxHashMap<RowId, Version>> {
        let mut set = FxHashMap::default();
        for bytes in std::iter::once(&self.base).chain(self.deltas.iter().map(|(_, entries)| entries)) {
            if let Err(error) = row_id::fold(bytes, &mut set) {
                warn!(lineage, %error, "CVR: stored history is not usable");
                return None;
            }
        }
        Some(set)
    }

    fn touched(&self, lineage: LineageId, since: Version, held: bool) -> Option<Vec<RowId>> {
        if since < self.base_version {
            return None;
        }
        let mut ids: FxHashSet<RowId> = FxHashSet::default();
        let base = held.then_some(&self.base).into_iter();
        let deltas = self.deltas.iter().filter(|(version, _)| held || *version > since).map(|(_, entries)| entries);
        for bytes in base.chain(deltas) {
            if let Err(error) = row_id::decode(bytes, |id, _| {
                ids.insert(id);
            }) {
                warn!(lineage, %error, "CVR: stored history is not usable");
                return None;
            }
        }
        let mut ids: Vec<RowId> = ids.into_iter().collect();
        ids.sort_unstable();
        Some(ids)
    }
}

/// LSNs stay far below 2^63: that would be eight exabytes of WAL.
fn as_i64(version: Version) -> i64 {
    version.as_u64().cast_signed()
}

fn as_version(stored: i64) -> Version {
    Version::new(stored.cast_unsigned())
}

/// The server's message without the statement's parameters.
fn describe(error: &Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => error.to_string(),
    }
}
