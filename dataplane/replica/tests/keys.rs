//! Rows whose keys clients cannot hold, and tables whose keys are not keys.

use std::sync::Arc;

use replica::{Reader, Writer};
use rows::transaction::{Backfill, SchemaChange};
use rows::{Cell, CellRef, Change, ColumnType, CopyBlock, RowChange, TableSpec};

use crate::fixture::{column, contents, create, index, load, open, table, transaction};

const INFINITE: [f64; 3] = [f64::INFINITY, f64::NEG_INFINITY, f64::NAN];

fn readings() -> TableSpec {
    let columns = vec![
        column(1, "at", ColumnType::Float, true),
        column(2, "id", ColumnType::Int, true),
        column(3, "body", ColumnType::Str, false),
    ];
    table(20, "readings", columns, &["at", "id"], vec![index("body", false, &["body"])])
}

fn row(at: f64, id: i64, body: Cell) -> Vec<Cell> {
    vec![Cell::Float(at), Cell::Int(id), body]
}

fn text(s: &str) -> Cell {
    Cell::Text(s.into())
}

fn seen(reader: &mut Reader, name: &str) -> Vec<String> {
    reader.begin().unwrap();
    let table = Arc::clone(&reader.schema().tables[name]);
    let rows = contents(reader, &table).values().map(|r| format!("{r:?}")).collect();
    reader.end();
    rows
}

struct Bench {
    _directory: tempfile::TempDir,
    path: std::path::PathBuf,
    spec: Arc<TableSpec>,
    writer: Writer,
    version: u64,
}

impl Bench {
    fn new() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.db");
        let spec = Arc::new(readings());
        let writer = create(&path, &[Arc::clone(&spec)]).writer().unwrap();
        Bench { _directory: directory, path, spec, writer, version: 1 }
    }

    fn apply(&mut self, change: Change) -> Vec<String> {
        self.version += 1;
        let batch = self.writer.apply(&[transaction(self.version, vec![change])]).unwrap().unwrap();
        let show = |c: &RowChange| format!("{:?} -> {:?}", c.old, c.new);
        batch.tables.iter().flat_map(|t| &t.rows).map(show).collect()
    }

    fn insert(&mut self, new: Vec<Cell>) -> Vec<String> {
        self.apply(Change::Insert { table: Arc::clone(&self.spec), new })
    }

    fn update(&mut self, key: Option<Vec<Cell>>, new: Vec<Cell>) -> Vec<String> {
        self.apply(Change::Update { table: Arc::clone(&self.spec), key, new })
    }

    fn delete(&mut self, key: Vec<Cell>) -> Vec<String> {
        self.apply(Change::Delete { table: Arc::clone(&self.spec), key })
    }

    fn seen(&self) -> Vec<String> {
        seen(&mut open(&self.path).reader().unwrap(), "readings")
    }

    fn stored(&self) -> i64 {
        rusqlite::Connection::open(&self.path).unwrap().query_row("SELECT count(*) FROM t20", [], |r| r.get(0)).unwrap()
    }
}

#[test]
fn a_row_comes_when_its_key_becomes_finite_and_goes_when_it_becomes_infinite() {
    for infinite in INFINITE {
        let mut b = Bench::new();
        let key = |at: f64| Some(vec![Cell::Float(at), Cell::Int(1)]);
        assert_eq!(b.insert(row(infinite, 1, text("large"))), [""; 0]);
        // Contents and other columns of the key change out of sight.
        assert_eq!(b.update(None, row(infinite, 1, text("larger"))), [""; 0]);
        assert_eq!((b.seen(), b.stored()), (vec![], 1));
        // A large value that did not change is not sent again.
        assert_eq!(
            b.update(key(infinite), row(5.0, 1, Cell::Unchanged)),
            ["None -> Some([Float(5.0), Int(1), Str(\"larger\")])"]
        );
        assert_eq!(b.seen(), ["[Float(5.0), Int(1), Str(\"larger\")]"]);
        assert_eq!(
            b.update(key(5.0), row(infinite, 1, Cell::Unchanged)),
            ["Some([Float(5.0), Int(1), Str(\"larger\")]) -> None"]
        );
        assert_eq!((b.seen(), b.stored()), (vec![], 1));
        // Postgres sends the old key of a key that is NaN and stays so.
        assert_eq!(b.update(key(infinite), row(infinite, 1, Cell::Unchanged)), [""; 0]);
        assert_eq!(b.stored(), 1);
        assert_eq!(b.delete(vec![Cell::Float(infinite), Cell::Int(1)]), [""; 0]);
        assert_eq!(b.stored(), 0);
    }
}

