//! Taking the flows one step on, in the status that is written next.

use crds::conditions::{event, kind};
use crds::spec::UpgradeStrategy;
use crds::status::{ResetStatus, SuspensionStep, UpgradeCause, UpgradeStatus, ZeroCacheStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::super::conditions::{self, Event};
use super::super::wanted::version_of;
use super::super::{is_released, seconds_between};
use super::{Block, Flows, Stage, VIEW_SYNCERS_RELEASE, reset, retention, upgrade};
use crate::observe::Role;

impl Flows<'_> {
    /// Takes each flow one step on.
    pub(super) fn advance(
        &mut self,
        next: &mut ZeroCacheStatus,
        upgrade_block: Option<&Block>,
        reset_block: Option<&Block>,
    ) {
        if self.recorded.current_image.is_none() {
            next.current_generation = Some(self.wanted.spec.generation.clone());
            self.make_provisional(next);
            self.events.push(Event::normal(event::CREATED, format!("provisioning with image {}", self.wanted.image)));
        } else if let Some(reset) = &self.recorded.reset {
            self.advance_reset(next, reset, reset_block);
        } else if let Some(upgrade) = &self.recorded.upgrade {
            self.advance_upgrade(next, upgrade, upgrade_block);
        } else if self.recorded.current_revision.is_none() {
            self.advance_provisioning(next);
        } else if self.recorded.current_revision.as_deref() != Some(self.target.hash.as_str()) {
            let begun = upgrade::begin(&self.upgrade_facts(upgrade_block));
            self.events.push(Event::normal(
                event::UPGRADE_STARTED,
                format!("rolling out {} because of a change of {:?}", begun.target, begun.cause),
            ));
            next.upgrade = Some(begun);
            next.target_image = Some(self.wanted.image.clone());
        } else if next.current_generation.as_ref() != Some(&self.wanted.spec.generation) {
            let begun = reset::begin(&self.reset_facts(None, reset_block));
            let text = format!("moving from generation {} to {}", begun.from, begun.to);
            self.events.push(Event::normal(event::RESET_STARTED, text));
            next.target_generation = Some(begun.to.clone());
            next.reset = Some(begun);
        }
    }

    /// While no client was served there is nothing to keep: a change is taken over as it comes.
    fn advance_provisioning(&mut self, next: &mut ZeroCacheStatus) {
        let is_done = matches!(self.stage(), Stage::Provisioning)
            && self.is_manager_proven(&self.target.manager.revision)
            && self.do_syncers_serve(self.target.syncer.as_ref().map(|it| it.revision.as_str()));
        if let Some(begun) = next.current_generation.take().filter(|name| *name != self.wanted.spec.generation) {
            retention::retire(&mut next.retired_generations, self.wanted, &begun, self.observed.now);
        }
        next.current_generation = Some(self.wanted.spec.generation.clone());
        match is_done {
            true => self.make_current(next),
            false => self.make_provisional(next),
        }
    }

    /// What is wanted is being started, and nothing runs yet.
    fn make_provisional(&self, next: &mut ZeroCacheStatus) {
        self.make_current(next);
        next.current_revision = None;
        next.current_version = None;
    }

    /// What is wanted becomes what is current.
    fn make_current(&self, next: &mut ZeroCacheStatus) {
        next.current_image = Some(self.wanted.image.clone());
        next.current_version = Some(version_of(&self.wanted.image));
        next.current_revision = Some(self.target.hash.clone());
        next.pools = self.budget.computed.clone();
        next.target_image = None;
    }

    fn advance_upgrade(&mut self, next: &mut ZeroCacheStatus, recorded: &UpgradeStatus, block: Option<&Block>) {
        let facts = self.upgrade_facts(block);
        match upgrade::step(recorded, &facts) {
            upgrade::Next::Stay => {}
            upgrade::Next::Go(to) => {
                if to.step > recorded.step && to.target == recorded.target {
                    let text = format!("{:?} is done, now {:?}", recorded.step, to.step);
                    self.events.push(Event::normal(event::UPGRADE_STEP_COMPLETED, text));
                } else if to.target != recorded.target {
                    let text = format!("the target changed to {}, now {:?}", to.target, to.step);
                    self.events.push(Event::normal(event::UPGRADE_STARTED, text));
                }
                next.target_image = Some(self.wanted.image.clone());
                next.upgrade = Some(to);
            }
            upgrade::Next::Finished => {
                let seconds = seconds_between(recorded.started_at.0, self.observed.now);
                let text = format!("rolled out {} in {seconds} s", self.wanted.image);
                self.events.push(Event::normal(event::UPGRADE_COMPLETED, text));
                next.upgrade = None;
                self.make_current(next);
            }
            upgrade::Next::Cancelled => {
                next.upgrade = None;
                next.target_image = None;
            }
        }
    }

    fn advance_reset(&mut self, next: &mut ZeroCacheStatus, recorded: &ResetStatus, block: Option<&Block>) {
        let facts = self.reset_facts(Some(recorded), block);
        let now = self.observed.now;
        let mut left = Vec::new();
        match reset::step(recorded, &facts) {
            reset::Next::Stay => {}
            reset::Next::Go(to, abandoned) => {
                if to.step > recorded.step {
                    let text = format!("{:?} is done, now {:?}", recorded.step, to.step);
                    self.events.push(Event::normal(event::RESET_STEP_COMPLETED, text));
                }
                left = abandoned;
                next.target_generation = Some(to.to.clone());
                next.reset = Some(to);
            }
            reset::Next::Finished => {
                let seconds = seconds_between(recorded.started_at.0, now);
                let text = format!("moved from generation {} to {} in {seconds} s", recorded.from, recorded.to);
                self.events.push(Event::normal(event::RESET_COMPLETED, text));
                let used = [Some(recorded.from.clone()), next.current_generation.clone()];
                left.extend(used.into_iter().flatten().filter(|name| *name != recorded.to));
                left.dedup();
                let applied = self.current_in(&recorded.to);
                next.current_generation = Some(recorded.to.clone());
                next.current_revision = Some(applied.hash);
                next.pools = self.budget.computed.clone();
                next.target_generation = None;
                next.reset = None;
            }
            reset::Next::Cancelled(abandoned) => {
                let stays = next.current_generation.as_deref().unwrap_or_default();
                let text = format!("generation {stays} stays; {} is left", recorded.to);
                self.events.push(Event::normal(event::RESET_CANCELLED, text));
                left = abandoned;
                next.target_generation = None;
                next.reset = None;
            }
        }
        for name in left {
            retention::retire(&mut next.retired_generations, self.wanted, &name, now);
        }
    }

    fn upgrade_facts<'b>(&'b self, block: Option<&'b Block>) -> upgrade::Facts<'b> {
        let spec = &self.wanted.spec.upgrade;
        let managers = self.managers(&self.stage(), false);
        let target = self.target.hash.as_str();
        let with_syncers = format!("{target}{VIEW_SYNCERS_RELEASE}");
        let (first, second) = (is_released(self.cache, target), is_released(self.cache, &with_syncers));
        let is_manual = spec.strategy == UpgradeStrategy::Manual;
        // What ran before needs nobody's leave.
        let goes_back = self.recorded.current_revision.as_deref() == Some(target);
        upgrade::Facts {
            now: self.observed.now,
            target,
            current: self.recorded.current_revision.as_deref().unwrap_or_default(),
            cause: self.cause(),
            block,
            gates: upgrade::Gates {
                holds_manager: is_manual && !first && !second && !goes_back,
                holds_syncers: !goes_back
                    && match is_manual {
                        true => !second,
                        false => spec.pause_after_replication_manager && !first && !second,
                    },
            },
            are_managers_proven: self.are_managers_complete(&self.target.manager.revision, managers),
            // One that does not tell is believed, but it is asked first.
            is_streaming: match self.observed.nodes.as_ref().and_then(|nodes| nodes.streaming) {
                Some(streaming) => streaming,
                None => !self.observed.pending.nodes,
            },
            are_syncers_proven: self.are_syncers_proven(self.target.syncer.as_ref().map(|it| it.revision.as_str())),
            is_single: self.wanted.is_single(),
        }
    }

    fn reset_facts<'b>(&'b self, recorded: Option<&ResetStatus>, block: Option<&'b Block>) -> reset::Facts<'b> {
        let wanted = self.wanted.spec.generation.as_str();
        let made = recorded.map(|reset| self.current_in(&reset.to));
        reset::Facts {
            now: self.observed.now,
            wanted,
            current: self.recorded.current_generation.as_deref().unwrap_or(wanted),
            block,
            is_checked: !self.observed.pending.store,
            is_manager_proven: made.as_ref().is_some_and(|it| self.is_manager_proven(&it.manager.revision)),
            has_snapshot: self.wanted.spec.backup.is_none()
                || self.observed.nodes.as_ref().and_then(|nodes| nodes.snapshot_of.as_deref()) == Some(wanted),
            are_syncers_proven: made
                .as_ref()
                .is_some_and(|it| self.are_syncers_proven(it.syncer.as_ref().map(|it| it.revision.as_str()))),
            is_single: self.wanted.is_single(),
        }
    }

    /// What made the pods' templates differ from those that run.
    pub(super) fn cause(&self) -> UpgradeCause {
        if self.recorded.current_image.as_ref() != Some(&self.wanted.image) {
            return UpgradeCause::Image;
        }
        let Some(runs) = &self.observed.stateful_set else { return UpgradeCause::Configuration };
        let secrets = self.wanted.secrets_hash(self.wanted.main_role());
        let syncer_secrets = self.wanted.secrets_hash(Role::ViewSyncer);
        let of_syncers = self.observed.deployment.as_ref().map(|it| it.secrets.as_str());
        if runs.secrets != secrets || of_syncers.is_some_and(|hash| hash != syncer_secrets) {
            UpgradeCause::Secrets
        } else if runs.restarted_at.as_deref() != self.wanted.restarted_at {
            UpgradeCause::Restart
        } else {
            UpgradeCause::Configuration
        }
    }

    /// A pause or a suspension is no time that a step took.
    pub(super) fn restart_clocks(&self, next: &mut ZeroCacheStatus, is_paused: bool) {
        let was_frozen = conditions::is_true(self.recorded, kind::RECONCILIATION_PAUSED)
            || self.recorded.suspension.is_some_and(|step| step != SuspensionStep::StartingReplicationManager);
        if !was_frozen || is_paused || self.wanted.spec.suspended {
            return;
        }
        let now = Time(self.observed.now);
        if let Some(upgrade) = &mut next.upgrade {
            upgrade.step_started_at = now.clone();
        }
        if let Some(reset) = &mut next.reset {
            reset.step_started_at = now;
        }
    }
}
