//! What only the world can tell to be wrong ends in a condition and an event that say so, and heals by itself.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::json;

use crate::operator::Operator;
use crate::site::{Site, condition, install};

/// Waits for an event: it follows the condition.
async fn until_event(site: &Site, reason: &str, part: &str) -> Result<()> {
    let api: Api<Event> = site.api();
    let is_it = |event: &Event| {
        event.reason.as_deref() == Some(reason) && event.note.as_deref().unwrap_or_default().contains(part)
    };
    let end = Instant::now() + Duration::from_secs(5);
    while !api.list(&ListParams::default()).await?.iter().any(is_it) {
        ensure!(Instant::now() < end, "no event {reason} with {part:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_secret_heals_once_it_is_there() -> Result<()> {
    let site = Site::new("secret").await?;
    let _operator = Operator::start(&site).await?;
    site.create("shop", json!({ "databases": { "upstream": { "urlSecretRef": { "name": "later", "key": "url" } } } }))
        .await?;
    let is_missing = |text: &'static str| {
        move |cache: &serde_json::Value| {
            let (_, reason, message) = condition(cache, "UpstreamReady");
            reason == "SecretMissing" && message.contains(text) && cache["status"]["phase"] == "Pending"
        }
    };
    site.until("shop", "told of the Secret", 10, is_missing("Secret later does not exist")).await?;
    until_event(&site, "SecretMissing", "Secret later does not exist").await?;
    ensure!(site.api::<StatefulSet>().get_opt("shop-rm").await?.is_none(), "nothing is made without it");
    site.secret("later", json!({ "uri": "a" })).await?;
    site.until("shop", "told of the key", 10, is_missing("Secret later has no key url")).await?;
    site.secret("later", json!({ "url": site.database })).await?;
    site.until_ready("shop").await?;
    Ok(())
}

/// Told of before pods wait for a volume that cannot be mounted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_certificate_is_told_of_before_there_are_pods() -> Result<()> {
    let site = Site::new("certificate").await?;
    let _operator = Operator::start(&site).await?;
    site.create("shop", json!({ "security": { "changeStream": { "tlsSecretName": "stream" } } })).await?;
    let field = "security.changeStream.tlsSecretName";
    let says = |text: &'static str| {
        move |cache: &serde_json::Value| {
            let (_, reason, message) = condition(cache, "UpstreamReady");
            reason == "SecretMissing" && message.contains(field) && message.contains(text)
        }
    };
    site.until("shop", "told of the Secret", 10, says("Secret stream does not exist")).await?;
    site.secret("stream", json!({ "tls.crt": "certificate" })).await?;
    site.until("shop", "told of the key", 10, says("Secret stream has no key tls.key")).await?;
    ensure!(site.api::<StatefulSet>().get_opt("shop-rm").await?.is_none(), "nothing is made without it");
    site.secret("stream", json!({ "tls.crt": "certificate", "tls.key": "key" })).await?;
    let goes_on = |cache: &serde_json::Value| condition(cache, "UpstreamReady").0 == "True";
    site.until("shop", "going on", 30, goes_on).await?;
    let mounts_it = |set: &serde_json::Value| {
        let volumes = set["spec"]["template"]["spec"]["volumes"].as_array();
        volumes.is_some_and(|volumes| volumes.iter().any(|volume| volume["secret"]["secretName"] == "stream"))
    };
    site.until_object::<StatefulSet>("shop-rm", "made with the certificate", 10, mounts_it).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_for_one_slot_the_younger_waits() -> Result<()> {
    let site = Site::new("rivals").await?;
    let _operator = Operator::start(&site).await?;
    site.create("old", json!({ "appId": "zero" })).await?;
    site.until_ready("old").await?;
    site.create("young", json!({ "appId": "zero" })).await?;
    let waiting = |cache: &serde_json::Value| condition(cache, "Ready").1 == "InvalidSpec";
    let young = site.until("young", "refused", 10, waiting).await?;
    let (_, _, message) = condition(&young, "Ready");
    ensure!(message.contains(&format!("{}/old already uses this replication slot", site.name)), "{message}");
    until_event(&site, "InvalidSpec", "already uses this replication slot").await?;
    ensure!(site.api::<StatefulSet>().get_opt("young-rm").await?.is_none());
    // The same database by another spelling of its host, from another Secret.
    let other = site.database.replace("127.0.0.1", "localhost");
    ensure!(other != site.database);
    site.secret("alias", json!({ "url": other })).await?;
    let alias = json!({ "upstream": { "urlSecretRef": { "name": "alias", "key": "url" } } });
    site.create("alias", json!({ "appId": "zero", "databases": alias })).await?;
    site.until("alias", "refused", 20, waiting).await?;
    site.delete("alias").await?;
    // A Secret that is away, and comes back, gives the slot to nobody.
    site.api::<Secret>().delete("shop", &DeleteParams::default()).await?;
    site.until("old", "told", 20, |cache| condition(cache, "UpstreamReady").1 == "SecretMissing").await?;
    site.secret("shop", json!({ "upstream": site.database, "admin": "admin-password" })).await?;
    site.until("old", "healed", 40, |cache| condition(cache, "UpstreamReady").0 == "True").await?;
    let young = site.get("young").await?;
    ensure!(
        condition(&young, "Ready").1 == "InvalidSpec" && site.api::<StatefulSet>().get_opt("young-rm").await?.is_none()
    );
    site.delete("old").await?;
    site.until_gone("old").await?;
    site.until_ready("young").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_database_is_told_of_and_heals() -> Result<()> {
    let site = Site::new("database").await?;
    let _operator = Operator::start(&site).await?;
    let nowhere = format!("postgres://nobody:secret-word@127.0.0.1:{}/none", testkit::free_ports(1)?);
    site.secret("db", json!({ "url": nowhere })).await?;
    site.create("shop", json!({ "databases": { "upstream": { "urlSecretRef": { "name": "db", "key": "url" } } } }))
        .await?;
    let unreachable = |cache: &serde_json::Value| condition(cache, "UpstreamReady").1 == "Unreachable";
    let told = site.until("shop", "told", 20, unreachable).await?;
    ensure!(!told["status"].to_string().contains("secret-word"));
    site.secret("db", json!({ "url": site.database })).await?;
    site.until("shop", "healed", 30, |cache| condition(cache, "UpstreamReady").0 == "True").await?;
    Ok(())
}

/// Free-form for the API server, and not what it should be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_is_none_is_named() -> Result<()> {
    let site = Site::new("template").await?;
    let _operator = Operator::start(&site).await?;
    site.create("odd", json!({ "viewSyncer": { "podTemplate": { "spec": { "containers": 7 } } } })).await?;
    let odd = site.until("odd", "refused", 10, |cache| condition(cache, "Ready").1 == "InvalidSpec").await?;
    ensure!(condition(&odd, "Ready").2.contains("spec.viewSyncer.podTemplate is not a pod template"));
    Ok(())
}

