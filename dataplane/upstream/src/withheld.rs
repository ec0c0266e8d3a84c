//! Tables whose contents are read anew beside the stream. Until such a table is whole, the receivers have it as it was, or not at
//! all; then its new shape, its contents and what was changed meanwhile come in one transaction, and everything else goes on.
//!
//! Pure: knows no connection. [`crate::backfill`] reads, under a snapshot that tells exactly which transactions are in the
//! contents. The stream's transactions carry their ids, so none is lost and none is applied twice:
//!
//! ```text
//! stream:    C wants contents | ... dropped ... | reading begins | ... kept, by transaction ... | first commit past the fence
//! snapshot:                     sees all of these                  sees some of these             emits contents + what it did not see
//! ```
//!
//! Invariants:
//! - A reading counts only if its snapshot sees every transaction that the stream delivered before it began ([`Begun::delivered`]).
//! - A schema change of the table makes a reading under way worthless.
//! - The table is emitted at a commit that comes after every transaction that the snapshot sees.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::str::FromStr;
use std::sync::Arc;

use rows::transaction::{Backfill, SchemaChange};
use rows::{Cell, Change, CopyBlock, TableSpec};
use serde_json::value::RawValue;

use crate::catalog::{Catalog, Published};
use crate::schema::Schema;
use crate::{Error, Result};

/// Ids of delivered transactions that are remembered. Postgres shows a transaction as running for a moment after its commit is in
/// the log; under synchronous replication that may be long, but then each holds a connection.
const DELIVERED_MAX: usize = 1 << 16;

/// Which transactions a snapshot sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// All below are over.
    min: u64,
    /// Those from here on had not begun.
    max: u64,
    running: BTreeSet<u64>,
}

impl Snapshot {
    /// Whether the snapshot shows what the transaction did; it must have been committed by now. The stream tells the lower half
    /// of an id, which is within two thousand million of the snapshot's.
    pub(crate) fn sees(&self, xid: u32) -> bool {
        let id = self.max.wrapping_add_signed(i64::from(xid.wrapping_sub(self.max as u32) as i32));
        id < self.min || (id < self.max && !self.running.contains(&id))
    }
}

impl FromStr for Snapshot {
    type Err = Error;

    /// Reads what `pg_current_snapshot()` prints.
    fn from_str(text: &str) -> Result<Snapshot> {
        let parse = || -> Option<Snapshot> {
            let mut parts = text.split(':');
            let (min, max) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let running = parts.next()?.split(',').filter(|id| !id.is_empty()).map(|id| id.parse().ok());
            Some(Snapshot { min, max, running: running.collect::<Option<_>>()? })
        };
        parse().ok_or_else(|| Error::Garbled { message: "a snapshot in an unknown form".to_owned() })
    }
}

/// What the stream delivered before a reading began.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delivered {
    xids: Vec<u32>,
    /// Transactions of former streams have ids below this one.
    horizon: u64,
}

impl Delivered {
    /// Whether the snapshot shows all of it.
    pub(crate) fn is_seen_by(&self, snapshot: &Snapshot) -> bool {
        let are_former_over = snapshot.max >= self.horizon && snapshot.running.iter().all(|id| *id >= self.horizon);
        are_former_over && self.xids.iter().all(|xid| snapshot.sees(*xid))
    }
}

/// A reading that may begin.
#[derive(Debug)]
pub(crate) struct Begun {
    pub table: Published,
    pub delivered: Delivered,
    /// To be given back with the contents.
    pub generation: u64,
}

/// The whole table under a snapshot.
#[derive(Debug)]
pub(crate) struct Contents {
    pub snapshot: Snapshot,
    /// Whatever commits from this position on is not in it.
    pub fence: u64,
    pub blocks: Vec<CopyBlock>,
    pub bytes: usize,
}

#[derive(Debug)]
struct Shown {
    spec: Arc<TableSpec>,
    /// What it was read from, to be remembered.
    json: Box<RawValue>,
}

#[derive(Debug, Default)]
struct Table {
    /// As the receivers have it, if they do.
    shown: Option<Shown>,
    generation: u64,
    /// Changes by transaction since a reading began; `None` while there is no reading.
    kept: Option<Vec<(u32, Change)>>,
    kept_bytes: usize,
    contents: Option<Contents>,
}

