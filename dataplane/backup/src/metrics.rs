//! Metrics of the backup. Handles are resolved once; names and help texts live here and nowhere else.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

#[derive(Clone, Debug)]
pub struct Metrics {
    pub uploaded_bytes: IntCounter,
    pub increments: IntCounter,
    pub snapshots: IntCounter,
    pub compactions: IntCounter,
    pub deleted_files: IntCounter,
    pub failures: IntCounter,
    pub broken_chains: IntCounter,
    pub pending_bytes: IntGauge,
    pub last_success_timestamp_seconds: IntGauge,
    pub is_complete: IntGauge,
    pub upload_seconds: Histogram,
    pub snapshot_seconds: Histogram,
}

impl Metrics {
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let histogram = |name: &str, help: &str, first: f64| -> Result<Histogram, prometheus::Error> {
            let buckets = prometheus::exponential_buckets(first, 2.0, 14)?;
            let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        Ok(Metrics {
            uploaded_bytes: counter("zero_backup_uploaded_bytes_total", "Bytes of files written to the backup")?,
            increments: counter("zero_backup_increments_total", "Increments written to the backup")?,
            snapshots: counter("zero_backup_snapshots_total", "Snapshots written to the backup")?,
            compactions: counter("zero_backup_compactions_total", "Files merged from increments")?,
            deleted_files: counter(
                "zero_backup_deleted_files_total",
                "Files deleted because nothing needs them any more",
            )?,
            failures: counter("zero_backup_failures_total", "Failed attempts to write, verify or tidy the backup")?,
            broken_chains: counter(
                "zero_backup_broken_chains_total",
                "Times that increments could not be continued and a new snapshot had to begin",
            )?,
            pending_bytes: gauge(
                "zero_backup_pending_bytes",
                "Changed pages that are captured and not yet in the backup, bytes",
            )?,
            last_success_timestamp_seconds: gauge(
                "zero_backup_last_success_timestamp_seconds",
                "When everything captured was last in the backup, seconds since the Unix epoch",
            )?,
            is_complete: gauge("zero_backup_complete", "1 if this process's own chain can be restored from, else 0")?,
            upload_seconds: histogram(
                "zero_backup_upload_seconds",
                "Time to write an increment and see it in the store",
                0.004,
            )?,
            snapshot_seconds: histogram("zero_backup_snapshot_seconds", "Time to write a snapshot", 0.25)?,
        })
    }
}
