//! The numbers this crate publishes.

use prometheus::{
    HistogramVec, IntCounter, IntCounterVec, Registry, register_histogram_vec_with_registry as histograms,
    register_int_counter_vec_with_registry as counters, register_int_counter_with_registry as counter,
};

const BUCKETS: &[f64] = &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

#[derive(Clone, Debug)]
pub struct Metrics {
    /// By what became of them.
    pub mutations: IntCounterVec,
    pub duration: HistogramVec,
    pub conflicts: IntCounter,
}

impl Metrics {
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        Ok(Metrics {
            mutations: counters!(
                "zero_mutation_crud_total",
                "CRUD mutations of clients, by what became of them",
                &["result"],
                registry
            )?,
            duration: histograms!(
                "zero_mutation_crud_duration_seconds",
                "CRUD mutations, waiting for a connection and retries included",
                &["result"],
                BUCKETS.to_vec(),
                registry
            )?,
            conflicts: counter!(
                "zero_mutation_crud_conflicts_total",
                "Transactions of CRUD mutations that Postgres rolled back because of others, and that were tried again",
                registry
            )?,
        })
    }
}
