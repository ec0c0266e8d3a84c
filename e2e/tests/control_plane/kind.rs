//! The kind as users meet it: defaults, printed columns, `kubectl explain`, `kubectl scale`.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::process::Command;

use crate::operator::Operator;
use crate::site::Site;

async fn kubectl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("kubectl").args(arguments).output().await.context("run kubectl")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl {}: {complaint}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_document_shows_what_runs() -> Result<()> {
    let site = Site::new("defaults").await?;
    site.create("shop", json!({ "viewSyncer": { "replicas": null, "minReadySeconds": null } })).await?;
    let cache = site.get("shop").await?;
    let spec = &cache["spec"];
    for (field, value) in [
        ("/topology", json!("MultiNode")),
        ("/shardNum", json!(0)),
        ("/generation", json!("v1")),
        ("/viewSyncer/replicas", json!(2)),
        ("/viewSyncer/maxSurge", json!(1)),
        ("/viewSyncer/minReadySeconds", json!(10)),
        ("/viewSyncer/storage/type", json!("Ephemeral")),
        ("/replicationManager/storage/size", json!("20Gi")),
        ("/upgrade/stepTimeout", json!("30m")),
        ("/networkPolicy/enabled", json!(true)),
        ("/databases/connectionBudget/mode", json!("Warn")),
        ("/deletion/upstream", json!("Delete")),
    ] {
        ensure!(spec.pointer(field) == Some(&value), "{field} is {:?}, not {value}", spec.pointer(field));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_lists_explains_and_scales_it() -> Result<()> {
    let site = Site::new("columns").await?;
    let operator = Operator::start(&site).await?;
    site.create("shop", json!({})).await?;
    site.until_ready("shop").await?;
    let listed = kubectl(&["get", "zc", "-n", &site.name]).await?;
    let mut lines = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let (head, row) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    ensure!(head == ["NAME", "PHASE", "GENERATION", "VERSION", "RM", "VS", "DESIRED", "AGE"], "{listed}");
    ensure!(row[..7] == ["shop", "Running", "v1", "1.0.0", "true", "1", "1"], "{listed}");
    let all = kubectl(&["get", "all", "-n", &site.name, "-o", "name"]).await?;
    ensure!(all.contains("zerocache.zerocache.dev/shop"), "{all}");
    let explained = kubectl(&["explain", "zerocache.spec.viewSyncer.preStopDelaySeconds"]).await?;
    ensure!(explained.contains("DESCRIPTION") && !explained.contains("<empty>"), "{explained}");

    kubectl(&["scale", "zc", "shop", "-n", &site.name, "--replicas=3"]).await?;
    site.until("shop", "scaled", 30, |cache| cache["status"]["viewSyncer"]["readyReplicas"] == 3).await?;
    let path = format!("/apis/zerocache.dev/v1alpha1/namespaces/{}/zerocaches/shop/scale", site.name);
    let scale: serde_json::Value = serde_json::from_str(&kubectl(&["get", "--raw", &path]).await?)?;
    ensure!(scale["status"]["replicas"] == 3, "{scale}");
    // An autoscaler counts the pods by it.
    let selector = scale["status"]["selector"].as_str().unwrap_or_default();
    let pods = kubectl(&["get", "pods", "-n", &site.name, "-l", selector, "-o", "name"]).await?;
    ensure!(pods.lines().count() == 3, "{selector}: {pods}\n{}", operator.log());
    Ok(())
}
