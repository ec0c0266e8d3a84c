//! Two operators, one Lease.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::operator::{Operator, Options};
use crate::site::{Site, condition};

fn electing(name: &str) -> Options {
    let environment = [("LEADER_ELECTION", "true"), ("POD_NAME", name)].map(|(key, value)| (key, value.to_owned()));
    Options { environment: BTreeMap::from(environment), ..Options::default() }
}

async fn leads(operator: &Operator) -> Result<bool> {
    Ok(operator.metric("zerocache_operator_leader", &[]).await? == 1.0)
}

async fn until_leading(operator: &Operator, seconds: u64) -> Result<Duration> {
    let start = Instant::now();
    while !leads(operator).await.unwrap_or(false) {
        ensure!(start.elapsed() < Duration::from_secs(seconds), "it does not lead:\n{}", operator.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(start.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_takes_over_when_the_first_is_killed_or_stops() -> Result<()> {
    let site = Site::new("election").await?;
    let first = Operator::start_with(&site, electing("first")).await?;
    until_leading(&first, 20).await?;
    let second = Operator::start_with(&site, electing("second")).await?;
    second.until_ready(true).await?;
    site.create("shop", json!({})).await?;
    site.until_ready("shop").await?;
    ensure!(!leads(&second).await?, "two lead");
    ensure!(second.metric("zerocache_operator_reconcile_total", &[]).await? == 0.0, "only the leader reconciles");

    // Not before the Lease has run out, and not much later.
    first.kill().await?;
    let took = until_leading(&second, 30).await?;
    ensure!((Duration::from_secs(8)..Duration::from_secs(20)).contains(&took), "took over after {took:?}");
    site.change("shop", json!({ "spec": { "paused": true } })).await?;
    site.until("shop", "paused", 10, |cache| condition(cache, "ReconciliationPaused").0 == "True").await?;

    // A leader that stops gives the Lease back.
    let third = Operator::start_with(&site, electing("third")).await?;
    third.until_ready(true).await?;
    ensure!(second.stop().await? == 0);
    let took = until_leading(&third, 10).await?;
    println!("after a stop the next operator leads in {took:?}");
    ensure!(took < Duration::from_secs(5), "took over after {took:?}");
    let lease = site.api::<Lease>().get("zerocache-operator").await?.spec.context("a Lease has a spec")?;
    ensure!(lease.holder_identity.is_some_and(|holder| holder.starts_with("third_")));
    ensure!(lease.lease_transitions == Some(3), "{:?}", lease.lease_transitions);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_lost_the_lease_ends_at_once() -> Result<()> {
    let site = Site::new("lost").await?;
    let operator = Operator::start_with(&site, electing("loser")).await?;
    until_leading(&operator, 20).await?;
    let taken = json!({ "spec": { "holderIdentity": "somebody" } });
    site.api::<Lease>().patch("zerocache-operator", &PatchParams::default(), &Patch::Merge(taken)).await?;
    ensure!(operator.ended(6).await? == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_before_anything_runs_ends_it_well() -> Result<()> {
    let site = Site::new("signal").await?;
    let first = Operator::start_with(&site, electing("first")).await?;
    until_leading(&first, 20).await?;
    let second = Operator::start_with(&site, electing("second")).await?;
    second.until_ready(true).await?;
    ensure!(second.stop().await? == 0, "one that stands by stops as well");
    ensure!(first.stop().await? == 0);
    Ok(())
}
