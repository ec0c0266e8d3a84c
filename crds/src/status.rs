//! What the operator reports, and what it must remember to go on after it was killed.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator found, what it is doing, and what it must remember to go on after a restart.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZeroCacheStatus {
    /// The `metadata.generation` this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One word for people, made from the conditions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// What is so, since when, and why.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The image all pods run, or go back to while an upgrade is not through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_image: Option<String>,
    /// The image that is being rolled out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_image: Option<String>,
    /// Tag of the current image, or the start of its digest, once clients are served from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_version: Option<String>,
    /// Hash of both roles' pod templates as they were last rolled out wholly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_revision: Option<String>,
    /// The generation that is served; differs from the spec while a reset is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_generation: Option<String>,
    /// The generation that is being synced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_generation: Option<String>,
    /// Earlier generations and what became of their backups.
    #[schemars(length(max = 50))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retired_generations: Vec<RetiredGeneration>,
    /// The rollout that is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeStatus>,
    /// The reset that is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset: Option<ResetStatus>,
    /// How far suspending or resuming has come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspension: Option<SuspensionStep>,
    /// The upstream database, once it was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<UpstreamStatus>,
    /// How far deletion has come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion: Option<DeletionStatus>,
    /// The replication-manager, or the single node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_manager: Option<ReplicationManagerStatus>,
    /// The view-syncers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub view_syncer: Option<ViewSyncerStatus>,
    /// Connections that all pods together may take, by server.
    #[schemars(length(max = 8))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connection_budget: Vec<BudgetStatus>,
    /// Sizes of connection pools that were computed, by database (`upstream`, `cvr`, `change`).
    #[schemars(extend("maxProperties" = 8))]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pools: BTreeMap<String, i32>,
    /// Where the deployment is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<Endpoints>,
    /// The replication-manager's volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageStatus>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum Phase {
    /// Something the user must provide is missing.
    Pending,
    /// Pods exist and are not serving yet.
    Provisioning,
    Running,
    Upgrading,
    /// A new generation is being synced.
    Resetting,
    Suspended,
    /// Serving, with less than was asked for.
    Degraded,
    /// Cannot go on without the user.
    Failed,
    /// Outside state is being released.
    Deleting,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetiredGeneration {
    /// Name of the generation.
    pub name: String,
    /// Where its backup is or was.
    pub url: String,
    /// When it was last in use.
    pub retired_at: Time,
    /// What became of its backup.
    pub state: RetiredState,
    /// Objects deleted from the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects_deleted: Option<i64>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum RetiredState {
    Kept,
    Deleting,
    Deleted,
    /// The clean-up refused or failed; the condition says why.
    Failed,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UpgradeStatus {
    /// What is being done.
    pub step: UpgradeStep,
    /// Hash of both roles' pod templates as they will be; the release annotation names it.
    pub target: String,
    /// What made the rollout necessary.
    pub cause: UpgradeCause,
    /// When the rollout began.
    pub started_at: Time,
    /// When this step began.
    pub step_started_at: Time,
    /// What is waited for.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub message: String,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum UpgradeStep {
    /// Checks that nothing speaks against the rollout. Changes nothing.
    Preflight,
    /// The replication-manager is replaced; view-syncers serve what they have.
    ReplicationManager,
    /// The new replication-manager proves that it streams.
    Settle,
    /// Waits for a person to release the view-syncers.
    Gate,
    /// View-syncers are replaced one after the other, each draining its clients.
    ViewSyncers,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum UpgradeCause {
    Image,
    Configuration,
    Secrets,
    Restart,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResetStatus {
    /// The generation that is left.
    pub from: String,
    /// The generation that is made.
    pub to: String,
    /// What is being done.
    pub step: ResetStep,
    /// When the reset began.
    pub started_at: Time,
    /// When this step began.
    pub step_started_at: Time,
    /// What is waited for.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub message: String,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum ResetStep {
    /// Checks that nothing speaks against the reset. Changes nothing.
    Requested,
    /// The replication-manager syncs anew under the new generation; view-syncers serve the old one.
    ReplicationManager,
    /// The first snapshot of the new generation is written.
    Backup,
    /// View-syncers move to the new generation.
    ViewSyncers,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum SuspensionStep {
    /// View-syncers drain and stop.
    DrainingViewSyncers,
    /// The replication-manager flushes its backup and stops.
    StoppingReplicationManager,
    /// No pod runs.
    Suspended,
    /// The replication-manager starts; view-syncers wait for it.
    StartingReplicationManager,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UpstreamStatus {
    /// Postgres' system identifier and the number of the database, where the server tells them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// When the server was started, in microseconds since 1970, where it tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeletionStatus {
    /// What is being done.
    pub step: DeletionStep,
    /// When deletion began.
    pub started_at: Time,
    /// What is waited for.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub message: String,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum DeletionStep {
    /// View-syncers drain and stop.
    StopViewSyncers,
    /// The replication-manager stops, for a slot in use cannot be dropped.
    StopReplicationManager,
    /// Slot and publications are dropped upstream.
    ReleaseUpstream,
    /// The backups are deleted.
    DeleteBackups,
    /// Nothing is left to release.
    Done,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicationManagerStatus {
    /// A pod is ready and has the wanted template.
    pub ready: bool,
    /// All pods have the wanted template.
    pub updated: bool,
    /// A second pod is ready to take over, where one is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standby_ready: Option<bool>,
    /// Name of the pod that owns the change log, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// Name of the Service that view-syncers connect to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_name: Option<String>,
    /// Version of the replica that is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replica_version: Option<String>,
    /// When the backup was last written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_backup_at: Option<Time>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ViewSyncerStatus {
    /// Pods that exist and are not stopping.
    pub replicas: i32,
    /// Pods that serve.
    pub ready_replicas: i32,
    /// Pods with the wanted template.
    pub updated_replicas: i32,
    /// Pods that drain.
    pub terminating_replicas: i32,
    /// Label selector of the pods as text, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetStatus {
    /// Host and port, without credentials.
    pub server: String,
    /// Connections that all pods may take at a rollout's peak, and the reserve.
    pub required: i32,
    /// Connections the server allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i32>,
    /// Connections that others hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_use: Option<i32>,
    /// When the server was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<Time>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoints {
    /// Where clients connect, seen from outside if there is a route, else from inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public: Option<String>,
    /// Where view-syncers connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_streamer: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StorageStatus {
    /// Size that is asked for.
    pub requested: String,
    /// Size of the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<String>,
    /// The volume is still smaller than asked for.
    pub resize_pending: bool,
}
