//! The world as planning sees it: values, no handles.
//!
//! Everything that may be unknown is an `Option`; planning must say what it does then. The types here know no client: `watches`
//! and `outside` learn the facts, `gather` puts them together for one resource.

pub mod clock;
mod coarse;
mod databases;
pub mod gather;
pub mod kept;
pub mod kinds;
pub mod names;
mod nodes;
pub mod outside;
mod read;
pub mod rivals;
pub mod secrets;
mod store;
pub mod wakes;
pub mod watches;
mod workloads;
pub mod world;

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;

pub use databases::{Databases, Fault, Identity, Limits, Probe};
pub use nodes::{BackupFault, Nodes};
pub use store::{Pending, StoreFault};
pub use workloads::{Claim, ClaimTemplate, Deployment, Job, JobState, Pod, PodTrouble, Role, StatefulSet};

/// All that planning may use besides the resource itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The API server's time.
    pub now: Timestamp,
    pub installation: Installation,
    /// Optional kinds that the cluster serves.
    pub apis: Apis,
    /// The replication-manager's, or the single node's.
    pub stateful_set: Option<StatefulSet>,
    /// The view-syncers'.
    pub deployment: Option<Deployment>,
    pub pods: Vec<Pod>,
    /// Volume claims of the StatefulSet's pods.
    pub claims: Vec<Claim>,
    /// Secrets that the resource refers to and that exist, by name.
    pub secrets: BTreeMap<String, Secret>,
    /// Clean-up Jobs.
    pub jobs: Vec<Job>,
    /// What the data plane says of itself; nothing while no pod answers.
    pub nodes: Option<Nodes>,
    pub databases: Databases,
    /// Objects found below `<backup.url>/<generation>/`, where the store was asked, by generation.
    pub prefixes: BTreeMap<String, u64>,
    /// Why the store cannot be asked, where it can be told.
    pub store_fault: Option<StoreFault>,
    /// What is outside and was not asked before.
    pub pending: Pending,
    /// Other resources, as `namespace/name`, that would use the same replication slot and are older.
    pub rivals: Vec<String>,
    /// The Ingress or route.
    pub route: Option<Route>,
    /// What is kept for the release.
    pub kept: Kept,
    /// Everything in the resource's namespace is going, and nothing new can be made there.
    pub is_namespace_leaving: bool,
    /// How releasing the slot and publications upstream went, once it was tried.
    pub release: Option<Result<(), String>>,
    /// Objects that the resource owns, of the kinds that planning makes.
    pub children: Vec<Child>,
    /// Names that its objects are to have and that others' objects have.
    pub taken: Vec<Taken>,
    /// Why the last attempts to carry a plan out came to nothing.
    pub failure: Option<String>,
}

/// How the operator itself was installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// Where its pods are.
    pub namespace: String,
    /// Repository of the data plane's image.
    pub repository: String,
    /// Tag of the data plane's image: the operator's version.
    pub tag: String,
    /// DNS domain of the cluster, such as `cluster.local`.
    pub cluster_domain: String,
    /// Texts from outside the cluster are told by their class only.
    pub is_coarse: bool,
    /// Fields that become parts of pods as they are written are refused.
    pub refuses_raw_fields: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Apis {
    pub pod_monitors: bool,
    pub http_routes: bool,
}

/// A Secret without its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secret {
    /// Hash of the value, by key.
    pub keys: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Addresses that a controller has given it; of an HTTPRoute its accepted parents.
    pub addresses: Vec<String>,
    /// Why it was refused.
    pub refused: Option<String>,
}

/// The copy of the connection URLs that releasing falls back to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kept {
    /// It is not needed, or it cannot be known.
    #[default]
    Unknown,
    /// The Secrets may be there, and there is no copy of them.
    Nothing,
    /// It differs from the Secrets.
    Outdated,
    /// As in the Secrets, or they are away.
    Current,
}

/// An object that the resource owns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Child {
    pub kind: String,
    pub name: String,
}

/// An object of another that has the name of one that the resource is to own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taken {
    pub kind: String,
    pub name: String,
    /// What controls it, where anything does.
    pub by: Option<String>,
}

impl Observed {
    /// Nothing exists yet and nobody was asked.
    #[must_use]
    pub fn nothing(now: Timestamp, installation: Installation) -> Observed {
        Observed {
            now,
            installation,
            apis: Apis::default(),
            stateful_set: None,
            deployment: None,
            pods: Vec::new(),
            claims: Vec::new(),
            secrets: BTreeMap::new(),
            jobs: Vec::new(),
            nodes: None,
            databases: Databases::default(),
            prefixes: BTreeMap::new(),
            store_fault: None,
            pending: Pending::default(),
            rivals: Vec::new(),
            route: None,
            kept: Kept::default(),
            is_namespace_leaving: false,
            release: None,
            children: Vec::new(),
            taken: Vec::new(),
            failure: None,
        }
    }

    pub fn pods_of(&self, role: Role) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(move |pod| pod.role == role)
    }
}
