//! Reads contents that the stream does not carry, beside it: a table that joined a publication with rows in it, a rewritten table,
//! a default that differs from row to row. What becomes of them is [`crate::withheld`]'s.
//!
//! A reading locks the table against schema changes first and takes its snapshot then, so the snapshot shows the shape that the
//! lock keeps. It makes no slot: that would wait for every open transaction. Whatever holds a reading up (a lock, a lost
//! connection, a limit of the session) delays its table and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fault::{Backoff, Class};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_postgres::Client;

use crate::catalog::Published;
use crate::connect::quote_identifier;
use crate::copy_decode::TableCopy;
use crate::options::Options;
use crate::transaction::Assembler;
use crate::wire::Connection;
use crate::withheld::{Begun, Contents, Delivered, Snapshot};
use crate::{Error, Result};

/// How long a lock is waited for. Below `deadlock_timeout`, so that in a deadlock it is us who give up, never a user's statement.
const LOCK_TIMEOUT_MS: u32 = 500;
const LOCK_NOT_AVAILABLE: &str = "55P03";
const DEADLOCK: &str = "40P01";
/// Tables that are read at once: a bounded share of upstream.
const READINGS_MAX: usize = 2;
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Between two commits of our own that carry what is complete, if upstream is silent.
const CARRIER_PERIOD: Duration = Duration::from_secs(5);
/// A table that is held up for so long is worth a line in the log, and another each time it has doubled.
const HELD_UP: Duration = Duration::from_secs(5);

/// What a reading came to, unless it failed.
enum Outcome {
    Read(Contents),
    /// Not now, for this reason.
    HeldUp(&'static str),
}

/// A table that is held up.
struct Wait {
    since: Instant,
    next: Instant,
    backoff: Backoff,
    /// When it is told next.
    telling: Duration,
}

/// The readings under way.
pub(crate) struct Readings {
    options: Options,
    client: Arc<Client>,
    sender: mpsc::UnboundedSender<(u32, u64, Result<Outcome>)>,
    /// At most one message per reading, and those are bounded.
    outcomes: mpsc::UnboundedReceiver<(u32, u64, Result<Outcome>)>,
    tasks: JoinSet<()>,
    running: usize,
    waits: BTreeMap<u32, Wait>,
    carried: Option<Instant>,
    carrier: Option<AbortHandle>,
}

impl Readings {
    /// `client` is for short statements.
    pub(crate) fn new(options: Options, client: Arc<Client>) -> Readings {
        let (sender, outcomes) = mpsc::unbounded_channel();
        let (tasks, waits) = (JoinSet::new(), BTreeMap::new());
        Readings { options, client, sender, outcomes, tasks, running: 0, waits, carried: None, carrier: None }
    }

    /// Takes what was read and begins what may begin. Call it often: it does not wait. Fails if the contents cannot be read at all.
    pub(crate) fn drive(&mut self, assembler: &mut Assembler) -> Result<()> {
        while let Ok((oid, generation, outcome)) = self.outcomes.try_recv() {
            self.running -= 1;
            self.ended(assembler, oid, generation, outcome)?;
        }
        while let Some(ended) = self.tasks.try_join_next() {
            ended.map_err(|e| Error::ended("the task that reads a table anew", &e))?;
        }
        if assembler.withheld.is_empty() || !assembler.is_idle() {
            return Ok(());
        }
        let bytes = assembler.withheld.bytes();
        if bytes as u64 > self.options.backfill_bytes_max {
            return Err(Error::reset(format!(
                "contents that are read anew and what changes meanwhile take {} MiB, which is more than is held beside the stream",
                bytes >> 20
            )));
        }
        self.waits.retain(|oid, _| assembler.withheld.contains(*oid));
        for oid in assembler.withheld.unread() {
            let may_begin = self.waits.get(&oid).is_none_or(|wait| wait.next <= Instant::now());
            if may_begin
                && self.running < READINGS_MAX
                && let Some(begun) = assembler.withheld.begin(oid, &assembler.schema.catalog)
            {
                self.begin(oid, begun);
            }
        }
        // One at a time: a commit may have to wait for a standby.
        let may_carry = self.carrier.as_ref().is_none_or(AbortHandle::is_finished)
            && self.carried.is_none_or(|at| at.elapsed() >= CARRIER_PERIOD);
        if assembler.withheld.is_ready() && may_carry {
            self.carry();
        }
        Ok(())
    }

