//! Conditions about parts: pods, databases, backup, route, and what is wrong while clients are served.

use crds::conditions::{kind, reason};
use crds::spec::Provider;
use crds::status::ZeroCacheStatus;

use super::super::seconds_between;
use super::super::wanted::is_moving;
use super::{Context, Finding, Hold, Truth, finding, is_multi};
use crate::observe::{BackupFault, Fault, Nodes, Observed, Pod, PodTrouble, Probe, Role, StoreFault};

/// A replica further behind than this is worth a person's look.
const LAG_SECONDS_MAX: u64 = 60;

pub(super) fn replication_manager(context: &Context) -> Finding {
    let kind = kind::REPLICATION_MANAGER_READY;
    let no = |reason, text: String| finding(kind, Truth::False, reason, text);
    let mut pods: Vec<&Pod> = context.observed.pods_of(context.wanted.main_role()).collect();
    pods.sort_by_key(|pod| (pod.is_terminating, !pod.is_ready));
    let nodes = context.observed.nodes.as_ref();
    match pods.first() {
        Some(pod) if pod.is_ready && !pod.is_terminating => {
            let others = pods.iter().skip(1).filter(|pod| !pod.is_terminating).map(|pod| match pod.is_ready {
                true => format!("; {} too", pod.name),
                false => format!("; {} is not", pod.name),
            });
            let others: String = others.collect();
            finding(kind, Truth::True, reason::READY, format!("{} is ready{others}", pod.name))
        }
        Some(pod) => match &pod.trouble {
            Some(trouble) => {
                let (reason, text) = trouble_of(trouble);
                no(reason, format!("{}: {text}", pod.name))
            }
            None if nodes.is_some_and(|nodes| nodes.initial_sync) => {
                no(reason::INITIAL_SYNC, format!("{} copies the tables from upstream", pod.name))
            }
            None if nodes.is_some_and(|nodes| nodes.restoring) => {
                no(reason::RESTORING, format!("{} restores the replica from the backup", pod.name))
            }
            None => no(reason::STARTING, format!("{} is not ready yet", pod.name)),
        },
        None if context.wanted.spec.suspended => no(reason::SUSPENDED, "no pod runs".to_owned()),
        None => no(reason::STARTING, "there is no pod yet".to_owned()),
    }
}

pub(super) fn view_syncers(context: &Context) -> Option<Finding> {
    if !is_multi(context) {
        return None;
    }
    let kind = kind::VIEW_SYNCERS_READY;
    let pods: Vec<&Pod> = context.observed.pods_of(Role::ViewSyncer).filter(|pod| !pod.is_terminating).collect();
    let deployment = context.observed.deployment.as_ref();
    let wanted = context.syncers_wanted.or_else(|| deployment.map(|it| it.replicas)).unwrap_or(1);
    let ready = i32::try_from(pods.iter().filter(|pod| pod.is_ready).count()).unwrap_or(i32::MAX);
    let text = format!("{ready} of {wanted} are ready");
    let no = |reason, text| Some(finding(kind, Truth::False, reason, text));
    if context.wanted.spec.suspended {
        return no(reason::SUSPENDED, text);
    }
    if context.power.holds_syncers || (deployment.is_none() && pods.is_empty()) {
        return no(reason::WAITING_FOR_REPLICATION_MANAGER, text);
    }
    if ready >= wanted {
        return Some(finding(kind, Truth::True, reason::READY, text));
    }
    match pods.iter().find_map(|pod| pod.trouble.as_ref().map(|trouble| (pod, trouble))) {
        Some((pod, trouble)) => {
            let (reason, why) = trouble_of(trouble);
            no(reason, format!("{text}; {}: {why}", pod.name))
        }
        None => no(reason::SCALING, text),
    }
}

fn trouble_of(trouble: &PodTrouble) -> (&'static str, &str) {
    match trouble {
        PodTrouble::CrashLoop(text) => (reason::CRASH_LOOP, text),
        PodTrouble::ImagePull(text) => (reason::IMAGE_PULL_FAILED, text),
        PodTrouble::Unschedulable(text) => (reason::UNSCHEDULABLE, text),
        PodTrouble::VolumePending(text) => (reason::VOLUME_PENDING, text),
    }
}

/// Who receives changes reaches the server, whether the operator does or not.
fn is_streaming(observed: &Observed) -> bool {
    observed.nodes.as_ref().and_then(|nodes| nodes.streaming) == Some(true)
}

