//! The initial copy: everything that is published, as of the position where a new replication slot begins.
//!
//! ```text
//! checks -> set-up of the shard -> slot + exported snapshot -> row in `replicas` (unfinished)
//!        -> plan to the receiver -> blocks from parallel workers -> row finished, older replicas cleaned up
//! ```
//!
//! A crash in the middle leaves an unfinished row and a slot behind. The next attempt drops both; a lock held for as long as
//! the copy runs tells a dead attempt from a live one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fault::Backoff;
use rows::{CopyBlock, TableSpec, Version};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::catalog::{Catalog, Published};
use crate::connect::{connect, quote_identifier, quote_literal};
use crate::copy_decode::{Pages, TableCopy};
use crate::options::Options;
use crate::slot::Created;
use crate::wire::Connection;
use crate::{Error, Result, identity, requirements, set_up, shard, slot, waits};

/// Tables above twice this size are read in ranges, so that all workers can share one large table.
const RANGE_PAGES: u64 = 4096;
const PAGE_BYTES: u64 = 8192;
/// For the lock of an attempt that was killed: about two seconds.
const LOCK_RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
const LOCK_ATTEMPTS: u32 = 10;
const PROGRESS_PERIOD: Duration = Duration::from_secs(5);
/// From a completed copy to the stream after it: the file is finished and the change log taken.
const BEGINNING_SECONDS: u32 = 10;

/// What is being copied; precedes every block.
#[derive(Clone, Debug)]
pub struct CopyPlan {
    pub slot: String,
    pub replica_id: String,
    /// Just before the position of the snapshot: every transaction of the stream has a higher version.
    pub version: Version,
    pub tables: Vec<Arc<TableSpec>>,
}

#[derive(Debug)]
pub enum CopyMessage {
    /// First, once.
    Plan(CopyPlan),
    /// Rows of `tables[table]` of the plan. Blocks of different tables alternate.
    Block { table: usize, block: CopyBlock },
}

/// Copies everything into `sink` and returns when upstream is ready for [`crate::Stream`]. The caller must have made the rows
/// durable before it calls the copy its own; if it fails to, it starts over with another copy, which cleans this one up.
///
/// `sink` is the only queue: a slow receiver slows the workers down.
pub async fn initial_copy(options: &Options, sink: mpsc::Sender<CopyMessage>) -> Result<CopyPlan> {
    let mut client = connect(&options.address, "zero-initial-sync").await?;
    let server = requirements::check(&client).await?;
    let before = newest_finished(&client, options).await?;
    lock(&client, options).await?;
    let newest = newest_finished(&client, options).await?;
    if newest.as_ref().is_some_and(|newest| newest.is_about_to_be_used) || newest != before {
        // The caller is to look once more whether another one is needed.
        return Err(Error::transient("another process has completed an initial copy just now"));
    }
    let pid = waits::backend(&client).await?;
    let ensured = waits::attend(&options.address, pid, "set the shard up", set_up::ensure(&mut client, options)).await;
    if matches!(ensured, Err(Error::Occupied { .. }))
        && let Err(error) = slot::drop_left(&mut client, &options.app).await
    {
        tracing::warn!(%error, "slots of this server stay for now");
    }
    ensured?;
    let home = identity::home(&client).await?;
    forget_foreign(&client, options, &home).await?;
    forget_unfinished(&client, options).await?;
    let created = slot::create(&client, options, server).await?;
    let name = created.name.clone();
    match copy_under(&client, options, &home, created, sink).await {
        Ok(plan) => Ok(plan),
        Err(error) => {
            // Best effort: the next attempt does the same.
            if let Err(clean_up) = forget_unfinished(&client, options).await {
                tracing::warn!(slot = name, error = %clean_up, "the slot of the failed copy stays for now");
            }
            Err(error)
        }
    }
}

async fn lock(client: &Client, options: &Options) -> Result<()> {
    let key = format!("initial-copy:{}", options.app.shard_schema());
    // An attempt that was killed a moment ago holds the lock until Postgres notices.
    let mut retry = LOCK_RETRY;
    for _ in 0..LOCK_ATTEMPTS {
        let row = client
            .query_one("SELECT pg_try_advisory_lock(hashtext($1))", &[&key])
            .await
            .map_err(|e| Error::statement("lock the initial copy", e))?;
        if row.get(0) {
            return Ok(());
        }
        tokio::time::sleep(retry.pause()).await;
    }
    Err(Error::transient(format!(
        "another process is making the initial copy of {}; only one can at a time",
        options.app.shard_schema()
    )))
}

