//! The log's tables and their statements.
//!
//! Transactions are stored in pages: a page is a run of small transactions, or one part of a large one. `state` has one row that
//! says which copy the log belongs to, what it holds, and who may write.

use std::time::Duration;

use rows::{Transaction, Version};
use tokio_postgres::Client;
use upstream::{Address, App, connect, quote_identifier};

use crate::codec::{CodecError, decode, encode};

/// A page is closed when it has this many bytes; a larger transaction is cut into parts of this size.
const PAGE_BYTES: usize = 1 << 20;
/// Bytes sent in one statement, far below what Postgres accepts as one message.
const STATEMENT_BYTES: usize = 64 << 20;
/// Pages read at once.
const PAGES_READ: i64 = 8;
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Options {
    pub address: Address,
    pub app: App,
}

/// Who writes the log, for readers and successors to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub id: String,
    /// Where its change stream can be reached; empty if nowhere.
    pub address: String,
}

/// What the log holds: every transaction after `start` up to `last`, of the replica that was copied at `replica`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    pub replica: Version,
    pub start: Version,
    pub last: Version,
    pub owner: Option<Owner>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Connect(#[from] upstream::Error),
    /// Retry with back-off; an append that may or may not have happened can be repeated.
    #[error("cannot {doing} in the change database: {reason}")]
    Statement { doing: &'static str, reason: String, source: Option<tokio_postgres::Error> },
    /// Stop: another process streams from the slot now.
    #[error("another process has taken the change log over")]
    NotOwner,
    /// The reader needs a newer copy to start from.
    #[error("the change log begins after {start} and was asked for what follows {after}")]
    TooOld { after: Version, start: Version },
    /// There is no log: start with an initial copy.
    #[error("the change database holds no log")]
    Empty,
    /// A programming error of the caller; nothing was stored.
    #[error("transactions must ascend: {next} follows {last}")]
    OutOfOrder { last: Version, next: Version },
    #[error(transparent)]
    Unreadable(#[from] CodecError),
}

pub type Result<T> = std::result::Result<T, Error>;

/// A connection to the log. Readers open one; the writer also owns it by [`Log::begin`] or [`Log::take_over`].
pub struct Log {
    options: Options,
    client: Client,
    sql: Statements,
    /// Fencing token of our ownership.
    epoch: Option<i64>,
}

struct Statements {
    pages: String,
    state: String,
}

impl Log {
    /// Connects, and creates what is missing.
    pub async fn open(options: &Options) -> Result<Log> {
        let schema = quote_identifier(&format!("{}/cdc", options.app.shard_schema()));
        let sql = Statements { pages: format!("{schema}.\"pages\""), state: format!("{schema}.\"state\"") };
        let client = connect(&options.address, "zero-change-streamer").await?;
        let log = Log { options: options.clone(), client, sql, epoch: None };
        log.create(&schema).await?;
        Ok(log)
    }

    async fn create(&self, schema: &str) -> Result<()> {
        let Statements { pages, state } = &self.sql;
        let definition = format!(
            r#"
            BEGIN;
            SELECT pg_advisory_xact_lock(hashtext('migrate-schema:' || '{lock}'));
            CREATE SCHEMA IF NOT EXISTS {schema};
            CREATE TABLE IF NOT EXISTS {pages} (
              "first" BIGINT NOT NULL,
              "last" BIGINT NOT NULL,
              "part" INT NOT NULL,
              "bytes" INT NOT NULL,
              "body" BYTEA NOT NULL,
              PRIMARY KEY ("last", "part")
            );
            -- Compression would cost more time than it saves.
            ALTER TABLE {pages} ALTER "body" SET STORAGE EXTERNAL;
            CREATE TABLE IF NOT EXISTS {state} (
              "replica" BIGINT NOT NULL,
              "start" BIGINT NOT NULL,
              "last" BIGINT NOT NULL,
              "owner" TEXT,
              "ownerAddress" TEXT,
              "epoch" BIGINT NOT NULL,
              "lock" INT PRIMARY KEY DEFAULT 1 CHECK ("lock" = 1)
            );
            COMMIT;"#,
            lock = self.options.app.shard_schema(),
        );
        self.client.batch_execute(&definition).await.map_err(failed("create the change log"))
    }

    /// Connects anew if the connection was lost. Ownership is kept: it is a row, not a session.
    pub async fn reconnect(&mut self) -> Result<()> {
        if self.client.is_closed() {
            self.client = connect(&self.options.address, "zero-change-streamer").await?;
        }
        Ok(())
    }

    /// What the log holds; `None` if there is none.
    pub async fn lineage(&self) -> Result<Option<Lineage>> {
        let row = self
            .timed(
                "read the change log's state",
                self.client.query_opt(
                    &format!(
                        "SELECT \"replica\", \"start\", \"last\", \"owner\", coalesce(\"ownerAddress\", '') FROM {}",
                        self.sql.state
                    ),
                    &[],
                ),
            )
            .await?;
        Ok(row.map(|row| Lineage {
            replica: version(row.get(0)),
            start: version(row.get(1)),
            last: version(row.get(2)),
            owner: row.get::<_, Option<String>>(3).map(|id| Owner { id, address: row.get(4) }),
        }))
    }

    /// The last stored version.
    pub async fn last(&self) -> Result<Version> {
        Ok(self.lineage().await?.ok_or(Error::Empty)?.last)
    }

    /// Starts an empty log for a new initial copy, and owns it.
    pub async fn begin(&mut self, replica: Version, owner: &Owner) -> Result<()> {
        let Statements { pages, state } = &self.sql;
        let doing = "begin a new log";
        let transaction = self.client.transaction().await.map_err(failed(doing))?;
        let sql = format!(
            "INSERT INTO {state} (\"replica\", \"start\", \"last\", \"owner\", \"ownerAddress\", \"epoch\") VALUES ($1, $1, $1, $2, $3, 1)
             ON CONFLICT (\"lock\") DO UPDATE SET \"replica\" = $1, \"start\" = $1, \"last\" = $1, \"owner\" = $2, \"ownerAddress\" = $3,
               \"epoch\" = {state}.\"epoch\" + 1
             RETURNING \"epoch\""
        );
        let row =
            transaction.query_one(&sql, &[&number(replica), &owner.id, &owner.address]).await.map_err(failed(doing))?;
        transaction.batch_execute(&format!("DELETE FROM {pages}")).await.map_err(failed(doing))?;
        transaction.commit().await.map_err(failed(doing))?;
        self.epoch = Some(row.get(0));
        Ok(())
    }

    /// Becomes the owner of the log as it is. A write of the previous owner that is under way ends first; its next one fails.
    pub async fn take_over(&mut self, owner: &Owner) -> Result<Lineage> {
        let sql = format!(
            "UPDATE {} SET \"owner\" = $1, \"ownerAddress\" = $2, \"epoch\" = \"epoch\" + 1
             RETURNING \"replica\", \"start\", \"last\", \"epoch\"",
            self.sql.state
        );
        let row = self
            .timed("take the change log over", self.client.query_opt(&sql, &[&owner.id, &owner.address]))
            .await?
            .ok_or(Error::Empty)?;
        self.epoch = Some(row.get(3));
        Ok(Lineage {
            replica: version(row.get(0)),
            start: version(row.get(1)),
            last: version(row.get(2)),
            owner: Some(owner.clone()),
        })
    }

    /// Fails with [`Error::NotOwner`] if another process has taken over: to be asked before connecting to the slot again.
    pub async fn check_ownership(&self) -> Result<()> {
        let epoch = self.epoch.ok_or(Error::NotOwner)?;
        let sql = format!("SELECT \"epoch\" FROM {}", self.sql.state);
        let row = self.timed("read the owner", self.client.query_opt(&sql, &[])).await?.ok_or(Error::Empty)?;
        if row.get::<_, i64>(0) == epoch { Ok(()) } else { Err(Error::NotOwner) }
    }

    /// Stores transactions, all or none of them. Those that are stored already are left out, so that a call whose outcome is
    /// unknown can be repeated.
    pub async fn append(&mut self, transactions: &[Transaction]) -> Result<()> {
        let epoch = self.epoch.ok_or(Error::NotOwner)?;
        for pair in transactions.windows(2) {
            if pair[1].version <= pair[0].version {
                return Err(Error::OutOfOrder { last: pair[0].version, next: pair[1].version });
            }
        }
        if self.try_append(epoch, transactions).await? {
            return Ok(());
        }
        // Not the owner, or a repetition.
        self.check_ownership().await?;
        let last = self.last().await?;
        let new = &transactions[transactions.partition_point(|t| t.version <= last)..];
        if self.try_append(epoch, new).await? { Ok(()) } else { Err(Error::NotOwner) }
    }

    /// `false` if we are not the owner or the log is at the first of these versions already.
    async fn try_append(&mut self, epoch: i64, transactions: &[Transaction]) -> Result<bool> {
        let (Some(first), Some(last)) = (transactions.first(), transactions.last()) else { return Ok(true) };
        let doing = "store transactions";
        let pages = paginate(transactions);
        let Statements { pages: table, state } = &self.sql;
        let claim = format!("UPDATE {state} SET \"last\" = $2 WHERE \"epoch\" = $1 AND \"last\" < $3 RETURNING 1");
        let claim_values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&epoch, &number(last.version), &number(first.version)];
        let insert = |from: &str| {
            format!(
                "INSERT INTO {table} (\"first\", \"last\", \"part\", \"bytes\", \"body\")
                 SELECT u.* FROM unnest($4::int8[], $5::int8[], $6::int4[], $7::int4[], $8::bytea[]) u{from}"
            )
        };
        let groups = group(&pages);
        if let [only] = groups.as_slice() {
            // The usual case: one statement, one round trip, one commit.
            let sql = format!("WITH mine AS ({claim}), stored AS ({}) SELECT count(*) FROM mine", insert(", mine"));
            let columns = Columns::of(only);
            let [a, b, c] = claim_values;
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 8] =
                [a, b, c, &columns.first, &columns.last, &columns.part, &columns.bytes, &columns.body];
            let row = self.timed(doing, self.client.query_one(&sql, &values)).await?;
            return Ok(row.get::<_, i64>(0) == 1);
        }
        let transaction = self.client.transaction().await.map_err(failed(doing))?;
        if transaction.query_opt(&claim, &claim_values).await.map_err(failed(doing))?.is_none() {
            return Ok(false);
        }
        let sql = insert("")
            .replace("$4", "$1")
            .replace("$5", "$2")
            .replace("$6", "$3")
            .replace("$7", "$4")
            .replace("$8", "$5");
        for group in groups {
            let columns = Columns::of(group);
            transaction
                .execute(&sql, &[&columns.first, &columns.last, &columns.part, &columns.bytes, &columns.body])
                .await
                .map_err(failed(doing))?;
        }
        transaction.commit().await.map_err(failed(doing))?;
        Ok(true)
    }

    /// The next transactions after `after`, some MiB of them; empty if there are none yet.
    pub async fn read_after(&self, after: Version) -> Result<Vec<Transaction>> {
        let Statements { pages, state } = &self.sql;
        // One statement, so that a purge cannot open a gap between the check and the reading.
        let sql = format!(
            "SELECT s.\"start\", p.\"last\", p.\"body\" FROM {state} s
             LEFT JOIN {pages} p ON p.\"last\" IN (SELECT DISTINCT \"last\" FROM {pages} WHERE \"last\" > $1 ORDER BY \"last\" LIMIT {PAGES_READ})
             ORDER BY p.\"last\", p.\"part\""
        );
        let found = self.timed("read transactions", self.client.query(&sql, &[&number(after)])).await?;
        let start = version(found.first().ok_or(Error::Empty)?.get(0));
        if after < start {
            return Err(Error::TooOld { after, start });
        }
        let mut transactions = Vec::new();
        let mut whole: Vec<u8> = Vec::new();
        for (i, row) in found.iter().enumerate() {
            let Some(last) = row.get::<_, Option<i64>>(1) else { break };
            whole.extend_from_slice(row.get(2));
            let more_parts = found.get(i + 1).is_some_and(|next| next.get::<_, Option<i64>>(1) == Some(last));
            if more_parts {
                continue;
            }
            let mut rest = whole.as_slice();
            while !rest.is_empty() {
                let transaction = decode(&mut rest)?;
                if transaction.version > after {
                    transactions.push(transaction);
                }
            }
            whole.clear();
        }
        Ok(transactions)
    }

    /// Deletes whole pages at or below `needed`, the oldest first, but keeps `bytes_kept` of the newest for readers that come
    /// back late. Returns the number of pages deleted.
    pub async fn purge(&mut self, needed: Version, bytes_kept: u64) -> Result<u64> {
        let epoch = self.epoch.ok_or(Error::NotOwner)?;
        let Statements { pages, state } = &self.sql;
        let sql = format!(
            "WITH ranked AS (
               SELECT \"last\", sum(\"bytes\"::int8) OVER (ORDER BY \"last\" DESC, \"part\" DESC) AS newer FROM {pages}
             ), bound AS (
               SELECT max(\"last\") AS \"last\" FROM ranked WHERE \"last\" <= $2 AND newer > $3::int8
             ), mine AS (
               UPDATE {state} SET \"start\" = greatest(\"start\", (SELECT \"last\" FROM bound)) WHERE \"epoch\" = $1 RETURNING 1
             ), gone AS (
               DELETE FROM {pages} WHERE \"last\" <= (SELECT \"last\" FROM bound) AND EXISTS (SELECT FROM mine) RETURNING 1
             )
             SELECT (SELECT count(*) FROM mine), (SELECT count(*) FROM gone)"
        );
        let bytes_kept = i64::try_from(bytes_kept).unwrap_or(i64::MAX);
        let row = self.timed("purge", self.client.query_one(&sql, &[&epoch, &number(needed), &bytes_kept])).await?;
        if row.get::<_, i64>(0) == 0 {
            return Err(Error::NotOwner);
        }
        Ok(u64::try_from(row.get::<_, i64>(1)).unwrap_or(0))
    }

    async fn timed<T>(
        &self,
        doing: &'static str,
        work: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        match tokio::time::timeout(STATEMENT_TIMEOUT, work).await {
            Ok(result) => result.map_err(failed(doing)),
            Err(_) => {
                Err(Error::Statement { doing, reason: format!("no answer within {STATEMENT_TIMEOUT:?}"), source: None })
            }
        }
    }
}

fn failed(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |error| {
        let reason = match error.as_db_error() {
            Some(db) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
            None => error.to_string(),
        };
        Error::Statement { doing, reason, source: Some(error) }
    }
}

/// Positions are below 2^63: Postgres cannot write so much WAL.
fn number(version: Version) -> i64 {
    i64::try_from(version.as_u64()).unwrap_or(i64::MAX)
}

fn version(number: i64) -> Version {
    Version::new(u64::try_from(number).unwrap_or(0))
}

#[derive(Debug)]
struct Page {
    first: i64,
    last: i64,
    part: i32,
    body: Vec<u8>,
}

fn paginate(transactions: &[Transaction]) -> Vec<Page> {
    let mut pages = Vec::new();
    let mut body = Vec::new();
    let mut first = None;
    for (i, transaction) in transactions.iter().enumerate() {
        let page_first = *first.get_or_insert_with(|| number(transaction.version));
        encode(transaction, &mut body);
        if body.len() < PAGE_BYTES && i + 1 < transactions.len() {
            continue;
        }
        let last = number(transaction.version);
        for (part, piece) in body.chunks(PAGE_BYTES).enumerate() {
            let part = i32::try_from(part).unwrap_or(i32::MAX);
            pages.push(Page { first: page_first, last, part, body: piece.to_vec() });
        }
        body.clear();
        first = None;
    }
    pages
}

/// Cuts pages into statements.
fn group(pages: &[Page]) -> Vec<&[Page]> {
    pages.chunks(STATEMENT_BYTES / PAGE_BYTES).collect()
}

struct Columns<'a> {
    first: Vec<i64>,
    last: Vec<i64>,
    part: Vec<i32>,
    bytes: Vec<i32>,
    body: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn of(pages: &'a [Page]) -> Columns<'a> {
        Columns {
            first: pages.iter().map(|p| p.first).collect(),
            last: pages.iter().map(|p| p.last).collect(),
            part: pages.iter().map(|p| p.part).collect(),
            bytes: pages.iter().map(|p| i32::try_from(p.body.len()).unwrap_or(i32::MAX)).collect(),
            body: pages.iter().map(|p| p.body.as_slice()).collect(),
        }
    }
}
