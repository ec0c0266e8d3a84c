//! The logical replication stream: whole transactions in commit order.
//!
//! A task of its own reads and decodes, so that keepalives go out while the caller is busy. Between it and the caller is one
//! queue, bounded by the bytes of the transactions in it; when it is full, the socket is not read and Postgres waits.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rows::{Transaction, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_postgres::Client;

use crate::connect::{connect, quote_identifier, quote_literal};
use crate::options::{App, Options, lsn_text};
use crate::pgoutput::POSTGRES_EPOCH_US;
use crate::reader::Reader;
use crate::schema::{Entry, Schema};
use crate::telling::Telling;
use crate::transaction::{Assembler, Finished, Skipped};
use crate::wire::{Connection, parse_error};
use crate::{Error, Result, backfill, copy, requirements, set_up, shard, slot};

/// Where to continue.
#[derive(Clone, Copy, Debug)]
pub struct Resume {
    /// The version of the initial copy ([`crate::CopyPlan::version`]) that the replica descends from.
    pub replica: Version,
    /// The last transaction that is durable here; the copy's version if there is none.
    pub after: Version,
    /// The highest position that is known to have been passed to [`Acks::ack`]; `after` unless the caller remembers a higher
    /// one. Positions of keepalives are remembered upstream.
    pub confirmed: Version,
}

#[derive(Debug)]
pub enum Event {
    Transaction(Transaction),
    /// Everything published up to `lsn` has been delivered. Acknowledge `lsn` as soon as every transaction before it is durable,
    /// so that Postgres can recycle WAL that holds nothing for us, and can shut down without waiting.
    Keepalive {
        lsn: Version,
    },
}

/// Tells upstream what is durable. Cheap to clone, usable from any task; cumulative.
#[derive(Clone, Debug)]
pub struct Acks(watch::Sender<u64>);

impl Acks {
    /// Everything up to `version` is durable here and will never be asked for again.
    pub fn ack(&self, version: Version) {
        self.0.send_if_modified(|acked| {
            let forward = version.as_u64() > *acked;
            if forward {
                *acked = version.as_u64();
            }
            forward
        });
    }
}

/// The receiving end. Dropping it ends the connection.
#[derive(Debug)]
pub struct Stream {
    events: mpsc::Receiver<(Result<Event>, Option<OwnedSemaphorePermit>)>,
    acks: Acks,
    reached: watch::Receiver<Option<Version>>,
    task: JoinHandle<()>,
    partitions: JoinHandle<()>,
    /// Budget of the event that the caller is working on.
    held: Option<OwnedSemaphorePermit>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
        self.partitions.abort();
    }
}

/// Transactions that may wait, in number; their bytes are bounded separately.
const QUEUE_EVENTS: usize = 1024;
const TICK: Duration = Duration::from_millis(100);
/// Keepalives reach the caller after this time if there is news of [`KEEPALIVE_BYTES`], or after the longer time, or when
/// Postgres asks for an answer. Each costs a write upstream, which itself makes a little WAL: hence not at every occasion.
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(5);
const KEEPALIVE_PERIOD_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_BYTES: u64 = 1 << 20;
/// Between two looks for truncated partitions.
const PARTITIONS_PERIOD: Duration = Duration::from_secs(2);
const OBJECT_IN_USE: &str = "55006";
const NOT_IN_PREREQUISITE_STATE: &str = "55000";
const UNDEFINED_OBJECT: &str = "42704";

