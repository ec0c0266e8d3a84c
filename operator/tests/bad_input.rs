//! What only the world can tell of a bad spec: a condition names the field and the remedy, an event says so once, what runs goes
//! on, and all of it heals by itself.

use crds::ZeroCache;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::{Value, json};
use zero_cache_operator::observe::{BackupFault, Databases, Fault, Observed, Pending, Secret, StoreFault};
use zero_cache_operator::plan::{Plan, Severity, Workload, plan};

use crate::model::{World, merge, resource};

/// A resource that runs, and the world around it.
fn running(spec: Value) -> (ZeroCache, Observed) {
    let mut all = json!({ "backup": { "credentialsSecretRef":
        { "name": "db", "accessKeyIdKey": "id", "secretAccessKeyKey": "key" } } });
    merge(&mut all, spec);
    let world = World::new(resource(all)).settle();
    (world.cache().clone(), world.observe())
}

/// A resource that was just made.
fn fresh(spec: Value) -> (ZeroCache, Observed) {
    let world = World::new(resource(spec));
    (world.cache().clone(), world.observe())
}

fn condition(plan: &Plan, kind: &str) -> Condition {
    plan.status.conditions.iter().find(|it| it.type_ == kind).unwrap_or_else(|| panic!("no condition {kind}")).clone()
}

/// What is said of a fault.
struct Said<'a> {
    kind: &'static str,
    reason: &'static str,
    event: &'static str,
    /// The field and the remedy.
    words: &'a [&'a str],
}

fn check(cache: &ZeroCache, good: &Observed, said: &Said<'_>, harm: impl Fn(&mut Observed)) {
    let mut bad = good.clone();
    harm(&mut bad);
    let first = plan(cache, &bad);
    let told = condition(&first, said.kind);
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("False", said.reason), "{}", told.message);
    for word in said.words {
        assert!(told.message.contains(word), "{}: {word:?} is missing in {:?}", said.reason, told.message);
    }
    let warned = |plan: &Plan| {
        let found = plan.events.iter().filter(|it| it.severity == Severity::Warning && it.reason == said.event);
        found.map(|it| it.message.clone()).collect::<Vec<_>>()
    };
    assert_eq!(warned(&first), [told.message], "an event says the same");
    // Said once, and gone by itself.
    let mut again = cache.clone();
    again.status = Some(first.status.clone());
    let second = plan(&again, &bad);
    assert_eq!((&second.status, warned(&second)), (&first.status, Vec::new()), "told or written again");
    let healed = plan(&again, good);
    assert_ne!(condition(&healed, said.kind).reason, said.reason);
}

#[test]
fn a_database_that_cannot_be_used_is_named_with_its_field_and_its_remedy() {
    let (cache, mut good) = running(json!({
        "databases": { "cvr": { "urlSecretRef": { "name": "db", "key": "cvr" } } },
    }));
    good.nodes.as_mut().unwrap().streaming = Some(false);
    let text = || "what was found".to_owned();
    let faults: [(Fault, &'static str, &'static str); 9] = [
        (Fault::InvalidUrl(text()), "InvalidUrl", "Secret"),
        (Fault::Unreachable(text()), "Unreachable", "check host and port"),
        (Fault::LoginRefused(text()), "LoginRefused", "check user and password"),
        (Fault::NoDatabase(text()), "NoDatabase", "create the database"),
        (Fault::Standby(text()), "Standby", "primary"),
        (Fault::WalLevel(text()), "WalLevelNotLogical", "set wal_level = logical and restart"),
        (Fault::VersionTooOld(text()), "VersionTooOld", "Postgres 15"),
        (Fault::NoReplicationRole(text()), "NoReplicationRole", "REPLICATION"),
        (Fault::SlotsExhausted(text()), "SlotsExhausted", "raise max_replication_slots"),
    ];
    for (fault, reason, remedy) in faults {
        let words = ["databases.upstream.urlSecretRef: what was found", remedy];
        let said = Said { kind: "UpstreamReady", reason, event: "PreflightFailed", words: &words };
        check(&cache, &good, &said, |observed| {
            observed.databases.upstream.as_mut().unwrap().fault = Some(fault.clone())
        });
    }
    let words = ["databases.cvr.urlSecretRef: gone", "check host and port"];
    let said = Said { kind: "UpstreamReady", reason: "Unreachable", event: "PreflightFailed", words: &words };
    check(&cache, &good, &said, |observed| {
        let mut probe = observed.databases.upstream.clone().unwrap();
        probe.fault = Some(Fault::Unreachable("gone".to_owned()));
        observed.databases.cvr = Some(probe);
    });
}

