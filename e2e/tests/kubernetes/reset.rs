//! A new generation: everybody ends with the right rows, and the old backup goes after its time, it and nothing else.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::ground::{BUCKET, Place};
use crate::kubectl::{kubectl, run};
use crate::site::{MANAGER, NAME, READY, SYNCER, Site, is_ready, is_settled, is_true, name_of, only};
use crate::upgrade::under_load;

/// The least age at which generations may be deleted is an hour, and so are the guards: time is moved instead.
const LONG_AGO: Duration = Duration::from_secs(3 * 3600);

/// For one operation, though replication pauses while everything is copied anew.
const COPY: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_serves_the_same_rows_and_only_the_old_prefix_goes() -> Result<()> {
    let _place = Place::shared().await;
    let tidy = |cache: &mut Value| {
        cache["spec"]["backup"]["retention"] = json!({"enabled": true, "keepGenerations": 0, "minAge": "1h"});
        cache["spec"]["viewSyncer"]["replicas"] = json!(2);
    };
    let site = Site::start("reset", tidy).await?;
    let outcome = reset(&site).await;
    site.judge(outcome).await
}

async fn reset(site: &Site) -> Result<()> {
    ensure!(!objects(site, "v1").is_empty(), "the first generation has no backup");
    // `v1` is the beginning of `v10`: whoever deletes by prefix without care deletes both.
    let felt = under_load(site, "a_reset_serves_the_same_rows_and_only_the_old_prefix_goes", COPY, async {
        site.change(json!({"generation": "v10"})).await?;
        site.wait(READY, "the reset's beginning", |cache| is_true(cache, "ResetInProgress")).await?;
        site.wait(READY, "the reset's end", |cache| is_settled(cache) && cache["status"]["currentGeneration"] == "v10")
            .await?;
        Ok(())
    });
    felt.await?.tell("a reset of 1 + 2 pods")?;
    let kept = site.look().await?["status"]["retiredGenerations"].clone();
    ensure!(kept[0]["name"] == "v1" && kept[0]["state"] == "Kept", "the old generation is recorded as {kept}");
    ensure!(!objects(site, "v1").is_empty(), "the old generation was deleted before its time");

    age(site, "v1").await?;
    let deleted = |cache: &Value| cache["status"]["retiredGenerations"][0]["state"] == "Deleted";
    let cache = site.wait(READY, "the old generation's end", deleted).await?;
    let count = cache["status"]["retiredGenerations"][0]["objectsDeleted"].as_i64();
    ensure!(count.is_some_and(|count| count > 0), "{count:?} objects were deleted");
    ensure!(objects(site, "v1").is_empty(), "objects of v1 are left: {:?}", objects(site, "v1"));
    ensure!(!objects(site, "v10").is_empty(), "the new generation is gone with the old one");
    restores(site).await
}

/// A new view-syncer starts from what is left in the store.
async fn restores(site: &Site) -> Result<()> {
    let syncers = site.pods(SYNCER).await?;
    let old = name_of(&syncers[0]).to_owned();
    kubectl(&["delete", "pod", "-n", &site.namespace, &old, "--wait=false"]).await?;
    let replaced = |pods: &[Value]| pods.len() == 2 && pods.iter().all(|pod| is_ready(pod) && name_of(pod) != old);
    site.wait_pods(SYNCER, "a restored pod", replaced).await?;
    ensure!(is_ready(only(&site.pods(MANAGER).await?)?), "the replication-manager is not ready");
    Ok(())
}

/// Makes a retired generation look as if it had been left long ago, in the store and in the status.
async fn age(site: &Site, generation: &str) -> Result<()> {
    let then = SystemTime::now() - LONG_AGO;
    for object in objects(site, generation) {
        File::options().write(true).open(&object)?.set_modified(then).context("age an object")?;
    }
    let hours = LONG_AGO.as_secs() / 3600 - 1;
    let stamp = run("date", &["-u", "-d", &format!("{hours} hours ago"), "+%Y-%m-%dT%H:%M:%SZ"], None).await?;
    // The operator may write its own view of the list at the same moment; then once more.
    for _ in 0..20 {
        let mut retired = site.look().await?["status"]["retiredGenerations"].clone();
        if retired[0]["retiredAt"] == stamp.trim() || retired[0]["state"] != "Kept" {
            // Its own status is no news to the operator, which would look again within five minutes.
            let looked_at = format!("example.com/looked-at={}", stamp.trim());
            kubectl(&["annotate", "--overwrite", "-n", &site.namespace, "zc", NAME, &looked_at]).await?;
            return Ok(());
        }
        retired[0]["retiredAt"] = json!(stamp.trim());
        let patch = json!({"status": {"retiredGenerations": retired}}).to_string();
        kubectl(&["patch", "-n", &site.namespace, "zc", NAME, "--subresource=status", "--type=merge", "-p", &patch])
            .await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    anyhow::bail!("the operator does not let the time of retirement be moved")
}

/// The files of a generation's objects.
pub fn objects(site: &Site, generation: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(&site.ground.s3.object(BUCKET, &format!("{}/{generation}", site.namespace)), &mut found);
    found
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { collect(&path, found) } else { found.push(path) }
    }
}
