//! The pods of all roles: one container, nothing it does not need.

use std::collections::BTreeMap;

use crds::names::{annotation, component, path, pod, port};
use crds::spec::{PodMonitorMode, StorageType};
use k8s_openapi::DeepMerge as _;
use k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EphemeralVolumeSource, HTTPGetAction, Lifecycle,
    LifecycleHandler, LocalObjectReference, PersistentVolumeClaimSpec, PersistentVolumeClaimTemplate,
    PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecurityContext,
    SleepAction, TopologySpreadConstraint, Volume, VolumeMount, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::wanted::{Wanted, short_hash, version_of};
use super::meta::Meta;
use super::{Render, env, stream_tls};
use crate::observe::Role;

/// A template and the hash that names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    pub template: PodTemplateSpec,
    pub revision: String,
    /// That its pods serve.
    pub generation: String,
}

pub(in crate::plan) fn template(cache: &crds::ZeroCache, wanted: &Wanted, role: Role, render: &Render) -> Template {
    let meta = Meta::new(cache, &version_of(&render.image));
    let placement = wanted.placement(role);
    let mut template = PodTemplateSpec { metadata: None, spec: Some(spec(wanted, role, render, &meta)) };
    if let Some(given) = wanted.override_of(role) {
        template.merge_from(given.clone());
    }
    // What follows is the operator's own and wins over the site's.
    let mut given = template.metadata.take().unwrap_or_default();
    let mut labels = given.labels.take().unwrap_or_default();
    labels.extend(placement.pod_labels.clone());
    labels.extend(meta.labels(role.component()));
    let mut annotations = given.annotations.take().unwrap_or_default();
    annotations.extend(placement.pod_annotations.clone());
    annotations.extend(scrape(wanted, role));
    annotations.insert(annotation::GENERATION.to_owned(), render.generation.clone());
    annotations.insert(annotation::SECRETS.to_owned(), wanted.secrets_hash(role));
    if let Some(at) = wanted.restarted_at {
        annotations.insert(annotation::RESTARTED_AT.to_owned(), at.to_owned());
    }
    template.metadata = Some(ObjectMeta { labels: Some(labels), annotations: Some(annotations.clone()), ..given });
    let revision = short_hash(&serde_json::to_vec(&template).expect("a template is made of strings and numbers"));
    annotations.insert(annotation::REVISION.to_owned(), revision.clone());
    if let Some(metadata) = &mut template.metadata {
        metadata.annotations = Some(annotations);
    }
    Template { template, revision, generation: render.generation.clone() }
}

/// From the end of a pod being asked for to its being killed, and what of that is over before the process hears of it.
fn grace_seconds(wanted: &Wanted, role: Role) -> (i32, i32) {
    let (syncer, manager) = (&wanted.spec.view_syncer, &wanted.spec.replication_manager);
    match role {
        Role::ViewSyncer => (syncer.termination_grace_period_seconds, syncer.pre_stop_delay_seconds),
        Role::ReplicationManager | Role::SingleNode => (manager.termination_grace_period_seconds, 0),
    }
}

/// What a process has to stop.
pub(super) fn stop_seconds(wanted: &Wanted, role: Role) -> i32 {
    let (grace, before) = grace_seconds(wanted, role);
    grace - before
}

fn spec(wanted: &Wanted, role: Role, render: &Render, meta: &Meta) -> PodSpec {
    let placement = wanted.placement(role);
    let (grace, _) = grace_seconds(wanted, role);
    let mut spread = placement.topology_spread_constraints.clone();
    if spread.is_empty() && role != Role::SingleNode {
        spread = ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
            .map(|key| TopologySpreadConstraint {
                max_skew: 1,
                topology_key: key.to_owned(),
                when_unsatisfiable: "ScheduleAnyway".to_owned(),
                label_selector: Some(meta.spread(role)),
                ..TopologySpreadConstraint::default()
            })
            .into();
    }
    let mut volumes = vec![Volume {
        name: pod::TEMPORARY_VOLUME.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    }];
    volumes.extend(data_volume(wanted, role));
    volumes.extend(stream_tls::volume(wanted, role));
    volumes.extend(placement.extra_volumes.iter().cloned());
    PodSpec {
        containers: vec![container(wanted, role, render)],
        volumes: Some(volumes),
        service_account_name: Some(wanted.service_account.clone()),
        automount_service_account_token: Some(false),
        // Variables made from Services would be read as settings.
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(i64::from(grace)),
        security_context: Some(pod_security(wanted)),
        image_pull_secrets: some_list(
            wanted.spec.image.pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect(),
        ),
        node_selector: some_map(&placement.node_selector),
        affinity: placement.affinity.clone(),
        tolerations: some_list(placement.tolerations.clone()),
        topology_spread_constraints: some_list(spread),
        priority_class_name: placement.priority_class_name.clone(),
        ..PodSpec::default()
    }
}

