//! Assembles whole transactions from the messages of the stream, with the catalog as of each of them.
//!
//! Pure: bytes go in, transactions come out. What needs a look at the database (contents that cannot be derived from the stream)
//! is withheld ([`crate::withheld`]) until [`crate::backfill`] has read it.
//!
//! A transaction is held in memory until its commit, however large: it is applied wholly or not at all. Above
//! [`crate::Options::transaction_bytes_warn`] a line in the log says so.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use rows::transaction::{Backfill, SchemaChange};
use rows::{Cell, Change, TableSpec, Transaction, Version};

use crate::catalog::{Catalog, Published};
use crate::ddl;
use crate::decode::{self, Kind};
use crate::diff::diff;
use crate::limit::{Limit, Place, Room};
use crate::pgoutput::{Datum, Message, Old, Relation, Tuple, parse};
use crate::reader::Malformed;
use crate::schema::{Difference, Schema};
use crate::telling::{self, Telling, Told};
use crate::withheld::Withheld;
use crate::{Error, Result};

pub(crate) struct Assembler {
    telling: Telling,
    bytes_warn: usize,
    row_bytes_max: usize,
    /// What is being read.
    place: Place,
    pub schema: Schema,
    pub withheld: Withheld,
    /// The table whose rows are events, once it was described.
    events: Option<u32>,
    relations: HashMap<u32, Relation>,
    mapped: HashMap<u32, Arc<Mapped>>,
    open: Option<Open>,
    /// The last transaction that was seen.
    seen: Version,
    warned: HashSet<String>,
    /// Columns whose values made rows be left out, by table and number.
    left_out: HashSet<(u32, i16)>,
}

struct Open {
    version: Version,
    /// It was seen already: nothing of it counts.
    is_repeated: bool,
    commit_time_us: i64,
    changes: Vec<Change>,
    xid: u32,
    bytes: usize,
    described: BTreeSet<u32>,
    is_withheld_changed: bool,
    rewritten: BTreeSet<u32>,
    /// Changes of tables whose description comes later in the transaction (CREATE TABLE AS writes rows first).
    waiting: Vec<(u32, Vec<u8>)>,
}

/// A committed transaction.
pub(crate) struct Finished {
    pub transaction: Transaction,
    /// Approximate memory.
    pub bytes: usize,
    /// Tables that were described, or ceased to be published.
    pub described: BTreeSet<u32>,
    /// Whether what is withheld differs from before.
    pub is_withheld_changed: bool,
}

/// How the tuples of one table are decoded.
struct Mapped {
    spec: Arc<TableSpec>,
    kinds: Vec<Kind>,
    limit: Limit,
    /// Positions of the identity's columns in a tuple.
    identity: Vec<usize>,
}

impl Assembler {
    /// `withheld` is as remembered, `horizon` as in [`Withheld::restore`].
    pub(crate) fn new(
        telling: Telling,
        (bytes_warn, row_bytes_max): (usize, usize),
        schema: Schema,
        withheld: &str,
        horizon: u64,
        seen: Version,
    ) -> Result<Assembler> {
        let withheld = Withheld::restore(withheld, &schema, horizon)?;
        let warned = schema.catalog.warnings.iter().cloned().collect();
        Ok(Assembler {
            telling,
            bytes_warn,
            row_bytes_max,
            place: Place::default(),
            schema,
            withheld,
            events: None,
            relations: HashMap::new(),
            mapped: HashMap::new(),
            open: None,
            seen,
            warned,
            left_out: HashSet::new(),
        })
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.schema.catalog
    }

