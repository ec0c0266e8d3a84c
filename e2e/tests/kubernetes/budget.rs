//! More view-syncers than Postgres has connections for are refused, with the arithmetic.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::ground::Place;
use crate::kubectl::kubectl;
use crate::site::{READY, SYNCER, Site, condition, is_settled};

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_up_beyond_the_servers_connections_is_refused() -> Result<()> {
    let _place = Place::shared().await;
    let strict = |cache: &mut Value| {
        cache["spec"]["databases"]["connectionBudget"] = json!({"mode": "Enforce", "reserve": 10});
        cache["spec"]["databases"]["cvr"] = json!({"maxConns": 20});
    };
    let site = Site::start("budget", strict).await?;
    let outcome = exceed(&site).await;
    site.judge(outcome).await
}

async fn exceed(site: &Site) -> Result<()> {
    // The server allows 200, of which it keeps 3; twice as many pods may be there while one stops and another starts.
    site.change(json!({"viewSyncer": {"replicas": 12}})).await?;
    let over = |cache: &Value| condition(cache, "ConnectionBudgetSatisfied") == ("False", "OverBudget");
    let cache = site.wait(READY, "OverBudget", over).await?;
    let conditions = cache["status"]["conditions"].as_array().into_iter().flatten();
    let text = conditions.filter(|it| it["type"] == "ConnectionBudgetSatisfied").map(|it| it["message"].to_string());
    let text: String = text.collect();
    ensure!(text.contains("24 x 20") && text.contains("of 197"), "the condition lacks the arithmetic: {text}");
    for _ in 0..10 {
        let pods = site.pods(SYNCER).await?;
        ensure!(pods.len() == 1, "{} view-syncers run beyond the budget", pods.len());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let events =
        kubectl(&["get", "events", "-n", &site.namespace, "-o", "custom-columns=R:.reason", "--no-headers"]).await?;
    ensure!(events.contains("OverConnectionBudget"), "no event tells of it: {events}");
    site.change(json!({"viewSyncer": {"replicas": 2}})).await?;
    let within = |cache: &Value| is_settled(cache) && condition(cache, "ConnectionBudgetSatisfied").0 == "True";
    let cache = site.wait(READY, "a count within the budget", within).await?;
    ensure!(cache["status"]["viewSyncer"]["readyReplicas"] == 2, "the status says {}", cache["status"]["viewSyncer"]);
    Ok(())
}
