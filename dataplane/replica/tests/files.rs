//! Files that are missing, foreign, damaged or out of reach.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use replica::{Error, Identity, Loader, Opened, Replica};
use rows::{CellRef, ColumnType, CopyBlock, Version};

use crate::fixture::{column, contents, create, description, identity, load, open, table};

fn spec() -> Arc<rows::TableSpec> {
    Arc::new(table(1, "t", vec![column(1, "id", ColumnType::Int, true)], &["id"], Vec::new()))
}

fn block(ids: std::ops::Range<i64>) -> CopyBlock {
    let mut block = CopyBlock::new(1);
    ids.for_each(|i| block.push(CellRef::Int(i)));
    block
}

fn refusal(path: &Path) -> String {
    let opened = match Replica::open(path, &identity()) {
        Err(Error::Refused { reason, .. }) => reason,
        other => panic!("not refused: {other:?}"),
    };
    match Loader::create(path, description(), Vec::new()) {
        Err(Error::Refused { .. }) => opened,
        other => panic!("a copy was started over it: {other:?}"),
    }
}

#[test]
fn nothing_there_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    assert!(matches!(Replica::open(&path, &identity()), Ok(Opened::Missing)));
    fs::write(&path, b"").unwrap();
    assert!(matches!(Replica::open(&path, &identity()), Ok(Opened::Missing)));
    // Directories are not made up: a wrong path is a mistake of configuration.
    let error = Loader::create(&directory.path().join("no/r.db"), description(), Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
}

#[test]
fn foreign_files_are_refused_and_stay() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    for (contents, expected) in
        [(b"short".to_vec(), "not an SQLite database"), (vec![b'x'; 5000], "not an SQLite database")]
    {
        fs::write(&path, &contents).unwrap();
        assert!(refusal(&path).contains(expected));
        assert_eq!(fs::read(&path).unwrap(), contents);
    }
    fs::remove_file(&path).unwrap();
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE mine (x); INSERT INTO mine VALUES (1)")
        .unwrap();
    let before = fs::read(&path).unwrap();
    assert!(refusal(&path).contains("another program"));
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn the_replica_of_another_app_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    create(&path, &[spec()]);
    for other in [Identity { app: "chat".into(), shard: 0 }, Identity { app: "zero".into(), shard: 1 }] {
        let Err(Error::Refused { reason, .. }) = Replica::open(&path, &other) else { panic!("opened") };
        assert!(reason.contains("'zero' shard 0"), "{reason}");
        let mut description = description();
        description.identity = other;
        assert!(matches!(Loader::create(&path, description, Vec::new()), Err(Error::Refused { .. })));
    }
    open(&path);
}

#[test]
fn a_newer_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    create(&path, &[spec()]);
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.execute_batch("PRAGMA user_version = 99; PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(conn);
    assert!(refusal(&path).contains("format 99"));
}

/// The original migrates a file by this table, and what is older than its version 4 it replaces.
#[test]
fn a_replica_gives_way_to_the_original() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let versions = "SELECT dataVersion, schemaVersion, minSafeVersion FROM \"_zero.versionHistory\"";
    let read = || {
        let conn = rusqlite::Connection::open(&path).unwrap();
        conn.query_row(versions, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap()
    };
    create(&path, &[spec()]);
    assert_eq!(read(), (3, 3, 1));
    // One that a former release made is marked when it is written to.
    rusqlite::Connection::open(&path).unwrap().execute("DROP TABLE \"_zero.versionHistory\"", []).unwrap();
    drop(open(&path).writer().unwrap());
    assert_eq!(read(), (3, 3, 1));
}

#[test]
fn a_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    assert!(refusal(directory.path()).contains("a directory"));
}

#[test]
fn a_damaged_replica_asks_for_a_new_copy_and_gets_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    load(&path, &[spec()], &[(0, block(0..5000))]);
    let mut bytes = fs::read(&path).unwrap();
    // The header stays; every page after it, and the schema on the first, is garbage.
    bytes[100..].fill(0xab);
    fs::write(&path, &bytes).unwrap();
    let error = Replica::open(&path, &identity()).unwrap_err();
    assert!(matches!(error, Error::Resync { .. }), "{error}");
    let mut replica = load(&path, &[spec()], &[(0, block(0..3))]).reader().unwrap();
    replica.begin().unwrap();
    let table = Arc::clone(&replica.schema().tables["t"]);
    assert_eq!(contents(&mut replica, &table).len(), 3);
}

#[test]
fn an_abandoned_copy_leaves_nothing_and_a_finished_one_replaces_the_former() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let mut loader = Loader::create(&path, description(), vec![spec()]).unwrap();
    loader.block(0, &block(0..10)).unwrap();
    drop(loader);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);

    let first = load(&path, &[spec()], &[(0, block(0..10))]);
    // The former replica has commits in its WAL, which must not reach the new one.
    let mut writer = first.writer().unwrap();
    let insert = rows::Change::Insert { table: spec(), new: vec![rows::Cell::Int(77)] };
    writer.apply(&[crate::fixture::transaction(5, vec![insert])]).unwrap();
    let mut loader = Loader::create(&path, description(), vec![spec()]).unwrap();
    loader.block(0, &block(100..120)).unwrap();
    assert_eq!(open(&path).version(), Version::new(5), "the former stays until the end");
    loader.finish(Version::new(9)).unwrap();
    let replica = open(&path);
    assert_eq!((replica.version(), replica.description().initial_version), (Version::new(9), Version::new(9)));
    let mut reader = replica.reader().unwrap();
    reader.begin().unwrap();
    let table = Arc::clone(&reader.schema().tables["t"]);
    let found = contents(&mut reader, &table);
    assert_eq!(found.len(), 20);
    assert!(found.values().all(|r| r.version() == Version::new(9)));
}

/// Root may write anywhere, so the check runs as another user.
#[test]
fn a_read_only_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    create(&path, &[spec()]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let executable = std::env::current_exe().unwrap();
    let is_root = fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0).unwrap();
    let mut command = if is_root {
        // The binary must be reachable for the other user.
        let copy = directory.path().join("tests");
        fs::copy(&executable, &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(copy);
        command
    } else {
        Command::new(&executable)
    };
    let output = command
        .args(["files::child_without_permission", "--exact", "--ignored", "--nocapture"])
        .env("REPLICA_PATH", &path)
        .output()
        .unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by a_read_only_directory_is_refused in a process of its own"]
fn child_without_permission() {
    let path = std::env::var_os("REPLICA_PATH").unwrap();
    let path = Path::new(&path);
    let opened = Replica::open(path, &identity()).and_then(|opened| match opened {
        Opened::Usable(replica) => replica.writer().map(drop),
        Opened::Missing => panic!("missing"),
    });
    assert!(matches!(opened, Err(Error::Refused { .. })), "{opened:?}");
    let created = Loader::create(&path.with_file_name("new.db"), description(), vec![spec()]);
    assert!(matches!(created, Err(Error::Refused { .. })), "{created:?}");
}
