//! The numbers this crate publishes.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

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
        let subscribers = IntGaugeVec::new(
            Opts::new("zero_change_stream_subscribers", "Nodes that follow the change stream"),
            &["mode"],
        )?;
        registry.register(Box::new(subscribers.clone()))?;
        Ok(Metrics {
            subscribers,
            reservations: gauge(
                "zero_change_stream_reservations",
                "Nodes that restore and for which the change log is kept",
            )?,
            snapshots: gauge("zero_change_stream_snapshots", "Snapshots that are being sent to other nodes")?,
            ring_bytes: gauge("zero_change_stream_ring_bytes", "Recent changes held in memory for subscribers")?,
            lag_bytes: gauge(
                "zero_change_stream_lag_bytes",
                "Upstream's log between the last stored change and the subscriber that is furthest behind",
            )?,
            refusals: counters(
                "zero_change_stream_refusals_total",
                "Requests for the change stream that were refused",
                &["reason"],
            )?,
            endings: counters(
                "zero_change_stream_ended_total",
                "Change streams to other nodes that ended",
                &["reason"],
            )?,
            frames_sent: counter("zero_change_stream_frames_sent_total", "Frames of changes sent to other nodes")?,
            bytes_sent: counter("zero_change_stream_bytes_sent_total", "Bytes of changes sent to other nodes")?,
            pages_read: counter(
                "zero_change_stream_catch_up_pages_total",
                "Pages read from the change log for subscribers that were behind",
            )?,
            snapshot_bytes_sent: counter(
                "zero_change_stream_snapshot_bytes_sent_total",
                "Bytes of snapshots sent to other nodes",
            )?,
        })
    }
}