/// A copy that was completed.
#[derive(PartialEq, Eq)]
struct Finished {
    id: String,
    /// Whoever else made it a moment ago has not begun to replicate.
    is_about_to_be_used: bool,
}

/// The newest copy that was completed, of whatever database.
async fn newest_finished(client: &Client, options: &Options) -> Result<Option<Finished>> {
    let doing = |e| Error::statement("look for finished copies", e);
    let table = format!("{}.\"replicas\"", quote_identifier(&options.app.shard_schema()));
    let is_there = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&table]).await.map_err(doing)?;
    if !is_there.get::<_, bool>(0) {
        return Ok(None);
    }
    // Before the set-up, the table may be another server's, of other columns.
    let sql = format!(
        "SELECT row ->> 'id', coalesce(row ->> 'subscriberContext' IS NULL AND context ->> 'taskID' <> $1
                AND (context ->> 'completedAt')::float8 > extract(epoch FROM clock_timestamp()) - {BEGINNING_SECONDS}, false)
         FROM (SELECT to_jsonb(r) AS row, to_jsonb(r) -> 'initialSyncContext' AS context FROM {table} r) r
         WHERE row ->> 'id' IS NOT NULL AND row ->> 'initialSyncContext' IS NOT NULL
         ORDER BY (row ->> 'rank')::numeric DESC NULLS LAST LIMIT 1"
    );
    let row = client.query_opt(&sql, &[&options.task_id]).await.map_err(doing)?;
    Ok(row.map(|row| Finished { id: row.get(0), is_about_to_be_used: row.get(1) }))
}

/// Rows that were written in another database and came here with a dump of it. Their slots are that database's.
async fn forget_foreign(client: &Client, options: &Options, home: &str) -> Result<()> {
    let schema = quote_identifier(&options.app.shard_schema());
    let forgotten = client
        .execute(&format!("DELETE FROM {schema}.\"replicas\" WHERE \"home\" <> $1"), &[&home])
        .await
        .map_err(|e| Error::statement("forget the replicas of another database", e))?;
    if forgotten > 0 {
        tracing::info!("this database is a copy of another one that is replicated: a replica of its own is made");
    }
    Ok(())
}

async fn forget_unfinished(client: &Client, options: &Options) -> Result<()> {
    let schema = quote_identifier(&options.app.shard_schema());
    let forgotten = client
        .execute(&format!("DELETE FROM {schema}.\"replicas\" WHERE \"initialSyncContext\" IS NULL"), &[])
        .await
        .map_err(|e| Error::statement("forget unfinished copies", e))?;
    if forgotten > 0 {
        tracing::info!("an earlier initial copy did not finish; starting afresh");
    }
    slot::drop_unclaimed(client, &options.app).await
}

async fn copy_under(
    client: &Client,
    options: &Options,
    home: &str,
    created: Created,
    sink: mpsc::Sender<CopyMessage>,
) -> Result<CopyPlan> {
    // What was under way during the set-up is done now: a slot waits for it.
    shard::update_schemas(client, &options.app).await?;
    let begun = Instant::now();
    let version = created.version_before();
    let reader = connect(&options.address, "zero-initial-sync").await?;
    let import = |e| Error::statement("use the snapshot of the replication slot", e);
    reader.batch_execute(&import_snapshot(&created.snapshot)).await.map_err(import)?;
    let json = schema_json(&reader, options).await?;
    let catalog = Catalog::parse(&json)?;
    for warning in &catalog.warnings {
        tracing::warn!("{warning}");
    }
    let tables: Vec<Published> = catalog.tables.values().cloned().collect();
    check_policies(&reader, &tables).await?;
    let sizes = sizes(&reader, &tables).await?;
    let replica_id = register(client, options, home, &created, &json).await?;
    let plan = CopyPlan { slot: created.name.clone(), replica_id, version, tables: catalog.specs() };
    tracing::info!(slot = plan.slot, version = %version, tables = tables.len(), "initial copy begins");
    deliver(&sink, CopyMessage::Plan(plan.clone())).await?;

    let work = Arc::new(Work {
        tasks: Mutex::new(tasks(&tables, &sizes)),
        tables,
        row_bytes_max: options.row_bytes_max,
        rows: AtomicU64::new(0),
        rows_expected: sizes.iter().map(|s| s.rows).sum(),
    });
    let task_count = work.tasks.lock().expect("no panic under this lock").len();
    let mut workers = JoinSet::new();
    for _ in 0..options.copy_workers.clamp(1, task_count.max(1)) {
        let mut connection = Connection::open(&options.address, "zero-initial-sync-copy-worker", false).await?;
        connection.run(&import_snapshot(&created.snapshot), "use the snapshot of the replication slot").await?;
        workers.spawn(copy_tables(connection, Arc::clone(&work), sink.clone()));
    }
    // Every worker has the snapshot, so the connection that exported it may go.
    drop(created);
    drop(reader);
    drop(sink);
    watch(workers, &work, begun).await?;
    finish(client, options, &plan).await?;
    Ok(plan)
}

