//! Metrics of the views. Handles are resolved once; names and help texts live here and nowhere else.

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Registry, exponential_buckets,
    register_histogram_with_registry as histogram, register_int_counter_vec_with_registry as counters,
    register_int_counter_with_registry as counter, register_int_gauge_with_registry as gauge,
};

/// The product's promise: from the commit in Postgres to the frame that carries it on its way to the socket.
pub const COMMIT_TO_POKE: &str = "zero_commit_to_poke_seconds";

#[derive(Clone, Debug)]
pub struct Metrics {
    pub commit_to_poke_seconds: Histogram,
    pub materialisations: IntGauge,
    pub subscriptions: IntGauge,
    pub client_groups: IntGauge,
    pub owned_groups: IntGauge,
    pub draining_groups: IntGauge,
    pub active_connections: IntGauge,
    pub payload_bytes: IntGauge,
    pub hydrations: IntCounter,
    pub rehydrations: IntCounter,
    pub hydration_seconds: Histogram,
    pub advance_seconds: Histogram,
    pub step_seconds: Histogram,
    pub pokes: IntCounter,
    pub poked_rows: IntCounter,
    pub held_back: IntCounter,
    pub spool_memory_bytes: IntGauge,
    pub spool_disk_bytes: IntGauge,
    pub graph_bytes: IntGauge,
    pub shed: IntCounterVec,
    pub cvr_flush_seconds: Histogram,
    pub cvr_flush_failures: IntCounter,
    pub cvr_flushes_fenced: IntCounter,
    pub cvr_unflushed_bytes: IntGauge,
    pub take_overs: IntCounter,
    pub inherited: IntCounterVec,
    pub rehomes: IntCounterVec,
    pub transforms_failed: IntCounter,
    pub permissions_unreadable: IntGauge,
}

/// Half a millisecond to 16 seconds, doubling.
fn seconds(name: &str, help: &str) -> Result<HistogramOpts, prometheus::Error> {
    Ok(HistogramOpts::new(name, help).buckets(exponential_buckets(0.0005, 2.0, 16)?))
}

impl Metrics {
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        Ok(Metrics {
            commit_to_poke_seconds: histogram!(
                seconds(COMMIT_TO_POKE, "From the commit in Postgres to the end of the poke that carries it")?,
                registry
            )?,
            materialisations: gauge!(
                "zero_materialisations",
                "Queries maintained on this node, each once whoever asks for it",
                registry
            )?,
            subscriptions: gauge!(
                "zero_subscriptions",
                "Queries of client groups served from the materialisations",
                registry
            )?,
            client_groups: gauge!("zero_client_groups", "Client groups in memory", registry)?,
            owned_groups: gauge!("zero_owned_client_groups", "Client groups that this node owns", registry)?,
            draining_groups: gauge!(
                "zero_draining_client_groups",
                "Client groups that a drain has still to send away",
                registry
            )?,
            active_connections: gauge!("zero_active_connections", "Connections that receive pokes", registry)?,
            payload_bytes: gauge!(
                "zero_payload_bytes",
                "Encoded hydrations kept for clients that connect later, in memory and on disk, bytes",
                registry
            )?,
            spool_memory_bytes: gauge!(
                "zero_spool_memory_bytes",
                "Memory taken by encoded rows, kept or on their way to clients, bytes",
                registry
            )?,
            spool_disk_bytes: gauge!(
                "zero_spool_disk_bytes",
                "Disk taken by encoded rows that have no room in memory, bytes",
                registry
            )?,
            hydrations: counter!("zero_hydrations_total", "Queries run from scratch", registry)?,
            rehydrations: counter!(
                "zero_rehydrations_total",
                "Materialisations renewed because that was cheaper than, or the only way of, following the changes",
                registry
            )?,
            hydration_seconds: histogram!(
                seconds("zero_hydration_seconds", "Time to run a query from scratch and encode its rows")?,
                registry
            )?,
            advance_seconds: histogram!(
                seconds("zero_advance_seconds", "Time to bring one materialisation over one batch")?,
                registry
            )?,
            step_seconds: histogram!(
                seconds("zero_step_seconds", "Time to bring all materialisations and client groups to a version")?,
                registry
            )?,
            pokes: counter!("zero_pokes_total", "Pokes queued for sockets", registry)?,
            poked_rows: counter!(
                "zero_poked_rows_total",
                "Row operations queued for sockets, cached bodies counted once",
                registry
            )?,
            graph_bytes: gauge!(
                "zero_graph_bytes",
                "Memory of the queries that are maintained, and of those that are being run from scratch, bytes",
                registry
            )?,
            shed: counters!(
                "zero_shed_total",
                "What gave way because memory was short: encoded rows dropped (payload), queries that nobody used forgotten (query), \
                 queries that wait for room (hydration), clients sent away for a while (client)",
                &["what"],
                registry
            )?,
            held_back: counter!(
                "zero_held_back_connections_total",
                "Connections that were told nothing more until they had taken what waited for them",
                registry
            )?,
            cvr_flush_seconds: histogram!(
                seconds("zero_cvr_flush_seconds", "Time of one commit to the CVR database")?,
                registry
            )?,
            cvr_flush_failures: counter!(
                "zero_cvr_flush_failures_total",
                "Commits to the CVR database that failed and were retried",
                registry
            )?,
            cvr_unflushed_bytes: gauge!(
                "zero_cvr_unflushed_bytes",
                "Memory of what waits for the CVR database; beyond a part of the node's memory the views wait as well",
                registry
            )?,
            cvr_flushes_fenced: counter!(
                "zero_cvr_flushes_fenced_total",
                "Commits to the CVR database that were refused because another node took a client group over",
                registry
            )?,
            take_overs: counter!(
                "zero_client_group_take_overs_total",
                "Client groups that this node took from another one that had not given them up",
                registry
            )?,
            inherited: counters!(
                "zero_inherited_client_groups_total",
                "Client groups that Rocicorp's server knew and that came here: those that went on from what it remembers \
                 (continued), and those whose clients start over, because that cannot be used (started_over)",
                &["outcome"],
                registry
            )?,
            rehomes: counters!(
                "zero_rehomes_total",
                "Clients that were told to connect elsewhere",
                &["reason"],
                registry
            )?,
            transforms_failed: counter!(
                "zero_transforms_failed_total",
                "Queries that the API server refused or could not transform",
                registry
            )?,
            permissions_unreadable: gauge!(
                "zero_permissions_unreadable",
                "1 while the deployed permissions cannot be read, so that client-defined queries have no rows",
                registry
            )?,
        })
    }
}
