//! How many view-syncers there are: the wish, held back by the budget, by a replication-manager that is not there yet, or left to an
//! autoscaler.

use crds::conditions::event;

use super::super::Action;
use super::super::budget::Verdict;
use super::super::conditions::Event;
use super::super::objects::{Bounds, Workload, Workloads};
use super::{Flows, Stage};
use crate::observe::Role;

/// How many view-syncers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Replicas {
    /// Nothing where an autoscaler decides.
    pub wanted: Option<i32>,
    /// Written into the Deployment.
    pub applied: Option<i32>,
    /// Another owner of the field is made before the operator gives it up.
    pub hands_over: bool,
}

impl Flows<'_> {
    /// Scales what is otherwise left as it is.
    pub(super) fn scale(&mut self, planned: &Workloads, managers: i32, replicas: &Replicas) {
        if let Some(set) = &self.observed.stateful_set
            && planned.stateful_set == Workload::Keep
            && set.replicas != managers
        {
            self.actions.push(Action::Scale { role: self.wanted.main_role(), replicas: managers });
        }
        let Some(deployment) = &self.observed.deployment else { return };
        if let Some(wanted) = replicas.wanted.filter(|wanted| *wanted != deployment.replicas)
            && !self.wanted.spec.paused
        {
            let text = format!("view-syncers from {} to {wanted}", deployment.replicas);
            self.events.push(Event::normal(event::SCALED, text));
        }
        let is_kept = planned.deployment == Workload::Keep;
        if let Some(wanted) = replicas.wanted
            && (is_kept || replicas.applied.is_none())
            && deployment.replicas != wanted
        {
            self.actions.push(Action::Scale { role: Role::ViewSyncer, replicas: wanted });
        } else if replicas.hands_over {
            self.actions.push(Action::Scale { role: Role::ViewSyncer, replicas: deployment.replicas });
        }
    }

    pub(super) fn syncer_replicas(&self) -> Replicas {
        if self.wanted.is_single() {
            return Replicas { wanted: None, applied: None, hands_over: false };
        }
        let running = self.observed.deployment.as_ref().map_or(0, |deployment| deployment.replicas);
        let is_ours = self.observed.deployment.as_ref().is_some_and(|deployment| deployment.replicas_are_ours);
        let spec = &self.wanted.spec.view_syncer;
        if self.power.holds_syncers {
            let applied = spec.autoscaling.is_none().then_some(0);
            return Replicas { wanted: Some(0), applied, hands_over: false };
        }
        if let Some(scaling) = &spec.autoscaling {
            // An autoscaler does not wake what was scaled to nothing.
            let wanted = (running == 0 && self.observed.deployment.is_some()).then_some(scaling.min_replicas);
            // A field given up by its only owner falls back to 1: another owner has to take it first.
            let hands_over = is_ours && wanted.is_none();
            return Replicas { wanted, applied: hands_over.then_some(running), hands_over };
        }
        let is_held = spec.replicas > running
            && self.budget.is_enforced
            && self.budget.replicas_max.is_some_and(|most| spec.replicas > most);
        let wanted = if is_held { running } else { spec.replicas };
        Replicas { wanted: Some(wanted), applied: Some(wanted), hands_over: false }
    }

    pub(super) fn autoscaler_bounds(&self, stage: &Stage) -> Option<Bounds> {
        let scaling = self.wanted.spec.view_syncer.autoscaling.as_ref().filter(|_| !self.wanted.is_single())?;
        if self.wanted.spec.suspended {
            return None;
        }
        let running = self.observed.deployment.as_ref().map_or(0, |deployment| deployment.replicas);
        let most = match (&self.budget.verdict, self.budget.replicas_max) {
            (Verdict::Over(_), Some(most)) if self.budget.is_enforced => scaling.max_replicas.min(most.max(running)),
            _ => scaling.max_replicas,
        }
        .max(1);
        // Clients that just moved must not be moved again by a pod that leaves.
        let is_moving = matches!(stage, Stage::Upgrade(_) | Stage::Reset(_));
        let least = if is_moving { scaling.min_replicas.max(running) } else { scaling.min_replicas };
        Some(Bounds { min: least.min(most), max: most })
    }
}
