//! The definition as a whole: that its file is current, that the API server can take it, and that documents are read as
//! the definition says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod admission;
mod charts;
mod documents;
mod examples;
mod pages;

use std::path::Path;

use serde_json::{Value, json};

use crds::ZeroCache;

#[test]
fn the_manifest_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/zerocaches.zerocache.dev.yaml");
    let current = crds::manifest();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, current).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == current, "{} is stale; write it anew with UPDATE_REFERENCE=1", path.display());
}

fn schema() -> Value {
    static SCHEMA: std::sync::LazyLock<Value> =
        std::sync::LazyLock::new(|| crds::definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone());
    SCHEMA.clone()
}

/// Calls `visit` with each schema and its path.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(property, &format!("{path}.{name}"), visit);
    }
    for part in ["items", "additionalProperties"] {
        if schema[part].is_object() {
            walk(&schema[part], &format!("{path}[]"), visit);
        }
    }
}

/// The API server refuses a schema with references, with a type that is missing, or with a type it cannot tell.
#[test]
fn the_schema_is_structural() {
    walk(&schema(), "", &mut |path, schema| {
        assert!(schema.get("$ref").is_none() && schema.get("definitions").is_none(), "{path} has a reference");
        let int_or_string = schema["x-kubernetes-int-or-string"] == json!(true);
        assert!(schema["type"].is_string() || int_or_string, "{path} has no type: {schema}");
        assert!(schema.get("const").is_none() && schema.get("oneOf").is_none(), "{path} is a union: {schema}");
    });
}

/// Fields whose content is Kubernetes' own type, described and bounded there.
const FOREIGN: &[&str] = &[
    "resources",
    "affinity",
    "tolerations",
    "topologySpreadConstraints",
    "extraEnv",
    "extraEnvFrom",
    "extraVolumes",
    "extraVolumeMounts",
    "podTemplate",
    "podSecurityContext",
    "containerSecurityContext",
    "viewSyncerFrom",
    "metricsFrom",
    "conditions",
];

fn is_inside_foreign(path: &str) -> bool {
    path.split(['.', '[']).rev().skip(1).any(|name| FOREIGN.contains(&name)) || path.contains("[]")
}

fn is_foreign(path: &str) -> bool {
    path.split(['.', '[']).any(|name| FOREIGN.contains(&name))
}

/// `kubectl explain` has a sentence for every field.
#[test]
fn every_field_is_described() {
    for part in ["spec", "status"] {
        walk(&schema()["properties"][part], part, &mut |path, schema| {
            if !is_inside_foreign(path) {
                let text = schema["description"].as_str().unwrap_or_default();
                assert!(text.len() > 10, "{path} has no description");
            }
        });
    }
}

#[test]
fn strings_lists_and_maps_of_the_spec_are_bounded() {
    walk(&schema()["properties"]["spec"], "spec", &mut |path, schema| {
        if schema["type"] == "array" {
            let inside_kubernetes = is_inside_foreign(path) && is_foreign(path);
            assert!(inside_kubernetes || schema["maxItems"].is_u64(), "{path} has no bound");
        }
        if is_foreign(path) {
            return;
        }
        if schema["type"] == "string" && !path.ends_with("[]") {
            let bounded = ["maxLength", "enum"].iter().any(|bound| schema.get(*bound).is_some());
            assert!(bounded, "{path} has no bound");
        }
        if schema["additionalProperties"].is_object() {
            assert!(schema["maxProperties"].is_u64(), "{path} has no bound");
        }
    });
}

/// Each rule of the table is in the schema, once or (for what both roles have) twice, and nothing else is.
#[test]
fn the_rules_of_the_table_are_in_the_schema() {
    let mut found = Vec::new();
    walk(&schema(), "", &mut |path, schema| {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            found.push((path.to_owned(), rule["rule"].as_str().unwrap().to_owned()));
            let message = rule["message"].as_str().unwrap_or_default();
            assert!(message.len() > 20, "{path}: a rule without a message for people: {rule}");
        }
    });
    for rule in crds::rules::all() {
        let places: Vec<_> = found.iter().filter(|(_, text)| text == rule.rule).collect();
        assert!((1..=2).contains(&places.len()), "{:?} is at {places:?}", rule.rule);
    }
    let known: Vec<&str> = crds::rules::all().iter().map(|rule| rule.rule).collect();
    assert!(found.iter().all(|(_, rule)| known.contains(&rule.as_str())), "{found:#?}");
}

