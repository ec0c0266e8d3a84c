//! The operator's own metrics. Those that follow from the resources' status are in `report::series`.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::error::Category;
use crate::observe::kinds::Kind;

#[derive(Clone, Debug)]
pub struct Metrics {
    /// 1 while this process reconciles.
    pub leader: IntGauge,
    pub crd_missing: IntGauge,
    pub reconciles: IntCounterVec,
    pub reconcile_errors: IntCounterVec,
    pub reconcile_duration_seconds: Histogram,
    /// Reconciles that wrote nothing.
    pub reconciles_unchanged: IntCounter,
    pub applies: IntCounterVec,
    pub watch_restarts: IntCounterVec,
    /// By namespace and name.
    pub resets: IntCounterVec,
    /// By namespace and name.
    pub cleanup_objects_deleted: IntCounterVec,
    pub upgrade_duration_seconds: HistogramVec,
    pub reset_duration_seconds: HistogramVec,
}

/// How a reconcile ended.
pub mod outcome {
    pub const OK: &str = "ok";
    pub const ERROR: &str = "error";
    /// A flow moved on; the resource is looked at again at once.
    pub const REQUEUE: &str = "requeue";
}

/// What became of an object that was to be applied.
pub mod applied {
    pub const CHANGED: &str = "changed";
    pub const UNCHANGED: &str = "unchanged";
    pub const CONFLICT: &str = "conflict";
    pub const ERROR: &str = "error";
    pub const ALL: [&str; 4] = [CHANGED, UNCHANGED, CONFLICT, ERROR];
}

impl Metrics {
    /// Fails when something of the same name was registered before.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let build = IntGaugeVec::new(
            Opts::new("zerocache_operator_build_info", "Always 1; the labels say what runs."),
            &["version", "revision"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION"), option_env!("GIT_REVISION").unwrap_or("unknown")]).set(1);
        registry.register(Box::new(build))?;
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let durations = |name: &str, help: &str| -> Result<HistogramVec, prometheus::Error> {
            let buckets = vec![10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0];
            let histogram = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), &["result"])?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let reconcile_duration_seconds = Histogram::with_opts(
            HistogramOpts::new("zerocache_operator_reconcile_duration_seconds", "Time that a reconcile took.")
                .buckets(buckets),
        )?;
        registry.register(Box::new(reconcile_duration_seconds.clone()))?;
        let reconciles_unchanged = IntCounter::new(
            "zerocache_operator_reconcile_unchanged_total",
            "Reconciles that found nothing to be written.",
        )?;
        registry.register(Box::new(reconciles_unchanged.clone()))?;
        let metrics = Metrics {
            leader: gauge("zerocache_operator_leader", "1 while this operator holds the Lease and reconciles.")?,
            crd_missing: gauge("zerocache_operator_crd_missing", "1 while the ZeroCache kind is not installed.")?,
            reconciles: counters("zerocache_operator_reconcile_total", "Reconciles, by how they ended.", &["result"])?,
            reconcile_errors: counters(
                "zerocache_operator_reconcile_errors_total",
                "Reconciles that failed, by kind of error.",
                &["category"],
            )?,
            reconcile_duration_seconds,
            reconciles_unchanged,
            applies: counters(
                "zerocache_operator_apply_total",
                "Objects that were to be applied, by kind and by what became of them.",
                &["kind", "result"],
            )?,
            watch_restarts: counters(
                "zerocache_operator_watch_restarts_total",
                "Watches that were cut off, by kind.",
                &["kind"],
            )?,
            resets: counters(
                "zerocache_resets_total",
                "Generation resets that were completed.",
                &["namespace", "name"],
            )?,
            cleanup_objects_deleted: counters(
                "zerocache_cleanup_objects_deleted_total",
                "Objects of old generations deleted from the store.",
                &["namespace", "name"],
            )?,
            upgrade_duration_seconds: durations(
                "zerocache_upgrade_duration_seconds",
                "Time that rollouts took, by how they ended.",
            )?,
            reset_duration_seconds: durations(
                "zerocache_reset_duration_seconds",
                "Time that generation resets took, by how they ended.",
            )?,
        };
        metrics.begin();
        Ok(metrics)
    }

    /// A series that is there from the start can be alerted on.
    fn begin(&self) {
        for result in [outcome::OK, outcome::ERROR, outcome::REQUEUE] {
            self.reconciles.with_label_values(&[result]);
        }
        for category in Category::ALL {
            self.reconcile_errors.with_label_values(&[category.label()]);
        }
        for kind in Kind::ALL {
            self.watch_restarts.with_label_values(&[kind.name()]);
            for result in applied::ALL.into_iter().filter(|_| kind.is_planned()) {
                self.applies.with_label_values(&[kind.name(), result]);
            }
        }
    }

    /// Takes the series of a resource that is gone off.
    pub fn forget(&self, namespace: &str, name: &str) {
        for counters in [&self.resets, &self.cleanup_objects_deleted] {
            // One that was never counted has no series.
            let _ = counters.remove_label_values(&[namespace, name]);
        }
    }
}
