//! The change log against a real Postgres.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends where its assumption does")]

mod identity;
mod owners;
mod pages;

use std::sync::Arc;
use std::time::Instant;

use changes::{Error, Log, Options, Owner, Purged};
use rows::schema::ColumnSpec;
use rows::{Cell, Change, ColumnType, TableSpec, Transaction, Version};
use testkit::pgbouncer::PgBouncer;
use testkit::postgres::{Postgres, Version as Server};
use upstream::App;

struct Fixture {
    postgres: Postgres,
    options: Options,
}

fn start() -> Fixture {
    let postgres = Postgres::start(Server::V15).unwrap();
    let options = Options::new(postgres.url("postgres").parse().unwrap(), App::new("zero", 0).unwrap());
    Fixture { postgres, options }
}

/// The same behind a pooler in transaction mode that has fewer connections than there are clients.
fn start_pooled() -> (Fixture, PgBouncer) {
    let mut fixture = start();
    let pooler = PgBouncer::start(&fixture.postgres, 2).unwrap();
    fixture.options.address = pooler.url("postgres").parse().unwrap();
    (fixture, pooler)
}

fn owner(id: &str) -> Owner {
    Owner { id: id.to_owned(), address: format!("{id}:4849") }
}

fn table() -> Arc<TableSpec> {
    let column = |attnum, name: &str, ty| ColumnSpec {
        attnum,
        name: name.to_owned(),
        type_oid: 25,
        type_name: "text".to_owned(),
        ty,
        not_null: true,
    };
    Arc::new(TableSpec {
        oid: 7,
        schema: "public".to_owned(),
        name: "issue".to_owned(),
        columns: vec![column(1, "id", ColumnType::Int), column(2, "title", ColumnType::Str)],
        primary_key: vec!["id".to_owned()],
        identity: vec!["id".to_owned()],
        indexes: Vec::new(),
    })
}

fn transaction(table: &Arc<TableSpec>, version: u64, rows: i64, text: &str) -> Transaction {
    let insert = |id| Change::Insert { table: Arc::clone(table), new: vec![Cell::Int(id), Cell::Text(text.into())] };
    Transaction { version: Version::new(version), commit_time_us: 5, changes: (0..rows).map(insert).collect() }
}

fn v(n: u64) -> Version {
    Version::new(n)
}

