//! From Kubernetes' objects to the facts that planning needs. Pure: the objects come from a watch or from a test.

use std::collections::BTreeMap;

use crds::names::{FIELD_MANAGER, annotation, component, label};
use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicObject;
use sha2::{Digest as _, Sha256};

use super::{Claim, ClaimTemplate, Deployment, Job, JobState, Pod, PodTrouble, Role, Route, Secret, StatefulSet};

impl From<&apps::StatefulSet> for StatefulSet {
    fn from(set: &apps::StatefulSet) -> StatefulSet {
        let (spec, status) = (set.spec.as_ref(), set.status.as_ref());
        let template = spec.and_then(|spec| spec.template.metadata.as_ref());
        let claim = spec.and_then(|spec| spec.volume_claim_templates.as_ref()?.first()?.spec.as_ref());
        StatefulSet {
            uid: set.metadata.uid.clone().unwrap_or_default(),
            selector: spec.and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default(),
            replicas: spec.and_then(|spec| spec.replicas).unwrap_or(1),
            revision: text(template, annotation::REVISION),
            secrets: text(template, annotation::SECRETS),
            restarted_at: template.and_then(|it| it.annotations.as_ref()?.get(annotation::RESTARTED_AT)).cloned(),
            is_observed: is_observed(&set.metadata, status.and_then(|status| status.observed_generation)),
            available: status.and_then(|status| status.available_replicas).unwrap_or(0),
            claim: claim.and_then(requested).map(|size| ClaimTemplate { size }),
        }
    }
}

impl From<&apps::Deployment> for Deployment {
    fn from(deployment: &apps::Deployment) -> Deployment {
        let (spec, status) = (deployment.spec.as_ref(), deployment.status.as_ref());
        let template = spec.and_then(|spec| spec.template.metadata.as_ref());
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        Deployment {
            selector: spec.and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default(),
            replicas: spec.and_then(|spec| spec.replicas).unwrap_or(1),
            revision: text(template, annotation::REVISION),
            secrets: text(template, annotation::SECRETS),
            is_observed: is_observed(&deployment.metadata, status.and_then(|status| status.observed_generation)),
            updated: status.and_then(|status| status.updated_replicas).unwrap_or(0),
            available: status.and_then(|status| status.available_replicas).unwrap_or(0),
            deadline_exceeded: conditions
                .iter()
                .any(|it| it.type_ == "Progressing" && it.reason.as_deref() == Some("ProgressDeadlineExceeded")),
            replicas_are_ours: owns_replicas_alone(&deployment.metadata),
        }
    }
}

impl Pod {
    /// Nothing for pods that are over, and for those that are not of a role.
    #[must_use]
    pub fn read(pod: &core::Pod) -> Option<Pod> {
        let role = match pod.metadata.labels.as_ref()?.get(label::COMPONENT)?.as_str() {
            component::REPLICATION_MANAGER => Role::ReplicationManager,
            component::VIEW_SYNCER => Role::ViewSyncer,
            component::SINGLE_NODE => Role::SingleNode,
            _ => return None,
        };
        let status = pod.status.as_ref();
        // An evicted pod stays listed until it is collected.
        if matches!(status.and_then(|status| status.phase.as_deref()), Some("Failed" | "Succeeded")) {
            return None;
        }
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        Some(Pod {
            name: pod.metadata.name.clone()?,
            role,
            revision: text(Some(&pod.metadata), annotation::REVISION),
            generation: text(Some(&pod.metadata), annotation::GENERATION),
            is_ready: conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True"),
            is_terminating: pod.metadata.deletion_timestamp.is_some(),
            trouble: trouble(status, conditions),
        })
    }
}

