//! A replica that lives a random life, stores to back it up to, and a judge of what comes back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup::metrics::Metrics;
use backup::{Credentials, Lineage, Options, Ownership, Pace, Running, Target};
use ivm::generators::Rng;
use replica::{Description, Identity, Loader, Opened, Replica, Writer};
use rows::schema::{ColumnSpec, IndexSpec};
use rows::transaction::{Backfill, SchemaChange};
use rows::{Cell, Change, ColumnType, TableSpec, Transaction, Version};
use testkit::s3::S3;

pub const BUCKET: &str = "backups";

pub fn identity() -> Identity {
    Identity { app: "zero".into(), shard: 0 }
}

pub fn description() -> Description {
    Description {
        identity: identity(),
        replica_id: "copy-1".into(),
        slot: "zero_0_1".into(),
        initial_version: Version::ZERO,
    }
}

pub fn lineage() -> Lineage {
    Lineage { app: "zero".into(), shard: 0, initial: Version::new(1) }
}

pub fn table(oid: u32) -> Arc<TableSpec> {
    let column = |attnum, name: &str, ty| ColumnSpec {
        attnum,
        name: name.into(),
        type_oid: 25,
        type_name: "any".into(),
        ty,
        not_null: true,
    };
    let index = |name: &str, unique, columns: &[&str]| IndexSpec {
        name: name.into(),
        unique,
        columns: columns.iter().map(|c| ((*c).to_owned(), false)).collect(),
    };
    Arc::new(TableSpec {
        oid,
        schema: "public".into(),
        name: format!("t{oid}"),
        columns: vec![
            column(1, "id", ColumnType::Int),
            column(2, "n", ColumnType::Int),
            column(3, "body", ColumnType::Str),
        ],
        primary_key: vec!["id".into()],
        identity: vec!["id".into()],
        indexes: vec![index("pkey", true, &["id"]), index("by_n", false, &["n"])],
    })
}

/// An upstream whose rows change at random, and whose tables come and go.
pub struct Source {
    pub rng: Rng,
    pub version: u64,
    tables: Vec<(Arc<TableSpec>, Vec<i64>)>,
    next: i64,
}

impl Source {
    pub fn new(seed: u64) -> Source {
        Source { rng: Rng::new(seed), version: 1, tables: vec![(table(1), Vec::new())], next: 1 }
    }

    /// Creates the replica that follows this, at version 1.
    pub fn create(&self, path: &Path) -> Writer {
        let specs = self.tables.iter().map(|(spec, _)| Arc::clone(spec)).collect();
        Loader::create(path, description(), specs).unwrap().finish(Version::new(1)).unwrap();
        open(path)
    }

    fn body(&mut self) -> Cell {
        let length = 1 << self.rng.below(12);
        let letter = (b'a' + self.rng.below(26) as u8) as char;
        Cell::Text((0..length).map(|i| if i % 7 == 0 { '-' } else { letter }).collect::<String>().into())
    }

    fn row(&mut self, id: i64) -> Vec<Cell> {
        vec![Cell::Int(id), Cell::Int(self.rng.below(100) as i64), self.body()]
    }

    /// A transaction of about `size` changes.
    pub fn transaction(&mut self, size: usize) -> Transaction {
        self.version += 1;
        let mut changes = Vec::new();
        for _ in 0..=self.rng.below(size * 2) {
            changes.extend(self.change());
        }
        Transaction { version: Version::new(self.version), commit_time_us: self.version as i64, changes }
    }

    fn change(&mut self) -> Option<Change> {
        if self.tables.is_empty() || self.rng.one_in(300) {
            let spec = table(self.version as u32 * 100 + self.tables.len() as u32);
            if self.tables.iter().any(|(t, _)| t.oid == spec.oid) {
                return None;
            }
            self.tables.push((Arc::clone(&spec), Vec::new()));
            return Some(Change::Schema(SchemaChange::CreateTable { table: spec, rows: Backfill::None }));
        }
        let at = self.rng.below(self.tables.len());
        let spec = Arc::clone(&self.tables[at].0);
        if self.rng.one_in(400) {
            self.tables.remove(at);
            return Some(Change::Schema(SchemaChange::DropTable { table: spec }));
        }
        if self.rng.one_in(300) {
            self.tables[at].1.clear();
            return Some(Change::Truncate { tables: vec![spec] });
        }
        let count = self.tables[at].1.len();
        if count == 0 || self.rng.one_in(2) {
            let id = self.next;
            self.next += 1;
            self.tables[at].1.push(id);
            return Some(Change::Insert { table: spec, new: self.row(id) });
        }
        let which = self.rng.below(count);
        let id = self.tables[at].1[which];
        if self.rng.one_in(4) {
            self.tables[at].1.swap_remove(which);
            return Some(Change::Delete { table: spec, key: vec![Cell::Int(id)] });
        }
        Some(Change::Update { table: spec, key: None, new: self.row(id) })
    }
}

