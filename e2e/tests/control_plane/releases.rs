//! Deletion in the order in which people and programs delete: the Secret first, everything at once, or with nothing behind it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;

use crate::operator::{Operator, Options};
use crate::site::Site;

/// Makes a slot as the data plane names it.
async fn make_slot(site: &Site, name: &str) -> Result<()> {
    let client = testkit::postgres::connect(&site.database).await?;
    client.execute("SELECT pg_create_logical_replication_slot($1::text::name, 'pgoutput')", &[&name]).await?;
    Ok(())
}

async fn has_slot(site: &Site, name: &str) -> Result<bool> {
    let client = testkit::postgres::connect(&site.database).await?;
    let rows = client.query("SELECT 1 FROM pg_replication_slots WHERE slot_name = $1::text::name", &[&name]).await?;
    Ok(!rows.is_empty())
}

/// An operator whose own namespace is another one, as where it is installed.
async fn elsewhere(site: &Site) -> Result<(Operator, Api<Secret>)> {
    let name = format!("{}-home", site.name);
    let namespace = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
    Api::<Namespace>::all(site.client.clone()).create(&PostParams::default(), &namespace).await?;
    let environment = BTreeMap::from([("POD_NAMESPACE", name.clone())]);
    let operator = Operator::start_with(site, Options { environment, ..Options::default() }).await?;
    Ok((operator, Api::namespaced(site.client.clone(), &name)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_goes_though_the_secret_went_first() -> Result<()> {
    let site = Site::new("first").await?;
    let (operator, kept) = elsewhere(&site).await?;
    site.create("shop", json!({ "appId": "first" })).await?;
    site.until_ready("shop").await?;
    make_slot(&site, "first_0_abc").await?;
    let copies = kept.list(&ListParams::default()).await?.items;
    let [copy] = copies.as_slice() else { anyhow::bail!("{} Secrets are kept", copies.len()) };
    ensure!(copy.data.as_ref().context("data")?["upstream"].0 == site.database.as_bytes());
    // What keeps it is not in memory.
    operator.kill().await?;
    site.api::<Secret>().delete("shop", &DeleteParams::default()).await?;
    site.delete("shop").await?;
    let environment = BTreeMap::from([("POD_NAMESPACE", format!("{}-home", site.name))]);
    let operator = Operator::start_with(&site, Options { environment, ..Options::default() }).await?;
    site.until_gone("shop").await.map_err(|error| error.context(operator.log()))?;
    ensure!(!has_slot(&site, "first_0_abc").await?, "the slot is left:\n{}", operator.log());
    ensure!(kept.list(&ListParams::default()).await?.items.is_empty(), "the copy is left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slot_goes_with_its_namespace() -> Result<()> {
    let site = Site::new("whole").await?;
    let (operator, kept) = elsewhere(&site).await?;
    site.create("shop", json!({ "appId": "whole" })).await?;
    site.until_ready("shop").await?;
    make_slot(&site, "whole_0_abc").await?;
    let namespaces: Api<Namespace> = Api::all(site.client.clone());
    namespaces.delete(&site.name, &DeleteParams::default()).await?;
    let end = Instant::now() + Duration::from_secs(150);
    while namespaces.get_opt(&site.name).await?.is_some() {
        ensure!(Instant::now() < end, "the namespace hangs:\n{}", operator.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(!has_slot(&site, "whole_0_abc").await?, "the slot is left:\n{}", operator.log());
    ensure!(kept.list(&ListParams::default()).await?.items.is_empty(), "the copy is left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_ran_goes_at_once() -> Result<()> {
    let site = Site::new("never").await?;
    let _operator = Operator::start(&site).await?;
    let missing = json!({ "upstream": { "urlSecretRef": { "name": "nobody", "key": "url" } } });
    site.create("shop", json!({ "databases": missing })).await?;
    site.until("shop", "told", 20, |cache| cache["status"]["phase"] == "Pending").await?;
    site.delete("shop").await?;
    site.until("shop", "gone", 15, serde_json::Value::is_null).await?;
    // A host that nobody has.
    site.kubelet
        .behave(|pods| {
            pods.is_streaming = false;
            pods.has_replica = false;
        })
        .await?;
    let nowhere = format!("postgres://nobody:word@127.0.0.1:{}/none", testkit::free_ports(1)?);
    site.secret("db", json!({ "url": nowhere })).await?;
    let mistyped = json!({ "upstream": { "urlSecretRef": { "name": "db", "key": "url" } } });
    site.create("typo", json!({ "databases": mistyped })).await?;
    site.until("typo", "held by its finalizer", 20, |cache| !cache["metadata"]["finalizers"].is_null()).await?;
    site.delete("typo").await?;
    site.until("typo", "gone", 60, serde_json::Value::is_null).await?;
    Ok(())
}
