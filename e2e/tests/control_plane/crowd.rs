//! What reconciling costs: 500 resources in one operator.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crds::ZeroCache;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::operator::{Operator, Options};
use crate::site::Site;

const RESOURCES: usize = 500;
const MEMORY_MIB_MAX: f64 = 100.0;
const CURRENT_WITHIN: Duration = Duration::from_secs(5);
const CPU_MS_MAX: f64 = 5.0;

struct Process(u32);

impl Process {
    fn resident_mib(&self) -> Result<f64> {
        self.mib("VmRSS:")
    }

    /// Of that, pages of the program itself, which the system may take back.
    fn program_mib(&self) -> Result<f64> {
        self.mib("RssFile:")
    }

    fn mib(&self, what: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let line = status.lines().find(|line| line.starts_with(what)).context("a process has a size")?;
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

fn is(cache: &ZeroCache, kind: &str, status: &str) -> bool {
    let conditions = cache.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    conditions.iter().any(|it| it.type_ == kind && it.status == status)
}

/// The resources as one watch shows them, and how late a condition is after what it tells of.
struct Crowd {
    store: Store<ZeroCache>,
    late: Arc<Mutex<Lateness>>,
    _watch: JoinSet<()>,
}

#[derive(Default)]
struct Lateness {
    /// Type and status of the condition that is waited for.
    awaited: (&'static str, &'static str),
    began: BTreeMap<String, Instant>,
    took: BTreeMap<String, Duration>,
}

impl Crowd {
    async fn watch(site: &Site) -> Result<Crowd> {
        let (store, writer) = reflector::store();
        let late: Arc<Mutex<Lateness>> = Arc::default();
        let of_watch = Arc::clone(&late);
        let caches = watcher(site.caches(), watcher::Config::default()).default_backoff();
        let mut caches = caches.reflect(writer).applied_objects().boxed();
        let mut watch = JoinSet::new();
        watch.spawn(async move {
            while let Some(cache) = caches.next().await {
                let Ok(cache) = cache else { continue };
                let name = cache.metadata.name.clone().unwrap_or_default();
                let mut late = of_watch.lock().unwrap();
                let (kind, status) = late.awaited;
                if let Some(began) = late.began.get(&name).copied().filter(|_| is(&cache, kind, status)) {
                    late.took.entry(name).or_insert_with(|| began.elapsed());
                }
            }
        });
        store.wait_until_ready().await?;
        Ok(Crowd { store, late, _watch: watch })
    }

    fn await_condition(&self, kind: &'static str, status: &'static str) {
        *self.late.lock().unwrap() = Lateness { awaited: (kind, status), ..Lateness::default() };
    }

    /// Now something happens to it.
    fn changed(&self, name: &str) {
        self.late.lock().unwrap().began.insert(name.to_owned(), Instant::now());
    }

    async fn check(&self, what: &str) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(60);
        let took = loop {
            let (took, all) = {
                let late = self.late.lock().unwrap();
                (late.took.values().copied().collect::<Vec<Duration>>(), late.began.len())
            };
            if took.len() == all {
                break took;
            }
            ensure!(Instant::now() < end, "only {} of {all} {what} were told of", took.len());
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let mut took = took;
        took.sort();
        let (middle, slowest) = (took[took.len() / 2], took[took.len() - 1]);
        println!("{} {what}: the condition followed after {middle:.2?}, at most after {slowest:.2?}", took.len());
        ensure!(slowest < CURRENT_WITHIN, "a condition followed after {slowest:?}");
        Ok(())
    }

    async fn until_all(&self, kind: &str, status: &str, seconds: u64, peak: &mut Peak<'_>) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            peak.look()?;
            let all = self.store.state();
            let so = all.iter().filter(|cache| is(cache, kind, status)).count();
            if so == RESOURCES {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{so} of {RESOURCES} are {kind} {status} after {seconds} s");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// The most memory that was seen.
struct Peak<'a>(&'a Process, f64);

impl Peak<'_> {
    fn look(&mut self) -> Result<()> {
        self.1 = self.1.max(self.0.resident_mib()?);
        Ok(())
    }
}

async fn change_all(site: &Site, patch: Value) -> Result<()> {
    let (api, patch) = (site.caches(), Patch::Merge(patch));
    let changes = stream::iter(0..RESOURCES).map(|number| {
        let (api, patch) = (&api, &patch);
        async move { api.patch_metadata(&name(number), &PatchParams::default(), patch).await.map(drop) }
    });
    changes.buffer_unordered(8).try_collect::<()>().await.context("change all resources")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_resources() -> Result<()> {
    let site = Site::alone("crowd").await?;
    let operator = Operator::start(&site).await?;
    let process = Process(operator.pid());
    let mut peak = Peak(&process, 0.0);
    let crowd = Crowd::watch(&site).await?;
    let began = Instant::now();
    let created = stream::iter(0..RESOURCES).map(|number| {
        let site = &site;
        async move { site.create(&name(number), json!({})).await.map(drop) }
    });
    created.buffer_unordered(16).try_collect::<()>().await?;
    crowd.until_all("Ready", "True", 900, &mut peak).await.with_context(|| tail(&operator.log()))?;
    crowd.until_all("Progressing", "False", 120, &mut peak).await?;
    println!("{RESOURCES} resources were ready after {:.0} s", began.elapsed().as_secs_f64());
    tokio::time::sleep(Duration::from_secs(10)).await;

    // Users change all of them, 25 a second, and each condition is to follow its change.
    crowd.await_condition("ReconciliationPaused", "True");
    let pause = Patch::Merge(json!({ "spec": { "paused": true } }));
    for number in 0..RESOURCES {
        crowd.changed(&name(number));
        site.caches().patch_metadata(&name(number), &PatchParams::default(), &pause).await?;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    crowd.check("resources that were changed").await?;
    change_all(&site, json!({ "spec": { "paused": false } })).await?;
    crowd.until_all("ReconciliationPaused", "False", 120, &mut peak).await?;

    // Pods fail.
    crowd.await_condition("ReplicationManagerReady", "False");
    for number in (0..RESOURCES).step_by(10) {
        crowd.changed(&name(number));
        site.kubelet.fail(&format!("{}-rm-0", name(number))).await?;
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    crowd.check("pods that failed").await?;
    site.kubelet.recover().await?;
    crowd.until_all("Ready", "True", 120, &mut peak).await?;
    tokio::time::sleep(Duration::from_secs(15)).await;

    // Looked at without cause.
    let reconciles = operator.metric("zerocache_operator_reconcile_total", &[]).await?;
    let changes = operator.metric("zerocache_operator_apply_total", &["result=\"changed\""]).await?;
    let cpu = process.cpu_ms()?;
    change_all(&site, json!({ "metadata": { "annotations": { "example.com/touched": "1" } } })).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let reconciles = operator.metric("zerocache_operator_reconcile_total", &[]).await? - reconciles;
    let changes = operator.metric("zerocache_operator_apply_total", &["result=\"changed\""]).await? - changes;
    let cpu = (process.cpu_ms()? - cpu) / reconciles;
    println!(
        "{reconciles} reconciles without cause took {cpu:.2} ms of CPU each, all else included, and changed {changes}"
    );
    ensure!(reconciles >= 500.0 && cpu < CPU_MS_MAX && changes == 0.0);
    peak.look()?;
    println!(
        "the operator took at most {:.0} MiB, {:.0} MiB of it the program's pages",
        peak.1,
        process.program_mib()?
    );
    ensure!(peak.1 < MEMORY_MIB_MAX, "{} MiB", peak.1);

    // A new life sees them all at once.
    ensure!(operator.stop().await? == 0);
    let again = Operator::start_with(&site, Options::default()).await?;
    let process = Process(again.pid());
    let start = Instant::now();
    let looked_at = ["result=\"ok\""];
    while again.metric("zerocache_operator_reconcile_total", &looked_at).await.unwrap_or(0.0) < RESOURCES as f64 {
        ensure!(start.elapsed() < Duration::from_secs(180), "{}", tail(&again.log()));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let size = process.resident_mib()?;
    println!("a new operator had looked at all of them after {:.1?} and takes {size:.0} MiB", start.elapsed());
    ensure!(size < MEMORY_MIB_MAX, "{size} MiB");
    Ok(())
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
