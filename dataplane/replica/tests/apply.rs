//! Single behaviours of applying transactions.

use std::sync::Arc;

use replica::{Error, Writer};
use rows::transaction::{AddedColumn, Backfill, SchemaChange};
use rows::{Cell, Change, ColumnType, RowChange, TableSpec, ValueRef, Version};

use crate::fixture::{column, contents, create, index, open, table, transaction};

fn text(s: &str) -> Cell {
    Cell::Text(s.into())
}

fn spec() -> TableSpec {
    let columns = vec![
        column(1, "id", ColumnType::Int, true),
        column(2, "name", ColumnType::Str, true),
        column(3, "n", ColumnType::Int, false),
    ];
    table(10, "t", columns, &["id"], vec![index("name", true, &["name"])])
}

fn row(id: i64, name: &str, n: i64) -> Vec<Cell> {
    vec![Cell::Int(id), text(name), Cell::Int(n)]
}

struct Bench {
    _directory: tempfile::TempDir,
    path: std::path::PathBuf,
    spec: Arc<TableSpec>,
    writer: Writer,
    version: u64,
}

impl Bench {
    fn new(spec: TableSpec) -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.db");
        let spec = Arc::new(spec);
        let writer = create(&path, &[Arc::clone(&spec)]).writer().unwrap();
        Bench { _directory: directory, path, spec, writer, version: 1 }
    }

    fn insert(&self, new: Vec<Cell>) -> Change {
        Change::Insert { table: Arc::clone(&self.spec), new }
    }

    fn update(&self, key: Option<Vec<Cell>>, new: Vec<Cell>) -> Change {
        Change::Update { table: Arc::clone(&self.spec), key, new }
    }

    fn delete(&self, key: Vec<Cell>) -> Change {
        Change::Delete { table: Arc::clone(&self.spec), key }
    }

    fn apply(&mut self, changes: Vec<Change>) -> Arc<rows::Batch> {
        self.version += 1;
        self.writer.apply(&[transaction(self.version, changes)]).unwrap().unwrap()
    }

    /// First two cells of all rows.
    fn rows(&self) -> Vec<String> {
        let mut reader = open(&self.path).reader().unwrap();
        reader.begin().unwrap();
        let table = Arc::clone(&reader.schema().tables["t"]);
        contents(&mut reader, &table).values().map(|r| format!("{r:?}")).collect()
    }
}

fn changes(batch: &rows::Batch) -> Vec<String> {
    let show = |c: &RowChange| format!("{:?} -> {:?}", c.old, c.new);
    let mut all: Vec<String> = batch.tables.iter().flat_map(|t| &t.rows).map(show).collect();
    all.sort();
    all
}

#[test]
fn a_batch_holds_the_net_effect() {
    let mut b = Bench::new(spec());
    b.apply(vec![b.insert(row(1, "a", 1)), b.insert(row(2, "b", 2)), b.insert(row(3, "c", 3))]);
    let batch = b.apply(vec![
        // Comes and goes.
        b.insert(row(9, "z", 9)),
        b.delete(vec![Cell::Int(9)]),
        // There and back.
        b.update(None, row(1, "a", 100)),
        b.update(None, row(1, "a", 1)),
        // Written as it was.
        b.update(None, row(3, "c", 3)),
        // A new key.
        b.update(Some(vec![Cell::Int(2)]), row(4, "b", 2)),
    ]);
    assert_eq!(
        changes(&batch),
        ["None -> Some([Int(4), Str(\"b\"), Int(2)])", "Some([Int(2), Str(\"b\"), Int(2)]) -> None",]
    );
}

#[test]
fn an_insert_of_a_known_key_replaces() {
    let mut b = Bench::new(spec());
    b.apply(vec![b.insert(row(1, "a", 1))]);
    let batch = b.apply(vec![b.insert(row(1, "b", 2))]);
    assert_eq!(changes(&batch), ["Some([Int(1), Str(\"a\"), Int(1)]) -> Some([Int(1), Str(\"b\"), Int(2)])"]);
}

