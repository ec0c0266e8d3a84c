//! The operator as the chart's ServiceAccount: its rights are enough for everything it does, none is left over, and a missing one is
//! told of.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ServiceAccount};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::operator::{Operator, Options};
use crate::proxy::{Proxy, Use};
use crate::site::{Site, condition, root};

/// What the chart makes of one kind.
async fn chart(site: &Site, kinds: &[&str]) -> Result<Vec<Value>> {
    let output = Command::new("helm")
        .args(["template", "zero-cache-operator", "charts/zero-cache-operator", "--namespace", &site.name])
        // This Helm does not know of which Kubernetes it is.
        .args(["--kube-version", "1.35.4"])
        .args(["--set", &format!("watchNamespaces={{{}}}", site.name)])
        .current_dir(root())
        .output()
        .await
        .context("run helm")?;
    ensure!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let documents = text.split("\n---").filter_map(|part| serde_saphyr::from_str::<Value>(part).ok());
    Ok(documents.filter(|document| kinds.iter().any(|kind| document["kind"] == *kind)).collect())
}

/// Everything that the chart's Roles allow.
fn granted(roles: &[Value]) -> BTreeSet<Use> {
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().map(|it| it.as_str().unwrap_or_default().to_owned()).collect()
    };
    let mut all = BTreeSet::new();
    for rule in roles.iter().flat_map(|role| role["rules"].as_array().into_iter().flatten()) {
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for verb in texts(&rule["verbs"]) {
                    all.insert(Use { group: group.clone(), resource: resource.clone(), verb });
                }
            }
        }
    }
    all
}

/// Makes the chart's ServiceAccount with its rights, less the given one. A client with its token, and the rights as they are.
async fn account(site: &Site, without: Option<&Use>) -> Result<(Client, BTreeSet<Use>)> {
    let mut documents = chart(site, &["ServiceAccount", "Role", "RoleBinding"]).await?;
    for role in documents.iter_mut().filter(|document| document["kind"] == "Role") {
        let mut rules = Vec::new();
        for right in granted(std::slice::from_ref(role)) {
            if Some(&right) != without {
                let rule = json!({ "apiGroups": [right.group], "resources": [right.resource], "verbs": [right.verb] });
                rules.push(rule);
            }
        }
        role["rules"] = json!(rules);
    }
    let mut name = String::new();
    for document in &documents {
        let (kind, of) = (document["kind"].as_str().unwrap_or_default(), &document["metadata"]["name"]);
        let (group, plural) = match kind {
            "ServiceAccount" => ("", "serviceaccounts"),
            "Role" => ("rbac.authorization.k8s.io", "roles"),
            _ => ("rbac.authorization.k8s.io", "rolebindings"),
        };
        let of = of.as_str().context("a document has a name")?;
        if kind == "ServiceAccount" {
            of.clone_into(&mut name);
        }
        let api = site.dynamic(group, "v1", kind, plural);
        api.patch(of, &PatchParams::apply("helm").force(), &Patch::Apply(document)).await?;
    }
    let accounts = site.api::<ServiceAccount>();
    let token = accounts.create_token_request(&name, &PostParams::default(), &TokenRequest::default()).await?;
    let token = token.status.context("a token was made")?.token;
    let mut config = Config::infer().await?;
    config.auth_info = Default::default();
    config.auth_info.token = Some(token.into());
    let roles: Vec<Value> = documents.into_iter().filter(|document| document["kind"] == "Role").collect();
    Ok((Client::try_from(config)?, granted(&roles)))
}

async fn operator_of(site: &Site, proxy: &Proxy) -> Result<Operator> {
    let environment = BTreeMap::from([("LEADER_ELECTION", "true".to_owned())]);
    Operator::start_with(site, Options { kubeconfig: Some(proxy.kubeconfig()?), environment }).await
}

fn shown(uses: impl IntoIterator<Item = Use>) -> Vec<String> {
    uses.into_iter().map(|it| format!("{} {}.{}", it.verb, it.resource, it.group)).collect()
}

