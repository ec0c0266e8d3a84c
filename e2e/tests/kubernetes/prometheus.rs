//! A Prometheus that is told of pods by their annotations: every target is up, the series are there, and the chart's alerts can be
//! evaluated. Debian builds it without the discovery of pods, so the annotations are read here.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::app::fence;
use crate::ground::{Place, SYSTEM};
use crate::kubectl::{get, root, run};
use crate::site::{Site, is_ready, name_of};

const PORT: u16 = 9090;
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the operator, and of both roles of the data plane.
const SERIES: &[&str] = &[
    "zerocache_operator_build_info",
    "zerocache_operator_leader",
    "zerocache_operator_reconcile_total",
    "zerocache_operator_reconcile_duration_seconds_count",
    "zerocache_operator_apply_total",
    "zerocache_info",
    "zerocache_condition",
    "zerocache_phase",
    "zerocache_view_syncers",
    "zerocache_replication_manager_ready",
    "zerocache_connection_budget",
    "zero_build_info",
    "zero_backup_complete",
    "zero_memory_resident_bytes",
    "zero_replicated_transactions_total",
    "zero_sync_websocket_open_connections",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_target_is_up_with_its_series() -> Result<()> {
    let _place = Place::shared().await;
    let site = Site::start("watched", |_| ()).await?;
    let outcome = watch(&site).await;
    site.judge(outcome).await
}

async fn watch(site: &Site) -> Result<()> {
    // Some series begin with the first client.
    let _client = site.client(&[fence()]).await?;
    let _prometheus = start(site).await?;
    let deadline = Instant::now() + PATIENCE;
    let targets = loop {
        let targets = ask("targets?state=active").await.unwrap_or_default()["activeTargets"].clone();
        let targets = targets.as_array().cloned().unwrap_or_default();
        let is_up = |target: &Value| target["health"] == "up";
        if targets.len() == 3 && targets.iter().all(is_up) {
            break targets;
        }
        ensure!(
            Instant::now() < deadline,
            "the targets of an operator, a replication-manager and a view-syncer: {targets:#?}"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    for series in SERIES {
        loop {
            let found = ask(&format!("query?query=count({series})")).await?;
            if found["result"].as_array().is_some_and(|result| !result.is_empty()) {
                break;
            }
            ensure!(Instant::now() < deadline, "no series {series} from {} targets that are up", targets.len());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    loop {
        let groups = ask("rules").await?["groups"].clone();
        let rules: Vec<_> =
            groups.as_array().into_iter().flatten().flat_map(|group| group["rules"].as_array()).flatten().collect();
        ensure!(!rules.is_empty(), "the chart's alerts were not read");
        let bad = rules.iter().find(|rule| rule["health"] == "err");
        ensure!(bad.is_none(), "an alert cannot be evaluated: {bad:#?}");
        if rules.iter().all(|rule| rule["health"] == "ok") {
            let firing: Vec<_> =
                rules.iter().filter(|rule| rule["state"] == "firing").map(|rule| &rule["name"]).collect();
            ensure!(firing.is_empty(), "alerts fire though all is well: {firing:?}");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "alerts were not evaluated in time");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn start(site: &Site) -> Result<Child> {
    run("e2e/kube/packages", &["prometheus"], None).await?;
    let folder = std::env::temp_dir().join("prometheus");
    fs::create_dir_all(&folder)?;
    let (targets, file) = (folder.join("targets.json"), folder.join("prometheus.json"));
    fs::write(&targets, discover(site).await?.to_string())?;
    let alerts = root().join("charts/zero-cache-operator/alerts.yaml").canonicalize()?;
    let config = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [alerts],
        "scrape_configs": [{"job_name": "pods", "file_sd_configs": [{"files": [targets]}]}],
    });
    fs::write(&file, config.to_string())?;
    let log = fs::File::create(folder.join("log"))?;
    Command::new("prometheus")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{PORT}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("start Prometheus")
}

/// What `prometheus.io/scrape`, `/port` and `/path` say of the operator's and the deployment's pods.
async fn discover(site: &Site) -> Result<Value> {
    let mut targets = Vec::new();
    for namespace in [SYSTEM, &site.namespace] {
        let pods = get(namespace, &["pods"]).await?;
        for pod in pods["items"].as_array().into_iter().flatten().filter(|pod| is_ready(pod)) {
            let said = |what: &str| pod["metadata"]["annotations"][format!("prometheus.io/{what}")].as_str();
            if let (Some("true"), Some(port), Some(path)) = (said("scrape"), said("port"), said("path")) {
                let address =
                    format!("{}:{port}", pod["status"]["podIP"].as_str().context("a ready pod has an address")?);
                let labels = json!({"__metrics_path__": path, "namespace": namespace, "pod": name_of(pod)});
                targets.push(json!({"targets": [address], "labels": labels}));
            }
        }
    }
    Ok(Value::from(targets))
}

/// What Prometheus' own interface answers.
async fn ask(what: &str) -> Result<Value> {
    let path = format!("/api/v1/{what}");
    let (status, text) = tokio::task::spawn_blocking(move || testkit::http::get(PORT, &path, "")).await??;
    ensure!(status == 200, "Prometheus answers {status}: {text}");
    let answer: Value = serde_json::from_str(&text)?;
    Ok(answer["data"].clone())
}
