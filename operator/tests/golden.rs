//! Every child of typical resources, against files that a reader can review. `UPDATE_GOLDEN=1` writes them anew.

use std::path::Path;

use serde_json::{Value, json};
use zero_cache_operator::observe::Apis;
use zero_cache_operator::plan::plan;

use crate::model::{World, resource};

fn check(name: &str, spec: Value) {
    check_in(name, spec, Apis::default());
}

fn check_in(name: &str, spec: Value, apis: Apis) {
    let mut world = World::new(resource(spec));
    world.apis = apis;
    let world = world.settle();
    let observed = world.observe();
    let first = plan(world.cache(), &observed);
    assert_eq!(first, plan(world.cache(), &observed), "planning is not a function");
    let mut again = world.cache().clone();
    again.status = Some(first.status.clone());
    let second = plan(&again, &observed);
    assert_eq!((&first.status, &first.objects), (&second.status, &second.objects), "planning twice changes something");
    assert_eq!((second.events, second.actions, second.remove), (vec![], vec![], vec![]));

    let documents = first.objects.unwrap().documents();
    for document in &documents {
        assert!(!holds_emptiness(document), "{name}: an empty field would be owned: {document}");
    }
    let text: String = documents.iter().map(|it| format!("---\n{}", serde_saphyr::to_string(it).unwrap())).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.yaml"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == text,
        "{} differs:\n{}\nWrite it anew with UPDATE_GOLDEN=1 and review the difference.",
        path.display(),
        difference(&committed, &text)
    );
}

/// The first lines that differ.
fn difference(committed: &str, text: &str) -> String {
    let (mut old, mut new) = (committed.lines(), text.lines());
    let mut number = 1;
    loop {
        match (old.next(), new.next()) {
            (None, None) => return "only in line ends".to_owned(),
            (a, b) if a == b => number += 1,
            (a, b) => return format!("line {number}\n- {}\n+ {}", a.unwrap_or("(end)"), b.unwrap_or("(end)")),
        }
    }
}

