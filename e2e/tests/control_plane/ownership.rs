//! Fields and objects that belong to others, objects that are not wanted any longer, and objects that somebody took away.

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::operator::Operator;
use crate::site::Site;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_autoscaler_keeps_its_number() -> Result<()> {
    let site = Site::new("autoscaler").await?;
    let operator = Operator::start(&site).await?;
    site.create("shop", json!({ "viewSyncer": { "replicas": 3 } })).await?;
    site.until_ready("shop").await?;
    let deployments = site.api::<Deployment>();
    let autoscaling = json!({ "minReplicas": 2, "maxReplicas": 6 });
    site.change("shop", json!({ "spec": { "viewSyncer": { "autoscaling": autoscaling } } })).await?;
    site.until_object::<HorizontalPodAutoscaler>("shop-vs", "made", 20, |it| !it.is_null()).await?;
    // The operator holds the number until somebody else does.
    site.until_object::<Deployment>("shop-vs", "given up", 20, |it| {
        let managers = it["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
        managers
            .iter()
            .all(|it| it["manager"] != "zerocache-operator" || it["fieldsV1"]["f:spec"]["f:replicas"].is_null())
    })
    .await?;
    // What an autoscaler does.
    let scale = json!({ "spec": { "replicas": 5 } });
    deployments.patch_scale("shop-vs", &PatchParams::default(), &Patch::Merge(scale)).await?;
    site.until("shop", "scaled", 30, |cache| cache["status"]["viewSyncer"]["readyReplicas"] == 5).await?;
    // A rollout, in which the Deployment is applied anew, leaves it alone.
    site.change("shop", json!({ "spec": { "logging": { "level": "debug" } } })).await?;
    site.until("shop", "rolling out", 20, |cache| !cache["status"]["upgrade"].is_null()).await?;
    site.until("shop", "rolled out", 60, |cache| cache["status"]["upgrade"].is_null()).await?;
    ensure!(deployments.get_scale("shop-vs").await?.spec.and_then(|spec| spec.replicas) == Some(5));
    // Taken back, the number is the resource's again.
    site.change("shop", json!({ "spec": { "viewSyncer": { "autoscaling": null } } })).await?;
    site.until("shop", "scaled", 30, |cache| cache["status"]["viewSyncer"]["replicas"] == 3).await?;
    site.until_object::<HorizontalPodAutoscaler>("shop-vs", "removed", 20, Value::is_null).await?;
    // Who writes at the same time as a user looks again.
    for category in ["forbidden", "refused", "missing", "panicked"] {
        let errors = operator.metric("zerocache_operator_reconcile_errors_total", &[category]).await?;
        ensure!(errors == 0.0, "{category}: {}", operator.log());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_add_stays_and_what_they_change_is_put_right() -> Result<()> {
    let site = Site::new("drift").await?;
    let _operator = Operator::start(&site).await?;
    site.create("shop", json!({})).await?;
    site.until_ready("shop").await?;
    let services = site.api::<Service>();
    let theirs = json!({ "metadata": { "labels": { "team": "web" }, "annotations": { "cost": "7" } } });
    services.patch("shop-vs", &PatchParams::default(), &Patch::Merge(theirs)).await?;
    let meddling = json!({ "spec": { "ports": [{ "name": "sync", "port": 4848, "targetPort": 1 }] } });
    services.patch("shop-vs", &PatchParams::default(), &Patch::Merge(meddling)).await?;
    let right = |service: &Value| {
        let ports = service["spec"]["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
        ports.iter().any(|port| port["port"] == 4848 && port["targetPort"] == "sync")
    };
    let service = site.until_object::<Service>("shop-vs", "put right", 10, right).await?;
    ensure!(service["metadata"]["labels"]["team"] == "web" && service["metadata"]["annotations"]["cost"] == "7");
    // Labels by which the operator finds its objects.
    let unmarked = json!({ "metadata": { "labels": { "app.kubernetes.io/managed-by": null } } });
    services.patch("shop-rm", &PatchParams::default(), &Patch::Merge(unmarked)).await?;
    site.until_object::<Service>("shop-rm", "marked again", 10, |service| {
        service["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "zerocache-operator"
    })
    .await?;
    for name in ["shop-vs", "shop-rm"] {
        site.api::<NetworkPolicy>().delete(name, &DeleteParams::default()).await?;
        site.until_object::<NetworkPolicy>(name, "made again", 10, |it| !it.is_null()).await?;
    }
    site.api::<StatefulSet>().delete("shop-rm", &DeleteParams::default()).await?;
    site.until_object::<StatefulSet>("shop-rm", "made again", 20, |it| {
        it["metadata"]["deletionTimestamp"].is_null() && !it.is_null()
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_switched_off_is_removed() -> Result<()> {
    let site = Site::new("orphans").await?;
    let _operator = Operator::start(&site).await?;
    let ingress = json!({ "enabled": true, "hosts": ["shop.test"], "provider": "Traefik" });
    site.create("shop", json!({ "ingress": ingress, "viewSyncer": { "autoscaling": { "minReplicas": 1 } } })).await?;
    site.until_object::<Ingress>("shop", "made", 20, |it| !it.is_null()).await?;
    site.until_object::<HorizontalPodAutoscaler>("shop-vs", "made", 20, |it| !it.is_null()).await?;
    // One of the same labels that nobody's resource controls is not the operator's to remove.
    let labels = json!({
        "app.kubernetes.io/name": "zero-cache", "app.kubernetes.io/instance": "shop",
        "app.kubernetes.io/managed-by": "zerocache-operator",
    });
    let stranger = json!({ "metadata": { "name": "stranger", "labels": labels } });
    site.api::<ServiceAccount>().create(&Default::default(), &serde_json::from_value(stranger)?).await?;
    let off = json!({ "spec": {
        "ingress": { "enabled": false }, "networkPolicy": { "enabled": false },
        "viewSyncer": { "autoscaling": null }, "security": { "serviceAccount": { "create": false, "name": "default" } },
    }});
    site.change("shop", off).await?;
    site.until_object::<Ingress>("shop", "removed", 20, Value::is_null).await?;
    site.until_object::<HorizontalPodAutoscaler>("shop-vs", "removed", 20, Value::is_null).await?;
    site.until_object::<NetworkPolicy>("shop-vs", "removed", 20, Value::is_null).await?;
    site.until_object::<ServiceAccount>("shop", "removed", 20, Value::is_null).await?;
    ensure!(site.api::<ServiceAccount>().get_opt("stranger").await?.is_some());
    ensure!(site.api::<Secret>().get_opt("shop-change-stream").await?.is_some(), "what cannot be made again stays");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generated_secret_is_made_once() -> Result<()> {
    let site = Site::new("generated").await?;
    let operator = Operator::start(&site).await?;
    site.create("shop", json!({})).await?;
    site.until_ready("shop").await?;
    let secrets = site.api::<Secret>();
    let before = secrets.get("shop-change-stream").await?;
    ensure!(before.data.as_ref().is_some_and(|data| data["value"].0.len() == 64));
    operator.kill().await?;
    let _operator = Operator::start(&site).await?;
    site.change("shop", json!({ "spec": { "viewSyncer": { "replicas": 2 } } })).await?;
    site.until("shop", "scaled", 30, |cache| cache["status"]["viewSyncer"]["readyReplicas"] == 2).await?;
    let after = secrets.get("shop-change-stream").await?;
    ensure!(after.metadata.resource_version == before.metadata.resource_version);
    // A person changes it: all pods get the new one, the replication-manager first.
    let changed = json!({ "stringData": { "value": "another" } });
    secrets.patch("shop-change-stream", &PatchParams::default(), &Patch::Merge(changed)).await?;
    let cache = site.until("shop", "rolling out", 20, |cache| !cache["status"]["upgrade"].is_null()).await?;
    ensure!(cache["status"]["upgrade"]["cause"] == "Secrets", "{}", cache["status"]["upgrade"]);
    site.until("shop", "rolled out", 60, |cache| cache["status"]["upgrade"].is_null()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_resource_leaves_nothing_behind() -> Result<()> {
    let site = Site::new("garbage").await?;
    let _operator = Operator::start(&site).await?;
    let storage = json!({ "type": "Persistent", "size": "1Gi" });
    site.create("shop", json!({ "replicationManager": { "storage": storage } })).await?;
    let ready = site.until_ready("shop").await?;
    ensure!(ready["metadata"]["finalizers"] == json!(["zerocache.dev/cleanup"]));
    site.delete("shop").await?;
    site.until_gone("shop").await?;
    let selector = ListParams::default().labels("app.kubernetes.io/instance=shop");
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let mut left = Vec::new();
        for (group, version, kind, plural) in [
            ("", "v1", "Pod", "pods"),
            ("", "v1", "Service", "services"),
            ("", "v1", "Secret", "secrets"),
            ("", "v1", "ServiceAccount", "serviceaccounts"),
            ("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
            ("apps", "v1", "StatefulSet", "statefulsets"),
            ("apps", "v1", "Deployment", "deployments"),
            ("apps", "v1", "ReplicaSet", "replicasets"),
            ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
            ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
        ] {
            let found = site.dynamic(group, version, kind, plural).list(&selector).await?;
            left.extend(found.iter().map(|it| format!("{kind} {}", it.metadata.name.as_deref().unwrap_or_default())));
        }
        if left.is_empty() {
            break;
        }
        ensure!(std::time::Instant::now() < end, "left behind: {left:?}");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    ensure!(site.api::<PodDisruptionBudget>().get_opt("shop-vs").await?.is_none());
    Ok(())
}