    /// Whether the stream is between two transactions.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_none()
    }

    /// Takes one message of the stream; returns a transaction when it is complete.
    pub(crate) fn message(&mut self, bytes: &[u8]) -> Result<Option<Finished>> {
        match parse(bytes)? {
            Message::Begin { commit_lsn, commit_time_us, xid } => {
                if self.open.is_some() {
                    return Err(out_of_order());
                }
                let version = Version::new(commit_lsn);
                self.place.at(version);
                self.open = Some(Open {
                    version,
                    is_repeated: version <= self.seen,
                    commit_time_us,
                    changes: Vec::new(),
                    xid,
                    bytes: 0,
                    described: BTreeSet::new(),
                    is_withheld_changed: false,
                    rewritten: BTreeSet::new(),
                    waiting: Vec::new(),
                });
            }
            Message::Commit { commit_lsn, .. } => return self.commit(commit_lsn),
            Message::Relation(relation) => {
                self.mapped.remove(&relation.oid);
                if relation.name == ddl::EVENTS && relation.schema == self.telling.shard_schema {
                    self.events = Some(relation.oid);
                } else if self.events == Some(relation.oid) {
                    self.events = None;
                }
                self.relations.insert(relation.oid, relation);
            }
            _ if self.open.as_ref().is_some_and(|open| open.is_repeated) => {}
            Message::Logical { transactional: true, prefix, content } if prefix == self.telling.message_prefix => {
                let version = self.open()?.version;
                if version < self.telling.messages_until {
                    self.told(content)?;
                } else {
                    self.warn_once(
                        "a logical message claims to tell of a schema change; it is not ours and has no effect",
                    );
                }
            }
            Message::Logical { .. } | Message::Ignored => {}
            message @ (Message::Insert { .. } | Message::Update { .. } | Message::Delete { .. }) => {
                self.row(message, bytes)?
            }
            Message::Truncate { oids } => self.truncate(&oids)?,
        }
        Ok(None)
    }

    fn open(&mut self) -> Result<&mut Open> {
        self.open.as_mut().ok_or_else(out_of_order)
    }

    fn row(&mut self, message: Message<'_>, bytes: &[u8]) -> Result<()> {
        let (Message::Insert { oid, .. } | Message::Update { oid, .. } | Message::Delete { oid, .. }) = message else {
            return Ok(());
        };
        if self.events == Some(oid) {
            // They are removed at once, which means nothing.
            return if let Message::Insert { new, .. } = message { self.event(oid, new) } else { Ok(()) };
        }
        if self.schema.catalog.excluded.contains(&oid) {
            return Ok(());
        }
        self.open()?;
        let is_withheld = self.withheld.contains(oid);
        if is_withheld && !self.withheld.keeps(oid) {
            return Ok(());
        }
        if !self.schema.catalog.tables.contains_key(&oid) {
            if !self.telling.watching {
                return Err(self.unknown_table(oid));
            }
            self.open()?.waiting.push((oid, bytes.to_vec()));
            return Ok(());
        }
        let table = self.mapped(oid)?;
        let (change, size) = match table.change(&message) {
            Ok(change) => change,
            Err(NoChange::Malformed(e)) => return Err(e.within(format!("table {}", table.spec.wire_name())).into()),
            Err(NoChange::Unreadable { column, reason }) => {
                self.tell_left_out(&table, column, &reason);
                match table.removal(&message) {
                    Some(change) => (change, std::mem::size_of::<Change>()),
                    None => return Ok(()),
                }
            }
        };
        if is_withheld {
            self.withheld.keep(oid, change, size);
            return Ok(());
        }
        let bytes_warn = self.bytes_warn;
        let open = self.open()?;
        if open.bytes <= bytes_warn && open.bytes + size > bytes_warn {
            tracing::warn!(
                version = %open.version,
                mebibytes = bytes_warn >> 20,
                "an upstream transaction is larger than the limit; it is assembled in memory all the same"
            );
        }
        open.bytes += size;
        open.changes.push(change);
        Ok(())
    }

    /// Once for each column: the values themselves are not for the log.
    fn tell_left_out(&mut self, table: &Mapped, column: usize, reason: &Malformed) {
        let column = &table.spec.columns[column];
        if self.left_out.insert((table.spec.oid, column.attnum)) {
            let (table, column, remedy) = (table.spec.wire_name(), &column.name, fault::path::UNREADABLE.remedy);
            tracing::warn!(table, column, %reason, remedy, "rows with a value that cannot be represented are left out");
        }
    }

    fn truncate(&mut self, oids: &[u32]) -> Result<()> {
        self.open()?;
        let mut tables = Vec::new();
        for oid in oids {
            if self.events == Some(*oid) || self.schema.catalog.excluded.contains(oid) {
                continue;
            }
            match self.schema.catalog.tables.get(oid) {
                Some(table) if self.withheld.contains(*oid) => {
                    if self.withheld.keeps(*oid) {
                        let change = Change::Truncate { tables: vec![Arc::clone(&table.spec)] };
                        self.withheld.keep(*oid, change, std::mem::size_of::<Change>());
                    }
                }
                Some(table) => tables.push(Arc::clone(&table.spec)),
                // Created in this transaction and described later: it is empty at that point.
                None if self.telling.watching => {}
                None => return Err(self.unknown_table(*oid)),
            }
        }
        if !tables.is_empty() {
            self.open()?.changes.push(Change::Truncate { tables });
        }
        Ok(())
    }

    fn unknown_table(&self, oid: u32) -> Error {
        let name =
            self.relations.get(&oid).map_or_else(|| format!("with oid {oid}"), |r| format!("{}.{}", r.schema, r.name));
        Error::reset(format!(
            "table {name} is published now and was not before, and its creation was not reported{}",
            self.without_triggers()
        ))
    }

    fn without_triggers(&self) -> &'static str {
        if self.telling.watching {
            ""
        } else {
            "; the role may not create event triggers, so schema changes cannot be followed"
        }
    }

    fn mapped(&mut self, oid: u32) -> Result<Arc<Mapped>> {
        if let Some(mapped) = self.mapped.get(&oid) {
            return Ok(Arc::clone(mapped));
        }
        let relation = self
            .relations
            .get(&oid)
            .ok_or_else(|| Error::Garbled { message: format!("a row of oid {oid} whose table was not described") })?;
        let table = self.schema.catalog.tables.get(&oid).ok_or_else(|| self.unknown_table(oid))?;
        let mapped = Arc::new(self.map(relation, table)?);
        self.mapped.insert(oid, Arc::clone(&mapped));
        Ok(mapped)
    }

    fn map(&self, relation: &Relation, table: &Published) -> Result<Mapped> {
        let spec = &table.spec;
        let same = relation.name == spec.name
            && relation.schema == spec.schema
            && relation.columns.len() == spec.columns.len()
            && relation.columns.iter().zip(&spec.columns).all(|(r, c)| r.name == c.name && r.type_oid == c.type_oid);
        if !same {
            return Err(Error::reset(format!(
                "table {} changed its shape to {} without report{}",
                spec.wire_name(),
                relation.name,
                self.without_triggers()
            )));
        }
        let identity = spec
            .identity
            .iter()
            .map(|name| spec.columns.iter().position(|c| c.name == *name).expect("the catalog lists identity columns"))
            .collect();
        let kinds = table.columns.iter().map(|c| c.kind).collect();
        let limit = Limit::new(table, self.row_bytes_max, self.place.clone());
        Ok(Mapped { spec: Arc::clone(spec), kinds, limit, identity })
    }

    /// A row of the table of events.
    fn event(&mut self, oid: u32, row: Tuple<'_>) -> Result<()> {
        let relation = self.relations.get(&oid);
        let column = relation.and_then(|r| r.columns.iter().position(|c| c.name == ddl::EVENT));
        let mut data = row.data();
        let mut at = 0;
        while at < row.count {
            let datum = data.next()?;
            if Some(at) == column
                && let Datum::Text(content) = datum
            {
                return self.told(content);
            }
            at += 1;
        }
        self.warn_once("the table of schema changes has another shape than expected; its rows have no effect");
        Ok(())
    }

    /// What is said about the schema, by whom may say it.
    fn told(&mut self, content: &[u8]) -> Result<()> {
        match telling::read(content) {
            None => Ok(()),
            Some(Told::Tables { tag, difference }) => self.schema_changed(&tag, difference),
            Some(Told::Schema { tag, json }) => match self.schema.difference_to(&json) {
                Ok(difference) => self.schema_changed(&tag, difference),
                Err(error) => {
                    tracing::error!(%error, "a schema change cannot be read; it has no effect");
                    Ok(())
                }
            },
            Some(Told::Rewrite { tables }) => {
                self.open()?.rewritten.extend(tables);
                Ok(())
            }
            Some(Told::HandedBack) => Err(Error::reset(
                "Rocicorp's zero-cache has begun to use this application and shard, and schema changes are told to that server now",
            )),
            Some(Told::Failure { tag, message }) => {
                Err(Error::reset(format!("the trigger at {tag} could not record a schema change: {message}")))
            }
        }
    }

    fn warn_once(&mut self, warning: &str) {
        if self.warned.insert(warning.to_owned()) {
            tracing::warn!("{warning}");
        }
    }

    fn schema_changed(&mut self, tag: &str, difference: Difference) -> Result<()> {
        let described = difference.oids();
        let mut new = match self.schema.changed(difference) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(%error, tag, "a schema change cannot be read; it has no effect");
                return Ok(());
            }
        };
        for warning in &new.catalog.warnings {
            if self.warned.insert(warning.clone()) {
                tracing::warn!("{warning}");
            }
        }
        self.keep_equal_specs(&mut new.catalog);
        let rewritten = std::mem::take(&mut self.open()?.rewritten);
        let steps = diff(self.catalog(), &new.catalog, tag, &rewritten);
        let before = std::mem::replace(&mut self.schema, new);
        self.mapped.clear();
        for step in steps {
            tracing::info!(tag, change = %describe(&step.change), reread = step.reread, "schema change upstream");
            let change = if step.reread || self.withheld.contains(step.oid) {
                self.withheld.withhold(step.oid, &step.change, before.text(step.oid))
            } else {
                Some(step.change)
            };
            let open = self.open()?;
            open.changes.extend(change.map(Change::Schema));
        }
        let open = self.open()?;
        // A rewrite is reported before the new shape; tables without a new shape are seen to at the commit.
        open.described.extend(described);
        let waiting = std::mem::take(&mut open.waiting);
        for (_, bytes) in waiting {
            self.message(&bytes)?;
        }
        Ok(())
    }

    /// Equal specs share one allocation, so that receivers can compare pointers.
    fn keep_equal_specs(&self, new: &mut Catalog) {
        for (oid, table) in &mut new.tables {
            if let Some(old) = self.schema.catalog.tables.get(oid)
                && old.spec == table.spec
            {
                table.spec = Arc::clone(&old.spec);
            }
        }
    }

    fn commit(&mut self, commit_lsn: u64) -> Result<Option<Finished>> {
        if self.open()?.is_repeated {
            self.open = None;
            return Ok(None);
        }
        let rewritten = std::mem::take(&mut self.open()?.rewritten);
        for oid in rewritten {
            let Some(table) = self.schema.catalog.tables.get(&oid) else { continue };
            let change = SchemaChange::AlterTable {
                old: Arc::clone(&table.spec),
                new: Arc::clone(&table.spec),
                added: Vec::new(),
                rows: Backfill::None,
            };
            let hidden = self.withheld.withhold(oid, &change, self.schema.text(oid));
            let open = self.open()?;
            open.changes.extend(hidden.map(Change::Schema));
            open.is_withheld_changed = true;
        }
        let mut open = self.open.take().ok_or_else(out_of_order)?;
        if open.version.as_u64() != commit_lsn {
            return Err(Error::Garbled {
                message: "the end of a transaction does not belong to its beginning".to_owned(),
            });
        }
        if let Some((oid, _)) = open.waiting.first() {
            return Err(self.unknown_table(*oid));
        }
        self.withheld.committed(open.xid);
        let (completed, bytes) = self.withheld.complete(commit_lsn, &self.schema.catalog);
        open.is_withheld_changed |= !completed.is_empty();
        open.changes.extend(completed);
        open.bytes += bytes;
        self.seen = open.version;
        Ok(Some(Finished {
            transaction: Transaction {
                version: open.version,
                commit_time_us: open.commit_time_us,
                changes: open.changes,
            },
            bytes: open.bytes,
            described: open.described,
            is_withheld_changed: open.is_withheld_changed,
        }))
    }
}

