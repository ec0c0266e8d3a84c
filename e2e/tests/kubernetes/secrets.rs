//! A new password: pods read it when they start, so they are restarted in the order of an upgrade.

use anyhow::{Result, ensure};
use serde_json::Value;
use testkit::tab::Tab;

use crate::app::{all_issues, fence};
use crate::ground::Place;
use crate::site::{MANAGER, READY, SYNCER, Site, is_settled, name_of, only};
use crate::upgrade::manager_came_first;

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_password_restarts_everybody_in_order() -> Result<()> {
    let _place = Place::shared().await;
    let site = Site::start("rotated", |_| ()).await?;
    let outcome = rotate(&site).await;
    site.judge(outcome).await
}

async fn rotate(site: &Site) -> Result<()> {
    let tab = Tab::keep("tab", site.client(&[fence(), all_issues()]).await?);
    let uid = |pods: &[Value]| only(pods).map(|pod| pod["metadata"]["uid"].clone());
    let manager = uid(&site.pods(MANAGER).await?)?;
    let syncer = name_of(only(&site.pods(SYNCER).await?)?).to_owned();
    site.set_password("second-password").await?;
    let anew = |pods: &[Value]| pods.iter().all(|pod| name_of(pod) != syncer) && pods.len() == 1;
    site.wait_pods(SYNCER, "a pod with the new password, and no other", anew).await?;
    ensure!(uid(&site.pods(MANAGER).await?)? != manager, "the replication-manager was not restarted");
    site.wait(READY, "Ready with the new password", is_settled).await?;
    manager_came_first(site).await?;
    site.database.execute("UPDATE fence SET value = 66 WHERE id = 1").await?;
    tab.wait(READY, "a change since", |store| store.rows["fence"]["[1]"]["value"] == 66).await?;
    tab.check()
}