    fn begin(&mut self, oid: u32, begun: Begun) {
        self.running += 1;
        let (options, sender) = (self.options.clone(), self.sender.clone());
        self.tasks.spawn(async move {
            let outcome = attempt(&options, &begun.table, &begun.delivered).await;
            // The receiver is gone when the stream is.
            let _ = sender.send((oid, begun.generation, outcome));
        });
    }

    fn ended(&mut self, assembler: &mut Assembler, oid: u32, generation: u64, outcome: Result<Outcome>) -> Result<()> {
        let table = assembler.catalog().tables.get(&oid).map(|t| t.spec.wire_name()).unwrap_or_default();
        match outcome {
            Ok(Outcome::Read(contents)) => {
                if assembler.withheld.read(oid, generation, contents) {
                    self.waits.remove(&oid);
                    self.carried = None;
                }
                return Ok(());
            }
            Ok(Outcome::HeldUp(reason)) => self.wait(oid, |held_up| {
                tracing::warn!(
                    table,
                    reason,
                    held_up_seconds = held_up.as_secs(),
                    "a table cannot be read anew yet; clients see it as it was, and all others go on"
                );
            }),
            Err(error) => match error.entry().class {
                Class::NewCopy => return Err(error),
                Class::Person if matches!(error, Error::Panicked { .. }) => return Err(error),
                Class::Passes | Class::OneThing => {
                    tracing::debug!(table, %error, "a table could not be read anew");
                    self.wait(oid, |_| tracing::warn!(table, %error, "a table could not be read anew, will retry"));
                }
                Class::Person => self.wait(oid, |_| {
                    let remedy = error.entry().remedy;
                    tracing::error!(table, %error, remedy, "a table cannot be read anew; clients see it as it was");
                }),
            },
        }
        assembler.withheld.give_up(oid, generation);
        Ok(())
    }

    fn wait(&mut self, oid: u32, tell: impl FnOnce(Duration)) {
        let now = Instant::now();
        let backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        let wait = self.waits.entry(oid).or_insert(Wait { since: now, next: now, backoff, telling: HELD_UP });
        wait.next = now + wait.backoff.pause();
        let held_up = now - wait.since;
        if held_up >= wait.telling {
            wait.telling = held_up * 2;
            tell(held_up);
        }
    }

