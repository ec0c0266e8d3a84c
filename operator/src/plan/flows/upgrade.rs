//! Rolling out a change of pods: the replication-manager first, then, once it streams, the view-syncers.
//!
//! ```text
//! Preflight -> ReplicationManager -> Settle -> (Gate) -> ViewSyncers -> done
//!     ^                |                |         |           |
//!     +----------------+----------------+---------+-----------+   the target changed
//! ```
//!
//! Going back to what ran before skips Preflight: nothing may stand in the way of leaving a broken image.

use crds::conditions::reason;
use crds::status::{UpgradeCause, UpgradeStatus, UpgradeStep};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// What a step depends on.
#[derive(Clone, Debug)]
pub(super) struct Facts<'a> {
    pub now: Timestamp,
    /// Revision that is wanted now.
    pub target: &'a str,
    /// Revision that was last rolled out wholly.
    pub current: &'a str,
    pub cause: UpgradeCause,
    pub block: Option<&'a Block>,
    pub gates: Gates,
    /// All replication-managers that the step asks for have the target's template and have been ready for a while.
    pub are_managers_proven: bool,
    /// One of them receives changes, as far as it can be asked.
    pub is_streaming: bool,
    /// All view-syncers have the target's template, and none of another is left.
    pub are_syncers_proven: bool,
    pub is_single: bool,
}

/// Something that a person must decide or repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::plan) struct Block {
    pub reason: &'static str,
    pub message: String,
}

/// Which releases are needed, and which were given.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gates {
    pub holds_manager: bool,
    pub holds_syncers: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Next {
    Stay,
    Go(UpgradeStatus),
    Finished,
    /// The wish was taken back before anything was changed.
    Cancelled,
}

pub(super) fn begin(facts: &Facts) -> UpgradeStatus {
    at(UpgradeStep::Preflight, facts, Time(facts.now))
}

pub(super) fn step(recorded: &UpgradeStatus, facts: &Facts) -> Next {
    let started_at = recorded.started_at.clone();
    let go = |step| Next::Go(at(step, facts, started_at.clone()));
    if recorded.target != facts.target {
        return match (facts.target == facts.current, recorded.step) {
            (true, UpgradeStep::Preflight) => Next::Cancelled,
            (true, _) => go(UpgradeStep::ReplicationManager),
            (false, _) => Next::Go(begin(facts)),
        };
    }
    let then = match recorded.step {
        UpgradeStep::Preflight if facts.block.is_some() || facts.gates.holds_manager => None,
        UpgradeStep::Preflight => Some(UpgradeStep::ReplicationManager),
        UpgradeStep::ReplicationManager => facts.are_managers_proven.then_some(UpgradeStep::Settle),
        UpgradeStep::Settle if !(facts.are_managers_proven && facts.is_streaming) => None,
        UpgradeStep::Settle if facts.is_single => return Next::Finished,
        UpgradeStep::Settle if facts.gates.holds_syncers => Some(UpgradeStep::Gate),
        UpgradeStep::Settle => Some(UpgradeStep::ViewSyncers),
        UpgradeStep::Gate => (!facts.gates.holds_syncers).then_some(UpgradeStep::ViewSyncers),
        UpgradeStep::ViewSyncers if facts.are_managers_proven && facts.are_syncers_proven => return Next::Finished,
        UpgradeStep::ViewSyncers => None,
    };
    match then {
        Some(step) => go(step),
        None if message(recorded.step, facts) != recorded.message => {
            Next::Go(UpgradeStatus { message: message(recorded.step, facts), ..recorded.clone() })
        }
        None => Next::Stay,
    }
}

fn at(step: UpgradeStep, facts: &Facts, started_at: Time) -> UpgradeStatus {
    UpgradeStatus {
        step,
        target: facts.target.to_owned(),
        cause: facts.cause,
        started_at,
        step_started_at: Time(facts.now),
        message: message(step, facts),
    }
}

/// What the step waits for.
fn message(step: UpgradeStep, facts: &Facts) -> String {
    let target = facts.target;
    let text = match (step, facts.block) {
        (UpgradeStep::Preflight, Some(block)) => return block.message.clone(),
        (UpgradeStep::Preflight, None) if facts.gates.holds_manager => return release(target, ""),
        (UpgradeStep::Preflight, None) => "checks passed",
        (UpgradeStep::ReplicationManager, _) => "waiting for the new replication-manager to be ready",
        (UpgradeStep::Settle, _) => "waiting for the new replication-manager to stream",
        (UpgradeStep::Gate, _) => return release(target, super::VIEW_SYNCERS_RELEASE),
        (UpgradeStep::ViewSyncers, _) => "waiting for all view-syncers to be replaced and drained",
    };
    text.to_owned()
}

fn release(target: &str, suffix: &str) -> String {
    format!(
        "waiting for a person: annotate the ZeroCache with {}={target}{suffix}",
        crds::names::annotation::RELEASE_UPGRADE
    )
}

/// What speaks against an upgrade from one image to another.
pub(super) fn version_block(current: &str, target: &str, allows_downgrade: bool) -> Option<Block> {
    use super::super::wanted::{numbers_of, version_of};
    let (old, new) = (numbers_of(current)?, numbers_of(target)?);
    let (from, to) = (version_of(current), version_of(target));
    if new < old && !allows_downgrade {
        let message = format!(
            "{to} is lower than {from}; set upgrade.allowDowngrade if its data formats are known to fit, or give a higher tag"
        );
        return Some(Block { reason: reason::DOWNGRADE_NOT_ALLOWED, message });
    }
    if new.0.abs_diff(old.0) > 1 {
        let message = format!("{from} and {to} are more than one major version apart; upgrade by one major at a time");
        return Some(Block { reason: reason::VERSION_SKEW, message });
    }
    None
}