#[test]
fn unique_values_may_meet_within_a_transaction() {
    let mut b = Bench::new(spec());
    b.apply(vec![b.insert(row(1, "a", 1)), b.insert(row(2, "b", 2))]);
    // As a deferred constraint allows it.
    b.apply(vec![b.update(None, row(1, "b", 1)), b.update(None, row(2, "a", 2))]);
    assert_eq!(b.rows(), ["[Int(1), Str(\"b\"), Int(1)]", "[Int(2), Str(\"a\"), Int(2)]"]);
}

#[test]
fn keys_may_be_exchanged_under_another_identity() {
    let mut spec = spec();
    spec.identity = vec!["name".into()];
    let mut b = Bench::new(spec);
    b.apply(vec![b.insert(row(1, "a", 1)), b.insert(row(2, "b", 2))]);
    let batch = b.apply(vec![b.update(None, row(2, "a", 1)), b.update(None, row(1, "b", 2))]);
    assert_eq!(b.rows(), ["[Int(1), Str(\"b\"), Int(2)]", "[Int(2), Str(\"a\"), Int(1)]"]);
    assert_eq!(
        changes(&batch),
        [
            "Some([Int(1), Str(\"a\"), Int(1)]) -> Some([Int(1), Str(\"b\"), Int(2)])",
            "Some([Int(2), Str(\"b\"), Int(2)]) -> Some([Int(2), Str(\"a\"), Int(1)])",
        ]
    );
    let batch = b.apply(vec![b.update(Some(vec![text("a")]), row(2, "c", 1)), b.delete(vec![text("b")])]);
    assert_eq!(batch.tables[0].rows.len(), 2);
    assert_eq!(b.rows(), ["[Int(2), Str(\"c\"), Int(1)]"]);
}

#[test]
fn full_identity_finds_rows_by_their_key() {
    let mut spec = spec();
    spec.identity = vec!["id".into(), "name".into(), "n".into()];
    let mut b = Bench::new(spec);
    b.apply(vec![b.insert(row(1, "a", 1)), b.insert(row(2, "b", 2))]);
    b.apply(vec![b.update(Some(row(1, "a", 1)), row(5, "a", 1)), b.delete(row(2, "b", 2))]);
    assert_eq!(b.rows(), ["[Int(5), Str(\"a\"), Int(1)]"]);
}

#[test]
fn tables_without_a_key_are_kept_but_not_shown() {
    let mut spec = spec();
    spec.primary_key.clear();
    spec.indexes.clear();
    spec.identity = vec!["id".into(), "name".into(), "n".into()];
    let mut b = Bench::new(spec);
    assert!(b.writer.schema().hidden["t"].contains("no primary key"));
    let null = vec![Cell::Int(1), text("a"), Cell::Null];
    let batch = b.apply(vec![b.insert(null.clone()), b.insert(null.clone()), b.insert(row(2, "b", 2))]);
    assert!(batch.tables.is_empty());
    b.apply(vec![b.delete(null), b.update(Some(row(2, "b", 2)), row(2, "b", 3))]);
    let conn = rusqlite::Connection::open(&b.path).unwrap();
    let found: (i64, i64, i64) = conn
        .query_row("SELECT count(*), sum(c1), sum(c3) FROM t10", [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .unwrap();
    assert_eq!(found, (2, 3, 3));
}

#[test]
fn transactions_are_applied_once() {
    let mut b = Bench::new(spec());
    let all: Vec<_> = (2..6).map(|v| transaction(v, vec![b.insert(row(v as i64, &v.to_string(), 0))])).collect();
    assert_eq!(b.writer.apply(&all[..2]).unwrap().unwrap().version, Version::new(3));
    let batch = b.writer.apply(&all).unwrap().unwrap();
    assert_eq!((batch.previous, batch.version), (Version::new(3), Version::new(5)));
    assert_eq!(batch.tables[0].rows.len(), 2);
    assert!(b.writer.apply(&all).unwrap().is_none());
    // Reopened, it still knows.
    let mut writer = open(&b.path).writer().unwrap();
    assert!(writer.apply(&all).unwrap().is_none());
    assert_eq!((writer.version(), writer.commit_time_us()), (Version::new(5), 50));
}

#[test]
fn readers_pinned_together_see_one_version() {
    let mut b = Bench::new(spec());
    let gate = b.writer.gate();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let path = b.path.clone();
    let readers = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut pair = [open(&path).reader().unwrap(), open(&path).reader().unwrap()];
            let mut versions = std::collections::BTreeSet::new();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let pin = gate.pin();
                let seen = pair.each_mut().map(|r| r.begin().unwrap());
                assert_eq!(seen, [pin.version(); 2]);
                drop(pin);
                versions.insert(seen[0]);
                pair.iter_mut().for_each(replica::Reader::end);
            }
            versions.len()
        }
    });
    for i in 0..300 {
        b.apply(vec![b.insert(row(i, &i.to_string(), 0))]);
        std::thread::yield_now();
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(readers.join().unwrap() > 1, "the reader ran beside the writer");
}

