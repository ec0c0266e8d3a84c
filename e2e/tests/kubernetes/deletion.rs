//! A deleted ZeroCache leaves nothing behind but what its policy says.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::ground::Place;
use crate::kubectl::kubectl;
use crate::reset::objects;
use crate::site::{NAME, Site};

const KINDS: &str = "pods,statefulsets,deployments,replicasets,controllerrevisions,services,endpointslices,secrets,configmaps,serviceaccounts,\
     persistentvolumeclaims,poddisruptionbudgets,networkpolicies,ingresses,horizontalpodautoscalers,jobs";
const GONE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn deletion_leaves_nothing_behind() -> Result<()> {
    let _place = Place::shared().await;
    let site = Site::start("deleted", |cache| {
        cache["spec"]["backup"]["retention"] = json!({"deleteOnRemoval": true});
    });
    let site = site.await?;
    let outcome = delete(&site, 0, true).await;
    site.judge(outcome).await
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_keeps_what_the_policy_keeps() -> Result<()> {
    let _place = Place::shared().await;
    let site = Site::start("retained", |cache| cache["spec"]["deletion"] = json!({"upstream": "Retain"})).await?;
    let outcome = delete(&site, 1, false).await;
    site.judge(outcome).await
}

async fn delete(site: &Site, slots_left: i64, is_backup_deleted: bool) -> Result<()> {
    ensure!(upstream(site).await?.0 == 1, "there is no slot to begin with");
    ensure!(!objects(site, "v1").is_empty(), "there is no backup to begin with");
    let begin = Instant::now();
    kubectl(&["delete", "-n", &site.namespace, "zc", NAME, "--timeout=150s"]).await?;
    println!("a ZeroCache was deleted in {:.1?}", begin.elapsed());
    loop {
        let left = children(site).await?;
        if left.is_empty() {
            break;
        }
        ensure!(begin.elapsed() < GONE + Duration::from_secs(150), "children are left: {left:?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (slots, publications) = upstream(site).await?;
    ensure!(slots == slots_left, "{slots} slots are left");
    ensure!((publications == 0) == (slots_left == 0), "{publications} publications are left");
    ensure!(objects(site, "v1").is_empty() == is_backup_deleted, "objects are left: {:?}", objects(site, "v1"));
    Ok(())
}

/// Replication slots and publications of the application.
async fn upstream(site: &Site) -> Result<(i64, i64)> {
    let client = site.database.connect().await?;
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    let slots = client.query_one(slots, &[]).await?.get(0);
    let publications = client.query_one("SELECT count(*) FROM pg_publication", &[]).await?.get(0);
    Ok((slots, publications))
}

/// Everything that the resource owned, by the label of its instance.
async fn children(site: &Site) -> Result<Vec<String>> {
    let selector = format!("app.kubernetes.io/instance={NAME}");
    let found: Value = crate::kubectl::get(&site.namespace, &[KINDS, "-l", &selector]).await?;
    let items = found["items"].as_array().into_iter().flatten();
    Ok(items.map(|item| format!("{} {}", item["kind"], item["metadata"]["name"])).collect())
}
