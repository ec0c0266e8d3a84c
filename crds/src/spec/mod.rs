//! What the user asks for.

mod api;
mod backup;
mod databases;
mod image;
mod ingress;
mod operations;
mod roles;
mod security;
mod workload;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use api::{Api, Auth, MutationLimit};
pub use backup::{Backup, Credentials, Retention};
pub use databases::{BudgetMode, ConnectionBudget, Database, Databases, InitialSync, Upstream};
pub use image::{Image, PullPolicy};
pub use ingress::{
    Gateway, Ingress, IngressService, IngressTls, ParentRef, Provider, ServiceType, Stickiness, StickinessMode,
};
pub use operations::{
    Deletion, DeletionPolicy, LogFormat, LogLevel, Logging, Monitoring, NetworkPolicy, Otlp, OtlpProtocol,
    PodMonitorMode, Telemetry, Upgrade, UpgradeStrategy,
};
pub use roles::{Autoscaling, Handoff, Pdb, PodsMetric, ReplicationManager, Standby, ViewSyncer};
pub use security::{ChangeStream, Security, ServiceAccount};
pub use workload::{ManagerStorage, Placement, StorageType, SyncerStorage};

use crate::rules;
use crate::status::ZeroCacheStatus;

/// Longest name of an object, and longest key of a Secret.
const NAME_MAX: usize = 253;
const URL_MAX: usize = 2048;

/// What is asked for: where the data is, which roles run, and how they are reached, grown and upgraded.
#[derive(CustomResource, Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "zerocache.dev",
    version = "v1alpha1",
    kind = "ZeroCache",
    plural = "zerocaches",
    shortname = "zc",
    category = "all",
    namespaced,
    status = "ZeroCacheStatus",
    derive = "PartialEq",
    doc = "A zero-cache deployment: one replication-manager and any number of view-syncers, or a single node.",
    validation = kube::core::Rule::new(rules::OBJECT.rule).message(rules::OBJECT.message),
    scale(
        spec_replicas_path = ".spec.viewSyncer.replicas",
        status_replicas_path = ".status.viewSyncer.replicas",
        label_selector_path = ".status.viewSyncer.selector"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Generation", type_ = "string", json_path = ".status.currentGeneration"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.currentVersion"),
    printcolumn(name = "RM", type_ = "boolean", json_path = ".status.replicationManager.ready"),
    printcolumn(name = "VS", type_ = "integer", json_path = ".status.viewSyncer.readyReplicas"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.viewSyncer.replicas"),
    printcolumn(name = "Host", type_ = "string", json_path = ".spec.ingress.hosts[0]", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[schemars(extend("x-kubernetes-validations" = rules::SPEC))]
pub struct ZeroCacheSpec {
    /// MultiNode runs the replication-manager and the view-syncers in pods of their own; SingleNode runs both roles in one pod.
    /// Cannot be changed.
    #[serde(default)]
    pub topology: Topology,
    /// The data plane's image. A change starts an upgrade: the replication-manager first, then the view-syncers.
    #[serde(default)]
    pub image: Image,
    /// Names schemas, slots and publications upstream. Cannot be changed.
    #[serde(default = "default_app_id")]
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9_]+$"))]
    pub app_id: String,
    /// Postgres publications to replicate; none means all tables of schema `public`.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9_]*$")))]
    pub publications: Vec<String>,
    /// Shard number. Cannot be changed.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65535))]
    pub shard_num: i32,
    /// Last element of the backup's path. A change syncs anew from upstream under the new name; view-syncers move over when the
    /// new replica is backed up.
    #[serde(default = "default_generation")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"))]
    pub generation: String,
    /// Change nothing in the cluster, report only the status.
    #[serde(default)]
    pub paused: bool,
    /// Run no pods, keep data and configuration.
    #[serde(default)]
    pub suspended: bool,
    /// Password of the admin page and the inspector. A single node gets a generated one when none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_password: Option<SecretKeyRef>,
    /// Log lines of the data plane.
    #[serde(default)]
    pub logging: Logging,
    /// Where traces and metrics are sent besides being scraped.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// Wipe the replica and sync anew when replication cannot continue.
    #[serde(default = "yes")]
    pub auto_reset: bool,
    /// The Postgres databases, and how many connections are taken from them.
    pub databases: Databases,
    /// The application's API server.
    #[serde(default)]
    pub api: Api,
    /// Where the replica is backed up; view-syncers start from it. Required for MultiNode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    /// The one node that reads the Postgres log; in topology SingleNode the only node.
    #[serde(default)]
    pub replication_manager: ReplicationManager,
    /// The nodes that serve clients. In topology SingleNode only the settings of the query engine apply.
    #[serde(default)]
    pub view_syncer: ViewSyncer,
    /// Secrets between nodes, and what pods may do.
    #[serde(default)]
    pub security: Security,
    /// How clients reach the view-syncers.
    #[serde(default)]
    pub ingress: Ingress,
    /// Who may reach the pods inside the cluster.
    #[serde(default)]
    pub network_policy: NetworkPolicy,
    /// How Prometheus finds the pods.
    #[serde(default)]
    pub monitoring: Monitoring,
    /// How a new image or configuration is rolled out.
    #[serde(default)]
    pub upgrade: Upgrade,
    /// What is released outside the cluster when the resource is deleted.
    #[serde(default)]
    pub deletion: Deletion,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum Topology {
    #[default]
    MultiNode,
    SingleNode,
}

/// One key of a Secret in the resource's namespace. Only values of `databases` are copied, into the operator's own namespace, where
/// `deletion.upstream` is Delete: the Secret may be gone by then.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = NAME_MAX))]
    pub name: String,
    /// Key in the Secret's data.
    #[schemars(length(min = 1, max = NAME_MAX))]
    pub key: String,
}

fn default_app_id() -> String {
    "zero".to_owned()
}

fn default_generation() -> String {
    "v1".to_owned()
}

fn yes() -> bool {
    true
}
