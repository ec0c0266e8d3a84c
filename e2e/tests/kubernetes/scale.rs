//! View-syncers come and go by `kubectl scale`; nobody who is connected notices.

use anyhow::{Result, ensure};
use testkit::tab::Tab;

use crate::app::{all_issues, fence};
use crate::ground::Place;
use crate::kubectl::kubectl;
use crate::site::{NAME, READY, SYNCER, Site, is_ready};

#[tokio::test(flavor = "multi_thread")]
async fn one_to_three_to_one() -> Result<()> {
    let _place = Place::shared().await;
    let site = Site::start("scale", |_| ()).await?;
    let outcome = scale(&site).await;
    site.judge(outcome).await
}

async fn scale(site: &Site) -> Result<()> {
    let tab = Tab::keep("tab", site.client(&[fence(), all_issues()]).await?);
    for (wanted, beat) in [(3, 31), (1, 32)] {
        kubectl(&["scale", "-n", &site.namespace, "zc", NAME, &format!("--replicas={wanted}")]).await?;
        let serves = |pods: &[serde_json::Value]| {
            pods.iter().filter(|pod| is_ready(pod)).count() == wanted && pods.len() == wanted
        };
        site.wait_pods(SYNCER, &format!("{wanted} ready view-syncers and no other"), serves).await?;
        let cache = site.ready().await?;
        ensure!(
            cache["status"]["viewSyncer"]["readyReplicas"] == wanted,
            "the status says {}",
            cache["status"]["viewSyncer"]
        );
        let shown =
            kubectl(&["get", "-n", &site.namespace, "zc", NAME, "-o", "jsonpath={.status.viewSyncer.selector}"])
                .await?;
        ensure!(shown.contains("view-syncer"), "the scale subresource selects {shown:?}");
        site.database.execute(&format!("UPDATE fence SET value = {beat} WHERE id = 1")).await?;
        tab.wait(READY, "the beat", |store| store.rows["fence"]["[1]"]["value"] == beat).await?;
        tab.check()?;
    }
    Ok(())
}
