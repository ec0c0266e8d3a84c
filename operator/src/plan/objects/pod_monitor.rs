//! The PodMonitor by which a Prometheus operator finds the pods.

use crds::names::{label, path, tls};
use crds::spec::{PodMonitorMode, SecretKeyRef};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde::Serialize;

use super::super::wanted::Wanted;
use super::meta::Meta;
use super::pod::scraped;
use super::stream_tls;
use crate::observe::Apis;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    selector: LabelSelector,
    pod_metrics_endpoints: Vec<Endpoint>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    port: &'static str,
    path: &'static str,
    interval: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheme: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_config: Option<TlsConfig>,
}

/// Whom a scraper talks to, though it comes by the pod's address.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TlsConfig {
    server_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<Authority>,
}

#[derive(Serialize)]
struct Authority {
    secret: SecretKeyRef,
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
    let endpoint = |role| {
        let is_tls = stream_tls::is_probed_by_tls(wanted, role);
        Endpoint {
            port: scraped(role).0,
            path: path::METRICS,
            // Prometheus does not take all that is a length of time here, such as `30s30s`.
            interval: format!("{}s", monitoring.interval.seconds()),
            scheme: is_tls.then_some("https"),
            tls_config: is_tls.then(|| tls_config(wanted)),
        }
    };
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

fn tls_config(wanted: &Wanted) -> TlsConfig {
    let name = wanted.tls_secret().filter(|_| wanted.has_tls_authority());
    let secret = name.map(|name| SecretKeyRef { name: name.to_owned(), key: tls::AUTHORITY.to_owned() });
    TlsConfig { server_name: stream_tls::service_host(wanted), ca: secret.map(|secret| Authority { secret }) }
}
