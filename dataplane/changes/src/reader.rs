//! Reading the log: what it holds, who owns it, and its pages as they are stored.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rows::{Transaction, Version};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};
use upstream::{Address, App, connect_pooled, home, quote_identifier};

use crate::error::{Error, Result, failed};
use crate::page::{PAGE_BYTES, Page, decode_all};

/// Pages looked at by one reading; most are small when upstream is quiet.
const PAGES_READ: u32 = 4096;
/// Bytes that [`Reader::read_after`] decodes at once.
const BYTES_DECODED: usize = 8 * PAGE_BYTES;
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
pub struct Options {
    pub address: Address,
    pub app: App,
    /// Commits do not wait for the server's synchronous standbys: right where the log is lost together with what it is a log of.
    pub commits_locally: bool,
}

impl Options {
    #[must_use]
    pub fn new(address: Address, app: App) -> Options {
        Options { address, app, commits_locally: false }
    }
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
    /// `None` after the owner has resigned.
    pub owner: Option<Owner>,
    /// Grows with every change of ownership and every new log: whoever holds a lower one is no longer the owner.
    pub epoch: u64,
}

/// The columns that [`lineage`] reads, of the state as `s`.
const LINEAGE: &str =
    "s.\"replica\", s.\"start\", s.\"last\", s.\"owner\", coalesce(s.\"ownerAddress\", ''), s.\"epoch\"";
/// The database that the state was written in; null if that was not noted. The column may be missing: a reader creates nothing.
const HOME: &str = "to_jsonb(s) ->> 'home'";

fn lineage(row: &Row) -> Lineage {
    Lineage {
        replica: version(row.get(0)),
        start: version(row.get(1)),
        last: version(row.get(2)),
        owner: row.get::<_, Option<String>>(3).map(|id| Owner { id, address: row.get(4) }),
        epoch: u64::try_from(row.get::<_, i64>(5)).unwrap_or(0),
    }
}

/// A position between two parts of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Everything up to here has been read.
    after: Version,
    /// Of a page begun but not finished: its last version and the part that was read last.
    within: Option<(Version, u32)>,
}

impl Cursor {
    /// Before the first transaction after `version`. The page that is read first may begin with older ones.
    #[must_use]
    pub fn after(version: Version) -> Cursor {
        Cursor { after: version, within: None }
    }

    /// The last version whose page was read to its end.
    #[must_use]
    pub fn version(&self) -> Version {
        self.after
    }

    fn advance(&mut self, page: &Page) {
        if page.is_end {
            *self = Cursor::after(page.last);
        } else {
            self.within = Some((page.last, page.part));
        }
    }
}

/// Some pages, and what the log held when they were read.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Empty if there are none yet.
    pub pages: Vec<Page>,
    pub lineage: Lineage,
}

pub(crate) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

#[derive(Clone)]
pub(crate) struct Tables {
    pub schema: String,
    pub pages: String,
    pub state: String,
}

impl Tables {
    pub(crate) fn of(app: &App) -> Tables {
        let schema = quote_identifier(&format!("{}/cdc", app.shard_schema()));
        Tables { pages: format!("{schema}.\"pages\""), state: format!("{schema}.\"state\""), schema }
    }
}

/// A connection that only reads, and creates nothing.
pub struct Reader {
    pub(crate) options: Options,
    pub(crate) client: Client,
    pub(crate) tables: Tables,
    /// The database that this is a connection to; see [`upstream::home`].
    pub(crate) home: String,
    /// A statement got no answer: what comes next on this connection would wait behind it.
    pub(crate) is_stuck: AtomicBool,
}

/// The present owner of a log, for those who look for its change stream. `None` if there is no log or nobody owns it.
pub async fn discover(options: &Options) -> Result<Option<Owner>> {
    Ok(Reader::open(options).await?.lineage().await?.and_then(|lineage| lineage.owner))
}

impl Reader {
    pub async fn open(options: &Options) -> Result<Reader> {
        let client = connect_pooled(&options.address, "zero-change-streamer").await?;
        Ok(Reader {
            options: options.clone(),
            home: home(&client).await?,
            client,
            tables: Tables::of(&options.app),
            is_stuck: AtomicBool::new(false),
        })
    }

