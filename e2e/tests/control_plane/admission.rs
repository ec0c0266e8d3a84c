//! What the API server says to documents: the definition is taken, its rules refuse what they are for, with their message.

use anyhow::{Context, Result, ensure};
use crds::ZeroCache;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};

use crate::site::Site;

#[path = "../../../crds/tests/documents.rs"]
mod documents;

use documents::{bad, bad_changes, document, good, good_changes, long_name};

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
