//! A larger volume for the replication-manager, without downtime.
//!
//! First the existing claims are asked to grow. Once they are, the StatefulSet, whose claims cannot be changed in place, is deleted
//! without its pods, and the next plan makes it anew with the larger size. Everything follows from what is observed.

use crds::quantity::nanos;
use crds::spec::StorageType;
use crds::status::StorageStatus;

use super::super::Action;
use super::super::wanted::Wanted;
use crate::observe::Observed;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Volume {
    pub status: Option<StorageStatus>,
    pub actions: Vec<Action>,
    /// Size that the StatefulSet is rendered with.
    pub claimed: String,
    /// Leave the StatefulSet alone in this plan: it is about to go.
    pub is_replacing: bool,
    /// Why the volume cannot grow.
    pub refused: Option<String>,
}

pub(super) fn plan(wanted: &Wanted, observed: &Observed) -> Volume {
    let storage = &wanted.spec.replication_manager.storage;
    let size = storage.size.0.as_str();
    if storage.r#type != StorageType::Persistent {
        return Volume { claimed: size.to_owned(), ..Volume::default() };
    }
    let is_smaller = |text: &str| matches!((nanos(text), nanos(size)), (Some(has), Some(wants)) if has < wants);
    let mut volume = Volume { claimed: size.to_owned(), ..Volume::default() };
    for claim in &observed.claims {
        if is_smaller(&claim.requested) && claim.refused.is_none() {
            volume.actions.push(Action::GrowClaim { name: claim.name.clone(), size: size.to_owned() });
        }
        volume.refused = volume.refused.or_else(|| claim.refused.clone().filter(|_| is_smaller(&claim.requested)));
    }
    let all_asked = observed.claims.iter().all(|claim| !is_smaller(&claim.requested));
    if let Some(set) = &observed.stateful_set
        && let Some(template) = &set.claim
        && is_smaller(&template.size)
    {
        volume.claimed = template.size.clone();
        if all_asked {
            let name = wanted.workload_name(wanted.main_role());
            volume.actions.push(Action::OrphanStatefulSet { name, uid: set.uid.clone() });
            volume.is_replacing = true;
        }
    }
    let actual = observed.claims.first().and_then(|claim| claim.actual.clone());
    let resize_pending = actual.as_deref().is_some_and(is_smaller) || volume.is_replacing || !all_asked;
    volume.status = Some(StorageStatus { requested: size.to_owned(), actual, resize_pending });
    volume
}
