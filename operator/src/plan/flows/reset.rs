//! A new generation: a fresh replica under a new name, and view-syncers that move over when it is backed up.
//!
//! ```text
//! Requested -> ReplicationManager -> Backup -> ViewSyncers -> done: the old generation is retired
//!     |                |                |           |
//!     +-- cancelled ---+----------------+           +--> Requested, when the wish changes again
//! ```
//!
//! Until ViewSyncers, setting the generation back cancels: view-syncers have not been touched.

use crds::status::{ResetStatus, ResetStep};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::upgrade::Block;

/// What a step depends on.
#[derive(Clone, Debug)]
pub(super) struct Facts<'a> {
    pub now: Timestamp,
    /// Generation that is wanted now.
    pub wanted: &'a str,
    /// Generation that clients are served from, except in the last step.
    pub current: &'a str,
    pub block: Option<&'a Block>,
    /// The new generation's place was looked at, as far as the operator can.
    pub is_checked: bool,
    /// A replication-manager of the new generation is ready.
    pub is_manager_proven: bool,
    /// The new generation's backup holds a whole snapshot; always so where nobody starts from a backup.
    pub has_snapshot: bool,
    pub are_syncers_proven: bool,
    pub is_single: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Next {
    Stay,
    /// With generations that were begun and left.
    Go(ResetStatus, Vec<String>),
    Finished,
    Cancelled(Vec<String>),
}

pub(super) fn begin(facts: &Facts) -> ResetStatus {
    at(ResetStep::Requested, facts.current, facts, Time(facts.now))
}

pub(super) fn step(recorded: &ResetStatus, facts: &Facts) -> Next {
    let started_at = recorded.started_at.clone();
    if recorded.to != facts.wanted {
        let is_begun = recorded.step > ResetStep::Requested;
        let is_served = recorded.step == ResetStep::ViewSyncers;
        let cancels = facts.wanted == facts.current && !is_served;
        // Where view-syncers already serve what was being made, that is what is left now, besides what is current.
        let from = if is_served { recorded.to.as_str() } else { facts.current };
        let begun = is_begun.then_some(recorded.to.as_str());
        let left = begun.into_iter().chain([recorded.from.as_str()]);
        let left = left.filter(|name| ![from, facts.current, facts.wanted].contains(name)).map(str::to_owned).collect();
        return match cancels {
            true => Next::Cancelled(left),
            false => Next::Go(at(ResetStep::Requested, from, facts, Time(facts.now)), left),
        };
    }
    let then = match recorded.step {
        ResetStep::Requested => (facts.block.is_none() && facts.is_checked).then_some(ResetStep::ReplicationManager),
        ResetStep::ReplicationManager if !facts.is_manager_proven => None,
        ResetStep::ReplicationManager if facts.is_single => return Next::Finished,
        ResetStep::ReplicationManager => Some(ResetStep::Backup),
        ResetStep::Backup => (facts.is_manager_proven && facts.has_snapshot).then_some(ResetStep::ViewSyncers),
        ResetStep::ViewSyncers if facts.is_manager_proven && facts.are_syncers_proven => return Next::Finished,
        ResetStep::ViewSyncers => None,
    };
    match then {
        Some(step) => Next::Go(at(step, &recorded.from, facts, started_at), Vec::new()),
        None if message(recorded.step, facts) != recorded.message => {
            Next::Go(ResetStatus { message: message(recorded.step, facts), ..recorded.clone() }, Vec::new())
        }
        None => Next::Stay,
    }
}

fn at(step: ResetStep, from: &str, facts: &Facts, started_at: Time) -> ResetStatus {
    ResetStatus {
        from: from.to_owned(),
        to: facts.wanted.to_owned(),
        step,
        started_at,
        step_started_at: Time(facts.now),
        message: message(step, facts),
    }
}

/// What the step waits for.
fn message(step: ResetStep, facts: &Facts) -> String {
    match (step, facts.block) {
        (ResetStep::Requested, Some(block)) => return block.message.clone(),
        (ResetStep::Requested, None) if !facts.is_checked => "looking for an earlier backup of that name",
        (ResetStep::Requested, None) => "checks passed",
        (ResetStep::ReplicationManager, _) => "waiting for the replication-manager to sync anew from upstream",
        (ResetStep::Backup, _) => "waiting for the first snapshot of the new generation",
        (ResetStep::ViewSyncers, _) => "waiting for all view-syncers to serve the new generation",
    }
    .to_owned()
}
