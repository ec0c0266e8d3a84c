//! What people write: a resource, and changes of its spec.

use crds::ZeroCache;
use serde_json::{Value, json};

use super::World;

/// A resource with the few fields that must be given, changed by `spec`.
pub fn resource(spec: Value) -> ZeroCache {
    let mut document = json!({
        "apiVersion": "zerocache.dev/v1alpha1",
        "kind": "ZeroCache",
        "metadata": {
            "name": "shop", "namespace": "web", "uid": "5e2c0f7e-0000-4000-8000-000000000001", "generation": 1,
        },
        "spec": {
            "adminPassword": { "name": "db", "key": "admin" },
            "databases": { "upstream": { "urlSecretRef": { "name": "db", "key": "upstream" } } },
            "backup": { "url": "s3://shop/replica" },
            "viewSyncer": { "replicas": 1 },
            "deletion": { "upstream": "Retain" },
        },
    });
    merge(&mut document["spec"], spec);
    serde_json::from_value(document).unwrap()
}

/// Null takes a field away.
pub fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                if value.is_null() {
                    into.remove(&name);
                } else {
                    merge(into.entry(name).or_insert(Value::Null), value);
                }
            }
        }
        (into, from) => *into = from,
    }
}

/// A person changes the spec.
pub fn edit(world: &World, spec: Value) -> World {
    let mut next = world.clone();
    let mut document = serde_json::to_value(&next.cache.spec).unwrap();
    merge(&mut document, spec);
    next.change(|cache| cache.spec = serde_json::from_value(document).unwrap());
    next
}