fn trouble(status: Option<&core::PodStatus>, conditions: &[core::PodCondition]) -> Option<PodTrouble> {
    let unscheduled = conditions.iter().find(|it| it.type_ == "PodScheduled" && it.status == "False");
    if let Some(condition) = unscheduled {
        let why = condition.message.clone().unwrap_or_default();
        let is_volume = why.contains("PersistentVolumeClaim") || why.contains("persistentvolumeclaim");
        return Some(if is_volume { PodTrouble::VolumePending(why) } else { PodTrouble::Unschedulable(why) });
    }
    let containers = status?.container_statuses.as_deref().unwrap_or_default();
    let init = status?.init_container_statuses.as_deref().unwrap_or_default();
    init.iter().chain(containers).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let why = waiting.message.clone().unwrap_or_default();
        match waiting.reason.as_deref()? {
            "CrashLoopBackOff" => {
                let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
                let code = last.map_or_else(String::new, |end| format!(", exit code {}", end.exit_code));
                Some(PodTrouble::CrashLoop(format!("it crashed {} times{code}; see its log", container.restart_count)))
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                Some(PodTrouble::CrashLoop(why))
            }
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
                Some(PodTrouble::ImagePull(why))
            }
            _ => None,
        }
    })
}

impl From<&core::PersistentVolumeClaim> for Claim {
    fn from(claim: &core::PersistentVolumeClaim) -> Claim {
        let status = claim.status.as_ref();
        let capacity = status.and_then(|status| status.capacity.as_ref()?.get("storage"));
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let refused = conditions.iter().find(|it| it.type_.ends_with("ResizeError") && it.status == "True");
        Claim {
            name: claim.metadata.name.clone().unwrap_or_default(),
            requested: claim.spec.as_ref().and_then(requested).unwrap_or_default(),
            actual: capacity.map(|size| size.0.clone()),
            refused: refused.map(|it| it.message.clone().unwrap_or_default()),
        }
    }
}

impl Secret {
    /// Keeps hashes only.
    #[must_use]
    pub fn read(secret: &core::Secret) -> Secret {
        let hash = |value: &[u8]| Sha256::digest(value).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let data: BTreeMap<_, _> = secret.data.iter().flatten().collect();
        Secret { keys: data.into_iter().map(|(key, value)| (key.clone(), hash(&value.0))).collect() }
    }
}

impl From<&batch::Job> for Job {
    fn from(job: &batch::Job) -> Job {
        let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let ended = |kind: &str| conditions.iter().find(|it| it.type_ == kind && it.status == "True");
        let state = match (ended("Complete"), ended("Failed")) {
            (Some(_), _) => JobState::Succeeded(None),
            (None, Some(failed)) => JobState::Failed(failed.message.clone().unwrap_or_default()),
            (None, None) => JobState::Running,
        };
        Job { name: job.metadata.name.clone().unwrap_or_default(), state }
    }
}

impl Job {
    /// Takes in what its pod said at its end.
    pub fn ended_with(&mut self, line: &str) {
        match &mut self.state {
            JobState::Succeeded(count) => {
                *count = line.split(|c: char| !c.is_ascii_digit()).find_map(|word| word.parse().ok());
            }
            JobState::Failed(why) => line.clone_into(why),
            JobState::Running => {}
        }
    }
}

impl From<&networking::Ingress> for Route {
    fn from(ingress: &networking::Ingress) -> Route {
        let status = ingress.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let entries = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
        let addresses = entries.iter().filter_map(|entry| entry.hostname.clone().or_else(|| entry.ip.clone()));
        Route { addresses: addresses.collect(), refused: None }
    }
}

impl From<&DynamicObject> for Route {
    /// An HTTPRoute.
    fn from(route: &DynamicObject) -> Route {
        let mut read = Route::default();
        for parent in route.data["status"]["parents"].as_array().into_iter().flatten() {
            let name = parent["parentRef"]["name"].as_str().unwrap_or_default();
            let conditions = parent["conditions"].as_array().into_iter().flatten();
            match conditions.filter(|it| it["type"] == "Accepted").map(|it| (&it["status"], &it["message"])).next() {
                Some((status, _)) if status == "True" => read.addresses.push(name.to_owned()),
                Some((_, why)) => read.refused = Some(format!("{name}: {}", why.as_str().unwrap_or_default())),
                None => {}
            }
        }
        read
    }
}

fn text(metadata: Option<&ObjectMeta>, name: &str) -> String {
    metadata.and_then(|metadata| metadata.annotations.as_ref()?.get(name)).cloned().unwrap_or_default()
}

