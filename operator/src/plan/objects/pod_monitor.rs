//! The PodMonitor by which a Prometheus operator finds the pods.

use crds::names::{label, path};
use crds::spec::PodMonitorMode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Serialize;

use super::super::wanted::Wanted;
use super::meta::Meta;
use super::pod::probed;
use crate::observe::Apis;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    selector: LabelSelector,
    pod_metrics_endpoints: Vec<Endpoint>,
}

#[derive(Serialize)]
struct Endpoint {
    port: &'static str,
    path: &'static str,
    interval: String,
}

pub(super) fn pod_monitor(wanted: &Wanted, meta: &Meta, apis: Apis) -> Option<DynamicObject> {
    let monitoring = &wanted.spec.monitoring;
    let is_wanted = match monitoring.pod_monitor {
        PodMonitorMode::Auto => apis.pod_monitors,
        PodMonitorMode::Always => true,
        PodMonitorMode::Never => false,
    };
    if !monitoring.enabled || !is_wanted {
        return None;
    }
    let mut selected = meta.selected("");
    selected.remove(label::COMPONENT);
    let endpoint =
        |role| Endpoint { port: probed(role).0, path: path::METRICS, interval: monitoring.interval.to_string() };
    let spec = Spec {
        selector: LabelSelector { match_labels: Some(selected), match_expressions: None },
        pod_metrics_endpoints: wanted.roles().iter().map(|role| endpoint(*role)).collect(),
    };
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("monitoring.coreos.com", "v1", "PodMonitor"));
    let mut monitor = DynamicObject::new(wanted.name, &kind).data(serde_json::json!({ "spec": spec }));
    let mut metadata = meta.shared(wanted.name.to_owned());
    let labels = metadata.labels.take().unwrap_or_default();
    metadata.labels = Some(monitoring.labels.clone().into_iter().chain(labels).collect());
    monitor.metadata = metadata;
    Some(monitor)
}
