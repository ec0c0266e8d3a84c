//! A replication-manager that has lost its disk while the store is not what it was: it waits for what may come back, asks a person
//! for what only a person can mend, and makes a copy of its own only where nothing else can be right. Clients end with right rows.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;
use testkit::proxy::Mood;
use testkit::s3::Faults;

use super::crowd::Crowd;
use super::node_status::await_facts;
use super::{Cluster, Plan, READY};
use crate::app::copies;

fn write(number: u32) -> String {
    format!("UPDATE issue SET title = 'title {number}'; INSERT INTO person VALUES ('new {number}', 'New', {number})")
}

async fn settle(cluster: &Cluster, crowd: &Crowd) -> Result<()> {
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())
}

/// A deployment with clients and a whole backup.
async fn deployment(name: &'static str) -> Result<(Cluster, Crowd)> {
    let cluster = Cluster::start(Plan { syncers: 1, has_store: true, ..Plan::new(name) }).await?;
    let mut dice = StdRng::seed_from_u64(testkit::seed(name));
    let crowd = Crowd::gather(|| cluster.options(), 2, 1, &mut dice);
    settle(&cluster, &crowd).await?;
    cluster.await_backup().await?;
    Ok((cluster, crowd))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_denies_access_is_waited_for() -> Result<()> {
    let (mut cluster, crowd) = deployment("denied_restore").await?;
    let store = cluster.store.as_ref().context("there is a store")?;
    store.server.set_faults(Faults { is_denied: true, ..Faults::default() });
    cluster.crash_manager(true)?;
    let manager = cluster.managers.last_mut().context("it was just started")?;
    let port = manager.change_port();
    let denied = |facts: &serde_json::Value| facts["backup"]["fault"]["kind"] == json!("access-denied");
    let facts = await_facts(manager, port, "the denied backup", denied).await?;
    ensure!(facts["streaming"] == json!(false) && facts["initialSync"] == json!(false), "{facts}");
    // Several attempts later it still has not copied anything, and is not ready.
    let attempts = |log: &str| log.matches("its backup cannot be opened").count();
    let deadline = Instant::now() + READY;
    while attempts(&manager.last_log()) < 4 {
        ensure!(manager.is_running() && Instant::now() < deadline, "it does not try on:\n{}", manager.last_log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure!(copies(&manager.last_log()) == 0 && !manager.answers(port), "{}", manager.last_log());
    ensure!(manager.last_log().contains("ZERO_LITESTREAM_BACKUP_URL"), "no remedy:\n{}", manager.last_log());
    cluster.database.execute(&write(1)).await?;

    let store = cluster.store.as_ref().context("there is a store")?;
    store.server.set_faults(Faults::default());
    cluster.await_manager().await.with_context(|| cluster.report())?;
    settle(&cluster, &crowd).await?;
    let manager = cluster.managers.last_mut().context("it runs")?;
    ensure!(copies(&manager.last_log()) == 0, "a copy was made:\n{}", manager.last_log());
    let healthy = |facts: &serde_json::Value| facts["backup"]["fault"].is_null() && facts["streaming"] == json!(true);
    await_facts(manager, port, "healthy again", healthy).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_for_a_moment_is_waited_for() -> Result<()> {
    let (mut cluster, crowd) = deployment("away_restore").await?;
    cluster.store.as_ref().context("there is a store")?.way.set_mood(Mood::Refuses);
    cluster.crash_manager(true)?;
    let manager = cluster.managers.last_mut().context("it was just started")?;
    let deadline = Instant::now() + READY;
    while !manager.last_log().contains("cannot restore the replica from the backup yet") {
        ensure!(manager.is_running() && Instant::now() < deadline, "it does not wait:\n{}", manager.last_log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.database.execute(&write(1)).await?;
    cluster.store.as_ref().context("there is a store")?.way.set_mood(Mood::Good);
    cluster.await_manager().await.with_context(|| cluster.report())?;
    settle(&cluster, &crowd).await?;
    let log = cluster.managers[0].last_log();
    ensure!(copies(&log) == 0, "a copy was made:\n{log}");
    cluster.check_logs()
}

/// The change database was brought back as it was some time ago: the backup, and every replica, is newer than its log. What the
/// log lacks was acknowledged upstream and will never come again, so only a new copy is right.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_newer_than_the_change_database_leads_to_a_new_copy() -> Result<()> {
    for loses_disk in [true, false] {
        let name = if loses_disk { "newer_backup" } else { "newer_replica" };
        let (mut cluster, crowd) = deployment(name).await?;
        let log = r#""zero_0/cdc""#;
        let tables: Vec<String> = {
            let client = cluster.database.connect().await?;
            let names = "SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'zero_0/cdc'";
            client.query(names, &[]).await?.iter().map(|row| row.get(0)).collect()
        };
        ensure!(tables.len() >= 2, "the change log is not where it was looked for: {tables:?}");
        let each = |sql: &dyn Fn(&str) -> String| tables.iter().map(|table| sql(table)).collect::<Vec<_>>().join(";");
        cluster.database.execute("CREATE SCHEMA saved").await?;
        cluster
            .database
            .execute(&each(&|table| format!(r#"CREATE TABLE saved."{table}" AS TABLE {log}."{table}""#)))
            .await?;
        for number in 1..=5 {
            cluster.database.execute(&write(number)).await?;
            settle(&cluster, &crowd).await?;
        }
        // The backup holds them as well: a process that ends in order writes its last increment.
        let manager = cluster.managers.last_mut().context("it runs")?;
        ensure!(manager.terminate()?.success(), "{}", manager.log_tail(20));
        cluster
            .database
            .execute(&each(&|table| {
                format!(r#"DELETE FROM {log}."{table}"; INSERT INTO {log}."{table}" SELECT * FROM saved."{table}""#)
            }))
            .await?;
        if loses_disk {
            cluster.managers[0].delete_replica()?;
        }
        cluster.database.execute(&write(6)).await?;
        cluster.managers[0].spawn()?;
        cluster.await_manager().await.with_context(|| cluster.report())?;
        settle(&cluster, &crowd).await?;
        let log = cluster.managers[0].last_log();
        ensure!(copies(&log) == 1 && log.contains("the replica will be rebuilt"), "no new copy was made:\n{log}");
        cluster.database.execute(&write(7)).await?;
        settle(&cluster, &crowd).await?;
        cluster.check_logs()?;
    }
    Ok(())
}

/// With a backup at hand, which would lead to the same slot again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_leads_to_a_new_copy_although_there_is_a_backup() -> Result<()> {
    let (mut cluster, crowd) = deployment("lost_slot_backup").await?;
    let manager = cluster.managers.last_mut().context("it runs")?;
    ensure!(manager.terminate()?.success(), "{}", manager.log_tail(20));
    let drop =
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()";
    cluster.database.execute(drop).await?;
    cluster.database.execute(&write(1)).await?;
    cluster.managers[0].spawn()?;
    cluster.await_manager().await.with_context(|| cluster.report())?;
    settle(&cluster, &crowd).await?;
    let log = cluster.managers[0].last_log();
    ensure!(copies(&log) == 1, "one new copy was to be made:\n{log}");
    // What is backed up now is the new copy.
    cluster.await_backup().await?;
    cluster.crash_manager(true)?;
    cluster.revive().await.with_context(|| cluster.report())?;
    cluster.database.execute(&write(2)).await?;
    settle(&cluster, &crowd).await?;
    ensure!(copies(&cluster.managers[0].last_log()) == 0, "{}", cluster.managers[0].last_log());
    cluster.check_logs()
}

/// The change database was made anew, so the numbers of the log's owners began again. What the store holds was written under higher
/// ones, by nobody who could still be at work.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_made_anew_is_backed_up_as_well() -> Result<()> {
    let (mut cluster, crowd) = deployment("new_log").await?;
    // Every process that owned the log has made the number greater.
    cluster.crash_manager(false)?;
    cluster.await_manager().await.with_context(|| cluster.report())?;
    cluster.await_backup().await?;
    cluster.managers[0].kill()?;
    cluster.database.execute("DROP SCHEMA \"zero_0/cdc\" CASCADE").await?;
    cluster.managers[0].spawn()?;
    cluster.await_manager().await.with_context(|| cluster.report())?;
    cluster.await_backup().await.with_context(|| cluster.report())?;
    cluster.database.execute(&write(1)).await?;
    settle(&cluster, &crowd).await?;
    let log = cluster.managers[0].last_log();
    ensure!(log.contains("continues above its numbers") && !log.contains("the backup ends"), "{log}");
    // It is what a node that has lost its disk starts from.
    cluster.await_backup().await?;
    cluster.crash_manager(true)?;
    cluster.await_manager().await.with_context(|| cluster.report())?;
    settle(&cluster, &crowd).await?;
    ensure!(copies(&cluster.managers[0].last_log()) == 0, "a copy was made:\n{}", cluster.managers[0].last_log());
    Ok(())
}