/// Takes an operator through everything that it does.
async fn everything(site: &Site) -> Result<()> {
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
            "replicationManager": { "storage": storage("1Gi") },
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
        "viewSyncer": { "autoscaling": null },
        "security": { "serviceAccount": { "create": false, "name": "default" } },
    }}))
    .await?;
    site.until_object::<NetworkPolicy>("shop-vs", "removed", 20, Value::is_null).await?;
    site.until_object::<ServiceAccount>("shop", "removed", 20, Value::is_null).await?;
    site.until_object::<HorizontalPodAutoscaler>("shop-vs", "removed", 20, Value::is_null).await?;
    ensure!(routes.get_opt("shop").await?.is_none() && monitors.get_opt("shop").await?.is_none());
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
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
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
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_charts_rights_are_used_to_the_last_and_are_enough() -> Result<()> {
    let site = Site::new("rights").await?;
    let (client, granted) = account(&site, None).await?;
    let proxy = Proxy::start(client).await?;
    let operator = operator_of(&site, &proxy).await?;
    operator.until_ready(true).await?;
    if let Err(error) = everything(&site).await {
        return Err(error.context(operator.log()));
    }
    let refused: BTreeSet<String> =
        proxy.asked().into_iter().filter(|asked| asked.status == 403).map(|asked| asked.path).collect();
    ensure!(refused.is_empty(), "refused: {refused:#?}");
    let used = proxy.used();
    let unused: Vec<Use> = granted.difference(&used).cloned().collect();
    ensure!(unused.is_empty(), "the chart grants what is never used: {:#?}", shown(unused));
    let beyond: Vec<Use> = used.difference(&granted).cloned().collect();
    ensure!(beyond.is_empty(), "allowed by somebody else than the chart: {:#?}", shown(beyond));
    println!("{} rights, each used", granted.len());
    Ok(())
}

async fn without(test: &str, group: &str, resource: &str, verb: &str) -> Result<(Site, Proxy, Operator)> {
    let site = Site::new(test).await?;
    let right = Use { group: group.to_owned(), resource: resource.to_owned(), verb: verb.to_owned() };
    let (client, left) = account(&site, Some(&right)).await?;
    ensure!(!left.contains(&right));
    let proxy = Proxy::start(client).await?;
    let operator = operator_of(&site, &proxy).await?;
    site.create("shop", json!({})).await?;
    Ok((site, proxy, operator))
}

async fn until_told(site: &Site, part: &str) -> Result<()> {
    let told = |cache: &Value| {
        let (status, reason, message) = condition(cache, "Degraded");
        status == "True" && reason == "ReconcileFailed" && message.contains(part)
    };
    site.until("shop", "told of the missing right", 40, told).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_may_not_be_made_is_told_of() -> Result<()> {
    let (site, _proxy, operator) = without("create", "policy", "poddisruptionbudgets", "create").await?;
    until_told(&site, "apply PodDisruptionBudget shop-vs").await?;
    ensure!(operator.metric("zerocache_operator_reconcile_errors_total", &["forbidden"]).await? > 0.0);
    // The rest is made all the same, and the right given back heals it.
    site.until_ready("shop").await?;
    account(&site, None).await?;
    site.until("shop", "healed", 90, |cache| condition(cache, "Degraded").0 == "False").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_that_may_not_be_watched_is_told_of() -> Result<()> {
    let (site, _proxy, operator) = without("watch", "", "pods", "list").await?;
    until_told(&site, "pods cannot be watched").await?;
    operator.until_ready(false).await?;
    ensure!(operator.ask("/healthz").await?.0 == 200);
    account(&site, None).await?;
    site.until_ready("shop").await?;
    operator.until_ready(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_that_may_not_be_read_are_told_of() -> Result<()> {
    let (site, _proxy, _operator) = without("secrets", "", "secrets", "get").await?;
    until_told(&site, "read Secret").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resources_that_may_not_be_watched_keep_it_unready() -> Result<()> {
    let (site, _proxy, operator) = without("resources", "zerocache.dev", "zerocaches", "list").await?;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !operator.log().contains("cannot list resource") {
        ensure!(std::time::Instant::now() < end, "{}", operator.log());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    operator.until_ready(false).await?;
    account(&site, None).await?;
    site.until_ready("shop").await?;
    operator.until_ready(true).await
}