/// `kubectl apply` keeps a copy of what it applied in an annotation, which may not be larger.
#[test]
fn the_definition_fits_an_annotation() {
    let size = crds::definition().to_string().len();
    assert!(size < 200_000, "{size} bytes");
}

#[test]
fn nothing_is_nullable() {
    walk(&schema(), "", &mut |path, schema| assert!(schema.get("nullable").is_none(), "{path}"));
}

#[test]
fn a_small_document_gets_the_defaults() {
    let document = json!({
        "apiVersion": "zerocache.dev/v1alpha1",
        "kind": "ZeroCache",
        "metadata": { "name": "shop" },
        "spec": {
            "adminPassword": { "name": "shop", "key": "admin" },
            "databases": { "upstream": { "urlSecretRef": { "name": "shop", "key": "upstream" } } },
            "backup": { "url": "s3://shop/replica" },
            "viewSyncer": { "replicas": 5 },
        },
    });
    let cache: ZeroCache = serde_json::from_value(document).unwrap();
    assert_eq!(cache.spec.app_id, "zero");
    assert_eq!(cache.spec.generation, "v1");
    assert_eq!(cache.spec.view_syncer.replicas, 5);
    assert_eq!(cache.spec.view_syncer.startup_timeout_seconds, 600);
    assert_eq!(cache.spec.databases.cvr.max_conns, None);
    assert_eq!(cache.spec.upgrade.step_timeout.seconds(), 1800);
    assert!(cache.spec.network_policy.enabled);
    assert_eq!(cache.spec.replication_manager.storage.size.0, "20Gi");
    // What the API server fills in is what is filled in here.
    let defaults = schema();
    let spec = &defaults["properties"]["spec"]["properties"];
    assert_eq!(spec["appId"]["default"], json!("zero"));
    assert_eq!(spec["viewSyncer"]["default"]["replicas"], json!(2));
    assert_eq!(spec["viewSyncer"]["properties"]["replicas"]["default"], json!(2));
    assert_eq!(spec["upgrade"]["properties"]["stepTimeout"]["default"], json!("30m"));
    // A document that gives only a size keeps the role's own kind of storage.
    let storage = |role: &str| &spec[role]["properties"]["storage"]["properties"]["type"]["default"];
    assert_eq!((storage("replicationManager"), storage("viewSyncer")), (&json!("Persistent"), &json!("Ephemeral")));
}

/// A document that goes through the typed form and back is what it was: nothing is lost, nothing is added but defaults.
#[test]
fn a_full_document_survives() {
    let document = json!({
        "nodeSelector": { "disk": "fast" },
        "tolerations": [{ "key": "zero", "operator": "Exists" }],
        "extraEnv": [{ "name": "A", "value": "b" }],
        "extraVolumes": [{ "name": "ca", "configMap": { "name": "ca" } }],
        "podTemplate": { "spec": { "hostAliases": [{ "ip": "10.0.0.1", "hostnames": ["db"] }] } },
        "storage": { "size": "50Gi" },
    });
    let role: crds::spec::ReplicationManager = serde_json::from_value(document.clone()).unwrap();
    assert_eq!(role.placement.extra_volumes[0].name, "ca");
    let back = serde_json::to_value(&role).unwrap();
    for (name, value) in document.as_object().unwrap() {
        match name.as_str() {
            "storage" => assert_eq!(back[name]["size"], value["size"]),
            _ => assert_eq!(&back[name], value),
        }
    }
    assert_eq!(back["startupTimeoutSeconds"], 600);
}

/// A rule's `has()` is true for a null, and clients are warned about formats the API server does not know.
#[test]
fn defaults_hold_no_null_and_formats_are_known() {
    fn holds_null(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(items) => items.iter().any(holds_null),
            Value::Object(fields) => fields.values().any(holds_null),
            _ => false,
        }
    }
    walk(&schema(), "", &mut |path, schema| {
        assert!(!schema.get("default").is_some_and(holds_null), "{path}: {}", schema["default"]);
        if let Some(format) = schema["format"].as_str() {
            assert!(["int32", "int64", "date-time"].contains(&format), "{path}: {format}");
        }
    });
}

#[test]
fn the_status_is_a_subresource_and_view_syncers_scale() {
    let version = &crds::definition()["spec"]["versions"][0];
    assert_eq!(version["name"], "v1alpha1");
    assert!(version["subresources"]["status"].is_object());
    assert_eq!(version["subresources"]["scale"]["specReplicasPath"], ".spec.viewSyncer.replicas");
}
