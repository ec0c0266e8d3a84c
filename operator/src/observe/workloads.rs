//! Workloads, pods and volumes, reduced to what flows depend on.

use std::collections::BTreeMap;

use crds::names::component;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    ReplicationManager,
    ViewSyncer,
    SingleNode,
}

impl Role {
    #[must_use]
    pub fn component(self) -> &'static str {
        match self {
            Role::ReplicationManager => component::REPLICATION_MANAGER,
            Role::ViewSyncer => component::VIEW_SYNCER,
            Role::SingleNode => component::SINGLE_NODE,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatefulSet {
    pub uid: String,
    /// Labels by which it knows its pods; cannot be changed in place.
    pub selector: BTreeMap<String, String>,
    /// Pods asked for.
    pub replicas: i32,
    /// Revision annotation of its template.
    pub revision: String,
    /// Secrets annotation of its template.
    pub secrets: String,
    /// Restart annotation of its template.
    pub restarted_at: Option<String>,
    /// Its controller has seen the latest template.
    pub is_observed: bool,
    /// Pods ready for `minReadySeconds`.
    pub available: i32,
    pub claim: Option<ClaimTemplate>,
}

/// What the StatefulSet asks for its pods' volumes; cannot be changed in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimTemplate {
    pub size: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deployment {
    /// Labels by which it knows its pods; cannot be changed in place.
    pub selector: BTreeMap<String, String>,
    /// Pods asked for.
    pub replicas: i32,
    /// Revision annotation of its template.
    pub revision: String,
    /// Secrets annotation of its template.
    pub secrets: String,
    /// Its controller has seen the latest template.
    pub is_observed: bool,
    /// Pods with the latest template.
    pub updated: i32,
    /// Pods ready for `minReadySeconds`.
    pub available: i32,
    /// The controller gave up waiting for progress.
    pub deadline_exceeded: bool,
    /// The number of replicas is a field the operator applied, and nobody else.
    pub replicas_are_ours: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub role: Role,
    /// Revision annotation.
    pub revision: String,
    /// Generation annotation.
    pub generation: String,
    pub is_ready: bool,
    pub is_terminating: bool,
    pub trouble: Option<PodTrouble>,
}

/// Why a pod does not run, as far as Kubernetes says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodTrouble {
    CrashLoop(String),
    ImagePull(String),
    Unschedulable(String),
    VolumePending(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub name: String,
    /// Size asked for.
    pub requested: String,
    /// Size it has.
    pub actual: Option<String>,
    /// Why it cannot grow.
    pub refused: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub name: String,
    pub state: JobState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    Running,
    /// With the number of objects it deleted, where it said so.
    Succeeded(Option<i64>),
    Failed(String),
}
