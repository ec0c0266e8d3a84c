//! The numbers this crate publishes.

use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Seconds. The reference's latency buckets, with a tail for calls of API servers.
const BUCKETS: &[f64] = &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0];

#[derive(Clone, Debug)]
pub struct Metrics {
    pub open_connections: IntGaugeVec,
    pub connection_attempts: IntCounter,
    pub connection_successes: IntCounter,
    pub connection_failures: IntCounterVec,
    pub disconnects: IntCounterVec,
    pub messages_received: IntCounterVec,
    pub messages_sent: IntCounter,
    pub bytes_received: IntCounter,
    pub bytes_sent: IntCounter,
    pub api_requests: IntCounterVec,
    pub api_request_duration: HistogramVec,
    pub api_attempts: IntCounterVec,
    pub api_in_flight: IntGaugeVec,
    pub pushes: IntCounter,
    pub custom_mutations: IntCounter,
    pub push_queue_bytes: IntGauge,
    pub query_transformations: IntCounterVec,
    pub http_requests: IntCounterVec,
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
        let counters = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| -> Result<IntGaugeVec, prometheus::Error> {
            let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let histograms = |name: &str, help: &str, labels: &[&str]| -> Result<HistogramVec, prometheus::Error> {
            let metric = HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        Ok(Metrics {
            open_connections: gauges(
                "zero_sync_websocket_open_connections",
                "Client sockets that are open",
                &["protocol_version"],
            )?,
            connection_attempts: counter(
                "zero_sync_websocket_connection_attempts_total",
                "Upgrade requests for the sync protocol",
            )?,
            connection_successes: counter(
                "zero_sync_websocket_connection_successes_total",
                "Client sockets that were accepted",
            )?,
            connection_failures: counters(
                "zero_sync_websocket_connection_failures_total",
                "Client sockets that were refused",
                &["reason"],
            )?,
            disconnects: counters("zero_sync_websocket_disconnects_total", "Client sockets that ended", &["reason"])?,
            messages_received: counters(
                "zero_sync_messages_received_total",
                "Messages of clients, by message",
                &["tag"],
            )?,
            messages_sent: counter("zero_sync_messages_sent_total", "Messages sent to clients")?,
            bytes_received: counter("zero_sync_bytes_received_total", "Bytes of messages of clients")?,
            bytes_sent: counter("zero_sync_bytes_sent_total", "Bytes of messages sent to clients")?,
            api_requests: counters(
                "zero_server_api_requests_total",
                "Calls of the application's API servers",
                &["operation", "result"],
            )?,
            api_request_duration: histograms(
                "zero_server_api_request_duration_seconds",
                "Calls of the application's API servers, retries included",
                &["operation"],
            )?,
            api_attempts: counters(
                "zero_server_api_attempts_total",
                "HTTP requests to the application's API servers",
                &["operation"],
            )?,
            api_in_flight: gauges(
                "zero_server_api_in_flight",
                "Calls of the application's API servers that wait for an answer",
                &["operation"],
            )?,
            pushes: counter("zero_mutation_pushes_total", "Pushes of clients")?,
            custom_mutations: counter("zero_mutation_custom_total", "Custom mutations of clients")?,
            push_queue_bytes: gauge("zero_mutation_queue_bytes", "Bytes of pushes that wait for the API server")?,
            query_transformations: counters(
                "zero_sync_query_transformations_total",
                "Named queries asked of the API server or found in the cache",
                &["result"],
            )?,
            http_requests: counters("zero_server_http_requests_total", "Plain HTTP requests", &["path", "status"])?,
        })
    }
}