impl Table {
    fn give_up(&mut self) {
        (self.kept, self.kept_bytes, self.contents) = (None, 0, None);
    }
}

/// All tables that are withheld, and what was delivered of the others.
#[derive(Debug, Default)]
pub(crate) struct Withheld {
    tables: BTreeMap<u32, Table>,
    /// Of the open transaction.
    changes: Vec<(u32, Change, usize)>,
    delivered: VecDeque<u32>,
    horizon: u64,
    generations: u64,
}

impl Withheld {
    /// As remembered by [`Withheld::remembered`]. `horizon` is above the ids of all transactions of former
    /// streams.
    pub(crate) fn restore(remembered: &str, schema: &Schema, horizon: u64) -> Result<Withheld> {
        let unreadable = |e| {
            Error::reset(format!("which tables' contents are to be read anew cannot be read from the database: {e}"))
        };
        let tables: BTreeMap<u32, Box<RawValue>> = serde_json::from_str(remembered).map_err(unreadable)?;
        let mut withheld = Withheld { horizon, ..Withheld::default() };
        for (oid, json) in tables {
            let shown = match json.get().as_bytes().first() {
                Some(b'{') => shown(json)?,
                Some(b'n') => None,
                // Another version's: the position up to which contents are ahead. Reading them again is right as well.
                _ => match schema.text(oid) {
                    Some(json) if schema.catalog.tables.contains_key(&oid) => shown(json.to_owned())?,
                    _ => continue,
                },
            };
            withheld.tables.insert(oid, Table { shown, ..Table::default() });
        }
        Ok(withheld)
    }

    /// By object id what the receivers have of each table, as JSON.
    pub(crate) fn remembered(&self) -> String {
        let shown = |table: &Table| table.shown.as_ref().map_or("null", |shown| shown.json.get()).to_owned();
        let tables: Vec<String> = self.tables.iter().map(|(oid, t)| format!("\"{oid}\":{}", shown(t))).collect();
        format!("{{{}}}", tables.join(","))
    }

    pub(crate) fn contains(&self, oid: u32) -> bool {
        self.tables.contains_key(&oid)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Memory for contents and changes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.tables.values().map(|t| t.kept_bytes + t.contents.as_ref().map_or(0, |c| c.bytes)).sum()
    }

    /// Withholds a table from the schema change `change` on, or once more. `before` is what the table before it was read from.
    /// Returns what is to be said to the receivers at once: a name that changes hides the table.
    pub(crate) fn withhold(
        &mut self,
        oid: u32,
        change: &SchemaChange,
        before: Option<&RawValue>,
    ) -> Option<SchemaChange> {
        self.changes.retain(|(of, ..)| *of != oid);
        let (old, new) = match change {
            SchemaChange::CreateTable { table, .. } => (None, table),
            SchemaChange::AlterTable { old, new, .. } => (Some(old), new),
            SchemaChange::DropTable { .. } => return self.forget(oid),
        };
        self.generations += 1;
        let table = self.tables.entry(oid).or_insert_with(|| {
            let shown = old.zip(before).map(|(old, json)| Shown { spec: Arc::clone(old), json: json.to_owned() });
            Table { shown, ..Table::default() }
        });
        table.generation = self.generations;
        table.give_up();
        let is_renamed = table.shown.as_ref().is_some_and(|shown| shown.spec.wire_name() != new.wire_name());
        let hidden = if is_renamed { table.shown.take() } else { None };
        hidden.map(|shown| SchemaChange::DropTable { table: shown.spec })
    }

    /// The table is gone. Returns what the receivers must be told, unless they do not know it.
    pub(crate) fn forget(&mut self, oid: u32) -> Option<SchemaChange> {
        self.changes.retain(|(of, ..)| *of != oid);
        let shown = self.tables.remove(&oid)?.shown?;
        Some(SchemaChange::DropTable { table: shown.spec })
    }

    /// Whether changes of the table are kept; others are not even decoded.
    pub(crate) fn keeps(&self, oid: u32) -> bool {
        self.tables.get(&oid).is_some_and(|t| t.kept.is_some())
    }