/// The first fault of a database: the field that names it, what was found, and its cure.
pub(in crate::plan) fn database_fault(observed: &Observed) -> Option<(&'static str, String)> {
    let databases = &observed.databases;
    let probes = [("upstream", &databases.upstream), ("cvr", &databases.cvr), ("change", &databases.change)];
    probes.into_iter().find_map(|(name, probe)| {
        let fault = probe.as_ref()?.fault.as_ref()?;
        if name == "upstream" && matches!(fault, Fault::Unreachable(_)) && is_streaming(observed) {
            return None;
        }
        let (reason, cure) = match fault {
            Fault::InvalidUrl(_) => (reason::INVALID_URL, "write the URL into the Secret's key"),
            Fault::Unreachable(_) => (
                reason::UNREACHABLE,
                "check host and port of the URL, and that pods and the operator may connect to it",
            ),
            Fault::LoginRefused(_) => {
                (reason::LOGIN_REFUSED, "check user and password of the URL, and pg_hba.conf of the server")
            }
            Fault::NoDatabase(_) => (reason::NO_DATABASE, "create the database, or name another in the URL"),
            Fault::Standby(_) => (reason::STANDBY, "name the primary server in the URL"),
            Fault::WalLevel(_) => (reason::WAL_LEVEL_NOT_LOGICAL, "set wal_level = logical and restart the server"),
            Fault::VersionTooOld(_) => (reason::VERSION_TOO_OLD, "use Postgres 15 or later"),
            Fault::NoReplicationRole(_) => (
                reason::NO_REPLICATION_ROLE,
                "give the role the attribute REPLICATION, or what your provider has for it",
            ),
            Fault::SlotsExhausted(_) => {
                (reason::SLOTS_EXHAUSTED, "raise max_replication_slots and max_wal_senders, or drop unused slots")
            }
        };
        Some((reason, format!("databases.{name}.urlSecretRef: {}; {cure}", fault.text())))
    })
}

/// Why the backup's store cannot be used: the field that names it, what was found, and its cure.
pub(in crate::plan) fn store_fault(observed: &Observed) -> Option<(&'static str, String)> {
    let fault = observed.store_fault.as_ref()?;
    // Pods may reach what the operator does not, and then tell so.
    let is_written = |nodes: &Nodes| nodes.snapshot_of.is_some() && nodes.backup_fault.is_none();
    if matches!(fault, StoreFault::Unreachable(_)) && observed.nodes.as_ref().is_some_and(is_written) {
        return None;
    }
    Some(match fault {
        StoreFault::NoSuchBucket(text) => {
            (reason::NO_SUCH_BUCKET, format!("backup.url: {text}; create the bucket, or name another"))
        }
        StoreFault::AccessDenied(text) => (
            reason::ACCESS_DENIED,
            format!("backup.credentialsSecretRef: {text}; check the keys and what they may do there"),
        ),
        StoreFault::Unreachable(text) => {
            (reason::UNREACHABLE, format!("backup.endpoint: {text}; check backup.endpoint and backup.region"))
        }
    })
}

pub(super) fn upstream(context: &Context) -> Finding {
    let kind = kind::UPSTREAM_READY;
    if let Some(Hold::SecretsMissing(missing)) = context.hold {
        let text = format!("{}; make them in namespace {}", missing.join("; "), context.wanted.namespace);
        return finding(kind, Truth::False, reason::SECRET_MISSING, text);
    }
    if let Some((reason, text)) = database_fault(context.observed) {
        return finding(kind, Truth::False, reason, text);
    }
    match &context.observed.databases.upstream {
        Some(Probe { fault: Some(fault), .. }) => {
            let text = format!(
                "the operator cannot ask the server ({}), but the replication-manager receives changes from it",
                fault.text()
            );
            finding(kind, Truth::Unknown, reason::NOT_CHECKED, text)
        }
        Some(_) => finding(kind, Truth::True, reason::CHECKS_PASSED, ""),
        None => finding(kind, Truth::Unknown, reason::NOT_CHECKED, "the databases were not asked yet"),
    }
}

pub(super) fn backup(context: &Context) -> Finding {
    let kind = kind::BACKUP_HEALTHY;
    let Some(backup) = &context.wanted.spec.backup else {
        return finding(kind, Truth::Unknown, reason::NOT_CONFIGURED, "there is no backup");
    };
    if let Some((reason, text)) = store_fault(context.observed) {
        return finding(kind, Truth::False, reason, text);
    }
    let Some(nodes) = &context.observed.nodes else {
        return finding(kind, Truth::Unknown, reason::NOT_CHECKED, "the replication-manager does not answer");
    };
    match &nodes.backup_fault {
        Some(BackupFault::AccessDenied(text)) => {
            let text = format!("{text}; check backup.credentialsSecretRef and the rights on {}", backup.url);
            return finding(kind, Truth::False, reason::ACCESS_DENIED, text);
        }
        Some(BackupFault::Failing(text)) => return finding(kind, Truth::False, reason::STALE, text),
        None => {}
    }
    let age = nodes.last_backup_at.map(|at| seconds_between(at, context.observed.now));
    let most = 3 * backup.snapshot_interval.seconds();
    match (&nodes.snapshot_of, age) {
        (None, _) => finding(kind, Truth::False, reason::NO_SNAPSHOT_YET, "no snapshot is written yet"),
        (Some(_), Some(age)) if age >= most => {
            finding(kind, Truth::False, reason::STALE, format!("nothing was written for more than {most} s"))
        }
        (Some(_), _) => finding(kind, Truth::True, reason::RECENT, ""),
    }
}

