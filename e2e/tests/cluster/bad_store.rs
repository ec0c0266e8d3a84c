//! Object stores that cannot be used: the deployment says so, serves right rows all the same, and recovers when the store does.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::client::Client;
use testkit::proxy::Mood;
use testkit::s3::Faults;

use super::node_status::await_facts;
use super::{Cluster, Plan, READY};
use crate::app::{all_issues, fence, query};
use crate::bad_input::wait_for_complaint;

/// A client of the deployment gets what is in Postgres.
async fn serves(cluster: &Cluster, title: &str) -> Result<()> {
    cluster.database.execute(&format!("UPDATE issue SET title = '{title}' WHERE id = 'i1'")).await?;
    let client = Client::start(cluster.options(), &[all_issues(), fence()]).await?;
    let seen = client.wait_for("the new title", |store| {
        store.rows.get("issue").is_some_and(|rows| rows.len() == 30 && rows["[\"i1\"]"]["title"] == title)
    });
    seen.await.with_context(|| cluster.report())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_or_denies_is_named_and_waited_for() -> Result<()> {
    let plan = Plan { has_store: true, ..Plan::new("store_away") };
    let mut cluster = Cluster::prepare(plan).await?;
    let store = cluster.store.as_ref().context("there is a store")?;
    let url = store.url();
    store.way.set_mood(Mood::Refuses);
    cluster.add_manager().await.with_context(|| cluster.report())?;
    wait_for_log(&cluster, &[&url, "backup"])?;
    ensure!(cluster.managers[0].metric("zero_backup_failures_total")? > 0.0);
    cluster.spawn_syncer()?;
    cluster.await_syncers().await.with_context(|| cluster.report())?;
    serves(&cluster, "without a store").await?;

    let store = cluster.store.as_ref().context("there is a store")?;
    store.way.set_mood(Mood::Good);
    cluster.await_backup().await?;
    serves(&cluster, "with a store").await?;

    // Credentials that the store denies.
    let mut denied = cluster.manager()?.env("AWS_SECRET_ACCESS_KEY", "not-the-right-one");
    denied.set("ZERO_APP_ID", "denied");
    denied.start()?;
    let log = wait_for_words(&denied, &[&url, "denies"])?;
    ensure!(!log.contains("not-the-right-one"), "the secret key is in the log:\n{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_another_database_is_not_restored() -> Result<()> {
    let first = Cluster::start(Plan { syncers: 0, has_store: true, ..Plan::new("backed_up") }).await?;
    first.await_backup().await?;
    drop(first.managers);

    // Another database whose change log says that there must be a replica somewhere, and a bucket with a foreign one.
    let mut second = Cluster::prepare(Plan { syncers: 1, ..Plan::new("foreign") }).await?;
    second.database.execute("UPDATE issue SET title = 'of the second database'").await?;
    second.store = first.store;
    second.add_manager().await.with_context(|| second.report())?;
    second.crash_manager(true)?;
    second.revive().await.with_context(|| second.report())?;
    second.spawn_syncer()?;
    second.await_syncers().await.with_context(|| second.report())?;
    let client = Client::start(second.options(), &[query(serde_json::json!({"table": "issue"}))]).await?;
    let titles = client.store().rows["issue"].values().filter(|row| row["title"] == "of the second database").count();
    ensure!(titles == 30, "{titles} of 30 rows are of the right database");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_while_restoring_is_reported() -> Result<()> {
    let plan = Plan { syncers: 1, has_store: true, ..Plan::new("disk_full") };
    let mut cluster = Cluster::prepare(plan).await?;
    // About 12 MB, which fit nowhere below the limit.
    let rows = "INSERT INTO comment SELECT 'big' || n, 'i1', NULL, repeat(md5(n::text), 32), n FROM generate_series(1, 10000) n";
    cluster.database.execute(rows).await?;
    cluster.add_manager().await.with_context(|| cluster.report())?;
    cluster.await_backup().await?;
    // In blocks of 512 bytes: 2 MiB for any file. A process that ignores the signal gets an error instead.
    let mut limited = cluster.syncer()?.started_by(&["sh", "-c", "trap '' XFSZ; ulimit -f 4096; exec \"$0\""]);
    let file = limited.replica_file().display().to_string();
    limited.spawn()?;
    wait_for_complaint(&mut limited, &["no room", &file, "bytes"])?;
    let port = limited.port();
    let told = |facts: &serde_json::Value| facts["fault"]["class"] == serde_json::json!("person");
    let facts = await_facts(&mut limited, port, "the full disk", told).await?;
    ensure!(facts["fault"]["remedy"].as_str().is_some_and(|remedy| remedy.contains("room")), "{facts}");
    ensure!(limited.terminate()?.success(), "{}", limited.log_tail(20));
    let left: u64 =
        std::fs::read_dir(limited.folder())?.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum();
    ensure!(left < 1 << 20, "{left} bytes of an unfinished restore are left behind");

    // With room it works.
    cluster.spawn_syncer()?;
    cluster.await_syncers().await.with_context(|| cluster.report())?;
    serves(&cluster, "with room").await
}

/// What the signal allows, and what a machine under load may take on top of it.
const GRACE: Duration = Duration::from_secs(6);
const LOAD: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_node_that_waits_for_the_store_with_its_replica() -> Result<()> {
    let settings = vec![("ZERO_SHUTDOWN_GRACE_SECONDS", GRACE.as_secs().to_string())];
    let plan = Plan { has_store: true, syncers: 1, settings, ..Plan::new("stop_restoring") };
    let mut cluster = Cluster::prepare(plan).await?;
    cluster.add_manager().await.with_context(|| cluster.report())?;
    cluster.await_backup().await?;
    let mut syncer = cluster.syncer()?;
    let set = |cluster: &Cluster, faults| match &cluster.store {
        Some(store) => store.server.set_faults(faults),
        None => unreachable!("there is a store"),
    };
    // Longer than all that the signal allows.
    let slow = Faults { delay: 10 * GRACE, ..Faults::default() };
    set(&cluster, slow);
    cluster.crash_manager(true)?;
    let mut manager = cluster.managers.remove(0);
    let restoring = |facts: &serde_json::Value| facts["restoring"] == true;
    let port = manager.change_port();
    await_facts(&mut manager, port, "restoring", restoring).await?;
    let status = manager.terminate_within(GRACE + LOAD)?;
    ensure!(status.success(), "{} ended with {status}:\n{}", manager.name(), manager.log_tail(20));

    // Another one that has its disk, whose followers have none.
    set(&cluster, Faults::default());
    manager.start()?;
    cluster.stream.add(manager.change_port());
    cluster.managers.push(manager);
    cluster.await_manager().await?;
    cluster.await_backup().await?;
    set(&cluster, slow);
    let port = syncer.port();
    syncer.spawn()?;
    await_facts(&mut syncer, port, "restoring", restoring).await?;
    let status = syncer.terminate_within(GRACE + LOAD)?;
    ensure!(status.success(), "{} ended with {status}:\n{}", syncer.name(), syncer.log_tail(20));
    set(&cluster, Faults::default());
    syncer.start()?;
    syncer.check_log()?;
    cluster.check_logs()
}

fn wait_for_log(cluster: &Cluster, words: &[&str]) -> Result<String> {
    wait_for_words(&cluster.managers[0], words)
}

/// One line that warns and has all the words.
fn wait_for_words(node: &testkit::process::ZeroCache, words: &[&str]) -> Result<String> {
    let deadline = std::time::Instant::now() + READY;
    loop {
        let log = node.last_log();
        let says = |line: &str| {
            let is_loud = line.contains(" WARN ") || line.contains(" ERROR ");
            is_loud && words.iter().all(|word| line.to_lowercase().contains(&word.to_lowercase()))
        };
        if log.lines().any(says) {
            return Ok(log);
        }
        ensure!(std::time::Instant::now() < deadline, "no line with {words:?}:\n{log}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
