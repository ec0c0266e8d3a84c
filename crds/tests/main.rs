//! The definition as a whole: that its file is current, that the API server can take it, and that documents are read as
//! the definition says.

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
    crds::definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
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

#[test]
fn strings_and_lists_of_the_spec_are_bounded() {
    walk(&schema()["properties"]["spec"], "spec", &mut |path, schema| {
        // Kubernetes' own types are as they are.
        if path.contains(".resources") {
            return;
        }
        if schema["type"] == "string" {
            let bounded = ["maxLength", "enum", "pattern"].iter().any(|bound| schema.get(*bound).is_some());
            assert!(bounded, "{path} has no bound");
        }
        if schema["type"] == "array" {
            assert!(schema["maxItems"].is_u64(), "{path} has no bound");
        }
    });
}

#[test]
fn rules_are_in_the_schema() {
    let mut rules = Vec::new();
    walk(&schema(), "", &mut |path, schema| {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            assert!(rule["message"].is_string(), "{path}: a rule without a message");
            rules.push(format!("{path}: {}", rule["rule"].as_str().unwrap()));
        }
    });
    for expected in [
        ": size(self.metadata.name) <= 40",
        ".spec: self.topology != 'MultiNode' || has(self.backup)",
        ".spec.topology: self == oldSelf",
        ".spec.appId: self == oldSelf",
        ".spec.image: !(has(self.tag) && has(self.digest))",
    ] {
        assert!(rules.iter().any(|rule| rule == expected), "{expected:?} is not among {rules:#?}");
    }
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
    assert_eq!(cache.spec.databases.cvr.max_conns, 30);
    assert_eq!(cache.spec.replication_manager.storage.size.0, "20Gi");
    // What the API server fills in is what is filled in here.
    let defaults = schema();
    let spec = &defaults["properties"]["spec"]["properties"];
    assert_eq!(spec["appId"]["default"], json!("zero"));
    assert_eq!(spec["viewSyncer"]["default"]["replicas"], json!(2));
    assert_eq!(spec["databases"]["properties"]["change"]["default"]["maxConns"], json!(5));
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
