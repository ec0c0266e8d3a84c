//! One materialisation per distinct query, however many client groups want it.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::app::{Site, all_issues, cmp, fence, query};

/// Gauges are refreshed now and then: waits until one has the value, and a moment longer, so that it is not merely passing.
async fn settles(site: &Site, name: &str, wanted: impl Fn(f64) -> bool) -> Result<f64> {
    let mut steady = 0;
    let mut value = f64::NAN;
    for _ in 0..100 {
        let now = site.server.metric(name)?;
        steady = if now == value && wanted(now) { steady + 1 } else { 0 };
        value = now;
        if steady == 5 {
            return Ok(value);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("{name} is {value}")
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_with_the_same_query_share_its_materialisation() -> Result<()> {
    let site = Site::start("sharing").await?;
    let first = site.client(&[all_issues(), fence()]).await?;
    let subscriptions = settles(&site, "zero_subscriptions", |n| n >= 2.0).await?;
    let materialisations = settles(&site, "zero_materialisations", |n| n >= 2.0).await?;
    let hydrations = site.server.metric("zero_hydrations_total")?;

    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(site.client(&[all_issues(), fence()]).await?);
    }
    settles(&site, "zero_subscriptions", |n| n >= subscriptions + 8.0).await?;
    settles(&site, "zero_materialisations", |n| n == materialisations).await?;
    ensure!(site.server.metric("zero_hydrations_total")? == hydrations, "a shared query was run again");

    // The same query in other words is still the same one.
    let reworded =
        query(json!({"orderBy": [["id", "asc"]], "table": "issue", "where": {"type": "and", "conditions": []}}));
    let same = site.client(&[reworded, fence()]).await?;
    settles(&site, "zero_subscriptions", |n| n >= subscriptions + 10.0).await?;
    settles(&site, "zero_materialisations", |n| n == materialisations).await?;

    let different =
        site.client(&[query(json!({"table": "issue", "where": cmp("rank", "=", json!(3))})), fence()]).await?;
    settles(&site, "zero_materialisations", |n| n == materialisations + 1.0).await?;

    site.database.execute("UPDATE issue SET title = 'for all' WHERE id = 'i1'").await?;
    for client in others.iter().chain([&first, &same, &different]) {
        site.check(client).await?;
    }
    site.server.check_log()
}
