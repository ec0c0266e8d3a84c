//! The operator as the chart's ServiceAccount: its rights are enough for everything it does, none is left over, and a missing one is
//! told of.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::account::Account;
use crate::everything::everything;
use crate::operator::Operator;
use crate::proxy::Proxy;
use crate::revoked::each_is_missed;
use crate::right::Right;
use crate::site::{Site, condition};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_charts_rights_are_used_to_the_last_and_are_enough() -> Result<()> {
    let site = Site::new("rights").await?;
    let account = Account::new(&site, |_| true).await?;
    let proxy = Proxy::start(account.client.clone()).await?;
    let operator = Operator::start_behind(&site, &proxy).await?;
    operator.until_ready(true).await?;
    if let Err(error) = everything(&site).await {
        return Err(error.context(operator.log()));
    }
    let refused: BTreeSet<String> =
        proxy.asked().into_iter().filter(|asked| asked.status == 403).map(|asked| asked.path).collect();
    ensure!(refused.is_empty(), "refused: {refused:#?}");
    let (granted, used) = (account.rights(), proxy.used());
    let unused: Vec<String> = granted.difference(&used).map(Right::to_string).collect();
    ensure!(unused.is_empty(), "the chart grants what is never used: {unused:#?}");
    let beyond: Vec<String> = used.difference(&granted).map(Right::to_string).collect();
    ensure!(beyond.is_empty(), "allowed by somebody else than the chart: {beyond:#?}");
    operator.kill().await?;
    let missed = each_is_missed(&site, &account, &proxy.asked()).await?;
    ensure!(missed == granted, "only these were missed: {missed:#?}");
    println!("{} rights, each used, each missed", missed.len());
    Ok(())
}

async fn without(test: &str, group: &str, resource: &str, verb: &str) -> Result<(Site, Account, Proxy, Operator)> {
    let site = Site::new(test).await?;
    let right = Right { group: group.to_owned(), resource: resource.to_owned(), verb: verb.to_owned() };
    let account = Account::new(&site, |it| *it != right).await?;
    ensure!(account.rights().contains(&right));
    let proxy = Proxy::start(account.client.clone()).await?;
    let operator = Operator::start_behind(&site, &proxy).await?;
    site.create("shop", json!({})).await?;
    Ok((site, account, proxy, operator))
}

async fn until_told(site: &Site, part: &str) -> Result<()> {
    let told = |cache: &Value| {
        let (status, reason, message) = condition(cache, "Degraded");
        status == "True" && reason == "ReconcileFailed" && message.contains(part)
    };
    site.until("shop", "told of the missing right", 40, told).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_may_not_be_made_is_told_of() -> Result<()> {
    let (site, account, _proxy, operator) = without("create", "policy", "poddisruptionbudgets", "create").await?;
    until_told(&site, "apply PodDisruptionBudget shop-vs").await?;
    ensure!(operator.metric("zerocache_operator_reconcile_errors_total", &["forbidden"]).await? > 0.0);
    // The rest is made all the same, and the right given back heals it.
    site.until_ready("shop").await?;
    account.allow(|_| true).await?;
    site.until("shop", "healed", 90, |cache| condition(cache, "Degraded").0 == "False").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_may_not_be_watched_is_told_of() -> Result<()> {
    let (site, account, _proxy, operator) = without("watch", "", "pods", "list").await?;
    until_told(&site, "pods cannot be watched").await?;
    operator.until_ready(false).await?;
    ensure!(operator.ask("/healthz").await?.0 == 200);
    account.allow(|_| true).await?;
    site.until_ready("shop").await?;
    operator.until_ready(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_that_may_not_be_read_are_told_of() -> Result<()> {
    let (site, _account, _proxy, _operator) = without("secrets", "", "secrets", "get").await?;
    until_told(&site, "read Secret").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_that_may_not_be_watched_keep_it_unready() -> Result<()> {
    let (site, account, _proxy, operator) = without("resources", "zerocache.dev", "zerocaches", "list").await?;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !operator.log().contains("cannot list resource") {
        ensure!(std::time::Instant::now() < end, "{}", operator.log());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    operator.until_ready(false).await?;
    account.allow(|_| true).await?;
    site.until_ready("shop").await?;
    operator.until_ready(true).await
}
