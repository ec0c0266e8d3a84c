//! The StatefulSet of the pod that reads the Postgres log, as a single node or for others, and of the one that stands by for it.
//!
//! A rollout begins with the last pod, and takes the first only once that is ready: whoever reads the log hands it over each time.

use std::collections::BTreeMap;

use crds::names::pod;
use crds::spec::StorageType;
use k8s_openapi::api::apps::v1::{
    StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::wanted::{Wanted, version_of};
use super::meta::Meta;
use super::pod::{Template, claim};

/// `claimed` is the size that the set's claims ask for, which is not the wanted one while a volume grows; `selector` is that of
/// the existing one.
pub(in crate::plan) fn stateful_set(
    cache: &crds::ZeroCache,
    wanted: &Wanted,
    template: &Template,
    image: &str,
    replicas: i32,
    claimed: &str,
    selector: Option<&BTreeMap<String, String>>,
) -> StatefulSet {
    let role = wanted.main_role();
    let meta = Meta::new(cache, &version_of(image));
    let storage = &wanted.spec.replication_manager.storage;
    let is_persistent = storage.r#type == StorageType::Persistent;
    StatefulSet {
        metadata: meta.of(role, wanted.workload_name(role)),
        spec: Some(StatefulSetSpec {
            replicas: Some(replicas),
            selector: meta.selector_of(role, selector),
            service_name: Some(wanted.headless_name()),
            template: template.template.clone(),
            pod_management_policy: Some("OrderedReady".to_owned()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: None,
            }),
            min_ready_seconds: Some(5),
            revision_history_limit: Some(5),
            volume_claim_templates: is_persistent.then(|| {
                let spec = Some(claim(claimed, storage.class_name.clone()));
                let labels = Some(meta.claimed(role.component()));
                let metadata = ObjectMeta { name: Some(pod::DATA_VOLUME.to_owned()), labels, ..ObjectMeta::default() };
                vec![PersistentVolumeClaim { metadata, spec, status: None }]
            }),
            persistent_volume_claim_retention_policy: is_persistent.then(|| {
                StatefulSetPersistentVolumeClaimRetentionPolicy {
                    when_deleted: Some(if storage.retain { "Retain" } else { "Delete" }.to_owned()),
                    when_scaled: Some("Retain".to_owned()),
                }
            }),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}
