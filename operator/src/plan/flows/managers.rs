//! How many replication-managers there are: one, and where it is asked for a second, always or while a rollout replaces the first.
//!
//! Which of two owns the change log they settle between them; nothing here depends on it. Two of different generations never run
//! side by side: the newer would take the older's replica over instead of making its own.

use crds::spec::Handoff;
use crds::status::{ResetStep, UpgradeStep};

use super::super::Action;
use super::super::objects::Template;
use super::{Flows, Stage};

impl Flows<'_> {
    /// How many pods the StatefulSet is to have; as many as it has while flows stand still.
    pub(super) fn managers(&self, stage: &Stage, is_frozen: bool) -> i32 {
        let pods = || i32::try_from(self.observed.pods_of(self.wanted.main_role()).count()).unwrap_or(1);
        let running = self.observed.stateful_set.as_ref().map_or_else(pods, |set| set.replicas).clamp(1, 2);
        let given = &self.wanted.spec.replication_manager;
        let lasting = if given.standby.enabled { 2 } else { 1 };
        match stage {
            _ if self.power.manager == 0 => 0,
            _ if self.wanted.is_single() => 1,
            _ if is_frozen => running,
            Stage::Unrecorded | Stage::Changed => running,
            Stage::Upgrade(it) if it.step == UpgradeStep::Preflight => running,
            Stage::Reset(it) if it.step == ResetStep::Requested => running,
            Stage::Reset(_) => 1,
            Stage::Upgrade(it) if it.step == UpgradeStep::ReplicationManager && given.handoff == Handoff::Overlap => 2,
            Stage::Provisioning | Stage::Steady | Stage::Upgrade(_) => lasting,
        }
    }

    /// Pods of another generation than this template's must go before it may be applied to more than one.
    pub(super) fn changes_generation(&self, template: &Template) -> bool {
        self.observed.pods_of(self.wanted.main_role()).any(|pod| pod.generation != template.generation)
    }

    /// There is a pod beside the first, or soon will be.
    pub(super) fn has_second_manager(&self) -> bool {
        self.observed.pods_of(self.wanted.main_role()).any(|pod| !is_first(&pod.name))
            || self.observed.stateful_set.as_ref().is_some_and(|set| set.replicas > 1)
    }

    /// Only pods of this template are left, and one has been ready for a while.
    pub(super) fn is_manager_proven(&self, revision: &str) -> bool {
        let is_set = self
            .observed
            .stateful_set
            .as_ref()
            .is_some_and(|set| set.revision == revision && set.is_observed && set.available >= 1);
        let mut pods = self.observed.pods_of(self.wanted.main_role());
        is_set
            && self.observed.pods_of(self.wanted.main_role()).all(|pod| pod.revision == revision)
            && pods.any(|pod| pod.is_ready && !pod.is_terminating)
    }

    /// The same, and there are exactly as many as are asked for, all of them ready.
    pub(super) fn are_managers_complete(&self, revision: &str, count: i32) -> bool {
        let is_set =
            self.observed.stateful_set.as_ref().is_some_and(|set| set.replicas == count && set.available >= count);
        let pods = self.observed.pods_of(self.wanted.main_role()).count();
        is_set && i32::try_from(pods) == Ok(count) && self.is_manager_proven(revision)
    }

    /// Pods beyond the first that are not asked for and that no StatefulSet takes away: it does not while the first is not ready.
    pub(super) fn surplus_managers(&self, managers: i32) -> impl Iterator<Item = Action> {
        let main = self.wanted.main_role();
        let is_left_alone = match &self.observed.stateful_set {
            None => true,
            Some(set) => {
                let is_first_ready = self.observed.pods_of(main).any(|pod| is_first(&pod.name) && pod.is_ready);
                set.replicas == 1 && set.is_observed && !is_first_ready
            }
        };
        let surplus = self.observed.pods_of(main).filter(move |pod| !is_first(&pod.name) && !pod.is_terminating);
        let surplus = surplus.filter(move |_| managers == 1 && is_left_alone);
        surplus.map(|pod| Action::DeletePod { name: pod.name.clone() })
    }
}

/// Whether a StatefulSet makes this pod before all others.
fn is_first(name: &str) -> bool {
    name.ends_with("-0")
}
