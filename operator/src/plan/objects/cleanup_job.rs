//! The Job that deletes a retired generation's backup, with the data plane's image and the resource's own credentials: the
//! operator needs no rights in the store.

use crds::names::{child, command};
use k8s_openapi::api::batch::v1::{Job, JobSpec};

use super::super::wanted::{Wanted, short_hash};
use super::meta::Meta;
use super::pod;

/// Where the kubelet looks for what a container says at its end; its default.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// What one Job deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::plan) struct Cleanup {
    pub generation: String,
    /// Without a slash at the end.
    pub url: String,
    /// The Job refuses when something was written after this time, for then somebody still uses it. Seconds since 1970.
    pub unless_written_after: i64,
}

/// Name of the Job for a generation.
pub(in crate::plan) fn name(wanted: &Wanted, generation: &str) -> String {
    child::cleanup(wanted.name, &short_hash(generation.as_bytes()))
}

pub(super) fn job(wanted: &Wanted, meta: &Meta, image: &str, cleanup: &Cleanup) -> Job {
    let arguments = command::DELETE_BACKUP.iter().map(|word| (*word).to_owned());
    // The slash keeps `v1` from matching `v10`.
    let options = [
        format!("--url={}/", cleanup.url),
        format!("--unless-written-after={}", cleanup.unless_written_after),
        format!("--report={TERMINATION_LOG}"),
    ];
    Job {
        metadata: meta.cleanup(name(wanted, &cleanup.generation)),
        spec: Some(JobSpec {
            backoff_limit: Some(3),
            ttl_seconds_after_finished: Some(3600),
            template: pod::command(wanted, image, arguments.chain(options).collect(), meta),
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}
