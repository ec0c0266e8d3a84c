//! Who may reach the pods. The change stream's port is for the deployment's own pods, scrapers and the
//! operator only.

use crds::names::{label, port};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::wanted::Wanted;
use super::meta::Meta;
use super::pod::{scraped, some_list};
use crate::observe::Role;

pub(super) fn network_policies(wanted: &Wanted, meta: &Meta) -> Vec<NetworkPolicy> {
    if !wanted.spec.network_policy.enabled {
        return Vec::new();
    }
    wanted.roles().iter().map(|role| network_policy(wanted, meta, *role)).collect()
}

fn network_policy(wanted: &Wanted, meta: &Meta, role: Role) -> NetworkPolicy {
    let given = &wanted.spec.network_policy;
    let mut rules = Vec::new();
    match role {
        Role::ReplicationManager => rules.push(NetworkPolicyIngressRule {
            // Of two replication-managers one looks whether the other is at work, and may start from its replica.
            from: Some(vec![pods_of(meta, Role::ViewSyncer), pods_of(meta, Role::ReplicationManager)]),
            ports: Some(vec![tcp(port::CHANGE_STREAM)]),
        }),
        Role::ViewSyncer | Role::SingleNode => rules.push(NetworkPolicyIngressRule {
            // No list means anyone, an empty one would too.
            from: some_list(given.view_syncer_from.clone()),
            ports: Some(vec![tcp(port::SYNC)]),
        }),
    }
    if role == wanted.main_role() {
        // It asks the node that owns the slot how it is.
        let from = Some(vec![operator(wanted)]);
        rules.push(NetworkPolicyIngressRule { from, ports: Some(vec![tcp(port::CHANGE_STREAM)]) });
    }
    if !given.metrics_from.is_empty() {
        let (_, number) = scraped(role);
        rules.push(NetworkPolicyIngressRule { from: Some(given.metrics_from.clone()), ports: Some(vec![tcp(number)]) });
    }
    let mut types = vec!["Ingress".to_owned()];
    if given.restrict_egress {
        types.push("Egress".to_owned());
    }
    NetworkPolicy {
        metadata: meta.of(role, wanted.workload_name(role)),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(meta.selector(role)),
            policy_types: Some(types),
            ingress: Some(rules),
            egress: given.restrict_egress.then(|| egress(meta, role)),
        }),
    }
}

/// Where pods must get to. Addresses of databases and stores are in Secrets or outside the cluster: only ports can be told.
fn egress(meta: &Meta, role: Role) -> Vec<NetworkPolicyEgressRule> {
    let mut rules = vec![
        NetworkPolicyEgressRule { to: None, ports: Some(vec![udp(53), tcp(53)]) },
        NetworkPolicyEgressRule { to: None, ports: Some(vec![tcp(5432), tcp(6432), tcp(80), tcp(443)]) },
    ];
    if role != Role::SingleNode {
        rules.push(NetworkPolicyEgressRule {
            to: Some(vec![pods_of(meta, Role::ReplicationManager)]),
            ports: Some(vec![tcp(port::CHANGE_STREAM)]),
        });
    }
    rules
}

/// Pods of this deployment, in this namespace.
fn pods_of(meta: &Meta, role: Role) -> NetworkPolicyPeer {
    NetworkPolicyPeer { pod_selector: Some(meta.selector(role)), ..NetworkPolicyPeer::default() }
}

/// The operator's pods.
fn operator(wanted: &Wanted) -> NetworkPolicyPeer {
    let labelled = |name: &str, value: &str| {
        let labels = Some([(name.to_owned(), value.to_owned())].into());
        Some(LabelSelector { match_labels: labels, match_expressions: None })
    };
    NetworkPolicyPeer {
        namespace_selector: labelled(label::NAMESPACE_NAME, wanted.operator_namespace),
        pod_selector: labelled(label::NAME, label::OPERATOR_POD),
        ip_block: None,
    }
}

fn tcp(number: i32) -> NetworkPolicyPort {
    NetworkPolicyPort { port: Some(IntOrString::Int(number)), protocol: Some("TCP".to_owned()), end_port: None }
}

fn udp(number: i32) -> NetworkPolicyPort {
    NetworkPolicyPort { protocol: Some("UDP".to_owned()), ..tcp(number) }
}