fn out_of_order() -> Error {
    Error::Garbled { message: "changes outside of a transaction".to_owned() }
}

fn describe(change: &SchemaChange) -> String {
    match change {
        SchemaChange::CreateTable { table, .. } => format!("new table {}", table.wire_name()),
        SchemaChange::DropTable { table } => format!("table {} is gone", table.wire_name()),
        SchemaChange::AlterTable { old, new, .. } if old.wire_name() != new.wire_name() => {
            format!("table {} is now {}", old.wire_name(), new.wire_name())
        }
        SchemaChange::AlterTable { new, .. } => format!("table {} altered", new.wire_name()),
    }
}

/// Why a message does not become a change.
enum NoChange {
    Malformed(Malformed),
    /// The value in this column cannot be represented.
    Unreadable {
        column: usize,
        reason: Malformed,
    },
}

impl From<Malformed> for NoChange {
    fn from(error: Malformed) -> NoChange {
        NoChange::Malformed(error)
    }
}

impl Mapped {
    fn change(&self, message: &Message<'_>) -> std::result::Result<(Change, usize), NoChange> {
        let table = Arc::clone(&self.spec);
        let mut size = 0;
        let change = match *message {
            Message::Insert { new, .. } => {
                let new = self.cells(new, &mut size)?;
                if new.contains(&Cell::Unchanged) {
                    return Err(Malformed::new("a new row lacks a value").into());
                }
                Change::Insert { table, new }
            }
            Message::Update { old, new, .. } => {
                let mut new = self.cells(new, &mut size)?;
                let key = match old {
                    None => None,
                    Some(Old::Key(tuple)) => Some(self.key(tuple, &mut size)?),
                    Some(Old::Full(tuple)) => {
                        let old = self.cells(tuple, &mut size)?;
                        for (cell, old) in new.iter_mut().zip(&old) {
                            if *cell == Cell::Unchanged {
                                *cell = old.clone();
                            }
                        }
                        Some(self.pick(old))
                    }
                };
                Change::Update { table, key, new }
            }
            Message::Delete { old: Old::Key(tuple), .. } => Change::Delete { table, key: self.key(tuple, &mut size)? },
            Message::Delete { old: Old::Full(tuple), .. } => {
                Change::Delete { table, key: self.pick(self.cells(tuple, &mut size)?) }
            }
            _ => return Err(Malformed::new("not a change of a row").into()),
        };
        Ok((change, size + std::mem::size_of::<Change>()))
    }

