//! Documents that the rules of the definition refuse, and documents that they let pass: judged here by the rules, and by a real API
//! server elsewhere.

use serde_json::{Value, json};

pub fn document(spec: Value) -> Value {
    let mut document = json!({
        "apiVersion": "zerocache.dev/v1alpha1",
        "kind": "ZeroCache",
        "metadata": { "name": "shop" },
        "spec": {
            "adminPassword": { "name": "shop", "key": "admin" },
            "databases": { "upstream": { "urlSecretRef": { "name": "shop", "key": "upstream" } } },
            "backup": { "url": "s3://shop/replica" },
        },
    });
    merge(&mut document["spec"], spec);
    document
}

/// Null takes a field away.
fn merge(into: &mut Value, from: Value) {
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

/// Documents that one rule refuses, with a part of its message.
pub fn bad() -> Vec<(Value, &'static str)> {
    let storage = |size: &str| json!({ "requests": { "memory": size }, "limits": { "memory": "1Gi" } });
    vec![
        (json!({ "backup": null }), "needs backup.url"),
        (json!({ "adminPassword": null }), "needs adminPassword"),
        (json!({ "topology": "SingleNode", "viewSyncer": { "autoscaling": {} } }), "remove viewSyncer.autoscaling"),
        (
            json!({ "topology": "SingleNode", "replicationManager": { "standby": { "enabled": true } } }),
            "remove replicationManager.standby",
        ),
        (
            json!({ "topology": "SingleNode", "security": { "changeStream": { "tlsSecretName": "stream" } } }),
            "remove security.changeStream.tlsSecretName",
        ),
        (
            json!({ "topology": "SingleNode", "replicationManager": { "handoff": "Overlap" } }),
            "remove replicationManager.handoff",
        ),
        (
            json!({ "viewSyncer": { "numSyncWorkers": 9 }, "databases": { "cvr": { "maxConns": 8 } } }),
            "numSyncWorkers must not be greater",
        ),
        (json!({ "image": { "tag": "1", "digest": format!("sha256:{}", "a".repeat(64)) } }), "a tag or a digest"),
        (
            json!({ "api": { "auth": { "jwksUrl": "http://a", "secretRef": { "name": "a", "key": "b" } } } }),
            "at most one of secretRef",
        ),
        (json!({ "backup": { "incrementalInterval": "2h" } }), "incrementalInterval must be"),
        (json!({ "backup": { "incrementalInterval": "0s" } }), "incrementalInterval must be"),
        (json!({ "backup": { "snapshotInterval": "59m" } }), "snapshotInterval must be"),
        (json!({ "backup": { "retention": { "minAge": "5m" } } }), "minAge must be"),
        (json!({ "upgrade": { "stepTimeout": "30s" } }), "stepTimeout must be"),
        (json!({ "deletion": { "timeout": "25h" } }), "timeout must be between"),
        (json!({ "monitoring": { "interval": "2h" } }), "interval must be between"),
        (json!({ "viewSyncer": { "resources": storage("2Gi") } }), "limits.memory must not be less"),
        (json!({ "replicationManager": { "resources": storage("1025Mi") } }), "limits.memory must not be less"),
        (json!({ "viewSyncer": { "maxSurge": 0 } }), "must not both be 0"),
        (json!({ "viewSyncer": { "maxSurge": "0%" } }), "must not both be 0"),
        (
            json!({ "viewSyncer": { "terminationGracePeriodSeconds": 60, "preStopDelaySeconds": 31 } }),
            "must be at least preStopDelaySeconds",
        ),
        (json!({ "viewSyncer": { "pdb": { "maxUnavailable": 1, "minAvailable": 1 } } }), "exactly one of"),
        (json!({ "viewSyncer": { "pdb": {} } }), "exactly one of"),
        (json!({ "viewSyncer": { "autoscaling": { "minReplicas": 11 } } }), "minReplicas must not be greater"),
        (json!({ "ingress": { "enabled": true } }), "at least one name in hosts"),
        (
            json!({ "ingress": { "enabled": true, "hosts": ["a.b"], "provider": "GatewayAPI" } }),
            "needs gateway.parentRefs",
        ),
    ]
}

/// Changes that one rule refuses: the old document, the new one, and a part of the message.
pub fn bad_changes() -> Vec<(Value, Value, &'static str)> {
    let storage = |storage: Value| json!({ "replicationManager": { "storage": storage } });
    vec![
        (json!({}), json!({ "topology": "SingleNode" }), "topology cannot be changed"),
        (json!({}), json!({ "appId": "other" }), "appId cannot be changed"),
        (json!({}), json!({ "shardNum": 1 }), "shardNum cannot be changed"),
        (json!({}), json!({ "generation": "v2", "image": { "tag": "2" } }), "in two steps"),
        (json!({}), storage(json!({ "type": "Ephemeral" })), "storage.type"),
        (json!({}), storage(json!({ "className": "fast" })), "storage.className"),
        (storage(json!({ "className": "fast" })), json!({}), "storage.className"),
        (storage(json!({ "className": "fast" })), storage(json!({ "className": "slow" })), "storage.className"),
        (storage(json!({ "size": "2Ti" })), storage(json!({ "size": "1999Gi" })), "storage.size cannot shrink"),
    ]
}

/// Longer names than children can carry.
pub fn long_name() -> String {
    "a".repeat(41)
}

pub fn good() -> Vec<Value> {
    vec![
        json!({}),
        json!({ "topology": "SingleNode", "adminPassword": null, "backup": null }),
        json!({ "viewSyncer": { "numSyncWorkers": 8, "maxSurge": "25%", "pdb": { "minAvailable": "50%" } } }),
        json!({ "viewSyncer": { "resources": { "requests": { "memory": 1_073_741_824 }, "limits": { "memory": "1Gi" } } } }),
        json!({ "ingress": { "enabled": true, "hosts": ["a.b"], "provider": "GatewayAPI", "gateway": { "parentRefs": [{ "name": "g" }] } } }),
        json!({ "backup": { "incrementalInterval": "1m30s", "snapshotInterval": "168h" } }),
    ]
}

/// Changes that pass: the old document and the new one.
pub fn good_changes() -> Vec<(Value, Value)> {
    let storage = |storage: Value| json!({ "replicationManager": { "storage": storage } });
    vec![
        (json!({}), json!({ "generation": "v2" })),
        (json!({}), json!({ "image": { "tag": "2" } })),
        (storage(json!({ "size": "1Ti" })), storage(json!({ "size": "1025Gi" }))),
        (
            json!({ "viewSyncer": { "storage": { "size": "40Gi" } } }),
            json!({ "viewSyncer": { "storage": { "size": "20Gi" } } }),
        ),
    ]
}
