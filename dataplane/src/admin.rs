//! Contents of `/statz`: named groups of facts about the running server, for people and scripts.
//!
//! A group that fails says so in its own place and never fails the page. Knows no HTTP: whoever serves the page checks the
//! password and passes the query string on. Groups that ask a database are added by the composition root.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::metrics::{Metrics, memory_usage};

/// A slow group is reported as such instead of holding the page up.
const GROUP_TIMEOUT: Duration = Duration::from_secs(10);

/// The facts of one group, or why there are none.
pub type Facts = Result<Value, String>;
type Source = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Facts> + Send>> + Send + Sync>;

/// The page, built once and asked on each request.
#[derive(Default)]
pub struct Statz {
    groups: Vec<(&'static str, Source)>,
}

/// A page ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub content_type: &'static str,
    pub body: String,
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

    /// Adds what every node can say about itself: `server`, `replica`, `metrics` and `os`.
    #[must_use]
    pub fn with_own_groups(self, server: Value, replica_file: PathBuf, metrics: Metrics, started: Instant) -> Self {
        self.group("server", move || {
            let mut facts = server.clone();
            if let Value::Object(facts) = &mut facts {
                facts.insert("uptimeSeconds".to_owned(), started.elapsed().as_secs().into());
            }
            std::future::ready(Ok(facts))
        })
        .group("replica", move || std::future::ready(replica(&replica_file)))
        .group("metrics", move || std::future::ready(Ok(counts(&metrics))))
        .group("os", || std::future::ready(os()))
    }

    /// `query` is the text after `?` of the request: `group=a,b` restricts the page, `format=json` changes its form and
    /// `pretty` indents it.
    pub async fn page(&self, query: &str) -> Page {
        let pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let find = |wanted: &str| pairs.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let facts = self.facts(find("group"), GROUP_TIMEOUT).await;
        match (find("format"), find("pretty")) {
            (Some("json"), None) => Page { content_type: "application/json", body: Value::Object(facts).to_string() },
            (Some("json"), Some(_)) => {
                Page { content_type: "application/json", body: format!("{:#}", Value::Object(facts)) }
            }
            _ => Page { content_type: "text/plain; charset=utf-8", body: text(&facts) },
        }
    }

    async fn facts(&self, wanted: Option<&str>, timeout: Duration) -> Map<String, Value> {
        let mut facts = Map::new();
        for (name, source) in &self.groups {
            if wanted.is_none_or(|wanted| wanted.split(',').any(|one| one.trim() == *name)) {
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

/// One heading per group and one line per fact; nested facts are named by their path.
fn text(facts: &Map<String, Value>) -> String {
    let mut page = String::new();
    for (group, value) in facts {
        page.push_str(&format!("{group}\n"));
        lines(&mut page, "", value);
        page.push('\n');
    }
    page
}

fn lines(page: &mut String, path: &str, value: &Value) {
    let Value::Object(facts) = value else {
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        page.push_str(&format!("  {}: {shown}\n", if path.is_empty() { "value" } else { path }));
        return;
    };
    for (name, value) in facts {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        lines(page, &path, value);
    }
}

/// Sizes of the replica's files. The write-ahead log and the shared memory file come and go.
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

/// Everything counted so far that is a single number, by metric name.
fn counts(metrics: &Metrics) -> Value {
    let mut counts = Map::new();
    for family in metrics.registry.gather() {
        for metric in family.get_metric() {
            let labels: Vec<String> =
                metric.get_label().iter().map(|label| format!("{}={}", label.name(), label.value())).collect();
            let name = match labels.is_empty() {
                true => family.name().to_owned(),
                false => format!("{}{{{}}}", family.name(), labels.join(",")),
            };
            let histogram = metric.get_histogram();
            let value = match family.get_field_type() {
                prometheus::proto::MetricType::COUNTER => json!(metric.get_counter().get_value()),
                prometheus::proto::MetricType::GAUGE => json!(metric.get_gauge().get_value()),
                _ => json!({ "count": histogram.get_sample_count(), "sum": histogram.get_sample_sum() }),
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

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    fn page(statz: &Statz, query: &str) -> Page {
        wait(statz.page(query))
    }

    fn statz() -> Statz {
        Statz::default()
            .group("cvr", || std::future::ready(Ok(json!({ "queries": { "total": 3 } }))))
            .group("upstream", || std::future::ready(Err("connection refused".to_owned())))
    }

    #[test]
    fn a_failing_group_does_not_fail_the_page() {
        let page = page(&statz(), "");
        assert_eq!(page.content_type, "text/plain; charset=utf-8");
        assert_eq!(page.body, "cvr\n  queries.total: 3\n\nupstream\n  error: connection refused\n\n");
    }

    #[test]
    fn groups_can_be_chosen_and_shown_as_json() {
        let chosen = page(&statz(), "format=json&group=cvr,none");
        assert_eq!(
            (chosen.content_type, chosen.body.as_str()),
            ("application/json", r#"{"cvr":{"queries":{"total":3}}}"#)
        );
        let pretty = page(&statz(), "format=json&group=cvr&pretty");
        assert!(pretty.body.starts_with("{\n  \"cvr\": {\n"), "{}", pretty.body);
    }

    #[test]
    fn a_slow_group_is_reported() {
        let statz = Statz::default().group("slow", std::future::pending);
        let facts = wait(statz.facts(None, Duration::from_millis(1)));
        assert_eq!(facts["slow"]["error"], "no answer within 1ms");
    }

    #[test]
    fn own_groups() {
        let metrics = Metrics::new("1.2.3", "single-node").unwrap();
        metrics.pokes.inc_by(2);
        let file = std::env::temp_dir().join(format!("statz-{}.db", std::process::id()));
        std::fs::write(&file, [0u8; 4096]).unwrap();
        let started = Instant::now();
        let statz = Statz::default().with_own_groups(json!({ "version": "1.2.3" }), file.clone(), metrics, started);
        let page: Value = serde_json::from_str(&page(&statz, "format=json").body).unwrap();
        std::fs::remove_file(file).unwrap();
        assert_eq!(page["server"]["version"], "1.2.3");
        assert_eq!(page["server"]["uptimeSeconds"], 0);
        assert_eq!(page["replica"]["databaseBytes"], 4096);
        assert_eq!(page["metrics"]["zero_pokes_total"], 2.0);
        assert_eq!(page["metrics"]["zero_commit_to_poke_seconds"]["count"], 0);
        assert_eq!(page["os"]["load"].as_array().map(Vec::len), Some(3));
        assert!(page["os"]["cpus"].as_u64() > Some(0));
    }
}
