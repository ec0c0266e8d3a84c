//! The numbers this crate publishes.

use prometheus::{
    HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    register_histogram_vec_with_registry as histograms, register_int_counter_vec_with_registry as counters,
    register_int_counter_with_registry as counter, register_int_gauge_vec_with_registry as gauges,
    register_int_gauge_with_registry as gauge,
};

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
    pub inbound_bytes: IntGauge,
    pub messages_sent: IntCounter,
    pub bytes_received: IntCounter,
    pub bytes_sent: IntCounter,
    pub api_requests: IntCounterVec,
    pub api_request_duration: HistogramVec,
    pub api_attempts: IntCounterVec,
    pub api_in_flight: IntGaugeVec,
    pub api_waiting: IntGaugeVec,
    pub pushes: IntCounter,
    pub custom_mutations: IntCounter,
    pub rate_limited_mutations: IntCounter,
    pub push_queue_bytes: IntGauge,
    pub query_transformations: IntCounterVec,
    pub http_requests: IntCounterVec,
}

impl Metrics {
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        Ok(Metrics {
            open_connections: gauges!(
                "zero_sync_websocket_open_connections",
                "Client sockets that are open",
                &["protocol_version"],
                registry
            )?,
            connection_attempts: counter!(
                "zero_sync_websocket_connection_attempts_total",
                "Upgrade requests for the sync protocol",
                registry
            )?,
            connection_successes: counter!(
                "zero_sync_websocket_connection_successes_total",
                "Client sockets that were accepted",
                registry
            )?,
            connection_failures: counters!(
                "zero_sync_websocket_connection_failures_total",
                "Client sockets that were refused",
                &["reason"],
                registry
            )?,
            disconnects: counters!(
                "zero_sync_websocket_disconnects_total",
                "Client sockets that ended",
                &["reason"],
                registry
            )?,
            messages_received: counters!(
                "zero_sync_messages_received_total",
                "Messages of clients, by message",
                &["tag"],
                registry
            )?,
            inbound_bytes: gauge!(
                "zero_sync_inbound_bytes",
                "Memory for what clients have sent and nobody is done with, unfinished messages included",
                registry
            )?,
            messages_sent: counter!("zero_sync_messages_sent_total", "Messages sent to clients", registry)?,
            bytes_received: counter!("zero_sync_bytes_received_total", "Bytes of messages of clients", registry)?,
            bytes_sent: counter!("zero_sync_bytes_sent_total", "Bytes of messages sent to clients", registry)?,
            api_requests: counters!(
                "zero_server_api_requests_total",
                "Calls of the application's API servers",
                &["operation", "result"],
                registry
            )?,
            api_request_duration: histograms!(
                "zero_server_api_request_duration_seconds",
                "Calls of the application's API servers, retries included",
                &["operation"],
                BUCKETS.to_vec(),
                registry
            )?,
            api_attempts: counters!(
                "zero_server_api_attempts_total",
                "HTTP requests to the application's API servers",
                &["operation"],
                registry
            )?,
            api_in_flight: gauges!(
                "zero_server_api_in_flight",
                "Calls of the application's API servers that wait for an answer",
                &["operation"],
                registry
            )?,
            api_waiting: gauges!(
                "zero_server_api_waiting",
                "Calls of the application's API servers that wait for their turn",
                &["operation"],
                registry
            )?,
            pushes: counter!("zero_mutation_pushes_total", "Pushes of clients", registry)?,
            custom_mutations: counter!("zero_mutation_custom_total", "Custom mutations of clients", registry)?,
            rate_limited_mutations: counter!(
                "zero_mutation_rate_limited_total",
                "CRUD mutations refused because their client group had too many",
                registry
            )?,
            push_queue_bytes: gauge!(
                "zero_mutation_queue_bytes",
                "Bytes of pushes that wait for their turn",
                registry
            )?,
            query_transformations: counters!(
                "zero_sync_query_transformations_total",
                "Named queries asked of the API server or found in the cache",
                &["result"],
                registry
            )?,
            http_requests: counters!(
                "zero_server_http_requests_total",
                "Plain HTTP requests",
                &["path", "status"],
                registry
            )?,
        })
    }
}