fn container(wanted: &Wanted, role: Role, render: &Render) -> Container {
    let placement = wanted.placement(role);
    let (syncer, manager) = (&wanted.spec.view_syncer, &wanted.spec.replication_manager);
    let (resources, startup) = match role {
        Role::ViewSyncer => (&syncer.resources, syncer.startup_timeout_seconds),
        Role::ReplicationManager | Role::SingleNode => (&manager.resources, manager.startup_timeout_seconds),
    };
    let (port_name, _) = probed(role);
    let asked = (port_name, stream_tls::is_probed_by_tls(wanted, role));
    let (sync, admin) = ((port::SYNC_NAME, port::SYNC), (port::ADMIN_NAME, port::ADMIN));
    let stream = (port::CHANGE_STREAM_NAME, port::CHANGE_STREAM);
    let ports = match role {
        Role::ReplicationManager => vec![stream],
        Role::ViewSyncer => vec![sync, admin],
        Role::SingleNode => vec![sync, stream, admin],
    };
    let mut mounts = vec![mount(pod::DATA_VOLUME, pod::DATA_PATH), mount(pod::TEMPORARY_VOLUME, pod::TEMPORARY_PATH)];
    mounts.extend(stream_tls::mount(wanted, role));
    mounts.extend(placement.extra_volume_mounts.iter().cloned());
    Container {
        name: pod::CONTAINER.to_owned(),
        image: Some(render.image.clone()),
        image_pull_policy: wanted.spec.image.pull_policy.map(|policy| format!("{policy:?}")),
        env: Some(env::variables(wanted, role, render)),
        env_from: some_list(placement.extra_env_from.clone()),
        ports: Some(
            ports
                .into_iter()
                .map(|(name, number)| ContainerPort {
                    name: Some(name.to_owned()),
                    container_port: number,
                    protocol: Some("TCP".to_owned()),
                    ..ContainerPort::default()
                })
                .collect(),
        ),
        resources: Some(with_disk(resources, wanted, role)),
        volume_mounts: Some(mounts),
        security_context: Some(container_security(wanted)),
        // Life is asked apart from readiness: a node that copies tables, catches up or drains must not be killed for it.
        // Replication pauses while the replication-manager is replaced: its first answer should be noticed at once.
        startup_probe: Some(probe(asked, path::LIVE, 1, 3, startup)),
        readiness_probe: Some(probe(asked, path::READY, 2, 3, 3)),
        liveness_probe: Some(probe(asked, path::LIVE, 10, 5, 6)),
        // There is no shell in the image.
        lifecycle: (role == Role::ViewSyncer && syncer.pre_stop_delay_seconds > 0).then(|| Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: i64::from(syncer.pre_stop_delay_seconds) }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        ..Container::default()
    }
}

/// The port that answers for a role.
pub(super) fn probed(role: Role) -> (&'static str, i32) {
    match role {
        Role::ReplicationManager => (port::CHANGE_STREAM_NAME, port::CHANGE_STREAM),
        Role::ViewSyncer | Role::SingleNode => (port::SYNC_NAME, port::SYNC),
    }
}

/// The port where a role's metrics are.
pub(super) fn scraped(role: Role) -> (&'static str, i32) {
    match role {
        Role::ReplicationManager => probed(role),
        Role::ViewSyncer | Role::SingleNode => (port::ADMIN_NAME, port::ADMIN),
    }
}