    /// A change of the open transaction.
    pub(crate) fn keep(&mut self, oid: u32, change: Change, bytes: usize) {
        self.changes.push((oid, change, bytes));
    }

    /// The open transaction is committed.
    pub(crate) fn committed(&mut self, xid: u32) {
        for (oid, change, bytes) in self.changes.drain(..) {
            let Some(table) = self.tables.get_mut(&oid) else { continue };
            let is_seen = table.contents.as_ref().is_some_and(|c| c.snapshot.sees(xid));
            if let Some(kept) = table.kept.as_mut().filter(|_| !is_seen) {
                kept.push((xid, change));
                table.kept_bytes += bytes;
            }
        }
        if self.delivered.len() >= DELIVERED_MAX {
            self.delivered.pop_front();
        }
        self.delivered.push_back(xid);
    }

    /// Tables that nobody reads.
    pub(crate) fn unread(&self) -> Vec<u32> {
        self.tables.iter().filter(|(_, t)| t.kept.is_none()).map(|(oid, _)| *oid).collect()
    }

    /// Whether some table is complete and waits for a commit.
    pub(crate) fn is_ready(&self) -> bool {
        self.tables.values().any(|t| t.contents.is_some())
    }

    /// From now on the table's changes are kept. Between two transactions only.
    pub(crate) fn begin(&mut self, oid: u32, catalog: &Catalog) -> Option<Begun> {
        let published = catalog.tables.get(&oid)?.clone();
        let table = self.tables.get_mut(&oid)?;
        table.give_up();
        table.kept = Some(Vec::new());
        let delivered = Delivered { xids: self.delivered.iter().copied().collect(), horizon: self.horizon };
        Some(Begun { table: published, delivered, generation: table.generation })
    }

    /// The reading came to nothing.
    pub(crate) fn give_up(&mut self, oid: u32, generation: u64) {
        if let Some(table) = self.tables.get_mut(&oid).filter(|t| t.generation == generation) {
            table.give_up();
        }
    }

    /// The reading is done. `false` if it is of no use any more.
    pub(crate) fn read(&mut self, oid: u32, generation: u64, contents: Contents) -> bool {
        let Some(table) = self.tables.get_mut(&oid).filter(|t| t.generation == generation && t.kept.is_some()) else {
            return false;
        };
        table.contents = Some(contents);
        true
    }

    /// What a commit at `position` completes: shapes, contents and the changes since, and their bytes.
    pub(crate) fn complete(&mut self, position: u64, catalog: &Catalog) -> (Vec<Change>, usize) {
        let is_complete = |t: &Table| t.contents.as_ref().is_some_and(|c| c.fence <= position);
        let oids: Vec<u32> = self.tables.iter().filter(|(_, t)| is_complete(t)).map(|(oid, _)| *oid).collect();
        let (mut changes, mut bytes) = (Vec::new(), 0);
        for oid in oids {
            let Some(Table { shown, kept, kept_bytes, contents: Some(contents), .. }) = self.tables.remove(&oid) else {
                continue;
            };
            let Some(published) = catalog.tables.get(&oid) else { continue };
            let new = Arc::clone(&published.spec);
            let count = contents.blocks.iter().map(CopyBlock::row_count).sum::<usize>();
            tracing::info!(table = new.wire_name(), rows = count, "the table's contents are read anew and complete");
            let rows = Backfill::Rows(
                contents.blocks.iter().flat_map(|b| (0..b.row_count()).map(|row| owned(b, row))).collect(),
            );
            changes.push(Change::Schema(match shown {
                None => SchemaChange::CreateTable { table: new, rows },
                Some(shown) => SchemaChange::AlterTable { old: shown.spec, new, added: Vec::new(), rows },
            }));
            let is_new = |(xid, _): &(u32, Change)| !contents.snapshot.sees(*xid);
            changes.extend(kept.into_iter().flatten().filter(is_new).map(|(_, change)| change));
            bytes += contents.bytes + kept_bytes;
        }
        (changes, bytes)
    }
}

/// `None` if what is described cannot be replicated, and therefore is not with the receivers.
fn shown(json: Box<RawValue>) -> Result<Option<Shown>> {
    let catalog = Catalog::parse(&format!("{{\"tables\":[{}]}}", json.get()))?;
    Ok(catalog.tables.into_values().next().map(|table| Shown { spec: table.spec, json }))
}

