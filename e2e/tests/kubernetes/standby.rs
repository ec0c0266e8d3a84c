//! Two replication-managers, always or for the time of a rollout: whatever happens to one, nobody waits for long.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::crowd::PATIENCE;
use crate::ground::{NEW, Place};
use crate::kubectl::{get, kubectl};
use crate::site::{MANAGER, NAME, READY, SYNCER, Site, is_ready, is_settled, name_of, tag_of};
use crate::upgrade::{manager_came_first, under_load, upgrade_to};

#[tokio::test(flavor = "multi_thread")]
async fn with_a_standby_nobody_waits_for_long() -> Result<()> {
    let _place = Place::alone().await;
    let site = Site::start("standby", |cache| {
        cache["spec"]["viewSyncer"]["replicas"] = json!(2);
        cache["spec"]["replicationManager"]["standby"] = json!({"enabled": true});
    })
    .await?;
    let outcome = two_managers(&site).await;
    site.judge(outcome).await
}

async fn two_managers(site: &Site) -> Result<()> {
    let has_standby =
        |cache: &Value| is_settled(cache) && cache["status"]["replicationManager"]["standbyReady"] == true;
    site.wait(READY, "a standby", has_standby).await?;
    let budget = get(&site.namespace, &["pdb", "app-rm"]).await?;
    ensure!(budget["status"]["disruptionsAllowed"] == 1, "of two, one may go: {}", budget["status"]);

    let begin = Instant::now();
    let felt = under_load(site, "with_a_standby_nobody_waits_for_long", PATIENCE, upgrade_to(site, NEW)).await?;
    felt.tell(&format!("an upgrade of 2 + 2 pods in {:.1?}", begin.elapsed()))?;
    felt.keeps_the_goal()?;
    all_run(site, NEW, 2).await?;
    manager_came_first(site).await?;

    let felt = under_load(site, "a_killed_owner", PATIENCE, async {
        let owner = site.look().await?["status"]["replicationManager"]["podName"].clone();
        let owner = owner.as_str().context("the status names the owner")?;
        kubectl(&["delete", "pod", "-n", &site.namespace, owner, "--grace-period=0", "--force"]).await?;
        site.wait(READY, "another owner", |cache| {
            has_standby(cache) && cache["status"]["replicationManager"]["podName"] != owner
        })
        .await
        .map(drop)
    });
    let felt = felt.await?;
    felt.tell("a killed owner of two")?;
    felt.keeps_the_goal()?;
    for pod in site.pods(SYNCER).await? {
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(restarts == 0, "{} was restarted {restarts} times", name_of(&pod));
    }

    // Each copies for itself: two generations never run side by side.
    let felt = under_load(site, "a_reset_of_two", READY, async {
        site.change(json!({"generation": "v2"})).await?;
        let moved = |cache: &Value| has_standby(cache) && cache["status"]["currentGeneration"] == "v2";
        site.wait(READY, "the reset's end", moved).await.map(drop)
    });
    felt.await?.tell("a reset of 2 + 2 pods")?;

    site.change(json!({"replicationManager": {"standby": {"enabled": false}}})).await?;
    site.wait_pods(MANAGER, "one pod", |pods| pods.len() == 1 && is_ready(&pods[0])).await?;
    let gone = kubectl(&["get", "pdb", "-n", &site.namespace, "app-rm"]).await;
    ensure!(gone.is_err(), "a budget for one pod would block the drain of its node");
    site.ready().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_that_overlaps_makes_nobody_wait_for_long() -> Result<()> {
    let _place = Place::alone().await;
    let site = Site::start("overlap", |cache| {
        cache["spec"]["viewSyncer"]["replicas"] = json!(2);
        cache["spec"]["replicationManager"]["handoff"] = json!("Overlap");
    })
    .await?;
    let outcome = overlap(&site).await;
    site.judge(outcome).await
}

async fn overlap(site: &Site) -> Result<()> {
    let begin = Instant::now();
    let felt = under_load(site, "an_upgrade_that_overlaps_makes_nobody_wait_for_long", PATIENCE, upgrade_to(site, NEW));
    let felt = felt.await?;
    felt.tell(&format!("an overlapping upgrade of 1 + 2 pods in {:.1?}", begin.elapsed()))?;
    felt.keeps_the_goal()?;
    all_run(site, NEW, 1).await?;
    let restarted = get(&site.namespace, &["zc", NAME]).await?;
    ensure!(restarted["status"]["replicationManager"]["standbyReady"].is_null(), "nobody asked for a standby");
    manager_came_first(site).await
}

/// So many replication-managers are left, all of this image.
async fn all_run(site: &Site, tag: &str, managers: usize) -> Result<()> {
    let pods = site.wait_pods(MANAGER, "the pods asked for", |pods| pods.len() == managers).await?;
    for pod in pods.iter().chain(&site.pods(SYNCER).await?).filter(|pod| is_ready(pod)) {
        ensure!(tag_of(pod) == tag, "{} still runs {}", name_of(pod), tag_of(pod));
    }
    Ok(())
}
