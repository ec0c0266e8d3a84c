//! Objects of others that have the names which a resource's objects are to have: left alone, named, and there after all is over.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

use crate::operator::Operator;
use crate::site::{Site, condition};

/// An application that is called as its ZeroCache will be.
async fn application(site: &Site) -> Result<()> {
    let metadata = json!({ "name": "shop", "labels": { "app": "shop" } });
    let ports = json!([{ "name": "http", "port": 80 }]);
    let service = json!({ "metadata": metadata, "spec": { "selector": { "app": "shop" }, "ports": ports } });
    let backend = json!({ "service": { "name": "shop", "port": { "name": "http" } } });
    let ingress = json!({ "metadata": metadata, "spec": { "defaultBackend": backend } });
    let parameters = PostParams::default();
    site.api::<Service>().create(&parameters, &serde_json::from_value(service)?).await?;
    site.api::<Ingress>().create(&parameters, &serde_json::from_value(ingress)?).await?;
    site.api::<ServiceAccount>().create(&parameters, &serde_json::from_value(json!({ "metadata": metadata }))?).await?;
    Ok(())
}

/// Versions of the application's objects.
async fn versions(site: &Site) -> Result<Vec<Option<String>>> {
    Ok(vec![
        site.api::<Service>().get("shop").await?.metadata.resource_version,
        site.api::<Ingress>().get("shop").await?.metadata.resource_version,
        site.api::<ServiceAccount>().get("shop").await?.metadata.resource_version,
    ])
}

fn is_taken(cache: &Value, names: &[&str]) -> bool {
    let (status, reason, message) = condition(cache, "Ready");
    status == "False" && reason == "NameTaken" && names.iter().all(|name| message.contains(name))
}

fn single() -> Value {
    json!({
        "topology": "SingleNode", "backup": null, "adminPassword": null,
        "ingress": { "enabled": true, "hosts": ["shop.test"], "provider": "Traefik" },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_of_the_same_name_keeps_its_objects() -> Result<()> {
    let site = Site::new("strangers").await?;
    let operator = Operator::start(&site).await?;
    application(&site).await?;
    let before = versions(&site).await?;
    site.create("shop", single()).await?;
    let names = ["Service shop", "Ingress shop", "ServiceAccount shop"];
    site.until("shop", "told of the names", 20, |cache| is_taken(cache, &names)).await?;
    ensure!(site.api::<Pod>().list(&ListParams::default()).await?.items.is_empty(), "it runs as a stranger");
    site.until_object::<Service>("shop-headless", "made like the rest", 10, |it| !it.is_null()).await?;
    site.delete("shop").await?;
    site.until_gone("shop").await?;
    ensure!(versions(&site).await? == before, "they were written to");
    // An operator that was not there meanwhile finds the same.
    site.create("shop", single()).await?;
    site.until("shop", "told of the names", 20, |cache| is_taken(cache, &names)).await?;
    operator.kill().await?;
    let operator = Operator::start(&site).await?;
    site.change("shop", json!({ "metadata": { "annotations": { "test/again": "1" } } })).await?;
    operator.until_ready(true).await?;
    ensure!(versions(&site).await? == before, "they were written to");
    site.api::<Service>().delete("shop", &DeleteParams::default()).await?;
    site.api::<Ingress>().delete("shop", &DeleteParams::default()).await?;
    site.api::<ServiceAccount>().delete("shop", &DeleteParams::default()).await?;
    site.change("shop", json!({ "metadata": { "annotations": { "test/again": "2" } } })).await?;
    site.until_ready("shop").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_resources_do_not_take_each_other_s_objects() -> Result<()> {
    let site = Site::new("collide").await?;
    let _operator = Operator::start(&site).await?;
    site.create("shop", json!({})).await?;
    site.until_ready("shop").await?;
    let service = site.api::<Service>().get("shop-rm").await?.metadata;
    let mut spec = single();
    spec["ingress"] = json!(null);
    site.create("shop-rm", spec).await?;
    let names = ["Service shop-rm of ZeroCache shop", "StatefulSet shop-rm of ZeroCache shop"];
    site.until("shop-rm", "told of the names", 20, |cache| is_taken(cache, &names)).await?;
    site.delete("shop-rm").await?;
    site.until_gone("shop-rm").await?;
    let after = site.api::<Service>().get("shop-rm").await?.metadata;
    ensure!((after.uid, after.resource_version) == (service.uid, service.resource_version), "it was written to");
    site.until_ready("shop").await?;
    Ok(())
}
