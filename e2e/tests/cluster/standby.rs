//! Two replication-managers behind one address, of which one stands by: it leaves the other at work whoever comes, and takes over
//! when that one resigns, dies or falls silent. No new copy, no change lost or applied twice.
//!
//! `ZERO_TAKE_OVERS` is the number of orderly take-overs, 6 by default.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::client::Store;
use testkit::proxy::Proxy;
use testkit::tab::Tab;

use super::node_status::{await_facts, facts};
use super::take_over::{SQL, last, settle, ticketing};
use super::{Cluster, Plan, READY};
use crate::app::copies;

/// What users may wait for when a replication-manager is replaced in order.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Three looks, and what follows.
pub const SILENCE_MAX: Duration = Duration::from_secs(8);
pub const STANDS_BY: &str = "standing by for as long as it is at work";
pub const RESIGNED: &str = "the owner of the change log has resigned";
const OWNS: &str = "this node owns the change log";

/// The owner's row: who owns the log, and for the how-manieth time it has an owner.
pub async fn row(cluster: &Cluster) -> Result<(Option<String>, i64)> {
    let client = cluster.database.connect().await?;
    let row = client.query_one(r#"SELECT "owner", "epoch" FROM "zero_0/cdc".state"#, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

/// Two replication-managers, `rm-0` at work and `rm-1` standing by, and a view-syncer.
pub async fn pair(plan: Plan) -> Result<Cluster> {
    let sql = format!("{}{SQL}", plan.sql);
    let mut cluster = Cluster::prepare(Plan { syncers: 1, sql, ..plan }).await?;
    for number in 0..2 {
        add(&mut cluster, number).await?;
        await_ready(&mut cluster, number).await?;
    }
    cluster.spawn_syncer()?;
    cluster.await_syncers().await?;
    let is_so = cluster.managers[1].last_log().contains(STANDS_BY) && row(&cluster).await?.0.as_deref() == Some("rm-0");
    ensure!(is_so, "rm-1 does not stand by:\n{}", cluster.report());
    Ok(cluster)
}

/// Starts a replication-manager that is never out of rotation, as behind a Service that names pods that are not ready.
async fn add(cluster: &mut Cluster, number: usize) -> Result<()> {
    let mut node = cluster.manager()?.named(&format!("rm-{number}")).env("ZERO_TASK_ID", &format!("rm-{number}"));
    node.set("ZERO_CHANGE_STREAMER_STANDBY", "true");
    let port = node.change_port();
    if number == 0 {
        cluster.stream = Proxy::relay(port).await?;
    } else {
        cluster.stream.add(port);
    }
    node.spawn()?;
    cluster.managers.push(node);
    Ok(())
}

async fn await_ready(cluster: &mut Cluster, number: usize) -> Result<()> {
    let deadline = Instant::now() + READY;
    let node = &mut cluster.managers[number];
    while !node.answers(node.change_port()) {
        ensure!(node.is_running() && Instant::now() < deadline, "{} is not ready:\n{}", node.name(), node.log_tail(30));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Waits until a node owns the log; for how long.
pub async fn await_owner(cluster: &Cluster, number: usize, limit: Duration) -> Result<Duration> {
    let begun = Instant::now();
    let name = format!("rm-{number}");
    while row(cluster).await?.0.as_ref() != Some(&name) {
        ensure!(begun.elapsed() < limit, "{name} has not taken over within {limit:?}\n{}", cluster.report());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(begun.elapsed())
}

/// The stream is whole again when the tab sees what is written now. The longest time without news.
async fn pause(cluster: &Cluster, tab: &Tab) -> Result<Duration> {
    let seen = tab.watch().look(last);
    let whole = tab.wait(Duration::from_secs(30), "writes after the take-over", |store| last(store) > seen + 20).await;
    whole.with_context(|| cluster.report())?;
    Ok(tab.watch().look(Store::longest_gap))
}

/// Starts a node that has ended; it must stand by, with the replica that it has.
async fn await_standby(cluster: &mut Cluster, number: usize) -> Result<()> {
    cluster.managers[number].spawn()?;
    await_ready(cluster, number).await?;
    let log = cluster.managers[number].last_log();
    ensure!(log.contains(STANDS_BY) && !log.contains(OWNS) && copies(&log) == 0, "it does not stand by:\n{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_leaves_the_owner_at_work_whoever_comes() -> Result<()> {
    let mut cluster = pair(Plan::new("standby_stays")).await?;
    let (mut writer, tab) = ticketing(&cluster).await?;
    let before = row(&cluster).await?;
    let ports = [cluster.managers[0].change_port(), cluster.managers[1].change_port()];
    let came = cluster.stream.opened(ports[1]);
    let begun = Instant::now();
    // Six times the delay after which one that does not stand by takes over.
    while begun.elapsed() < Duration::from_secs(3) {
        cluster.stream.cut_all();
        let syncer = cluster.syncers.len();
        cluster.spawn_syncer()?;
        cluster.await_syncers().await.with_context(|| cluster.report())?;
        if syncer > 1 {
            cluster.syncers[syncer - 1].kill()?;
            cluster.syncers.remove(syncer - 1);
        }
    }
    let came = cluster.stream.opened(ports[1]) - came;
    ensure!(came >= 2, "only {came} connections led to the standby");
    settle(&cluster, &mut writer, &tab).await?;

    ensure!(row(&cluster).await? == before, "the log has changed hands: {before:?}, {:?}", row(&cluster).await?);
    let (of_owner, of_standby) = (facts(ports[0])?, facts(ports[1])?);
    ensure!(of_owner["streaming"] == json!(true) && of_standby["streaming"] == json!(false), "{of_standby}");
    ensure!(cluster.managers[1].answers(ports[1]), "the standby is not ready");
    let log = cluster.managers[1].log();
    ensure!(log.matches(STANDS_BY).count() == 1 && !log.contains(OWNS) && !log.contains("does not answer"), "{log}");
    let same = |facts: &Value| facts["replicaVersion"] == of_owner["replicaVersion"];
    await_facts(&mut cluster.managers[1], ports[1], "the owner's version", same).await?;
    println!("{came} connections led to the standby within {:.1?}", begun.elapsed());
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_an_owner_that_resigns() -> Result<()> {
    let times = std::env::var("ZERO_TAKE_OVERS").ok().and_then(|text| text.parse().ok()).unwrap_or(6);
    let mut cluster = pair(Plan { has_store: true, ..Plan::new("standby_turns") }).await?;
    let (mut writer, tab) = ticketing(&cluster).await?;
    let mut pauses = Vec::new();
    for turn in 0..times {
        let (old, new) = (turn % 2, (turn + 1) % 2);
        tab.watch().measure_gaps();
        cluster.managers[old].ask_to_end()?;
        await_owner(&cluster, new, SILENCE_MAX).await.with_context(|| format!("take-over {turn}"))?;
        pauses.push(pause(&cluster, &tab).await.with_context(|| format!("take-over {turn}"))?);
        let status = cluster.managers[old].wait_exit(READY)?;
        ensure!(status.success(), "it ended with {status}:\n{}", cluster.managers[old].log_tail(20));
        let log = cluster.managers[new].last_log();
        ensure!(log.contains(RESIGNED), "it was given up before it resigned:\n{log}");
        ensure!(copies(&log) == 0, "a new copy was made:\n{log}");
        await_standby(&mut cluster, old).await.with_context(|| format!("take-over {turn}"))?;
    }
    let written = settle(&cluster, &mut writer, &tab).await?;
    pauses.sort();
    let (median, longest) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
    println!("{times} orderly take-overs, {written} transactions: pause p50 {median:.0?}, max {longest:.0?}");
    ensure!(longest < PAUSE_MAX, "a pause of {longest:?}: {pauses:?}");
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_an_owner_that_dies_or_falls_silent() -> Result<()> {
    let mut cluster = pair(Plan::new("standby_silence")).await?;
    let (mut writer, tab) = ticketing(&cluster).await?;

    tab.watch().measure_gaps();
    cluster.managers[0].kill()?;
    let killed = await_owner(&cluster, 1, SILENCE_MAX).await?;
    let pause_killed = pause(&cluster, &tab).await?;
    await_standby(&mut cluster, 0).await?;

    tab.watch().measure_gaps();
    cluster.managers[1].freeze()?;
    let frozen = await_owner(&cluster, 0, SILENCE_MAX).await;
    let pause_frozen = pause(&cluster, &tab).await;
    cluster.managers[1].thaw()?;
    let (frozen, pause_frozen) = (frozen?, pause_frozen?);
    let status = cluster.managers[1].wait_exit(READY)?;
    ensure!(status.code() == Some(14), "it stepped down with {status}:\n{}", cluster.managers[1].log_tail(20));
    await_standby(&mut cluster, 1).await?;

    let written = settle(&cluster, &mut writer, &tab).await?;
    println!(
        "{written} transactions; killed: taken over after {killed:.1?}, pause {pause_killed:.1?}; \
         stopped: taken over after {frozen:.1?}, pause {pause_frozen:.1?}"
    );
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_standby_fetches_its_replica_without_being_allowed_a_reset() -> Result<()> {
    let settings = vec![("ZERO_AUTO_RESET", "false".to_owned())];
    let mut cluster = pair(Plan { settings, ..Plan::new("standby_stale") }).await?;
    let (mut writer, tab) = ticketing(&cluster).await?;
    ensure!(cluster.managers[1].terminate()?.success());
    let seen = tab.watch().look(last);
    tab.wait(READY, "writes that the standby misses", |store| last(store) > seen + 50).await?;
    let before = row(&cluster).await?;
    // What it needs is purged.
    let purge = r#"WITH bound AS (UPDATE "zero_0/cdc".state SET "start" = "last" RETURNING "start")
        DELETE FROM "zero_0/cdc".pages WHERE "last" <= (SELECT "start" FROM bound)"#;
    cluster.database.execute(purge).await?;
    cluster.managers[1].spawn()?;
    await_ready(&mut cluster, 1).await?;
    let log = cluster.managers[1].last_log();
    let is_fetched = log.contains("the replica will be fetched from the process that replicates");
    ensure!(is_fetched && log.contains(STANDS_BY) && copies(&log) == 0, "{log}");
    ensure!(row(&cluster).await? == before, "the log has changed hands: {before:?}, {:?}", row(&cluster).await?);
    // It is as good as any.
    cluster.managers[0].ask_to_end()?;
    await_owner(&cluster, 1, SILENCE_MAX).await?;
    settle(&cluster, &mut writer, &tab).await?;
    ensure!(copies(&cluster.managers[1].log()) == 0, "a copy was made:\n{}", cluster.managers[1].log());
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_without_a_replica_waits_for_the_owner_that_has_one() -> Result<()> {
    let mut cluster = pair(Plan::new("standby_empty")).await?;
    let (mut writer, tab) = ticketing(&cluster).await?;
    let before = row(&cluster).await?;
    ensure!(cluster.managers[1].terminate()?.success());
    cluster.managers[1].delete_replica()?;
    cluster.managers[0].freeze()?;
    cluster.managers[1].spawn()?;
    let deadline = Instant::now() + READY;
    while !cluster.managers[1].last_log().contains("no replica from the process that replicates yet") {
        ensure!(Instant::now() < deadline, "it does not wait:\n{}", cluster.managers[1].last_log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.managers[0].thaw()?;
    await_ready(&mut cluster, 1).await?;
    let log = cluster.managers[1].last_log();
    ensure!(log.contains(STANDS_BY) && copies(&log) == 0, "{log}");
    settle(&cluster, &mut writer, &tab).await?;
    ensure!(row(&cluster).await? == before, "the log has changed hands: {before:?}, {:?}", row(&cluster).await?);
    cluster.check_logs()
}

/// On a fresh database both begin a copy, of which Postgres lets one at a time.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_start_at_once_one_stands_by() -> Result<()> {
    let mut cluster = Cluster::prepare(Plan { syncers: 1, sql: SQL.to_owned(), ..Plan::new("standby_both") }).await?;
    // The copy lasts for as long as this holds.
    let mut holder = cluster.database.connect().await?;
    let lock = holder.transaction().await?;
    lock.batch_execute("LOCK TABLE ticket IN ACCESS EXCLUSIVE MODE").await?;
    for number in 0..2 {
        add(&mut cluster, number).await?;
    }
    let deadline = Instant::now() + READY;
    while !cluster.managers.iter().any(|node| node.log().contains("the initial copy failed and starts over")) {
        ensure!(Instant::now() < deadline, "neither waits for the other:\n{}", cluster.report());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(lock);
    for number in 0..2 {
        await_ready(&mut cluster, number).await?;
    }
    cluster.spawn_syncer()?;
    cluster.await_syncers().await?;
    let (mut writer, tab) = ticketing(&cluster).await?;
    settle(&cluster, &mut writer, &tab).await?;
    let counts = cluster.managers.iter().map(|node| (copies(&node.log()), node.log().matches(STANDS_BY).count()));
    let mut counts: Vec<_> = counts.collect();
    counts.sort();
    ensure!(counts == [(0, 1), (1, 0)], "copies and times of standing by: {counts:?}\n{}", cluster.report());
    cluster.check_logs()
}

/// As if the disk had lost what tables consist of; whoever has the file open reads the schema anew and finds out.
fn corrupt(replica: &Path) -> Result<()> {
    let connection = rusqlite::Connection::open(replica)?;
    connection.busy_timeout(READY)?;
    let lose = "UPDATE sqlite_schema SET rootpage = 1000000 WHERE type = 'table' AND name NOT LIKE 'sqlite%'";
    let sql = format!("PRAGMA writable_schema = ON; BEGIN IMMEDIATE; {lose}; PRAGMA schema_version = 1000000; COMMIT");
    Ok(connection.execute_batch(&sql)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_an_owner_whose_replica_is_at_fault() -> Result<()> {
    let cluster = pair(Plan::new("standby_fault")).await?;
    let (mut writer, tab) = ticketing(&cluster).await?;
    tab.watch().measure_gaps();
    corrupt(&cluster.managers[0].replica_file())?;
    await_owner(&cluster, 1, SILENCE_MAX).await?;
    let pause = pause(&cluster, &tab).await?;
    let log = cluster.managers[1].log();
    ensure!(log.contains(RESIGNED), "it was given up before it resigned:\n{log}");
    let deadline = Instant::now() + READY;
    while !cluster.managers[0].log().contains(STANDS_BY) {
        ensure!(Instant::now() < deadline, "it does not stand by:\n{}", cluster.managers[0].log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let log = cluster.managers[0].log();
    ensure!(log.contains("the replica will be rebuilt") && copies(&log) == 1, "a new copy was made:\n{log}");
    settle(&cluster, &mut writer, &tab).await?;
    println!("a replica at fault: pause {pause:.1?}");
    cluster.check_logs()
}

/// What an owner stored and its followers have, but not its own replica, is what its successor goes on from, and what it has itself
/// when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_and_not_applied_survives_a_pause_of_the_owner() -> Result<()> {
    let mut cluster = pair(Plan::new("standby_unapplied")).await?;
    let (mut writer, tab) = ticketing(&cluster).await?;
    let port = cluster.managers[0].change_port();
    // The owner's replica takes nothing while this lasts.
    let lock = rusqlite::Connection::open(cluster.managers[0].replica_file())?;
    lock.busy_timeout(READY)?;
    lock.execute_batch("BEGIN IMMEDIATE")?;
    let before = facts(port)?["replicaVersion"].clone();
    let seen = tab.watch().look(last);
    tab.wait(READY, "what the owner has not applied", |store| last(store) > seen + 3).await?;
    ensure!(facts(port)?["replicaVersion"] == before, "the owner has applied it");
    cluster.managers[0].freeze()?;
    let taken_over = await_owner(&cluster, 1, SILENCE_MAX).await;
    drop(lock);
    cluster.managers[0].thaw()?;
    taken_over?;
    let status = cluster.managers[0].wait_exit(READY)?;
    ensure!(status.code() == Some(14), "it stepped down with {status}:\n{}", cluster.managers[0].log_tail(20));
    await_standby(&mut cluster, 0).await?;
    settle(&cluster, &mut writer, &tab).await?;
    // And back, with what it has now.
    cluster.managers[1].ask_to_end()?;
    await_owner(&cluster, 0, SILENCE_MAX).await?;
    settle(&cluster, &mut writer, &tab).await?;
    ensure!(copies(&cluster.managers[0].last_log()) == 0, "{}", cluster.managers[0].last_log());
    cluster.check_logs()
}

/// The files of the database server and the replica's, taken from a deployment that goes on: what was copied knows the owner of the
/// original, which answers, and has the same identity by all that it states.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_all_files_does_not_wait_for_the_owner_of_the_original() -> Result<()> {
    let plan = Plan { owns_postgres: true, ..Plan::new("standby_copy") };
    let mut cluster = Cluster::prepare(Plan { sql: format!("{}{SQL}", plan.sql), ..plan }).await?;
    add(&mut cluster, 0).await?;
    await_ready(&mut cluster, 0).await?;
    // It dies, so that its row stays as it is while it works.
    cluster.managers[0].kill()?;
    let postgres = cluster.database.postgres;
    postgres.stop()?;
    let copied = postgres.copy(testkit::postgres::Options::default(), &[])?;
    postgres.resume()?;
    let mut node = cluster.manager()?.named("rm-1 of the copy").env("ZERO_TASK_ID", "rm-1");
    let name = cluster.database.name.clone();
    for variable in ["ZERO_UPSTREAM_DB", "ZERO_CHANGE_DB", "ZERO_CVR_DB"] {
        node.set(variable, &copied.url(&name));
    }
    node.set("ZERO_CHANGE_STREAMER_STANDBY", "true");
    for entry in std::fs::read_dir(cluster.managers[0].folder())? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_owned();
        if file.to_string_lossy().starts_with("replica.db") && path.is_file() {
            std::fs::copy(&path, node.folder().join(file))?;
        }
    }
    cluster.managers[0].spawn()?;
    await_ready(&mut cluster, 0).await?;
    let before = row(&cluster).await?;

    node.spawn()?;
    let (port, begun) = (node.change_port(), Instant::now());
    await_facts(&mut node, port, "replicating", |facts| facts["streaming"] == json!(true)).await?;
    let there = copied.connect(&name).await?;
    let owner = there.query_one(r#"SELECT "owner" FROM "zero_0/cdc".state"#, &[]).await?.get::<_, String>(0);
    ensure!(owner == "rm-1", "the owner of the copy's log is {owner}");
    println!("the copy replicates after {:.1?}", begun.elapsed());
    ensure!(node.log().contains("streams from another database") && copies(&node.log()) <= 1, "{}", node.log());
    // The original is not disturbed.
    ensure!(row(&cluster).await? == before, "the log has changed hands: {before:?}, {:?}", row(&cluster).await?);
    ensure!(facts(cluster.managers[0].change_port())?["streaming"] == json!(true));
    node.check_log()?;
    cluster.check_logs()
}