    /// Makes a commit upstream that concerns nobody, for what is complete to come with.
    fn carry(&mut self) {
        self.carried = Some(Instant::now());
        let (client, prefix) = (Arc::clone(&self.client), self.options.app.carrier_prefix());
        let carrier = self.tasks.spawn(async move {
            let sql = "SELECT pg_logical_emit_message(true, $1, '')";
            if let Err(error) = client.execute(sql, &[&prefix]).await {
                tracing::debug!(%error, "the next commit of others shows what was read anew");
            }
        });
        self.carrier = Some(carrier);
    }
}

async fn attempt(options: &Options, table: &Published, delivered: &Delivered) -> Result<Outcome> {
    let mut connection = Connection::open(&options.address, "zero-backfill-stream", false).await?;
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = 0; \
         SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"
    );
    connection.run(&begin, "begin to read a table anew").await?;
    let lock = format!(
        "LOCK TABLE {}.{} IN ACCESS SHARE MODE",
        quote_identifier(&table.spec.schema),
        quote_identifier(&table.spec.name)
    );
    match connection.query(&lock).await? {
        Ok(_) => {}
        Err(error) if error.code == LOCK_NOT_AVAILABLE || error.code == DEADLOCK => {
            return Ok(Outcome::HeldUp("another session holds a lock on it, see pg_locks"));
        }
        Err(error) if error.code.starts_with("42P") || error.code.starts_with("3F") => {
            return Ok(Outcome::HeldUp("it is gone or has another name by now; the stream will tell"));
        }
        Err(error) => return Err(Error::response("lock a table to read it anew", &error)),
    }
    // The first statement that reads takes the snapshot; the position is read after it.
    let sql = "SELECT pg_current_snapshot()::text, (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::text";
    let rows = connection.run(sql, "take a snapshot").await?;
    let field = |i: usize| rows.first().and_then(|r| r.get(i)).and_then(Option::as_deref).unwrap_or_default();
    let snapshot: Snapshot = field(0).parse()?;
    let fence = field(1).parse().map_err(|_| Error::Garbled { message: "a position in an unknown form".to_owned() })?;
    if !delivered.is_seen_by(&snapshot) {
        return Ok(Outcome::HeldUp(
            "a transaction that was open when the stream began, or one that is being committed, is not over",
        ));
    }
    if !has_wanted_shape(&mut connection, table).await? {
        return Ok(Outcome::HeldUp("it has another shape by now; the stream will tell"));
    }
    check_size(&mut connection, options, table).await?;
    tracing::info!(table = table.spec.wire_name(), "reading the table's contents anew");
    let mut copy = TableCopy::start(&mut connection, table, None, options.row_bytes_max).await?;
    let (mut blocks, mut bytes) = (Vec::new(), 0);
    while let Some(block) = copy.next().await? {
        bytes += block.byte_count() + block.row_count() * block.column_count() * std::mem::size_of::<rows::Cell>();
        if bytes as u64 > options.backfill_bytes_max {
            return Err(too_large(table, bytes as u64));
        }
        blocks.push(block);
    }
    Ok(Outcome::Read(Contents { snapshot, fence, blocks, bytes }))
}

/// Compares the shape that the lock keeps with the wanted one.
async fn has_wanted_shape(connection: &mut Connection, table: &Published) -> Result<bool> {
    let numbers: Vec<String> = table.spec.columns.iter().map(|c| c.attnum.to_string()).collect();
    let shape = format!(
        "SELECT n.nspname, c.relname, c.relnatts, a.attnum, a.attname, a.atttypid
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
         WHERE c.oid = {} AND NOT a.attisdropped AND a.attnum IN ({}) ORDER BY a.attnum",
        table.spec.oid,
        numbers.join(", ")
    );
    let wanted: Vec<Vec<Option<String>>> = table
        .spec
        .columns
        .iter()
        .map(|c| {
            [
                table.spec.schema.clone(),
                table.spec.name.clone(),
                table.attributes.to_string(),
                c.attnum.to_string(),
                c.name.clone(),
                c.type_oid.to_string(),
            ]
            .map(Some)
            .to_vec()
        })
        .collect();
    Ok(connection.run(&shape, "read the shape of a table").await? == wanted)
}

async fn check_size(connection: &mut Connection, options: &Options, table: &Published) -> Result<()> {
    let sql = format!(
        "SELECT coalesce(sum(pg_table_size(l.leaf)), 0)::int8
         FROM (SELECT {0}::oid AS leaf UNION SELECT relid FROM pg_partition_tree({0}::oid::regclass)) l",
        table.spec.oid
    );
    let rows = connection.run(&sql, "read the size of a table").await?;
    let bytes: u64 =
        rows.first().and_then(|r| r.first()).and_then(Option::as_deref).and_then(|t| t.parse().ok()).unwrap_or(0);
    if bytes <= options.backfill_bytes_max { Ok(()) } else { Err(too_large(table, bytes)) }
}

fn too_large(table: &Published, bytes: u64) -> Error {
    Error::reset(format!(
        "the schema change of table {} needs its contents anew, and its {} MiB are more than is read beside the stream",
        table.spec.wire_name(),
        bytes >> 20
    ))
}
