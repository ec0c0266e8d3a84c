//! The operator dies whenever a flow has made a step; another one goes on where it was.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::tab::Tab;

use crate::app::{all_issues, fence};
use crate::ground::{NEW, OPERATOR, Place, SYSTEM};
use crate::kubectl::kubectl;
use crate::site::{READY, Site, brief, is_settled};
use crate::upgrade::manager_came_first;

/// Restarting the operator this often takes its time.
const FLOW: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread")]
async fn flows_go_on_after_the_operators_death_at_every_step() -> Result<()> {
    let _place = Place::alone().await;
    let site = Site::start("operator-killed", |_| ()).await?;
    let outcome = run_flows(&site).await;
    site.judge(outcome).await
}

async fn run_flows(site: &Site) -> Result<()> {
    let tab = Tab::keep("tab", site.client(&[fence(), all_issues()]).await?);
    site.change(json!({"image": {"tag": NEW}})).await?;
    let steps = kill_at_every_step(site, "upgrade", |cache| cache["status"]["currentVersion"] == NEW).await?;
    ensure!(steps.len() >= 3, "the upgrade was seen only at the steps {steps:?}");
    manager_came_first(site).await?;
    site.change(json!({"generation": "v2"})).await?;
    let more = kill_at_every_step(site, "reset", |cache| cache["status"]["currentGeneration"] == "v2").await?;
    ensure!(more.len() >= 2, "the reset was seen only at the steps {more:?}");
    println!("the operator was killed at {steps:?} of an upgrade and at {more:?} of a reset");
    site.database.execute("UPDATE fence SET value = 55 WHERE id = 1").await?;
    tab.wait(READY, "a change after all", |store| store.rows["fence"]["[1]"]["value"] == 55).await?;
    tab.check()
}

/// Kills the operator whenever the flow shows a step that was not seen yet; the steps.
async fn kill_at_every_step(site: &Site, flow: &str, is_done: impl Fn(&Value) -> bool) -> Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    let deadline = Instant::now() + FLOW;
    loop {
        let cache = site.look().await?;
        if is_settled(&cache) && is_done(&cache) {
            return Ok(seen);
        }
        if let Some(step) = cache["status"][flow]["step"].as_str()
            && seen.insert(step.to_owned())
        {
            kubectl(&["delete", "pod", "-n", SYSTEM, "-l", OPERATOR, "--grace-period=0", "--force"]).await?;
        }
        ensure!(Instant::now() < deadline, "the {flow} did not end after deaths at {seen:?}: {}", brief(&cache));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
