//! Row changes per second through the log to four subscribers, to one that comes later, and what the stream adds to a single
//! commit.
//!
//! `cargo bench -p streamer --bench fan_out`

#![allow(clippy::unwrap_used, reason = "a benchmark ends where its assumption does")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use changes::{Batch, Log, Owner};
use prometheus::Registry;
use rows::schema::ColumnSpec;
use rows::{Cell, Change, ColumnType, TableSpec, Transaction, Version};
use streamer::{Event, Fanout, FanoutOptions, Metrics, Options, Role, Server, ServerOptions, Subscriber, Token};
use testkit::postgres::{Postgres, Version as PostgresVersion};
use upstream::App;

const SUBSCRIBERS: usize = 4;
const BATCHES: u64 = 300;
const ROWS_PER_TRANSACTION: i64 = 100;
const TRANSACTIONS_PER_BATCH: u64 = 20;
const SINGLES: u64 = 500;

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
        columns: vec![
            column(1, "id", ColumnType::Int),
            column(2, "title", ColumnType::Str),
            column(3, "modified", ColumnType::Float),
            column(4, "open", ColumnType::Bool),
        ],
        primary_key: vec!["id".to_owned()],
        identity: vec!["id".to_owned()],
        indexes: Vec::new(),
    })
}

fn transaction(table: &Arc<TableSpec>, version: u64, rows: i64) -> Transaction {
    let insert = |id| {
        let text = "a title of ordinary length, as rows have them, and then some";
        let new = vec![Cell::Int(id), Cell::Text(text.into()), Cell::Float(1.7e12), Cell::Bool(true)];
        Change::Insert { table: Arc::clone(table), new }
    };
    Transaction { version: Version::new(version), commit_time_us: 5, changes: (0..rows).map(insert).collect() }
}

/// Follows to the end; reports when each version arrived.
async fn follow(options: Options, end: Version) -> Vec<(Version, Instant)> {
    let (_, mut subscriber) = Subscriber::connect(&options, Version::new(10), Version::new(10)).await.unwrap();
    let acks = subscriber.acks();
    let mut arrivals = Vec::new();
    loop {
        if let Event::Transactions(transactions) = subscriber.next().await.unwrap() {
            let now = Instant::now();
            arrivals.extend(transactions.iter().map(|t| (t.version, now)));
            let last = transactions.last().unwrap().version;
            acks.ack(last);
            if last == end {
                return arrivals;
            }
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let postgres = Postgres::start(PostgresVersion::V15).unwrap();
    let log_options =
        changes::Options { address: postgres.url("postgres").parse().unwrap(), app: App::new("zero", 0).unwrap() };
    let mut log = Log::open(&log_options).await.unwrap();
    log.begin(Version::new(10), &Owner { id: "bench".to_owned(), address: String::new() }).await.unwrap();
    let lineage = log.lineage().await.unwrap().unwrap();
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let token = Token::from_config(Some("t"), None).unwrap();
    let options =
        ServerOptions { listen: ([127, 0, 0, 1], 0).into(), token: token.clone(), ..ServerOptions::default() };
    let status = Arc::new(|_| Box::pin(std::future::ready(serde_json::Value::Null)) as _);
    let failed_logins = prometheus::IntCounter::new("zero_failed", "failed").expect("a name");
    let page = port::StatusPage::new(status, None, false, failed_logins);
    let server = Server::build(options, registry, metrics.clone(), page).await.unwrap();
    let (address, gate) = (server.address(), server.gate());
    tokio::spawn(server.run(std::future::pending()));
    let fanout = Fanout::new(FanoutOptions::new(log_options, lineage), metrics);
    gate.set(Role::Owner(fanout.clone()));

    let bulk_end = 10 + BATCHES * TRANSACTIONS_PER_BATCH;
    let end = Version::new(bulk_end + SINGLES);
    let followers: Vec<_> = (0..SUBSCRIBERS)
        .map(|n| {
            let options = Options {
                token: token.clone(),
                ..Options::new(format!("ws://{address}"), "zero", 0, format!("node-{n}"))
            };
            tokio::spawn(follow(options, end))
        })
        .collect();
    while fanout.subscribers().len() < SUBSCRIBERS {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let table = table();
    let batches: Vec<Vec<Transaction>> = (0..BATCHES)
        .map(|n| {
            let first = 11 + n * TRANSACTIONS_PER_BATCH;
            (first..first + TRANSACTIONS_PER_BATCH).map(|n| transaction(&table, n, ROWS_PER_TRANSACTION)).collect()
        })
        .collect();
    let begin = Instant::now();
    let mut bytes = 0;
    for transactions in &batches {
        let batch = Batch::encode(transactions).unwrap();
        bytes += batch.byte_count();
        log.append_batch(&batch).await.unwrap();
        fanout.publish(&batch);
    }
    let stored = begin.elapsed();
    while fanout.floor() < Version::new(bulk_end) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let applied = begin.elapsed();
    let rows = (BATCHES * TRANSACTIONS_PER_BATCH) as f64 * ROWS_PER_TRANSACTION as f64;
    println!(
        "{rows:.0} row changes ({:.0} MB) to {SUBSCRIBERS} subscribers: stored at {:.0}/s, received by all at {:.0}/s",
        bytes as f64 / 1e6,
        rows / stored.as_secs_f64(),
        rows / applied.as_secs_f64()
    );

    let begin = Instant::now();
    let late = Options { token: token.clone(), ..Options::new(format!("ws://{address}"), "zero", 0, "late") };
    follow(late, Version::new(bulk_end)).await;
    println!("from behind: {:.0} row changes/s to one subscriber", rows / begin.elapsed().as_secs_f64());

    let mut published = Vec::new();
    let mut appended = Vec::new();
    for version in bulk_end + 1..=end.as_u64() {
        tokio::time::sleep(Duration::from_millis(4)).await;
        let begin = Instant::now();
        let batch = Batch::encode(&[transaction(&table, version, 1)]).unwrap();
        log.append_batch(&batch).await.unwrap();
        appended.push(begin.elapsed());
        published.push((Version::new(version), Instant::now()));
        fanout.publish(&batch);
    }
    let mut added = Vec::new();
    for follower in followers {
        let arrivals = follower.await.unwrap();
        let singles = arrivals.iter().skip_while(|(version, _)| *version < published[0].0);
        added.extend(singles.zip(&published).map(|((_, arrived), (_, at))| arrived.saturating_duration_since(*at)));
    }
    added.sort();
    appended.sort();
    let micros = |durations: &[Duration], share: f64| {
        durations[((durations.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6
    };
    println!("storing a single commit: p50 {:.0} us, p99 {:.0} us", micros(&appended, 0.5), micros(&appended, 0.99));
    println!("from stored to subscriber: p50 {:.0} us, p99 {:.0} us", micros(&added, 0.5), micros(&added, 0.99));
}
