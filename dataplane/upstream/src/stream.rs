//! The logical replication stream: whole transactions in commit order.
//!
//! A task of its own reads and decodes, so that keepalives go out while the caller is busy. Between it and the caller is one
//! queue, bounded by the bytes of the transactions in it; when it is full, the socket is not read and Postgres waits.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use fault::Backoff;
use rows::{Transaction, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_postgres::Client;

use crate::backfill::Readings;
use crate::connect::{connect, quote_identifier, quote_literal};
use crate::continuity::{Continuity, Look, set_back};
use crate::options::{App, Options, lsn_text};
use crate::pgoutput::POSTGRES_EPOCH_US;
use crate::reader::Reader;
use crate::schema::{Entry, Schema};
use crate::telling::Telling;
use crate::transaction::{Assembler, Finished};
use crate::wire::{Connection, parse_error};
use crate::{Error, Result, copy, identity, requirements, set_up, shard, slot, waits};

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
    /// When the transaction `after` was committed, if that is known: two histories may have different transactions at one position.
    pub time_us: Option<i64>,
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
/// Where commits wait for whoever has flushed them, which may be nobody but us.
const KEEPALIVE_PERIOD_WAITED_FOR: Duration = Duration::from_secs(1);
/// Where Postgres states no limit of its own.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Between two looks for truncated partitions.
const PARTITIONS_PERIOD: Duration = Duration::from_secs(2);
const PARTITIONS_RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
const OBJECT_IN_USE: &str = "55006";
/// The process that was just ended may hold the slot for another moment: about a second.
const START_RETRY: Backoff = Backoff::new(Duration::from_millis(40), Duration::from_millis(80));
const START_ATTEMPTS: u32 = 20;
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
        let pid = waits::backend(&client).await?;
        let ensuring = set_up::ensure(&mut client, options);
        let set_up = waits::attend(&options.address, pid, "set the shard up", ensuring).await?;
        let home = identity::home(&client).await?;
        let replica = shard::newest_replica(&client, &options.app, &home)
            .await?
            .filter(|r| r.version == resume.replica)
            .ok_or_else(|| Error::reset("the upstream database knows no finished initial copy of this version"))?;
        check_position(position(&client).await?, resume.after)?;
        let state = slot::release(&client, &replica.slot, options.take_over).await?;
        // Who was at work until now may have moved on, or have made another copy, whose slot is not to be taken for this one's.
        let replica = shard::newest_replica(&client, &options.app, &home)
            .await?
            .filter(|r| r.id == replica.id)
            .ok_or_else(|| Error::reset("another process has made a newer copy of the upstream database"))?;
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
        let goal = position(&client).await?;
        let continuity = Continuity::to_prove(resume.after, resume.time_us, state.confirmed);
        // Postgres repeats transactions that commit at or after the position asked for.
        let from = if continuity.is_some() { resume.after } else { Version::new(resume.after.as_u64() + 1) };
        let connection = start_replication(&client, options, &replica.slot, from).await?;
        // Nothing was published in an idle stretch, so the schema at its end is the one that the stream begins with.
        let begin = resume.after.max(idle_to.unwrap_or_default());
        let (token, horizon) = register_subscriber(&client, options, (&replica.id, &home), begin).await?;
        let (schema, withheld) = schema_at(&client, options, &replica.id, begin).await?;
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
            (replica.id, token),
            resume,
            (known, goal),
            (
                continuity,
                Assembler::new(
                    telling,
                    (options.transaction_bytes_warn, options.row_bytes_max),
                    schema,
                    &withheld,
                    horizon,
                    resume.after,
                )?,
            ),
        ))
    }

    fn spawn(
        options: &Options,
        client: Client,
        (connection, manners): (Connection, Manners),
        (replica, token): (String, String),
        resume: Resume,
        (known, goal): (Version, u64),
        (continuity, assembler): (Option<Continuity>, Assembler),
    ) -> Stream {
        let (acked, acks) = watch::channel(known.as_u64());
        let (sender, events) = mpsc::channel(QUEUE_EVENTS);
        let (arrived, reached) = watch::channel(None);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let now = Instant::now();
        let client = Arc::new(client);
        let readings = Readings::new(options.clone(), Arc::clone(&client));
        let journal = Arc::new(Journal { client, app: options.app.clone(), replica, token });
        let pump = Pump {
            options: options.clone(),
            readings,
            journal: Arc::clone(&journal),
            continuity,
            assembler,
            delivered: resume.after,
            link: Link {
                connection,
                acks,
                tick,
                limit: options.inbound_timeout.or_else(|| manners.timeout.map(|t| t * 2)).unwrap_or(SILENCE_MAX),
                is_asked: false,
                manners,
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
        let partitions = tokio::spawn(watch_partitions(Arc::clone(&pump.journal.client), pump.options.clone()));
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
        match self.events.recv().await {
            Some(item) => self.take(item),
            // The task says why it ended, unless it could not.
            None => Err(match (&mut self.task).await {
                Err(error) => Error::ended("the task that reads the replication stream", &error),
                Ok(()) => Error::transient("the replication stream has ended"),
            }),
        }
    }

    /// The next event if it is there already, so that a caller can store several transactions at once.
    pub fn try_next(&mut self) -> Option<Result<Event>> {
        match self.events.try_recv() {
            Ok(item) => Some(self.take(item)),
            Err(_) => None,
        }
    }

    fn take(&mut self, (event, permit): (Result<Event>, Option<OwnedSemaphorePermit>)) -> Result<Event> {
        match (&mut self.held, permit) {
            (Some(held), Some(permit)) => held.merge(permit),
            (held, permit) => *held = held.take().or(permit),
        }
        event
    }
}

/// A server that has not written so much yet cannot have sent it.
fn check_position(present: u64, after: Version) -> Result<()> {
    if present < after.as_u64() {
        let (present, after) = (lsn_text(Version::new(present)), lsn_text(after));
        return Err(set_back(&format!("it is at {present} and the replica is at {after}")));
    }
    Ok(())
}

/// Where upstream's log ends.
async fn position(client: &Client) -> Result<u64> {
    let row = client
        .query_one("SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::int8", &[])
        .await
        .map_err(|e| Error::statement("read the position of the log", e))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// The schema as of `version`, and what is withheld from there on.
async fn schema_at(client: &Client, options: &Options, replica: &str, version: Version) -> Result<(Schema, String)> {
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
        .map_err(|e| Error::statement("read the schema of the replica's version", e))?;
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return Err(Error::reset("the schema as of the replica's version is not known any more"));
    };
    let mut schema = Schema::parse(first.get(0))?;
    for row in &rows[1..] {
        schema = schema.continued(row.get(0))?;
    }
    Ok((schema, last.get(1)))
}

/// Remembers the schema after a transaction; before the transaction is handed out, so that whoever has the transaction can
/// rely on it. A process whose stream was taken over remembers nothing any more.
async fn remember_schema(journal: &Journal, version: Version, entry: &Entry, withheld: &str) -> Result<()> {
    let schema = quote_identifier(&journal.app.shard_schema());
    let remembered = journal
        .client
        .execute(
            &format!(
                "WITH ours AS (SELECT \"id\" FROM {schema}.\"replicas\"
                               WHERE \"id\" = $1 AND \"subscriberContext\"->>'stream' = $6 FOR SHARE)
                 INSERT INTO {schema}.\"schemaHistory\" (\"replica\", \"version\", \"schema\", \"skipped\", \"whole\")
                 SELECT \"id\", $2, $3, $4::text::json, $5 FROM ours
                 ON CONFLICT (\"replica\", \"version\") DO UPDATE
                 SET \"schema\" = EXCLUDED.\"schema\", \"skipped\" = EXCLUDED.\"skipped\", \"whole\" = EXCLUDED.\"whole\""
            ),
            &[&journal.replica, &version.to_string(), &entry.json, &withheld, &entry.is_whole, &journal.token],
        )
        .await
        .map_err(|e| Error::statement("remember the schema", e))?;
    if remembered == 0 {
        return Err(Error::transient("another stream of this replica has begun"));
    }
    Ok(())
}

/// Truncated partitions are not in the stream, and are looked for. A look that fails is repeated, however long that takes: each finds
/// all that happened since the last that succeeded.
async fn watch_partitions(mut client: Arc<Client>, options: Options) {
    let mut period = tokio::time::interval(PARTITIONS_PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut retry = PARTITIONS_RETRY;
    let mut told = None;
    loop {
        period.tick().await;
        while let Err(error) = shard::check_partitions(&client, &options.app).await {
            let message = error.to_string();
            if told.as_ref() != Some(&message) {
                tracing::warn!(%error, remedy = error.entry().remedy, "cannot look for truncated partitions, will retry; their rows stay here until then");
                told = Some(message);
            }
            tokio::time::sleep(retry.pause()).await;
            if client.is_closed()
                && let Ok(anew) = connect(&options.address, "zero-change-source").await
            {
                client = Arc::new(anew);
            }
        }
        if told.take().is_some() {
            tracing::info!("truncated partitions are looked for again");
            retry.succeeded();
        }
    }
}

/// Says who streams, and forgets schemas that no restart can ask for: those before what the one in force at `begin` is made of. Those
/// after it are found again by this stream, which may differ from a former one in when contents that are read anew are complete.
/// Returns what tells this stream from others, and an id above those of all transactions so far.
async fn register_subscriber(
    client: &Client,
    options: &Options,
    (replica, home): (&str, &str),
    begin: Version,
) -> Result<(String, u64)> {
    let schema = quote_identifier(&options.app.shard_schema());
    let doing = |e| Error::statement("register as subscriber", e);
    let row = client.query_one("SELECT pg_current_xact_id()::text", &[]).await.map_err(doing)?;
    let token: String = row.get(0);
    let horizon =
        token.parse().map_err(|_| Error::Garbled { message: "a transaction id in an unknown form".to_owned() })?;
    let context =
        serde_json::json!({ "appID": options.app.id, "taskID": options.task_id, "stream": token }).to_string();
    client
        .execute(
            &format!("UPDATE {schema}.\"replicas\" SET \"subscriberContext\" = $2::text::json, \"home\" = $3 WHERE \"id\" = $1"),
            &[&replica, &context, &home],
        )
        .await
        .map_err(doing)?;
    client
        .execute(
            &format!(
                "DELETE FROM {schema}.\"schemaHistory\" WHERE \"replica\" = $1 AND (\"version\" > $2 OR \"version\" <
                 (SELECT max(\"version\") FROM {schema}.\"schemaHistory\" WHERE \"replica\" = $1 AND \"version\" <= $2 AND \"whole\"))"
            ),
            &[&replica, &begin.to_string()],
        )
        .await
        .map_err(doing)?;
    Ok((token, horizon))
}

async fn start_replication(
    client: &Client,
    options: &Options,
    slot: &str,
    from: Version,
) -> Result<(Connection, Manners)> {
    let mut connection = Connection::open(&options.address, "zero-replicator", true).await?;
    let rows = connection
        .run(
            "SELECT (SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'), current_setting('synchronous_standby_names')",
            "read how Postgres treats those who replicate",
        )
        .await?;
    let setting = |column| rows.first().and_then(|row| row.get(column)).and_then(Option::as_deref).unwrap_or_default();
    let timeout_ms: u64 = setting(0).parse().unwrap_or(0);
    let manners = Manners {
        timeout: (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms)),
        may_be_waited_for: !setting(1).is_empty(),
    };
    let publications: Vec<String> = options.all_publications().iter().map(|p| quote_identifier(p)).collect();
    let sql = format!(
        "START_REPLICATION SLOT {} LOGICAL {} (proto_version '1', publication_names {}, messages 'true')",
        quote_identifier(slot),
        lsn_text(from),
        quote_literal(&publications.join(",")).trim_start(),
    );
    let mut retry = START_RETRY;
    for attempt in 0.. {
        connection.send_query(&sql).await?;
        let error = loop {
            let frame = connection.frame().await?;
            match frame.tag {
                b'W' => {
                    return Ok((connection, manners));
                }
                b'E' => break parse_error(frame.body),
                _ => {}
            }
        };
        // The error ends with ReadyForQuery.
        while connection.frame().await?.tag != b'Z' {}
        match error.code.as_str() {
            // The process that was just ended may hold it for another moment.
            OBJECT_IN_USE if attempt < START_ATTEMPTS => tokio::time::sleep(retry.pause()).await,
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

/// How Postgres treats those who replicate.
#[derive(Clone, Copy, Debug)]
struct Manners {
    /// `wal_sender_timeout`, unless it is off.
    timeout: Option<Duration>,
    /// Commits wait for synchronous standbys, and a name may be one that everybody has.
    may_be_waited_for: bool,
}

/// The connection with what keeps it alive.
struct Link {
    connection: Connection,
    acks: watch::Receiver<u64>,
    tick: Interval,
    manners: Manners,
    /// Silence after which the connection counts as broken.
    limit: Duration,
    /// An answer was asked for since something arrived.
    is_asked: bool,
    last_sent: Instant,
    last_received: Instant,
    journal: Arc<Journal>,
    /// Keepalives that wait for their acknowledgement: position, and the last transaction before it.
    idle: VecDeque<(u64, Version)>,
}

/// Where positions and schemas are remembered.
struct Journal {
    client: Arc<Client>,
    app: App,
    replica: String,
    /// Tells this stream from others of the replica.
    token: String,
}

impl Link {
    /// Sends a status if there is news, or if silence would make Postgres give us up.
    async fn status_if_due(&mut self) -> Result<()> {
        let news = self.acks.has_changed().unwrap_or(false);
        // A quarter leaves three more attempts before the timeout.
        let due = self.manners.timeout.is_some_and(|t| self.last_sent.elapsed() >= t / 4);
        let asks = !self.is_asked && self.last_received.elapsed() >= self.limit / 2;
        if news || due || asks { self.status(asks).await } else { Ok(()) }
    }

    /// Tells what is durable, and asks for an answer if Postgres has been silent.
    async fn status(&mut self, asks: bool) -> Result<()> {
        let position = *self.acks.borrow_and_update();
        self.remember_idle(position).await?;
        let now_us = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX));
        let mut tell = |flushed: u64, asks: bool| {
            let mut body = Vec::with_capacity(34);
            body.push(b'r');
            for position in [position, flushed, flushed] {
                body.extend_from_slice(&position.to_be_bytes());
            }
            body.extend_from_slice(&(now_us - POSTGRES_EPOCH_US).to_be_bytes());
            body.push(u8::from(asks));
            self.connection.queue_copy_data(&body);
        };
        tell(position, false);
        // The slot has moved. Whoever has flushed nothing is no synchronous standby, whatever `synchronous_standby_names` says, so
        // that no commit waits for us in place of a server that is meant.
        tell(0, asks);
        self.is_asked |= asks;
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

    fn heard(&mut self) {
        (self.last_received, self.is_asked) = (Instant::now(), false);
    }

    /// Reads more bytes, for one tick at most, and sends a status if one is due.
    async fn fill(&mut self) -> Result<()> {
        let read = tokio::select! {
            biased;
            result = self.connection.fill() => Some(result),
            _ = self.tick.tick() => None,
        };
        if let Some(result) = read {
            self.heard();
            result?;
        }
        // A long transaction may always have bytes ready, and statuses must not wait for its end.
        self.status_if_due().await?;
        if self.last_received.elapsed() > self.limit {
            return Err(Error::transient(format!("Postgres sent nothing for {:?}", self.limit)));
        }
        Ok(())
    }

    /// Waits for `future`, sending statuses meanwhile. That time does not count as Postgres' silence.
    async fn attend<T>(&mut self, future: impl Future<Output = T>) -> Result<T> {
        let mut future = std::pin::pin!(future);
        loop {
            tokio::select! {
                biased;
                value = &mut future => {
                    self.heard();
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
    readings: Readings,
    journal: Arc<Journal>,
    /// What is to be proven first.
    continuity: Option<Continuity>,
    assembler: Assembler,
    /// The last transaction that was handed out.
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
                self.readings.drive(&mut self.assembler)?;
                self.link.fill().await?;
                continue;
            };
            let received = match frame.tag {
                b'd' => match self.continuity.as_mut().map(|to_prove| to_prove.look(frame.body)).transpose()? {
                    None | Some(Look::Pass) => receive(&mut self.assembler, frame.body)?,
                    Some(Look::Skip) => Received::Nothing,
                    Some(Look::Proven) => {
                        self.continuity = None;
                        Received::Nothing
                    }
                },
                b'E' => {
                    let error = parse_error(frame.body);
                    return Err(set_up::stream_failed(&self.journal.client, &self.options, &error).await);
                }
                b'c' => return Err(Error::transient("Postgres ended the replication stream")),
                _ => Received::Nothing,
            };
            match received {
                Received::Nothing => {}
                Received::Transaction(finished) => {
                    self.transaction(*finished).await?;
                    self.readings.drive(&mut self.assembler)?;
                }
                Received::Keepalive { lsn, reply } => self.keepalive(lsn, reply).await?,
            }
        }
    }

    async fn transaction(&mut self, finished: Finished) -> Result<()> {
        let version = finished.transaction.version;
        if !finished.described.is_empty() || finished.is_withheld_changed {
            let Assembler { schema, withheld, .. } = &mut self.assembler;
            let entry = schema.entry(&finished.described)?;
            let withheld = withheld.remembered();
            let remember = remember_schema(&self.journal, version, &entry, &withheld);
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
        let prompt = self.link.manners.may_be_waited_for && since >= KEEPALIVE_PERIOD_WAITED_FOR;
        let due =
            reply || prompt || since >= KEEPALIVE_PERIOD_IDLE || (since >= KEEPALIVE_PERIOD && news >= KEEPALIVE_BYTES);
        if due && news > 0 && self.assembler.is_idle() {
            // When the queue is full there is enough to acknowledge already.
            if self.events.try_send((Ok(Event::Keepalive { lsn: Version::new(lsn) }), None)).is_ok() {
                self.link.idle.push_back((lsn, self.delivered));
                self.reported = lsn;
                self.last_keepalive = Instant::now();
            }
        }
        if reply { self.link.status(false).await } else { Ok(()) }
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
