//! The flows together: which of them is under way, what it lets be applied, and where it goes next.
//!
//! A flow's place is recorded in the status. [`plan`] reads it, renders for it, and hands on the next place.

mod advance;
mod blocks;
pub(super) mod deletion;
mod managers;
mod reset;
mod retention;
mod scale;
mod suspension;
mod upgrade;
mod volume;

use crds::ZeroCache;
use crds::conditions::event;
use crds::status::{ResetStatus, ResetStep, StorageStatus, UpgradeStatus, UpgradeStep, ZeroCacheStatus};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};

use super::budget::{self, Budget};
use super::conditions::{self, Context, Event};
use super::objects::{self, Render, Template, Workload, Workloads};
use super::wanted::{Wanted, short_hash};
use super::{Action, BUSY_SECONDS, IDLE_SECONDS, Plan, needs_access, remember_upstream};
use crate::observe::{Kept, Observed, Role};
use scale::Replicas;
pub(super) use suspension::Power;
pub(super) use upgrade::Block;

/// Added to a target that releases the view-syncers as well.
const VIEW_SYNCERS_RELEASE: &str = "/view-syncers";

/// Templates of both roles for one image and generation.
#[derive(Clone)]
struct Revision {
    manager: Template,
    syncer: Option<Template>,
    /// Names both.
    hash: String,
    image: String,
}

/// Where the flows are, as recorded.
#[derive(Clone, Copy, Debug)]
enum Stage<'a> {
    /// The first plan records what is current before anything is made.
    Unrecorded,
    /// Nothing has run wholly yet.
    Provisioning,
    /// What is wanted is what was rolled out last.
    Steady,
    /// A change that no flow has taken up yet.
    Changed,
    Upgrade(&'a UpgradeStatus),
    Reset(&'a ResetStatus),
}

/// Why workloads stay as they are and flows stand still, apart from the user's wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    SecretsMissing(Vec<String>),
    /// Pods would run with a stranger's object.
    NamesTaken(String),
    /// Generated Secrets appear with this plan.
    SecretsComing,
    /// The databases say how large pools may be: another answer than the last would be another rollout.
    Asking,
    /// The first rollout would exceed a server's limit.
    OverBudget,
}

struct Flows<'a> {
    cache: &'a ZeroCache,
    wanted: &'a Wanted<'a>,
    recorded: &'a ZeroCacheStatus,
    observed: &'a Observed,
    budget: Budget,
    power: Power,
    hold: Option<Hold>,
    /// What is wanted, in the generation that is current.
    target: Revision,
    events: Vec<Event>,
    actions: Vec<Action>,
}

/// The plan for a resource that can be read and is not being deleted.
pub(super) fn plan(cache: &ZeroCache, wanted: &Wanted, recorded: ZeroCacheStatus, observed: &Observed) -> Plan {
    let peak = wanted.spec.view_syncer.autoscaling.as_ref().map(|it| it.max_replicas);
    let budget = budget::judge(wanted, &recorded.pools, peak.unwrap_or(wanted.spec.view_syncer.replicas), observed);
    let generation = recorded.current_generation.as_ref().unwrap_or(&wanted.spec.generation);
    let target = revision(cache, wanted, &wanted.image, generation, &budget);
    let flows = Flows {
        cache,
        wanted,
        recorded: &recorded,
        observed,
        power: suspension::power(wanted, recorded.suspension, observed),
        hold: hold(wanted, &budget, observed),
        budget,
        target,
        events: Vec::new(),
        actions: Vec::new(),
    };
    flows.plan()
}

fn hold(wanted: &Wanted, budget: &Budget, observed: &Observed) -> Option<Hold> {
    let missing = wanted.missing_secrets();
    if !missing.is_empty() {
        return Some(Hold::SecretsMissing(missing));
    }
    if let Some(text) = conditions::strangers(observed.taken.iter().filter(|it| do_pods_need(&it.kind))) {
        return Some(Hold::NamesTaken(text));
    }
    if wanted.lacks_generated_secrets() {
        return Some(Hold::SecretsComing);
    }
    if observed.pending.databases {
        return Some(Hold::Asking);
    }
    let is_first = observed.stateful_set.is_none() && observed.deployment.is_none();
    (is_first && budget.block().is_some()).then_some(Hold::OverBudget)
}

/// Pods run as it, are reached through it, are closed off by it, or are made by it.
fn do_pods_need(kind: &str) -> bool {
    matches!(kind, "ServiceAccount" | "Service" | "NetworkPolicy" | "StatefulSet" | "Deployment")
}

