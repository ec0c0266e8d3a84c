//! The numbers this crate publishes.

use prometheus::{
    IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, register_int_counter_vec_with_registry as counters,
    register_int_counter_with_registry as counter, register_int_gauge_vec_with_registry as gauges,
    register_int_gauge_with_registry as gauge,
};

#[derive(Clone, Debug)]
pub struct Metrics {
    pub subscribers: IntGaugeVec,
    pub reservations: IntGauge,
    pub snapshots: IntGauge,
    pub ring_bytes: IntGauge,
    pub lag_bytes: IntGauge,
    pub refusals: IntCounterVec,
    pub endings: IntCounterVec,
    pub frames_sent: IntCounter,
    pub bytes_sent: IntCounter,
    pub pages_read: IntCounter,
    pub snapshot_bytes_sent: IntCounter,
}

impl Metrics {
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        Ok(Metrics {
            subscribers: gauges!(
                "zero_change_stream_subscribers",
                "Nodes that follow the change stream",
                &["mode"],
                registry
            )?,
            reservations: gauge!(
                "zero_change_stream_reservations",
                "Nodes that restore and for which the change log is kept",
                registry
            )?,
            snapshots: gauge!(
                "zero_change_stream_snapshots",
                "Snapshots that are being sent to other nodes",
                registry
            )?,
            ring_bytes: gauge!(
                "zero_change_stream_ring_bytes",
                "Recent changes held in memory for subscribers",
                registry
            )?,
            lag_bytes: gauge!(
                "zero_change_stream_lag_bytes",
                "Upstream's log between the last stored change and the subscriber that is furthest behind",
                registry
            )?,
            refusals: counters!(
                "zero_change_stream_refusals_total",
                "Requests for the change stream that were refused",
                &["reason"],
                registry
            )?,
            endings: counters!(
                "zero_change_stream_ended_total",
                "Change streams to other nodes that ended",
                &["reason"],
                registry
            )?,
            frames_sent: counter!(
                "zero_change_stream_frames_sent_total",
                "Frames of changes sent to other nodes",
                registry
            )?,
            bytes_sent: counter!(
                "zero_change_stream_bytes_sent_total",
                "Bytes of changes sent to other nodes",
                registry
            )?,
            pages_read: counter!(
                "zero_change_stream_catch_up_pages_total",
                "Pages read from the change log for subscribers that were behind",
                registry
            )?,
            snapshot_bytes_sent: counter!(
                "zero_change_stream_snapshot_bytes_sent_total",
                "Bytes of snapshots sent to other nodes",
                registry
            )?,
        })
    }
}
