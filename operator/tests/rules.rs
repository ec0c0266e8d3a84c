//! What holds of all planned objects, whatever the resource says.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use zero_cache_operator::observe::Apis;
use zero_cache_operator::plan::plan;

use crate::model::{World, resource};

/// Resources that together use every branch.
fn variants() -> Vec<Value> {
    vec![
        json!({}),
        json!({ "topology": "SingleNode", "adminPassword": null, "backup": null }),
        json!({ "topology": "SingleNode", "ingress": { "enabled": true, "hosts": ["a.b"], "service": { "type": "NodePort" } } }),
        json!({ "replicationManager": { "storage": { "type": "Ephemeral" } }, "viewSyncer": { "preStopDelaySeconds": 0 } }),
        json!({ "ingress": { "enabled": true, "hosts": ["a.b"], "service": { "type": "LoadBalancer" } } }),
        json!({ "viewSyncer": { "autoscaling": { "minReplicas": 1 } }, "monitoring": { "podMonitor": "Always" } }),
    ]
}

fn planned(spec: Value) -> Vec<Value> {
    let mut world = World::new(resource(spec));
    world.apis = Apis { pod_monitors: true, http_routes: true };
    let world = world.settle();
    plan(world.cache(), &world.observe()).objects.unwrap().documents()
}

fn of_kind<'a>(documents: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    documents.iter().filter(move |document| document["kind"] == kind)
}

#[test]
fn pods_are_restricted_and_probed() {
    for spec in variants() {
        let documents = planned(spec);
        let workloads: Vec<&Value> = documents
            .iter()
            .filter(|it| ["StatefulSet", "Deployment"].contains(&it["kind"].as_str().unwrap()))
            .collect();
        assert!(!workloads.is_empty());
        for workload in workloads {
            let pod = &workload["spec"]["template"]["spec"];
            let container = &pod["containers"][0];
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
            assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
            assert_eq!(pod["automountServiceAccountToken"], false);
            assert_eq!(pod["enableServiceLinks"], false);
            assert_eq!(pod["terminationGracePeriodSeconds"], 600);
            assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/");
            assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez");
            let is_manager = workload["metadata"]["name"] == "shop-rm";
            let port = if is_manager { "change-stream" } else { "sync" };
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                assert_eq!(container[probe]["httpGet"]["port"], port, "{probe}");
                assert!(container[probe].get("exec").is_none(), "there is no shell in the image");
            }
            if let Some(hook) = container["lifecycle"].get("preStop") {
                assert_eq!(hook.as_object().unwrap().keys().collect::<Vec<_>>(), ["sleep"]);
            }
        }
    }
}

#[test]
fn the_change_stream_is_never_visible_from_outside() {
    for spec in variants() {
        let documents = planned(spec);
        for service in of_kind(&documents, "Service") {
            let ports = service["spec"]["ports"].as_array().unwrap();
            if ports.iter().any(|port| port["port"] == 4849) {
                let kind = service["spec"].get("type").and_then(Value::as_str).unwrap_or("ClusterIP");
                assert_eq!(kind, "ClusterIP", "{service}");
                // Only where the nodes themselves refuse whoever comes too early.
                let component = &service["metadata"]["labels"]["app.kubernetes.io/component"];
                let refuses = component == "replication-manager";
                assert_eq!(service["spec"]["publishNotReadyAddresses"], refuses, "{service}");
            }
        }
        for policy in of_kind(&documents, "NetworkPolicy") {
            for rule in policy["spec"]["ingress"].as_array().unwrap() {
                let opens = rule["ports"].as_array().unwrap().iter().any(|port| port["port"] == 4849);
                assert!(!opens || rule.get("from").is_some(), "{policy} lets anyone in");
            }
        }
        assert_eq!(
            of_kind(&documents, "NetworkPolicy").count(),
            of_kind(&documents, "StatefulSet").count() + of_kind(&documents, "Deployment").count()
        );
    }
}