/// Of another version's definition: the others must not suffer for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_cannot_be_read_stops_nobody() -> Result<()> {
    let site = Site::new("broken").await?;
    let _operator = Operator::start(&site).await?;
    let mut wider = crds::definition();
    let schema = &mut wider["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"];
    let values = schema["topology"]["enum"].as_array_mut().context("a topology is one of a few")?;
    values.push(json!("Ring"));
    install(site.client.clone(), wider).await?;
    let untyped = site.dynamic("zerocache.dev", "v1alpha1", "ZeroCache", "zerocaches");
    let odd = serde_json::from_value(site.document("odd", json!({ "topology": "Ring" })))?;
    // Definitions take a moment to be everywhere.
    let end = Instant::now() + Duration::from_secs(10);
    while let Err(error) = untyped.create(&Default::default(), &odd).await {
        ensure!(Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    site.create("shop", json!({})).await?;
    site.until_ready("shop").await?;
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let odd = serde_json::to_value(untyped.get("odd").await?)?;
        let (_, reason, message) = condition(&odd, "Ready");
        if reason == "InvalidSpec" && message.contains("Ring") {
            break;
        }
        ensure!(Instant::now() < end, "{odd:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    untyped.delete("odd", &Default::default()).await?;
    site.create("odd", json!({ "appId": "odd" })).await?;
    site.until_ready("odd").await?;
    Ok(())
}

/// A child that the API server refuses: what else can be made is made, and the condition has the API server's words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_child_is_told_of_and_heals() -> Result<()> {
    let site = Site::new("refused").await?;
    let _operator = Operator::start(&site).await?;
    let bad = json!([{ "name": "a", "mountPath": "/a" }]);
    site.create("shop", json!({ "replicationManager": { "extraVolumeMounts": bad } })).await?;
    let told = |cache: &serde_json::Value| condition(cache, "Degraded").1 == "ReconcileFailed";
    let cache = site.until("shop", "told of", 20, told).await?;
    let (_, _, message) = condition(&cache, "Degraded");
    ensure!(message.contains("apply StatefulSet shop-rm") && message.contains("volumeMounts"), "{message}");
    site.change("shop", json!({ "spec": { "replicationManager": { "extraVolumeMounts": [] } } })).await?;
    let healed = site.until_ready("shop").await?;
    ensure!(condition(&healed, "Degraded").0 == "False", "{:?}", condition(&healed, "Degraded"));
    Ok(())
}
