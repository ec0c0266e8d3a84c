//! Whoever copies the WAL is asked before it is cut, and knows where it ends.

use std::sync::{Arc, Mutex};

use replica::{WalEnd, WalKeeper, Writer};
use rows::{Cell, Change, ColumnType, TableSpec, Version};

use crate::fixture::{column, create, table, transaction};

/// What a keeper was asked, and what it answers.
#[derive(Debug, Default)]
struct Log {
    allows: bool,
    released: Vec<(Version, u32)>,
    resumed: Vec<u32>,
}

#[derive(Debug)]
struct Keeper(Arc<Mutex<Log>>, Arc<WalEnd>);

impl WalKeeper for Keeper {
    fn release(&mut self, version: Version) -> bool {
        let mut log = self.0.lock().unwrap();
        log.released.push((version, self.1.frames()));
        log.allows
    }

    fn resume(&mut self) {
        self.0.lock().unwrap().resumed.push(self.1.frames());
    }
}

fn spec() -> Arc<TableSpec> {
    let columns = vec![column(1, "id", ColumnType::Int, true), column(2, "text", ColumnType::Str, true)];
    Arc::new(table(1, "a", columns, &["id"], Vec::new()))
}

fn insert(writer: &mut Writer, version: u64, rows: i64) {
    let text = || Cell::Text("x".repeat(3000).into());
    let row = |i| Change::Insert { table: spec(), new: vec![Cell::Int(version as i64 * 100_000 + i), text()] };
    writer.apply(&[transaction(version, (0..rows).map(row).collect())]).unwrap();
}

#[test]
fn the_keeper_decides_when_the_wal_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r.db");
    let wal = || std::fs::metadata(directory.path().join("r.db-wal")).map_or(0, |m| m.len());
    let mut writer = create(&path, &[spec()]).writer().unwrap();
    insert(&mut writer, 2, 10);
    let end = writer.wal_end();
    let log = Arc::new(Mutex::new(Log { allows: true, ..Log::default() }));
    writer.keep_wal(Box::new(Keeper(Arc::clone(&log), Arc::clone(&end)))).unwrap();
    // From here the end is known.
    assert_eq!((end.frames(), wal()), (0, 0));
    assert_eq!(log.lock().unwrap().resumed, [0]);
    log.lock().unwrap().allows = false;
    let commits = end.commits();
    insert(&mut writer, 3, 10);
    assert_eq!(end.commits(), commits + 1);
    assert_eq!(u64::from(end.frames()) * (4096 + 24) + 32, wal());
    // More than the writer likes a WAL to be, but the keeper is against it, and holds what it has not copied.
    let hold = rusqlite::Connection::open(&path).unwrap();
    hold.execute_batch("BEGIN; SELECT * FROM _zero_replica").unwrap();
    let mut version = 4;
    while end.frames() < 30_000 {
        insert(&mut writer, version, 2000);
        version += 1;
    }
    writer.checkpoint().unwrap();
    assert!(wal() > 30_000 * 4096);
    {
        let mut log = log.lock().unwrap();
        assert!(log.released.len() > 2 && log.resumed.len() == 1, "{log:?}");
        assert_eq!(log.released.last(), Some(&(writer.version(), end.frames())));
        log.allows = true;
    }
    hold.execute_batch("ROLLBACK").unwrap();
    writer.checkpoint().unwrap();
    assert_eq!((end.frames(), wal()), (0, 0));
    assert_eq!(log.lock().unwrap().resumed, [0, 0]);
    // A reader keeps it from being cut: the keeper goes on where it was.
    insert(&mut writer, version, 10);
    let frames = end.frames();
    let reader = rusqlite::Connection::open(&path).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM _zero_replica").unwrap();
    writer.checkpoint().unwrap();
    assert_eq!(log.lock().unwrap().resumed, [0, 0, frames]);
}
