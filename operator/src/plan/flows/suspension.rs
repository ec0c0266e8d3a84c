//! Running no pods, and starting again: view-syncers go first and come last.
//!
//! Needs no memory: each step follows from the wish and the pods there are. The step is shown in the status.

use crds::status::SuspensionStep;

use super::super::wanted::Wanted;
use crate::observe::{Observed, Role};

/// Pods that the workloads should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) struct Power {
    pub step: Option<SuspensionStep>,
    /// Of the StatefulSet.
    pub manager: i32,
    /// View-syncers must not run.
    pub holds_syncers: bool,
}

pub(super) fn power(wanted: &Wanted, recorded: Option<SuspensionStep>, observed: &Observed) -> Power {
    let main = wanted.main_role();
    let syncers_run = observed.deployment.as_ref().is_some_and(|it| it.replicas > 0)
        || observed.pods_of(Role::ViewSyncer).next().is_some();
    let manager_is_ready = observed.pods_of(main).any(|pod| pod.is_ready && !pod.is_terminating);
    if wanted.spec.suspended {
        return match (syncers_run, observed.pods_of(main).next().is_some()) {
            (true, _) => Power { step: Some(SuspensionStep::DrainingViewSyncers), manager: 1, holds_syncers: true },
            (false, true) => {
                Power { step: Some(SuspensionStep::StoppingReplicationManager), manager: 0, holds_syncers: true }
            }
            (false, false) => Power { step: Some(SuspensionStep::Suspended), manager: 0, holds_syncers: true },
        };
    }
    // A view-syncer that is already there goes on without its replication-manager; a new one would only wait for it.
    let holds_syncers = !syncers_run && !manager_is_ready;
    let is_resuming = recorded.is_some() && !manager_is_ready;
    Power { step: is_resuming.then_some(SuspensionStep::StartingReplicationManager), manager: 1, holds_syncers }
}
