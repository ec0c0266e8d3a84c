//! Children: one file a kind, each a function from the wishes to a typed object.
//!
//! Fields that mean "unset" are absent, never empty, so that server-side apply owns nothing it does not mean.

mod autoscaler;
mod cleanup_job;
mod disruption;
pub(super) mod env;
mod http_route;
mod ingress;
mod meta;
mod network_policies;
mod pod;
mod pod_monitor;
mod replication_manager;
mod secrets;
mod service_account;
mod services;
mod view_syncer;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::DynamicObject;
use serde::Serialize;

use super::Wanted;
use super::budget::Pools;
use crate::observe::Child;
pub(super) use meta::selector_text;
pub(super) use pod::{Template, template};
pub use secrets::GeneratedSecret;
pub(super) use services::public_name;

/// What a template is rendered for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Render {
    pub image: String,
    pub generation: String,
    pub pools: Pools,
}

/// A workload's fate.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Workload<T> {
    /// Bring it into this form.
    Apply(Box<T>),
    /// Leave it as it is, also where it is not there.
    #[default]
    Keep,
}

/// Everything that should exist, in the order it is applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    pub secrets: Vec<GeneratedSecret>,
    pub service_account: Option<ServiceAccount>,
    pub services: Vec<Service>,
    pub network_policies: Vec<NetworkPolicy>,
    pub disruption_budget: Option<PodDisruptionBudget>,
    pub stateful_set: Workload<StatefulSet>,
    pub deployment: Workload<Deployment>,
    pub autoscaler: Option<HorizontalPodAutoscaler>,
    pub ingress: Option<Ingress>,
    pub http_route: Option<DynamicObject>,
    pub pod_monitor: Option<DynamicObject>,
    pub cleanup_jobs: Vec<Job>,
}

/// What the flows decided about the workloads.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Workloads {
    pub stateful_set: Workload<StatefulSet>,
    pub deployment: Workload<Deployment>,
    /// Image whose version is written on children other than workloads.
    pub image: String,
    pub autoscaler: Option<autoscaler::Bounds>,
    /// Name and URL of generations to be deleted, with the time nothing may have been written after.
    pub cleanup: Vec<cleanup_job::Cleanup>,
}

pub(super) use autoscaler::Bounds;
pub(super) use cleanup_job::{Cleanup, name as cleanup_job_name};
pub(super) use replication_manager::stateful_set;
pub(super) use view_syncer::deployment;

/// All children.
pub(super) fn build(
    cache: &crds::ZeroCache,
    wanted: &Wanted,
    workloads: Workloads,
    apis: crate::observe::Apis,
) -> Objects {
    let meta = meta::Meta::new(cache, &super::wanted::version_of(&workloads.image));
    Objects {
        secrets: secrets::generated(wanted, &meta),
        service_account: service_account::service_account(wanted, &meta),
        services: services::services(wanted, &meta),
        network_policies: network_policies::network_policies(wanted, &meta),
        disruption_budget: disruption::disruption_budget(wanted, &meta),
        stateful_set: workloads.stateful_set,
        deployment: workloads.deployment,
        autoscaler: workloads.autoscaler.map(|bounds| autoscaler::autoscaler(wanted, &meta, bounds)),
        ingress: ingress::ingress(wanted, &meta),
        http_route: apis.http_routes.then(|| http_route::http_route(wanted, &meta)).flatten(),
        pod_monitor: pod_monitor::pod_monitor(wanted, &meta, apis),
        cleanup_jobs: workloads
            .cleanup
            .iter()
            .map(|cleanup| cleanup_job::job(wanted, &meta, &workloads.image, cleanup))
            .collect(),
    }
}

impl Objects {
    /// Children among `existing` that are not wanted any longer. Generated Secrets, Jobs and volume claims are never among them:
    /// the first hold what cannot be made again, the second end by themselves, the third hold data.
    pub(super) fn orphans(&self, existing: &[Child], is_single: bool) -> Vec<Child> {
        // Destructured so that a new kind cannot be forgotten here.
        let Objects {
            secrets: _,
            service_account,
            services,
            network_policies,
            disruption_budget,
            stateful_set: _,
            deployment: _,
            autoscaler,
            ingress,
            http_route,
            pod_monitor,
            cleanup_jobs: _,
        } = self;
        let mut wanted: Vec<(&str, &Option<String>)> = Vec::new();
        wanted.extend(service_account.iter().map(|it| ("ServiceAccount", &it.metadata.name)));
        wanted.extend(services.iter().map(|it| ("Service", &it.metadata.name)));
        wanted.extend(network_policies.iter().map(|it| ("NetworkPolicy", &it.metadata.name)));
        wanted.extend(disruption_budget.iter().map(|it| ("PodDisruptionBudget", &it.metadata.name)));
        wanted.extend(autoscaler.iter().map(|it| ("HorizontalPodAutoscaler", &it.metadata.name)));
        wanted.extend(ingress.iter().map(|it| ("Ingress", &it.metadata.name)));
        wanted.extend(http_route.iter().map(|it| ("HTTPRoute", &it.metadata.name)));
        wanted.extend(pod_monitor.iter().map(|it| ("PodMonitor", &it.metadata.name)));
        let is_wanted = |child: &Child| match child.kind.as_str() {
            "Secret" | "Job" | "PersistentVolumeClaim" | "StatefulSet" => true,
            "Deployment" => !is_single,
            kind => wanted.iter().any(|(known, name)| *known == kind && name.as_deref() == Some(&child.name)),
        };
        existing.iter().filter(|child| !is_wanted(child)).cloned().collect()
    }
}
