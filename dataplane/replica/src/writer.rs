//! Applies upstream transactions and says what changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rows::transaction::SchemaChange;
use rows::{Batch, Change, Schema, TableSpec, Transaction, Version};
use rusqlite::Connection;

use crate::alter::{self, Effect};
use crate::checkpoint::Checkpointer;
use crate::connection;
use crate::error::{At, Error, Fault};
use crate::gate::CommitGate;
use crate::keeper::{WalEnd, WalKeeper};
use crate::layout::{Catalog, Layout};
use crate::meta::{self, State};
use crate::names;
use crate::net::Net;
use crate::table::{Step, TableWriter};

const CACHE_KIB: u32 = 64 << 10;
const STATEMENTS: usize = 1024;
/// Indexes that upstream does not have: each costs every write to its table.
const OWN_INDEXES_MAX: i64 = 64;
const COUNT_OWN_INDEXES: &str = "SELECT count(*) FROM sqlite_schema WHERE type = 'index' AND name GLOB 'x[0-9]*'";

/// The only writer of a replica file.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    conn: Connection,
    gate: Arc<CommitGate>,
    state: State,
    tables: BTreeMap<u32, TableWriter>,
    schema: Arc<Schema>,
    checkpointer: Checkpointer,
    /// Row changes per table since its statistics were taken.
    churn: BTreeMap<u32, u64>,
    /// Memory may disagree with the file: reading it back after a failure failed too.
    broken: bool,
}

/// One call of [`Writer::apply`] under way.
struct Pass {
    net: Net,
    schema_changed: bool,
}

impl Writer {
    pub(crate) fn open(path: &Path) -> Result<Writer, Error> {
        let mut conn = connection::open(path, false, CACHE_KIB, STATEMENTS).at(path, "open")?;
        if conn.is_readonly("main").at(path, "open")? {
            let reason = "it cannot be written; check the permissions of the file and its directory".to_owned();
            return Err(Error::Refused { path: path.to_path_buf(), reason });
        }
        let mode: String =
            conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).at(path, "switch to WAL")?;
        if mode != "wal" {
            let reason = format!("its directory does not support WAL mode (SQLite answered '{mode}')");
            return Err(Error::Refused { path: path.to_path_buf(), reason });
        }
        conn.pragma_update(None, "synchronous", "NORMAL").at(path, "open")?;
        connection::spill_beside(&conn, path);
        let checkpointer = Checkpointer::install(&mut conn).at(path, "install the WAL hook")?;
        // Files of former releases lack it.
        meta::yield_to_original(&conn).at(path, "mark the file")?;
        let state = meta::read_state(&conn).at(path, "read the version")?;
        let catalog = meta::read_catalog(&conn).at(path, "read the table descriptions")?;
        let mut writer = Writer {
            path: path.to_path_buf(),
            conn,
            gate: Arc::new(CommitGate::new(state.version)),
            state,
            tables: BTreeMap::new(),
            schema: Arc::default(),
            checkpointer,
            churn: BTreeMap::new(),
            broken: false,
        };
        writer.install(catalog);
        writer.name_tables()?;
        Ok(writer)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Shared with readers that must start at one version.
    #[must_use]
    pub fn gate(&self) -> Arc<CommitGate> {
        Arc::clone(&self.gate)
    }

    #[must_use]
    pub fn version(&self) -> Version {
        self.gate.version()
    }

    /// Upstream commit time of [`Writer::version`], microseconds since the Unix epoch; 0 right after the initial copy.
    #[must_use]
    pub fn commit_time_us(&self) -> i64 {
        self.state.commit_time_us
    }

    #[must_use]
    pub fn schema(&self) -> Arc<Schema> {
        Arc::clone(&self.schema)
    }

    /// Upstream descriptions of all replicated tables.
    #[must_use]
    pub fn specs(&self) -> Vec<Arc<TableSpec>> {
        self.tables.values().map(|t| Arc::clone(&t.layout.spec)).collect()
    }

    /// Applies whole upstream transactions, in order, in one commit, and returns the net change from the version before the
    /// first to the version of the last. Transactions that are applied already are skipped; `None` if all are. After an error the
    /// replica is as it was before the call.
    pub fn apply(&mut self, transactions: &[Transaction]) -> Result<Option<Arc<Batch>>, Error> {
        self.apply_when(transactions, || true)
    }

