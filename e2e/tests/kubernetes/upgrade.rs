//! A new image under load: nobody's operation fails, and nobody waits for long. A broken one stops at the replication-manager, and
//! going back is one change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use testkit::client::Store;
use testkit::tab::Tab;
use tokio::sync::watch;

use crate::app::{all_issues, fence};
use crate::crowd::{Crowd, PATIENCE, Use};
use crate::ground::{ABSENT, NEW, OLD, Place, SILENT};
use crate::site::{MANAGER, READY, SYNCER, Site, condition, is_ready, is_settled, is_true, name_of, only, tag_of};
use crate::writer::Writer;

/// Every tab sees a change as often as this.
const PACE: Duration = Duration::from_millis(20);
/// How long nobody should wait for a change.
const GOAL: Duration = Duration::from_secs(2);

/// What clients went through while something was done to the deployment.
pub struct Felt {
    pub operations: u32,
    pub slowest: Duration,
    pub gaps: Vec<Duration>,
    pub summary: String,
    patience: Duration,
}

/// Runs something while many clients work and somebody writes; fails when any operation of a client did, or when one does not end
/// with exactly Postgres' rows.
pub async fn under_load(
    site: &Site,
    test: &str,
    patience: Duration,
    action: impl Future<Output = Result<()>>,
) -> Result<Felt> {
    let mut dice = StdRng::seed_from_u64(testkit::seed(test));
    let crowd = Crowd::gather(|| site.options(), 4, 2, &mut dice);
    crowd.settle(&site.database).await?;
    let beat = |n| format!("INSERT INTO fence VALUES (3, {n}) ON CONFLICT (id) DO UPDATE SET value = {n}");
    let mut writer = Writer::start(&site.database.url(), PACE, beat);
    for tab in &crowd.tabs {
        tab.wait(PATIENCE, "the beat", |store| store.rows["fence"].contains_key("[3]")).await?;
        tab.watch().measure_gaps();
    }
    let (over, is_over) = watch::channel(false);
    let using = tokio::spawn(crowd.use_until(dice, is_over, patience));
    let acted = action.await;
    over.send_replace(true);
    let used = using.await.context("the tabs' task failed")?;
    acted?;
    let Use { crowd, operations, slowest } = used.context("while it was done")?;
    let gaps = crowd.tabs.iter().map(|tab| tab.watch().look(Store::longest_gap)).collect();
    writer.pause().await?;
    crowd.settle(&site.database).await?;
    Ok(Felt { operations, slowest, gaps, summary: crowd.summary(), patience })
}

impl Felt {
    /// For the reader of the test's output; fails only where a user would call it failed.
    pub fn tell(&self, what: &str) -> Result<()> {
        let Felt { operations, slowest, gaps, summary, patience } = self;
        let longest = gaps.iter().max().copied().unwrap_or_default();
        let goal = if longest <= GOAL { "within" } else { "over" };
        println!(
            "{what}: {operations} operations, 0 failed, the slowest took {slowest:.1?}; longest gap of each client: {gaps:.1?}, \
             {goal} the goal of {GOAL:?}; {summary}"
        );
        ensure!(longest < *patience, "somebody waited {longest:?} for a change");
        Ok(())
    }