#[test]
fn everything_is_owned_labelled_and_named_apart() {
    for spec in variants() {
        let documents = planned(spec);
        let mut names = BTreeSet::new();
        for document in &documents {
            let metadata = &document["metadata"];
            assert_eq!(metadata["namespace"], "web");
            assert_eq!(metadata["ownerReferences"][0]["kind"], "ZeroCache");
            assert_eq!(metadata["ownerReferences"][0]["controller"], true);
            assert_eq!(metadata["labels"]["app.kubernetes.io/instance"], "shop");
            assert_eq!(metadata["labels"]["app.kubernetes.io/managed-by"], "zerocache-operator");
            let id = (document["kind"].to_string(), metadata["name"].to_string());
            assert!(names.insert(id), "{document} is there twice");
        }
    }
}

/// The selectors of workloads can never change: nothing that a person may change is in them.
#[test]
fn selectors_hold_what_never_changes() {
    let expected = |component: &str| {
        json!({
            "app.kubernetes.io/name": "zero-cache",
            "app.kubernetes.io/instance": "shop",
            "app.kubernetes.io/component": component,
            // Other makers of pods with these labels give this one another value.
            "app.kubernetes.io/managed-by": "zerocache-operator",
        })
    };
    for spec in variants() {
        for workload in planned(spec).iter().filter(|it| it["spec"]["selector"]["matchLabels"].is_object()) {
            let labels = &workload["spec"]["selector"]["matchLabels"];
            if let Some(component) = labels["app.kubernetes.io/component"].as_str() {
                assert_eq!(labels, &expected(component));
            }
        }
    }
}

/// A workload that was made with another selector keeps it, and Services find its pods all the same.
#[test]
fn workloads_keep_the_selector_they_were_made_with() {
    let mut world = World::new(resource(json!({}))).settle();
    let before = planned(json!({}));
    let old = |component: &str| {
        [("name", "zero-cache"), ("instance", "shop"), ("component", component)]
            .map(|(name, value)| (format!("app.kubernetes.io/{name}"), value.to_owned()))
    };
    world.set.as_mut().unwrap().selector = old("replication-manager").into();
    world.deployment.as_mut().unwrap().selector = old("view-syncer").into();
    let documents = plan(world.cache(), &world.observe()).objects.unwrap().documents();
    for (kind, component) in [("StatefulSet", "replication-manager"), ("Deployment", "view-syncer")] {
        let of = |documents: &[Value]| of_kind(documents, kind).next().unwrap()["spec"].clone();
        let (was, is) = (of(&before), of(&documents));
        assert_eq!(is["selector"]["matchLabels"], json!(std::collections::BTreeMap::from(old(component))));
        assert_eq!(was["template"], is["template"], "its pods would be replaced");
        let labels = &is["template"]["metadata"]["labels"];
        for service in of_kind(&documents, "Service")
            .filter(|it| it["spec"]["selector"]["app.kubernetes.io/component"] == component)
        {
            for (name, value) in service["spec"]["selector"].as_object().unwrap() {
                assert_eq!(&labels[name], value, "{name}");
            }
        }
    }
}

/// Secrets' values reach pods by reference only.
#[test]
fn no_secret_is_copied() {
    for spec in variants() {
        for secret in of_kind(&planned(spec), "Secret") {
            assert!(secret.get("data").is_none() && secret.get("stringData").is_none(), "{secret}");
        }
    }
    let documents = planned(json!({}));
    for workload in ["StatefulSet", "Deployment"] {
        let found = of_kind(&documents, workload).next().unwrap();
        for variable in found["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap() {
            let name = variable["name"].as_str().unwrap();
            if ["ZERO_UPSTREAM_DB", "ZERO_ADMIN_PASSWORD", "ZERO_CHANGE_STREAMER_TOKEN"].contains(&name) {
                assert!(variable["valueFrom"]["secretKeyRef"].is_object(), "{name}");
            }
        }
    }
}