#[test]
fn a_missing_secret_or_key_is_named_with_the_fields_that_want_it() {
    fn said<'a>(words: &'a [&'a str]) -> Said<'a> {
        Said { kind: "UpstreamReady", reason: "SecretMissing", event: "SecretMissing", words }
    }
    let (cache, good) = running(json!({ "api": { "queryApiKeySecretRef": { "name": "db", "key": "key" } } }));
    let words = ["databases.upstream.urlSecretRef", "adminPassword", "Secret db does not exist", "namespace web"];
    check(&cache, &good, &said(&words), |observed| drop(observed.secrets.remove("db")));
    let words =
        ["api.queryApiKeySecretRef", "backup.credentialsSecretRef", "Secret db has no key key", "namespace web"];
    check(&cache, &good, &said(&words), |observed| {
        observed.secrets.get_mut("db").unwrap().keys.remove("key");
    });
    // Nothing is made for it, and what is there stays.
    let (cache, mut observed) = fresh(json!({}));
    observed.secrets.insert("db".to_owned(), Secret::default());
    let plan = plan(&cache, &observed);
    assert_eq!(plan.status.phase, Some(crds::status::Phase::Pending));
    assert_eq!(plan.objects.unwrap().stateful_set, Workload::Keep);
}

#[test]
fn a_store_that_cannot_be_used_is_named_with_its_field_and_its_remedy() {
    let (cache, good) = running(json!({}));
    let silent = Observed { nodes: None, ..good.clone() };
    let text = || "what was found".to_owned();
    let words = ["backup.url: what was found", "create the bucket"];
    let said = Said { kind: "BackupHealthy", reason: "NoSuchBucket", event: "BackupStale", words: &words };
    check(&cache, &silent, &said, |observed| observed.store_fault = Some(StoreFault::NoSuchBucket(text())));
    let words = ["backup.credentialsSecretRef: what was found", "check the keys"];
    let said = Said { kind: "BackupHealthy", reason: "AccessDenied", event: "BackupStale", words: &words };
    check(&cache, &silent, &said, |observed| observed.store_fault = Some(StoreFault::AccessDenied(text())));
    let words = ["backup.endpoint: what was found", "backup.region"];
    let said = Said { kind: "BackupHealthy", reason: "Unreachable", event: "BackupStale", words: &words };
    check(&cache, &silent, &said, |observed| observed.store_fault = Some(StoreFault::Unreachable(text())));
    // What the data plane says of its own writing counts more than what the operator can see.
    let mut fine = good.clone();
    fine.store_fault = Some(StoreFault::Unreachable(text()));
    assert_eq!(condition(&plan(&cache, &fine), "BackupHealthy").status, "True");
    let mut moving = cache.clone();
    moving.spec.generation = "v2".to_owned();
    assert_eq!(condition(&plan(&moving, &fine), "ResetBlocked").status, "False");
    let words = ["what was found", "backup.credentialsSecretRef", "s3://shop/replica"];
    let said = Said { kind: "BackupHealthy", reason: "AccessDenied", event: "BackupStale", words: &words };
    check(&cache, &good, &said, |observed| {
        observed.nodes.as_mut().unwrap().backup_fault = Some(BackupFault::AccessDenied(text()));
    });
}

#[test]
fn two_resources_for_one_slot_are_told_apart() {
    let (cache, good) = running(json!({}));
    let words = ["web/older already uses this replication slot", "another appId or shardNum", "delete one of the two"];
    let said = Said { kind: "Ready", reason: "InvalidSpec", event: "InvalidSpec", words: &words };
    check(&cache, &good, &said, |observed| observed.rivals = vec!["web/older".to_owned()]);
}

#[test]
fn a_lost_slot_is_named_though_no_node_answers() {
    let (cache, mut observed) = running(json!({}));
    observed.nodes = None;
    observed.databases.upstream.as_mut().unwrap().slot_lost = true;
    let told = condition(&plan(&cache, &observed), "Degraded");
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("True", "ReplicationStopped"));
    // Before the first copy is through, the last one's slot says nothing.
    let (cache, mut observed) = fresh(json!({}));
    observed.databases.upstream.as_mut().unwrap().slot_lost = true;
    assert_ne!(condition(&plan(&cache, &observed), "Degraded").reason, "ReplicationStopped");
}

/// Pods that are made before the databases said what they allow would have to be made again.
#[test]
fn the_first_pods_wait_for_the_databases_answer() {
    let (cache, mut observed) = fresh(json!({}));
    for name in ["shop-change-stream", "shop-admin"] {
        observed.secrets.insert(name.to_owned(), Secret { keys: [("value".to_owned(), "1".to_owned())].into() });
    }
    let probes = std::mem::take(&mut observed.databases);
    observed.pending = Pending { databases: true, ..Pending::default() };
    let waiting = plan(&cache, &observed);
    assert_eq!(waiting.status.current_image, None);
    assert!(condition(&waiting, "Ready").message.contains("asking the databases"));
    // Also a server that does not answer is an answer.
    observed.pending = Pending::default();
    assert!(plan(&cache, &observed).status.current_image.is_some());
    observed.databases = probes;
    assert!(plan(&cache, &observed).status.current_image.is_some());
}