#[test]
fn a_reader_keeps_its_version_and_learns_of_schema_changes() {
    let mut b = Bench::new(spec());
    b.apply(vec![b.insert(row(1, "a", 1))]);
    let mut reader = open(&b.path).reader().unwrap();
    reader.begin().unwrap();
    let old = Arc::clone(&reader.schema().tables["t"]);
    let mut new = spec();
    new.name = "renamed".into();
    new.columns.push(column(4, "extra", ColumnType::Str, false));
    let change = SchemaChange::AlterTable {
        old: Arc::clone(&b.spec),
        new: Arc::new(new),
        added: vec![AddedColumn { name: "extra".into(), value: text("it's") }],
        rows: Backfill::None,
    };
    let batch = b.apply(vec![Change::Schema(change)]);
    let mut names: Vec<&str> = batch.tables.iter().filter(|t| t.reset).map(|t| &*t.table.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["renamed", "t"]);
    assert!(batch.schema.as_ref().unwrap().tables.contains_key("renamed"));
    assert_eq!(contents(&mut reader, &old).len(), 1, "the pinned version has the old shape");
    reader.end();
    reader.begin().unwrap();
    let table = Arc::clone(&reader.schema().tables["renamed"]);
    let rows = contents(&mut reader, &table);
    let row = rows.values().next().unwrap();
    assert_eq!(row.get(3), ValueRef::Str("it's"));
    assert_eq!(row.version(), batch.version, "clients must see the row again");
    // A plan of the former shape is refused, not answered wrongly.
    let error =
        ivm::source::Source::scan(&mut reader, &crate::fixture::everything(&old), Default::default(), &mut |_| {
            std::ops::ControlFlow::Continue(())
        });
    assert!(error.unwrap_err().to_string().contains('t'));
}

#[test]
fn an_index_change_leaves_the_rows_alone() {
    let mut b = Bench::new(spec());
    b.apply(vec![b.insert(row(1, "a", 1))]);
    let mut new = spec();
    new.indexes.push(index("n", false, &["n"]));
    let new = Arc::new(new);
    let change = SchemaChange::AlterTable {
        old: Arc::clone(&b.spec),
        new: Arc::clone(&new),
        added: vec![],
        rows: Backfill::None,
    };
    let batch = b.apply(vec![b.update(None, row(1, "a", 2)), Change::Schema(change)]);
    assert!(!batch.tables[0].reset);
    assert_eq!(batch.tables[0].rows.len(), 1);
    assert_eq!(batch.tables[0].table.indexes.len(), 3);
    let conn = rusqlite::Connection::open(&b.path).unwrap();
    let count = |name: &str| -> i64 {
        conn.query_row("SELECT count(*) FROM sqlite_schema WHERE name = ?", [name], |r| r.get(0)).unwrap()
    };
    assert_eq!(count("i10_3_1"), 1);
    let change = SchemaChange::AlterTable { old: new, new: Arc::clone(&b.spec), added: vec![], rows: Backfill::None };
    b.apply(vec![Change::Schema(change)]);
    assert_eq!(count("i10_3_1"), 0);
}

#[test]
fn a_lost_schema_change_is_noticed() {
    let mut b = Bench::new(spec());
    let mut other = spec();
    other.columns[2].name = "m".into();
    let insert = Change::Insert { table: Arc::new(other), new: row(1, "a", 1) };
    assert!(matches!(b.writer.apply(&[transaction(2, vec![insert])]), Err(Error::Resync { .. })));
    let mut unknown = spec();
    unknown.oid = 11;
    let insert = Change::Insert { table: Arc::new(unknown), new: row(1, "a", 1) };
    assert!(matches!(b.writer.apply(&[transaction(2, vec![insert])]), Err(Error::Resync { .. })));
    assert_eq!(b.apply(vec![b.insert(row(1, "a", 1))]).previous, Version::new(1));
}

