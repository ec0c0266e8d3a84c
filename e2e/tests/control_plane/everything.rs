//! All that an operator does, so that it asks for all that it ever asks for.

use anyhow::{Result, ensure};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ServiceAccount};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::site::{Site, condition};

/// Takes an operator through everything that it does.
pub async fn everything(site: &Site) -> Result<()> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": "growing" },
        "provisioner": "kubernetes.io/host-path", "allowVolumeExpansion": true,
    });
    let classes: kube::Api<k8s_openapi::api::storage::v1::StorageClass> = kube::Api::all(site.client.clone());
    classes.patch("growing", &PatchParams::apply("test").force(), &Patch::Apply(class)).await?;
    let storage = |size: &str| json!({ "type": "Persistent", "size": size, "className": "growing" });
    let ingress = json!({ "enabled": true, "hosts": ["shop.test"], "provider": "Traefik" });
    site.create(
        "shop",
        json!({
            "replicationManager": { "storage": storage("1Gi"), "standby": { "enabled": true } },
            "viewSyncer": { "autoscaling": { "minReplicas": 1 } },
            "ingress": ingress,
            "backup": { "url": "s3://shop/replica", "retention": { "deleteOnRemoval": true } },
        }),
    )
    .await?;
    site.until_ready("shop").await?;
    site.until_object::<HorizontalPodAutoscaler>("shop-vs", "made", 20, |it| !it.is_null()).await?;
    // Routes of both kinds, then none; nothing that can be switched off is left on.
    let routes = site.dynamic("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes");
    let gateway = json!({ "provider": "GatewayAPI", "gateway": { "parentRefs": [{ "name": "g" }] } });
    site.change("shop", json!({ "spec": { "ingress": gateway } })).await?;
    site.until_object::<Ingress>("shop", "removed", 20, Value::is_null).await?;
    ensure!(routes.get_opt("shop").await?.is_some());
    let monitors = site.dynamic("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors");
    ensure!(monitors.get_opt("shop").await?.is_some());
    site.change("shop", json!({ "spec": {
        "ingress": { "enabled": false }, "networkPolicy": { "enabled": false }, "monitoring": { "podMonitor": "Never" },
        "viewSyncer": { "autoscaling": null }, "replicationManager": { "standby": { "enabled": false } },
        "security": { "serviceAccount": { "create": false, "name": "default" } },
    }}))
    .await?;
    site.until_object::<NetworkPolicy>("shop-vs", "removed", 20, Value::is_null).await?;
    site.until_object::<ServiceAccount>("shop", "removed", 20, Value::is_null).await?;
    site.until_object::<PodDisruptionBudget>("shop-rm", "removed", 20, Value::is_null).await?;
    site.until_object::<HorizontalPodAutoscaler>("shop-vs", "removed", 20, Value::is_null).await?;
    until_absent(&routes).await?;
    until_absent(&monitors).await?;
    let idle = |cache: &Value| cache["status"]["upgrade"].is_null() && condition(cache, "Ready").0 == "True";
    site.until("shop", "rolled out", 60, |cache| {
        idle(cache) && cache["status"]["observedGeneration"] == cache["metadata"]["generation"]
    })
    .await?;
    // A volume grows, a pod is stuck, the same is told of twice.
    site.change("shop", json!({ "spec": { "replicationManager": { "storage": storage("2Gi") } } })).await?;
    let asked = |claim: &Value| claim["spec"]["resources"]["requests"]["storage"] == "2Gi";
    site.until_object::<PersistentVolumeClaim>("data-shop-rm-0", "asked to grow", 20, asked).await?;
    site.kubelet
        .behave(|pods| {
            pods.broken.insert("1.0.9".to_owned());
        })
        .await?;
    site.change("shop", json!({ "spec": { "image": { "tag": "1.0.9" } } })).await?;
    site.until("shop", "crashing", 60, |cache| condition(cache, "ReplicationManagerReady").1 == "CrashLoop").await?;
    site.change("shop", json!({ "spec": { "image": { "tag": "1.0.0" } } })).await?;
    site.until("shop", "back", 60, idle).await?;
    for is_paused in [true, false, true, false] {
        site.change("shop", json!({ "spec": { "paused": is_paused } })).await?;
        let wanted = if is_paused { "True" } else { "False" };
        site.until("shop", "paused", 10, |cache| condition(cache, "ReconciliationPaused").0 == wanted).await?;
    }
    // Deletion, with a Job that says that it deleted the backup.
    site.delete("shop").await?;
    site.until("shop", "deleting backups", 60, |cache| cache["status"]["deletion"]["step"] == "DeleteBackups").await?;
    let jobs = site.api::<Job>();
    let end = site.end(20);
    let job = loop {
        if let Some(job) = jobs.list(&ListParams::default()).await?.items.pop() {
            break job.metadata.name.unwrap_or_default();
        }
        ensure!(std::time::Instant::now() < end, "no Job was made");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    };
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let ended = |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": now });
    // The container ends, as the Job's controller sees it.
    let pods = site.api::<Pod>();
    let selector = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job}"));
    let end = site.end(20);
    while pods.list(&selector).await?.items.is_empty() {
        ensure!(std::time::Instant::now() < end, "the Job made no pod");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    for pod in pods.list(&selector).await? {
        let name = pod.metadata.name.unwrap_or_default();
        let terminated = json!({ "exitCode": 0, "message": "deleted 3 objects", "finishedAt": now, "startedAt": now });
        let status = json!({ "status": {
            "phase": "Succeeded", "conditions": [ended("PodReadyToStartContainers")],
            "containerStatuses": [{ "name": "zero-cache", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "terminated": terminated } }],
        }});
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
    }
    site.until_gone("shop").await
}

/// What the operator was refused to remove goes once it may.
async fn until_absent(api: &kube::Api<kube::core::DynamicObject>) -> Result<()> {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while api.get_opt("shop").await?.is_some() {
        ensure!(std::time::Instant::now() < end, "{} shop is still there", api.resource_url());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    Ok(())
}