fn import_snapshot(snapshot: &str) -> String {
    format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}", quote_literal(snapshot))
}

async fn schema_json(client: &Client, options: &Options) -> Result<String> {
    let schema = quote_identifier(&options.app.shard_schema());
    let row = client
        .query_one(&format!("SELECT {schema}.schema_specs()"), &[])
        .await
        .map_err(|e| Error::statement("read the published schema", e))?;
    Ok(row.get(0))
}

/// Row-level security that this role is subject to would hide rows from the copy, and show them when they change.
async fn check_policies(client: &Client, tables: &[Published]) -> Result<()> {
    let oids: Vec<i64> = tables.iter().map(|t| i64::from(t.spec.oid)).collect();
    let row = client
        .query_one(
            "SELECT string_agg(o.oid::oid::regclass::text, ', ' ORDER BY o.oid), current_user::text
             FROM unnest($1::int8[]) o(oid) WHERE row_security_active(o.oid::oid)",
            &[&oids],
        )
        .await
        .map_err(|e| Error::statement("look for row-level security", e))?;
    let Some(hidden) = row.get::<_, Option<&str>>(0) else { return Ok(()) };
    let role: &str = row.get(1);
    Err(Error::configuration(format!(
        "row-level security hides rows of {hidden} from the role {role}, and a replica needs all of them: run ALTER ROLE {role} BYPASSRLS, connect as the owner of the tables, or leave them out of the publication"
    )))
}

#[derive(Clone, Copy, Debug)]
struct Size {
    rows: u64,
    pages: u64,
}

