//! What the user asks for.

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::ZeroCacheStatus;

const SECRET_NAME_MAX: usize = 253;

/// A zero-cache deployment.
#[derive(CustomResource, KubeSchema, Clone, Debug, Deserialize, PartialEq, Serialize)]
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
    validation = Rule::new("size(self.metadata.name) <= 40")
        .message("the name must not be longer than 40 characters: names of child objects are made from it"),
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
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("self.topology != 'MultiNode' || has(self.backup)")
        .message("topology MultiNode needs backup: view-syncers start from it"),
    validation = Rule::new("self.topology != 'MultiNode' || has(self.adminPassword)")
        .message("topology MultiNode needs adminPassword"),
    validation = Rule::new("self.generation == oldSelf.generation || self.image == oldSelf.image")
        .message("change generation and image in two steps: a reset and an upgrade must not overlap")
)]
pub struct ZeroCacheSpec {
    /// Roles in pods of their own, or both in one.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("topology cannot be changed"))]
    pub topology: Topology,
    /// The data plane's image; a change starts an upgrade.
    #[serde(default)]
    pub image: Image,
    /// Names schemas, slots and publications upstream.
    #[serde(default = "default_app_id")]
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z0-9_]+$"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("appId cannot be changed"))]
    pub app_id: String,
    /// Shard number.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65535))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("shardNum cannot be changed"))]
    pub shard_num: i32,
    /// Postgres publications to replicate; none means all tables of schema `public`.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9_]*$")))]
    pub publications: Vec<String>,
    /// Last element of the backup's path; a change syncs anew from upstream.
    #[serde(default = "default_generation")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"))]
    pub generation: String,
    /// Reconcile nothing but the status.
    #[serde(default)]
    pub paused: bool,
    /// Run no pods.
    #[serde(default)]
    pub suspended: bool,
    /// Password of the admin page and the inspector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_password: Option<SecretKeyRef>,
    /// Wipe the replica and sync anew when replication cannot continue.
    #[serde(default = "yes")]
    pub auto_reset: bool,
    #[serde(default)]
    pub logging: Logging,
    pub databases: Databases,
    #[serde(default)]
    pub api: Api,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backup: Option<Backup>,
    #[serde(default)]
    pub replication_manager: ReplicationManager,
    #[serde(default)]
    pub view_syncer: ViewSyncer,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum Topology {
    #[default]
    MultiNode,
    SingleNode,
}