impl Stream {
    /// Connects and starts. Fails with [`Error::ResetRequired`] if the replica cannot be continued.
    pub async fn start(options: &Options, resume: Resume) -> Result<Stream> {
        let mut client = connect(&options.address, "zero-change-source").await?;
        requirements::check(&client).await?;
        let wanted = options.all_publications();
        match shard::configured_publications(&client, &options.app).await? {
            Some(configured) if configured == wanted => {}
            Some(configured) => {
                return Err(Error::reset(format!(
                    "the publications changed from {} to {}",
                    configured.join(", "),
                    wanted.join(", ")
                )));
            }
            None => return Err(Error::reset("the shard's tables are gone from the upstream database")),
        }
        let set_up = set_up::ensure(&mut client, options).await?;
        let replica = shard::newest_replica(&client, &options.app)
            .await?
            .filter(|r| r.version == resume.replica)
            .ok_or_else(|| Error::reset("the upstream database knows no finished initial copy of this version"))?;
        let state = slot::release(&client, &replica.slot, options.take_over).await?;
        let idle_to = replica.idle.filter(|(from, _)| *from <= resume.after).map(|(_, to)| to);
        let known = resume.confirmed.max(resume.after).max(idle_to.unwrap_or_default());
        // Whoever has everything up to a position needs what commits at the next one at the earliest.
        if state.confirmed.as_u64() > known.as_u64() + 1 {
            return Err(Error::slot_lost(format!(
                "replication slot {} was advanced to {} although only changes up to {} are stored here; the changes between are lost",
                replica.slot,
                lsn_text(state.confirmed),
                lsn_text(known)
            )));
        }
        let (schema, skipped) = schema_at(&client, options, &replica.id, resume.after).await?;
        let goal = position(&client).await?;
        let connection = start_replication(&client, options, &replica.slot, resume.after).await?;
        register_subscriber(&client, options, &replica.id, resume.after).await?;
        copy::forget_older(&client, options, &replica.id).await?;
        tracing::info!(slot = replica.slot, after = %resume.after, "replication stream begins");
        let telling = Telling {
            watching: set_up.watching,
            shard_schema: options.app.shard_schema(),
            messages_until: set_up.messages_until,
            message_prefix: options.app.ddl_prefix(),
        };
        Ok(Stream::spawn(
            options,
            client,
            connection,
            replica.id,
            resume,
            (known, goal),
            Assembler::new(telling, options.transaction_bytes_warn, options.row_bytes_max, schema, skipped),
        ))
    }

    fn spawn(
        options: &Options,
        client: Client,
        (connection, timeout): (Connection, Option<Duration>),
        replica_id: String,
        resume: Resume,
        (known, goal): (Version, u64),
        assembler: Assembler,
    ) -> Stream {
        let (acked, acks) = watch::channel(known.as_u64());
        let (sender, events) = mpsc::channel(QUEUE_EVENTS);
        let (arrived, reached) = watch::channel(None);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        let journal = Arc::new(Journal { client, app: options.app.clone(), replica: replica_id });
        let pump = Pump {
            options: options.clone(),
            journal: Arc::clone(&journal),
            assembler,
            after: resume.after,
            delivered: resume.after,
            link: Link {
                connection,
                acks,
                tick,
                timeout,
                last_sent: now,
                last_received: now,
                journal,
                idle: VecDeque::new(),
            },
            events: sender,
            budget: Arc::new(Semaphore::new(options.queue_bytes_max.clamp(1, Semaphore::MAX_PERMITS))),
            last_keepalive: Instant::now(),
            reported: known.as_u64(),
            goal,
            arrived,
        };
        let partitions = tokio::spawn(watch_partitions(Arc::clone(&pump.journal)));
        let task = tokio::spawn(pump.run());
        Stream { events, acks: Acks(acked), reached, task, partitions, held: None }
    }

    #[must_use]
    pub fn acks(&self) -> Acks {
        self.acks.clone()
    }

    /// What must be applied to be where upstream was when the stream began; known once everything up to there was handed out.
    #[must_use]
    pub fn reached(&self) -> watch::Receiver<Option<Version>> {
        self.reached.clone()
    }

