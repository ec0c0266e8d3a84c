//! Nodes that are configured wrongly or meet the wrong neighbour: each says what is wrong. What can be seen at once ends the start;
//! what only a neighbour says is waited for, since it may be the neighbour that is mended. None becomes ready, none serves wrong
//! rows, and the neighbour goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use testkit::postgres::{Postgres, Version};
use testkit::process::ZeroCache;

use super::node_status::await_facts;
use super::{Cluster, Plan, READY};
use crate::app::{all_issues, fence};
use crate::bad_input::{failing_start, wait_for_complaint};

const TOKEN: &str = "ZERO_CHANGE_STREAMER_TOKEN";

/// A node that says the words and ends with the code of a refused start.
fn refused_start(mut node: ZeroCache, words: &[&str]) -> Result<String> {
    node.spawn()?;
    let log = wait_for_complaint(&mut node, words)?;
    let status = node.wait_exit(Duration::from_secs(20))?;
    ensure!(status.code() == Some(255), "the node ended with {status}:\n{log}");
    Ok(log)
}

/// A node that says the words and what a person is to do, and waits for that.
async fn waits_for_a_person(mut node: ZeroCache, words: &[&str]) -> Result<String> {
    node.spawn()?;
    let log = wait_for_complaint(&mut node, words)?;
    let port = node.port();
    let told = await_facts(&mut node, port, "the fault", |facts| facts["fault"]["class"] == json!("person")).await?;
    ensure!(told["fault"]["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{told}");
    let message = told["fault"]["message"].as_str().unwrap_or_default().to_lowercase();
    ensure!(words.iter().all(|word| message.contains(&word.to_lowercase())), "{message}");
    ensure!(node.terminate()?.success(), "{}", node.log_tail(20));
    Ok(log)
}

#[test]
fn a_production_node_without_a_secret_is_refused() -> Result<()> {
    let url = Postgres::shared(Version::V15)?.url("postgres");
    for (role, name, value) in [
        ("replication-manager", "ZERO_NUM_SYNC_WORKERS", "0"),
        ("view-syncer", "ZERO_CHANGE_STREAMER_URI", "http://127.0.0.1:4849"),
    ] {
        let mut node = ZeroCache::new(&url)?.named(role).env(name, value);
        node.unset("ZERO_ADMIN_PASSWORD");
        refused_start(node, &["ZERO_ADMIN_PASSWORD", "development"])?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_development_node_without_a_secret_warns_and_works() -> Result<()> {
    let plan = Plan { syncers: 1, settings: vec![("NODE_ENV", "development".into())], ..Plan::new("no_secret") };
    let mut cluster = Cluster::prepare(plan).await?;
    let mut manager = cluster.manager()?;
    manager.unset("ZERO_ADMIN_PASSWORD");
    manager.start()?;
    ensure!(
        manager.log().lines().any(|line| line.contains(" WARN ") && line.contains(TOKEN)),
        "no warning about the open port:\n{}",
        manager.log()
    );
    cluster.stream.add(manager.change_port());
    let mut syncer = cluster.syncer()?;
    syncer.unset("ZERO_ADMIN_PASSWORD");
    syncer.start()?;
    manager.check_log()?;
    syncer.check_log()
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_neighbours_are_named() -> Result<()> {
    let mut cluster = Cluster::start(Plan { syncers: 1, ..Plan::new("neighbours") }).await?;
    let manager = cluster.managers[0].port();

    // Another token: both sides say so.
    let stranger = cluster.syncer()?.env(TOKEN, "not-the-right-one");
    let log = waits_for_a_person(stranger, &["401", "token"]).await?;
    ensure!(!log.contains("not-the-right-one"), "the token is in the log:\n{log}");
    ensure!(cluster.managers[0].metric("zero_change_stream_refusals_total")? > 0.0);

    // A view-syncer's port for clients will never serve the stream; that of the replication-manager looks like one that starts.
    let syncer = cluster.syncers[0].port();
    let lost = cluster.syncer()?.env("ZERO_CHANGE_STREAMER_URI", &format!("http://127.0.0.1:{syncer}"));
    let words = ["ZERO_CHANGE_STREAMER_URI", &format!("127.0.0.1:{syncer} does not speak this change stream")];
    waits_for_a_person(lost, &words).await?;
    let lost = cluster.syncer()?.env("ZERO_CHANGE_STREAMER_URI", &format!("http://127.0.0.1:{manager}"));
    failing_start(lost, &[" WARN ", &format!("127.0.0.1:{manager} refused the change stream")])?;

    // Another application's change stream.
    let foreign = cluster.syncer()?.env("ZERO_APP_ID", "other");
    waits_for_a_person(foreign, &["another application"]).await?;

    // Nobody there yet: waits, and says for whom.
    let port = testkit::free_ports(1)?;
    let early = cluster.syncer()?.env("ZERO_CHANGE_STREAMER_URI", &format!("http://127.0.0.1:{port}"));
    failing_start(early, &[&format!("127.0.0.1:{port}"), "refused", " WARN "])?;

    // All the while the deployment worked.
    let client = testkit::client::Client::start(cluster.options(), &[all_issues(), fence()]).await?;
    ensure!(client.store().rows["issue"].len() == 30);
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_stream_that_falls_silent_is_left() -> Result<()> {
    let mut cluster = Cluster::start(Plan { syncers: 1, ..Plan::new("silent") }).await?;
    let client = testkit::client::Client::start(cluster.options(), &[all_issues(), fence()]).await?;
    cluster.managers[0].freeze()?;
    let silent = wait_for_line(&cluster.syncers[0], "change stream", Duration::from_secs(40));
    cluster.managers[0].thaw()?;
    silent?;
    // The view-syncer kept its clients, and the stream comes back.
    let write = "UPDATE issue SET title = 'after the silence' WHERE id = 'i1'";
    cluster.database.execute(write).await?;
    let seen = client.wait_within(READY, "a change after the silence", |store| {
        store.rows["issue"]["[\"i1\"]"]["title"] == serde_json::json!("after the silence")
    });
    seen.await.map_err(|error| error.context(cluster.report()))?;
    let crowd_free = cluster.syncers[0].is_running();
    ensure!(crowd_free, "the view-syncer ended");
    Ok(())
}

/// A WARN line with this text.
fn wait_for_line(node: &ZeroCache, text: &str, limit: Duration) -> Result<()> {
    let deadline = std::time::Instant::now() + limit;
    loop {
        let log = node.last_log();
        if log.lines().any(|line| line.contains(" WARN ") && line.to_lowercase().contains(text)) {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < deadline, "no warning about {text:?} within {limit:?}:\n{log}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
