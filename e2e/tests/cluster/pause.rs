//! All nodes stand still for a while, as when the machine beneath them is suspended. Whoever finds that it still has what it had
//! goes on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::crowd::Crowd;
use super::{Cluster, Plan};

/// Longer than any node waits for a sign of life from another.
const PAUSE: Duration = Duration::from_secs(14);

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_all_nodes_ends_none_of_them() -> Result<()> {
    let cluster = Cluster::start(Plan::new("pause")).await?;
    let mut dice = StdRng::seed_from_u64(testkit::seed("pause"));
    let crowd = Crowd::gather(|| cluster.options(), 2, 1, &mut dice);
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    let nodes = || cluster.managers.iter().chain(&cluster.syncers);
    for node in nodes() {
        node.freeze()?;
    }
    cluster.database.execute("UPDATE issue SET title = 'written while nobody looks'").await?;
    tokio::time::sleep(PAUSE).await;
    for node in nodes() {
        node.thaw()?;
    }
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    for node in cluster.managers.iter().chain(&cluster.syncers) {
        ensure!(node.get("/livez")?.0 == 200, "{} ended:\n{}", node.name(), node.log_tail(20));
        ensure!(!node.log().contains("steps down"), "{}", node.log_tail(20));
    }
    Ok(())
}
