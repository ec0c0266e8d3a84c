//! How the deployment is watched, closed off, upgraded and removed.

use std::collections::BTreeMap;

use k8s_openapi::api::networking::v1::NetworkPolicyPeer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SecretKeyRef, URL_MAX};
use crate::{Span, rules};

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Logging {
    /// Least severe level that is logged.
    pub level: LogLevel,
    /// Format of log lines.
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Debug,
    #[default]
    Info,
    Warn,
    Error,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    #[default]
    Json,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Telemetry {
    /// An OpenTelemetry collector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp: Option<Otlp>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Otlp {
    /// URL of the collector.
    #[schemars(length(max = URL_MAX), regex(pattern = r"^https?://\S+$"))]
    pub endpoint: String,
    /// Headers sent to the collector, as `name=value` pairs separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers_secret_ref: Option<SecretKeyRef>,
    /// How the collector is spoken to.
    #[serde(default)]
    pub protocol: OtlpProtocol,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum OtlpProtocol {
    #[serde(rename = "grpc")]
    Grpc,
    #[default]
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkPolicy {
    /// Make NetworkPolicies. The change stream's port is then reachable only from view-syncers and scrapers.
    pub enabled: bool,
    /// Who may reach the clients' port; anyone when empty.
    #[schemars(length(max = 32))]
    pub view_syncer_from: Vec<NetworkPolicyPeer>,
    /// Who may scrape metrics; nobody else when empty.
    #[schemars(length(max = 32))]
    pub metrics_from: Vec<NetworkPolicyPeer>,
    /// Restrict what pods may reach to DNS, Postgres, the store and the API server, by port.
    pub restrict_egress: bool,
}

impl Default for NetworkPolicy {
    fn default() -> Self {
        NetworkPolicy { enabled: true, view_syncer_from: Vec::new(), metrics_from: Vec::new(), restrict_egress: false }
    }
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Monitoring {
    /// Let Prometheus find the pods.
    pub enabled: bool,
    /// Auto makes a PodMonitor where the cluster knows the kind, and scrape annotations otherwise.
    pub pod_monitor: PodMonitorMode,
    /// Time between scrapes.
    #[schemars(extend("x-kubernetes-validations" = rules::SCRAPE_INTERVAL))]
    pub interval: Span,
    /// Labels of the PodMonitor, by which a Prometheus selects it.
    #[schemars(extend("maxProperties" = 32))]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Default for Monitoring {
    fn default() -> Self {
        Monitoring {
            enabled: true,
            pod_monitor: PodMonitorMode::Auto,
            interval: Span::from("30s"),
            labels: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum PodMonitorMode {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Upgrade {
    /// Ordered goes on by itself; Manual waits for the annotation `zerocache.dev/release-upgrade` before each role.
    pub strategy: UpgradeStrategy,
    /// Wait for the annotation between the replication-manager and the view-syncers.
    pub pause_after_replication_manager: bool,
    /// A step that takes longer is reported as stalled, and nothing more is rolled out.
    #[schemars(extend("x-kubernetes-validations" = rules::STEP_TIMEOUT))]
    pub step_timeout: Span,
    /// Accept an image of a lower version than the current one.
    pub allow_downgrade: bool,
}

impl Default for Upgrade {
    fn default() -> Self {
        Upgrade {
            strategy: UpgradeStrategy::Ordered,
            pause_after_replication_manager: false,
            step_timeout: Span::from("30m"),
            allow_downgrade: false,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum UpgradeStrategy {
    #[default]
    Ordered,
    Manual,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Deletion {
    /// What becomes of the replication slot and the publications upstream. A slot that stays holds back the server's log for
    /// ever, until its disk is full.
    pub upstream: DeletionPolicy,
    /// After so long the resource goes away even if nothing could be released.
    #[schemars(extend("x-kubernetes-validations" = rules::DELETION_TIMEOUT))]
    pub timeout: Span,
}

impl Default for Deletion {
    fn default() -> Self {
        Deletion { upstream: DeletionPolicy::Delete, timeout: Span::from("30m") }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum DeletionPolicy {
    Delete,
    Retain,
}