    /// The next event. After an error the stream is over. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Event> {
        self.held = None;
        let item = self.events.recv().await;
        self.take(item)
    }

    /// The next event if it is there already, so that a caller can store several transactions at once.
    pub fn try_next(&mut self) -> Option<Result<Event>> {
        match self.events.try_recv() {
            Ok(item) => Some(self.take(Some(item))),
            Err(_) => None,
        }
    }

    fn take(&mut self, item: Option<(Result<Event>, Option<OwnedSemaphorePermit>)>) -> Result<Event> {
        let Some((event, permit)) = item else { return Err(Error::transient("the replication stream has ended")) };
        match (&mut self.held, permit) {
            (Some(held), Some(permit)) => held.merge(permit),
            (held, permit) => *held = held.take().or(permit),
        }
        event
    }
}

/// Where upstream's log ends.
async fn position(client: &Client) -> Result<u64> {
    let row = client
        .query_one("SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::int8", &[])
        .await
        .map_err(|e| Error::statement("read the position of the log", e))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// The schema as of `version`, and the changes to be skipped from there on.
async fn schema_at(client: &Client, options: &Options, replica: &str, version: Version) -> Result<(Schema, Skipped)> {
    let schema = quote_identifier(&options.app.shard_schema());
    let rows = client
        .query(
            &format!(
                "SELECT \"schema\", \"skipped\"::text FROM {schema}.\"schemaHistory\" WHERE \"replica\" = $1 AND \"version\" <= $2
                 AND \"version\" >= (SELECT max(\"version\") FROM {schema}.\"schemaHistory\"
                                    WHERE \"replica\" = $1 AND \"version\" <= $2 AND \"whole\")
                 ORDER BY \"version\""
            ),
            &[&replica, &version.to_string()],
        )
        .await
        .map_err(|e| Error::statement("read the schema of the replica", e))?;
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return Err(Error::reset("the schema as of the replica's version is not known any more"));
    };
    let mut schema = Schema::parse(first.get(0))?;
    for row in &rows[1..] {
        schema = schema.continued(row.get(0))?;
    }
    let skipped = serde_json::from_str(last.get(1)).map_err(|e| {
        Error::reset(format!("the positions of contents that were read separately cannot be read: {e}"))
    })?;
    Ok((schema, skipped))
}

