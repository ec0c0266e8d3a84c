//! Counts, names and addresses of the status. Numbers that always move are refreshed only now and then, for each refresh is a
//! write.

use crds::names::child;
use crds::status::{BudgetStatus, Endpoints, ReplicationManagerStatus, ViewSyncerStatus, ZeroCacheStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::super::flows::Hold;
use super::super::objects::{env, public_name, selector_text};
use super::super::seconds_between;
use super::{Context, is_multi};
use crate::observe::{Pod, Role};

const REFRESH_BACKUP_SECONDS: u64 = 300;
const REFRESH_BUDGET_SECONDS: u64 = 3600;

pub(super) fn fill(context: &Context, next: &mut ZeroCacheStatus) {
    next.observed_generation = context.cache.metadata.generation;
    // Without the databases' answer it is not known which templates are wanted.
    let is_asking = context.hold == Some(&Hold::Asking) && context.recorded.replication_manager.is_some();
    if !is_asking {
        next.replication_manager = Some(replication_manager(context));
        next.view_syncer = is_multi(context).then(|| view_syncer(context));
        next.connection_budget = budget(context);
    }
    next.endpoints = Some(endpoints(context));
    next.storage = context.storage.clone();
}

fn replication_manager(context: &Context) -> ReplicationManagerStatus {
    let old = context.recorded.replication_manager.clone().unwrap_or_default();
    let pods: Vec<&Pod> =
        context.observed.pods_of(context.wanted.main_role()).filter(|pod| !pod.is_terminating).collect();
    let is_updated = !pods.is_empty() && pods.iter().all(|pod| pod.revision == context.manager_revision);
    let nodes = context.observed.nodes.clone().unwrap_or_default();
    let owner = pods.iter().find(|pod| nodes.streaming == Some(true) && pod.name == nodes.pod);
    let ready = || pods.iter().find(|pod| pod.is_ready);
    let has_standby = context.wanted.spec.replication_manager.standby.enabled;
    let is_old = match (&old.last_backup_at, nodes.last_backup_at) {
        (Some(old), Some(new)) => seconds_between(old.0, new) >= REFRESH_BACKUP_SECONDS,
        (None, _) => true,
        (Some(_), None) => false,
    };
    let is_fresh = is_old || old.replica_version.is_none();
    ReplicationManagerStatus {
        ready: ready().is_some() && is_updated,
        updated: is_updated,
        standby_ready: has_standby.then(|| pods.iter().filter(|pod| pod.is_ready).count() > 1),
        pod_name: owner.or_else(ready).or_else(|| pods.first()).map(|pod| pod.name.clone()),
        service_name: is_multi(context).then(|| child::replication_manager(context.wanted.name)),
        last_backup_at: if is_old { nodes.last_backup_at.map(Time).or(old.last_backup_at) } else { old.last_backup_at },
        replica_version: match is_fresh {
            true => nodes.replica_version.or(old.replica_version),
            false => old.replica_version,
        },
    }
}

fn view_syncer(context: &Context) -> ViewSyncerStatus {
    let (going, staying): (Vec<&Pod>, Vec<&Pod>) =
        context.observed.pods_of(Role::ViewSyncer).partition(|pod| pod.is_terminating);
    let count = |matches: &dyn Fn(&Pod) -> bool| {
        i32::try_from(staying.iter().filter(|pod| matches(pod)).count()).unwrap_or(i32::MAX)
    };
    ViewSyncerStatus {
        replicas: count(&|_| true),
        ready_replicas: count(&|pod| pod.is_ready),
        updated_replicas: count(&|pod| Some(pod.revision.as_str()) == context.syncer_revision),
        terminating_replicas: i32::try_from(going.len()).unwrap_or(i32::MAX),
        selector: Some(selector_text(context.wanted.name, Role::ViewSyncer)),
    }
}

fn budget(context: &Context) -> Vec<BudgetStatus> {
    let old = &context.recorded.connection_budget;
    let refreshed = context.budget.servers.iter().map(|new| {
        let known =
            old.iter().find(|old| old.server == new.server && old.required == new.required && old.limit == new.limit);
        let is_young = |old: &&BudgetStatus| match (&old.checked_at, &new.checked_at) {
            (Some(old), Some(new)) => seconds_between(old.0, new.0) < REFRESH_BUDGET_SECONDS,
            _ => false,
        };
        known.filter(is_young).unwrap_or(new).clone()
    });
    refreshed.collect()
}

fn endpoints(context: &Context) -> Endpoints {
    let wanted = context.wanted;
    let ingress = &wanted.spec.ingress;
    let scheme = if ingress.tls.is_some() { "https" } else { "http" };
    let inside = || {
        let port = crds::names::port::SYNC;
        format!("http://{}:{port}/", wanted.host_of(&public_name(wanted)))
    };
    let public = match ingress.hosts.first().filter(|_| ingress.enabled) {
        Some(host) => format!("{scheme}://{host}{}", ingress.path),
        None => inside(),
    };
    Endpoints { public: Some(public), change_streamer: is_multi(context).then(|| env::change_stream_uri(wanted)) }
}
