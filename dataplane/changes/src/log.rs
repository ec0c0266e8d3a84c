//! The owner's side of the log: its tables, who may write, storing and purging.
//!
//! `state` has one row that says which copy the log belongs to, what it holds, and who may write. Every writing statement names
//! the epoch of its writer and does nothing if that is no longer the row's.

use bytes::Bytes;
use rows::{Transaction, Version};
use tokio_postgres::types::Type;

use crate::error::{Error, Result, failed};
use crate::page::{Batch, PAGE_BYTES, Page};
use crate::reader::{Lineage, Options, Owner, Param, Reader, Tables, number, timed, version};

/// Bytes sent in one statement, which are held twice while it is made: far below what Postgres accepts as one message.
const STATEMENT_BYTES: usize = 16 << 20;

/// What a purge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purged {
    /// Parts of pages that were deleted.
    pub pages: u64,
    /// The log holds what follows this version.
    pub start: Version,
}

/// A connection to the log that can own it, by [`Log::begin`] or [`Log::take_over`].
pub struct Log {
    reader: Reader,
    /// Fencing token of our ownership.
    epoch: Option<i64>,
    /// What the log held when it was last seen by us as its owner: it must never hold less.
    stored: Version,
}

impl Log {
    /// Connects, and creates what is missing.
    pub async fn open(options: &Options) -> Result<Log> {
        let log = Log { reader: Reader::open(options).await?, epoch: None, stored: Version::ZERO };
        log.create(&options.app.shard_schema()).await?;
        Ok(log)
    }