#[test]
fn a_finite_row_takes_nothing_from_an_infinite_one() {
    let mut b = Bench::new();
    for infinite in INFINITE {
        b.insert(row(infinite, 1, text("hidden")));
    }
    assert_eq!(b.insert(row(0.0, 1, text("seen"))), ["None -> Some([Float(0.0), Int(1), Str(\"seen\")])"]);
    let key = vec![Cell::Float(f64::NAN), Cell::Int(1)];
    b.update(Some(key), row(7.0, 1, text("hidden no more")));
    assert_eq!(b.seen().len(), 2);
    b.delete(vec![Cell::Float(f64::INFINITY), Cell::Int(1)]);
    assert_eq!((b.seen().len(), b.stored()), (2, 3));
}

#[test]
fn copies_and_new_contents_leave_infinite_keys_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let spec = Arc::new(readings());
    let mut block = CopyBlock::new(3);
    for at in INFINITE.into_iter().chain([1.0]) {
        [CellRef::Float(at), CellRef::Int(1), CellRef::Null].into_iter().for_each(|cell| block.push(cell));
    }
    let replica = load(&path, &[Arc::clone(&spec)], &[(0, block)]);
    let mut reader = replica.reader().unwrap();
    assert_eq!(seen(&mut reader, "readings"), ["[Float(1.0), Int(1), Null]"]);
    let rows = INFINITE.into_iter().chain([2.0]).map(|at| row(at, 1, Cell::Null)).collect();
    let change =
        SchemaChange::AlterTable { old: Arc::clone(&spec), new: spec, added: Vec::new(), rows: Backfill::Rows(rows) };
    replica.writer().unwrap().apply(&[transaction(2, vec![Change::Schema(change)])]).unwrap();
    assert_eq!(seen(&mut reader, "readings"), ["[Float(2.0), Int(1), Null]"]);
}

#[test]
fn a_table_with_equal_keys_is_left_out_and_the_others_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let twice = Arc::new(table(
        1,
        "twice",
        vec![column(1, "id", ColumnType::Int, true), column(2, "v", ColumnType::Str, false)],
        &["id"],
        vec![index("v", false, &["v"])],
    ));
    let once = Arc::new(table(2, "once", vec![column(1, "id", ColumnType::Int, true)], &["id"], Vec::new()));
    let (mut a, mut b) = (CopyBlock::new(2), CopyBlock::new(1));
    for cell in [CellRef::Int(1), CellRef::Text("a"), CellRef::Int(1), CellRef::Text("b")] {
        a.push(cell);
    }
    b.push(CellRef::Int(1));
    let replica = load(&path, &[Arc::clone(&twice), Arc::clone(&once)], &[(0, a), (1, b)]);
    let reason = replica.schema().hidden["twice"].clone();
    assert!(reason.contains("twice") && reason.contains("equal keys"), "{reason}");
    let mut reader = replica.reader().unwrap();
    assert_eq!(seen(&mut reader, "once"), ["[Int(1)]"]);
    // It goes on, left out, also when the file is opened again.
    let mut writer = replica.writer().unwrap();
    let change = |id: i64| Change::Insert { table: Arc::clone(&twice), new: vec![Cell::Int(id), Cell::Null] };
    writer.apply(&[transaction(2, vec![change(1), change(2)])]).unwrap();
    drop(writer);
    assert!(open(&path).schema().hidden.contains_key("twice"));
    // New contents without duplicates bring it back.
    let rows = Backfill::Rows(vec![vec![Cell::Int(1), Cell::Null]]);
    let change = SchemaChange::AlterTable { old: Arc::clone(&twice), new: twice, added: Vec::new(), rows };
    let mut writer = replica.writer().unwrap();
    let batch = writer.apply(&[transaction(3, vec![Change::Schema(change)])]).unwrap().unwrap();
    assert!(batch.schema.as_ref().unwrap().tables.contains_key("twice"));
    assert_eq!(seen(&mut reader, "twice"), ["[Int(1), Null]"]);
}