pub(super) fn route(context: &Context) -> Finding {
    let kind = kind::ROUTE_ACCEPTED;
    let given = &context.wanted.spec.ingress;
    if !given.enabled {
        return finding(kind, Truth::Unknown, reason::DISABLED, "ingress.enabled is false");
    }
    if given.provider == Provider::GatewayAPI && !context.observed.apis.http_routes {
        let text = "the cluster does not know HTTPRoutes; install the Gateway API";
        return finding(kind, Truth::False, reason::API_MISSING, text);
    }
    match &context.observed.route {
        Some(route) if !route.addresses.is_empty() => {
            finding(kind, Truth::True, reason::ACCEPTED, route.addresses.join(", "))
        }
        Some(route) if route.refused.is_some() => {
            finding(kind, Truth::False, reason::NO_ADDRESS, route.refused.clone().unwrap_or_default())
        }
        _ => finding(kind, Truth::False, reason::NO_ADDRESS, "no controller has given the route an address yet"),
    }
}

/// What is wrong, the worst first.
pub(super) fn degraded(context: &Context, next: &ZeroCacheStatus, is_stalled: bool, backup: &Finding) -> Finding {
    let yes = |reason, text: String| finding(kind::DEGRADED, Truth::True, reason, text);
    let nodes = context.observed.nodes.as_ref();
    let upstream = context.observed.databases.upstream.as_ref();
    // A first copy makes its slot before it is remembered.
    let is_lost = upstream.is_some_and(|probe| probe.slot_lost) && next.current_revision.is_some();
    if nodes.is_some_and(|nodes| nodes.slot_lost) || (is_lost && !nodes.is_some_and(|nodes| nodes.initial_sync)) {
        let text =
            "the replication slot is lost; replication goes on only with a new generation, or by itself with autoReset";
        return yes(reason::REPLICATION_STOPPED, text.to_owned());
    }
    if is_stalled {
        return yes(reason::ROLLOUT_STALLED, "see UpgradeStalled and ResetBlocked".to_owned());
    }
    let crashing = context.observed.pods_of(Role::ViewSyncer).find_map(|pod| match &pod.trouble {
        Some(PodTrouble::CrashLoop(text)) if !pod.is_terminating => Some(format!("{}: {text}", pod.name)),
        _ => None,
    });
    if let Some(text) = crashing {
        return yes(reason::VIEW_SYNCER_CRASH_LOOPING, text);
    }
    let serves = |role| context.observed.pods_of(role).any(|pod| pod.is_ready && !pod.is_terminating);
    let is_settled = next.upgrade.is_none() && next.reset.is_none() && next.suspension.is_none();
    if is_settled && next.current_revision.is_some() && !serves(context.wanted.main_role()) {
        let text = "the replication-manager does not run; clients see no changes until it does";
        return yes(reason::REPLICATION_MANAGER_DOWN, text.to_owned());
    }
    let standby_trouble = context.observed.pods_of(Role::ReplicationManager).find_map(|pod| {
        let (_, text) = trouble_of(pod.trouble.as_ref()?);
        Some(format!("{} cannot take over: {text}", pod.name)).filter(|_| !pod.is_ready && !pod.is_terminating)
    });
    if let Some(text) =
        standby_trouble.filter(|_| is_settled && context.wanted.spec.replication_manager.standby.enabled)
    {
        return yes(reason::STANDBY_DOWN, text);
    }
    if let Some(lag) = nodes.and_then(|nodes| nodes.lag_seconds).filter(|lag| *lag > LAG_SECONDS_MAX) {
        // Rounded, for a number that always moves would be written always.
        let text = format!("the replica is more than {} min behind upstream", lag / 60);
        return yes(reason::REPLICATION_LAG_HIGH, text);
    }
    if backup.status == Truth::False && backup.reason != reason::NO_SNAPSHOT_YET {
        return yes(reason::BACKUP_STALE, backup.message.clone());
    }
    if let Some(text) = context.volume_refused {
        let text = format!("the volume cannot grow ({text}); use a storage class with allowVolumeExpansion");
        return yes(reason::VOLUME_NOT_EXPANDABLE, text);
    }
    if !context.cleanup_failures.is_empty() {
        let text = format!("{}; delete the failed Job to try again", context.cleanup_failures.join("; "));
        return yes(reason::CLEANUP_FAILED, text);
    }
    if is_moving(&context.wanted.image) {
        let text = format!("{} may mean another image tomorrow; give a version or a digest", context.wanted.image);
        return yes(reason::MOVING_TAG, text);
    }
    finding(kind::DEGRADED, Truth::False, reason::NONE, "")
}
