//! A second replication-manager takes over the change database and the slot, again and again: no new copy, no change lost or
//! applied twice.
//!
//! `ZERO_TAKE_OVERS` is the number of repetitions, 10 by default.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testkit::client::{Client, Options, Store};
use testkit::process::ZeroCache;
use testkit::tab::Tab;

use super::writer::Writer;
use super::{Cluster, Plan};
use crate::app::{copies, query};

/// Every change is a row of its own, and a count that only grows.
pub const SQL: &str = "CREATE TABLE ticket (id int PRIMARY KEY, text text NOT NULL);
    CREATE TABLE turnstile (id int PRIMARY KEY, count int NOT NULL); INSERT INTO turnstile VALUES (1, 0);";

#[tokio::test(flavor = "multi_thread")]
async fn a_second_replication_manager_takes_over_without_a_new_copy() -> Result<()> {
    let times = std::env::var("ZERO_TAKE_OVERS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let plan = Plan { syncers: 1, has_store: true, owns_postgres: true, sql: SQL.to_owned(), ..Plan::new("take_over") };
    let mut cluster = Cluster::start(plan).await?;
    let (mut writer, tab) = ticketing(&cluster).await?;

    ensure!(copies(&cluster.managers[0].log()) == 1, "the first copy is not in the log");
    cluster.await_backup().await?;

    let mut pauses = Vec::new();
    let mut spare: Option<ZeroCache> = None;
    for turn in 1..=times {
        let taken = take_over(&mut cluster, &mut spare, &tab).await;
        pauses.push(taken.with_context(|| format!("take-over {turn}\n{}", cluster.report()))?);
    }
    let written = settle(&cluster, &mut writer, &tab).await?;
    pauses.sort();
    println!(
        "{times} take-overs, {written} transactions: pause p50 {:.0?}, max {:.0?}",
        pauses[pauses.len() / 2],
        pauses[pauses.len() - 1]
    );
    cluster.check_logs()
}

/// Somebody writes tickets and somebody watches them.
pub async fn ticketing(cluster: &Cluster) -> Result<(Writer, Tab)> {
    let sequence =
        |n| format!("BEGIN; INSERT INTO ticket VALUES ({n}, 'ticket {n}'); UPDATE turnstile SET count = {n}; COMMIT");
    let writer = Writer::start(&cluster.database.url(), Duration::from_millis(4), sequence);
    let tab = Tab::keep("the watcher", watcher(cluster));
    tab.wait(Duration::from_secs(30), "tickets", |store| last(store) > 10).await?;
    Ok((writer, tab))
}

/// Stops writing: every ticket must have arrived, once, over one connection. How many there are.
pub async fn settle(cluster: &Cluster, writer: &mut Writer, tab: &Tab) -> Result<i64> {
    writer.pause().await?;
    let written = i64::try_from(writer.commits())?;
    let all = tab.wait(Duration::from_secs(30), "the last ticket", |store| last(store) == written).await;
    all.with_context(|| cluster.report())?;
    let (tickets, counts) = tab.watch().look(|store| (store.rows["ticket"].len(), store.counts));
    ensure!(i64::try_from(tickets)? == written, "{written} tickets were written and {tickets} have arrived");
    let applied = "a change was applied twice or taken back";
    ensure!(counts.redundant_puts == 0 && counts.deletes == 0, "{applied}: {counts:?}");
    ensure!(tab.journal().connects == 1, "the view-syncer let its client go: {:?}", tab.journal());
    tab.check()?;
    one_slot(cluster).await?;
    Ok(written)
}

fn watcher(cluster: &Cluster) -> Client {
    let schema = serde_json::json!({"tables": {
        "ticket": {"columns": {"id": {"type": "number"}, "text": {"type": "string"}}, "primaryKey": ["id"]},
        "turnstile": {"columns": {"id": {"type": "number"}, "count": {"type": "number"}}, "primaryKey": ["id"]},
    }});
    let mut options = Options::new(cluster.door.port(), schema);
    options.rising = Some(("turnstile".to_owned(), "count".to_owned()));
    let mut client = Client::new(options);
    client.want(&["ticket", "turnstile"].map(|table| query(serde_json::json!({"table": table}))));
    client
}

pub fn last(store: &Store) -> i64 {
    store.rows.get("turnstile").and_then(|rows| rows.get("[1]")?["count"].as_i64()).unwrap_or(0)
}

/// The spare one is started beside the one that works; it must take over and the other step down. Returns for how long the tab
/// got nothing.
async fn take_over(cluster: &mut Cluster, spare: &mut Option<ZeroCache>, tab: &Tab) -> Result<Duration> {
    let mut next = match spare.take() {
        Some(node) => node,
        None => cluster.manager()?,
    };
    tab.watch().measure_gaps();
    next.spawn()?;
    cluster.stream.add(next.change_port());
    cluster.managers.push(next);
    cluster.await_manager().await?;

    let mut old = cluster.managers.remove(0);
    let status = old.wait_exit(Duration::from_secs(30)).context("the first replication-manager must step down")?;
    ensure!(matches!(status.code(), Some(0 | 14)), "it stepped down with {status}:\n{}", old.log_tail(20));
    cluster.stream.remove(old.change_port());
    let log = cluster.managers[0].last_log();
    ensure!(copies(&log) == 0, "a new copy was made:\n{log}");
    *spare = Some(old);

    // The stream is whole again when the tab sees what is written now.
    let now = Instant::now();
    let seen = tab.watch().look(last);
    tab.wait(Duration::from_secs(30), "writes after the take-over", |store| last(store) > seen + 20).await?;
    let gap = tab.watch().look(Store::longest_gap);
    ensure!(gap < Duration::from_secs(15), "a pause of {gap:?}, {:?} of it after the end of the first", now.elapsed());
    Ok(gap)
}

async fn one_slot(cluster: &Cluster) -> Result<()> {
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    let count: i64 = cluster.database.connect().await?.query_one(slots, &[]).await?.get(0);
    ensure!(count == 1, "{count} replication slots are left");
    Ok(())
}