#[test]
fn a_new_key_that_does_not_hold_leaves_the_table_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let columns = || vec![column(1, "id", ColumnType::Int, true), column(2, "v", ColumnType::Int, true)];
    let (old, new) = (
        Arc::new(table(1, "t", columns(), &["id"], Vec::new())),
        Arc::new(table(1, "t", columns(), &["v"], Vec::new())),
    );
    let mut writer = create(&path, &[Arc::clone(&old)]).writer().unwrap();
    let insert = |id| Change::Insert { table: Arc::clone(&old), new: vec![Cell::Int(id), Cell::Int(0)] };
    let alter = SchemaChange::AlterTable {
        old: Arc::clone(&old),
        new: Arc::clone(&new),
        added: Vec::new(),
        rows: Backfill::None,
    };
    let batch = writer.apply(&[transaction(2, vec![insert(1), insert(2), Change::Schema(alter)])]).unwrap().unwrap();
    assert!(batch.schema.as_ref().unwrap().hidden["t"].contains("equal keys"));
    let more = Change::Insert { table: new, new: vec![Cell::Int(3), Cell::Int(0)] };
    writer.apply(&[transaction(3, vec![more])]).unwrap();
}

#[test]
fn keys_that_are_checked_later_may_be_exchanged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let mut spec = table(
        1,
        "t",
        vec![column(1, "id", ColumnType::Int, true), column(2, "v", ColumnType::Str, false)],
        &["id"],
        Vec::new(),
    );
    // PRIMARY KEY (id) DEFERRABLE, REPLICA IDENTITY FULL.
    spec.indexes[0].unique = false;
    spec.identity = vec!["id".to_owned(), "v".to_owned()];
    let spec = Arc::new(spec);
    let replica = create(&path, &[Arc::clone(&spec)]);
    let mut writer = replica.writer().unwrap();
    let row = |id: i64, v: &str| vec![Cell::Int(id), text(v)];
    let insert = |id, v| Change::Insert { table: Arc::clone(&spec), new: row(id, v) };
    let update = |old, new| Change::Update { table: Arc::clone(&spec), key: Some(old), new };
    let batch = writer.apply(&[transaction(2, vec![insert(1, "a"), insert(2, "b"), insert(3, "c")])]).unwrap().unwrap();
    assert!(!batch.tables[0].reset && batch.tables[0].rows.len() == 3);
    let exchange = vec![update(row(1, "a"), row(2, "a")), update(row(2, "b"), row(1, "b"))];
    let batch = writer.apply(&[transaction(3, exchange)]).unwrap().unwrap();
    assert!(batch.tables[0].reset, "the difference is read anew");
    let mut reader = replica.reader().unwrap();
    let expected = ["[Int(1), Str(\"b\")]", "[Int(2), Str(\"a\")]", "[Int(3), Str(\"c\")]"];
    assert_eq!(seen(&mut reader, "t"), expected);
    // A row comes before the one that it replaces goes.
    let delete = Change::Delete { table: Arc::clone(&spec), key: row(3, "c") };
    writer.apply(&[transaction(4, vec![insert(3, "new"), delete])]).unwrap();
    assert_eq!(seen(&mut reader, "t")[2], "[Int(3), Str(\"new\")]");
    let batch = writer.apply(&[transaction(5, vec![update(row(3, "new"), row(4, "new"))])]).unwrap().unwrap();
    assert!(!batch.tables[0].reset && batch.tables[0].rows.len() == 2);
}