async fn read_all(log: &Log, mut after: Version) -> Vec<Transaction> {
    let mut all = Vec::new();
    loop {
        let some = log.read_after(after).await.unwrap();
        let Some(last) = some.last() else { return all };
        after = last.version;
        all.extend(some);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_appended_is_read_from_any_version() {
    check_reading(&start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_appended_is_read_through_a_pooler() {
    let (fixture, _pooler) = start_pooled();
    check_reading(&fixture).await;
}

async fn check_reading(fixture: &Fixture) {
    let mut log = Log::open(&fixture.options).await.unwrap();
    assert!(log.lineage().await.unwrap().is_none());
    assert!(matches!(log.read_after(v(1)).await, Err(Error::Empty)));
    assert!(matches!(log.append(&[]).await, Err(Error::NotOwner)));
    log.begin(v(10), &owner("a")).await.unwrap();
    assert!(log.read_after(v(10)).await.unwrap().is_empty());
    let table = table();
    let small: Vec<Transaction> = (11..40).map(|n| transaction(&table, n, 3, "x")).collect();
    log.append(&small[..10]).await.unwrap();
    log.append(&small[10..]).await.unwrap();
    // Larger than a page, and than a statement.
    let large = transaction(&table, 40, 80, &"y".repeat(1 << 20));
    log.append(std::slice::from_ref(&large)).await.unwrap();
    log.append(&[transaction(&table, 41, 1, "z")]).await.unwrap();
    assert_eq!(log.last().await.unwrap(), v(41));
    let reader = Log::open(&fixture.options).await.unwrap();
    for after in [10, 11, 25, 39, 40, 41] {
        let read = read_all(&reader, v(after)).await;
        let versions: Vec<u64> = read.iter().map(|t| t.version.as_u64()).collect();
        assert_eq!(versions, (after + 1..42).collect::<Vec<_>>());
        if let Some(whole) = read.iter().find(|t| t.version == v(40)) {
            assert_eq!(format!("{whole:?}"), format!("{large:?}"));
        }
    }
    let error = reader.read_after(v(9)).await.unwrap_err();
    assert!(matches!(error, Error::TooOld { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_can_be_repeated_and_never_goes_back() {
    let fixture = start();
    let mut log = Log::open(&fixture.options).await.unwrap();
    log.begin(v(10), &owner("a")).await.unwrap();
    let table = table();
    let some: Vec<Transaction> = (11..20).map(|n| transaction(&table, n, 1, "x")).collect();
    log.append(&some[..5]).await.unwrap();
    log.append(&some[..5]).await.unwrap();
    log.append(&some).await.unwrap();
    assert_eq!(read_all(&log, v(10)).await.len(), 9);
    let reversed = [some[1].clone(), some[0].clone()];
    assert!(matches!(log.append(&reversed).await, Err(Error::OutOfOrder { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_previous_owner_is_fenced_off() {
    check_fencing(&start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_previous_owner_is_fenced_off_through_a_pooler() {
    let (fixture, _pooler) = start_pooled();
    check_fencing(&fixture).await;
}

async fn check_fencing(fixture: &Fixture) {
    let table = table();
    let mut a = Log::open(&fixture.options).await.unwrap();
    a.begin(v(10), &owner("a")).await.unwrap();
    a.append(&[transaction(&table, 11, 1, "x")]).await.unwrap();
    let mut b = Log::open(&fixture.options).await.unwrap();
    let lineage = b.take_over(&owner("b")).await.unwrap();
    assert_eq!((lineage.replica, lineage.start, lineage.last), (v(10), v(10), v(11)));
    assert!(matches!(a.append(&[transaction(&table, 12, 1, "from a")]).await, Err(Error::NotOwner)));
    assert!(matches!(a.purge(v(11), 0).await, Err(Error::NotOwner)));
    assert!(matches!(a.check_ownership().await, Err(Error::NotOwner)));
    b.append(&[transaction(&table, 12, 1, "from b")]).await.unwrap();
    assert_eq!(a.lineage().await.unwrap().unwrap().owner, Some(owner("b")));
    // A restarted process of the same name is another owner.
    let mut again = Log::open(&fixture.options).await.unwrap();
    again.take_over(&owner("b")).await.unwrap();
    assert!(matches!(b.append(&[transaction(&table, 13, 1, "x")]).await, Err(Error::NotOwner)));
    again.begin(v(100), &owner("b")).await.unwrap();
    assert!(read_all(&again, v(100)).await.is_empty());
    assert!(matches!(again.read_after(v(12)).await, Err(Error::TooOld { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purging_keeps_what_is_needed_and_some_more() {
    let fixture = start();
    let table = table();
    let mut log = Log::open(&fixture.options).await.unwrap();
    log.begin(v(10), &owner("a")).await.unwrap();
    for n in 11..31 {
        log.append(&[transaction(&table, n, 10, &"x".repeat(100))]).await.unwrap();
    }
    let purged = |pages, start| Purged { pages, start: v(start) };
    assert_eq!(log.purge(v(30), 1 << 30).await.unwrap(), purged(0, 10));
    assert_eq!(log.purge(v(20), 0).await.unwrap(), purged(10, 20));
    assert!(matches!(log.read_after(v(19)).await, Err(Error::TooOld { .. })));
    assert_eq!(read_all(&log, v(20)).await.len(), 10);
    // About three pages are kept although nobody needs them.
    assert_eq!(log.purge(v(30), 4000).await.unwrap(), purged(7, 27));
    assert_eq!(log.lineage().await.unwrap().unwrap().start, v(27));
    assert_eq!(log.purge(v(30), 0).await.unwrap(), purged(3, 30));
    assert!(read_all(&log, v(30)).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_replaced() {
    let fixture = start();
    let table = table();
    let mut log = Log::open(&fixture.options).await.unwrap();
    log.begin(v(10), &owner("a")).await.unwrap();
    fixture.postgres.restart().unwrap();
    let one = [transaction(&table, 11, 1, "x")];
    assert!(matches!(log.append(&one).await, Err(Error::Statement { .. })));
    log.reconnect().await.unwrap();
    log.append(&one).await.unwrap();
    assert_eq!(log.last().await.unwrap(), v(11));
}

/// The floor is far below what a release build reaches; it catches a return to row-by-row storage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_changes_are_stored_per_second() {
    let fixture = start();
    let table = table();
    let mut log = Log::open(&fixture.options).await.unwrap();
    log.begin(v(10), &owner("a")).await.unwrap();
    let text = "x".repeat(60);
    let batches: Vec<Transaction> = (11..111).map(|n| transaction(&table, n, 1000, &text)).collect();
    let begin = Instant::now();
    for batch in &batches {
        log.append(std::slice::from_ref(batch)).await.unwrap();
    }
    let rate = 100_000.0 / begin.elapsed().as_secs_f64();
    println!("stored {rate:.0} changes/s in transactions of 1,000");
    assert!(rate > 20_000.0, "{rate}");
    let begin = Instant::now();
    assert_eq!(read_all(&log, v(10)).await.len(), 100);
    println!("read {:.0} changes/s", 100_000.0 / begin.elapsed().as_secs_f64());
}
