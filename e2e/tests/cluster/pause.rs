//! All nodes stand still for a while, as when the machine beneath them is suspended. Whoever finds that it still has what it had
//! goes on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::crowd::Crowd;
use super::standby::{pair, row};
use super::{Cluster, Plan};

/// Longer than any node waits for a sign of life from another.
const PAUSE: Duration = Duration::from_secs(14);

/// `ZERO_PAUSE_SECONDS` makes it longer.
fn pause() -> Duration {
    std::env::var("ZERO_PAUSE_SECONDS").ok().and_then(|text| text.parse().ok()).map_or(PAUSE, Duration::from_secs)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_all_nodes_ends_none_of_them() -> Result<()> {
    survives(Cluster::start(Plan::new("pause")).await?).await
}

/// Whoever watches another has not seen it for as long as it was not there itself, which says nothing of the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_all_nodes_is_no_silence_to_one_that_stands_by() -> Result<()> {
    survives(pair(Plan::new("pause_standby")).await?).await
}

async fn survives(cluster: Cluster) -> Result<()> {
    let mut dice = StdRng::seed_from_u64(testkit::seed("pause"));
    let crowd = Crowd::gather(|| cluster.options(), 2, 1, &mut dice);
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    let before = row(&cluster).await?;
    let nodes = || cluster.managers.iter().chain(&cluster.syncers);
    for node in nodes() {
        node.freeze()?;
    }
    cluster.database.execute("UPDATE issue SET title = 'written while nobody looks'").await?;
    tokio::time::sleep(pause()).await;
    for node in nodes() {
        node.thaw()?;
    }
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    // Three looks of one that stands by.
    tokio::time::sleep(Duration::from_secs(4)).await;
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    for node in nodes() {
        ensure!(node.get("/livez")?.0 == 200, "{} ended:\n{}", node.name(), node.log_tail(20));
        ensure!(!node.log().contains("steps down"), "{}", node.log_tail(20));
    }
    ensure!(row(&cluster).await? == before, "the log has changed hands: {before:?}, {:?}", row(&cluster).await?);
    Ok(())
}
