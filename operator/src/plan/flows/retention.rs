//! What becomes of the backups of retired generations.
//!
//! ```text
//! Kept -> Deleting -> Deleted
//!   ^        +-> Failed (a person looks; deleting the failed Job tries again)
//!   +---------------+
//! ```
//!
//! Only generations recorded here are candidates, and each guard is checked at every plan: a generation that became current
//! again, or that a pod still serves, is not deleted.

use crds::status::{ResetStatus, ResetStep, RetiredGeneration, RetiredState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::super::objects::{Cleanup, cleanup_job_name};
use super::super::seconds_between;
use super::super::wanted::Wanted;
use crate::observe::{JobState, Observed};

/// Objects written so long after a generation was retired mean that somebody still uses it.
const AFTERMATH_SECONDS: i64 = 600;
/// Most generations remembered.
const REMEMBERED: usize = 50;

/// What is known of the generations in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct InUse<'a> {
    pub current: &'a str,
    pub reset: Option<&'a ResetStatus>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Retention {
    pub retired: Vec<RetiredGeneration>,
    /// What Jobs delete now.
    pub cleanup: Vec<Cleanup>,
    /// Generations that were deleted since the last plan, with the number of objects.
    pub deleted: Vec<(String, Option<i64>)>,
    pub failed: Vec<String>,
}

/// Adds a generation that is not used any longer.
pub(super) fn retire(retired: &mut Vec<RetiredGeneration>, wanted: &Wanted, name: &str, now: Timestamp) {
    let Some(url) = wanted.backup_url(name) else { return };
    retired.retain(|generation| generation.name != name);
    retired.push(RetiredGeneration {
        name: name.to_owned(),
        url,
        retired_at: Time(now),
        state: RetiredState::Kept,
        objects_deleted: None,
    });
    while retired.len() > REMEMBERED {
        let gone = retired.iter().position(|generation| generation.state == RetiredState::Deleted);
        retired.remove(gone.unwrap_or(0));
    }
}

pub(super) fn next(recorded: &[RetiredGeneration], wanted: &Wanted, in_use: InUse, observed: &Observed) -> Retention {
    let mut outcome = Retention { retired: recorded.to_vec(), ..Retention::default() };
    // A generation that is used again is not retired any longer.
    let is_used = |name: &str| {
        let of_reset = |it: &ResetStatus| it.from == name || (it.to == name && it.step > ResetStep::Requested);
        name == in_use.current || in_use.reset.is_some_and(of_reset)
    };
    outcome.retired.retain(|generation| !is_used(&generation.name));
    let policy = wanted.spec.backup.as_ref().map(|backup| &backup.retention).filter(|policy| policy.enabled);
    let mut newest_first: Vec<usize> = (0..outcome.retired.len()).collect();
    newest_first.sort_by_key(|index| std::cmp::Reverse(outcome.retired[*index].retired_at.0));
    let mut kept = 0;
    for index in newest_first {
        let generation = &mut outcome.retired[index];
        let job_name = cleanup_job_name(wanted, &generation.name);
        let job = observed.jobs.iter().find(|job| job.name == job_name).map(|job| &job.state);
        match (generation.state, job) {
            (RetiredState::Deleted, _) => continue,
            (RetiredState::Deleting, Some(JobState::Succeeded(count))) => {
                generation.state = RetiredState::Deleted;
                generation.objects_deleted = *count;
                outcome.deleted.push((generation.name.clone(), *count));
                continue;
            }
            (RetiredState::Deleting, Some(JobState::Failed(message))) => {
                generation.state = RetiredState::Failed;
                outcome.failed.push(format!("{}: {message}", generation.name));
                continue;
            }
            (RetiredState::Failed, Some(JobState::Failed(message))) => {
                outcome.failed.push(format!("{}: {message}", generation.name));
                continue;
            }
            (RetiredState::Failed, _) => generation.state = RetiredState::Kept,
            // Somebody wants it back: nothing is begun, and what is begun is awaited.
            (RetiredState::Deleting, Some(JobState::Running)) if generation.name == wanted.spec.generation => continue,
            (RetiredState::Kept | RetiredState::Deleting, _) if generation.name == wanted.spec.generation => {
                generation.state = RetiredState::Kept;
                continue;
            }
            (RetiredState::Kept | RetiredState::Deleting, _) => {}
        }
        let Some(policy) = policy else {
            generation.state = RetiredState::Kept;
            continue;
        };
        if kept < policy.keep_generations {
            kept += 1;
            generation.state = RetiredState::Kept;
            continue;
        }
        let is_old = seconds_between(generation.retired_at.0, observed.now) >= policy.min_age.seconds();
        if !is_old || !may_delete(generation, wanted, observed) {
            generation.state = RetiredState::Kept;
            continue;
        }
        // The Job is made for what was recorded before.
        if generation.state == RetiredState::Deleting {
            outcome.cleanup.push(cleanup(generation));
        }
        generation.state = RetiredState::Deleting;
    }
    outcome
}

/// All generations, for a resource that is deleted together with its backups.
pub(super) fn everything(recorded: &[RetiredGeneration], wanted: &Wanted, current: &[&str]) -> Vec<Cleanup> {
    let used = current.iter().filter_map(|name| {
        let url = wanted.backup_url(name)?;
        Some(Cleanup { generation: (*name).to_owned(), url, unless_written_after: i64::MAX })
    });
    let retired =
        recorded.iter().filter(|it| it.state != RetiredState::Deleted && !current.contains(&it.name.as_str()));
    let retired = retired.filter(|generation| is_below(generation, wanted));
    used.chain(retired.map(|it| Cleanup { unless_written_after: i64::MAX, ..cleanup(it) })).collect()
}

fn cleanup(generation: &RetiredGeneration) -> Cleanup {
    Cleanup {
        generation: generation.name.clone(),
        url: generation.url.clone(),
        unless_written_after: generation.retired_at.0.as_second() + AFTERMATH_SECONDS,
    }
}

fn may_delete(generation: &RetiredGeneration, wanted: &Wanted, observed: &Observed) -> bool {
    is_below(generation, wanted) && !observed.pods.iter().any(|pod| pod.generation == generation.name)
}

/// The recorded place is exactly the generation's folder below the backup's URL of today.
fn is_below(generation: &RetiredGeneration, wanted: &Wanted) -> bool {
    let name = generation.name.as_str();
    let is_plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    is_plain && wanted.backup_url(name).is_some_and(|url| url == generation.url)
}
