//! Upgrade and reset over Kubernetes' own controllers, the operator killed after every step that it records.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use futures_util::TryStreamExt as _;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, ListParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::operator::{Operator, Options};
use crate::site::{Site, condition};

/// Where a resource's flows are.
fn place(cache: &Value) -> String {
    let status = &cache["status"];
    format!(
        "upgrade {} reset {} suspension {} deletion {} revision {} generation {}",
        status["upgrade"]["step"],
        status["reset"]["step"],
        status["suspension"],
        status["deletion"]["step"],
        status["currentRevision"],
        status["currentGeneration"]
    )
}

/// Runs an operator until the resource is as `is_done` wants it; each time a flow has moved, it is killed and another one started.
async fn with_a_mortal_operator(site: &Site, seconds: u64, is_done: impl Fn(&Value) -> bool) -> Result<Vec<String>> {
    let mut operator = Operator::start(site).await?;
    let mut places = vec![place(&site.get("shop").await.unwrap_or_default())];
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let cache = site.caches().get_opt("shop").await?.map(serde_json::to_value).transpose()?.unwrap_or_default();
        if is_done(&cache) {
            return Ok(places);
        }
        let now = place(&cache);
        if places.last() != Some(&now) {
            operator.kill().await?;
            operator = Operator::start(site).await?;
            places.push(now);
        }
        if Instant::now() > end {
            bail!("not done within {seconds} s; it went {places:#?}\n{cache:#}\n{}", operator.log());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Watches that no view-syncer gets a template before its replication-manager runs with the same.
struct Order {
    faults: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

impl Order {
    fn watch(site: &Site) -> Order {
        let faults = Arc::new(Mutex::new(Vec::new()));
        let (deployments, sets, pods) = (site.api::<Deployment>(), site.api::<StatefulSet>(), site.api::<Pod>());
        let noted = Arc::clone(&faults);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let seen: Mutex<Option<(String, String)>> = Mutex::default();
            let changes = watcher(deployments, watcher::Config::default()).default_backoff().applied_objects();
            let _ = changes
                .try_for_each(|deployment| {
                    let (sets, pods, noted, seen) = (sets.clone(), pods.clone(), &noted, &seen);
                    async move {
                        let of = |template: Option<&k8s_openapi::api::core::v1::PodTemplateSpec>| {
                            let template = template.cloned().unwrap_or_default();
                            let image =
                                template.spec.and_then(|spec| spec.containers[0].image.clone()).unwrap_or_default();
                            let annotations = template.metadata.and_then(|it| it.annotations).unwrap_or_default();
                            (image, annotations.get("zerocache.dev/generation").cloned().unwrap_or_default())
                        };
                        let wanted = of(deployment.spec.as_ref().map(|spec| &spec.template));
                        if seen.lock().unwrap().replace(wanted.clone()).as_ref() == Some(&wanted) {
                            return Ok(());
                        }
                        let set = sets.get("shop-rm").await.ok();
                        let has = of(set.as_ref().and_then(|set| set.spec.as_ref()).map(|spec| &spec.template));
                        let pod = pods.get("shop-rm-0").await.ok();
                        let is_ready = pod.and_then(|pod| pod.status?.conditions).is_some_and(|conditions| {
                            conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True")
                        });
                        if has != wanted || !is_ready {
                            let text = format!("view-syncers got {wanted:?} while {has:?} was ready: {is_ready}");
                            noted.lock().unwrap().push(text);
                        }
                        Ok(())
                    }
                })
                .await;
        });
        Order { faults, _task: task }
    }

    fn check(&self) -> Result<()> {
        let faults = self.faults.lock().unwrap().clone();
        ensure!(faults.is_empty(), "{faults:#?}");
        Ok(())
    }
}

fn is_settled(cache: &Value) -> bool {
    let status = &cache["status"];
    condition(cache, "Ready").0 == "True"
        && status["observedGeneration"] == cache["metadata"]["generation"]
        && !status["currentRevision"].is_null()
        && status["upgrade"].is_null()
        && status["reset"].is_null()
        && status["suspension"].is_null()
        && condition(cache, "Progressing").0 == "False"
}

async fn images(site: &Site) -> Result<BTreeSet<String>> {
    let pods = site.api::<Pod>().list(&ListParams::default()).await?;
    Ok(pods.iter().filter_map(|pod| pod.spec.as_ref()?.containers[0].image.clone()).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn provisioning_upgrade_and_reset_go_on_wherever_the_operator_dies() -> Result<()> {
    let site = Site::new("mortal").await?;
    let order = Order::watch(&site);
    site.create("shop", json!({ "viewSyncer": { "replicas": 2 } })).await?;
    let mut places = with_a_mortal_operator(&site, 90, is_settled).await?;

    site.change("shop", json!({ "spec": { "image": { "tag": "1.0.1" } } })).await?;
    let upgraded =
        |cache: &Value| is_settled(cache) && cache["status"]["currentImage"] == "example.com/zero-cache:1.0.1";
    places.extend(with_a_mortal_operator(&site, 120, upgraded).await?);
    ensure!(images(&site).await? == BTreeSet::from(["example.com/zero-cache:1.0.1".to_owned()]));

    site.change("shop", json!({ "spec": { "generation": "v2" } })).await?;
    let moved = |cache: &Value| is_settled(cache) && cache["status"]["currentGeneration"] == "v2";
    places.extend(with_a_mortal_operator(&site, 120, moved).await?);
    let retired = site.get("shop").await?["status"]["retiredGenerations"].clone();
    ensure!(retired[0]["name"] == "v1" && retired[0]["url"] == "s3://shop/replica/v1", "{retired}");
    order.check()?;
    let all = places.join("\n");
    for step in ["Preflight", "ReplicationManager", "Settle", "ViewSyncers"] {
        ensure!(all.contains(&format!("upgrade \"{step}\"")), "no operator died at {step} of the upgrade:\n{all}");
    }
    for step in ["Requested", "ReplicationManager", "Backup", "ViewSyncers"] {
        ensure!(all.contains(&format!("reset \"{step}\"")), "no operator died at {step} of the reset:\n{all}");
    }
    println!("the operator was killed {} times", places.len() - 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspension_and_deletion_go_on_wherever_the_operator_dies() -> Result<()> {
    let site = Site::new("sleeper").await?;
    site.create("shop", json!({})).await?;
    with_a_mortal_operator(&site, 90, is_settled).await?;
    site.change("shop", json!({ "spec": { "suspended": true } })).await?;
    let asleep = |cache: &Value| cache["status"]["phase"] == "Suspended";
    with_a_mortal_operator(&site, 60, asleep).await?;
    ensure!(images(&site).await?.is_empty(), "no pod runs");
    site.change("shop", json!({ "spec": { "suspended": false } })).await?;
    with_a_mortal_operator(&site, 90, is_settled).await?;
    site.delete("shop").await?;
    let places = with_a_mortal_operator(&site, 90, Value::is_null).await?;
    println!("deletion went {places:#?}");
    Ok(())
}

/// A StatefulSet does not replace a pod that never became ready; the operator does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_image_is_left_again() -> Result<()> {
    let site = Site::new("back").await?;
    let _operator = Operator::start(&site).await?;
    site.kubelet
        .behave(|pods| {
            pods.broken.insert("1.0.9".to_owned());
        })
        .await?;
    site.create("shop", json!({})).await?;
    site.until_ready("shop").await?;
    site.change("shop", json!({ "spec": { "image": { "tag": "1.0.9" } } })).await?;
    let crashing = |cache: &Value| condition(cache, "ReplicationManagerReady").1 == "CrashLoop";
    site.until("shop", "crashing", 30, crashing).await?;
    let syncers = site.api::<Deployment>().get("shop-vs").await?;
    let image = syncers.spec.and_then(|spec| spec.template.spec).and_then(|spec| spec.containers[0].image.clone());
    ensure!(image.as_deref() == Some("example.com/zero-cache:1.0.0"), "view-syncers stay: {image:?}");
    site.change("shop", json!({ "spec": { "image": { "tag": "1.0.0" } } })).await?;
    site.until("shop", "back", 60, is_settled).await?;
    ensure!(images(&site).await? == BTreeSet::from(["example.com/zero-cache:1.0.0".to_owned()]));
    Ok(())
}

/// Claims grow first, then the StatefulSet is made anew around its pod.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_grows_without_touching_the_pod() -> Result<()> {
    let site = Site::new("volume").await?;
    let _operator = Operator::start(&site).await?;
    make_expandable(&site).await?;
    let storage = |size: &str| json!({ "replicationManager": { "storage": { "type": "Persistent", "size": size, "className": "growing" } } });
    site.create("shop", storage("1Gi")).await?;
    site.until_ready("shop").await?;
    let pods = site.api::<Pod>();
    let before = pods.get("shop-rm-0").await?.metadata.uid;
    let set = site.api::<StatefulSet>().get("shop-rm").await?.metadata.uid;
    site.change("shop", json!({ "spec": storage("2Gi") })).await?;
    let asked = |claim: &Value| claim["spec"]["resources"]["requests"]["storage"] == "2Gi";
    site.until_object::<PersistentVolumeClaim>("data-shop-rm-0", "asked to grow", 20, asked).await?;
    let made_anew = |it: &Value| {
        !it.is_null()
            && it["metadata"]["uid"] != json!(set)
            && it["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "2Gi"
    };
    site.until_object::<StatefulSet>("shop-rm", "made anew", 30, made_anew).await?;
    ensure!(pods.get("shop-rm-0").await?.metadata.uid == before, "the pod was replaced");
    Ok(())
}

/// Nothing resizes volumes here, but the API server lets claims ask for it.
async fn make_expandable(site: &Site) -> Result<()> {
    use k8s_openapi::api::storage::v1::StorageClass;
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": "growing" },
        "provisioner": "kubernetes.io/host-path", "allowVolumeExpansion": true,
    });
    let api: Api<StorageClass> = Api::all(site.client.clone());
    let parameters = kube::api::PatchParams::apply("test").force();
    api.patch("growing", &parameters, &kube::api::Patch::Apply(class)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_is_provisioned_upgraded_and_removed() -> Result<()> {
    let site = Site::new("single").await?;
    let _operator = Operator::start_with(&site, Options::default()).await?;
    site.create("shop", json!({ "topology": "SingleNode", "backup": null, "viewSyncer": null })).await?;
    site.until_ready("shop").await?;
    ensure!(site.api::<Deployment>().get_opt("shop-vs").await?.is_none());
    site.change("shop", json!({ "spec": { "image": { "tag": "1.0.1" } } })).await?;
    let upgraded = |cache: &Value| is_settled(cache) && cache["status"]["currentVersion"] == "1.0.1";
    site.until("shop", "upgraded", 60, upgraded).await?;
    site.delete("shop").await?;
    site.until_gone("shop").await?;
    Ok(())
}
