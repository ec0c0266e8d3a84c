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
pub(super) mod stream_tls;
mod view_syncer;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicObject;
use serde::Serialize;
use serde_json::Value;

use super::Wanted;
use super::budget::Pools;
use crate::observe::{Child, Role, Taken};
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
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Workload<T> {
    /// Bring it into this form.
    Apply(Box<T>),
    /// Leave it as it is, also where it is not there.
    #[default]
    Keep,
}

impl<T> Workload<T> {
    #[must_use]
    pub fn applied(&self) -> Option<&T> {
        match self {
            Workload::Apply(object) => Some(object),
            Workload::Keep => None,
        }
    }
}

fn document(object: &impl Serialize) -> Value {
    serde_json::to_value(object).expect("an object is made of strings, numbers, lists and maps")
}

/// Everything that should exist, in the order it is applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    pub secrets: Vec<GeneratedSecret>,
    pub service_account: Option<ServiceAccount>,
    pub services: Vec<Service>,
    pub network_policies: Vec<NetworkPolicy>,
    pub disruption_budgets: Vec<PodDisruptionBudget>,
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
        disruption_budgets: disruption::disruption_budgets(wanted, &meta),
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

/// Kinds and names of all objects that may be asked for by a resource as it is, clean-up Jobs left out: they come and go.
pub(super) fn names(cache: &crds::ZeroCache, wanted: &Wanted, apis: crate::observe::Apis) -> Vec<Child> {
    let is_scaled = wanted.spec.view_syncer.autoscaling.is_some() && !wanted.is_single();
    let workloads = Workloads {
        stateful_set: Workload::Keep,
        deployment: Workload::Keep,
        image: wanted.image.clone(),
        autoscaler: is_scaled.then_some(Bounds { min: 1, max: 1 }),
        cleanup: Vec::new(),
    };
    let mut names = build(cache, wanted, workloads, apis).children();
    let workload = |kind: &str, role| Child { kind: kind.to_owned(), name: wanted.workload_name(role) };
    names.push(workload("StatefulSet", wanted.main_role()));
    names.extend((!wanted.is_single()).then(|| workload("Deployment", Role::ViewSyncer)));
    names
}

impl Objects {
    /// Without those whose name is another's, and without what would send clients to a stranger or scale it.
    #[must_use]
    pub(super) fn spare(mut self, taken: &[Taken], wanted: &Wanted) -> Objects {
        let is_taken = |kind: &str, name: &str| taken.iter().any(|it| it.kind == kind && it.name == name);
        let is_free = |kind: &str, metadata: &ObjectMeta| !is_taken(kind, metadata.name.as_deref().unwrap_or_default());
        self.service_account = self.service_account.filter(|it| is_free("ServiceAccount", &it.metadata));
        self.services.retain(|it| is_free("Service", &it.metadata));
        self.network_policies.retain(|it| is_free("NetworkPolicy", &it.metadata));
        self.disruption_budgets.retain(|it| is_free("PodDisruptionBudget", &it.metadata));
        if self.stateful_set.applied().is_some_and(|it| !is_free("StatefulSet", &it.metadata)) {
            self.stateful_set = Workload::Keep;
        }
        if self.deployment.applied().is_some_and(|it| !is_free("Deployment", &it.metadata)) {
            self.deployment = Workload::Keep;
        }
        let scales = !is_taken("Deployment", &wanted.workload_name(Role::ViewSyncer));
        self.autoscaler = self.autoscaler.filter(|it| scales && is_free("HorizontalPodAutoscaler", &it.metadata));
        let leads = !is_taken("Service", &public_name(wanted));
        self.ingress = self.ingress.filter(|it| leads && is_free("Ingress", &it.metadata));
        self.http_route = self.http_route.filter(|it| leads && is_free("HTTPRoute", &it.metadata));
        self.pod_monitor = self.pod_monitor.filter(|it| is_free("PodMonitor", &it.metadata));
        self
    }

    /// All objects as documents, in the order they are applied. Generated Secrets have no data here.
    #[must_use]
    pub fn documents(&self) -> Vec<Value> {
        // Destructured so that a new kind cannot be forgotten here.
        let Objects {
            secrets,
            service_account,
            services,
            network_policies,
            disruption_budgets,
            stateful_set,
            deployment,
            autoscaler,
            ingress,
            http_route,
            pod_monitor,
            cleanup_jobs,
        } = self;
        let mut documents = Vec::new();
        documents.extend(secrets.iter().map(|generated| document(&generated.secret)));
        documents.extend(service_account.iter().map(document));
        documents.extend(services.iter().map(document));
        documents.extend(network_policies.iter().map(document));
        documents.extend(disruption_budgets.iter().map(document));
        documents.extend(stateful_set.applied().map(document));
        documents.extend(deployment.applied().map(document));
        documents.extend(autoscaler.iter().map(document));
        documents.extend(ingress.iter().map(document));
        documents.extend(http_route.iter().map(document));
        documents.extend(pod_monitor.iter().map(document));
        documents.extend(cleanup_jobs.iter().map(document));
        documents
    }

    /// Kinds and names of all objects.
    #[must_use]
    pub fn children(&self) -> Vec<Child> {
        // Destructured so that a new kind cannot be forgotten here.
        let Objects {
            secrets,
            service_account,
            services,
            network_policies,
            disruption_budgets,
            stateful_set,
            deployment,
            autoscaler,
            ingress,
            http_route,
            pod_monitor,
            cleanup_jobs,
        } = self;
        let mut children = Vec::new();
        let mut add = |kind: &str, metadata: &ObjectMeta| {
            let name = metadata.name.clone().unwrap_or_default();
            children.push(Child { kind: kind.to_owned(), name });
        };
        secrets.iter().for_each(|it| add("Secret", &it.secret.metadata));
        service_account.iter().for_each(|it| add("ServiceAccount", &it.metadata));
        services.iter().for_each(|it| add("Service", &it.metadata));
        network_policies.iter().for_each(|it| add("NetworkPolicy", &it.metadata));
        disruption_budgets.iter().for_each(|it| add("PodDisruptionBudget", &it.metadata));
        stateful_set.applied().iter().for_each(|it| add("StatefulSet", &it.metadata));
        deployment.applied().iter().for_each(|it| add("Deployment", &it.metadata));
        autoscaler.iter().for_each(|it| add("HorizontalPodAutoscaler", &it.metadata));
        ingress.iter().for_each(|it| add("Ingress", &it.metadata));
        http_route.iter().for_each(|it| add("HTTPRoute", &it.metadata));
        pod_monitor.iter().for_each(|it| add("PodMonitor", &it.metadata));
        cleanup_jobs.iter().for_each(|it| add("Job", &it.metadata));
        children
    }

    /// Children among `existing` that are not wanted any longer. Generated Secrets, Jobs and volume claims are never among them:
    /// the first hold what cannot be made again, the second end by themselves, the third hold data. Workloads stay while flows
    /// leave them alone.
    pub(super) fn orphans(&self, existing: &[Child], is_single: bool) -> Vec<Child> {
        let wanted = self.children();
        let is_wanted = |child: &Child| match child.kind.as_str() {
            "Secret" | "Job" | "PersistentVolumeClaim" | "StatefulSet" => true,
            "Deployment" => !is_single,
            _ => wanted.contains(child),
        };
        existing.iter().filter(|child| !is_wanted(child)).cloned().collect()
    }
}