/// An operator that starts knows nothing of what is outside, and must not undo or write anything for that.
#[test]
fn what_is_not_asked_yet_stays_as_it_was() {
    let fault = StoreFault::AccessDenied("no".to_owned());
    for (harmed, phase) in [(None, "Running"), (Some(fault), "Degraded")] {
        let (mut cache, mut good) = running(json!({ "viewSyncer": { "replicas": 4 } }));
        good.databases.upstream.as_mut().unwrap().limits.as_mut().unwrap().connections = 33;
        good.nodes = None;
        good.store_fault = harmed;
        // Smaller pools are rolled out.
        for _ in 0..6 {
            cache.status = Some(plan(&cache, &good).status);
        }
        assert!(cache.status.as_ref().unwrap().upgrade.is_some(), "{:#?}", cache.status);
        let mut blank = good.clone();
        blank.databases = Databases::default();
        blank.store_fault = None;
        blank.pending = Pending { databases: true, nodes: true, store: true };
        let started = plan(&cache, &blank);
        assert_eq!((Some(&started.status), started.events.as_slice()), (cache.status.as_ref(), &[][..]), "{phase}");
        assert_eq!(started.objects.unwrap().stateful_set, Workload::Keep);
    }
}

#[test]
fn what_the_replication_manager_reaches_is_no_fault_for_the_operator_not_reaching_it() {
    let (cache, mut observed) = running(json!({}));
    observed.databases.upstream.as_mut().unwrap().fault = Some(Fault::Unreachable("no route".to_owned()));
    observed.nodes.as_mut().unwrap().streaming = Some(true);
    let told = condition(&plan(&cache, &observed), "UpstreamReady");
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("Unknown", "NotChecked"));
    assert!(told.message.contains("no route") && told.message.contains("receives changes"), "{}", told.message);
    observed.nodes.as_mut().unwrap().streaming = Some(false);
    assert_eq!(condition(&plan(&cache, &observed), "UpstreamReady").reason, "Unreachable");
}

/// The limit of a database or role counts, also where the server allows more.
#[test]
fn the_smallest_limit_on_a_server_counts() {
    let (cache, mut observed) = running(json!({
        "databases": {
            "cvr": { "urlSecretRef": { "name": "db", "key": "cvr" }, "maxConns": 30 },
            "connectionBudget": { "mode": "Enforce" },
        },
    }));
    let mut cvr = observed.databases.upstream.clone().unwrap();
    cvr.limits.as_mut().unwrap().connections = 20;
    observed.databases.cvr = Some(cvr);
    let told = condition(&plan(&cache, &observed), "ConnectionBudgetSatisfied");
    assert_eq!(told.reason, "OverBudget");
    assert!(told.message.contains("of 20"), "{}", told.message);
}

#[test]
fn a_reset_waits_until_its_place_was_looked_at() {
    let (mut cache, mut observed) = running(json!({}));
    cache.spec.generation = "v2".to_owned();
    observed.pending.store = true;
    let step = |cache: &mut ZeroCache, observed: &Observed| {
        cache.status = Some(plan(cache, observed).status);
        cache.status.as_ref().unwrap().reset.clone().unwrap()
    };
    for _ in 0..3 {
        assert_eq!(step(&mut cache, &observed).step, crds::status::ResetStep::Requested);
    }
    observed.pending.store = false;
    let mut full = observed.clone();
    full.prefixes.insert("v2".to_owned(), 7);
    let said = |plan: &Plan| condition(plan, "ResetBlocked");
    let blocked = said(&plan(&cache, &full));
    assert_eq!(blocked.reason, "PrefixNotEmpty");
    assert!(blocked.message.contains("7 objects below s3://shop/replica/v2") && blocked.message.contains("new name"));
    let mut denied = observed.clone();
    denied.store_fault = Some(StoreFault::AccessDenied("no".to_owned()));
    assert_eq!(said(&plan(&cache, &denied)).reason, "AccessDenied");
    assert_eq!(step(&mut cache, &observed).step, crds::status::ResetStep::ReplicationManager);
}

