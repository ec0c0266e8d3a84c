//! Every kind of cell survives the initial copy and the stream.

use rows::{Cell, CellRef, Change, ColumnType, CopyBlock, ValueRef, Version};

use crate::fixture::{column, contents, create, load, table, transaction};
use std::sync::Arc;

fn spec() -> rows::TableSpec {
    let mut columns = vec![
        column(1, "id", ColumnType::Int, true),
        column(2, "b", ColumnType::Bool, false),
        column(3, "i", ColumnType::Int, false),
        column(5, "f", ColumnType::Float, false),
        column(6, "s", ColumnType::Str, false),
        column(7, "j", ColumnType::Json, false),
        column(8, "bytes", ColumnType::Hidden, false),
        column(9, "other", ColumnType::Hidden, false),
    ];
    columns[7].type_name = "money".into();
    table(70, "All Kinds", columns, &["id"], Vec::new())
}

/// As sent, and as queries see it (hidden columns apart).
fn samples() -> Vec<(Vec<Cell>, Vec<ValueRef<'static>>)> {
    let text = |s: &str| Cell::Text(s.into());
    vec![
        (
            vec![Cell::Int(1), Cell::Null, Cell::Null, Cell::Null, Cell::Null, Cell::Null, Cell::Null, Cell::Null],
            vec![ValueRef::Int(1), ValueRef::Null, ValueRef::Null, ValueRef::Null, ValueRef::Null, ValueRef::Null],
        ),
        (
            vec![
                Cell::Int(2),
                Cell::Bool(true),
                Cell::Int(i64::MAX),
                Cell::Float(5.0),
                text("1e5"),
                text("123"),
                Cell::Bytes([0, 255, 7].into()),
                text("$1.00"),
            ],
            vec![
                ValueRef::Int(2),
                ValueRef::Bool(true),
                ValueRef::Int(i64::MAX),
                ValueRef::Float(5.0),
                ValueRef::Str("1e5"),
                ValueRef::Json("123"),
            ],
        ),
        (
            vec![
                Cell::Int(3),
                Cell::Bool(false),
                Cell::Int(i64::MIN),
                Cell::Float(-1.5e-300),
                text(""),
                text("null"),
                Cell::Bytes([].into()),
                text(""),
            ],
            vec![
                ValueRef::Int(3),
                ValueRef::Bool(false),
                ValueRef::Int(i64::MIN),
                ValueRef::Float(-1.5e-300),
                ValueRef::Str(""),
                ValueRef::Json("null"),
            ],
        ),
        // NaN has no place in SQLite and none on the wire.
        (
            vec![
                Cell::Int(4),
                Cell::Null,
                Cell::Int(1 << 53 | 1),
                Cell::Float(f64::NAN),
                text("žluťoučký 😀"),
                text("{\"a\": [1.10, 12345678901234567890]}"),
                Cell::Null,
                Cell::Null,
            ],
            vec![
                ValueRef::Int(4),
                ValueRef::Null,
                ValueRef::Int(1 << 53 | 1),
                ValueRef::Null,
                ValueRef::Str("žluťoučký 😀"),
                ValueRef::Json("{\"a\": [1.10, 12345678901234567890]}"),
            ],
        ),
        // A numeric that is sent as an integer is a number like the others.
        (
            vec![
                Cell::Int(5),
                Cell::Null,
                Cell::Int(0),
                Cell::Int(7),
                text("0x10"),
                text("\"x\""),
                Cell::Null,
                Cell::Null,
            ],
            vec![
                ValueRef::Int(5),
                ValueRef::Null,
                ValueRef::Int(0),
                ValueRef::Float(7.0),
                ValueRef::Str("0x10"),
                ValueRef::Json("\"x\""),
            ],
        ),
        (
            vec![
                Cell::Int(6),
                Cell::Null,
                Cell::Int(0),
                Cell::Float(f64::NEG_INFINITY),
                text(" 5 "),
                text("1e400"),
                Cell::Null,
                Cell::Null,
            ],
            vec![
                ValueRef::Int(6),
                ValueRef::Null,
                ValueRef::Int(0),
                ValueRef::Float(f64::NEG_INFINITY),
                ValueRef::Str(" 5 "),
                ValueRef::Json("1e400"),
            ],
        ),
    ]
}

fn copy_cell(cell: &Cell) -> CellRef<'_> {
    match cell {
        Cell::Null | Cell::Unchanged => CellRef::Null,
        Cell::Bool(b) => CellRef::Bool(*b),
        Cell::Int(i) => CellRef::Int(*i),
        Cell::Float(f) => CellRef::Float(*f),
        Cell::Text(s) => CellRef::Text(s),
        Cell::Bytes(b) => CellRef::Bytes(b),
    }
}