fn invalid(spec: Value) -> String {
    let world = World::new(resource(spec)).settle();
    assert!(world.set.is_none(), "a bad spec was rolled out");
    let conditions = world.status().conditions;
    let ready = conditions.iter().find(|it| it.type_ == "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "InvalidSpec"));
    ready.message.clone()
}

#[test]
fn what_the_api_server_cannot_see_is_refused_by_a_condition() {
    let text = invalid(json!({ "viewSyncer": { "extraEnv": [{ "name": "ZERO_PORT", "value": "1" }] } }));
    assert!(text.contains("spec.viewSyncer.extraEnv: ZERO_PORT"), "{text}");
    let text = invalid(json!({ "replicationManager": { "podTemplate": { "spec": { "containers": "none" } } } }));
    assert!(text.contains("spec.replicationManager.podTemplate is not a pod template"), "{text}");

    // Stored before admission looked at it.
    for (spec, field) in [
        (
            json!({ "replicationManager": { "storage": { "size": "10GB" } } }),
            "spec.replicationManager.storage.size: \"10GB\"",
        ),
        (
            json!({ "viewSyncer": { "resources": { "requests": { "cpu": "two" } } } }),
            "spec.viewSyncer.resources.requests.cpu",
        ),
        (json!({ "viewSyncer": { "maxSurge": "25" } }), "spec.viewSyncer.maxSurge: \"25\""),
        (json!({ "viewSyncer": { "pdb": { "maxUnavailable": -1 } } }), "spec.viewSyncer.pdb.maxUnavailable"),
    ] {
        let text = invalid(spec);
        assert!(text.contains(field), "{text}");
    }

    let mut observed = World::new(resource(json!({}))).observe();
    observed.rivals = vec!["web/other".to_owned()];
    let plan = plan(&resource(json!({})), &observed);
    assert!(plan.objects.is_none() && plan.status.conditions[0].message.contains("web/other"));
    assert_eq!(plan.events.len(), 1);
}

/// The variables that planning sets are those it refuses from others.
#[test]
fn the_list_of_own_variables_is_complete() {
    let documents = planned(json!({
        "publications": ["a"],
        "telemetry": { "otlp": { "endpoint": "http://c:1", "headersSecretRef": { "name": "db", "key": "key" } } },
        "databases": {
            "cvr": { "urlSecretRef": { "name": "db", "key": "cvr" }, "inactivityThresholdHours": 1 },
            "change": { "urlSecretRef": { "name": "db", "key": "cvr" } },
        },
        "api": {
            "queryUrls": ["http://a"], "mutateUrls": ["http://a"], "enableCrudMutations": true,
            "queryApiKeySecretRef": { "name": "db", "key": "key" }, "mutateApiKeySecretRef": { "name": "db", "key": "key" },
            "perUserMutationLimit": { "max": 1 }, "auth": { "secretRef": { "name": "db", "key": "key" } },
        },
        "backup": {
            "endpoint": "http://s", "region": "r",
            "credentialsSecretRef": { "name": "db", "accessKeyIdKey": "id", "secretAccessKeyKey": "key", "sessionTokenKey": "token" },
        },
        "replicationManager": { "vacuumIntervalHours": 1 },
        "viewSyncer": { "numSyncWorkers": 2 },
    }));
    let mut set = BTreeSet::new();
    for kind in ["StatefulSet", "Deployment"] {
        let found = of_kind(&documents, kind).next().unwrap();
        let variables = found["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        let names: Vec<&str> = variables.iter().map(|it| it["name"].as_str().unwrap()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{kind}: a variable is set twice");
        set.extend(names.into_iter().map(str::to_owned));
    }
    for name in set {
        let text = invalid(json!({ "viewSyncer": { "extraEnv": [{ "name": name, "value": "1" }] } }));
        assert!(text.contains(&name), "{name} may be set by others");
    }
}