    /// What remains of a change with a value that cannot be represented: the row is not there any more, as far as its key tells.
    fn removal(&self, message: &Message<'_>) -> Option<Change> {
        let (Message::Update { old: Some(Old::Key(tuple) | Old::Full(tuple)), .. }
        | Message::Update { old: None, new: tuple, .. }) = *message
        else {
            return None;
        };
        let key = self.key(tuple, &mut 0).ok()?;
        Some(Change::Delete { table: Arc::clone(&self.spec), key })
    }

    fn check(&self, tuple: Tuple<'_>) -> std::result::Result<(), Malformed> {
        if tuple.count == self.kinds.len() {
            return Ok(());
        }
        Err(Malformed::new(format!("a row has {} columns instead of {}", tuple.count, self.kinds.len())))
    }

    fn cells(&self, tuple: Tuple<'_>, size: &mut usize) -> std::result::Result<Vec<Cell>, NoChange> {
        self.check(tuple)?;
        let mut data = tuple.data();
        let mut cells = Vec::with_capacity(self.kinds.len());
        let mut room = self.limit.row();
        for (i, kind) in self.kinds.iter().enumerate() {
            let cell = self.cell(i, *kind, data.next()?, &mut room)?;
            *size += cell_size(&cell);
            cells.push(cell);
        }
        Ok(cells)
    }

