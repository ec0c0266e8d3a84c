//! Two replication-managers, always or for the time of a rollout: whatever happens to one, nobody waits for long.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::app::copies;
use crate::crowd::PATIENCE;
use crate::ground::{NEW, Place};
use crate::kubectl::{get, kubectl};
use crate::site::{MANAGER, READY, SYNCER, Site, is_ready, is_settled, name_of, tag_of};
use crate::upgrade::{manager_came_first, under_load, upgrade_to};

pub fn with_standby(cache: &mut Value) {
    cache["spec"]["viewSyncer"]["replicas"] = json!(2);
    cache["spec"]["replicationManager"]["standby"] = json!({"enabled": true});
}

pub fn has_standby(cache: &Value) -> bool {
    is_settled(cache) && cache["status"]["replicationManager"]["standbyReady"] == true
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_with_a_standby_makes_nobody_wait_for_long() -> Result<()> {
    let _place = Place::alone().await;
    let site = Site::start("standby-upgrade", with_standby).await?;
    let outcome = upgrade(&site).await;
    site.judge(outcome).await
}

async fn upgrade(site: &Site) -> Result<()> {
    site.wait(READY, "a standby", has_standby).await?;
    let begin = Instant::now();
    let test = "an_upgrade_with_a_standby_makes_nobody_wait_for_long";
    let felt = under_load(site, test, PATIENCE, upgrade_to(site, NEW)).await?;
    felt.tell(&format!("an upgrade of 2 + 2 pods in {:.1?}", begin.elapsed()))?;
    felt.keeps_the_goal()?;
    all_run(site, NEW, 2).await?;
    manager_came_first(site).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_a_killed_owner() -> Result<()> {
    let _place = Place::alone().await;
    let site = Site::start("standby-killed", with_standby).await?;
    let outcome = kill(&site).await;
    site.judge(outcome).await
}

async fn kill(site: &Site) -> Result<()> {
    let cache = site.wait(READY, "a standby", has_standby).await?;
    let owner = cache["status"]["replicationManager"]["podName"].as_str().context("the status names the owner")?;
    let felt = under_load(site, "a_standby_takes_over_from_a_killed_owner", PATIENCE, async {
        kubectl(&["delete", "pod", "-n", &site.namespace, owner, "--grace-period=0", "--force"]).await?;
        let has_changed =
            |cache: &Value| has_standby(cache) && cache["status"]["replicationManager"]["podName"] != owner;
        site.wait(READY, "another owner and a new standby", has_changed).await.map(drop)
    });
    let felt = felt.await?;
    felt.tell("a killed owner of two")?;
    felt.keeps_the_goal()?;
    for pod in site.pods(SYNCER).await? {
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(restarts == 0, "{} was restarted {restarts} times", name_of(&pod));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_follows_a_reset_and_goes_when_it_is_not_wanted() -> Result<()> {
    let _place = Place::shared().await;
    let site = Site::start("standby-reset", with_standby).await?;
    let outcome = reset_and_leave(&site).await;
    site.judge(outcome).await
}

async fn reset_and_leave(site: &Site) -> Result<()> {
    site.wait(READY, "a standby", has_standby).await?;
    let budget = get(&site.namespace, &["pdb", "app-rm"]).await?;
    ensure!(budget["status"]["disruptionsAllowed"] == 1, "of two, one may go: {}", budget["status"]);
    let felt = under_load(site, "a_standby_follows_a_reset_and_goes_when_it_is_not_wanted", READY, async {
        site.change(json!({"generation": "v2"})).await?;
        let has_moved = |cache: &Value| has_standby(cache) && cache["status"]["currentGeneration"] == "v2";
        site.wait(READY, "the reset's end, with a standby", has_moved).await.map(drop)
    });
    felt.await?.tell("a reset of 2 + 2 pods")?;
    one_copied_anew(site).await?;

    site.change(json!({"replicationManager": {"standby": {"enabled": false}}})).await?;
    site.wait_pods(MANAGER, "one pod", |pods| pods.len() == 1 && is_ready(&pods[0])).await?;
    let gone = kubectl(&["get", "pdb", "-n", &site.namespace, "app-rm"]).await;
    ensure!(gone.is_err(), "a budget for one pod would block the drain of its node");
    site.ready().await.map(drop)
}

/// The new generation was not made from the old one's replica, and only one of the two made it.
async fn one_copied_anew(site: &Site) -> Result<()> {
    let mut copied = 0;
    for pod in site.pods(MANAGER).await? {
        copied += copies(&kubectl(&["logs", "-n", &site.namespace, name_of(&pod)]).await?);
    }
    ensure!(copied == 1, "{copied} initial copies were made");
    Ok(())
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