    /// For what is done so that nobody has to wait.
    pub fn keeps_the_goal(&self) -> Result<()> {
        let longest = self.gaps.iter().max().copied().unwrap_or_default();
        ensure!(longest <= GOAL, "somebody waited {longest:.1?} for a change, more than {GOAL:?}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_under_load_fails_no_operation() -> Result<()> {
    let _place = Place::alone().await;
    // What a person gets who says nothing of it.
    let by_default = |cache: &mut Value| {
        let syncers = &mut cache["spec"]["viewSyncer"];
        syncers["replicas"] = json!(2);
        syncers
            .as_object_mut()
            .expect("it is an object")
            .retain(|key, _| key != "minReadySeconds" && key != "preStopDelaySeconds");
    };
    let site = Site::start("upgrade", by_default).await?;
    let outcome = upgrade(&site).await;
    site.judge(outcome).await
}

async fn upgrade(site: &Site) -> Result<()> {
    let begin = Instant::now();
    let felt = under_load(site, "an_upgrade_under_load_fails_no_operation", PATIENCE, upgrade_to(site, NEW));
    felt.await?.tell(&format!("an upgrade of 1 + 2 pods in {:.1?}", begin.elapsed()))?;
    for role in [MANAGER, SYNCER] {
        for pod in site.pods(role).await?.iter().filter(|pod| is_ready(pod)) {
            ensure!(tag_of(pod) == NEW, "{} still runs {}", name_of(pod), tag_of(pod));
        }
    }
    manager_came_first(site).await
}

/// Changes the image and waits until it is rolled out.
pub async fn upgrade_to(site: &Site, tag: &str) -> Result<()> {
    site.change(json!({"image": {"tag": tag}})).await?;
    let begun = |cache: &Value| is_true(cache, "UpgradeInProgress") || cache["status"]["currentVersion"] == tag;
    site.wait(Duration::from_secs(20), "the upgrade's beginning", begun).await?;
    let done = |cache: &Value| is_settled(cache) && cache["status"]["currentVersion"] == tag;
    site.wait(READY, "the upgrade's end", done).await.map(drop)
}

/// No view-syncer of the new image was made before its replication-managers were ready.
pub async fn manager_came_first(site: &Site) -> Result<()> {
    let mut since = String::new();
    for manager in site.pods(MANAGER).await? {
        let conditions = manager["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.iter().find(|it| it["type"] == "Ready").context("the replication-manager is ready")?;
        since = since.max(ready["lastTransitionTime"].as_str().context("it says since when")?.to_owned());
    }
    // One of before may still drain.
    for pod in site.pods(SYNCER).await?.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()) {
        let made = pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default();
        ensure!(
            made >= since.as_str(),
            "{} was made at {made}, its replication-manager was ready at {since}",
            name_of(&pod)
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_never_answers_stalls_and_going_back_heals() -> Result<()> {
    let _place = Place::shared().await;
    let impatient = |cache: &mut Value| cache["spec"]["upgrade"] = json!({"stepTimeout": "1m"});
    let site = Site::start("silent-image", impatient).await?;
    let stalled = |cache: &Value| is_true(cache, "UpgradeStalled");
    let outcome = there_and_back(&site, SILENT, "UpgradeStalled", stalled).await;
    site.judge(outcome).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_does_not_exist_is_named_and_going_back_heals() -> Result<()> {
    let _place = Place::shared().await;
    let site = Site::start("absent-image", |_| ()).await?;
    let named = |cache: &Value| condition(cache, "ReplicationManagerReady") == ("False", "ImagePullFailed");
    let outcome = there_and_back(&site, ABSENT, "ImagePullFailed", named).await;
    site.judge(outcome).await
}

/// A broken image is reported, view-syncers go on serving what they have, and the image before heals it.
async fn there_and_back(
    site: &Site,
    broken: &str,
    report: &str,
    is_reported: impl FnMut(&Value) -> bool,
) -> Result<()> {
    let tab = Tab::keep("tab", site.client(&[fence(), all_issues()]).await?);
    let syncer = name_of(only(&site.pods(SYNCER).await?)?).to_owned();
    site.change(json!({"image": {"tag": broken}})).await?;
    site.wait(READY, report, is_reported).await?;
    ensure!(tag_of(only(&site.pods(MANAGER).await?)?) == broken, "the broken image was not tried");
    let syncers = site.pods(SYNCER).await?;
    ensure!(name_of(only(&syncers)?) == syncer && is_ready(&syncers[0]), "the view-syncer was touched");
    site.change(json!({"image": {"tag": OLD}})).await?;
    let back = |cache: &Value| is_settled(cache) && cache["status"]["currentVersion"] == OLD;
    site.wait(READY, "the old image to serve again", back).await?;
    ensure!(tag_of(only(&site.pods(MANAGER).await?)?) == OLD, "the broken pod stayed");
    site.database.execute("UPDATE fence SET value = 77 WHERE id = 1").await?;
    tab.wait(READY, "what was written since", |store| store.rows["fence"]["[1]"]["value"] == 77).await?;
    tab.check()
}
