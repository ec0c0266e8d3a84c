//! What speaks against beginning a flow: things that a person must decide or repair.

use crds::conditions::reason;
use crds::names::annotation;
use crds::status::{ResetStatus, ResetStep, RetiredState, UpgradeCause};

use super::super::{annotation_of, conditions, is_released};
use super::{Block, Flows, upgrade};
use crate::observe::BackupFault;

impl Flows<'_> {
    /// What a person must decide or repair before a rollout begins. Only a change of image is held back by the state of the
    /// world: the other changes may be its cure.
    pub(super) fn upgrade_block(&self) -> Option<Block> {
        let current = self.recorded.current_image.as_deref()?;
        let is_wanted = self.recorded.current_revision.as_deref() != Some(self.target.hash.as_str());
        if !is_wanted {
            return None;
        }
        if let Some(reset) = self.recorded.reset.as_ref().filter(|_| current != self.wanted.image) {
            let message = format!("the image is changed once the reset to generation {} is through", reset.to);
            return Some(Block { reason: reason::RESET_IN_PROGRESS, message });
        }
        let cause = self.cause();
        if let Some(arithmetic) = self.budget.block()
            && matches!(cause, UpgradeCause::Image | UpgradeCause::Configuration)
        {
            return Some(Block { reason: reason::OVER_BUDGET, message: arithmetic.to_owned() });
        }
        if cause != UpgradeCause::Image {
            return None;
        }
        let by_version = upgrade::version_block(current, &self.wanted.image, self.wanted.spec.upgrade.allow_downgrade);
        // A person who names the target takes the rest upon them.
        by_version.or_else(|| if is_released(self.cache, &self.target.hash) { None } else { self.world_block() })
    }

    fn world_block(&self) -> Option<Block> {
        if let Some((reason, message)) = conditions::database_fault(self.observed) {
            return Some(Block { reason, message });
        }
        let fault = self.observed.nodes.as_ref().and_then(|nodes| nodes.backup_fault.as_ref())?;
        let (reason, text) = match fault {
            BackupFault::AccessDenied(text) => (reason::ACCESS_DENIED, text),
            BackupFault::Failing(text) => (reason::STALE, text),
        };
        let message = format!(
            "the backup is not written ({text}), and a new replication-manager may need it; repair it, or annotate the \
             ZeroCache with {}={} to go on without",
            annotation::RELEASE_UPGRADE,
            self.target.hash
        );
        Some(Block { reason, message })
    }

    /// What a person must decide before a new generation is made.
    pub(super) fn reset_block(&self) -> Option<Block> {
        let current = self.recorded.current_generation.as_deref()?;
        let wanted = self.wanted.spec.generation.as_str();
        if wanted == current && self.recorded.reset.is_none() {
            return None;
        }
        // What is there by then is its own work.
        let is_begun = |reset: &ResetStatus| reset.to == wanted && reset.step > ResetStep::Requested;
        if self.recorded.reset.as_ref().is_some_and(is_begun) {
            return None;
        }
        if self.recorded.upgrade.is_some() {
            let message = "the reset begins once the upgrade is through; go back to the current image to do it first";
            return Some(Block { reason: reason::UPGRADE_IN_PROGRESS, message: message.to_owned() });
        }
        let retired = self.recorded.retired_generations.iter().find(|generation| generation.name == wanted);
        let is_allowed = annotation_of(self.cache, annotation::REUSE_GENERATION) == Some(wanted);
        if let Some(retired) = retired
            && (!is_allowed || retired.state == RetiredState::Deleting)
        {
            let message = format!(
                "generation {wanted} was used before and its backup is {:?}; give a new name, or annotate the ZeroCache with \
                 {}={wanted}",
                retired.state,
                annotation::REUSE_GENERATION
            );
            return Some(Block { reason: reason::GENERATION_RETIRED, message });
        }
        if let Some((reason, message)) = conditions::store_fault(self.observed).filter(|_| !is_allowed) {
            return Some(Block { reason, message });
        }
        let objects = self.observed.prefixes.get(wanted).copied().unwrap_or(0);
        (objects > 0 && !is_allowed).then(|| Block {
            reason: reason::PREFIX_NOT_EMPTY,
            message: format!(
                "there are {objects} objects below {} already; give a new name, or annotate the ZeroCache with {}={wanted}",
                self.wanted.backup_url(wanted).unwrap_or_default(),
                annotation::REUSE_GENERATION
            ),
        })
    }
}