    async fn create(&self, shard: &str) -> Result<()> {
        let Tables { schema, pages, state } = &self.reader.tables;
        let definition = format!(
            r#"
            {begin};
            SELECT pg_advisory_xact_lock(hashtext('migrate-schema:' || {lock}));
            CREATE SCHEMA IF NOT EXISTS {schema};
            CREATE TABLE IF NOT EXISTS {pages} (
              "first" BIGINT NOT NULL,
              "last" BIGINT NOT NULL,
              "part" INT NOT NULL,
              "bytes" INT NOT NULL,
              "body" BYTEA NOT NULL,
              PRIMARY KEY ("last", "part")
            );
            CREATE TABLE IF NOT EXISTS {state} (
              "replica" BIGINT NOT NULL,
              "start" BIGINT NOT NULL,
              "last" BIGINT NOT NULL,
              "owner" TEXT,
              "ownerAddress" TEXT,
              "epoch" BIGINT NOT NULL,
              "home" TEXT,
              "lock" INT PRIMARY KEY DEFAULT 1 CHECK ("lock" = 1)
            );
            -- The database that the row was written in: a dump carries it to where it means nothing. Locks nothing if it is there.
            DO $do$ BEGIN
              IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = {named}::regclass AND attname = 'home' AND NOT attisdropped) THEN
                ALTER TABLE {state} ADD COLUMN "home" TEXT;
              END IF;
            END $do$;
            -- Compression would cost more time than it saves. After the state, as an append does.
            ALTER TABLE {pages} ALTER "body" SET STORAGE EXTERNAL;
            COMMIT;"#,
            begin = upstream::begin(self.reader.options.commits_locally),
            lock = upstream::quote_literal(shard),
            named = upstream::quote_literal(state),
        );
        let created = self.reader.client.batch_execute(&definition).await.map_err(failed("create the change log"));
        if created.is_err() {
            // The connection may be a pooler's: nobody else shall find the failed transaction open. What failed is told above.
            let _ = self.reader.client.batch_execute("ROLLBACK").await;
        }
        created
    }

    /// For reading on the same connection.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Connects anew if the connection was lost. Ownership is kept: it is a row, not a session.
    pub async fn reconnect(&mut self) -> Result<()> {
        self.reader.reconnect().await
    }

    /// See [`Reader::lineage`].
    pub async fn lineage(&self) -> Result<Option<Lineage>> {
        self.reader.lineage().await
    }

    /// See [`Reader::last`].
    pub async fn last(&self) -> Result<Version> {
        self.reader.last().await
    }

    /// See [`Reader::read_after`].
    pub async fn read_after(&self, after: Version) -> Result<Vec<Transaction>> {
        self.reader.read_after(after).await
    }

    /// The fencing token of our ownership, if we ever had it: it grows with every change of owner, so what is written under a lower
    /// one, such as a backup, is of a predecessor.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        self.epoch.and_then(|epoch| u64::try_from(epoch).ok())
    }

    /// Starts an empty log for a new initial copy, and owns it.
    pub async fn begin(&mut self, replica: Version, owner: &Owner) -> Result<()> {
        let doing = "begin a new log";
        let Reader { client, options, tables: Tables { pages, state, .. }, is_stuck, home, .. } = &mut self.reader;
        let sql = format!(
            "INSERT INTO {state} (\"replica\", \"start\", \"last\", \"owner\", \"ownerAddress\", \"epoch\", \"home\")
             VALUES ($1, $1, $1, $2, $3, 1, $4)
             ON CONFLICT (\"lock\") DO UPDATE SET \"replica\" = $1, \"start\" = $1, \"last\" = $1, \"owner\" = $2, \"ownerAddress\" = $3,
               \"home\" = $4, \"epoch\" = {state}.\"epoch\" + 1
             RETURNING \"epoch\""
        );
        let begin = upstream::transaction(client, options.commits_locally);
        let transaction = timed(is_stuck, doing, begin).await?;
        let first = number(replica);
        let values: [Param<'_>; 4] =
            [(&first, Type::INT8), (&owner.id, Type::TEXT), (&owner.address, Type::TEXT), (home, Type::TEXT)];
        let row = timed(is_stuck, doing, transaction.query_typed_one(&sql, &values)).await?;
        // A statement of its own, so that it sees what the previous owner stored until just now.
        timed(is_stuck, doing, transaction.execute_typed(&format!("DELETE FROM {pages}"), &[])).await?;
        timed(is_stuck, doing, transaction.commit()).await?;
        (self.epoch, self.stored) = (Some(row.get(0)), replica);
        Ok(())
    }

    /// Becomes the owner of the log as it is. A write of the previous owner that is under way ends first; its next one fails.
    pub async fn take_over(&mut self, owner: &Owner) -> Result<Lineage> {
        self.become_owner(owner, None).await
    }

    /// Becomes the owner if nobody else has since `seen` was read, so that of several successors only one replaces an owner. Fails
    /// with [`Error::NotOwner`] otherwise.
    pub async fn succeed(&mut self, owner: &Owner, seen: &Lineage) -> Result<Lineage> {
        self.become_owner(owner, Some(i64::try_from(seen.epoch).unwrap_or(i64::MAX))).await
    }

    async fn become_owner(&mut self, owner: &Owner, seen: Option<i64>) -> Result<Lineage> {
        let sql = format!(
            "UPDATE {} SET \"owner\" = $1, \"ownerAddress\" = $2, \"epoch\" = \"epoch\" + 1, \"home\" = $4
             WHERE ($3::int8 IS NULL OR \"epoch\" = $3) AND coalesce(\"home\", $4) = $4
             RETURNING \"replica\", \"start\", \"last\", \"epoch\"",
            self.reader.tables.state
        );
        let values: [Param<'_>; 4] = [
            (&owner.id, Type::TEXT),
            (&owner.address, Type::TEXT),
            (&seen, Type::INT8),
            (&self.reader.home, Type::TEXT),
        ];
        let row = match self.reader.query_opt("take the change log over", &sql, &values).await? {
            Some(row) => row,
            None if seen.is_some() => return Err(Error::NotOwner),
            None => return Err(Error::Empty),
        };
        let epoch = row.get(3);
        (self.epoch, self.stored) = (Some(epoch), version(row.get(2)));
        Ok(Lineage {
            replica: version(row.get(0)),
            start: version(row.get(1)),
            last: version(row.get(2)),
            owner: Some(owner.clone()),
            epoch: u64::try_from(epoch).unwrap_or(0),
        })
    }

    /// Gives ownership up, so that a successor need not wait for our silence. Nothing can be appended afterwards. Does nothing if
    /// another process is the owner already.
    pub async fn resign(&mut self) -> Result<()> {
        let Some(epoch) = self.epoch else { return Ok(()) };
        let sql = format!(
            "UPDATE {} SET \"owner\" = NULL, \"ownerAddress\" = NULL, \"epoch\" = \"epoch\" + 1 WHERE \"epoch\" = $1",
            self.reader.tables.state
        );
        self.reader.query("give the change log up", &sql, &[(&epoch, Type::INT8)]).await?;
        Ok(())
    }

    /// Raises the fencing token of our ownership above another number, and says what it is then. For an owner that finds something
    /// written under a higher one although it owns the log: the log was made anew since, so its numbers began again. Fails with
    /// [`Error::NotOwner`] if it is another process that owns the log.
    pub async fn raise_epoch(&mut self, above: u64) -> Result<u64> {
        let epoch = self.epoch.ok_or(Error::NotOwner)?;
        let sql = format!(
            "UPDATE {} SET \"epoch\" = greatest(\"epoch\", $2) + 1 WHERE \"epoch\" = $1 RETURNING \"epoch\"",
            self.reader.tables.state
        );
        let above = i64::try_from(above).unwrap_or(i64::MAX - 1);
        let values: [Param<'_>; 2] = [(&epoch, Type::INT8), (&above, Type::INT8)];
        let row = self.reader.query_opt("raise the owner's epoch", &sql, &values).await?.ok_or(Error::NotOwner)?;
        self.epoch = Some(row.get(0));
        Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
    }

    /// Fails with [`Error::NotOwner`] if another process has taken over: to be asked before connecting to the slot again.
    pub async fn check_ownership(&self) -> Result<()> {
        let epoch = self.epoch.ok_or(Error::NotOwner)?;
        let sql = format!("SELECT \"epoch\" FROM {}", self.reader.tables.state);
        let row = self.reader.query_opt("read the owner", &sql, &[]).await?.ok_or(Error::Empty)?;
        if row.get::<_, i64>(0) == epoch { Ok(()) } else { Err(Error::NotOwner) }
    }

    /// [`Log::append_batch`] for those who do not send the encoded form to anyone.
    pub async fn append(&mut self, transactions: &[Transaction]) -> Result<()> {
        self.append_batch(&Batch::encode(transactions)?).await
    }

    /// Stores transactions, all or none of them. Those that are stored already are left out, so that a call whose outcome is
    /// unknown can be repeated.
    pub async fn append_batch(&mut self, batch: &Batch) -> Result<()> {
        let epoch = self.epoch.ok_or(Error::NotOwner)?;
        if !self.try_append(epoch, batch).await? {
            // Not the owner, or a repetition, or the log has lost its end.
            self.check_ownership().await?;
            let last = self.last().await?;
            if last < self.stored {
                return Err(Error::SetBack { stored: self.stored, last });
            }
            if !self.try_append(epoch, &batch.after(last)?).await? {
                return Err(Error::NotOwner);
            }
        }
        self.stored = batch.range().map_or(self.stored, |(_, last)| last.max(self.stored));
        Ok(())
    }

    /// `false` if we are not the owner, the log is at the first of these versions already, or it ends before what was stored.
    async fn try_append(&mut self, epoch: i64, batch: &Batch) -> Result<bool> {
        let Some((first, last)) = batch.range() else { return Ok(true) };
        let stored = number(self.stored);
        let doing = "store transactions";
        let Tables { pages: table, state, .. } = &self.reader.tables;
        let claim = format!(
            "UPDATE {state} SET \"last\" = $2 WHERE \"epoch\" = $1 AND \"last\" < $3 AND \"last\" >= {stored} RETURNING 1"
        );
        let insert = |from: &str| {
            format!(
                "INSERT INTO {table} (\"first\", \"last\", \"part\", \"bytes\", \"body\")
                 SELECT u.* FROM unnest($4::int8[], $5::int8[], $6::int4[], $7::int4[], $8::bytea[]) u{from}"
            )
        };
        let (first, last) = (number(first), number(last));
        let claim_values: [Param<'_>; 3] = [(&epoch, Type::INT8), (&last, Type::INT8), (&first, Type::INT8)];
        let groups: Vec<&[Page]> = batch.pages().chunks(STATEMENT_BYTES / PAGE_BYTES).collect();
        if let [only] = groups.as_slice() {
            // The usual case: one statement, one round trip, one commit.
            let sql = format!("WITH mine AS ({claim}), stored AS ({}) SELECT count(*) FROM mine", insert(", mine"));
            let columns = Columns::of(only);
            let values: Vec<Param<'_>> = claim_values.into_iter().chain(columns.params()).collect();
            let row = self.reader.query_opt(doing, &sql, &values).await?.ok_or(Error::Empty)?;
            return Ok(row.get::<_, i64>(0) == 1);
        }
        let insert = (1..=5).fold(insert(""), |sql, n| sql.replace(&format!("${}", n + 3), &format!("${n}")));
        let Reader { client, options, is_stuck, .. } = &mut self.reader;
        let begin = upstream::transaction(client, options.commits_locally);
        let transaction = timed(is_stuck, doing, begin).await?;
        if timed(is_stuck, doing, transaction.query_typed_opt(&claim, &claim_values)).await?.is_none() {
            return Ok(false);
        }
        for group in groups {
            let columns = Columns::of(group);
            timed(is_stuck, doing, transaction.execute_typed(&insert, &columns.params())).await?;
        }
        timed(is_stuck, doing, transaction.commit()).await?;
        Ok(true)
    }

    /// Deletes whole pages at or below `needed`, the oldest first, but keeps `bytes_kept` of the newest for readers that come
    /// back late.
    pub async fn purge(&mut self, needed: Version, bytes_kept: u64) -> Result<Purged> {
        let epoch = self.epoch.ok_or(Error::NotOwner)?;
        let Tables { pages, state, .. } = &self.reader.tables;
        let sql = format!(
            "WITH ranked AS (
               SELECT \"last\", sum(\"bytes\"::int8) OVER (ORDER BY \"last\" DESC, \"part\" DESC) AS newer FROM {pages}
             ), bound AS (
               SELECT max(\"last\") AS \"last\" FROM ranked WHERE \"last\" <= $2 AND newer > $3
             ), mine AS (
               UPDATE {state} SET \"start\" = greatest(\"start\", (SELECT \"last\" FROM bound)) WHERE \"epoch\" = $1 RETURNING \"start\"
             ), gone AS (
               DELETE FROM {pages} WHERE \"last\" <= (SELECT \"last\" FROM bound) AND EXISTS (SELECT FROM mine) RETURNING 1
             )
             SELECT (SELECT \"start\" FROM mine), (SELECT count(*) FROM gone)"
        );
        let (needed, bytes_kept) = (number(needed), i64::try_from(bytes_kept).unwrap_or(i64::MAX));
        let values: [Param<'_>; 3] = [(&epoch, Type::INT8), (&needed, Type::INT8), (&bytes_kept, Type::INT8)];
        let row = self.reader.query_opt("purge", &sql, &values).await?.ok_or(Error::Empty)?;
        let start = row.get::<_, Option<i64>>(0).ok_or(Error::NotOwner)?;
        Ok(Purged { pages: u64::try_from(row.get::<_, i64>(1)).unwrap_or(0), start: version(start) })
    }
}

/// Pages as the arrays that one statement unnests.
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
            first: pages.iter().map(|p| number(p.first)).collect(),
            last: pages.iter().map(|p| number(p.last)).collect(),
            part: pages.iter().map(|p| i32::try_from(p.part).unwrap_or(i32::MAX)).collect(),
            bytes: pages.iter().map(|p| i32::try_from(p.body.len()).unwrap_or(i32::MAX)).collect(),
            body: pages.iter().map(|p| Bytes::as_ref(&p.body)).collect(),
        }
    }

    fn params(&self) -> [Param<'_>; 5] {
        [
            (&self.first, Type::INT8_ARRAY),
            (&self.last, Type::INT8_ARRAY),
            (&self.part, Type::INT4_ARRAY),
            (&self.bytes, Type::INT4_ARRAY),
            (&self.body, Type::BYTEA_ARRAY),
        ]
    }
}
