//! Watches that are cut off, and an API server that cannot be reached for a while.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::api::DeleteParams;
use serde_json::json;

use crate::operator::{Operator, Options};
use crate::proxy::Proxy;
use crate::site::{Site, condition};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_are_cut_off_go_on() -> Result<()> {
    let site = Site::new("cut").await?;
    let proxy = Proxy::start(site.client.clone()).await?;
    let options = Options { kubeconfig: Some(proxy.kubeconfig()?), ..Options::default() };
    let operator = Operator::start_with(&site, options).await?;
    site.create("shop", json!({})).await?;
    site.until_ready("shop").await?;
    for round in 1..=3 {
        proxy.cut();
        // A change of the resource, and one of a child, right into the gap.
        site.change("shop", json!({ "spec": { "viewSyncer": { "replicas": round + 1 } } })).await?;
        site.api::<Service>().delete("shop-rm", &DeleteParams::default()).await?;
        site.until("shop", "scaled", 30, |cache| cache["status"]["viewSyncer"]["readyReplicas"] == round + 1).await?;
        site.until_object::<Service>("shop-rm", "made again", 30, |service| !service.is_null()).await?;
    }
    let watches = proxy.asked().into_iter().filter(|it| it.needs.as_ref().is_some_and(|it| it.verb == "watch")).count();
    ensure!(watches >= 4 * 10, "only {watches} watches were begun");
    ensure!(operator.ask("/readyz").await?.0 == 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_while_the_api_server_was_away_is_made_up_for() -> Result<()> {
    let site = Site::new("away").await?;
    let proxy = Proxy::start(site.client.clone()).await?;
    let options = Options { kubeconfig: Some(proxy.kubeconfig()?), ..Options::default() };
    let operator = Operator::start_with(&site, options).await?;
    site.create("shop", json!({})).await?;
    site.create("gone", json!({ "deletion": { "upstream": "Retain" } })).await?;
    site.until_ready("shop").await?;
    site.until_ready("gone").await?;
    proxy.close(true);
    site.change("shop", json!({ "spec": { "paused": true } })).await?;
    site.delete("gone").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(operator.ask("/healthz").await?.0 == 200, "it lives on without the API server");
    proxy.close(false);
    site.until("shop", "paused", 40, |cache| condition(cache, "ReconciliationPaused").0 == "True").await?;
    let text = format!("namespace=\"{}\"", site.name);
    ensure!(operator.metric("zerocache_info", &[&text, "name=\"gone\""]).await? == 0.0, "its series are gone as well");
    ensure!(operator.metric("zerocache_info", &[&text, "name=\"shop\""]).await? == 1.0);
    Ok(())
}

/// Installed out of order, the operator waits for its kind, and says that it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_without_its_kind_waits_for_it() -> Result<()> {
    let site = Site::new("kind").await?;
    let proxy = Proxy::start(site.client.clone()).await?;
    proxy.hide(Some("zerocache.dev"));
    let options = Options { kubeconfig: Some(proxy.kubeconfig()?), ..Options::default() };
    let operator = Operator::start_with(&site, options).await?;
    operator.until_ready(false).await?;
    ensure!(operator.metric("zerocache_operator_crd_missing", &[]).await? == 1.0);
    ensure!(operator.ask("/healthz").await?.0 == 200);
    site.create("shop", json!({})).await?;
    proxy.hide(None);
    site.until_ready("shop").await?;
    ensure!(operator.metric("zerocache_operator_crd_missing", &[]).await? == 0.0);
    operator.until_ready(true).await
}

/// A kind that not every cluster serves is used once it is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_is_installed_later_is_found() -> Result<()> {
    let site = Site::new("later").await?;
    let proxy = Proxy::start(site.client.clone()).await?;
    proxy.hide(Some("monitoring.coreos.com"));
    let options = Options { kubeconfig: Some(proxy.kubeconfig()?), ..Options::default() };
    let operator = Operator::start_with(&site, options).await?;
    site.create("shop", json!({})).await?;
    site.until_ready("shop").await?;
    let monitors = site.dynamic("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors");
    ensure!(monitors.get_opt("shop").await?.is_none());
    proxy.hide(None);
    let end = Instant::now() + Duration::from_secs(75);
    while monitors.get_opt("shop").await?.is_none() {
        ensure!(Instant::now() < end, "no PodMonitor was made:\n{}", operator.log());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
}
