//! What both roles' pods have in common: their disk, their place, and what a site adds to them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, EnvFromSource, EnvVar, ResourceRequirements, Toleration, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::NAME_MAX;
use crate::quantity;

/// Where the replication-manager, or the single node, keeps its replica.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManagerStorage {
    /// Persistent is a volume claim; Ephemeral storage is empty after every restart of the pod, and the replica is restored.
    pub r#type: StorageType,
    /// At least twice the size of the database: a restore and a compaction need room for a second copy.
    #[schemars(schema_with = "quantity::positive")]
    pub size: Quantity,
    /// Storage class; by default the cluster's. Ephemeral storage with a class is a volume that lives as long as its pod.
    #[schemars(length(min = 1, max = NAME_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
    /// Keep the volume of a deleted ZeroCache. Only for Persistent.
    pub retain: bool,
}

impl Default for ManagerStorage {
    fn default() -> Self {
        ManagerStorage { r#type: StorageType::Persistent, size: size(), class_name: None, retain: false }
    }
}

/// Where a view-syncer keeps its replica, for as long as the pod lives.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SyncerStorage {
    /// Ephemeral is the node's disk, or a volume of the class when one is given; Persistent is always a volume.
    pub r#type: StorageType,
    /// At least twice the size of the database: a restore needs room for a second copy.
    #[schemars(schema_with = "quantity::positive")]
    pub size: Quantity,
    /// Storage class of volumes; by default the cluster's.
    #[schemars(length(min = 1, max = NAME_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
}

impl Default for SyncerStorage {
    fn default() -> Self {
        SyncerStorage { r#type: StorageType::Ephemeral, size: size(), class_name: None }
    }
}

fn size() -> Quantity {
    Quantity("20Gi".to_owned())
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
pub enum StorageType {
    Ephemeral,
    Persistent,
}

/// Where pods are placed, and what a site adds to them.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Placement {
    /// Labels of nodes that pods may run on.
    #[schemars(extend("maxProperties" = 32))]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Rules of attraction between pods and nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// Taints of nodes that are tolerated.
    #[schemars(length(max = 32))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// How pods are spread; view-syncers are spread over nodes and zones, where possible, when nothing is given.
    #[schemars(length(max = 16))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Priority class of the pods.
    #[schemars(length(min = 1, max = NAME_MAX))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Labels added to pods; the operator's own win.
    #[schemars(extend("maxProperties" = 32))]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pod_labels: BTreeMap<String, String>,
    /// Annotations added to pods; the operator's own win.
    #[schemars(extend("maxProperties" = 32))]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pod_annotations: BTreeMap<String, String>,
    /// Environment variables added to the container. Those that the operator sets are refused.
    #[schemars(length(max = 64))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_env: Vec<EnvVar>,
    /// ConfigMaps and Secrets whose keys become environment variables; those that the operator sets win.
    #[schemars(length(max = 16))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_env_from: Vec<EnvFromSource>,
    /// Volumes added to the pods, as in a pod's `spec.volumes`.
    #[schemars(schema_with = "volumes")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_volumes: Vec<Volume>,
    /// Mounts added to the container.
    #[schemars(length(max = 32))]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_volume_mounts: Vec<VolumeMount>,
    /// A partial pod template (`metadata` and `spec`), merged over the operator's last; lists of named things are merged by name.
    #[schemars(schema_with = "pod_template")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<Map<String, Value>>,
}

/// A volume's schema is larger than all the rest; the API server checks volumes when the pods' template is applied.
fn volumes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {
                    "type": "string", "minLength": 1, "maxLength": 63, "description": "Name that mounts refer to.",
                },
            },
            "x-kubernetes-preserve-unknown-fields": true,
        },
    })
}

fn pod_template(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

pub(super) fn requests(cpu: &str, memory: &str) -> ResourceRequirements {
    let requests = [("cpu", cpu), ("memory", memory)];
    ResourceRequirements {
        requests: Some(requests.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).into()),
        ..ResourceRequirements::default()
    }
}