    /// Like [`Writer::apply`], asking `may_commit` when only the commit is left: readers see nothing before it returns. If it says
    /// no, the call fails with [`Error::Withheld`].
    pub fn apply_when(
        &mut self,
        transactions: &[Transaction],
        may_commit: impl FnOnce() -> bool,
    ) -> Result<Option<Arc<Batch>>, Error> {
        let previous = self.state.version;
        let new = transactions.iter().position(|t| t.version > previous).map_or(&[][..], |from| &transactions[from..]);
        if new.is_empty() {
            return if may_commit() { Ok(None) } else { Err(Error::Withheld) };
        }
        let commit_time_us =
            new.iter().map(|t| t.commit_time_us).max().unwrap_or_default().max(self.state.commit_time_us);
        let result = self.transact(|writer| {
            let mut pass = Pass { net: Net::default(), schema_changed: false };
            let mut version = previous;
            for transaction in new {
                if transaction.version <= version {
                    return Err(Fault::diverged(format!(
                        "transaction {} follows {version} in the stream",
                        transaction.version
                    )));
                }
                version = transaction.version;
                for change in &transaction.changes {
                    writer.change(&mut pass, change, version)?;
                }
            }
            writer.state.version = version;
            writer.state.commit_time_us = commit_time_us;
            if pass.schema_changed {
                names::renew(&writer.conn, &writer.specs())?;
                writer.state.schema_epoch += 1;
                writer.state.stats_epoch += 1;
            }
            writer.analyze()?;
            if may_commit() { Ok(pass) } else { Err(Fault::Withheld) }
        });
        let pass = result.map_err(|fault| self.undo(fault))?;
        let schema = if pass.schema_changed {
            self.conn.flush_prepared_statement_cache();
            self.publish();
            Some(self.schema())
        } else {
            None
        };
        self.checkpointer.after_commit(&self.conn, &self.gate);
        Ok(Some(Arc::new(Batch {
            version: self.state.version,
            previous,
            commit_time_us,
            tables: pass.net.finish(),
            schema,
        })))
    }

    /// Makes sure that rows of a table can be found by these visible columns without reading the whole table. For columns that
    /// queries correlate on and that upstream has no index for. `false` if such an index exists already, or there are too many.
    /// Takes a second for about a million rows.
    pub fn ensure_index(&mut self, table: &str, columns: &[&str]) -> Result<bool, Error> {
        let Some(layout) =
            self.tables.values().map(|t| &t.layout).find(|l| l.table.as_ref().is_ok_and(|t| &*t.name == table))
        else {
            return Ok(false);
        };
        let Ok(visible) = &layout.table else { return Ok(false) };
        let Some(positions) = columns.iter().map(|c| visible.position(c)).collect::<Option<Vec<usize>>>() else {
            return Ok(false);
        };
        let served = |index: &[usize]| {
            index.len() >= positions.len() && positions.iter().all(|p| index[..positions.len()].contains(p))
        };
        if positions.is_empty() || served(&visible.key) || visible.indexes.iter().any(|i| served(i)) {
            return Ok(false);
        }
        let (name, sql) = layout.extra_index(&positions);
        let oid = layout.spec.oid;
        if alter::indexes(&self.conn, oid).at(&self.path, "list indexes")?.contains(&name) {
            return Ok(false);
        }
        let own = self.conn.query_row(COUNT_OWN_INDEXES, [], |row| row.get::<_, i64>(0));
        if own.at(&self.path, "count indexes")? >= OWN_INDEXES_MAX {
            tracing::warn!(table, ?columns, "the replica has too many indexes of its own: create this one upstream");
            return Ok(false);
        }
        tracing::info!(table, ?columns, "creating an index that upstream does not have");
        self.transact(|writer| {
            writer.conn.execute_batch(&sql)?;
            writer.conn.execute_batch(&format!("PRAGMA analysis_limit = 1000; ANALYZE {name}"))?;
            writer.state.stats_epoch += 1;
            Ok(())
        })
        .map_err(|fault| self.undo(fault))?;
        self.checkpointer.after_commit(&self.conn, &self.gate);
        Ok(true)
    }

