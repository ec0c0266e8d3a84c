//! How many pods of a role an eviction leaves running. A replication-manager that is alone has none: a budget for one pod either
//! says nothing or blocks the drain of its node for ever.

use crds::spec::Pdb;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};

use super::super::wanted::Wanted;
use super::meta::Meta;
use crate::observe::Role;

pub(super) fn disruption_budgets(wanted: &Wanted, meta: &Meta) -> Vec<PodDisruptionBudget> {
    if wanted.is_single() {
        return Vec::new();
    }
    let mut budgets = vec![budget(wanted, meta, Role::ViewSyncer, &wanted.spec.view_syncer.pdb)];
    if wanted.spec.replication_manager.standby.enabled {
        budgets.push(budget(wanted, meta, Role::ReplicationManager, &Pdb::default()));
    }
    budgets
}

fn budget(wanted: &Wanted, meta: &Meta, role: Role, given: &Pdb) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: meta.of(role, wanted.workload_name(role)),
        spec: Some(PodDisruptionBudgetSpec {
            selector: Some(meta.selector(role)),
            max_unavailable: given.max_unavailable.clone(),
            min_available: given.min_available.clone(),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
        }),
        ..PodDisruptionBudget::default()
    }
}
