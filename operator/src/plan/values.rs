//! Quantities and shares of a stored document. Admission refuses those that Kubernetes would not take; one that was stored before it
//! did is named instead of being tried again and again.

use crds::ZeroCacheSpec;
use crds::quantity::{is_share, nanos};
use crds::spec::StorageType;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Problem;

const QUANTITY: &str = "a quantity such as 20Gi, 1.5G or 500m";
const SHARE: &str = "a number of pods, or a percentage such as \"25%\"";

pub(super) fn problems(spec: &ZeroCacheSpec) -> Vec<Problem> {
    let (manager, syncer) = (&spec.replication_manager, &spec.view_syncer);
    let mut found = Vec::new();
    let mut quantity = |field: String, value: &Quantity, least: u128| {
        if nanos(&value.0).is_none_or(|nanos| nanos < least) {
            found.push(Problem::Value { field, value: value.0.clone(), what: QUANTITY });
        }
    };
    let least = |kind: StorageType| u128::from(kind == StorageType::Persistent);
    quantity("spec.replicationManager.storage.size".to_owned(), &manager.storage.size, least(manager.storage.r#type));
    quantity("spec.viewSyncer.storage.size".to_owned(), &syncer.storage.size, least(syncer.storage.r#type));
    for (role, resources) in [("replicationManager", &manager.resources), ("viewSyncer", &syncer.resources)] {
        let ResourceRequirements { limits, requests, .. } = resources;
        for (part, amounts) in [("limits", limits), ("requests", requests)] {
            for (name, amount) in amounts.iter().flatten() {
                quantity(format!("spec.{role}.resources.{part}.{name}"), amount, 0);
            }
        }
    }
    if let Some(metric) = syncer.autoscaling.as_ref().and_then(|it| it.pods_metric.as_ref()) {
        quantity("spec.viewSyncer.autoscaling.podsMetric.targetAverage".to_owned(), &metric.target_average, 0);
    }
    let shares = [
        ("maxSurge", Some(&syncer.max_surge), true),
        ("maxUnavailable", Some(&syncer.max_unavailable), false),
        ("pdb.maxUnavailable", syncer.pdb.max_unavailable.as_ref(), false),
        ("pdb.minAvailable", syncer.pdb.min_available.as_ref(), false),
    ];
    for (field, value, may_exceed_all) in shares {
        let (is_good, text) = match value {
            Some(IntOrString::Int(count)) => (*count >= 0, count.to_string()),
            Some(IntOrString::String(text)) => (is_share(text, may_exceed_all), text.clone()),
            None => continue,
        };
        if !is_good {
            found.push(Problem::Value { field: format!("spec.viewSyncer.{field}"), value: text, what: SHARE });
        }
    }
    found
}
