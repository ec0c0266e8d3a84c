//! The resources in `examples/kubernetes`: each is read wholly, breaks no rule, and comes with the Secrets it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crds::ZeroCache;

use crate::schema;

/// Documents of each file, by the file's name.
fn examples() -> BTreeMap<String, Vec<Value>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/kubernetes");
    let files = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let documents = text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap());
        (path.file_name().unwrap().to_string_lossy().into_owned(), documents.collect())
    };
    files.map(read).collect()
}

fn caches() -> Vec<(String, Value)> {
    let of = |(name, documents): (String, Vec<Value>)| {
        let caches: Vec<Value> = documents.into_iter().filter(|it| it["kind"] == "ZeroCache").collect();
        let [cache] = caches.try_into().unwrap_or_else(|all: Vec<Value>| panic!("{name} has {}", all.len()));
        (name, cache)
    };
    examples().into_iter().map(of).collect()
}

#[test]
fn each_example_breaks_no_rule() {
    let validator = kube_cel::Validator::new();
    for (name, cache) in caches() {
        let refused = validator.validate(&schema(), &cache, None);
        assert!(refused.is_ok(), "{name}: {refused:?}");
    }
}

/// The API server drops what it does not know with no more than a warning: a misspelt field would do nothing.
#[test]
fn each_example_is_read_wholly() {
    fn unknown(schema: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
        if schema["x-kubernetes-preserve-unknown-fields"] == true {
            return;
        }
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let known = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
                    match known {
                        Some(known) => unknown(known, value, &format!("{path}.{name}"), found),
                        None => found.push(format!("{path}.{name}")),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| unknown(&schema["items"], item, path, found)),
            _ => {}
        }
    }
    for (name, cache) in caches() {
        let mut found = Vec::new();
        unknown(&schema()["properties"]["spec"], &cache["spec"], "spec", &mut found);
        assert!(found.is_empty(), "{name}: the resource has no {found:?}");
        let read: ZeroCache = serde_json::from_value(cache).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read.metadata.name.as_deref(), Some("shop"), "{name}");
    }
}

/// Whatever names a Secret and a key names one that the file has, and the file has none beside those.
#[test]
fn each_example_has_its_secrets() {
    fn references(value: &Value, found: &mut BTreeSet<(String, String)>) {
        if let Some(name) = value["name"].as_str() {
            for key in ["key", "accessKeyIdKey", "secretAccessKeyKey", "sessionTokenKey"] {
                // A toleration has a key as well, but its name is not there.
                if let Some(key) = value[key].as_str() {
                    found.insert((name.to_owned(), key.to_owned()));
                }
            }
        }
        match value {
            Value::Object(fields) => fields.values().for_each(|field| references(field, found)),
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    for (name, documents) in examples() {
        let (mut wanted, mut there) = (BTreeSet::new(), BTreeSet::new());
        for document in &documents {
            match document["kind"].as_str() {
                Some("ZeroCache") => references(&document["spec"], &mut wanted),
                Some("Secret") => {
                    let secret = document["metadata"]["name"].as_str().unwrap();
                    let keys = document["stringData"].as_object().unwrap().keys();
                    there.extend(keys.map(|key| (secret.to_owned(), key.clone())));
                }
                Some("ConfigMap") => {}
                other => panic!("{name}: {other:?}"),
            }
        }
        assert_eq!(wanted, there, "{name}");
    }
}

/// Both topologies, all ways in and all that is hard to find out by oneself are shown.
#[test]
fn the_examples_show_what_there_is() {
    let caches = caches();
    let shown = |what: &str, is_it: &dyn Fn(&ZeroCache) -> bool| {
        let read = caches.iter().map(|(_, cache)| serde_json::from_value(cache.clone()).unwrap());
        assert!({ read }.any(|cache: ZeroCache| is_it(&cache)), "no example of {what}");
    };
    use crds::spec::{BudgetMode, Provider, ServiceType, Topology, UpgradeStrategy};
    shown("a single node", &|it| it.spec.topology == Topology::SingleNode && it.spec.backup.is_none());
    shown("keys of a store", &|it| it.spec.backup.as_ref().is_some_and(|it| it.credentials_secret_ref.is_some()));
    shown("workload identity", &|it| {
        let is_without_keys = it.spec.backup.as_ref().is_some_and(|it| it.credentials_secret_ref.is_none());
        is_without_keys && !it.spec.security.service_account.annotations.is_empty()
    });
    for provider in [Provider::Traefik, Provider::IngressNginx, Provider::HAProxyIngress, Provider::GatewayAPI] {
        shown("a way in", &|it| it.spec.ingress.enabled && it.spec.ingress.provider == provider);
    }
    shown("a load balancer", &|it| it.spec.ingress.service.r#type == ServiceType::LoadBalancer);
    shown("autoscaling", &|it| it.spec.view_syncer.autoscaling.is_some());
    shown("poolers", &|it| it.spec.databases.cvr.url_secret_ref.is_some());
    shown("a gate", &|it| it.spec.upgrade.strategy == UpgradeStrategy::Manual);
    shown("an enforced budget", &|it| it.spec.databases.connection_budget.mode == BudgetMode::Enforce);
    shown("certificates between nodes", &|it| it.spec.security.change_stream.tls_secret_name.is_some());
    shown("a standby", &|it| it.spec.replication_manager.standby.enabled);
    shown("retention", &|it| it.spec.backup.as_ref().is_some_and(|it| it.retention.enabled));
}