/// Remembers the schema after a transaction; before the transaction is handed out, so that whoever has the transaction can
/// rely on it.
async fn remember_schema(journal: &Journal, version: Version, entry: &Entry, skipped: &Skipped) -> Result<()> {
    let schema = quote_identifier(&journal.app.shard_schema());
    let skipped = serde_json::to_string(skipped).map_err(|e| Error::transient_from("cannot write positions", e))?;
    journal
        .client
        .execute(
            &format!(
                "INSERT INTO {schema}.\"schemaHistory\" (\"replica\", \"version\", \"schema\", \"skipped\", \"whole\")
                 VALUES ($1, $2, $3, $4::text::json, $5)
                 ON CONFLICT (\"replica\", \"version\") DO UPDATE
                 SET \"schema\" = EXCLUDED.\"schema\", \"skipped\" = EXCLUDED.\"skipped\", \"whole\" = EXCLUDED.\"whole\""
            ),
            &[&journal.replica, &version.to_string(), &entry.json, &skipped, &entry.is_whole],
        )
        .await
        .map_err(|e| Error::statement("remember the schema", e))?;
    Ok(())
}

/// Truncated partitions are not in the stream, and are looked for. What is wrong with the connection, the pump sees as well.
async fn watch_partitions(journal: Arc<Journal>) {
    let mut period = tokio::time::interval(PARTITIONS_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        if let Err(error) = shard::check_partitions(&journal.client, &journal.app).await {
            tracing::warn!(%error, "partitions that are truncated meanwhile keep their rows here until the next start");
            return;
        }
    }
}

/// Says who streams, and forgets schemas that no restart can ask for: those before what the one in force at `after` is made of.
async fn register_subscriber(client: &Client, options: &Options, replica: &str, after: Version) -> Result<()> {
    let schema = quote_identifier(&options.app.shard_schema());
    let doing = |e| Error::statement("register as subscriber", e);
    let context = serde_json::json!({ "appID": options.app.id, "taskID": options.task_id }).to_string();
    client
        .execute(
            &format!("UPDATE {schema}.\"replicas\" SET \"subscriberContext\" = $2::text::json WHERE \"id\" = $1"),
            &[&replica, &context],
        )
        .await
        .map_err(doing)?;
    client
        .execute(
            &format!(
                "DELETE FROM {schema}.\"schemaHistory\" WHERE \"replica\" = $1 AND \"version\" <
                 (SELECT max(\"version\") FROM {schema}.\"schemaHistory\" WHERE \"replica\" = $1 AND \"version\" <= $2 AND \"whole\")"
            ),
            &[&replica, &after.to_string()],
        )
        .await
        .map_err(doing)?;
    Ok(())
}

async fn start_replication(
    client: &Client,
    options: &Options,
    slot: &str,
    after: Version,
) -> Result<(Connection, Option<Duration>)> {
    let mut connection = Connection::open(&options.address, "zero-replicator", true).await?;
    let rows = connection
        .run("SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'", "read wal_sender_timeout")
        .await?;
    let timeout_ms: u64 =
        rows.first().and_then(|r| r.first()).and_then(Option::as_deref).and_then(|t| t.parse().ok()).unwrap_or(0);
    let publications: Vec<String> = options.all_publications().iter().map(|p| quote_identifier(p)).collect();
    // Postgres repeats transactions that commit at or after the position asked for.
    let from = Version::new(after.as_u64() + 1);
    let sql = format!(
        "START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names {}, messages 'true')",
        quote_identifier(slot),
        lsn_text(from),
        quote_literal(&publications.join(",")).trim_start(),
    );
    for attempt in 0.. {
        connection.send_query(&sql).await?;
        let error = loop {
            let frame = connection.frame().await?;
            match frame.tag {
                b'W' => {
                    let timeout = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms));
                    return Ok((connection, timeout));
                }
                b'E' => break parse_error(frame.body),
                _ => {}
            }
        };
        // The error ends with ReadyForQuery.
        while connection.frame().await?.tag != b'Z' {}
        match error.code.as_str() {
            // The process that was just ended may hold it for another moment.
            OBJECT_IN_USE if attempt < 20 => tokio::time::sleep(Duration::from_millis(50)).await,
            OBJECT_IN_USE => {
                slot::release(client, slot, false).await?;
                return Err(Error::response("start replication", &error));
            }
            NOT_IN_PREREQUISITE_STATE | UNDEFINED_OBJECT => {
                return Err(Error::slot_lost(format!("replication slot {slot} cannot be used: {}", error.message)));
            }
            _ => return Err(Error::response("start replication", &error)),
        }
    }
    Err(Error::transient("replication could not be started"))
}

/// The connection with what keeps it alive.
struct Link {
    connection: Connection,
    acks: watch::Receiver<u64>,
    tick: Interval,
    /// `wal_sender_timeout`, unless it is off.
    timeout: Option<Duration>,
    last_sent: Instant,
    last_received: Instant,
    journal: Arc<Journal>,
    /// Keepalives that wait for their acknowledgement: position, and the last transaction before it.
    idle: VecDeque<(u64, Version)>,
}

/// Where positions and schemas are remembered.
struct Journal {
    client: Client,
    app: App,
    replica: String,
}

impl Link {
    /// Sends a status if there is news, or if silence would make Postgres give us up.
    async fn status_if_due(&mut self) -> Result<()> {
        let news = self.acks.has_changed().unwrap_or(false);
        // A quarter leaves three more attempts before the timeout.
        let due = self.timeout.is_some_and(|t| self.last_sent.elapsed() >= t / 4);
        if news || due { self.status().await } else { Ok(()) }
    }

    async fn status(&mut self) -> Result<()> {
        let position = *self.acks.borrow_and_update();
        self.remember_idle(position).await?;
        let now_us = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX));
        let mut body = Vec::with_capacity(34);
        body.push(b'r');
        for _ in 0..3 {
            body.extend_from_slice(&position.to_be_bytes());
        }
        body.extend_from_slice(&(now_us - POSTGRES_EPOCH_US).to_be_bytes());
        body.push(0);
        self.connection.queue_copy_data(&body);
        self.last_sent = Instant::now();
        self.connection.flush().await
    }

    /// Before the slot moves past the last transaction, it is remembered that nothing lies between: otherwise a restart could
    /// not tell this from a slot that went ahead of the replica.
    async fn remember_idle(&mut self, acked: u64) -> Result<()> {
        let mut last = None;
        while let Some(&(lsn, after)) = self.idle.front()
            && lsn <= acked
        {
            last = Some((lsn, after));
            self.idle.pop_front();
        }
        if let Some((lsn, after)) = last {
            shard::remember_idle(
                &self.journal.client,
                &self.journal.app,
                &self.journal.replica,
                after,
                Version::new(lsn),
            )
            .await?;
        }
        Ok(())
    }

    /// Reads more bytes, sending statuses meanwhile.
    async fn fill(&mut self) -> Result<()> {
        loop {
            let read = tokio::select! {
                biased;
                result = self.connection.fill() => Some(result),
                _ = self.tick.tick() => None,
            };
            if let Some(result) = read {
                self.last_received = Instant::now();
                result?;
                // A long transaction may always have bytes ready, and statuses must not wait for its end.
                return self.status_if_due().await;
            }
            self.status_if_due().await?;
            if let Some(timeout) = self.timeout
                && self.last_received.elapsed() > timeout * 2
            {
                return Err(Error::transient(format!("Postgres sent nothing for {:?}", timeout * 2)));
            }
        }
    }

    /// Waits for `future`, sending statuses meanwhile. That time does not count as Postgres' silence.
    async fn attend<T>(&mut self, future: impl Future<Output = T>) -> Result<T> {
        let mut future = std::pin::pin!(future);
        loop {
            tokio::select! {
                biased;
                value = &mut future => {
                    self.last_received = Instant::now();
                    return Ok(value);
                }
                _ = self.tick.tick() => self.status_if_due().await?,
            }
        }
    }
}

