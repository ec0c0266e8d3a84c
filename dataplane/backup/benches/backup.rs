//! What the backup costs the writer, and how fast a replica comes back.
//!
//! `cargo bench -p backup`; `-- --check` runs everything on little data, to see that it works.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a measurement stops at the first surprise")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_sdk_s3::config::{BehaviorVersion, Credentials as Key, Region};
use backup::metrics::Metrics;
use backup::{Credentials, Lineage, Options, Running, Target};
use futures_util::StreamExt as _;
use ivm::generators::Rng;
use replica::{Description, Identity, Loader, Opened, Replica, Writer};
use rows::schema::{ColumnSpec, IndexSpec};
use rows::{Cell, CellRef, Change, ColumnType, CopyBlock, TableSpec, Transaction, Version};
use testkit::s3::{ACCESS_KEY, REGION, S3, SECRET_KEY};

const BUCKET: &str = "backups";
const MIB: f64 = (1 << 20) as f64;

fn identity() -> Identity {
    Identity { app: "zero".into(), shard: 0 }
}

fn table() -> Arc<TableSpec> {
    let column = |attnum, name: &str, ty| ColumnSpec {
        attnum,
        name: name.into(),
        type_oid: 25,
        type_name: "any".into(),
        ty,
        not_null: true,
    };
    Arc::new(TableSpec {
        oid: 1,
        schema: "public".into(),
        name: "issue".into(),
        columns: vec![
            column(1, "id", ColumnType::Int),
            column(2, "modified", ColumnType::Int),
            column(3, "body", ColumnType::Str),
        ],
        primary_key: vec!["id".into()],
        identity: vec!["id".into()],
        indexes: vec![
            IndexSpec { name: "pkey".into(), unique: true, columns: vec![("id".into(), false)] },
            IndexSpec { name: "modified".into(), unique: false, columns: vec![("modified".into(), false)] },
        ],
    })
}

const WORDS: &str = "alpha beta gamma delta epsilon zeta theta iota kappa lambda sigma omega cache query sync client server socket render \
    layout mobile button dialog crash memory leak index planner replica cursor filter label comment project user search offline network";

fn text(rng: &mut Rng) -> String {
    let words: Vec<&str> = WORDS.split(' ').collect();
    (0..40).map(|_| format!("{}{:x} ", words[rng.below(words.len())], rng.below(4096))).collect()
}

/// A replica of so many rows of about 400 bytes.
fn create(path: &Path, rows: i64) -> Writer {
    let mut rng = Rng::new(1);
    let description = Description {
        identity: identity(),
        replica_id: "bench".into(),
        slot: "slot".into(),
        initial_version: Version::ZERO,
    };
    let mut loader = Loader::create(path, description, vec![table()]).unwrap();
    for from in (0..rows).step_by(1000) {
        let mut block = CopyBlock::new(3);
        for id in from..(from + 1000).min(rows) {
            block.push(CellRef::Int(id));
            block.push(CellRef::Int(rng.below(1 << 30) as i64));
            block.push(CellRef::Text(&text(&mut rng)));
        }
        loader.block(0, &block).unwrap();
    }
    loader.finish(Version::new(1)).unwrap();
    match Replica::open(path, &identity()).unwrap() {
        Opened::Usable(replica) => replica.writer().unwrap(),
        Opened::Missing => panic!("no replica"),
    }
}

fn options(s3: &S3) -> Options {
    let mut options = Options::new(&format!("s3://{BUCKET}/bench"));
    options.endpoint = Some(s3.endpoint());
    options.region = Some(REGION.to_owned());
    options.credentials = Some(Credentials { access_key_id: ACCESS_KEY.into(), secret_access_key: SECRET_KEY.into() });
    options
}

async fn start(options: &Options, writer: &mut Writer) -> (Target, Running) {
    let target = Target::open(options).await.unwrap();
    let lineage = Lineage { app: "zero".into(), shard: 0, initial: Version::new(1) };
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let running = backup::start(target.clone(), writer, backup::Ownership::fixed(1), lineage, metrics).unwrap();
    let mut progress = running.progress.clone();
    progress.wait_for(|p| p.is_complete).await.unwrap();
    (target, running)
}

/// Updates of random rows, as a busy upstream sends them.
fn transactions(rows: i64, count: usize) -> Vec<Vec<Transaction>> {
    let mut rng = Rng::new(2);
    let table = table();
    let mut version = 1;
    let mut transaction = || {
        version += 1;
        let changes = (0..100).map(|_| {
            let id = rng.below(rows as usize) as i64;
            let new = vec![Cell::Int(id), Cell::Int(rng.below(1 << 30) as i64), Cell::Text(text(&mut rng).into())];
            Change::Update { table: Arc::clone(&table), key: None, new }
        });
        Transaction { version: Version::new(version), commit_time_us: 0, changes: changes.collect() }
    };
    (0..count).map(|_| (0..10).map(|_| transaction()).collect()).collect()
}

/// Row changes a second: by the clock, and without the time that the thread waited for a processor, which on a machine that does
/// other things as well says more.
fn apply(writer: &mut Writer, work: &[Vec<Transaction>]) -> (f64, f64) {
    let (began, waited) = (Instant::now(), waited_for_processor());
    let mut changes = 0;
    for transactions in work {
        writer.apply(transactions).unwrap();
        changes += transactions.iter().map(|t| t.changes.len()).sum::<usize>();
    }
    let (elapsed, waited) = (began.elapsed(), waited_for_processor() - waited);
    (changes as f64 / elapsed.as_secs_f64(), changes as f64 / (elapsed - waited).as_secs_f64())
}

/// By this thread, so far.
fn waited_for_processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').nth(1).unwrap().parse().unwrap())
}

