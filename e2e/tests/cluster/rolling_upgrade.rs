//! A rolling upgrade under load: nobody's operation fails, and nobody waits for long.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use testkit::client::Store;
use tokio::sync::watch;

use super::crowd::{Crowd, PATIENCE, Use};
use super::writer::Writer;
use super::{Cluster, Plan};

/// Every tab sees a change as often as this.
const PACE: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_upgrade_fails_no_operation() -> Result<()> {
    let mut dice = StdRng::seed_from_u64(testkit::seed("a_rolling_upgrade_fails_no_operation"));
    let plan = Plan { syncers: 2, has_store: true, owns_postgres: true, ..Plan::new("upgrade") };
    let mut cluster = Cluster::start(plan).await?;
    let crowd = Crowd::gather(|| cluster.options(), 6, 2, &mut dice);
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;

    let beat = |n| format!("INSERT INTO fence VALUES (3, {n}) ON CONFLICT (id) DO UPDATE SET value = {n}");
    let mut writer = Writer::start(&cluster.database.url(), PACE, beat);
    for tab in &crowd.tabs {
        let beating = tab.wait(PATIENCE, "the beat", |store| store.rows["fence"].contains_key("[3]"));
        beating.await?;
        tab.watch().measure_gaps();
    }
    let begin = Instant::now();
    let (over, is_over) = watch::channel(false);
    // Apart from this task, which waits for processes and lets nothing else run meanwhile.
    let using = tokio::spawn(crowd.use_until(dice, is_over, PATIENCE));
    let upgraded = cluster.rolling_restart().await;
    let took = begin.elapsed();
    over.send_replace(true);
    let used = using.await.context("the tabs' task failed")?;
    upgraded.with_context(|| cluster.report())?;
    let Use { crowd, operations, slowest } = used.with_context(|| cluster.report())?;

    let mut gaps = Vec::new();
    for tab in &crowd.tabs {
        let gap = tab.watch().look(Store::longest_gap);
        ensure!(gap < PATIENCE, "{} waited {gap:?} for a change", tab.name());
        gaps.push(gap);
    }
    writer.pause().await?;
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    println!(
        "a rolling upgrade of 1 + 2 nodes took {took:.1?}: {operations} operations, 0 failed, the slowest took {slowest:.1?}; \
         {} commits; longest gap of each tab: {gaps:.1?}; {}",
        writer.commits(),
        crowd.summary()
    );
    cluster.check_logs()
}