fn owned(block: &CopyBlock, row: usize) -> Vec<Cell> {
    (0..block.column_count()).map(|column| block.cell(row, column).into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rows::CellRef;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn a_snapshot_sees_what_was_over() {
        let s = snapshot("100:110:100,105");
        let seen: Vec<u32> = (98..113).filter(|xid| s.sees(*xid)).collect();
        assert_eq!(seen, [98, 99, 101, 102, 103, 104, 106, 107, 108, 109]);
        assert!(snapshot("7:7:").sees(6) && !snapshot("7:7:").sees(7));
        for bad in ["", "1", "1:2", "a:2:", "1:2:x"] {
            assert!(bad.parse::<Snapshot>().is_err(), "{bad}");
        }
    }

    /// Ids of the stream are the lower halves.
    #[test]
    fn ids_that_began_again_are_compared_rightly() {
        let epoch = 5_u64 << 32;
        let s = snapshot(&format!("{}:{}:{}", epoch - 2, epoch + 3, epoch + 1));
        for (xid, sees) in
            [(u32::MAX - 5, true), (u32::MAX, true), (0, true), (1, false), (2, true), (3, false), (9, false)]
        {
            assert_eq!(s.sees(xid), sees, "{xid}");
        }
    }

    #[test]
    fn a_reading_waits_for_what_was_delivered() {
        let delivered = Delivered { xids: vec![90, 104], horizon: 95 };
        for (text, is_seen) in [
            ("105:105:", true),
            ("104:105:104", false),
            ("104:104:", false),
            ("93:106:93", false),
            ("96:106:96", true),
            ("94:94:", false),
        ] {
            assert_eq!(delivered.is_seen_by(&snapshot(text)), is_seen, "{text}");
        }
    }

    fn schema(tables: &[(u32, &str, &str)]) -> Schema {
        let table = |(oid, name, column): &(u32, &str, &str)| {
            format!(
                r#"{{"oid":{oid},"schema":"public","name":"{name}","identity":"f","attributes":1,"conflict":false,"filter":null,
                "partitions":null,"columns":[{{"attnum":1,"name":"{column}","typeOid":23,"type":"int4","class":"b",
                "element":null,"dimensions":0,"notNull":true,"filled":false,"missing":null,"labels":null}}],"indexes":[]}}"#
            )
        };
        let json = format!("{{\"tables\":[{}]}}", tables.iter().map(table).collect::<Vec<_>>().join(","));
        Schema::parse(&json).unwrap()
    }

    fn altered(old: &Schema, new: &Schema) -> SchemaChange {
        let spec = |schema: &Schema| Arc::clone(&schema.catalog.tables[&7].spec);
        SchemaChange::AlterTable { old: spec(old), new: spec(new), added: Vec::new(), rows: Backfill::None }
    }

    fn insert(schema: &Schema, n: i64) -> Change {
        Change::Insert { table: Arc::clone(&schema.catalog.tables[&7].spec), new: vec![Cell::Int(n)] }
    }

    fn contents(text: &str, fence: u64, rows: &[i64]) -> Contents {
        let mut block = CopyBlock::new(1);
        rows.iter().for_each(|n| block.push(CellRef::Int(*n)));
        Contents { snapshot: snapshot(text), fence, blocks: vec![block], bytes: 0 }
    }

    fn inserted(changes: &[Change]) -> Vec<String> {
        let cell = |cells: &Vec<Cell>| format!("{:?}", cells[0]);
        let line = |change: &Change| match change {
            Change::Insert { new, .. } => format!("insert {}", cell(new)),
            Change::Schema(SchemaChange::AlterTable { rows: Backfill::Rows(rows), old, new, .. }) => format!(
                "{} to {} with {:?}",
                old.columns[0].name,
                new.columns[0].name,
                rows.iter().map(cell).collect::<Vec<_>>()
            ),
            Change::Schema(SchemaChange::CreateTable { rows: Backfill::Rows(rows), .. }) => {
                format!("new with {}", rows.len())
            }
            _ => "other".to_owned(),
        };
        changes.iter().map(line).collect()
    }

    #[test]
    fn a_table_comes_whole_with_what_its_snapshot_did_not_see() {
        let (old, new) = (schema(&[(7, "t", "a")]), schema(&[(7, "t", "b")]));
        let mut withheld = Withheld::default();
        assert!(withheld.withhold(7, &altered(&old, &new), old.text(7)).is_none());
        assert!(withheld.contains(7) && !withheld.keeps(7), "nobody reads yet");
        let begun = withheld.begin(7, &new.catalog).unwrap();
        for (xid, n) in [(20, 1), (21, 2), (22, 3)] {
            withheld.keep(7, insert(&new, n), 8);
            withheld.committed(xid);
        }
        assert!(withheld.read(7, begun.generation, contents("21:23:21", 500, &[1, 3])));
        assert!(
            withheld.complete(499, &new.catalog).0.is_empty(),
            "the snapshot sees what the stream has not brought yet"
        );
        // One that the snapshot sees, and one that it does not.
        for (xid, n) in [(19, 0), (23, 4)] {
            withheld.keep(7, insert(&new, n), 8);
            withheld.committed(xid);
        }
        let (changes, _) = withheld.complete(500, &new.catalog);
        assert_eq!(inserted(&changes), ["a to b with [\"Int(1)\", \"Int(3)\"]", "insert Int(2)", "insert Int(4)"]);
        assert!(withheld.is_empty());
    }

    #[test]
    fn a_schema_change_makes_a_reading_worthless() {
        let (old, new) = (schema(&[(7, "t", "a")]), schema(&[(7, "t", "b")]));
        let mut withheld = Withheld::default();
        withheld.withhold(7, &altered(&old, &new), old.text(7));
        let first = withheld.begin(7, &new.catalog).unwrap();
        withheld.keep(7, insert(&new, 1), 8);
        withheld.withhold(7, &altered(&new, &old), new.text(7));
        withheld.committed(30);
        assert!(!withheld.read(7, first.generation, contents("9:9:", 1, &[5])));
        let second = withheld.begin(7, &old.catalog).unwrap();
        assert!(withheld.read(7, second.generation, contents("40:40:", 1, &[6])));
        assert_eq!(inserted(&withheld.complete(2, &old.catalog).0), ["a to a with [\"Int(6)\"]"]);
    }

    #[test]
    fn a_new_name_hides_the_table_until_it_is_whole() {
        let (old, new) = (schema(&[(7, "t", "a")]), schema(&[(7, "u", "a")]));
        let mut withheld = Withheld::default();
        let told = withheld.withhold(7, &altered(&old, &new), old.text(7));
        assert!(matches!(told, Some(SchemaChange::DropTable { table }) if table.name == "t"));
        assert_eq!(withheld.remembered(), "{\"7\":null}");
        assert!(withheld.forget(7).is_none(), "the receivers do not know it");
    }

    #[test]
    fn what_is_withheld_is_remembered() {
        let (old, new) = (schema(&[(8, "x", "a"), (7, "t", "a")]), schema(&[(7, "t", "b"), (9, "n", "a")]));
        let mut withheld = Withheld::default();
        withheld.withhold(7, &altered(&old, &new), old.text(7));
        let create =
            SchemaChange::CreateTable { table: Arc::clone(&new.catalog.tables[&9].spec), rows: Backfill::None };
        withheld.withhold(9, &create, None);
        let remembered = withheld.remembered();
        let mut again = Withheld::restore(&remembered, &new, 100).unwrap();
        assert_eq!(again.remembered(), remembered);
        let begun = again.begin(7, &new.catalog).unwrap();
        assert!(
            !begun.delivered.is_seen_by(&snapshot("99:120:99")) && begun.delivered.is_seen_by(&snapshot("120:120:"))
        );
        assert!(again.read(7, begun.generation, contents("120:120:", 1, &[])));
        assert_eq!(inserted(&again.complete(1, &new.catalog).0), ["a to b with []"]);
        // What an older version remembered is read again.
        let older = Withheld::restore("{\"7\":12345,\"77\":1}", &new, 0).unwrap();
        assert_eq!(older.unread(), [7]);
        assert!(Withheld::restore("[]", &new, 0).is_err());
    }
}
