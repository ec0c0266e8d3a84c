//! Contents of `/statz`: named groups of facts about the running server.
//!
//! A group that fails says so in its own place and never fails the page. Knows no HTTP: a node's ports check the password,
//! ask for groups by name and render them. Groups that ask a database are added by the composition root.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::Registry;
use prometheus::proto::MetricType;
use serde_json::{Map, Value, json};

use crate::metrics::memory_usage;

/// A slow group is reported as such instead of holding the page up.
const GROUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The facts of one group, or why there are none.
pub type Facts = Result<Value, String>;
type Source = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Facts> + Send>> + Send + Sync>;

/// All groups, built once and asked on each request.
#[derive(Default)]
pub struct Statz {
    groups: Vec<(&'static str, Source)>,
}

impl Statz {
    /// Adds a group after those already there.
    #[must_use]
    pub fn group<F, R>(mut self, name: &'static str, source: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Facts> + Send + 'static,
    {
        self.groups.push((name, Box::new(move || Box::pin(source()))));
        self
    }

    /// Adds what every node can say about itself: `server` (the facts given here and the time it is up), `replica`,
    /// `metrics` and `os`.
    #[must_use]
    pub fn with_own_groups(self, server: Map<String, Value>, replica_file: PathBuf, registry: Registry) -> Self {
        let started = Instant::now();
        self.group("server", move || {
            let mut facts = server.clone();
            facts.insert("uptimeSeconds".to_owned(), started.elapsed().as_secs().into());
            std::future::ready(Ok(Value::Object(facts)))
        })
        .group("replica", move || std::future::ready(replica(&replica_file)))
        .group("metrics", move || std::future::ready(Ok(counts(&registry))))
        .group("os", || std::future::ready(os()))
    }

    /// For [`port::StatusPage::new`].
    #[must_use]
    pub fn into_status(self) -> port::Status {
        let statz = Arc::new(self);
        Arc::new(move |wanted| {
            let statz = Arc::clone(&statz);
            Box::pin(async move { Value::Object(statz.facts(&wanted, GROUP_TIMEOUT).await) })
        })
    }

    /// The groups wanted, in their own order; all if none is named.
    async fn facts(&self, wanted: &[String], timeout: Duration) -> Map<String, Value> {
        let mut facts = Map::new();
        for (name, source) in &self.groups {
            if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
                let group = match tokio::time::timeout(timeout, source()).await {
                    Ok(Ok(group)) => group,
                    Ok(Err(error)) => json!({ "error": error }),
                    Err(_) => json!({ "error": format!("no answer within {timeout:?}") }),
                };
                facts.insert((*name).to_owned(), group);
            }
        }
        facts
    }
}

/// Sizes of the replica's files. The write-ahead log comes and goes.
fn replica(file: &Path) -> Facts {
    let size = |suffix: &str| {
        let mut path = file.as_os_str().to_owned();
        path.push(suffix);
        std::fs::metadata(path).map(|file| file.len())
    };
    let database = size("").map_err(|error| format!("read the size of {}: {error}", file.display()))?;
    Ok(json!({
        "file": file.display().to_string(),
        "databaseBytes": database,
        "walBytes": size("-wal").unwrap_or_default(),
    }))
}

/// Everything counted so far, by metric name; of a histogram its count and sum.
fn counts(registry: &Registry) -> Value {
    let mut counts = Map::new();
    for family in registry.gather() {
        for metric in family.get_metric() {
            let labels: Vec<String> =
                metric.get_label().iter().map(|label| format!("{}={}", label.name(), label.value())).collect();
            let name = match labels.is_empty() {
                true => family.name().to_owned(),
                false => format!("{}{{{}}}", family.name(), labels.join(",")),
            };
            let value = match family.get_field_type() {
                MetricType::COUNTER => json!(metric.get_counter().get_value()),
                MetricType::GAUGE => json!(metric.get_gauge().get_value()),
                MetricType::HISTOGRAM | MetricType::SUMMARY | MetricType::UNTYPED => {
                    let histogram = metric.get_histogram();
                    json!({ "count": histogram.get_sample_count(), "sum": histogram.get_sample_sum() })
                }
            };
            counts.insert(name, value);
        }
    }
    Value::Object(counts)
}

fn os() -> Facts {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|error| format!("read {path}: {error}"));
    let load = read("/proc/loadavg")?;
    let loads: Vec<f64> = load.split_whitespace().take(3).filter_map(|word| word.parse().ok()).collect();
    let memory = read("/proc/meminfo")?;
    let kilobytes = |name: &str| -> Option<u64> {
        memory.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
    };
    Ok(json!({
        "load": loads,
        "memoryTotalBytes": kilobytes("MemTotal:").map(|n| n * 1024),
        "memoryAvailableBytes": kilobytes("MemAvailable:").map(|n| n * 1024),
        "allocatedBytes": memory_usage().map(|usage| usage.allocated),
        "cpus": std::thread::available_parallelism().map(usize::from).ok(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    fn ask(statz: Statz, wanted: &[&str]) -> Value {
        wait((statz.into_status())(wanted.iter().map(|name| (*name).to_owned()).collect()))
    }

    fn statz() -> Statz {
        Statz::default()
            .group("cvr", || std::future::ready(Ok(json!({ "queries": 3 }))))
            .group("upstream", || std::future::ready(Err("connection refused".to_owned())))
    }

    #[test]
    fn a_failing_group_does_not_fail_the_page() {
        let all = json!({ "cvr": { "queries": 3 }, "upstream": { "error": "connection refused" } });
        assert_eq!(ask(statz(), &[]), all);
    }

    #[test]
    fn groups_can_be_chosen() {
        assert_eq!(ask(statz(), &["none", "cvr"]), json!({ "cvr": { "queries": 3 } }));
    }

    #[test]
    fn a_slow_group_is_reported() {
        let statz = Statz::default().group("slow", std::future::pending);
        let facts = wait(statz.facts(&[], Duration::from_millis(1)));
        assert_eq!(facts["slow"]["error"], "no answer within 1ms");
    }

    #[test]
    fn own_groups() {
        let metrics = Metrics::new("1.2.3", "single-node").unwrap();
        metrics.transactions.inc_by(2);
        let file = std::env::temp_dir().join(format!("statz-{}.db", std::process::id()));
        std::fs::write(&file, [0u8; 4096]).unwrap();
        let server = Map::from_iter([("version".to_owned(), json!("1.2.3"))]);
        let page = ask(Statz::default().with_own_groups(server, file.clone(), metrics.registry), &[]);
        std::fs::remove_file(file).unwrap();
        assert_eq!(page["server"], json!({ "version": "1.2.3", "uptimeSeconds": 0 }));
        assert_eq!(page["replica"]["databaseBytes"], 4096);
        assert_eq!(page["metrics"]["zero_replicated_transactions_total"], 2.0);
        assert_eq!(page["metrics"]["zero_replica_apply_seconds"]["count"], 0);
        assert_eq!(page["os"]["load"].as_array().map(Vec::len), Some(3));
        assert!(page["os"]["cpus"].as_u64() > Some(0));
    }
}
