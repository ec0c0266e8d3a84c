//! The file as a person sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use rows::transaction::{AddedColumn, Backfill, SchemaChange};
use rows::{Cell, Change, ColumnType, TableSpec};

use crate::fixture::{column, create, open, table, transaction};

fn spec(oid: u32, schema: &str, name: &str, columns: &[(i16, &str)]) -> Arc<TableSpec> {
    let columns = columns.iter().map(|&(n, name)| column(n, name, ColumnType::Int, true)).collect::<Vec<_>>();
    let key = columns[0].name.clone();
    let mut spec = table(oid, name, columns, &[&key], Vec::new());
    spec.schema = schema.to_owned();
    Arc::new(spec)
}

/// Each view with its columns.
fn views(path: &std::path::Path) -> BTreeMap<String, Vec<String>> {
    let conn = rusqlite::Connection::open(path).unwrap();
    let mut statement = conn.prepare("SELECT name FROM sqlite_schema WHERE type = 'view'").unwrap();
    let names: Vec<String> = statement.query_map([], |r| r.get(0)).unwrap().map(Result::unwrap).collect();
    let columns = |name: &String| {
        let view = conn.prepare(&format!("SELECT * FROM \"{name}\"")).unwrap();
        view.column_names().map(str::to_owned).collect()
    };
    names.iter().map(|name| (name.clone(), columns(name))).collect()
}

#[test]
fn every_table_has_a_view_whatever_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let id: &[(i16, &str)] = &[(1, "id")];
    let specs = [
        spec(1, "public", "albums", &[(1, "id"), (3, "the \"title\"")]),
        spec(2, "music", "albums", id),
        spec(3, "public", "t1", id),
        spec(4, "public", "T2", id),
        spec(5, "public", "Albums", id),
        spec(6, "public", "sqlite_x", id),
        spec(7, "sqlite_x", "t", id),
        spec(8, "public", "_zero_tables", id),
        spec(9, "public", "k1_1", id),
        spec(10, "public", "order", id),
    ];
    create(&path, &specs);
    let views = views(&path);
    assert_eq!(views.len(), specs.len());
    for name in ["albums", "music.albums", "order", "public.t1", "public.T2", "public.k1_1", "public.sqlite_x"] {
        assert!(views.contains_key(name), "{name} in {views:?}");
    }
    for name in ["public.Albums", "public._zero_tables", "table.sqlite_x.t.7"] {
        assert!(views.contains_key(name), "{name} in {views:?}");
    }
    assert_eq!(views["albums"], ["id", "the \"title\""]);
}

#[test]
fn views_follow_the_tables() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let old = spec(1, "public", "albums", &[(1, "id"), (2, "title"), (3, "year")]);
    let other = spec(2, "public", "artists", &[(1, "id")]);
    let mut writer = create(&path, &[Arc::clone(&old), Arc::clone(&other)]).writer().unwrap();
    let insert = Change::Insert { table: Arc::clone(&old), new: vec![Cell::Int(1), Cell::Int(2), Cell::Int(3)] };
    // A column goes, one comes, one is renamed, and the table is.
    let new = spec(1, "public", "records", &[(1, "id"), (2, "name"), (4, "label")]);
    let alter = |old: &Arc<TableSpec>, new: &Arc<TableSpec>, added: Vec<AddedColumn>| {
        let (old, new) = (Arc::clone(old), Arc::clone(new));
        Change::Schema(SchemaChange::AlterTable { old, new, added, rows: Backfill::None })
    };
    let label = vec![AddedColumn { name: "label".to_owned(), value: Cell::Int(7) }];
    writer.apply(&[transaction(2, vec![insert, alter(&old, &new, label)])]).unwrap();
    let expected = BTreeMap::from([
        ("artists".to_owned(), vec!["id".to_owned()]),
        ("records".to_owned(), vec!["id".to_owned(), "name".to_owned(), "label".to_owned()]),
    ]);
    assert_eq!(views(&path), expected);
    let conn = rusqlite::Connection::open(&path).unwrap();
    let found: (i64, i64) =
        conn.query_row("SELECT name, label FROM records", [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
    assert_eq!(found, (2, 7));
    drop(conn);
    // Names are exchanged within a transaction, through a third one as Postgres wants it.
    let [spare, a, b] = ["spare", "artists", "records"];
    let columns: &[(i16, &str)] = &[(1, "id"), (2, "name"), (4, "label")];
    let (step, last) = (spec(1, "public", spare, columns), spec(1, "public", a, columns));
    let second = spec(2, "public", b, &[(1, "id")]);
    let steps =
        vec![alter(&new, &step, Vec::new()), alter(&other, &second, Vec::new()), alter(&step, &last, Vec::new())];
    writer.apply(&[transaction(3, steps)]).unwrap();
    assert_eq!(views(&path)["records"], ["id"]);
    assert_eq!(views(&path)["artists"].len(), 3);
    writer.apply(&[transaction(4, vec![Change::Schema(SchemaChange::DropTable { table: last })])]).unwrap();
    assert_eq!(views(&path).into_keys().collect::<Vec<_>>(), ["records"]);
}

#[test]
fn a_file_without_views_gets_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    create(&path, &[spec(1, "public", "albums", &[(1, "id")])]);
    rusqlite::Connection::open(&path).unwrap().execute_batch("DROP VIEW albums").unwrap();
    drop(open(&path).writer().unwrap());
    assert!(views(&path).contains_key("albums"));
}
