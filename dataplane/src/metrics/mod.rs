//! The registry behind `/metrics`, and the metrics that belong to no single crate: the process, its memory, and the
//! replication that the composition root drives.
//!
//! The views and the gateway register their own in the same registry; `METRICS.md` lists what all of them offer.

mod memory;
pub mod names;
mod reference;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

pub(crate) use memory::usage as memory_usage;
pub use reference::{Family, families, reference};

use names::Name;

/// From a tenth of a millisecond, the time of a small commit.
const APPLY_BUCKETS: &[f64] =
    &[0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// From a small replica on the same machine to a large one over a slow line.
const RESTORE_BUCKETS: &[f64] = &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];

/// Cheap to clone: every handle is shared.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub registry: Registry,
    pub failed_logins: IntCounter,
    pub replica_version_lag: IntGauge,
    pub transactions: IntCounter,
    pub changes: IntCounter,
    pub apply: Histogram,
    /// Labels: where from, and the result.
    pub restores: IntCounterVec,
    pub restore: Histogram,
    pub restored_bytes: IntCounter,
}

impl Metrics {
    /// `server_version` and `role` become labels of the build information.
    pub fn new(server_version: &str, role: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        registry.register(Box::new(memory::Memory::new()?))?;
        let build = IntGauge::with_opts(
            opts(names::BUILD_INFO).const_label("version", server_version).const_label("role", role),
        )?;
        build.set(1);
        registry.register(Box::new(build))?;
        let apply = HistogramOpts::new(names::APPLY.name, names::APPLY.help).buckets(APPLY_BUCKETS.to_vec());
        let restore = HistogramOpts::new(names::RESTORE.name, names::RESTORE.help).buckets(RESTORE_BUCKETS.to_vec());
        Ok(Metrics {
            failed_logins: registered(&registry, IntCounter::with_opts(opts(names::FAILED_LOGINS))?)?,
            replica_version_lag: registered(&registry, IntGauge::with_opts(opts(names::REPLICA_VERSION_LAG))?)?,
            transactions: registered(&registry, IntCounter::with_opts(opts(names::TRANSACTIONS))?)?,
            changes: registered(&registry, IntCounter::with_opts(opts(names::CHANGES))?)?,
            apply: registered(&registry, Histogram::with_opts(apply)?)?,
            restores: registered(&registry, IntCounterVec::new(opts(names::RESTORES), &["source", "result"])?)?,
            restore: registered(&registry, Histogram::with_opts(restore)?)?,
            restored_bytes: registered(&registry, IntCounter::with_opts(opts(names::RESTORED_BYTES))?)?,
            registry,
        })
    }
}

fn opts(name: Name) -> Opts {
    Opts::new(name.name, name.help)
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(metrics: &Metrics) -> String {
        prometheus::TextEncoder::new().encode_to_string(&metrics.registry.gather()).unwrap()
    }

    #[test]
    fn a_scrape_shows_what_was_counted() {
        let metrics = Metrics::new("1.2.3", "single-node").unwrap();
        metrics.transactions.inc_by(3);
        metrics.replica_version_lag.set(700);
        metrics.apply.observe(0.004);
        let page = scrape(&metrics);
        for line in [
            "zero_replicated_transactions_total 3",
            "zero_replica_version_lag_bytes 700",
            "zero_replica_apply_seconds_bucket{le=\"0.002\"} 0",
            "zero_replica_apply_seconds_bucket{le=\"0.005\"} 1",
            "zero_build_info{role=\"single-node\",version=\"1.2.3\"} 1",
            "# TYPE process_resident_memory_bytes gauge",
        ] {
            assert!(page.lines().any(|l| l == line), "{line:?} is not in\n{page}");
        }
    }

    #[test]
    fn memory_is_read_at_each_scrape() {
        let metrics = Metrics::new("1.2.3", "single-node").unwrap();
        let page = scrape(&metrics);
        let line = page.lines().find(|l| l.starts_with("zero_memory_resident_bytes ")).unwrap();
        let resident: i64 = line.split(' ').next_back().unwrap().parse().unwrap();
        assert!(resident > 0, "{line}");
    }
}
