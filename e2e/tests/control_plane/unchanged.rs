//! What reconciling costs: 500 resources in one operator, and what is written when nothing changed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt as _, stream};
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::operator::{Operator, Options};
use crate::proxy::Proxy;
use crate::site::{Site, condition};

const RESOURCES: usize = 500;
const MEMORY_MIB_MAX: f64 = 100.0;
const CURRENT_WITHIN: Duration = Duration::from_secs(5);
const CPU_MS_MAX: f64 = 5.0;

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

struct Process(u32);

impl Process {
    fn resident_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("a process has a size")?;
        Ok(line.split_whitespace().nth(1).context("a size is a number")?.parse::<f64>()? / 1024.0)
    }

    /// User and system time in milliseconds.
    fn cpu_ms(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        let after_name = stat.rsplit_once(')').context("a process has a name")?.1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks * 10.0)
    }
}

fn name(number: usize) -> String {
    format!("shop{number:03}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_resources() -> Result<()> {
    let site = Site::alone("crowd").await?;
    let operator = Operator::start(&site).await?;
    let process = Process(operator.pid());
    let began = Instant::now();
    stream::iter(0..RESOURCES)
        .map(|number| {
            let site = &site;
            async move { site.create(&name(number), json!({})).await }
        })
        .buffer_unordered(16)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let mut peak: f64 = 0.0;
    loop {
        peak = peak.max(process.resident_mib()?);
        let caches = site.caches().list(&ListParams::default()).await?;
        let ready = caches.iter().filter(|cache| {
            let cache = serde_json::to_value(*cache).unwrap_or_default();
            condition(&cache, "Ready").0 == "True" && !cache["status"]["currentRevision"].is_null()
        });
        let ready = ready.count();
        if ready == RESOURCES {
            break;
        }
        ensure!(
            began.elapsed() < Duration::from_secs(600),
            "{ready} of {RESOURCES} are ready:\n{}",
            tail(&operator.log())
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    println!("{RESOURCES} resources were ready after {:.0} s", began.elapsed().as_secs_f64());
    tokio::time::sleep(Duration::from_secs(10)).await;

    // Users change all of them, 25 a second, and each condition is to follow its change.
    let late = Lateness::watch(&site, "ReconciliationPaused", "True").await?;
    let pace = Duration::from_millis(40);
    let all: Vec<usize> = (0..RESOURCES).collect();
    let pause = Patch::Merge(json!({ "spec": { "paused": true } }));
    for number in &all {
        late.changed(&name(*number));
        site.caches().patch(&name(*number), &PatchParams::default(), &pause).await?;
        tokio::time::sleep(pace).await;
    }
    late.check("resources that were changed", RESOURCES).await?;
    let resume = Patch::Merge(json!({ "spec": { "paused": false } }));
    for number in &all {
        site.caches().patch(&name(*number), &PatchParams::default(), &resume).await?;
    }
    until_all(&site, &all, |cache| condition(cache, "ReconciliationPaused").0 == "False").await?;

    // Pods fail.
    let late = Lateness::watch(&site, "ReplicationManagerReady", "False").await?;
    let failing: Vec<usize> = (0..50).map(|number| number * 10).collect();
    for number in &failing {
        late.changed(&name(*number));
        site.kubelet.fail(&format!("{}-rm-0", name(*number))).await?;
    }
    late.check("pods that failed", failing.len()).await?;
    site.kubelet.behave(|behaviour| behaviour.unready.clear()).await?;
    until_all(&site, &all, |cache| condition(cache, "Ready").0 == "True").await?;
    tokio::time::sleep(Duration::from_secs(15)).await;

    // Looked at without cause.
    let before = (
        process.cpu_ms()?,
        operator.metric("zerocache_operator_reconcile_total", &[]).await?,
        operator.metric("zerocache_operator_apply_total", &["result=\"changed\""]).await?,
    );
    for number in &all {
        let touch = Patch::Merge(json!({ "metadata": { "annotations": { "example.com/touched": "1" } } }));
        site.caches().patch(&name(*number), &PatchParams::default(), &touch).await?;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let reconciles = operator.metric("zerocache_operator_reconcile_total", &[]).await? - before.1;
    let cpu = (process.cpu_ms()? - before.0) / reconciles;
    let changed = operator.metric("zerocache_operator_apply_total", &["result=\"changed\""]).await? - before.2;
    println!(
        "{reconciles} reconciles without cause took {cpu:.2} ms of CPU each, all else included, and changed {changed}"
    );
    ensure!(reconciles >= RESOURCES as f64);
    ensure!(cpu < CPU_MS_MAX, "{cpu} ms");
    ensure!(changed == 0.0, "{changed} objects");

    peak = peak.max(process.resident_mib()?);
    println!("the operator took at most {peak:.0} MiB");
    ensure!(peak < MEMORY_MIB_MAX, "{peak} MiB");

    // A new life sees them all at once.
    ensure!(operator.stop().await? == 0);
    let again = Operator::start_with(&site, Options::default()).await?;
    let process = Process(again.pid());
    let start = Instant::now();
    while again.metric("zerocache_operator_reconcile_total", &["result=\"ok\""]).await.unwrap_or(0.0) < RESOURCES as f64
    {
        ensure!(start.elapsed() < Duration::from_secs(120), "{}", tail(&again.log()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let size = process.resident_mib()?;
    println!("a new operator had looked at all of them after {:.1?} and takes {size:.0} MiB", start.elapsed());
    ensure!(size < MEMORY_MIB_MAX, "{size} MiB");
    Ok(())
}

/// How late conditions are after what they tell of.
struct Lateness {
    began: Arc<Mutex<BTreeMap<String, Instant>>>,
    took: Arc<Mutex<BTreeMap<String, Duration>>>,
    _watch: JoinSet<()>,
}

impl Lateness {
    /// Watches for a condition's status.
    async fn watch(site: &Site, kind: &'static str, status: &'static str) -> Result<Lateness> {
        let began: Arc<Mutex<BTreeMap<String, Instant>>> = Arc::default();
        let took: Arc<Mutex<BTreeMap<String, Duration>>> = Arc::default();
        let mut watch = JoinSet::new();
        let events = watcher(site.caches(), watcher::Config::default()).default_backoff();
        let (of_watch, result) = (Arc::clone(&began), Arc::clone(&took));
        let (listed, is_listed) = tokio::sync::oneshot::channel();
        let mut listed = Some(listed);
        watch.spawn(async move {
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                let cache = match event {
                    Ok(watcher::Event::Apply(cache)) => cache,
                    Ok(watcher::Event::InitDone) => {
                        listed.take().map(|listed| listed.send(()));
                        continue;
                    }
                    _ => continue,
                };
                let name = cache.metadata.name.unwrap_or_default();
                let Some(began) = of_watch.lock().unwrap().get(&name).copied() else { continue };
                let conditions = cache.status.map(|status| status.conditions).unwrap_or_default();
                if conditions.iter().any(|it| it.type_ == kind && it.status == status) {
                    result.lock().unwrap().entry(name).or_insert_with(|| began.elapsed());
                }
            }
        });
        is_listed.await.context("watch all resources")?;
        Ok(Lateness { began, took, _watch: watch })
    }

    fn changed(&self, name: &str) {
        self.began.lock().unwrap().insert(name.to_owned(), Instant::now());
    }

    async fn check(&self, what: &str, count: usize) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        while self.took.lock().unwrap().len() < count {
            ensure!(Instant::now() < end, "only {} of {count} {what} were told of", self.took.lock().unwrap().len());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let mut took: Vec<Duration> = self.took.lock().unwrap().values().copied().collect();
        took.sort();
        let (middle, slowest) = (took[took.len() / 2], took[took.len() - 1]);
        println!("{count} {what}: the condition followed after {middle:.2?}, at most after {slowest:.2?}");
        ensure!(slowest < CURRENT_WITHIN, "a condition followed after {slowest:?}");
        Ok(())
    }
}

/// How long it took until all of them were so.
async fn until_all(site: &Site, numbers: &[usize], is_so: impl Fn(&Value) -> bool) -> Result<Duration> {
    let start = Instant::now();
    let names: Vec<String> = numbers.iter().map(|number| name(*number)).collect();
    loop {
        let caches = site.caches().list(&ListParams::default()).await?;
        let is_all = caches
            .iter()
            .filter(|cache| cache.metadata.name.as_ref().is_some_and(|name| names.contains(name)))
            .all(|cache| is_so(&serde_json::to_value(cache).unwrap_or_default()));
        if is_all {
            return Ok(start.elapsed());
        }
        ensure!(start.elapsed() < Duration::from_secs(120), "not all were so in time");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