/// The task behind a [`Stream`]. It ends with the first error, which is the last event, or when the stream is dropped.
struct Pump {
    options: Options,
    journal: Arc<Journal>,
    assembler: Assembler,
    /// The last transaction that was seen, and the last that was handed out.
    after: Version,
    delivered: Version,
    link: Link,
    events: mpsc::Sender<(Result<Event>, Option<OwnedSemaphorePermit>)>,
    budget: Arc<Semaphore>,
    last_keepalive: Instant,
    /// Highest position that went out as an event.
    reported: u64,
    /// Where upstream was at the beginning, and who waits for that.
    goal: u64,
    arrived: watch::Sender<Option<Version>>,
}

enum Received {
    Transaction(Box<Finished>),
    Keepalive { lsn: u64, reply: bool },
    Nothing,
}

impl Pump {
    async fn run(mut self) {
        if let Err(error) = self.pump().await {
            // If the queue is closed, nobody is interested any more.
            let _ = self.events.send((Err(error), None)).await;
        }
    }

    async fn pump(&mut self) -> Result<()> {
        loop {
            let Some(frame) = self.link.connection.try_frame()? else {
                self.link.fill().await?;
                continue;
            };
            let received = match frame.tag {
                b'd' => receive(&mut self.assembler, frame.body)?,
                b'E' => return Err(Error::response("continue replication", &parse_error(frame.body))),
                b'c' => return Err(Error::transient("Postgres ended the replication stream")),
                _ => Received::Nothing,
            };
            match received {
                Received::Nothing => {}
                Received::Transaction(finished) => {
                    self.transaction(*finished).await?;
                }
                Received::Keepalive { lsn, reply } => self.keepalive(lsn, reply).await?,
            }
        }
    }

