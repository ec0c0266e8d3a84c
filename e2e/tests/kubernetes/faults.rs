//! Pods that die or are sent away: the replication-manager killed, view-syncers evicted as by the drain of their node.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::client::Store;
use testkit::tab::Tab;

use crate::app::{all_issues, fence};
use crate::crowd::PATIENCE;
use crate::ground::Place;
use crate::kubectl::{kubectl, run};
use crate::site::{MANAGER, READY, SYNCER, Site, is_ready, name_of, only};
use crate::upgrade::under_load;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replication_manager_comes_back_and_nothing_is_lost() -> Result<()> {
    let _place = Place::shared().await;
    let site = Site::start("killed-manager", |_| ()).await?;
    let outcome = kill_manager(&site).await;
    site.judge(outcome).await
}

async fn kill_manager(site: &Site) -> Result<()> {
    let tab = Tab::keep("tab", site.client(&[fence(), all_issues()]).await?);
    let pods = site.pods(MANAGER).await?;
    let (name, before) = (name_of(only(&pods)?).to_owned(), pods[0]["metadata"]["uid"].clone());
    let begin = Instant::now();
    kubectl(&["delete", "pod", "-n", &site.namespace, &name, "--grace-period=0", "--force"]).await?;
    for value in 1..=20 {
        site.database.execute(&format!("UPDATE fence SET value = {value} WHERE id = 1")).await?;
    }
    tab.watch().measure_gaps();
    tab.wait(READY, "what was written meanwhile", |store| store.rows["fence"]["[1]"]["value"] == 20).await?;
    println!(
        "a killed replication-manager: a client had every change after {:.1?}, its longest gap was {:.1?}",
        begin.elapsed(),
        tab.watch().look(Store::longest_gap)
    );
    tab.check()?;
    let anew = |pods: &[Value]| pods.len() == 1 && pods[0]["metadata"]["uid"] != before && is_ready(&pods[0]);
    site.wait_pods(MANAGER, "a new pod that is ready", anew).await?;
    let restarts = site.pods(SYNCER).await?[0]["status"]["containerStatuses"][0]["restartCount"].clone();
    ensure!(restarts == 0, "the view-syncer was restarted {restarts} times");
    site.ready().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_evicts_one_view_syncer_at_a_time_and_no_operation_fails() -> Result<()> {
    let _place = Place::shared().await;
    let two = |cache: &mut Value| cache["spec"]["viewSyncer"]["replicas"] = json!(2);
    let site = Site::start("drain", two).await?;
    let outcome = drain(&site).await;
    site.judge(outcome).await
}

async fn drain(site: &Site) -> Result<()> {
    let felt = under_load(site, "a_drain_evicts_one_view_syncer_at_a_time_and_no_operation_fails", PATIENCE, async {
        let pods = site.pods(SYNCER).await?;
        ensure!(pods.len() == 2, "there are {} view-syncers", pods.len());
        evict(site, name_of(&pods[0])).await?;
        let second = evict(site, name_of(&pods[1])).await;
        ensure!(second.is_err(), "both view-syncers may be evicted at once");
        // What a drain does: again and again until it may.
        let deadline = Instant::now() + READY;
        while evict(site, name_of(&pods[1])).await.is_err() {
            ensure!(Instant::now() < deadline, "the second view-syncer cannot be evicted");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let old: Vec<_> = pods.iter().map(name_of).collect();
        let anew =
            |pods: &[Value]| pods.len() == 2 && pods.iter().all(|pod| is_ready(pod) && !old.contains(&name_of(pod)));
        site.wait_pods(SYNCER, "two new pods", anew).await?;
        // One of its kind, and no budget that would hold up the drain for ever.
        let managers = site.pods(MANAGER).await?;
        evict(site, name_of(only(&managers)?)).await?;
        let uid = managers[0]["metadata"]["uid"].clone();
        let anew = |pods: &[Value]| pods.len() == 1 && pods[0]["metadata"]["uid"] != uid && is_ready(&pods[0]);
        site.wait_pods(MANAGER, "a new pod", anew).await?;
        site.ready().await.map(drop)
    });
    felt.await?.tell("a drain of 1 + 2 pods")
}

async fn evict(site: &Site, pod: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", site.namespace);
    let meta = json!({"name": pod, "namespace": site.namespace});
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}).to_string();
    run("kubectl", &["create", "--raw", &path, "-f", "-"], Some(&eviction)).await.map(drop)
}
