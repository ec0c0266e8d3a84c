//! A volume that outlives its generations: a node with a new folder removes the former one's replica once its own serves.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Cluster, Plan};

#[tokio::test(flavor = "multi_thread")]
async fn the_replica_of_a_former_generation_goes_when_the_new_one_serves() -> Result<()> {
    let mut cluster = Cluster::prepare(Plan::new("generations")).await?;
    let mut node = cluster.manager()?.env("ZERO_REPLICA_REMOVE_SIBLINGS", "true");
    let data = node.folder().join("data");
    let file = |generation: &str| data.join(generation).join("replica.db");
    node.set("ZERO_REPLICA_FILE", &file("v1").display().to_string());
    node.start().context("the folder of the replica is made")?;
    ensure!(file("v1").is_file());
    node.terminate()?;
    std::fs::create_dir(data.join("lost+found"))?;
    std::fs::write(data.join("notes.txt"), "mine")?;

    node.set("ZERO_REPLICA_FILE", &file("v2").display().to_string());
    node.start()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while data.join("v1").exists() {
        ensure!(Instant::now() < deadline, "the former replica is still there:\n{}", node.last_log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(file("v2").is_file() && data.join("lost+found").is_dir() && data.join("notes.txt").is_file());
    node.terminate()?;

    // Unless it is asked for, nothing goes.
    node.set("ZERO_REPLICA_FILE", &file("v3").display().to_string());
    node.unset("ZERO_REPLICA_REMOVE_SIBLINGS");
    node.start()?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(file("v2").is_file() && file("v3").is_file());
    node.check_log()
}
