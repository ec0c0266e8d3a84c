//! What the API server says to documents: the definition is taken, its rules refuse what they are for, with their message.

use anyhow::{Context, Result, ensure};
use crds::ZeroCache;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};

use crate::operator::Operator;
use crate::site::{Site, condition, install};

#[path = "../../../crds/tests/documents.rs"]
mod documents;

use documents::{bad, bad_changes, document, fits, good, good_changes, long_name, misfits, repairs};

struct Door(Api<DynamicObject>);

impl Door {
    fn of(site: &Site) -> Door {
        Door(site.dynamic("zerocache.dev", "v1alpha1", "ZeroCache", "zerocaches"))
    }

    async fn create(&self, document: &Value) -> Result<(), kube::Error> {
        let object = serde_json::from_value(document.clone()).map_err(kube::Error::SerdeError)?;
        self.0.create(&PostParams::default(), &object).await.map(drop)
    }

    async fn replace(&self, document: &Value) -> Result<(), kube::Error> {
        let name = document["metadata"]["name"].as_str().unwrap_or_default();
        let before = self.0.get(name).await?;
        let mut document = document.clone();
        document["metadata"]["resourceVersion"] = json!(before.metadata.resource_version);
        let object = serde_json::from_value(document).map_err(kube::Error::SerdeError)?;
        self.0.replace(name, &PostParams::default(), &object).await.map(drop)
    }

    async fn remove(&self) -> Result<(), kube::Error> {
        self.0.delete("shop", &DeleteParams::default()).await.map(drop)
    }
}

