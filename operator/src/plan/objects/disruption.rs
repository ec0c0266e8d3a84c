//! How many view-syncers an eviction leaves running. The only replication-manager has none: a budget for one pod either says
//! nothing or blocks the drain of its node for ever.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};

use super::super::wanted::Wanted;
use super::meta::Meta;
use crate::observe::Role;

pub(super) fn disruption_budget(wanted: &Wanted, meta: &Meta) -> Option<PodDisruptionBudget> {
    if wanted.is_single() {
        return None;
    }
    let role = Role::ViewSyncer;
    let given = &wanted.spec.view_syncer.pdb;
    Some(PodDisruptionBudget {
        metadata: meta.of(role, wanted.workload_name(role)),
        spec: Some(PodDisruptionBudgetSpec {
            selector: Some(meta.selector(role)),
            max_unavailable: given.max_unavailable.clone(),
            min_available: given.min_available.clone(),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
        }),
        ..PodDisruptionBudget::default()
    })
}