fn revision(cache: &ZeroCache, wanted: &Wanted, image: &str, generation: &str, budget: &Budget) -> Revision {
    let render = Render { image: image.to_owned(), generation: generation.to_owned(), pools: budget.pools };
    let manager = objects::template(cache, wanted, wanted.main_role(), &render);
    let syncer = (!wanted.is_single()).then(|| objects::template(cache, wanted, Role::ViewSyncer, &render));
    let second = syncer.as_ref().map_or("", |template| &template.revision);
    let hash = short_hash(format!("{}{second}", manager.revision).as_bytes());
    Revision { manager, syncer, hash, image: render.image }
}

impl<'a> Flows<'a> {
    fn plan(mut self) -> Plan {
        let mut next = self.recorded.clone();
        remember_upstream(&mut next, self.observed);
        let stage = self.stage();
        let is_paused = self.wanted.spec.paused;
        let is_frozen = is_paused || self.wanted.spec.suspended || self.hold.is_some();
        let mut managers = self.managers(&stage, is_frozen);
        let (mut manager, mut syncer) = self.workloads(&stage, is_frozen);
        if manager.as_ref().is_some_and(|(template, _)| self.changes_generation(template)) {
            managers = managers.min(1);
            if self.has_second_manager() {
                (manager, syncer) = (None, None);
            }
        }
        let volume = volume::plan(self.wanted, self.observed);
        let upgrade_block = self.upgrade_block();
        let reset_block = self.reset_block();
        if !is_frozen {
            self.advance(&mut next, upgrade_block.as_ref(), reset_block.as_ref());
        }
        self.restart_clocks(&mut next, is_paused);
        let in_use = retention::InUse {
            current: next.current_generation.as_deref().unwrap_or(&self.wanted.spec.generation),
            reset: next.reset.as_ref(),
        };
        let retention = retention::next(&next.retired_generations, self.wanted, in_use, self.observed);
        if !is_paused {
            next.suspension = self.power.step;
            next.retired_generations = retention.retired.clone();
            for (name, count) in &retention.deleted {
                let objects = count.map_or_else(String::new, |count| format!(", {count} objects"));
                self.events.push(Event::normal(
                    event::GENERATION_DELETED,
                    format!("deleted the backup of generation {name}{objects}"),
                ));
            }
        }
        let repairs = self.repairs(manager.as_ref(), managers, &volume);
        if !is_paused {
            self.tell_of(&repairs, volume.status.as_ref());
        }
        self.actions.extend(repairs);
        let image = self.recorded.current_image.clone().unwrap_or_else(|| self.wanted.image.clone());
        let replicas = self.syncer_replicas();
        let planned = Workloads {
            stateful_set: self.stateful_set(manager.as_ref(), managers, &volume),
            deployment: self.deployment(syncer.as_ref(), &replicas),
            image,
            autoscaler: self.autoscaler_bounds(&stage),
            cleanup: retention.cleanup.clone(),
        };
        self.scale(&planned, managers, &replicas);
        self.finalizer();
        let planned_objects = objects::build(self.cache, self.wanted, planned, self.observed.apis);
        let remove = planned_objects.orphans(&self.observed.children, self.wanted.is_single());
        let planned_objects = planned_objects.spare(&self.observed.taken, self.wanted);
        let context = Context {
            cache: self.cache,
            wanted: self.wanted,
            recorded: self.recorded,
            observed: self.observed,
            budget: &self.budget,
            power: self.power,
            hold: self.hold.as_ref(),
            upgrade_block: upgrade_block.as_ref(),
            reset_block: reset_block.as_ref(),
            volume_refused: volume.refused.as_deref(),
            cleanup_failures: &retention.failed,
            manager_revision: manager.as_ref().map_or(&self.target.manager.revision, |(it, _)| &it.revision),
            syncer_revision: syncer.as_ref().or(self.target.syncer.as_ref()).map(|it| it.revision.as_str()),
            syncers_wanted: replicas.wanted,
            storage: volume.status.clone(),
        };
        let is_changing = next.upgrade != self.recorded.upgrade
            || next.reset != self.recorded.reset
            || next.current_image != self.recorded.current_image
            || next.current_revision != self.recorded.current_revision
            || next.retired_generations != self.recorded.retired_generations;
        let (status, more) = conditions::report(&context, next);
        self.events.extend(more);
        // Nobody tells when a stranger goes.
        let is_waiting = !self.actions.is_empty() || !self.observed.taken.is_empty();
        let is_busy = is_changing || status.upgrade.is_some() || status.reset.is_some() || is_waiting;
        Plan {
            objects: (!is_paused).then_some(planned_objects),
            remove: if is_paused { Vec::new() } else { remove },
            actions: if is_paused { Vec::new() } else { self.actions },
            status,
            events: self.events,
            look_again_seconds: match (is_changing, is_busy) {
                (true, _) => 0,
                (false, true) => BUSY_SECONDS,
                (false, false) => IDLE_SECONDS,
            },
        }
    }