async fn writer_cost(rows: i64, commits: usize, rounds: usize) {
    println!("the writer, {rows} rows, {commits} commits of 1000 updates, {rounds} rounds in turn:");
    let work = Arc::new(transactions(rows, commits));
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..rounds * 2 {
        let is_with = round % 2 == 1;
        let directory = tempfile::tempdir().unwrap();
        // In memory where that is possible: the store's disk is not the writer's.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let s3 = S3::start_in(BUCKET, &parent).await.unwrap();
        let path = directory.path().join("replica.db");
        let mut writer = create(&path, rows);
        let running = if is_with { Some(start(&options(&s3), &mut writer).await.1) } else { None };
        let shared = Arc::clone(&work);
        let (mut writer, (clock, rate)) = tokio::task::spawn_blocking(move || {
            let rates = apply(&mut writer, &shared);
            (writer, rates)
        })
        .await
        .unwrap();
        let name = if is_with { "with backup" } else { "without" };
        let wal = std::fs::metadata(directory.path().join("replica.db-wal")).map_or(0, |m| m.len());
        let wal = wal as f64 / MIB;
        println!(
            "  {name:<12} {clock:>9.0} changes/s   {rate:>9.0} without waits for a processor   WAL {wal:>6.1} MiB at the end"
        );
        if is_with {
            with.push(rate)
        } else {
            without.push(rate)
        }
        if let Some(running) = running {
            let uploaded = running.progress.borrow().uploaded_bytes;
            println!("  {:<12} {:>9.1} MiB uploaded", "", uploaded as f64 / MIB);
            running.stop().await.unwrap();
        }
        writer.checkpoint().unwrap();
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (a, b) = (median(&mut without), median(&mut with));
    println!(
        "  the backup costs {:.1} % of the writer's throughput (medians, without waits for a processor)",
        (1.0 - b / a) * 100.0
    );
}

async fn restoring(rows: i64, rounds: usize) {
    let directory = tempfile::tempdir().unwrap();
    let s3 = S3::start(BUCKET).await.unwrap();
    let path = directory.path().join("replica.db");
    let mut writer = create(&path, rows);
    let options = options(&s3);
    let began = Instant::now();
    let (target, running) = start(&options, &mut writer).await;
    let database = std::fs::metadata(&path).unwrap().len() as f64 / MIB;
    println!("a replica of {database:.0} MiB:");
    println!("  first snapshot {:>8.1} MiB/s of database", database / began.elapsed().as_secs_f64());
    writer.apply(&transactions(rows, 1)[0]).unwrap();
    running.stop().await.unwrap();
    let (mut plain, mut restored) = (Duration::MAX, Duration::MAX);
    let mut bytes = 0.0;
    for _ in 0..rounds {
        let to = directory.path().join("plain");
        let began = Instant::now();
        bytes = download(&s3, &target, &to).await as f64 / MIB;
        plain = plain.min(began.elapsed());
        std::fs::remove_file(&to).unwrap();
        let to = directory.path().join("restored.db");
        let began = Instant::now();
        backup::restore(&target, &to, &identity(), None, |_, _| ()).await.unwrap();
        restored = restored.min(began.elapsed());
        std::fs::remove_file(&to).unwrap();
    }
    let (p, r) = (plain.as_secs_f64(), restored.as_secs_f64());
    println!("  plain download and write {:>6.2} s {:>8.1} MiB/s of {bytes:.0} MiB stored", p, bytes / p);
    println!(
        "  restore                  {:>6.2} s {:>8.1} MiB/s stored, {:.1} MiB/s of database",
        r,
        bytes / r,
        database / r
    );
    println!("  restoring has {:.0} % of the speed of plain download and write", p / r * 100.0);
}

/// The same files in the same ranges, written as they are.
async fn download(s3: &S3, target: &Target, to: &Path) -> u64 {
    use std::os::unix::fs::FileExt as _;
    const RANGE: u64 = 4 << 20;
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(s3.endpoint())
        .region(Region::new(REGION))
        .credentials_provider(Key::new(ACCESS_KEY, SECRET_KEY, None, None, "bench"))
        .force_path_style(true)
        .build();
    let client = aws_sdk_s3::Client::from_conf(config);
    let file = Arc::new(std::fs::File::create(to).unwrap());
    let mut ranges = Vec::new();
    let mut size = 0;
    let listing = backup::list(target).await.unwrap();
    for found in listing.files.iter().filter(|f| listing.plan.contains(&f.name)) {
        for from in (0..found.size).step_by(RANGE as usize) {
            ranges.push((format!("bench/{}", found.name.key()), from, found.size.min(from + RANGE) - 1, size + from));
        }
        size += found.size;
    }
    let gets = futures_util::stream::iter(ranges).map(|(key, from, last, at)| {
        let (client, file) = (client.clone(), Arc::clone(&file));
        tokio::spawn(async move {
            let get = client.get_object().bucket(BUCKET).key(key).range(format!("bytes={from}-{last}"));
            let bytes = get.send().await.unwrap().body.collect().await.unwrap().into_bytes();
            tokio::task::spawn_blocking(move || file.write_all_at(&bytes, at).unwrap()).await.unwrap();
        })
    });
    gets.buffer_unordered(32).for_each(|done| async { done.unwrap() }).await;
    tokio::task::spawn_blocking(move || file.sync_all().unwrap()).await.unwrap();
    size
}

#[tokio::main]
async fn main() {
    let is_check = std::env::args().any(|a| a == "--check");
    let (rows, commits, rounds) = if is_check { (5_000, 5, 1) } else { (400_000, 200, 3) };
    writer_cost(rows, commits, rounds).await;
    restoring(rows * 4, rounds).await;
}
