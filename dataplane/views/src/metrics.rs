//! Metrics of the views. Handles are resolved once; names and help texts live here and nowhere else.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

/// The product's promise: from the commit in Postgres to the frame that carries it on its way to the socket.
pub const COMMIT_TO_POKE: &str = "zero_commit_to_poke_seconds";

#[derive(Clone, Debug)]
pub struct Metrics {
    pub commit_to_poke_seconds: Histogram,
    pub materialisations: IntGauge,
    pub subscriptions: IntGauge,
    pub client_groups: IntGauge,
    pub active_connections: IntGauge,
    pub payload_bytes: IntGauge,
    pub hydrations: IntCounter,
    pub rehydrations: IntCounter,
    pub hydration_seconds: Histogram,
    pub advance_seconds: Histogram,
    pub step_seconds: Histogram,
    pub pokes: IntCounter,
    pub poked_rows: IntCounter,
    pub cvr_flush_seconds: Histogram,
    pub cvr_flush_failures: IntCounter,
    pub transforms_failed: IntCounter,
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
        let histogram = |name: &str, help: &str| -> Result<Histogram, prometheus::Error> {
            // Half a millisecond to 16 seconds, doubling.
            let buckets = prometheus::exponential_buckets(0.0005, 2.0, 16)?;
            let metric = Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets))?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        Ok(Metrics {
            commit_to_poke_seconds: histogram(
                COMMIT_TO_POKE,
                "From the commit in Postgres to the end of the poke that carries it",
            )?,
            materialisations: gauge(
                "zero_materialisations",
                "Queries maintained on this node, each once whoever asks for it",
            )?,
            subscriptions: gauge("zero_subscriptions", "Queries of client groups served from the materialisations")?,
            client_groups: gauge("zero_client_groups", "Client groups in memory")?,
            active_connections: gauge("zero_active_connections", "Connections that receive pokes")?,
            payload_bytes: gauge(
                "zero_payload_bytes",
                "Encoded hydrations kept for clients that connect later, bytes",
            )?,
            hydrations: counter("zero_hydrations_total", "Queries run from scratch")?,
            rehydrations: counter(
                "zero_rehydrations_total",
                "Materialisations renewed because that was cheaper than, or the only way of, following the changes",
            )?,
            hydration_seconds: histogram(
                "zero_hydration_seconds",
                "Time to run a query from scratch and encode its rows",
            )?,
            advance_seconds: histogram("zero_advance_seconds", "Time to bring one materialisation over one batch")?,
            step_seconds: histogram(
                "zero_step_seconds",
                "Time to bring all materialisations and client groups to a version",
            )?,
            pokes: counter("zero_pokes_total", "Pokes queued for sockets")?,
            poked_rows: counter(
                "zero_poked_rows_total",
                "Row operations queued for sockets, cached bodies counted once",
            )?,
            cvr_flush_seconds: histogram("zero_cvr_flush_seconds", "Time of one commit to the CVR database")?,
            cvr_flush_failures: counter(
                "zero_cvr_flush_failures_total",
                "Commits to the CVR database that failed and were retried",
            )?,
            transforms_failed: counter(
                "zero_transforms_failed_total",
                "Queries that the API server refused or could not transform",
            )?,
        })
    }
}