#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.tag) && has(self.digest))").message("give a tag or a digest, not both"))]
pub struct Image {
    /// Default: the image published with the operator.
    #[schemars(length(min = 1, max = 255))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Default: the operator's version.
    #[schemars(length(min = 1, max = 128))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    #[schemars(length(max = 71), regex(pattern = r"^sha256:[a-f0-9]{64}$"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// Names of Secrets that hold registry credentials.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(max = 253)))]
    pub pull_secrets: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// One key of a Secret in the resource's namespace. The operator never copies the value.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub struct SecretKeyRef {
    #[schemars(length(min = 1, max = SECRET_NAME_MAX))]
    pub name: String,
    #[schemars(length(min = 1, max = SECRET_NAME_MAX))]
    pub key: String,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub struct Logging {
    #[serde(default)]
    pub level: LogLevel,
    #[serde(default)]
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

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Databases {
    /// The authoritative database.
    pub upstream: Upstream,
    /// Client view records; in the upstream database by default.
    #[serde(default = "default_cvr")]
    pub cvr: Pool<30>,
    /// The recent replication log; in the upstream database by default.
    #[serde(default = "default_change")]
    pub change: Pool<5>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// URL of a direct connection, not of a pooler.
    pub url_secret_ref: SecretKeyRef,
    /// Create the slot with failover (Postgres 17 and later).
    #[serde(default)]
    pub slot_failover: bool,
}

/// A database and the connections one pod may hold to it.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Pool{CONNS}")]
pub struct Pool<const CONNS: i32> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_secret_ref: Option<SecretKeyRef>,
    #[serde(default = "conns::<CONNS>")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_conns: i32,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Api {
    /// Allowed query endpoints as URL patterns; the first is the default.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(max = 2048)))]
    pub query_urls: Vec<String>,
    /// Allowed mutate endpoints as URL patterns; the first is the default.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(max = 2048)))]
    pub mutate_urls: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_api_key_secret_ref: Option<SecretKeyRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mutate_api_key_secret_ref: Option<SecretKeyRef>,
    #[serde(default)]
    pub query_forward_cookies: bool,
    #[serde(default)]
    pub mutate_forward_cookies: bool,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backup {
    /// `s3://bucket/path`; the generation is appended.
    #[schemars(length(max = 1024), regex(pattern = r"^s3://[a-z0-9.-]{3,63}(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$"))]
    pub url: String,
    /// Endpoint of an S3-compatible store.
    #[schemars(length(max = 2048), regex(pattern = r"^https?://"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[schemars(length(max = 64))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Without it the pods' workload identity is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<Credentials>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    #[schemars(length(min = 1, max = SECRET_NAME_MAX))]
    pub name: String,
    #[schemars(length(min = 1, max = SECRET_NAME_MAX))]
    pub access_key_id_key: String,
    #[schemars(length(min = 1, max = SECRET_NAME_MAX))]
    pub secret_access_key_key: String,
    #[schemars(length(min = 1, max = SECRET_NAME_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_token_key: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicationManager {
    pub resources: ResourceRequirements,
    pub storage: Storage,
    /// How long the first sync or a restore may take.
    #[schemars(range(min = 60, max = 86400))]
    pub startup_timeout_seconds: i32,
    #[schemars(range(min = 30, max = 86400))]
    pub termination_grace_period_seconds: i32,
}

impl Default for ReplicationManager {
    fn default() -> Self {
        ReplicationManager {
            resources: requests("500m", "1Gi"),
            storage: Storage { r#type: StorageType::Persistent, ..Storage::default() },
            startup_timeout_seconds: 600,
            termination_grace_period_seconds: 600,
        }
    }
}

#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ViewSyncer {
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// Threads of the query engine; default: processors - 1.
    #[schemars(range(min = 1, max = 1024))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_sync_workers: Option<i32>,
    pub resources: ResourceRequirements,
    pub storage: Storage,
    #[schemars(range(min = 60, max = 86400))]
    pub startup_timeout_seconds: i32,
    #[schemars(range(min = 30, max = 86400))]
    pub termination_grace_period_seconds: i32,
}

impl Default for ViewSyncer {
    fn default() -> Self {
        ViewSyncer {
            replicas: 2,
            num_sync_workers: None,
            resources: requests("1", "2Gi"),
            storage: Storage::default(),
            startup_timeout_seconds: 600,
            termination_grace_period_seconds: 600,
        }
    }
}

/// Where a pod keeps its replica.
#[derive(Clone, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    #[serde(default)]
    pub r#type: StorageType,
    /// At least twice the size of the database.
    #[serde(default = "default_size")]
    #[x_kube(validation = Rule::new("quantity(string(self)).compareTo(quantity(string(oldSelf))) >= 0")
        .message("size cannot shrink"))]
    pub size: Quantity,
    /// Default: the cluster's.
    #[schemars(length(max = 253))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
}

impl Default for Storage {
    fn default() -> Self {
        Storage { r#type: StorageType::default(), size: default_size(), class_name: None }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum StorageType {
    #[default]
    Ephemeral,
    Persistent,
}

fn default_app_id() -> String {
    "zero".to_owned()
}

fn default_generation() -> String {
    "v1".to_owned()
}

fn default_size() -> Quantity {
    Quantity("20Gi".to_owned())
}

fn yes() -> bool {
    true
}

fn conns<const CONNS: i32>() -> i32 {
    CONNS
}

fn default_cvr() -> Pool<30> {
    Pool { url_secret_ref: None, max_conns: 30 }
}

fn default_change() -> Pool<5> {
    Pool { url_secret_ref: None, max_conns: 5 }
}

fn requests(cpu: &str, memory: &str) -> ResourceRequirements {
    let requests = [("cpu", cpu), ("memory", memory)];
    ResourceRequirements {
        requests: Some(requests.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).into()),
        ..ResourceRequirements::default()
    }
}
