//! Killed at any moment, the file is a complete version or not there.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ivm::generators::Rng;
use replica::{Loader, Opened, Replica};
use rows::{Cell, CellRef, Change, ColumnType, CopyBlock, TableSpec, Transaction, ValueRef, Version};

use crate::fixture::{column, contents, create, description, identity, index, open, table, transaction};

const LOADED: i64 = 40_000;

fn specs() -> Vec<Arc<TableSpec>> {
    let one = |oid, name| {
        let columns = vec![
            column(1, "id", ColumnType::Int, true),
            column(2, "n", ColumnType::Int, true),
            column(3, "text", ColumnType::Str, true),
        ];
        Arc::new(table(oid, name, columns, &["id"], vec![index("n", false, &["n"])]))
    };
    vec![one(1, "a"), one(2, "b")]
}

fn spawn(role: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([&format!("crash::child_{role}"), "--exact", "--ignored", "--nocapture"])
        .env("REPLICA_PATH", path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills the child a while after it said that it is at work.
fn kill_after(mut child: Child, delay: Duration) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("at work")), "the child did not start");
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn killed_during_the_initial_copy() {
    let directory = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(1);
    let (mut missing, mut complete) = (0, 0);
    for round in 0..16 {
        let path = directory.path().join(format!("r{round}.db"));
        kill_after(spawn("load", &path), Duration::from_millis(rng.below(40 * (round + 1)) as u64));
        match Replica::open(&path, &identity()).unwrap() {
            Opened::Missing => {
                missing += 1;
                // What is left over does not stand in the way of the next attempt.
                create(&path, &specs());
            }
            Opened::Usable(replica) => {
                complete += 1;
                let mut reader = replica.reader().unwrap();
                reader.begin().unwrap();
                for table in reader.schema().tables.values() {
                    assert_eq!(contents(&mut reader, table).len() as i64, LOADED);
                }
                integrity(&path);
            }
        }
    }
    assert!(missing > 0, "no copy was interrupted ({complete} complete)");
}

#[test]
#[ignore = "run by killed_during_the_initial_copy in a process of its own"]
fn child_load() {
    let path = std::env::var_os("REPLICA_PATH").unwrap();
    let mut loader = Loader::create(Path::new(&path), description(), specs()).unwrap();
    println!("at work");
    for start in (0..LOADED).step_by(1000) {
        for at in 0..2 {
            let mut block = CopyBlock::new(3);
            for id in start..start + 1000 {
                block.push(CellRef::Int(id));
                block.push(CellRef::Int(id % 77));
                block.push(CellRef::Text("a text of some length"));
            }
            loader.block(at, &block).unwrap();
        }
    }
    loader.finish(Version::new(1)).unwrap();
}

/// Transaction `v` inserts row `v` into both tables, counts on row 0, and moves row `v - 1` of `b` to a negative key.
fn step(specs: &[Arc<TableSpec>], v: u64) -> Transaction {
    let row = |id: i64, n: i64| vec![Cell::Int(id), Cell::Int(n), Cell::Text("x".repeat(300).into())];
    let id = v as i64;
    let (a, b) = (Arc::clone(&specs[0]), Arc::clone(&specs[1]));
    let mut changes = vec![
        Change::Insert { table: Arc::clone(&a), new: row(id, 0) },
        Change::Insert { table: Arc::clone(&b), new: row(id, 0) },
        Change::Update { table: a, key: None, new: row(0, id) },
    ];
    if id > 2 {
        changes.push(Change::Update { table: b, key: Some(vec![Cell::Int(id - 1)]), new: row(1 - id, 5) });
    }
    transaction(v, changes)
}

