//! The registry behind `/metrics` and the handles of the metrics that belong to no single crate.
//!
//! The views and the gateway make their own handles in the same registry; `METRICS.md` lists what all of them make.

mod memory;
pub mod names;
mod reference;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry, TextEncoder};

pub(crate) use memory::usage as memory_usage;
pub use reference::{Family, families, reference};

use names::Name;

/// From half a millisecond to half a minute, dense where a healthy server lives.
const LATENCY_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 2.0, 5.0, 10.0, 30.0,
];

/// From a tenth of a millisecond: most advances and many hydrations are shorter than a round trip.
const WORK_BUCKETS: &[f64] =
    &[0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0];

/// Cheap to clone: every handle is shared.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub registry: Registry,
    pub commit_to_poke: Histogram,
    pub connections: IntGauge,
    pub client_groups: IntGauge,
    pub materialisations: IntGauge,
    pub subscriptions: IntGauge,
    pub replica_version_lag: IntGauge,
    pub transactions: IntCounter,
    pub changes: IntCounter,
    pub hydrations: IntCounter,
    pub hydration: Histogram,
    pub advances: IntCounter,
    pub advance: Histogram,
    pub cvr_flush: Histogram,
    pub cvr_flush_failures: IntCounter,
    pub pokes: IntCounter,
    pub poked_rows: IntCounter,
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
        Ok(Metrics {
            commit_to_poke: histogram(&registry, names::COMMIT_TO_POKE, LATENCY_BUCKETS)?,
            connections: gauge(&registry, names::CONNECTIONS)?,
            client_groups: gauge(&registry, names::CLIENT_GROUPS)?,
            materialisations: gauge(&registry, names::MATERIALISATIONS)?,
            subscriptions: gauge(&registry, names::SUBSCRIPTIONS)?,
            replica_version_lag: gauge(&registry, names::REPLICA_VERSION_LAG)?,
            transactions: counter(&registry, names::TRANSACTIONS)?,
            changes: counter(&registry, names::CHANGES)?,
            hydrations: counter(&registry, names::HYDRATIONS)?,
            hydration: histogram(&registry, names::HYDRATION, WORK_BUCKETS)?,
            advances: counter(&registry, names::ADVANCES)?,
            advance: histogram(&registry, names::ADVANCE, WORK_BUCKETS)?,
            cvr_flush: histogram(&registry, names::CVR_FLUSH, LATENCY_BUCKETS)?,
            cvr_flush_failures: counter(&registry, names::CVR_FLUSH_FAILURES)?,
            pokes: counter(&registry, names::POKES)?,
            poked_rows: counter(&registry, names::POKED_ROWS)?,
            registry,
        })
    }

    /// The page of `/metrics` in Prometheus's text format.
    pub fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn opts(name: Name) -> Opts {
    Opts::new(name.name, name.help)
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn gauge(registry: &Registry, name: Name) -> prometheus::Result<IntGauge> {
    registered(registry, IntGauge::with_opts(opts(name))?)
}

fn counter(registry: &Registry, name: Name) -> prometheus::Result<IntCounter> {
    registered(registry, IntCounter::with_opts(opts(name))?)
}

fn histogram(registry: &Registry, name: Name, buckets: &[f64]) -> prometheus::Result<Histogram> {
    let opts = HistogramOpts::new(name.name, name.help).buckets(buckets.to_vec());
    registered(registry, Histogram::with_opts(opts)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_what_was_counted() {
        let metrics = Metrics::new("1.2.3", "single-node").unwrap();
        metrics.pokes.inc_by(3);
        metrics.connections.set(7);
        metrics.commit_to_poke.observe(0.004);
        let page = metrics.render().unwrap();
        for line in [
            "zero_pokes_total 3",
            "zero_connections 7",
            "zero_commit_to_poke_seconds_bucket{le=\"0.003\"} 0",
            "zero_commit_to_poke_seconds_bucket{le=\"0.005\"} 1",
            "zero_commit_to_poke_seconds_bucket{le=\"30\"} 1",
            "zero_build_info{role=\"single-node\",version=\"1.2.3\"} 1",
            "# TYPE process_resident_memory_bytes gauge",
        ] {
            assert!(page.lines().any(|l| l == line), "{line:?} is not in\n{page}");
        }
    }

    #[test]
    fn memory_is_read_at_each_scrape() {
        let metrics = Metrics::new("1.2.3", "single-node").unwrap();
        let resident = |page: &str| -> i64 {
            let line = page.lines().find(|l| l.starts_with("zero_memory_resident_bytes ")).unwrap().to_owned();
            line.split(' ').next_back().unwrap().parse().unwrap()
        };
        assert!(resident(&metrics.render().unwrap()) > 0);
    }

    #[test]
    fn names_follow_the_rules() {
        for family in families(&Metrics::new("1.2.3", "single-node").unwrap().registry) {
            let name = &family.name;
            assert!(!family.help.is_empty(), "{name}");
            assert_eq!(family.kind == "counter", name.ends_with("_total"), "{name}");
            assert_eq!(family.kind == "histogram", name.ends_with("_seconds") && name.starts_with("zero_"), "{name}");
            assert!(name.starts_with("zero_") || name.starts_with("process_"), "{name}");
        }
    }
}