    /// Has `keeper` asked before the WAL is cut, from now on.
    pub fn keep_wal(&mut self, keeper: Box<dyn WalKeeper>) -> Result<(), Error> {
        self.checkpointer.keep(&self.conn, &self.gate, keeper).at(&self.path, "find the end of the WAL")
    }

    /// Where the WAL ends; what it says is known once [`Writer::keep_wal`] was called.
    #[must_use]
    pub fn wal_end(&self) -> Arc<WalEnd> {
        self.checkpointer.end()
    }

    /// Moves everything from the WAL into the file, as far as readers allow; for a clean end.
    pub fn checkpoint(&mut self) -> Result<(), Error> {
        self.checkpointer.truncate(&self.conn, &self.gate).at(&self.path, "checkpoint")?;
        Ok(())
    }

    /// For a file of a release that did not.
    fn name_tables(&mut self) -> Result<(), Error> {
        let specs = self.specs();
        if names::are_current(&self.conn, &specs).at(&self.path, "read the names of tables")? {
            return Ok(());
        }
        self.transact(|writer| names::renew(&writer.conn, &specs)).map_err(|fault| self.undo(fault))
    }

    fn transact<T>(&mut self, body: impl FnOnce(&mut Writer) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.broken {
            return Err(std::io::Error::other("it failed before; open it again").into());
        }
        self.conn.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let value = body(self)?;
        meta::write_state(&self.conn, &self.state)?;
        let gate = Arc::clone(&self.gate);
        gate.commit(|| {
            self.conn.prepare_cached("COMMIT")?.execute([])?;
            Ok::<_, Fault>(self.state.version)
        })?;
        Ok(value)
    }

    /// Rolls back to the last commit, in the file and in memory.
    fn undo(&mut self, fault: Fault) -> Error {
        if !self.conn.is_autocommit()
            && let Err(e) = self.conn.execute_batch("ROLLBACK")
        {
            tracing::warn!(error = %e, "rollback failed");
        }
        self.conn.flush_prepared_statement_cache();
        match meta::read_state(&self.conn).and_then(|state| Ok((state, meta::read_catalog(&self.conn)?))) {
            Ok((state, catalog)) => {
                self.state = state;
                self.install(catalog);
            }
            Err(e) => {
                tracing::warn!(error = %e, "reading the last commit back failed");
                self.broken = true;
            }
        }
        fault.at(&self.path, "apply transactions")
    }

    fn install(&mut self, catalog: Catalog) {
        self.tables = catalog.layouts.into_iter().map(|(oid, layout)| (oid, TableWriter::new(layout))).collect();
        for (table, reason) in &catalog.schema.hidden {
            tracing::warn!(%table, %reason, "table is replicated but cannot be queried");
        }
        self.schema = catalog.schema;
    }

    /// Derives the schema from the tables as they are now.
    fn publish(&mut self) {
        let layouts = self.tables.iter().map(|(&oid, t)| (oid, Arc::clone(&t.layout))).collect();
        let schema = Catalog::new(layouts).schema;
        for (table, reason) in &schema.hidden {
            if !self.schema.hidden.contains_key(table) {
                tracing::warn!(%table, %reason, "table is replicated but cannot be queried");
            }
        }
        self.schema = schema;
    }

    fn change(&mut self, pass: &mut Pass, change: &Change, version: Version) -> Result<(), Fault> {
        match change {
            Change::Insert { table, new } => {
                let (conn, writer) = self.table(table)?;
                let step = writer.insert(conn, new, version)?;
                record(&mut pass.net, writer, step);
                reset_collided(&mut pass.net, writer);
                *self.churn.entry(table.oid).or_default() += 1;
            }
            Change::Update { table, key, new } => {
                let (conn, writer) = self.table(table)?;
                for step in writer.update(conn, key.as_deref(), new, version)? {
                    record(&mut pass.net, writer, step);
                }
                reset_collided(&mut pass.net, writer);
            }
            Change::Delete { table, key } => {
                let (conn, writer) = self.table(table)?;
                let step = writer.delete(conn, key)?;
                record(&mut pass.net, writer, step);
                *self.churn.entry(table.oid).or_default() += 1;
            }
            Change::Truncate { tables } => {
                for table in tables {
                    let (conn, writer) = self.table(table)?;
                    writer.truncate(conn)?;
                    if let Some(visible) = writer.table() {
                        pass.net.reset(table.oid, visible);
                    }
                }
            }
            Change::Schema(change) => {
                // A prepared statement of the old shape must not outlive it.
                self.conn.flush_prepared_statement_cache();
                self.schema_change(pass, change, version)?;
                pass.schema_changed = true;
            }
        }
        Ok(())
    }