    #[inline]
    fn cell(
        &self,
        column: usize,
        kind: Kind,
        datum: Datum<'_>,
        room: &mut Room,
    ) -> std::result::Result<Cell, NoChange> {
        match datum {
            Datum::Null => Ok(Cell::Null),
            Datum::Unchanged => Ok(Cell::Unchanged),
            Datum::Text(bytes) if !self.limit.admits(room, column, bytes.len()) => {
                Ok(self.limit.stand_in(column, bytes.len()).into())
            }
            Datum::Text(bytes) => decode::text(kind, bytes).map_err(|reason| NoChange::Unreadable { column, reason }),
        }
    }

    /// The identity columns of a key tuple, in the identity's order. Its other columns read as null and mean nothing.
    fn key(&self, tuple: Tuple<'_>, size: &mut usize) -> std::result::Result<Vec<Cell>, NoChange> {
        self.check(tuple)?;
        let mut data = tuple.data();
        let mut room = self.limit.row();
        let mut key = vec![Cell::Null; self.identity.len()];
        for (i, kind) in self.kinds.iter().enumerate() {
            let datum = data.next()?;
            if let Some(position) = self.identity.iter().position(|&p| p == i) {
                key[position] = self.cell(i, *kind, datum, &mut room)?;
                *size += cell_size(&key[position]);
            }
        }
        Ok(key)
    }

    fn pick(&self, mut cells: Vec<Cell>) -> Vec<Cell> {
        self.identity.iter().map(|&i| std::mem::replace(&mut cells[i], Cell::Null)).collect()
    }
}

fn cell_size(cell: &Cell) -> usize {
    std::mem::size_of::<Cell>()
        + match cell {
            Cell::Text(text) => text.len(),
            Cell::Bytes(bytes) => bytes.len(),
            _ => 0,
        }
}
