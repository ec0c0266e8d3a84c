//! What a node says of itself to whoever operates it, from its first second: the group `node` of `/statz`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::http;
use testkit::process::ZeroCache;
use testkit::s3::Faults;

use super::{Cluster, Plan, READY};
use crate::app::copies;

const PATH: &str = "/statz?group=node&format=json";

/// The facts at one of the node's ports.
pub fn facts(port: u16) -> Result<Value> {
    let (status, body) = http::get(port, PATH, &http::basic("operator", "test"))?;
    ensure!(status == 200, "{PATH} answered {status}: {body}");
    let body: Value = serde_json::from_str(&body)?;
    body.get("node").cloned().with_context(|| format!("no group in {body}"))
}

/// Waits until the facts of a node that may not listen yet are as they should be.
pub async fn await_facts(
    node: &mut ZeroCache,
    port: u16,
    what: &str,
    mut is_so: impl FnMut(&Value) -> bool,
) -> Result<Value> {
    let deadline = Instant::now() + READY;
    let mut last = Value::Null;
    loop {
        if let Ok(facts) = facts(port) {
            if is_so(&facts) {
                return Ok(facts);
            }
            last = facts;
        }
        ensure!(node.is_running(), "{} ended: {what}:\n{}", node.name(), node.log_tail(30));
        ensure!(Instant::now() < deadline, "not within {READY:?}: {what}: {last}\n{}", node.log_tail(30));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_say_what_they_do_from_the_first_second() -> Result<()> {
    let mut cluster = Cluster::prepare(Plan { has_store: true, ..Plan::new("node_status") }).await?;
    // The copy waits for as long as this holds.
    let mut holder = cluster.database.connect().await?;
    let lock = holder.transaction().await?;
    lock.batch_execute("LOCK TABLE issue IN ACCESS EXCLUSIVE MODE").await?;
    let mut manager = cluster.manager()?;
    let port = manager.change_port();
    let begin = Instant::now();
    manager.spawn()?;
    let copying = await_facts(&mut manager, port, "the first answer", |_| true).await?;
    ensure!(begin.elapsed() < Duration::from_secs(2), "the first answer took {:?}", begin.elapsed());
    ensure!(copying["streaming"] == json!(false) && copying["role"] == json!("replication-manager"), "{copying}");
    let copying = await_facts(&mut manager, port, "the copy", |facts| facts["initialSync"] == json!(true)).await?;
    let expected = json!({
        "role": "replication-manager", "version": env!("CARGO_PKG_VERSION"), "streaming": false, "initialSync": true,
        "restoring": false, "replicaVersion": null, "lagSeconds": null, "slotLost": false, "subscribers": 0,
        "backup": {"snapshotAt": null, "lastAt": null, "fault": null},
    });
    ensure!(copying == expected, "{copying}");
    for wrong in ["", &http::basic("operator", "guess"), &http::basic("operator", "")] {
        let (status, body) = http::get(port, PATH, wrong)?;
        ensure!(status == 401 && !body.contains("role"), "{status}: {body}");
    }
    let (status, _) = http::get(port, "/", "")?;
    ensure!(status == 503, "a node that copies is not ready, and answered {status}");
    drop(lock);

    let is_backed_up = |facts: &Value| facts["backup"]["snapshotAt"].is_u64() && facts["backup"]["lastAt"].is_u64();
    let is_streaming = |facts: &Value| facts["streaming"] == json!(true) && facts["initialSync"] == json!(false);
    await_facts(&mut manager, port, "streaming", |facts| is_streaming(facts) && is_backed_up(facts)).await?;
    cluster.stream.add(port);

    // A view-syncer that restores from a slow store.
    let store = cluster.store.as_ref().context("there is a store")?;
    store.server.set_faults(Faults { delay: Duration::from_millis(500), ..Faults::default() });
    let mut syncer = cluster.syncer()?;
    syncer.set("ZERO_ADMIN_PORT", &syncer.spare_port().to_string());
    let syncer_port = syncer.admin_port();
    syncer.spawn()?;
    let restoring = |facts: &Value| facts["restoring"] == json!(true);
    let facts = await_facts(&mut syncer, syncer_port, "restoring", restoring).await?;
    ensure!(facts["role"] == json!("view-syncer") && facts["subscribers"].is_null(), "{facts}");
    // Whoever waits for a page of the clients' port waits for a node that takes clients, and finds nothing else there.
    for (path, expected) in [("/", 503), ("/keepalive", 503), ("/livez", 200), ("/statz", 404), ("/metrics", 404)] {
        let (status, _) = http::get(syncer.port(), path, &http::basic("operator", "test"))?;
        ensure!(status == expected, "{path} answered {status}");
    }
    let store = cluster.store.as_ref().context("there is a store")?;
    store.server.set_faults(Faults::default());
    syncer.wait_ready(READY)?;
    ensure!(syncer.metric("zero_restores_total")? == 1.0 && syncer.metric("zero_restored_bytes_total")? > 0.0);

    // Both follow what is written.
    cluster.database.execute("UPDATE issue SET title = 'new' WHERE id = 'i1'").await?;
    let followed = |facts: &Value| facts["subscribers"] == json!(1) && facts["lagSeconds"].is_number();
    let of_manager = await_facts(&mut manager, port, "a follower", followed).await?;
    let same = |facts: &Value| is_streaming(facts) && facts["replicaVersion"] == of_manager["replicaVersion"];
    let of_syncer = await_facts(&mut syncer, syncer_port, "the same version", same).await?;
    ensure!(of_syncer["lagSeconds"].as_f64().is_some_and(|lag| lag < 10.0), "{of_syncer}");

    // Without its replication-manager a view-syncer does not stream and serves on.
    manager.kill()?;
    let alone = |facts: &Value| facts["streaming"] == json!(false) && facts["lagSeconds"].is_null();
    await_facts(&mut syncer, syncer_port, "alone", alone).await?;
    ensure!(syncer.answers(syncer_port) && syncer.answers(syncer.port()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_that_may_not_be_replaced_is_shown_until_a_person_comes() -> Result<()> {
    let mut cluster = Cluster::prepare(Plan::new("lost_slot")).await?;
    let mut manager = cluster.manager()?.env("ZERO_AUTO_RESET", "false").allow_error("ZERO_AUTO_RESET is false");
    let port = manager.change_port();
    manager.start()?;
    manager.terminate()?;
    cluster
        .database
        .execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()",
        )
        .await?;
    manager.spawn()?;
    await_facts(&mut manager, port, "the lost slot", |facts| facts["slotLost"] == json!(true)).await?;
    let says = |log: &str| log.contains("ZERO_AUTO_RESET is false");
    let deadline = Instant::now() + READY;
    while !says(&manager.last_log()) {
        ensure!(Instant::now() < deadline, "nothing about it in the log:\n{}", manager.last_log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // It stays, is not ready, and can be asked.
    await_facts(&mut manager, port, "idle", |facts| facts["slotLost"] == json!(true)).await?;
    ensure!(!manager.answers(port) && !manager.answers(manager.port()) && manager.is_running());
    ensure!(copies(&manager.last_log()) == 0);
    ensure!(manager.terminate()?.success());

    // Allowed to, it begins anew by itself.
    manager.set("ZERO_AUTO_RESET", "true");
    manager.start()?;
    let healthy = |facts: &Value| facts["streaming"] == json!(true) && facts["slotLost"] == json!(false);
    await_facts(&mut manager, port, "streaming again", healthy).await?;
    ensure!(copies(&manager.last_log()) == 1);
    manager.check_log()
}
