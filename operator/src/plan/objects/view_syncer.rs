//! The Deployment of the nodes that serve clients.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};

use super::super::wanted::{Wanted, version_of};
use super::meta::Meta;
use super::pod::Template;
use crate::observe::Role;

/// Without `replicas` the number of pods is left to whoever else sets it. `selector` is that of the existing one.
pub(in crate::plan) fn deployment(
    cache: &crds::ZeroCache,
    wanted: &Wanted,
    template: &Template,
    image: &str,
    replicas: Option<i32>,
    selector: Option<&BTreeMap<String, String>>,
) -> Deployment {
    let role = Role::ViewSyncer;
    let meta = Meta::new(cache, &version_of(image));
    let given = &wanted.spec.view_syncer;
    Deployment {
        metadata: meta.of(role, wanted.workload_name(role)),
        spec: Some(DeploymentSpec {
            replicas,
            selector: meta.selector_of(role, selector),
            template: template.template.clone(),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(given.max_surge.clone()),
                    max_unavailable: Some(given.max_unavailable.clone()),
                }),
            }),
            min_ready_seconds: Some(given.min_ready_seconds),
            // Must be longer than the time a pod has to be ready for.
            progress_deadline_seconds: Some(given.startup_timeout_seconds.max(given.min_ready_seconds) + 300),
            revision_history_limit: Some(5),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}