    /// Whether the connection is lost, or a statement got no answer on it.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.client.is_closed() || self.is_stuck.load(Ordering::Relaxed)
    }

    /// Connects anew if the connection is broken.
    pub async fn reconnect(&mut self) -> Result<()> {
        if self.is_broken() {
            let client = connect_pooled(&self.options.address, "zero-change-streamer").await?;
            (self.home, self.client) = (home(&client).await?, client);
            self.is_stuck.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// What the log holds; `None` if there is none of this database.
    pub async fn lineage(&self) -> Result<Option<Lineage>> {
        let sql = format!("SELECT {LINEAGE} FROM {} s WHERE coalesce({HOME}, $1) = $1", self.tables.state);
        match self.query_opt("read the change log's state", &sql, &[(&self.home, Type::TEXT)]).await {
            Ok(row) => Ok(row.map(|row| lineage(&row))),
            Err(Error::Empty) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The last stored version.
    pub async fn last(&self) -> Result<Version> {
        Ok(self.lineage().await?.ok_or(Error::Empty)?.last)
    }

    /// Waits until the log of the copy at `replica` holds `wanted`. `false` if it does not within `limit`; an error if the log is of
    /// another copy by then.
    pub async fn wait_for(&self, replica: Version, wanted: Version, limit: Duration) -> Result<bool> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let lineage = self.lineage().await?.ok_or(Error::Empty)?;
            if lineage.replica != replica {
                return Err(Error::TooOld { after: wanted, start: lineage.start });
            }
            if lineage.last >= wanted {
                return Ok(true);
            }
            if tokio::time::Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The next pages as they are stored, about `bytes_max` of them but at least one if there is one. Moves the cursor past them.
    pub async fn pages(&self, cursor: &mut Cursor, bytes_max: usize) -> Result<Chunk> {
        let Tables { pages, state, .. } = &self.tables;
        // One statement, so that a purge cannot open a gap between the check and the reading. The windows do not touch the bodies.
        // The limit on the one row of the state keeps the planner from expecting many, and from compiling the statement.
        let sql = format!(
            "SELECT {LINEAGE}, p.\"first\", p.\"last\", p.\"part\", p.\"body\", p.\"next\" IS DISTINCT FROM p.\"last\"
             FROM (SELECT * FROM {state} LIMIT 1) s LEFT JOIN (
               SELECT \"first\", \"last\", \"part\", \"body\", lead(\"last\") OVER parts AS \"next\",
                 sum(\"bytes\"::int8) OVER parts - \"bytes\" AS \"before\"
               FROM {pages} WHERE (\"last\", \"part\") > ($1, $2)
               WINDOW parts AS (ORDER BY \"last\", \"part\") ORDER BY \"last\", \"part\" LIMIT {PAGES_READ}
             ) p ON p.\"before\" < $3
             ORDER BY p.\"last\", p.\"part\""
        );
        let (last, part) = match cursor.within {
            None => (number(cursor.after), i32::MAX),
            Some((last, part)) => (number(last), i32::try_from(part).unwrap_or(i32::MAX)),
        };
        let bytes_max = i64::try_from(bytes_max.max(1)).unwrap_or(i64::MAX);
        let found = self
            .query("read transactions", &sql, &[(&last, Type::INT8), (&part, Type::INT4), (&bytes_max, Type::INT8)])
            .await?;
        let lineage = lineage(found.first().ok_or(Error::Empty)?);
        let start = lineage.start;
        if cursor.after < start {
            return Err(Error::TooOld { after: cursor.after, start });
        }
        let mut pages = Vec::with_capacity(found.len());
        for row in &found {
            let Some(last) = row.get::<_, Option<i64>>(7) else { break };
            let page = Page {
                first: version(row.get(6)),
                last: version(last),
                part: u32::try_from(row.get::<_, i32>(8)).unwrap_or(0),
                is_end: row.get(10),
                body: Bytes::copy_from_slice(row.get(9)),
            };
            cursor.advance(&page);
            pages.push(page);
        }
        Ok(Chunk { pages, lineage })
    }

    /// The next transactions after `after`, some MiB of them; empty if there are none yet.
    pub async fn read_after(&self, after: Version) -> Result<Vec<Transaction>> {
        let mut cursor = Cursor::after(after);
        let mut pages = self.pages(&mut cursor, BYTES_DECODED).await?.pages;
        while pages.last().is_some_and(|page| !page.is_end) {
            let more = self.pages(&mut cursor, BYTES_DECODED).await?.pages;
            if more.is_empty() {
                break;
            }
            pages.extend(more);
        }
        let mut transactions = decode_all(&pages)?;
        transactions.retain(|transaction| transaction.version > after);
        Ok(transactions)
    }

    /// When the transaction that is stored last was committed. `None` if there is none, or if it would have to be read in parts.
    pub async fn last_commit_time_us(&self) -> Result<Option<i64>> {
        let Lineage { start, last, .. } = self.lineage().await?.ok_or(Error::Empty)?;
        if last <= start {
            return Ok(None);
        }
        let mut cursor = Cursor::after(Version::new(last.as_u64() - 1));
        let pages = self.pages(&mut cursor, 1).await?.pages;
        if pages.first().is_none_or(|page| page.part > 0 || !page.is_end) {
            return Ok(None);
        }
        let stored = decode_all(&pages)?;
        Ok(stored.iter().find(|transaction| transaction.version == last).map(|transaction| transaction.commit_time_us))
    }

    pub(crate) async fn query(&self, doing: &'static str, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>> {
        timed(&self.is_stuck, doing, self.isolated(self.client.query_typed(sql, params))).await
    }

    pub(crate) async fn query_opt(&self, doing: &'static str, sql: &str, params: &[Param<'_>]) -> Result<Option<Row>> {
        timed(&self.is_stuck, doing, self.isolated(self.client.query_typed_opt(sql, params))).await
    }

    async fn isolated<T>(
        &self,
        statement: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
    ) -> std::result::Result<T, tokio_postgres::Error> {
        upstream::isolated(&self.client, self.options.commits_locally, statement).await
    }
}

/// Bounds a statement by the time after which the database counts as gone; the connection is of no use then.
pub(crate) async fn timed<T>(
    is_stuck: &AtomicBool,
    doing: &'static str,
    work: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
) -> Result<T> {
    match tokio::time::timeout(STATEMENT_TIMEOUT, work).await {
        Ok(result) => result.map_err(failed(doing)),
        Err(_) => {
            is_stuck.store(true, Ordering::Relaxed);
            Err(Error::Statement { doing, reason: format!("no answer within {STATEMENT_TIMEOUT:?}"), source: None })
        }
    }
}

/// Positions are below 2^63: Postgres cannot write so much WAL.
pub(crate) fn number(version: Version) -> i64 {
    i64::try_from(version.as_u64()).unwrap_or(i64::MAX)
}

pub(crate) fn version(number: i64) -> Version {
    Version::new(u64::try_from(number).unwrap_or(0))
}
