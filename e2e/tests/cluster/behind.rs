//! A view-syncer whose restarted owner is behind upstream: it has all that the owner has, which is not all there is, and says so to
//! load balancers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testkit::client::{Client, Options};
use testkit::evil::{Evil, From, Verdict};
use testkit::proxy::Proxy;

use super::node_status::{await_facts, facts};
use super::{Cluster, Plan, READY};
use crate::app::{all_issues, client_schema, fence};

/// More than a node takes from its connection to its first client.
const LONG_READY: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread")]
async fn a_view_syncer_is_not_ready_before_its_owner_is_where_upstream_is() -> Result<()> {
    let mut cluster = Cluster::prepare(Plan::new("behind")).await?;
    let server = cluster.database.postgres.port();
    let evil = Evil::start(server).await?;
    let url = cluster.database.url();
    let mut manager = cluster.manager()?.env("ZERO_UPSTREAM_DB", &evil.url(&url, server)).env("ZERO_CHANGE_DB", &url);
    // As behind a Service that names pods that are not ready.
    cluster.stream = Proxy::relay(manager.change_port()).await?;
    let mut syncer = cluster.syncer()?;
    manager.start()?;
    syncer.start()?;
    for node in [&mut syncer, &mut manager] {
        ensure!(node.terminate()?.success(), "{}", node.log_tail(20));
    }
    cluster.database.execute("UPDATE issue SET title = 'written while all were down'").await?;

    // Nothing of the stream comes through, be it transactions or how far they are.
    let is_held = Arc::new(AtomicBool::new(true));
    let held = Arc::clone(&is_held);
    evil.script(move |frame| match (frame.from, frame.tag) {
        (From::Server, b'd') if held.load(Ordering::Relaxed) => Verdict::Swallow,
        _ => Verdict::Pass,
    });
    manager.spawn()?;
    let port = manager.change_port();
    await_facts(&mut manager, port, "streaming", |facts| facts["streaming"] == json!(true)).await?;
    syncer.spawn()?;
    let syncer_port = syncer.port();
    await_facts(&mut syncer, syncer_port, "following", |facts| facts["streaming"] == json!(true)).await?;
    tokio::time::sleep(LONG_READY).await;
    ensure!(facts(syncer_port)?["streaming"] == json!(true), "it follows no more:\n{}", syncer.log_tail(20));
    ensure!(!syncer.answers(syncer_port), "it is ready before its owner:\n{}", syncer.log_tail(20));

    is_held.store(false, Ordering::Relaxed);
    let again = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
        WHERE active AND database = current_database()";
    cluster.database.execute(again).await?;
    syncer.wait_ready(READY)?;
    let options = Options::new(syncer_port, client_schema());
    let client = Client::start(options, &[all_issues(), fence()]).await.with_context(|| syncer.log_tail(20))?;
    let old = client.store().rows["issue"]
        .values()
        .filter(|row| row["title"] != json!("written while all were down"))
        .count();
    ensure!(old == 0, "a client was served {old} rows of the past");

    // An owner that goes on with nothing to catch up with keeps nobody waiting.
    let begun = Instant::now();
    ensure!(syncer.terminate()?.success());
    syncer.start()?;
    ensure!(begun.elapsed() < READY, "{:?}", begun.elapsed());
    manager.check_log()?;
    syncer.check_log()
}