/// The API server's message, when it refused a document as invalid.
fn refusal(outcome: Result<(), kube::Error>) -> Result<String> {
    match outcome {
        Ok(()) => Ok(String::new()),
        Err(kube::Error::Api(status)) if status.code == 422 => Ok(status.message.clone()),
        Err(error) => Err(error).context("the API server refused for another reason"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_rule_refuses_what_it_is_for() -> Result<()> {
    let site = Site::new("rules").await?;
    let door = Door::of(&site);
    for (spec, part) in bad() {
        let said = refusal(door.create(&document(spec.clone())).await)?;
        ensure!(said.contains(part), "{spec} should be refused with {part:?}, but: {said:?}");
    }
    let mut long = document(json!({}));
    long["metadata"]["name"] = json!(long_name());
    let said = refusal(door.create(&long).await)?;
    ensure!(said.contains("40 characters"), "{said:?}");
    for (old, new, part) in bad_changes() {
        door.create(&document(old.clone())).await.with_context(|| format!("create {old}"))?;
        let said = refusal(door.replace(&document(new.clone())).await)?;
        ensure!(said.contains(part), "{old} to {new} should be refused with {part:?}, but: {said:?}");
        door.remove().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_documents_and_changes_are_taken_and_read() -> Result<()> {
    let site = Site::new("good").await?;
    let door = Door::of(&site);
    let typed: Api<ZeroCache> = site.caches();
    for spec in good() {
        door.create(&document(spec.clone())).await.with_context(|| format!("create {spec}"))?;
        typed.get("shop").await.with_context(|| format!("read {spec}"))?;
        door.remove().await?;
    }
    for (old, new) in good_changes() {
        door.create(&document(old.clone())).await.with_context(|| format!("create {old}"))?;
        door.replace(&document(new.clone())).await.with_context(|| format!("{old} to {new}"))?;
        door.remove().await?;
    }
    Ok(())
}

/// Fields with a schema of their own: patterns, ranges and enumerations name the field.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_out_of_range_are_refused_by_name() -> Result<()> {
    let site = Site::new("ranges").await?;
    let door = Door::of(&site);
    for (spec, field) in [
        (json!({ "appId": "Shop!" }), "spec.appId"),
        (json!({ "shardNum": -1 }), "spec.shardNum"),
        (json!({ "generation": "../v1" }), "spec.generation"),
        (json!({ "backup": { "url": "https://shop" } }), "spec.backup.url"),
        (json!({ "backup": { "url": "s3://shop/a/../b" } }), "spec.backup.url"),
        (json!({ "topology": "Both" }), "spec.topology"),
        (json!({ "viewSyncer": { "replicas": 1001 } }), "spec.viewSyncer.replicas"),
        (json!({ "viewSyncer": { "preStopDelaySeconds": 61 } }), "spec.viewSyncer.preStopDelaySeconds"),
        (json!({ "replicationManager": { "terminationGracePeriodSeconds": 1 } }), "terminationGracePeriodSeconds"),
        (json!({ "publications": ["_zero"] }), "spec.publications"),
        (json!({ "upgrade": { "stepTimeout": "soon" } }), "spec.upgrade.stepTimeout"),
        (
            json!({ "databases": { "upstream": { "urlSecretRef": { "name": "a" } } } }),
            "spec.databases.upstream.urlSecretRef",
        ),
        (json!({ "databases": { "initialSync": { "tableCopyWorkers": 0 } } }), "tableCopyWorkers"),
    ] {
        let mut document = document(json!({}));
        if field.ends_with("urlSecretRef") {
            document["spec"]["databases"] = spec["databases"].clone();
        } else {
            crate::site::merge(&mut document["spec"], spec.clone());
        }
        let said = refusal(door.create(&document).await)?;
        ensure!(said.contains(field), "{spec} should be refused by name, but: {said:?}");
    }
    Ok(())
}

/// A field that nobody knows is a typing error: a strict client is told, and it is never stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_fields_are_not_stored() -> Result<()> {
    let site = Site::new("unknown").await?;
    let door = Door::of(&site);
    door.create(&document(json!({ "viewSyncers": { "replicas": 3 } }))).await?;
    let stored = serde_json::to_value(door.0.get("shop").await?)?;
    ensure!(stored["spec"].get("viewSyncers").is_none(), "{stored}");
    let strict =
        PatchParams { field_validation: Some(kube::api::ValidationDirective::Strict), ..PatchParams::default() };
    let patch = Patch::Merge(json!({ "spec": { "viewSyncers": {} } }));
    let refused = door.0.patch("shop", &strict, &patch).await;
    ensure!(refused.is_err_and(|error| error.to_string().contains("viewSyncers")));
    Ok(())
}

/// Every quantity, share and length that Kubernetes takes is taken, and no other: judged by the API server, without storing any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quantities_shares_and_lengths_are_those_that_kubernetes_takes() -> Result<()> {
    let site = Site::new("quantities").await?;
    let door = Door::of(&site);
    let try_out = PostParams { dry_run: true, ..PostParams::default() };
    let judge = async |spec: &Value| -> Result<String> {
        let object = serde_json::from_value(document(spec.clone()))?;
        refusal(door.0.create(&try_out, &object).await.map(drop))
    };
    for (spec, field) in misfits() {
        let said = judge(&spec).await?;
        ensure!(said.contains(field), "{spec} should be refused by name, but: {said:?}");
    }
    for spec in fits() {
        let said = judge(&spec).await?;
        ensure!(said.is_empty(), "{spec}: {said}");
    }
    Ok(())
}

/// Documents that were stored while nobody looked at quantities: they get a status that names the field, any other change passes,
/// and so does the correction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_before_gets_a_status_and_can_be_repaired() -> Result<()> {
    // Alone, for the kind is everybody's.
    let site = Site::alone("before").await?;
    let mut former = crds::definition();
    forget_quantities(&mut former["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
    install(site.client.clone(), former).await?;
    let mut names = Vec::new();
    for (number, (old, _)) in repairs().into_iter().enumerate() {
        let name = format!("old-{number}");
        let create = async || site.create(&name, old.clone()).await;
        // The API server takes the former rules up a moment later.
        let end = site.end(20);
        while create().await.is_err() {
            ensure!(std::time::Instant::now() < end, "the former definition does not take {old}");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        names.push(name);
    }
    install(site.client.clone(), crds::definition()).await?;
    let _operator = Operator::start(&site).await?;
    for (name, (old, new)) in names.iter().zip(repairs()) {
        let told = |cache: &Value| condition(cache, "Ready").1 == "InvalidSpec" && cache["status"]["phase"] == "Failed";
        site.until(name, "told of", 20, told).await.map_err(|error| error.context(old.to_string()))?;
        site.change(name, json!({ "spec": { "paused": true } })).await?;
        site.change(name, json!({ "spec": new })).await.map_err(|error| error.context(new.to_string()))?;
        site.until(name, "healed", 20, |cache| condition(cache, "Ready").1 != "InvalidSpec").await?;
        site.change(name, json!({ "spec": { "deletion": { "upstream": "Retain" } } })).await?;
        site.delete(name).await?;
        site.until_gone(name).await?;
    }
    Ok(())
}

/// Takes the bounds of quantities and shares off.
fn forget_quantities(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    if fields.get("x-kubernetes-int-or-string") == Some(&json!(true)) {
        fields.retain(|name, _| !["maxLength", "pattern", "minimum", "maximum"].contains(&name.as_str()));
    }
    // Their rules failed by them, at which nothing was stored.
    if let Some(rules) = fields.get_mut("x-kubernetes-validations").and_then(Value::as_array_mut) {
        rules.retain(|rule| !rule["rule"].as_str().unwrap_or_default().contains("uantity("));
    }
    fields.values_mut().for_each(forget_quantities);
}
