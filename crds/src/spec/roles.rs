//! The two roles' pods.

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::workload::{ManagerStorage, Placement, SyncerStorage, requests};
use crate::{quantity, rules};

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicationManager {
    /// Processors and memory of the container.
    #[schemars(schema_with = "quantity::resources", extend("x-kubernetes-validations" = rules::RESOURCES))]
    pub resources: ResourceRequirements,
    /// The replica's disk.
    #[schemars(extend("x-kubernetes-validations" = rules::REPLICATION_MANAGER_STORAGE))]
    pub storage: ManagerStorage,
    /// How long the first sync or a restore may take.
    #[schemars(range(min = 60, max = 86400))]
    pub startup_timeout_seconds: i32,
    /// How long a stopping pod may flush its backup and release the slot.
    #[schemars(range(min = 30, max = 86400))]
    pub termination_grace_period_seconds: i32,
    /// What happens to the running pod while a rollout replaces it.
    pub handoff: Handoff,
    /// A second pod that follows the first and takes over when that is gone.
    pub standby: Standby,
    /// Hours after which the replica is compacted at start; never by default.
    #[schemars(range(min = 1, max = 87600))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vacuum_interval_hours: Option<i32>,
    #[serde(flatten)]
    pub placement: Placement,
}

impl Default for ReplicationManager {
    fn default() -> Self {
        ReplicationManager {
            resources: requests("500m", "1Gi"),
            storage: ManagerStorage::default(),
            startup_timeout_seconds: 600,
            termination_grace_period_seconds: 600,
            handoff: Handoff::default(),
            standby: Standby::default(),
            vacuum_interval_hours: None,
            placement: Placement::default(),
        }
    }
}

/// What happens to the running pod while a rollout replaces it.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum Handoff {
    /// It stops before the new one starts: replication pauses for a second or two.
    #[default]
    Recreate,
    /// A second one runs for the time of the rollout and takes over. Counts in the connection budget.
    Overlap,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Standby {
    /// Run it. Needs topology MultiNode, and as much disk and memory again. Counts in the connection budget.
    pub enabled: bool,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = rules::VIEW_SYNCER))]
pub struct ViewSyncer {
    /// Number of pods, unless they are scaled automatically.
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// Threads that run queries from scratch; by default the processors - 1.
    #[schemars(range(min = 1, max = 1024))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_sync_workers: Option<i32>,
    /// Processors and memory of the container.
    #[schemars(schema_with = "quantity::resources", extend("x-kubernetes-validations" = rules::RESOURCES))]
    pub resources: ResourceRequirements,
    /// The replica's disk; at least as large as the replication-manager's.
    pub storage: SyncerStorage,
    /// Pods started above the wanted number during a rollout, as a number or a percentage. Counts in the connection budget.
    #[schemars(schema_with = "quantity::surplus")]
    pub max_surge: IntOrString,
    /// Pods that may be missing during a rollout, as a number or a percentage.
    #[schemars(schema_with = "quantity::some_of_all")]
    pub max_unavailable: IntOrString,
    /// How long a new pod must be ready before it counts.
    #[schemars(range(min = 0, max = 3600))]
    pub min_ready_seconds: i32,
    /// How long a restore may take.
    #[schemars(range(min = 60, max = 86400))]
    pub startup_timeout_seconds: i32,
    /// How long a stopping pod may hand its clients over.
    #[schemars(range(min = 30, max = 86400))]
    pub termination_grace_period_seconds: i32,
    /// How long a stopping pod goes on as before, so that proxies learn of it.
    #[schemars(range(min = 0, max = 60))]
    pub pre_stop_delay_seconds: i32,
    /// Scale by load. Another autoscaler may instead use the scale subresource; not both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// How many pods an eviction, as of a node drain, leaves running.
    pub pdb: Pdb,
    /// Time slice of query work in milliseconds.
    #[schemars(range(min = 1, max = 60000))]
    pub yield_threshold_ms: i32,
    /// Compress WebSocket messages.
    pub websocket_compression: bool,
    /// Largest accepted client message in bytes.
    #[schemars(range(min = 1024, max = 1_073_741_824))]
    pub websocket_max_payload_bytes: i32,
    #[serde(flatten)]
    pub placement: Placement,
}

impl Default for ViewSyncer {
    fn default() -> Self {
        ViewSyncer {
            replicas: 2,
            num_sync_workers: None,
            resources: requests("1", "2Gi"),
            storage: SyncerStorage::default(),
            max_surge: IntOrString::Int(1),
            max_unavailable: IntOrString::Int(0),
            min_ready_seconds: 10,
            startup_timeout_seconds: 600,
            termination_grace_period_seconds: 600,
            pre_stop_delay_seconds: 10,
            autoscaling: None,
            pdb: Pdb::default(),
            yield_threshold_ms: 10,
            websocket_compression: false,
            websocket_max_payload_bytes: 10 * 1024 * 1024,
            placement: Placement::default(),
        }
    }
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = rules::AUTOSCALING))]
pub struct Autoscaling {
    /// Fewest pods.
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: i32,
    /// Most pods; the connection budget counts them all.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// Load of the processors, in percent of what is requested, that is aimed at.
    #[schemars(range(min = 1, max = 100))]
    pub target_cpu_percent: i32,
    /// A metric of the pods that is aimed at as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods_metric: Option<PodsMetric>,
}

impl Default for Autoscaling {
    fn default() -> Self {
        Autoscaling { min_replicas: 2, max_replicas: 10, target_cpu_percent: 70, pods_metric: None }
    }
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodsMetric {
    /// Name of the metric as the metrics API serves it.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Average over the pods that is aimed at.
    #[schemars(schema_with = "quantity::positive")]
    pub target_average: Quantity,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::PDB))]
pub struct Pdb {
    /// Pods that may be missing, as a number or a percentage.
    #[schemars(schema_with = "quantity::some_of_all")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_unavailable: Option<IntOrString>,
    /// Pods that must stay, as a number or a percentage.
    #[schemars(schema_with = "quantity::some_of_all")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_available: Option<IntOrString>,
}

impl Default for Pdb {
    fn default() -> Self {
        Pdb { max_unavailable: Some(IntOrString::Int(1)), min_available: None }
    }
}