    /// Where the flows are. A flow whose wish changed meanwhile is looked at again before anything is applied for it.
    fn stage(&self) -> Stage<'a> {
        let recorded = self.recorded;
        let generation = recorded.current_generation.as_deref();
        let is_same_generation = generation == Some(self.wanted.spec.generation.as_str());
        match (&recorded.current_image, &recorded.reset, &recorded.upgrade, &recorded.current_revision) {
            (None, ..) => Stage::Unrecorded,
            (Some(_), Some(reset), _, _) if reset.to == self.wanted.spec.generation => Stage::Reset(reset),
            (Some(_), None, Some(upgrade), _) if upgrade.target == self.target.hash => Stage::Upgrade(upgrade),
            (Some(_), Some(_), _, _) | (Some(_), None, Some(_), _) => Stage::Changed,
            (Some(image), None, None, None) if *image == self.wanted.image && is_same_generation => Stage::Provisioning,
            (Some(_), None, None, None) => Stage::Changed,
            (Some(_), None, None, Some(current)) if *current == self.target.hash => Stage::Steady,
            (Some(_), None, None, Some(_)) => Stage::Changed,
        }
    }

    /// The templates that may be applied now, the first with its image; nothing where a workload stays as it is.
    fn workloads(&self, stage: &Stage, is_frozen: bool) -> (Option<(Template, String)>, Option<Template>) {
        if is_frozen {
            return (None, None);
        }
        let (revision, with_syncers) = match stage {
            Stage::Unrecorded | Stage::Changed => return (None, None),
            Stage::Provisioning | Stage::Steady => (self.target.clone(), true),
            Stage::Upgrade(it) if it.step == UpgradeStep::Preflight => return (self.missing_manager(), None),
            Stage::Reset(it) if it.step == ResetStep::Requested => return (self.missing_manager(), None),
            Stage::Upgrade(it) => (self.target.clone(), it.step == UpgradeStep::ViewSyncers),
            Stage::Reset(it) => (self.current_in(&it.to), it.step == ResetStep::ViewSyncers),
        };
        let is_proven = self.is_manager_proven(&revision.manager.revision);
        // The one guard that keeps view-syncers behind their replication-manager, whatever the flows think.
        let syncer = revision.syncer.filter(|template| {
            let is_unchanged = self.observed.deployment.as_ref().is_some_and(|it| it.revision == template.revision);
            with_syncers && (is_unchanged || is_proven)
        });
        (Some((revision.manager, revision.image)), syncer)
    }

    /// The image that is current, in some generation.
    fn current_in(&self, generation: &str) -> Revision {
        let image = self.recorded.current_image.as_deref().unwrap_or(&self.wanted.image);
        revision(self.cache, self.wanted, image, generation, &self.budget)
    }

    /// While checks run the replication-manager stays as it is; if somebody removed it, it comes back as it was.
    fn missing_manager(&self) -> Option<(Template, String)> {
        let generation = self.recorded.current_generation.as_deref().unwrap_or(&self.wanted.spec.generation);
        self.observed.stateful_set.is_none().then(|| {
            let revision = self.current_in(generation);
            (revision.manager, revision.image)
        })
    }

    /// All view-syncers have this template and are ready, and none of another is left, not even draining.
    fn are_syncers_proven(&self, revision: Option<&str>) -> bool {
        let Some(revision) = revision else { return true };
        let Some(deployment) = &self.observed.deployment else { return false };
        let wanted = self.syncer_replicas().wanted.unwrap_or(deployment.replicas);
        deployment.revision == revision
            && deployment.is_observed
            && deployment.replicas == wanted
            && deployment.updated >= wanted
            && deployment.available >= wanted
            && self.observed.pods_of(Role::ViewSyncer).all(|pod| pod.revision == revision)
    }

    /// A view-syncer of this template serves clients, where any is wanted.
    fn do_syncers_serve(&self, revision: Option<&str>) -> bool {
        let Some(revision) = revision else { return true };
        let mut pods = self.observed.pods_of(Role::ViewSyncer);
        self.syncer_replicas().wanted == Some(0)
            || pods.any(|pod| pod.revision == revision && pod.is_ready && !pod.is_terminating)
    }

    /// What a person should read of them in the history.
    fn tell_of(&mut self, repairs: &[Action], storage: Option<&StorageStatus>) {
        for action in repairs {
            if let Action::DeletePod { name } = action {
                let text = format!("{name} is not replaced by its StatefulSet; it is deleted");
                self.events.push(Event::warning(event::STUCK_POD_DELETED, text));
            }
        }
        let was_pending = self.recorded.storage.as_ref().is_some_and(|it| it.resize_pending);
        if let Some(storage) = storage.filter(|it| was_pending && !it.resize_pending) {
            self.events.push(Event::normal(event::VOLUME_RESIZED, format!("the volume has {} now", storage.requested)));
        }
    }

    /// What Kubernetes does not do by itself.
    fn repairs(&self, manager: Option<&(Template, String)>, managers: i32, volume: &volume::Volume) -> Vec<Action> {
        let mut actions = volume.actions.clone();
        // A set that was deleted without its pod, to grow its volume, has nobody to stop the pod.
        if self.power.manager == 0 && self.observed.stateful_set.is_none() {
            let left = self.observed.pods_of(self.wanted.main_role()).filter(|pod| !pod.is_terminating);
            actions.extend(left.map(|pod| Action::DeletePod { name: pod.name.clone() }));
        }
        // A pod that never became ready is not replaced by its StatefulSet, whatever the template says now.
        if let (Some((template, _)), Some(set)) = (manager, &self.observed.stateful_set)
            && set.revision == template.revision
            && set.is_observed
        {
            let stuck = self.observed.pods_of(self.wanted.main_role());
            let stuck = stuck.filter(|pod| pod.revision != template.revision && !pod.is_ready && !pod.is_terminating);
            actions.extend(stuck.map(|pod| Action::DeletePod { name: pod.name.clone() }));
        }
        actions.extend(self.surplus_managers(managers));
        actions
    }

    fn stateful_set(
        &self,
        manager: Option<&(Template, String)>,
        managers: i32,
        volume: &volume::Volume,
    ) -> Workload<StatefulSet> {
        match manager {
            Some((template, image)) if !volume.is_replacing => {
                let set = objects::stateful_set(
                    self.cache,
                    self.wanted,
                    template,
                    image,
                    managers,
                    &volume.claimed,
                    self.observed.stateful_set.as_ref().map(|it| &it.selector),
                );
                Workload::Apply(Box::new(set))
            }
            _ => Workload::Keep,
        }
    }

    fn deployment(&self, syncer: Option<&Template>, replicas: &Replicas) -> Workload<Deployment> {
        let Some(template) = syncer else { return Workload::Keep };
        let image = template.template.spec.as_ref().and_then(|spec| spec.containers.first()?.image.as_deref());
        let image = image.unwrap_or(&self.wanted.image);
        let selector = self.observed.deployment.as_ref().map(|it| &it.selector);
        let deployment = objects::deployment(self.cache, self.wanted, template, image, replicas.applied, selector);
        Workload::Apply(Box::new(deployment))
    }

    /// The finalizer is there exactly while something outside would have to be released.
    fn finalizer(&mut self) {
        let needs = deletion::needs_finalizer(self.wanted.spec);
        let has = deletion::has_finalizer(self.cache);
        if needs && !has {
            self.actions.insert(0, Action::AddFinalizer);
        } else if !needs && has {
            self.actions.push(Action::RemoveFinalizer);
        }
        let is_good = || self.observed.databases.upstream.as_ref().is_some_and(|probe| probe.fault.is_none());
        let is_there = !matches!(self.hold, Some(Hold::SecretsMissing(_)));
        match self.observed.kept {
            Kept::Nothing if is_there && needs_access(self.cache) => self.actions.push(Action::KeepAccess),
            // A mistyped URL does not replace one that served.
            Kept::Outdated if is_there && is_good() => self.actions.push(Action::KeepAccess),
            Kept::Unknown | Kept::Nothing | Kept::Outdated | Kept::Current => {}
        }
    }
}
