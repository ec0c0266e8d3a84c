//! What should exist, what is so, and what to do once: a pure function of a resource and the world.
//!
//! Flows keep their place in the status. A plan renders objects for the place that is *recorded*, and hands back the next place;
//! the next plan renders for that. So an effect never comes before its record, and an operator that dies anywhere goes on where it
//! was, whatever of a plan was carried out.

mod budget;
mod conditions;
mod flows;
pub mod objects;
mod values;
mod wanted;

use std::collections::BTreeSet;

use crds::ZeroCache;
use crds::names::annotation;
use crds::status::ZeroCacheStatus;
use k8s_openapi::jiff::Timestamp;

use crate::observe::{Child, Installation, Observed, Role};
pub use conditions::{Event, Severity};
pub use objects::{GeneratedSecret, Objects, Workload};
pub use wanted::{Problem, Wanted};

/// What is to be done about one resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Nothing when objects are to be left alone.
    pub objects: Option<Objects>,
    /// Children that are not wanted any longer.
    pub remove: Vec<Child>,
    /// What is not a matter of wanted objects.
    pub actions: Vec<Action>,
    /// The whole status; written before anything else is done.
    pub status: ZeroCacheStatus,
    /// Published once the status is written.
    pub events: Vec<Event>,
    /// When to look again even if nothing happens.
    pub look_again_seconds: u64,
}

/// Something done once; repeating it does no harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    AddFinalizer,
    RemoveFinalizer,
    /// Sets the number of pods of a workload whose other fields are left alone.
    Scale {
        role: Role,
        replicas: i32,
    },
    /// A StatefulSet does not replace a pod that never became ready.
    DeletePod {
        name: String,
    },
    /// Deletes the StatefulSet and leaves its pods, for it asks for volumes that cannot be changed in place.
    OrphanStatefulSet {
        name: String,
        uid: String,
    },
    /// Asks for a larger volume.
    GrowClaim {
        name: String,
        size: String,
    },
    /// Drops the replication slot and the publications that the data plane made upstream.
    ReleaseUpstream,
}

/// Looked at again without cause, as a safety net behind the watches.
const IDLE_SECONDS: u64 = 300;
const BUSY_SECONDS: u64 = 30;

/// What to do about `cache`, given the world.
#[must_use]
pub fn plan(cache: &ZeroCache, observed: &Observed) -> Plan {
    let recorded = cache.status.clone().unwrap_or_default();
    if cache.metadata.deletion_timestamp.is_some() {
        return flows::deletion::plan(cache, recorded, observed);
    }
    let (wanted, problems) = Wanted::resolve(cache, observed);
    if !problems.is_empty() {
        return invalid(cache, recorded, &problems, observed);
    }
    flows::plan(cache, &wanted, recorded, observed)
}

/// Nothing is changed: what runs goes on.
fn invalid(cache: &ZeroCache, recorded: ZeroCacheStatus, problems: &[Problem], observed: &Observed) -> Plan {
    let (status, events) = conditions::invalid(cache, recorded, problems, observed.now);
    Plan { objects: None, remove: Vec::new(), actions: Vec::new(), status, events, look_again_seconds: IDLE_SECONDS }
}

/// Names of the Secrets that planning must see, also those that do not exist.
#[must_use]
pub fn secret_names(cache: &ZeroCache, installation: &Installation) -> BTreeSet<String> {
    let blank = Observed::nothing(Timestamp::UNIX_EPOCH, installation.clone());
    let (wanted, _) = Wanted::resolve(cache, &blank);
    wanted.secret_names()
}

/// Objects that planning makes by their names, Secrets left out: those may be another's.
#[must_use]
pub fn object_names(cache: &ZeroCache, observed: &Observed) -> Vec<Child> {
    let (wanted, _) = Wanted::resolve(cache, observed);
    let is_leaving = cache.metadata.deletion_timestamp.is_some();
    let mut names = objects::names(cache, &wanted, observed.apis);
    // The Jobs that delete backups run as it.
    names.retain(|child| child.kind != "Secret" && (!is_leaving || child.kind == "ServiceAccount"));
    names
}

/// Name of the StatefulSet.
#[must_use]
pub fn main_workload(cache: &ZeroCache) -> String {
    wanted::main_workload(cache)
}

fn annotation_of<'a>(cache: &'a ZeroCache, name: &str) -> Option<&'a str> {
    cache.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Whether a person released this target, as a whole or from the given role on.
fn is_released(cache: &ZeroCache, target: &str) -> bool {
    annotation_of(cache, annotation::RELEASE_UPGRADE) == Some(target)
}

fn seconds_between(earlier: Timestamp, later: Timestamp) -> u64 {
    u64::try_from(later.as_second() - earlier.as_second()).unwrap_or(0)
}