fn is_observed(metadata: &ObjectMeta, seen: Option<i64>) -> bool {
    metadata.generation.is_none_or(|generation| seen >= Some(generation))
}

fn requested(claim: &core::PersistentVolumeClaimSpec) -> Option<String> {
    Some(claim.resources.as_ref()?.requests.as_ref()?.get("storage")?.0.clone())
}

fn owns_replicas_alone(metadata: &ObjectMeta) -> bool {
    let owners: Vec<&str> = metadata
        .managed_fields
        .iter()
        .flatten()
        .filter(|entry| {
            let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
            fields.is_some_and(|fields| fields["f:spec"].get("f:replicas").is_some())
        })
        .filter_map(|entry| entry.manager.as_deref())
        .collect();
    owners == [FIELD_MANAGER]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_is_read() {
        let pod = |status: serde_json::Value| {
            Pod::read(&read(serde_json::json!({
                "metadata": {
                    "name": "shop-rm-0",
                    "labels": { "app.kubernetes.io/component": "replication-manager" },
                    "annotations": { "zerocache.dev/revision": "abc", "zerocache.dev/generation": "v1" },
                },
                "status": status,
            })))
        };
        let ready = pod(serde_json::json!({ "conditions": [{ "type": "Ready", "status": "True" }] })).unwrap();
        assert_eq!((ready.role, ready.revision.as_str(), ready.is_ready), (Role::ReplicationManager, "abc", true));
        assert_eq!(pod(serde_json::json!({ "phase": "Failed" })), None);
        let trouble = |status| pod(status).unwrap().trouble;
        let unscheduled = |message: &str| {
            let condition = serde_json::json!({ "type": "PodScheduled", "status": "False", "message": message });
            trouble(serde_json::json!({ "conditions": [condition] }))
        };
        assert!(matches!(unscheduled("0/3 nodes"), Some(PodTrouble::Unschedulable(_))));
        let unbound = "pod has unbound immediate PersistentVolumeClaims";
        assert!(matches!(unscheduled(unbound), Some(PodTrouble::VolumePending(_))));
        let waiting = |reason: &str| {
            trouble(serde_json::json!({ "containerStatuses": [{
                "name": "zero-cache", "image": "", "imageID": "", "ready": false, "restartCount": 3,
                "state": { "waiting": { "reason": reason, "message": "why" } },
                "lastState": { "terminated": { "exitCode": 255 } },
            }] }))
        };
        let crash = "it crashed 3 times, exit code 255; see its log".to_owned();
        assert_eq!(waiting("CrashLoopBackOff"), Some(PodTrouble::CrashLoop(crash)));
        assert_eq!(waiting("ImagePullBackOff"), Some(PodTrouble::ImagePull("why".to_owned())));
        assert_eq!(waiting("ContainerCreating"), None);
    }

    #[test]
    fn a_deployment_is_read() {
        let fields = |manager: &str, fields: serde_json::Value| serde_json::json!({ "manager": manager, "operation": "Apply", "fieldsV1": fields });
        let replicas = || serde_json::json!({ "f:spec": { "f:replicas": {} } });
        let deployment = |managers: Vec<serde_json::Value>, seen: i64| {
            Deployment::from(&read::<apps::Deployment>(serde_json::json!({
                "metadata": { "generation": 3, "managedFields": managers },
                "spec": {
                    "replicas": 4, "selector": { "matchLabels": { "a": "b" } },
                    "template": { "metadata": { "annotations": { "zerocache.dev/revision": "abc" } } },
                },
                "status": { "observedGeneration": seen, "updatedReplicas": 2, "availableReplicas": 1, "conditions": [
                    { "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded" },
                ] },
            })))
        };
        let alone = deployment(vec![fields(FIELD_MANAGER, replicas())], 2);
        assert_eq!((alone.replicas, alone.updated, alone.available, alone.revision.as_str()), (4, 2, 1, "abc"));
        assert_eq!(alone.selector, [("a".to_owned(), "b".to_owned())].into());
        assert!(alone.replicas_are_ours && alone.deadline_exceeded && !alone.is_observed);
        let shared = deployment(vec![fields(FIELD_MANAGER, replicas()), fields("autoscaler", replicas())], 3);
        assert!(!shared.replicas_are_ours && shared.is_observed);
        assert!(!deployment(vec![fields(FIELD_MANAGER, serde_json::json!({ "f:spec": {} }))], 3).replicas_are_ours);
    }

    #[test]
    fn a_stateful_set_and_its_claim_are_read() {
        let storage = |size: &str| serde_json::json!({ "resources": { "requests": { "storage": size } } });
        let set = StatefulSet::from(&read::<apps::StatefulSet>(serde_json::json!({
            "metadata": { "uid": "u", "generation": 1 },
            "spec": {
                "selector": {}, "template": { "metadata": { "annotations": { "zerocache.dev/revision": "abc" } } },
                "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": storage("20Gi") }],
            },
            "status": { "observedGeneration": 1, "availableReplicas": 1, "replicas": 1 },
        })));
        assert_eq!(set.claim, Some(ClaimTemplate { size: "20Gi".to_owned() }));
        assert_eq!((set.uid.as_str(), set.revision.as_str(), set.available, set.is_observed), ("u", "abc", 1, true));
        let claim = Claim::from(&read::<core::PersistentVolumeClaim>(serde_json::json!({
            "metadata": { "name": "data-shop-rm-0" }, "spec": storage("40Gi"),
            "status": {
                "capacity": { "storage": "20Gi" },
                "conditions": [{ "type": "ControllerResizeError", "status": "True", "message": "no" }],
            },
        })));
        assert_eq!((claim.requested.as_str(), claim.actual.as_deref()), ("40Gi", Some("20Gi")));
        assert_eq!(claim.refused.as_deref(), Some("no"));
    }

    #[test]
    fn a_route_is_read() {
        let ingress = serde_json::json!({ "status": { "loadBalancer": { "ingress": [{ "ip": "10.0.0.1" }] } } });
        let ingress = Route::from(&read::<networking::Ingress>(ingress));
        assert_eq!(ingress, Route { addresses: vec!["10.0.0.1".to_owned()], refused: None });
        let route = |status: &str| {
            let accepted = serde_json::json!([{ "type": "Accepted", "status": status, "message": "why" }]);
            Route::from(&read::<DynamicObject>(serde_json::json!({
                "metadata": {}, "status": { "parents": [{ "parentRef": { "name": "g" }, "conditions": accepted }] },
            })))
        };
        assert_eq!(route("True"), Route { addresses: vec!["g".to_owned()], refused: None });
        assert_eq!(route("False"), Route { addresses: Vec::new(), refused: Some("g: why".to_owned()) });
    }

    #[test]
    fn a_job_and_a_secret_are_read() {
        let job = |conditions: serde_json::Value, line: Option<&str>| {
            let job = serde_json::json!({ "metadata": { "name": "j" }, "status": { "conditions": conditions } });
            let mut job = Job::from(&read::<batch::Job>(job));
            line.into_iter().for_each(|line| job.ended_with(line));
            job.state
        };
        let ended = |kind: &str| serde_json::json!([{ "type": kind, "status": "True", "message": "why" }]);
        assert_eq!(job(ended("Complete"), Some("deleted 17 objects")), JobState::Succeeded(Some(17)));
        assert_eq!(job(ended("Complete"), None), JobState::Succeeded(None));
        assert_eq!(job(ended("Failed"), None), JobState::Failed("why".to_owned()));
        assert_eq!(job(ended("Failed"), Some("in use")), JobState::Failed("in use".to_owned()));
        assert_eq!(job(serde_json::json!([]), None), JobState::Running);
        let secret = |value: &str| Secret::read(&read(serde_json::json!({ "data": { "a": value } }))).keys["a"].clone();
        assert_eq!(secret("c2VjcmV0").len(), 16);
        assert_ne!(secret("c2VjcmV0"), secret("b3RoZXI="));
    }
}
