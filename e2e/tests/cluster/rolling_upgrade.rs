//! A rolling upgrade under load: nobody's operation fails, and nobody waits for long.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use testkit::client::Store;

use super::crowd::Crowd;
use super::writer::Writer;
use super::{Cluster, Plan};

/// Every tab sees a change as often as this.
const PACE: Duration = Duration::from_millis(20);
/// An upgrade that keeps somebody waiting for longer has failed, even on a busy machine.
const GAP_MAX: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_upgrade_fails_no_operation() -> Result<()> {
    let mut dice = StdRng::seed_from_u64(testkit::seed("a_rolling_upgrade_fails_no_operation"));
    let plan = Plan { syncers: 2, has_store: true, owns_postgres: true, ..Plan::new("upgrade") };
    let mut cluster = Cluster::start(plan).await?;
    let mut crowd = Crowd::gather(|| cluster.options(), 6, 2, &mut dice);
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;

    let beat = |n| format!("INSERT INTO fence VALUES (3, {n}) ON CONFLICT (id) DO UPDATE SET value = {n}");
    let mut writer = Writer::start(&cluster.database.url(), PACE, beat);
    for tab in &crowd.tabs {
        let beating = tab.wait(Duration::from_secs(30), "the beat", |store| store.rows["fence"].contains_key("[3]"));
        beating.await?;
        tab.watch().measure_gaps();
    }
    let begin = Instant::now();
    let outcome = tokio::select! {
        outcome = cluster.rolling_restart() => outcome,
        outcome = use_it(&mut crowd, &mut dice) => outcome.context("while nodes were replaced"),
    };
    outcome.with_context(|| cluster.report())?;
    let took = begin.elapsed();

    let mut gaps = Vec::new();
    for tab in &crowd.tabs {
        let gap = tab.watch().look(Store::longest_gap);
        ensure!(gap < GAP_MAX, "{} waited {gap:?} for a change", tab.name());
        gaps.push(gap);
    }
    writer.pause().await?;
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    println!(
        "a rolling upgrade of 1 + 2 nodes took {took:.1?}; {} commits, {} mutations, 0 failed; longest gap of each tab: {gaps:.0?}; {}",
        writer.commits(),
        crowd.pushes(),
        crowd.summary()
    );
    cluster.check_logs()
}

/// Mutations and changes of queries, for ever; each must be answered.
async fn use_it(crowd: &mut Crowd, dice: &mut StdRng) -> Result<()> {
    for turn in 0.. {
        let index = turn % crowd.tabs.len();
        crowd.push_from(index).await?;
        crowd.change_queries(dice).await;
        crowd.check()?;
        tokio::time::sleep(Duration::from_millis(50)).await;
        // An operation that is not answered soon has failed for its user.
        let tab = &crowd.tabs[(turn + 1) % crowd.tabs.len()];
        tab.wait_got(GAP_MAX, &tab.wanted().await).await?;
    }
    Ok(())
}
