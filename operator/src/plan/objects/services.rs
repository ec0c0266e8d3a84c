//! Services: the change stream's, never visible from outside, and the clients'.

use std::collections::BTreeMap;

use crds::names::{child, port};
use crds::spec::{Provider, ServiceType, StickinessMode};
use k8s_openapi::api::core::v1::{ClientIPConfig, Service, ServicePort, ServiceSpec, SessionAffinityConfig};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::wanted::Wanted;
use super::meta::Meta;
use super::pod::some_map;
use crate::observe::Role;

pub(super) fn services(wanted: &Wanted, meta: &Meta) -> Vec<Service> {
    match wanted.is_single() {
        true => vec![headless(wanted, meta), public(wanted, meta)],
        false => vec![headless(wanted, meta), change_stream(wanted, meta), public(wanted, meta)],
    }
}

/// The Service that clients and routes go to.
pub(in crate::plan) fn public_name(wanted: &Wanted) -> String {
    wanted.workload_name(wanted.public_role())
}

/// Gives the StatefulSet's pod its name in DNS.
fn headless(wanted: &Wanted, meta: &Meta) -> Service {
    let role = wanted.main_role();
    Service {
        metadata: meta.of(role, wanted.headless_name()),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            selector: Some(meta.selected(role.component())),
            ports: Some(vec![service_port(port::CHANGE_STREAM_NAME, port::CHANGE_STREAM)]),
            // Two replication-managers ask each other by these names, and the kubelet's word for who is ready comes later than theirs.
            publish_not_ready_addresses: Some(!wanted.is_single()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// What view-syncers connect to. Of type ClusterIP, whatever the resource says.
fn change_stream(wanted: &Wanted, meta: &Meta) -> Service {
    let role = Role::ReplicationManager;
    Service {
        metadata: meta.of(role, child::replication_manager(wanted.name)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(meta.selected(role.component())),
            ports: Some(vec![service_port(port::CHANGE_STREAM_NAME, port::CHANGE_STREAM)]),
            // A replication-manager that still syncs refuses view-syncers itself; one that restarts serves them a second before
            // the kubelet has seen that it is ready.
            publish_not_ready_addresses: Some(true),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn public(wanted: &Wanted, meta: &Meta) -> Service {
    let ingress = &wanted.spec.ingress;
    let role = wanted.public_role();
    let mut metadata = meta.of(role, public_name(wanted));
    let mut annotations = match ingress.enabled && ingress.provider == Provider::Traefik {
        true => traefik(wanted),
        false => BTreeMap::new(),
    };
    annotations.extend(ingress.service.annotations.clone());
    metadata.annotations = some_map(&annotations);
    let by_address = ingress.stickiness.mode == StickinessMode::ClientIP;
    let client_ip = ClientIPConfig { timeout_seconds: Some(ingress.stickiness.ttl_seconds) };
    // A balancer in front must hand the client's address on, or all clients look like one.
    let is_outside = ingress.service.r#type != ServiceType::ClusterIP;
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(format!("{:?}", ingress.service.r#type)),
            selector: Some(meta.selected(role.component())),
            ports: Some(vec![service_port(port::SYNC_NAME, port::SYNC)]),
            session_affinity: by_address.then(|| "ClientIP".to_owned()),
            session_affinity_config: by_address.then_some(SessionAffinityConfig { client_ip: Some(client_ip) }),
            external_traffic_policy: (by_address && is_outside).then(|| "Local".to_owned()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Traefik reads stickiness from the Service.
fn traefik(wanted: &Wanted) -> BTreeMap<String, String> {
    let stickiness = &wanted.spec.ingress.stickiness;
    if stickiness.mode != StickinessMode::Cookie {
        return BTreeMap::new();
    }
    let cookie = "traefik.ingress.kubernetes.io/service.sticky.cookie";
    let is_secure = wanted.spec.ingress.tls.is_some();
    [
        (cookie.to_owned(), "true".to_owned()),
        (format!("{cookie}.name"), stickiness.cookie_name.clone()),
        (format!("{cookie}.maxage"), stickiness.ttl_seconds.to_string()),
        (format!("{cookie}.httponly"), "true".to_owned()),
        (format!("{cookie}.secure"), is_secure.to_string()),
        (format!("{cookie}.samesite"), if is_secure { "none" } else { "lax" }.to_owned()),
    ]
    .into()
}

fn service_port(name: &str, number: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number,
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    }
}
