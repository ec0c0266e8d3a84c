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
        (json!({ "viewSyncer": { "maxSurge": "00%", "maxUnavailable": "0%" } }), "must not both be 0"),
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

/// What Kubernetes takes as a quantity, and what it does not.
const QUANTITIES: &[&str] =
    &["10Gi", "4G", "1e3", "0.5", ".5Gi", "1.", "1k", "100m", "5n", "+3", "1E9", "2e-1", "99999999999999999999Ei"];
const NO_QUANTITIES: &[&str] = &[
    "10GB", "4GB", "4gb", "two", "", " 1", "1 ", "1 Gi", "-5Gi", "-1", "1e", "1e1.5", "Gi", ".", "+", "1.2.3", "0x10",
    "1,5Gi", "1_000", "1Zi", "1K", "1g", "NaN", "1e9999", "٣Gi",
];
const SHARES: &[&str] = &["0%", "7%", "25%", "100%"];
const NO_SHARES: &[&str] = &["25", "", "%", "2.5%", "-5%", "25 %", " 25%", "25%%", "a quarter", "1000000%"];

/// How to put a value into a document, the field that is named then, and what more the place says of values.
type Place = (fn(Value) -> Value, &'static str, bool);

/// Where documents hold quantities, and whether nothing is refused there.
fn places() -> Vec<Place> {
    vec![
        (|it| json!({ "replicationManager": { "storage": { "size": it } } }), "replicationManager.storage.size", true),
        (|it| json!({ "viewSyncer": { "storage": { "size": it } } }), "viewSyncer.storage.size", true),
        (
            |it| json!({ "viewSyncer": { "resources": { "limits": { "cpu": it } } } }),
            "viewSyncer.resources.limits",
            false,
        ),
        (
            |it| json!({ "replicationManager": { "resources": { "requests": { "memory": it } } } }),
            "replicationManager.resources.requests",
            false,
        ),
        (
            |it| json!({ "viewSyncer": { "autoscaling": { "podsMetric": { "name": "a", "targetAverage": it } } } }),
            "podsMetric.targetAverage",
            true,
        ),
    ]
}

/// Where documents hold numbers of pods, or shares of them, and whether more than all may be meant.
fn shares() -> Vec<Place> {
    vec![
        (|it| json!({ "viewSyncer": { "maxSurge": it, "maxUnavailable": 1 } }), "viewSyncer.maxSurge", true),
        (|it| json!({ "viewSyncer": { "maxUnavailable": it } }), "viewSyncer.maxUnavailable", false),
        (|it| json!({ "viewSyncer": { "pdb": { "maxUnavailable": it } } }), "pdb.maxUnavailable", false),
        (|it| json!({ "viewSyncer": { "pdb": { "minAvailable": it } } }), "pdb.minAvailable", false),
    ]
}

/// Documents that the schema refuses, with the field that is named.
pub fn misfits() -> Vec<(Value, &'static str)> {
    let mut all = Vec::new();
    for (put, field, is_positive) in places() {
        let zeros = ["0", "0Gi", "0.0"].into_iter().filter(|_| is_positive).map(Value::from);
        let numbers = [json!(-1), json!(1.5), json!(true), json!({})].into_iter().chain(is_positive.then(|| json!(0)));
        let texts = NO_QUANTITIES.iter().map(|text| json!(text));
        all.extend(texts.chain(zeros).chain(numbers).map(|value| (put(value), field)));
    }
    for (put, field, may_exceed_all) in shares() {
        let more = [json!("101%"), json!("250%")].into_iter().filter(|_| !may_exceed_all);
        let numbers = [json!(-1), json!(2.5), json!(3_000_000_000_u32)];
        all.extend(NO_SHARES.iter().map(|text| json!(text)).chain(more).chain(numbers).map(|it| (put(it), field)));
    }
    let spans = ["", "5", "m", "-5m", "1.5h", "1d", "5 m", "1234567s", "999999h999999h999999h999999h"];
    all.extend(spans.map(|text| (json!({ "monitoring": { "interval": text } }), "monitoring.interval")));
    all
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

/// Documents with each quantity and share that Kubernetes takes, where it takes it.
pub fn fits() -> Vec<Value> {
    let mut all = Vec::new();
    for (put, _, _) in places() {
        all.extend(QUANTITIES.iter().map(|text| json!(text)).chain([json!(3)]).map(put));
    }
    for (put, _, may_exceed_all) in shares() {
        let more = may_exceed_all.then(|| json!("250%"));
        all.extend(SHARES.iter().map(|text| json!(text)).chain([json!(0), json!(3)]).chain(more).map(put));
    }
    all
}

/// What was stored before quantities were looked at, and what a person makes of it: the old document and the new one.
pub fn repairs() -> Vec<(Value, Value)> {
    let storage = |size: &str| json!({ "replicationManager": { "storage": { "size": size } } });
    let memory = |text: &str| json!({ "requests": { "memory": text }, "limits": { "memory": "2Gi" } });
    let resources = |text: &str| json!({ "viewSyncer": { "resources": memory(text) } });
    vec![
        (storage("10GB"), storage("10Gi")),
        (storage("10GB"), storage("1Gi")),
        (storage("-5Gi"), storage("5Gi")),
        (resources("4GB"), resources("1Gi")),
        (json!({ "viewSyncer": { "maxSurge": "25" } }), json!({ "viewSyncer": { "maxSurge": "25%" } })),
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