/// A slot that another resource uses by now is not taken from it.
#[test]
fn what_another_resource_uses_is_not_released() {
    let world = World::new(resource(json!({ "deletion": { "upstream": "Delete" } }))).settle();
    let mut cache = world.cache().clone();
    cache.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-02T00:00:00Z")).unwrap());
    let mut observed = Observed { stateful_set: None, deployment: None, pods: Vec::new(), ..world.observe() };
    observed.rivals = vec!["web/other".to_owned()];
    let mut events = Vec::new();
    for _ in 0..8 {
        let next = plan(&cache, &observed);
        assert!(!next.actions.iter().any(|action| format!("{action:?}").contains("ReleaseUpstream")));
        cache.status = Some(next.status);
        events.extend(next.events);
    }
    let told = events.iter().filter(|event| event.reason == "NotReleased").collect::<Vec<_>>();
    assert!(told.len() == 1 && told[0].message.contains("web/other"), "{told:?}");
    assert!(!events.iter().any(|event| event.reason == "Released"), "{events:?}");
    assert_eq!(cache.status.unwrap().deletion.unwrap().step, crds::status::DeletionStep::Done);
}

/// Whoever runs the operator for several tenants may have it refuse what reaches beyond a namespace.
#[test]
fn raw_parts_of_pods_are_refused_where_the_installation_says_so() {
    for (part, field) in [
        (json!({ "podTemplate": { "spec": { "hostNetwork": true } } }), "viewSyncer.podTemplate"),
        (json!({ "extraVolumes": [{ "name": "node", "hostPath": { "path": "/" } }] }), "viewSyncer.extraVolumes"),
        (
            json!({ "extraVolumes": [{ "name": "other", "nfs": { "path": "/", "server": "nfs" } }] }),
            "viewSyncer.extraVolumes",
        ),
    ] {
        let (cache, observed) = fresh(json!({ "viewSyncer": part }));
        assert_ne!(condition(&plan(&cache, &observed), "Ready").reason, "InvalidSpec", "allowed by default");
        let words = [field, "does not allow"];
        let said = Said { kind: "Ready", reason: "InvalidSpec", event: "InvalidSpec", words: &words };
        check(&cache, &observed, &said, |observed| observed.installation.refuses_raw_fields = true);
    }
    let harmless = json!({ "viewSyncer": { "extraVolumes": [
        { "name": "a", "secret": { "secretName": "bundle" } },
        { "name": "b", "configMap": { "name": "bundle" } },
        { "name": "c", "emptyDir": {} },
    ] } });
    let (cache, mut observed) = fresh(harmless);
    observed.installation.refuses_raw_fields = true;
    assert_ne!(condition(&plan(&cache, &observed), "Ready").reason, "InvalidSpec");
}

/// What a tenant is told of the world outside depends on the class of a fault alone.
#[test]
fn coarse_messages_hold_nothing_that_was_read_outside() {
    const READ: &str = "10.0.0.7:5432 says: no pg_hba.conf entry for 172.16.0.9";
    let text = || READ.to_owned();
    let (cache, mut observed) = running(json!({}));
    observed.nodes.as_mut().unwrap().streaming = Some(false);
    let faults = [
        Fault::InvalidUrl(text()),
        Fault::Unreachable(text()),
        Fault::LoginRefused(text()),
        Fault::NoDatabase(text()),
        Fault::Standby(text()),
        Fault::WalLevel(text()),
        Fault::VersionTooOld(text()),
        Fault::NoReplicationRole(text()),
        Fault::SlotsExhausted(text()),
    ];
    let stores = [StoreFault::NoSuchBucket(text()), StoreFault::AccessDenied(text()), StoreFault::Unreachable(text())];
    let backups = [BackupFault::AccessDenied(text()), BackupFault::Failing(text())];
    let mut seen = Vec::new();
    for fault in faults {
        let mut bad = observed.clone();
        bad.databases.upstream.as_mut().unwrap().fault = Some(fault);
        seen.push(bad);
    }
    for fault in stores {
        seen.push(Observed { store_fault: Some(fault), nodes: None, ..observed.clone() });
    }
    for fault in backups {
        let mut bad = observed.clone();
        bad.nodes.as_mut().unwrap().backup_fault = Some(fault);
        seen.push(bad);
    }
    seen.push(Observed { release: Some(Err(text())), ..observed.clone() });
    for mut bad in seen {
        let said = |observed: &Observed| {
            let plan = plan(&cache, observed);
            let conditions = plan.status.conditions.iter().map(|it| it.message.clone());
            conditions.chain(plan.events.into_iter().map(|event| event.message)).collect::<Vec<_>>().join("\n")
        };
        let fine = said(&bad);
        bad.coarsen();
        let coarse = said(&bad);
        assert!(!coarse.contains("10.0.0.7"), "{coarse}");
        assert!(bad.release.is_some() || fine.contains("10.0.0.7"), "{fine}");
    }
}