/// Inserts of about one page each.
pub fn bulk(version: u64, pages: i64) -> Transaction {
    let first = version as i64 * 100_000;
    let text = |id: i64| format!("{id:08x}").repeat(400);
    let row = |id: i64| vec![Cell::Int(id), Cell::Int(id % 7), Cell::Text(text(id).into())];
    let changes = (first..first + pages).map(|id| Change::Insert { table: table(1), new: row(id) }).collect();
    Transaction { version: Version::new(version), commit_time_us: 0, changes }
}

pub fn open(path: &Path) -> Writer {
    match Replica::open(path, &identity()).unwrap() {
        Opened::Usable(replica) => replica.writer().unwrap(),
        Opened::Missing => panic!("the replica is missing"),
    }
}

/// The version of a replica file and everything in it, as SQL shows it.
pub fn contents(path: &Path) -> (Version, BTreeMap<String, Vec<String>>) {
    let conn = rusqlite::Connection::open(path).unwrap();
    let check: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    conn.execute_batch("BEGIN").unwrap();
    let version: i64 = conn.query_row(replica::VERSION_QUERY, [], |row| row.get(0)).unwrap();
    let mut names = conn.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").unwrap();
    let names: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let mut tables = BTreeMap::new();
    for name in names {
        let mut statement = conn.prepare(&format!("SELECT * FROM \"{name}\"")).unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| {
            let cells = (0..columns).map(|i| row.get::<_, rusqlite::types::Value>(i));
            Ok(format!("{:?}", cells.collect::<rusqlite::Result<Vec<_>>>()?))
        });
        let mut rows: Vec<String> = rows.unwrap().map(Result::unwrap).collect();
        rows.sort();
        tables.insert(name, rows);
    }
    (Version::new(version as u64), tables)
}

/// A server with an empty bucket, and options that reach it in a hurry.
pub async fn bucket(path: &str) -> (S3, Options) {
    let s3 = S3::start(BUCKET).await.unwrap();
    let options = bucket_options(&s3, path);
    (s3, options)
}

pub fn bucket_options(s3: &S3, path: &str) -> Options {
    let mut options = quick(&format!("s3://{BUCKET}/{path}"));
    options.endpoint = Some(s3.endpoint());
    options.region = Some(testkit::s3::REGION.to_owned());
    options.credentials = Some(Credentials {
        access_key_id: testkit::s3::ACCESS_KEY.to_owned(),
        secret_access_key: testkit::s3::SECRET_KEY.to_owned(),
    });
    options
}

pub fn directory(root: &Path) -> Options {
    quick(&format!("file://{}", root.display()))
}

fn quick(url: &str) -> Options {
    let mut options = Options::new(url);
    options.interval = Duration::from_millis(20);
    options.pace = Pace {
        compaction: [Duration::from_millis(150), Duration::from_millis(400), Duration::from_millis(900)],
        covered: [Duration::from_millis(300), Duration::from_millis(600), Duration::from_secs(2)],
        sweep: Duration::from_millis(200),
    };
    options
}

pub fn metrics() -> Metrics {
    Metrics::register(&prometheus::Registry::new()).unwrap()
}

pub async fn start(options: &Options, writer: &mut Writer, epoch: u64) -> (Target, Running) {
    let target = Target::open(options).await.unwrap();
    let running = backup::start(target.clone(), writer, Ownership::fixed(epoch), lineage(), metrics()).unwrap();
    (target, running)
}

/// Waits until the backup can be restored to `version`.
pub async fn restorable(running: &Running, version: Version) {
    let mut progress = running.progress.clone();
    let reached = progress.wait_for(|p| p.is_complete && p.restorable_version.is_some_and(|v| v >= version));
    let reached = tokio::time::timeout(Duration::from_secs(30), reached).await;
    assert!(reached.is_ok(), "the backup does not reach {version}: {:?}", *running.progress.borrow());
}

pub async fn restore(target: &Target, path: &Path) -> Result<backup::Restored, backup::Error> {
    backup::restore(target, path, &identity(), Some(Version::new(1)), |_, _| ()).await
}

/// Everything in a directory but what a test put there.
pub fn leftovers(directory: &Path, expected: &[&str]) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
    entries.filter(|p| !expected.contains(&p.file_name().unwrap().to_str().unwrap())).collect()
}
