//! What is written when nothing changed: nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use kube::api::ListParams;
use serde_json::json;

use crate::operator::{Operator, Options};
use crate::proxy::Proxy;
use crate::site::Site;

/// Versions of everything in the namespace that an operator may write.
async fn versions(site: &Site) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for (group, version, kind, plural) in [
        ("", "v1", "Service", "services"),
        ("", "v1", "Secret", "secrets"),
        ("", "v1", "ServiceAccount", "serviceaccounts"),
        ("apps", "v1", "StatefulSet", "statefulsets"),
        ("apps", "v1", "Deployment", "deployments"),
        ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
        ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
        ("zerocache.dev", "v1alpha1", "ZeroCache", "zerocaches"),
    ] {
        for object in site.dynamic(group, version, kind, plural).list(&ListParams::default()).await? {
            let name = format!("{kind} {}", object.metadata.name.unwrap_or_default());
            found.insert(name, object.metadata.resource_version.unwrap_or_default());
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_resource_is_not_written() -> Result<()> {
    let site = Site::new("unchanged").await?;
    let proxy = Proxy::start(site.client.clone()).await?;
    let options = Options { kubeconfig: Some(proxy.kubeconfig()?), ..Options::default() };
    let operator = Operator::start_with(&site, options.clone()).await?;
    site.create("shop", json!({})).await?;
    site.until_ready("shop").await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (before, written) = (versions(&site).await?, proxy.writes().len());
    let reconciled = operator.metric("zerocache_operator_reconcile_total", &[]).await?;
    for round in 0..5 {
        let touch = json!({ "metadata": { "annotations": { "example.com/touched": round.to_string() } } });
        site.change("shop", touch).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let more = operator.metric("zerocache_operator_reconcile_total", &[]).await? - reconciled;
    ensure!(more >= 5.0, "it was looked at {more} times");
    let writes: Vec<String> = proxy.writes().split_off(written).into_iter().map(|asked| asked.path).collect();
    ensure!(writes.is_empty(), "{writes:#?}");
    let mut after = versions(&site).await?;
    after.insert("ZeroCache shop".to_owned(), before["ZeroCache shop"].clone());
    ensure!(after == before, "{before:#?}\n{after:#?}");
    // A new life applies everything once, and changes nothing by it.
    operator.kill().await?;
    let before = versions(&site).await?;
    let operator = Operator::start_with(&site, options).await?;
    operator.until_ready(true).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(operator.metric("zerocache_operator_reconcile_total", &[]).await? > 0.0);
    let after = versions(&site).await?;
    let changed: Vec<&String> =
        before.iter().filter(|(name, version)| after.get(*name) != Some(version)).map(|it| it.0).collect();
    ensure!(changed.is_empty(), "{changed:?} changed:\n{:#}\n{}", site.get("shop").await?, operator.log());
    Ok(())
}