#[test]
fn killed_while_applying() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let specs = specs();
    let mut writer = create(&path, &specs).writer().unwrap();
    // Row 0 of `a` is there from the start; versions begin at 2.
    let zero = vec![Cell::Int(0), Cell::Int(0), Cell::Text("".into())];
    let mut first = step(&specs, 2);
    first.changes.insert(0, Change::Insert { table: Arc::clone(&specs[0]), new: zero });
    writer.apply(&[first]).unwrap();
    drop(writer);
    let mut rng = Rng::new(2);
    let mut last = 2;
    for _ in 0..12 {
        kill_after(spawn("apply", &path), Duration::from_millis(5 + rng.below(120) as u64));
        let replica = open(&path);
        let version = replica.version().as_u64();
        assert!(version >= last);
        last = version;
        let mut reader = replica.reader().unwrap();
        assert_eq!(reader.begin().unwrap().as_u64(), version);
        let schema = reader.schema();
        let a = contents(&mut reader, &schema.tables["a"]);
        assert_eq!(a.len() as u64, version, "rows 0 and 2 to the version");
        let counter = a.values().find(|r| r.get(0) == ValueRef::Int(0)).unwrap();
        assert!(version == 2 || counter.get(1) == ValueRef::Int(version as i64));
        let b = contents(&mut reader, &schema.tables["b"]);
        assert_eq!(b.len() as u64, version - 1);
        assert_eq!(b.values().filter(|r| r.get(0) == ValueRef::Int(version as i64)).count(), 1);
        integrity(&path);
    }
    assert!(last > 100, "the child got nowhere: {last}");
}

#[test]
#[ignore = "run by killed_while_applying in a process of its own"]
fn child_apply() {
    let path = std::env::var_os("REPLICA_PATH").unwrap();
    let specs = specs();
    let mut writer = open(Path::new(&path)).writer().unwrap();
    println!("at work");
    // As after a restart: the stream begins again somewhat earlier.
    let mut next = writer.version().as_u64().saturating_sub(5).max(2);
    for round in 0.. {
        let many: Vec<Transaction> = (0..1 + round % 4).map(|i| step(&specs, next + i)).collect();
        next += many.len() as u64;
        writer.apply(&many).unwrap();
    }
}

/// A limit on file sizes stands for the end of the disk: the same writes fail in the same places.
#[test]
fn a_full_disk_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let specs = specs();
    let mut writer = create(&path, &specs).writer().unwrap();
    let zero = vec![Cell::Int(0), Cell::Int(0), Cell::Text("".into())];
    writer.apply(&[transaction(2, vec![Change::Insert { table: Arc::clone(&specs[0]), new: zero }])]).unwrap();
    drop(writer);
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 4000; exec \"$0\" crash::child_full --exact --ignored --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env("REPLICA_PATH", &path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    // With room again it goes on where it was.
    let replica = open(&path);
    let next = replica.version().as_u64() + 1;
    assert!(next > 10, "{next}");
    let batch = replica.writer().unwrap().apply(&[step(&specs, next)]).unwrap().unwrap();
    assert_eq!(batch.previous.as_u64(), next - 1);
    integrity(&path);
}

#[test]
#[ignore = "run by a_full_disk_loses_nothing in a process of its own"]
fn child_full() {
    let path = std::env::var_os("REPLICA_PATH").unwrap();
    let path = Path::new(&path);
    let specs = specs();
    let mut writer = open(path).writer().unwrap();
    let (mut failures, mut version) = (0, 2);
    while failures < 3 {
        match writer.apply(&[step(&specs, version + 1)]) {
            Ok(_) => version += 1,
            Err(error) => {
                assert!(matches!(error, replica::Error::Storage { .. }), "{error}");
                failures += 1;
            }
        }
        assert_eq!(writer.version().as_u64(), version);
    }
    let mut reader = open(path).reader().unwrap();
    assert_eq!(reader.begin().unwrap().as_u64(), version);
    let table = Arc::clone(&reader.schema().tables["a"]);
    assert_eq!(contents(&mut reader, &table).len() as u64, version - 1);
}

fn integrity(path: &Path) {
    let conn = rusqlite::Connection::open(path).unwrap();
    let answer: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(answer, "ok");
}