fn check(replica: &replica::Replica, version: u64) {
    let mut reader = replica.reader().unwrap();
    reader.begin().unwrap();
    let table = Arc::clone(&reader.schema().tables["All Kinds"]);
    let rows = contents(&mut reader, &table);
    let found: Vec<Vec<ValueRef<'_>>> = rows.values().map(|r| r.iter().collect()).collect();
    let expected: Vec<Vec<ValueRef<'_>>> = samples().into_iter().map(|(_, seen)| seen).collect();
    assert_eq!(found, expected);
    assert!(rows.values().all(|r| r.version() == Version::new(version)));
}

#[test]
fn copied_cells_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let mut block = CopyBlock::new(8);
    for (cells, _) in samples() {
        cells.iter().for_each(|c| block.push(copy_cell(c)));
    }
    let replica = load(&path, &[Arc::new(spec())], &[(0, block)]);
    check(&replica, 1);
    let conn = rusqlite::Connection::open(&path).unwrap();
    let hidden: (Vec<u8>, String) =
        conn.query_row("SELECT c8, c9 FROM t70 WHERE c1 = 2", [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
    assert_eq!(hidden, (vec![0, 255, 7], "$1.00".to_owned()));
}

#[test]
fn streamed_cells_come_back_and_batches_say_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let spec = Arc::new(spec());
    let replica = create(&path, &[Arc::clone(&spec)]);
    let mut writer = replica.writer().unwrap();
    let changes = samples().into_iter().map(|(new, _)| Change::Insert { table: Arc::clone(&spec), new }).collect();
    let batch = writer.apply(&[transaction(9, changes)]).unwrap().unwrap();
    let sent: Vec<Vec<ValueRef<'_>>> =
        batch.tables[0].rows.iter().map(|c| c.new.as_ref().unwrap().iter().collect()).collect();
    let expected: Vec<Vec<ValueRef<'_>>> = samples().into_iter().map(|(_, seen)| seen).collect();
    assert_eq!(sent, expected);
    check(&replica, 9);
}

#[test]
fn unchanged_large_values_stay_hidden_ones_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let spec = Arc::new(spec());
    let replica = create(&path, &[Arc::clone(&spec)]);
    let mut writer = replica.writer().unwrap();
    let first = samples().swap_remove(1).0;
    let mut second = first.clone();
    for kept in [4, 5, 6, 7] {
        second[kept] = Cell::Unchanged;
    }
    second[2] = Cell::Int(3);
    let batch = writer
        .apply(&[
            transaction(2, vec![Change::Insert { table: Arc::clone(&spec), new: first }]),
            transaction(3, vec![Change::Update { table: Arc::clone(&spec), key: None, new: second }]),
        ])
        .unwrap()
        .unwrap();
    let new = batch.tables[0].rows[0].new.as_ref().unwrap();
    assert_eq!(new.get(2), ValueRef::Int(3));
    assert_eq!(new.get(4), ValueRef::Str("1e5"));
    assert_eq!(new.get(5), ValueRef::Json("123"));
    assert_eq!((batch.previous.as_u64(), batch.version.as_u64(), batch.commit_time_us), (1, 3, 30));
    assert!(batch.tables[0].rows[0].old.is_none(), "one net insert");
    let conn = rusqlite::Connection::open(&path).unwrap();
    let hidden: Vec<u8> = conn.query_row("SELECT c8 FROM t70", [], |r| r.get(0)).unwrap();
    assert_eq!(hidden, [0, 255, 7]);
}

#[test]
fn a_cell_of_the_wrong_kind_is_refused_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let spec = Arc::new(spec());
    let replica = create(&path, &[Arc::clone(&spec)]);
    let mut writer = replica.writer().unwrap();
    let good = samples().swap_remove(0).0;
    let mut bad = samples().swap_remove(1).0;
    bad[2] = Cell::Text("12".into());
    let changes = vec![
        Change::Insert { table: Arc::clone(&spec), new: good.clone() },
        Change::Insert { table: Arc::clone(&spec), new: bad },
    ];
    let error = writer.apply(&[transaction(2, changes)]).unwrap_err();
    assert!(matches!(&error, replica::Error::Resync { reason, .. } if reason.contains("column i")), "{error}");
    assert_eq!(writer.version(), Version::new(1));
    let batch = writer.apply(&[transaction(2, vec![Change::Insert { table: spec, new: good }])]).unwrap().unwrap();
    assert_eq!(batch.tables[0].rows.len(), 1);
}