/// Estimated rows and exact pages; never a count, which would read the table.
async fn sizes(client: &Client, tables: &[Published]) -> Result<Vec<Size>> {
    let oids: Vec<i64> = tables.iter().map(|t| i64::from(t.spec.oid)).collect();
    let rows = client
        .query(
            "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::int8, coalesce(sum(pg_relation_size(c.oid)), 0)::int8
             FROM unnest($1::int8[]) WITH ORDINALITY t(oid, position)
             LEFT JOIN LATERAL (SELECT t.oid::oid AS leaf UNION SELECT relid FROM pg_partition_tree(t.oid::oid::regclass)) l ON true
             LEFT JOIN pg_class c ON c.oid = l.leaf
             GROUP BY t.position ORDER BY t.position",
            &[&oids],
        )
        .await
        .map_err(|e| Error::statement("estimate the sizes of tables", e))?;
    Ok(rows
        .iter()
        .map(|row| {
            let bytes = u64::try_from(row.get::<_, i64>(1)).unwrap_or(0);
            let rows = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
            // A table that was never analyzed has no estimate: assume rows of 100 bytes.
            Size { rows: if rows == 0 { bytes / 100 } else { rows }, pages: bytes / PAGE_BYTES }
        })
        .collect())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Task {
    table: usize,
    pages: Option<Pages>,
}

/// Large tables first, in ranges; the last range is open because the table may have grown.
fn tasks(tables: &[Published], sizes: &[Size]) -> VecDeque<Task> {
    let mut order: Vec<usize> = (0..tables.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(sizes[i].pages));
    let mut tasks = VecDeque::new();
    for table in order {
        let pages = sizes[table].pages;
        if pages <= 2 * RANGE_PAGES || tables[table].partitions.is_some() {
            tasks.push_back(Task { table, pages: None });
            continue;
        }
        let mut start = 0;
        while start < pages {
            let end = start + RANGE_PAGES;
            let last = end >= pages;
            tasks.push_back(Task { table, pages: Some(Pages { start, end: (!last).then_some(end) }) });
            start = end;
        }
    }
    tasks
}

struct Work {
    tasks: Mutex<VecDeque<Task>>,
    tables: Vec<Published>,
    row_bytes_max: usize,
    rows: AtomicU64,
    rows_expected: u64,
}

async fn copy_tables(mut connection: Connection, work: Arc<Work>, sink: mpsc::Sender<CopyMessage>) -> Result<()> {
    loop {
        let task = work.tasks.lock().expect("no panic under this lock").pop_front();
        let Some(Task { table, pages }) = task else { return Ok(()) };
        let mut copy = TableCopy::start(&mut connection, &work.tables[table], pages, work.row_bytes_max).await?;
        while let Some(block) = copy.next().await? {
            work.rows.fetch_add(block.row_count() as u64, Ordering::Relaxed);
            deliver(&sink, CopyMessage::Block { table, block }).await?;
        }
    }
}

async fn deliver(sink: &mpsc::Sender<CopyMessage>, message: CopyMessage) -> Result<()> {
    sink.send(message).await.map_err(|_| Error::transient("the receiver of the initial copy is gone"))
}

/// Waits for the workers, which have been at work since `begun`, and logs progress. The first failure ends all of them.
async fn watch(mut workers: JoinSet<Result<()>>, work: &Work, begun: Instant) -> Result<()> {
    let mut period = tokio::time::interval_at(Instant::now() + PROGRESS_PERIOD, PROGRESS_PERIOD);
    loop {
        tokio::select! {
            ended = workers.join_next() => match ended {
                Some(Ok(result)) => result?,
                Some(Err(e)) => return Err(Error::ended("a worker of the initial copy", &e)),
                None => break,
            },
            _ = period.tick() => progress(work, begun.elapsed()),
        }
    }
    let rows = work.rows.load(Ordering::Relaxed);
    let elapsed_ms = begun.elapsed().as_millis() as u64;
    tracing::info!(rows, elapsed_ms, "initial copy: all rows are read");
    Ok(())
}

fn progress(work: &Work, elapsed: Duration) {
    let rows = work.rows.load(Ordering::Relaxed);
    let expected = work.rows_expected.max(rows);
    let fraction = if expected == 0 { 1.0 } else { rows as f64 / expected as f64 };
    let eta = if rows == 0 { None } else { Some((elapsed.as_secs_f64() * (1.0 - fraction) / fraction) as u64) };
    tracing::info!(
        rows,
        rows_expected = expected,
        percent = (fraction * 100.0) as u64,
        eta_seconds = eta,
        "initial copy"
    );
}

async fn register(client: &Client, options: &Options, home: &str, created: &Created, json: &str) -> Result<String> {
    let schema = quote_identifier(&options.app.shard_schema());
    let doing = |e| Error::statement("register the new replica", e);
    let version = created.version_before().to_string();
    let row = client
        .query_one(
            &format!(
                "INSERT INTO {schema}.\"replicas\" (\"id\", \"slot\", \"version\", \"initialSchema\", \"home\")
                 VALUES ((extract(epoch FROM clock_timestamp()) * 1000000)::int8::text, $1, $2, $3::text::json, $4) RETURNING \"id\""
            ),
            &[&created.name, &version, &json, &home],
        )
        .await
        .map_err(doing)?;
    let id: String = row.get(0);
    client
        .execute(
            &format!("INSERT INTO {schema}.\"schemaHistory\" (\"replica\", \"version\", \"schema\", \"skipped\", \"whole\") VALUES ($1, $2, $3, '{{}}', true)"),
            &[&id, &version, &json],
        )
        .await
        .map_err(doing)?;
    Ok(id)
}

/// Makes the replica the one to stream for, and forgets those before it.
async fn finish(client: &Client, options: &Options, plan: &CopyPlan) -> Result<()> {
    let schema = quote_identifier(&options.app.shard_schema());
    let context = serde_json::json!({ "appID": options.app.id, "taskID": options.task_id }).to_string();
    client
        .execute(
            &format!(
                "UPDATE {schema}.\"replicas\" SET \"initialSyncContext\" =
                   ($2::text::jsonb || jsonb_build_object('completedAt', extract(epoch FROM clock_timestamp())))::json
                 WHERE \"id\" = $1"
            ),
            &[&plan.replica_id, &context],
        )
        .await
        .map_err(|e| Error::statement("finish the initial copy", e))?;
    forget_older(client, options, &plan.replica_id).await
}

/// Deletes the rows of older replicas and drops their slots, as far as nobody streams from them.
pub(crate) async fn forget_older(client: &Client, options: &Options, replica_id: &str) -> Result<()> {
    let schema = quote_identifier(&options.app.shard_schema());
    client
        .execute(
            &format!(
                "DELETE FROM {schema}.\"replicas\" WHERE \"initialSyncContext\" IS NOT NULL
                 AND \"rank\" < (SELECT \"rank\" FROM {schema}.\"replicas\" WHERE \"id\" = $1)"
            ),
            &[&replica_id],
        )
        .await
        .map_err(|e| Error::statement("forget older replicas", e))?;
    slot::drop_unclaimed(client, &options.app).await
}