    fn schema_change(&mut self, pass: &mut Pass, change: &SchemaChange, version: Version) -> Result<(), Fault> {
        match change {
            SchemaChange::CreateTable { table, .. } => names::release(&self.conn, table.oid)?,
            SchemaChange::DropTable { table } => names::release(&self.conn, table.oid)?,
            SchemaChange::AlterTable { old, .. } => names::release(&self.conn, old.oid)?,
        }
        match change {
            SchemaChange::CreateTable { table, rows } => {
                let layout = alter::create(&self.conn, table, rows, version)?;
                self.replace(pass, layout, Effect::Contents);
            }
            SchemaChange::DropTable { table } => {
                alter::drop_table(&self.conn, table.oid)?;
                self.churn.remove(&table.oid);
                if let Some(visible) = self.tables.remove(&table.oid).and_then(|t| t.table().cloned()) {
                    pass.net.remove(table.oid, &visible);
                }
            }
            SchemaChange::AlterTable { old, new, added, rows } => {
                let before = self.tables.get(&old.oid).map(|t| Arc::clone(&t.layout)).ok_or_else(|| unknown(old))?;
                let (layout, effect) = alter::alter(&self.conn, &before, new, added, rows, version)?;
                self.replace(pass, layout, effect);
            }
        }
        Ok(())
    }

    fn replace(&mut self, pass: &mut Pass, layout: Arc<Layout>, effect: Effect) {
        let oid = layout.spec.oid;
        *self.churn.entry(oid).or_default() += 1;
        let old = self.tables.insert(oid, TableWriter::new(Arc::clone(&layout))).and_then(|t| t.table().cloned());
        let new = layout.table.as_ref().ok();
        if let Some(old) = &old
            && new.is_none_or(|new| new.name != old.name)
        {
            pass.net.remove(oid, old);
        }
        match (new, effect) {
            (Some(new), Effect::Contents) => pass.net.reset(oid, new),
            (Some(new), Effect::Description) => pass.net.redescribe(oid, new),
            (None, _) => {}
        }
    }

    fn table(&mut self, spec: &Arc<TableSpec>) -> Result<(&Connection, &mut TableWriter), Fault> {
        let writer = self.tables.get_mut(&spec.oid).ok_or_else(|| unknown(spec))?;
        writer.check(spec)?;
        Ok((&self.conn, writer))
    }

    /// Takes new statistics of tables that grew or shrank by half.
    fn analyze(&mut self) -> Result<(), Fault> {
        for (&oid, churn) in &mut self.churn {
            if *churn < 1000 {
                continue;
            }
            let known: u64 = self
                .conn
                .prepare_cached("SELECT CAST(substr(stat, 1, instr(stat || ' ', ' ')) AS INTEGER) FROM sqlite_stat1 WHERE tbl = ? LIMIT 1")?
                .query_row([crate::layout::table_name(oid)], |row| row.get::<_, i64>(0))
                .map_or(0, |n| n as u64);
            if *churn > known / 2 {
                *churn = 0;
                self.conn.execute_batch(&format!(
                    "PRAGMA analysis_limit = 1000; ANALYZE {}",
                    crate::layout::table_name(oid)
                ))?;
                self.state.stats_epoch += 1;
            }
        }
        Ok(())
    }
}

fn record(net: &mut Net, writer: &TableWriter, (old, new): Step) {
    if let Some(table) = writer.table()
        && (old.is_some() || new.is_some())
    {
        net.record(writer.layout.spec.oid, table, old, new);
    }
}

/// Where rows had one key for a moment, what is known of the table's changes is not their difference.
fn reset_collided(net: &mut Net, writer: &mut TableWriter) {
    if std::mem::take(&mut writer.collided)
        && let Some(table) = writer.table()
    {
        net.reset(writer.layout.spec.oid, table);
    }
}

fn unknown(spec: &TableSpec) -> Fault {
    Fault::diverged(format!("table {} (oid {}) changed upstream but is not in the replica", spec.wire_name(), spec.oid))
}
