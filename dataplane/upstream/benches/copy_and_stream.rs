//! How fast a wide table is copied and streamed, and how much memory that takes.
//!
//! `cargo bench -p upstream` starts its own Postgres, fills a table of 16 columns with `ROWS` rows (default 1,000,000), copies it
//! with two workers, then streams 400,000 changes in transactions of 1,000 that were made beforehand. The receiver drops everything,
//! so the numbers are those of Postgres and of this crate.

use std::time::Instant;

use rows::Version;
use testkit::postgres::{Postgres, Version as Server};
use tokio::sync::mpsc;
use upstream::{App, CopyMessage, Event, Options, Resume, Stream, initial_copy};

const TABLE: &str = "CREATE TABLE wide (id bigint PRIMARY KEY, a int, b int, c bigint, d float8, e numeric(12, 2), f bool, g text, h text,
    i varchar(40), j uuid, k jsonb, l timestamptz, m timestamptz, n date, o text[])";

fn rows_sql(from: u64, to: u64) -> String {
    format!(
        "INSERT INTO wide SELECT n, n % 1000, n * 7, n * 1000000, n / 3.0, n / 7.0, n % 2 = 0, 'title of row ' || n, repeat('x', 40 + (n % 60)::int),
         'label ' || n % 50, gen_random_uuid(), jsonb_build_object('n', n, 'tags', 'abc'), now(), '2024-01-01'::timestamptz + n * interval '1 second',
         '2024-01-01'::date + (n % 1000)::int, ARRAY['a' || n % 10, 'b'] FROM generate_series({from}::bigint, {to}) n"
    )
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let rows: u64 = std::env::var("ROWS").ok().and_then(|r| r.parse().ok()).unwrap_or(1_000_000);
    let postgres = Postgres::start(Server::V15).expect("Postgres starts");
    let client = postgres.connect("postgres").await.expect("a connection");
    client.batch_execute(&format!("{TABLE}; {}; ANALYZE wide", rows_sql(1, rows))).await.expect("rows");
    let mut options =
        Options::new(postgres.url("postgres").parse().expect("an address"), App::new("zero", 0).expect("a name"));
    options.copy_workers = 2;

    let begin = Instant::now();
    let (sender, mut receiver) = mpsc::channel(4);
    let count = tokio::spawn(async move {
        let mut count = 0;
        while let Some(message) = receiver.recv().await {
            if let CopyMessage::Block { block, .. } = message {
                count += block.row_count();
            }
        }
        count
    });
    let plan = initial_copy(&options, sender).await.expect("a copy");
    let copied = count.await.expect("the receiver lives");
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "copy: {copied} rows in {seconds:.2} s, {:.0} rows/s, peak memory {} MiB",
        copied as f64 / seconds,
        peak_mebibytes()
    );

    for n in 0..400 {
        let from = rows + 1 + n * 1000;
        client.batch_execute(&rows_sql(from, from + 999)).await.expect("rows");
    }
    let begin = Instant::now();
    let resume = Resume { replica: plan.version, after: plan.version, confirmed: plan.version, time_us: None };
    let mut stream = Stream::start(&options, resume).await.expect("a stream");
    let mut changes = 0;
    let mut last = Version::ZERO;
    while changes < 400_000 {
        if let Event::Transaction(transaction) = stream.next().await.expect("an event") {
            changes += transaction.changes.len();
            last = transaction.version;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "stream: {changes} changes in {seconds:.2} s, {:.0} changes/s, cpu of this process {:.2} s in all, peak memory {} MiB, version {last}",
        changes as f64 / seconds,
        cpu_seconds(),
        peak_mebibytes()
    );
}

fn peak_mebibytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    peak.unwrap_or(0) / 1024
}

/// User and system time so far, in units of 10 ms as Linux counts them.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