/// Whether the port speaks TLS is told with its name; the kubelet does not check whose certificate it is.
fn probe((port, is_tls): (&str, bool), path: &str, period: i32, timeout: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(port.to_owned()),
            scheme: is_tls.then(|| "HTTPS".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(timeout),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

/// The replica's volume, unless the StatefulSet claims one.
fn data_volume(wanted: &Wanted, role: Role) -> Option<Volume> {
    let (syncer, manager) = (&wanted.spec.view_syncer.storage, &wanted.spec.replication_manager.storage);
    let (kind, size, class) = match role {
        Role::ViewSyncer => (syncer.r#type, &syncer.size, &syncer.class_name),
        Role::ReplicationManager | Role::SingleNode => (manager.r#type, &manager.size, &manager.class_name),
    };
    if role != Role::ViewSyncer && kind == StorageType::Persistent {
        return None;
    }
    let name = pod::DATA_VOLUME.to_owned();
    // A Deployment's pods have no claims of their own: a volume that lives as long as its pod is the nearest.
    if class.is_none() && kind == StorageType::Ephemeral {
        let empty = EmptyDirVolumeSource { size_limit: Some(size.clone()), medium: None };
        return Some(Volume { name, empty_dir: Some(empty), ..Volume::default() });
    }
    let claim = PersistentVolumeClaimTemplate { metadata: None, spec: claim(&size.0, class.clone()) };
    let ephemeral = EphemeralVolumeSource { volume_claim_template: Some(claim) };
    Some(Volume { name, ephemeral: Some(ephemeral), ..Volume::default() })
}

pub(super) fn claim(size: &str, class: Option<String>) -> PersistentVolumeClaimSpec {
    let size = k8s_openapi::apimachinery::pkg::api::resource::Quantity(size.to_owned());
    PersistentVolumeClaimSpec {
        access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
        storage_class_name: class,
        resources: Some(VolumeResourceRequirements {
            requests: Some([("storage".to_owned(), size)].into()),
            limits: None,
        }),
        ..PersistentVolumeClaimSpec::default()
    }
}

/// An emptyDir counts against the node's disk: the scheduler must know.
fn with_disk(resources: &ResourceRequirements, wanted: &Wanted, role: Role) -> ResourceRequirements {
    let mut resources = resources.clone();
    let empty = data_volume(wanted, role).and_then(|volume| volume.empty_dir?.size_limit);
    if let Some(size) = empty {
        resources.requests.get_or_insert_default().entry("ephemeral-storage".to_owned()).or_insert(size);
    }
    resources
}

fn pod_security(wanted: &Wanted) -> PodSecurityContext {
    let mut context = PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(pod::USER),
        run_as_group: Some(pod::USER),
        fs_group: Some(pod::USER),
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    };
    context.merge_from(wanted.spec.security.pod_security_context.clone().unwrap_or_default());
    context
}

fn container_security(wanted: &Wanted) -> SecurityContext {
    let mut context = restricted();
    context.merge_from(wanted.spec.security.container_security_context.clone().unwrap_or_default());
    context
}

fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        read_only_root_filesystem: Some(true),
        ..SecurityContext::default()
    }
}

/// Annotations that a Prometheus without PodMonitors goes by. They do not depend on whether the cluster knows PodMonitors: pods
/// would restart when somebody installs that kind.
fn scrape(wanted: &Wanted, role: Role) -> BTreeMap<String, String> {
    let monitoring = &wanted.spec.monitoring;
    if !monitoring.enabled || monitoring.pod_monitor == PodMonitorMode::Always {
        return BTreeMap::new();
    }
    let (_, number) = scraped(role);
    let scheme = stream_tls::is_probed_by_tls(wanted, role).then(|| ("prometheus.io/scheme", "https".to_owned()));
    let annotations = [
        ("prometheus.io/scrape", "true".to_owned()),
        ("prometheus.io/port", number.to_string()),
        ("prometheus.io/path", path::METRICS.to_owned()),
    ];
    annotations.into_iter().chain(scheme).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// A pod that runs one command of the data plane and ends.
pub(super) fn command(wanted: &Wanted, image: &str, arguments: Vec<String>, meta: &Meta) -> PodTemplateSpec {
    let store = wanted.spec.backup.as_ref();
    let plain = [
        ("ZERO_LITESTREAM_ENDPOINT", store.and_then(|store| store.endpoint.clone())),
        ("ZERO_LITESTREAM_REGION", store.and_then(|store| store.region.clone())),
        ("AWS_REGION", store.and_then(|store| store.region.clone())),
    ];
    let plain = plain.into_iter().filter_map(|(name, value)| {
        Some(k8s_openapi::api::core::v1::EnvVar { name: name.to_owned(), value: Some(value?), value_from: None })
    });
    let secret = env::store_credentials(wanted).into_iter().map(|(name, reference)| env::from_secret(name, reference));
    PodTemplateSpec {
        metadata: Some(ObjectMeta { labels: Some(meta.labels(component::CLEANUP)), ..ObjectMeta::default() }),
        spec: Some(PodSpec {
            containers: vec![Container {
                name: pod::CONTAINER.to_owned(),
                image: Some(image.to_owned()),
                args: Some(arguments),
                termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
                env: some_list(plain.chain(secret).collect()),
                security_context: Some(restricted()),
                volume_mounts: Some(vec![mount(pod::TEMPORARY_VOLUME, pod::TEMPORARY_PATH)]),
                ..Container::default()
            }],
            volumes: Some(vec![Volume {
                name: pod::TEMPORARY_VOLUME.to_owned(),
                empty_dir: Some(EmptyDirVolumeSource::default()),
                ..Volume::default()
            }]),
            restart_policy: Some("Never".to_owned()),
            service_account_name: Some(wanted.service_account.clone()),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            security_context: Some(pod_security(wanted)),
            ..PodSpec::default()
        }),
    }
}

pub(super) fn some_list<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

pub(super) fn some_map(map: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!map.is_empty()).then(|| map.clone())
}