    async fn transaction(&mut self, mut finished: Finished) -> Result<()> {
        let version = finished.transaction.version;
        if version <= self.after {
            return Ok(());
        }
        self.after = version;
        let wanted = backfill::wanted(self.assembler.catalog(), &finished.reread);
        if !wanted.is_empty() {
            let skipped = self.link.attend(backfill::complete(&self.options, wanted, &mut finished)).await??;
            self.assembler.skipped.extend(skipped);
        }
        if !finished.described.is_empty() || !finished.reread.is_empty() {
            let Assembler { schema, skipped, .. } = &mut self.assembler;
            let entry = schema.entry(&finished.described)?;
            let remember = remember_schema(&self.journal, version, &entry, skipped);
            self.link.attend(remember).await??;
        }
        if finished.transaction.changes.is_empty() {
            // Only messages, or only tables that are not replicated: the position moves like a keepalive's.
            return self.keepalive(version.as_u64(), false).await;
        }
        self.delivered = version;
        self.reported = self.reported.max(version.as_u64());
        let bytes = finished.bytes;
        self.deliver(Event::Transaction(finished.transaction), bytes).await?;
        self.note(version.as_u64());
        Ok(())
    }

    /// Everything before this position was handed out.
    fn note(&self, position: u64) {
        if position >= self.goal {
            let delivered = self.delivered;
            self.arrived.send_if_modified(|at| at.is_none() && at.replace(delivered).is_none());
        }
    }

    async fn keepalive(&mut self, lsn: u64, reply: bool) -> Result<()> {
        if self.assembler.is_idle() {
            self.note(lsn);
        }
        let since = self.last_keepalive.elapsed();
        let news = lsn.saturating_sub(self.reported);
        let due = reply || since >= KEEPALIVE_PERIOD_IDLE || (since >= KEEPALIVE_PERIOD && news >= KEEPALIVE_BYTES);
        if due && news > 0 && self.assembler.is_idle() {
            // When the queue is full there is enough to acknowledge already.
            if self.events.try_send((Ok(Event::Keepalive { lsn: Version::new(lsn) }), None)).is_ok() {
                self.link.idle.push_back((lsn, self.delivered));
                self.reported = lsn;
                self.last_keepalive = Instant::now();
            }
        }
        if reply { self.link.status().await } else { Ok(()) }
    }

    async fn deliver(&mut self, event: Event, bytes: usize) -> Result<()> {
        // A transaction above the whole budget waits until it is alone.
        let permits = u32::try_from(bytes.min(self.options.queue_bytes_max)).unwrap_or(u32::MAX);
        let budget = Arc::clone(&self.budget);
        let events = self.events.clone();
        let delivery = async move {
            let permit = budget.acquire_many_owned(permits).await.map_err(|_| ())?;
            events.send((Ok(event), Some(permit))).await.map_err(|_| ())
        };
        self.link
            .attend(delivery)
            .await?
            .map_err(|()| Error::transient("the receiver of the replication stream is gone"))
    }
}

/// Reads one CopyData message.
fn receive(assembler: &mut Assembler, body: &[u8]) -> Result<Received> {
    let mut r = Reader::new(body);
    match r.u8()? {
        b'w' => {
            r.bytes(24)?;
            let finished = assembler.message(r.rest())?;
            Ok(finished.map_or(Received::Nothing, |f| Received::Transaction(Box::new(f))))
        }
        b'k' => {
            let lsn = r.u64()?;
            r.i64()?;
            Ok(Received::Keepalive { lsn, reply: r.u8()? == 1 })
        }
        _ => Ok(Received::Nothing),
    }
}