/// Server-side apply owns a field that is there, also when it says nothing.
fn holds_emptiness(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty() || items.iter().any(holds_emptiness),
        Value::Object(fields) => fields.iter().any(|(name, value)| {
            // An emptyDir without settings is how that kind of volume is written.
            let is_allowed = name == "emptyDir" && value == &json!({});
            !is_allowed && (holds_emptiness(value) || value == &json!({}))
        }),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[test]
fn the_smallest_deployment() {
    check("smallest", json!({ "viewSyncer": { "replicas": 2 } }));
}

#[test]
fn a_process_with_less_time_to_stop_than_it_takes_is_told() {
    let node = json!({ "replicas": 2, "terminationGracePeriodSeconds": 60, "preStopDelaySeconds": 20 });
    let world = World::new(resource(json!({ "viewSyncer": node }))).settle();
    let documents = plan(world.cache(), &world.observe()).objects.unwrap().documents();
    let told = documents.iter().filter_map(|it| {
        let environment = it.pointer("/spec/template/spec/containers/0/env")?.as_array()?;
        let grace = environment.iter().find(|it| it["name"] == json!("ZERO_SHUTDOWN_GRACE_SECONDS"));
        Some((it["kind"].as_str()?.to_owned(), grace.map(|it| it["value"].clone())))
    });
    let mut told: Vec<_> = told.collect();
    told.sort_by(|a, b| a.0.cmp(&b.0));
    // The replication-manager has its ten minutes.
    assert_eq!(told, [("Deployment".to_owned(), Some(json!("35"))), ("StatefulSet".to_owned(), None)]);
}

#[test]
fn a_single_node() {
    check("single-node", json!({ "topology": "SingleNode", "adminPassword": null, "backup": null }));
}

#[test]
fn a_full_deployment() {
    let full = json!({
        "image": { "repository": "registry.example.com/mirror/zero-cache", "tag": "1.2.3", "pullPolicy": "IfNotPresent", "pullSecrets": ["registry"] },
        "appId": "shop", "shardNum": 3, "publications": ["shop_a", "shop_b"], "generation": "2026-01",
        "logging": { "level": "debug", "format": "text" },
        "telemetry": { "otlp": { "endpoint": "http://collector:4318", "protocol": "http/protobuf" } },
        "databases": {
            "upstream": { "slotFailover": true },
            "cvr": { "urlSecretRef": { "name": "db", "key": "cvr" }, "maxConns": 12, "inactivityThresholdHours": 24 },
            "connectionBudget": { "mode": "Enforce", "reserve": 20 },
        },
        "api": {
            "queryUrls": ["https://api.example.com/query"], "mutateUrls": ["https://api.example.com/mutate"],
            "queryApiKeySecretRef": { "name": "db", "key": "key" }, "queryForwardCookies": true,
            "enableCrudMutations": true, "perUserMutationLimit": { "max": 100 },
            "auth": { "jwksUrl": "https://auth.example.com/jwks" },
        },
        "backup": {
            "url": "s3://bucket/path", "endpoint": "https://s3.example.com", "region": "eu-1",
            "credentialsSecretRef": { "name": "db", "accessKeyIdKey": "id", "secretAccessKeyKey": "key" },
            "incrementalInterval": "5s", "snapshotInterval": "90m",
        },
        "replicationManager": {
            "storage": { "size": "100Gi", "className": "fast", "retain": true },
            "resources": { "requests": { "cpu": "2", "memory": "8Gi" }, "limits": { "memory": "8Gi" } },
            "vacuumIntervalHours": 168, "startupTimeoutSeconds": 3602, "priorityClassName": "high",
            "nodeSelector": { "disk": "nvme" },
            "podTemplate": { "spec": { "hostAliases": [{ "ip": "10.0.0.5", "hostnames": ["db"] }] } },
        },
        "viewSyncer": {
            "numSyncWorkers": 6, "maxSurge": "50%", "preStopDelaySeconds": 5,
            "storage": { "className": "fast", "size": "100Gi" },
            "autoscaling": { "minReplicas": 1, "maxReplicas": 8, "podsMetric": { "name": "zero_sockets", "targetAverage": "500" } },
            "pdb": { "maxUnavailable": null, "minAvailable": "50%" },
            "tolerations": [{ "key": "zero", "operator": "Exists" }],
            "podLabels": { "team": "sync", "app.kubernetes.io/component": "mine" },
            "podAnnotations": { "note": "kept" },
            "extraEnv": [{ "name": "RUST_LOG", "value": "debug" }],
            "extraVolumes": [{ "name": "ca", "configMap": { "name": "ca" } }],
            "extraVolumeMounts": [{ "name": "ca", "mountPath": "/etc/ca", "readOnly": true }],
        },
        "security": {
            "changeStream": { "tokenSecretRef": { "name": "db", "key": "token" } },
            "podSecurityContext": { "fsGroup": 1000 },
            "serviceAccount": { "annotations": { "eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/zero" } },
        },
        "networkPolicy": {
            "viewSyncerFrom": [{ "namespaceSelector": { "matchLabels": { "name": "ingress" } } }],
            "metricsFrom": [{ "namespaceSelector": { "matchLabels": { "name": "monitoring" } } }],
            "restrictEgress": true,
        },
        "monitoring": { "labels": { "release": "prometheus" }, "interval": "15s" },
    });
    check_in("full", full, Apis { pod_monitors: true, http_routes: false });
}

#[test]
fn a_change_stream_with_certificates() {
    let spec = json!({ "security": { "changeStream": { "tlsSecretName": "stream" } } });
    check_in("change-stream-tls", spec, Apis { pod_monitors: true, http_routes: false });
}

fn ingress(provider: &str) -> Value {
    json!({
        "viewSyncer": { "replicas": 2 },
        "ingress": {
            "enabled": true, "provider": provider, "className": "edge", "hosts": ["zero.example.com"],
            "tls": { "secretName": "zero-tls" }, "annotations": { "example.com/kept": "yes" },
            "gateway": { "parentRefs": [{ "name": "edge", "namespace": "gateways", "sectionName": "https" }] },
        },
    })
}

#[test]
fn an_ingress_in_every_dialect() {
    for provider in ["Traefik", "IngressNginx", "HAProxyIngress", "HAProxyTech", "Custom"] {
        check(&format!("ingress-{}", provider.to_lowercase()), ingress(provider));
    }
    check_in("ingress-gatewayapi", ingress("GatewayAPI"), Apis { pod_monitors: false, http_routes: true });
}

#[test]
fn stickiness_by_address() {
    let mut spec = ingress("Custom");
    spec["ingress"]["stickiness"] = json!({ "mode": "ClientIP", "ttlSeconds": 90 });
    spec["ingress"]["service"] = json!({ "type": "LoadBalancer", "annotations": { "example.com/lb": "internal" } });
    check("ingress-clientip", spec);
}
