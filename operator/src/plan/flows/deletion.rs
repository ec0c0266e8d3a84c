//! Deletion: pods stop, then what is outside the cluster is released, then the resource goes. It never hangs for ever.
//!
//! ```text
//! StopViewSyncers -> StopReplicationManager -> ReleaseUpstream -> DeleteBackups -> Done: the finalizer is taken off
//!        |                    |                      |                 |            ^
//!        +--------------------+----------------------+-----------------+------------+   after the timeout, with a warning
//! ```

use crds::conditions::event;
use crds::names::{FINALIZER, annotation};
use crds::spec::{DeletionPolicy, ZeroCacheSpec};
use crds::status::{DeletionStatus, DeletionStep, ZeroCacheStatus};
use crds::{ZeroCache, conditions::reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::super::objects::{self, Cleanup, Workload, Workloads, cleanup_job_name};
use super::super::wanted::Wanted;
use super::super::{Action, BUSY_SECONDS, Event, Objects, Plan, annotation_of, conditions, seconds_between};
use super::retention;
use crate::observe::{JobState, Kept, Observed, Role};

/// In a namespace that is being deleted others wait for this resource.
const LEAVING_SECONDS: u64 = 120;
/// There a replication-manager may stop for so long before its slot is dropped all the same.
const STOPPING_SECONDS: u64 = 30;
/// What was kept for the release is tried to be deleted for so long after the release is over.
const DISCARDING_SECONDS: u64 = 300;
/// A server that was never reached is tried for so long.
const UNREACHED_SECONDS: u64 = 30;

pub(in crate::plan) fn needs_finalizer(spec: &ZeroCacheSpec) -> bool {
    spec.deletion.upstream == DeletionPolicy::Delete || deletes_backups(spec)
}

fn deletes_backups(spec: &ZeroCacheSpec) -> bool {
    spec.backup.as_ref().is_some_and(|backup| backup.retention.delete_on_removal)
}

pub(in crate::plan) fn has_finalizer(cache: &ZeroCache) -> bool {
    cache.metadata.finalizers.iter().flatten().any(|name| name == FINALIZER)
}

pub(in crate::plan) fn plan(cache: &ZeroCache, recorded: ZeroCacheStatus, observed: &Observed) -> Plan {
    // A spec that cannot be used does not keep its resource from going.
    let (wanted, _) = Wanted::resolve(cache, observed);
    let mut plan = Plan {
        objects: None,
        remove: Vec::new(),
        actions: Vec::new(),
        status: recorded.clone(),
        events: Vec::new(),
        look_again_seconds: BUSY_SECONDS,
    };
    if !has_finalizer(cache) {
        return plan;
    }
    let Some(deletion) = &recorded.deletion else {
        plan.events.push(Event::normal(event::DELETION_STARTED, "stopping the pods".to_owned()));
        let first = DeletionStatus {
            step: DeletionStep::StopViewSyncers,
            started_at: Time(observed.now),
            message: message(DeletionStep::StopViewSyncers, observed),
        };
        report(cache, &mut plan, first, observed);
        return plan;
    };
    let cleanup = match deletes_backups(&cache.spec) {
        true => {
            let reset = recorded.reset.as_ref().map(|reset| [reset.from.as_str(), reset.to.as_str()]);
            let current = recorded.current_generation.as_deref().unwrap_or(&cache.spec.generation);
            let mut used: Vec<&str> = reset.into_iter().flatten().chain([current]).collect();
            used.sort_unstable();
            used.dedup();
            retention::everything(&recorded.retired_generations, &wanted, &used)
        }
        false => Vec::new(),
    };
    render(cache, &wanted, deletion, &cleanup, observed, &mut plan);
    let next = next(cache, &wanted, deletion, &cleanup, observed, &mut plan.events);
    report(cache, &mut plan, next, observed);
    plan
}

/// What the recorded step does.
fn render(
    cache: &ZeroCache,
    wanted: &Wanted,
    deletion: &DeletionStatus,
    cleanup: &[Cleanup],
    observed: &Observed,
    plan: &mut Plan,
) {
    if deletion.step == DeletionStep::Done {
        // The garbage collector does the rest.
        let most = cache.spec.deletion.timeout.seconds() + DISCARDING_SECONDS;
        let is_late = seconds_between(deletion.started_at.0, observed.now) >= most;
        if matches!(observed.kept, Kept::Outdated | Kept::Current) && !is_late {
            plan.actions.push(Action::DiscardAccess);
        }
        plan.actions.push(Action::RemoveFinalizer);
        return;
    }
    let scale = |role, runs: Option<i32>| runs.filter(|count| *count > 0).map(|_| Action::Scale { role, replicas: 0 });
    let syncers = observed.deployment.as_ref().map(|it| it.replicas);
    let manager = observed.stateful_set.as_ref().map(|it| it.replicas);
    plan.actions.extend(scale(Role::ViewSyncer, syncers));
    if deletion.step >= DeletionStep::StopReplicationManager {
        plan.actions.extend(scale(wanted.main_role(), manager));
        // A set that was deleted without its pod, to grow its volume, has nobody to stop the pod.
        let left = observed.pods_of(wanted.main_role()).filter(|pod| !pod.is_terminating && manager.is_none());
        plan.actions.extend(left.map(|pod| Action::DeletePod { name: pod.name.clone() }));
    }
    match deletion.step {
        DeletionStep::StopViewSyncers | DeletionStep::StopReplicationManager | DeletionStep::Done => {}
        // Another resource may be using them by now.
        DeletionStep::ReleaseUpstream if !observed.rivals.is_empty() => {}
        DeletionStep::ReleaseUpstream => plan.actions.push(Action::ReleaseUpstream),
        DeletionStep::DeleteBackups => {
            let image = plan.status.current_image.clone().unwrap_or_else(|| wanted.image.clone());
            let workloads = Workloads {
                stateful_set: Workload::Keep,
                deployment: Workload::Keep,
                image,
                autoscaler: None,
                cleanup: cleanup.to_vec(),
            };
            let built = objects::build(cache, wanted, workloads, observed.apis).spare(&observed.taken, wanted);
            let Objects { service_account, cleanup_jobs, .. } = built;
            plan.objects = Some(Objects { service_account, cleanup_jobs, ..Objects::default() });
        }
    }
}

/// The step after the recorded one, or the same.
fn next(
    cache: &ZeroCache,
    wanted: &Wanted,
    recorded: &DeletionStatus,
    cleanup: &[Cleanup],
    observed: &Observed,
    events: &mut Vec<Event>,
) -> DeletionStatus {
    let at = |step| DeletionStatus { step, message: message(step, observed), ..recorded.clone() };
    let told = events.len();
    if recorded.step == DeletionStep::Done {
        return recorded.clone();
    }
    if annotation_of(cache, annotation::SKIP_CLEANUP) == Some("true") {
        let text = format!("skipped on request at {:?}", recorded.step);
        events.push(Event::warning(event::NOT_RELEASED, text));
        return at(DeletionStep::Done);
    }
    let since_start = seconds_between(recorded.started_at.0, observed.now);
    let is_late = since_start >= cache.spec.deletion.timeout.seconds()
        || (observed.is_namespace_leaving && since_start >= LEAVING_SECONDS);
    // An operator that was away for so long tries once.
    let is_untried = recorded.step == DeletionStep::ReleaseUpstream && observed.release.is_none();
    if is_late && !is_untried {
        let text = format!(
            "gave up at {:?} after {since_start} s: {}; look for a replication slot and publications of appId {} upstream",
            recorded.step, recorded.message, cache.spec.app_id
        );
        events.push(Event::warning(event::NOT_RELEASED, text));
        return at(DeletionStep::Done);
    }
    let (was_made, was_reached) = (was_made(cache, observed), was_reached(cache));
    let is_done = match recorded.step {
        // A workload that still asks for pods makes them again.
        // Where everything goes at once, nobody is led away to anywhere.
        DeletionStep::StopViewSyncers if observed.is_namespace_leaving => true,
        DeletionStep::StopReplicationManager if observed.is_namespace_leaving && since_start >= STOPPING_SECONDS => {
            true
        }
        DeletionStep::StopViewSyncers => {
            let asks = observed.deployment.as_ref().is_some_and(|it| it.replicas > 0);
            !asks && observed.pods_of(Role::ViewSyncer).next().is_none()
        }
        DeletionStep::StopReplicationManager => {
            let asks = observed.stateful_set.as_ref().is_some_and(|it| it.replicas > 0);
            !asks && observed.pods_of(wanted.main_role()).next().is_none()
        }
        DeletionStep::ReleaseUpstream if !observed.rivals.is_empty() => {
            // Another resource may be using them by now.
            let text = format!("slot and publications stay: {} uses them", observed.rivals.join(", "));
            events.push(Event::warning(event::NOT_RELEASED, text));
            true
        }
        DeletionStep::ReleaseUpstream if observed.release == Some(Ok(())) => true,
        DeletionStep::ReleaseUpstream if !was_made => true,
        // What neither the operator nor a pod ever reached holds nothing of ours.
        DeletionStep::ReleaseUpstream => {
            let gives_up = !was_reached && observed.release.is_some() && since_start >= UNREACHED_SECONDS;
            if gives_up {
                let text = format!("upstream was never reached, so nothing was made there: {}", recorded.message);
                events.push(Event::warning(event::NOT_RELEASED, text));
            }
            gives_up
        }
        DeletionStep::DeleteBackups if !was_made => true,
        DeletionStep::DeleteBackups if let Some(why) = left_backups(wanted, observed) => {
            let url = cache.spec.backup.as_ref().map_or("", |backup| &backup.url);
            events.push(Event::warning(event::NOT_RELEASED, format!("the backups below {url} stay: {why}")));
            true
        }
        DeletionStep::DeleteBackups => cleanup.iter().all(|cleanup| {
            let name = cleanup_job_name(wanted, &cleanup.generation);
            observed.jobs.iter().any(|job| job.name == name && matches!(job.state, JobState::Succeeded(_)))
        }),
        DeletionStep::Done => false,
    };
    if !is_done {
        return at(recorded.step);
    }
    let order = [
        (DeletionStep::StopReplicationManager, true),
        (DeletionStep::ReleaseUpstream, cache.spec.deletion.upstream == DeletionPolicy::Delete),
        (DeletionStep::DeleteBackups, deletes_backups(&cache.spec)),
        (DeletionStep::Done, true),
    ];
    let following = order.iter().find(|(step, is_needed)| *step > recorded.step && *is_needed);
    let step = following.map_or(DeletionStep::Done, |(step, _)| *step);
    let has_told = events.len() > told;
    if recorded.step >= DeletionStep::ReleaseUpstream && !has_told && was_made {
        events.push(Event::normal(event::RELEASED, format!("{:?} is done", recorded.step)));
    }
    at(step)
}

/// Pods may have run, so that there may be something to release.
fn was_made(cache: &ZeroCache, observed: &Observed) -> bool {
    let recorded = cache.status.as_ref();
    observed.kept != Kept::Nothing && observed.kept != Kept::Unknown
        || recorded.is_some_and(|status| status.current_revision.is_some())
        || observed.stateful_set.is_some()
        || observed.pods.iter().any(|pod| pod.role != Role::ViewSyncer)
}

/// Upstream was reached by the operator or by a pod.
fn was_reached(cache: &ZeroCache) -> bool {
    let recorded = cache.status.as_ref();
    recorded.is_some_and(|status| status.upstream.is_some() || status.current_revision.is_some())
}

/// Why no Job can delete the backups.
fn left_backups(wanted: &Wanted, observed: &Observed) -> Option<String> {
    if observed.is_namespace_leaving {
        return Some("no Job can be made in a namespace that is being deleted".to_owned());
    }
    wanted.missing_store_keys()
}

fn message(step: DeletionStep, observed: &Observed) -> String {
    match (step, &observed.release) {
        (DeletionStep::StopViewSyncers, _) => "waiting for view-syncers to drain".to_owned(),
        (DeletionStep::StopReplicationManager, _) => "waiting for the replication-manager to stop".to_owned(),
        (DeletionStep::ReleaseUpstream, Some(Err(error))) => format!("release upstream: {error}"),
        (DeletionStep::ReleaseUpstream, _) => "dropping the replication slot and the publications".to_owned(),
        (DeletionStep::DeleteBackups, _) => {
            let failed = observed.jobs.iter().find_map(|job| match &job.state {
                JobState::Failed(text) => Some(format!("Job {} failed: {text}", job.name)),
                JobState::Running | JobState::Succeeded(_) => None,
            });
            failed.unwrap_or_else(|| "waiting for the Jobs that delete the backups".to_owned())
        }
        (DeletionStep::Done, _) => "nothing is left to release".to_owned(),
    }
}

fn report(cache: &ZeroCache, plan: &mut Plan, next: DeletionStatus, observed: &Observed) {
    if plan.status.deletion.as_ref().map(|it| it.step) != Some(next.step) {
        plan.look_again_seconds = 0;
    }
    let text = observed.failure.clone().unwrap_or_else(|| next.message.clone());
    plan.status.deletion = Some(next);
    conditions::deleting(cache, &mut plan.status, reason::DELETING, &text, observed.now);
}