#[test]
fn a_failed_schema_change_is_forgotten() {
    let mut b = Bench::new(spec());
    b.apply(vec![b.insert(row(1, "a", 1))]);
    let before = b.writer.schema();
    let drop = Change::Schema(SchemaChange::DropTable { table: Arc::clone(&b.spec) });
    let bad = b.insert(row(2, "b", 2));
    assert!(b.writer.apply(&[transaction(9, vec![drop, bad])]).is_err());
    assert_eq!(b.writer.schema(), before);
    assert_eq!(b.rows().len(), 1);
    b.apply(vec![b.insert(row(2, "b", 2))]);
    assert_eq!(b.rows().len(), 2);
}

#[test]
fn the_wal_does_not_grow_for_ever() {
    let mut b = Bench::new(spec());
    let mut reader = open(&b.path).reader().unwrap();
    let wal = b.path.with_extension("db-wal");
    let mut largest = 0;
    for round in 0..60_i64 {
        // Readers come and go, as the engine's do.
        reader.end();
        reader.begin().unwrap();
        b.apply(
            (0..2000)
                .map(|i| b.insert(row(round * 2000 + i, &format!("{round} {i} {}", "x".repeat(300)), i)))
                .collect(),
        );
        largest = largest.max(std::fs::metadata(&wal).unwrap().len());
    }
    assert!(largest < 96 << 20, "{largest}");
    reader.end();
    b.writer.checkpoint().unwrap();
    assert_eq!(std::fs::metadata(&wal).unwrap().len(), 0);
}

#[test]
fn a_withheld_commit_changes_nothing() {
    let mut b = Bench::new(spec());
    let error =
        b.writer.apply_when(&[transaction(b.version + 1, vec![b.insert(row(1, "a", 1))])], || false).unwrap_err();
    assert!(matches!(error, replica::Error::Withheld), "{error}");
    let batch = b.apply(vec![b.insert(row(1, "b", 2))]);
    assert_eq!(batch.tables[0].rows.len(), 1);
    assert!(batch.tables[0].rows[0].old.is_none());
}

#[test]
fn tables_that_clients_would_know_by_one_name_are_left_out() {
    let columns = || vec![column(1, "id", ColumnType::Int, true), column(2, "name", ColumnType::Str, true)];
    let outer = Arc::new(table(20, "a.b", columns(), &["id"], vec![]));
    let inner = table(21, "b", columns(), &["id"], vec![]);
    let inner = Arc::new(TableSpec { schema: "a".into(), ..inner });
    let directory = tempfile::tempdir().unwrap();
    let replica = create(&directory.path().join("r.db"), &[Arc::clone(&outer), Arc::clone(&inner)]);
    let (mut writer, mut reader) = (replica.writer().unwrap(), replica.reader().unwrap());
    reader.begin().unwrap();
    let schema = reader.schema();
    assert!(schema.tables.is_empty());
    assert!(schema.hidden["a.b"].contains("\"public\".\"a.b\" and \"a\".\"b\""), "{:?}", schema.hidden);
    reader.end();
    // Rows of both are kept, and shown when there is one of that name.
    let insert = |table: &Arc<TableSpec>, name: &str| Change::Insert {
        table: Arc::clone(table),
        new: vec![Cell::Int(1), text(name)],
    };
    let gone = Change::Schema(SchemaChange::DropTable { table: Arc::clone(&inner) });
    writer.apply(&[transaction(2, vec![insert(&outer, "of public"), insert(&inner, "of a")])]).unwrap();
    writer.apply(&[transaction(3, vec![gone])]).unwrap();
    reader.begin().unwrap();
    let table = Arc::clone(&reader.schema().tables["a.b"]);
    let rows = contents(&mut reader, &table);
    assert_eq!(rows.values().map(|row| row.get(1)).collect::<Vec<_>>(), [ValueRef::Str("of public")]);
}
