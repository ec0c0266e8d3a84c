//! Metrics of the backup. Handles are resolved once; names and help texts live here and nowhere else.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntGauge, Registry, register_histogram_with_registry as histogram,
    register_int_counter_with_registry as counter, register_int_gauge_with_registry as gauge,
};

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
        let seconds = |name: &str, help: &str, first: f64| -> Result<HistogramOpts, prometheus::Error> {
            Ok(HistogramOpts::new(name, help).buckets(prometheus::exponential_buckets(first, 2.0, 14)?))
        };
        Ok(Metrics {
            uploaded_bytes: counter!(
                "zero_backup_uploaded_bytes_total",
                "Bytes of files written to the backup",
                registry
            )?,
            increments: counter!("zero_backup_increments_total", "Increments written to the backup", registry)?,
            snapshots: counter!("zero_backup_snapshots_total", "Snapshots written to the backup", registry)?,
            compactions: counter!("zero_backup_compactions_total", "Files merged from increments", registry)?,
            deleted_files: counter!(
                "zero_backup_deleted_files_total",
                "Files deleted because nothing needs them any more",
                registry
            )?,
            failures: counter!(
                "zero_backup_failures_total",
                "Failed attempts to write, verify or tidy the backup",
                registry
            )?,
            broken_chains: counter!(
                "zero_backup_broken_chains_total",
                "Times that increments could not be continued and a new snapshot had to begin",
                registry
            )?,
            pending_bytes: gauge!(
                "zero_backup_pending_bytes",
                "Changed pages that are captured and not yet in the backup, bytes",
                registry
            )?,
            last_success_timestamp_seconds: gauge!(
                "zero_backup_last_success_timestamp_seconds",
                "When everything captured was last in the backup, seconds since the Unix epoch",
                registry
            )?,
            is_complete: gauge!(
                "zero_backup_complete",
                "1 if this process's own chain can be restored from, else 0",
                registry
            )?,
            upload_seconds: histogram!(
                seconds("zero_backup_upload_seconds", "Time to write an increment and see it in the store", 0.004)?,
                registry
            )?,
            snapshot_seconds: histogram!(
                seconds("zero_backup_snapshot_seconds", "Time to write a snapshot", 0.25)?,
                registry
            )?,
        })
    }
}
