//! View-syncers that are not told where the replication-manager is, and find it in the change database.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use testkit::proxy::Proxy;

use super::crowd::Crowd;
use super::{Cluster, Plan, READY};
use crate::bad_input::wait_for_complaint;

#[tokio::test(flavor = "multi_thread")]
async fn a_view_syncer_finds_the_replication_manager_and_its_successors() -> Result<()> {
    let mut cluster = Cluster::prepare(Plan { syncers: 0, ..Plan::new("discovery") }).await?;
    let mut syncer = cluster.syncer()?.env("ZERO_CHANGE_STREAMER_MODE", "discover");
    syncer.unset("ZERO_CHANGE_STREAMER_URI");
    // Nobody has registered yet.
    syncer.spawn()?;
    wait_for_complaint(&mut syncer, &[" WARN ", "change database"])?;
    cluster.add_manager().await.with_context(|| cluster.report())?;
    let port = syncer.port();
    cluster.door.add(port);
    cluster.syncers.push(syncer);
    cluster.await_syncers().await.with_context(|| cluster.report())?;

    let mut dice = StdRng::seed_from_u64(testkit::seed("discovery"));
    let crowd = Crowd::gather(|| cluster.options(), 2, 1, &mut dice);
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    for turn in 1..=2 {
        cluster.replace_manager().await.with_context(|| format!("successor {turn}\n{}", cluster.report()))?;
        crowd.settle(&cluster.database).await.with_context(|| format!("successor {turn}\n{}", cluster.report()))?;
    }
    // One that dies and comes back at another address is found there.
    cluster.managers[0].kill()?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let dead = cluster.managers.remove(0);
    cluster.stream.remove(dead.change_port());
    cluster.add_manager().await.with_context(|| cluster.report())?;
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    ensure!(cluster.syncers[0].answers(port), "the view-syncer is not ready any more");
    // Another owner that is named is gone to, although the present one would serve on.
    let elsewhere = Proxy::relay(cluster.managers[0].change_port()).await?;
    let name = format!("UPDATE \"zero_0/cdc\".state SET \"ownerAddress\" = 'ws://127.0.0.1:{}'", elsewhere.port());
    cluster.database.execute(&name).await?;
    let deadline = Instant::now() + READY;
    while elsewhere.opened(cluster.managers[0].change_port()) == 0 {
        ensure!(Instant::now() < deadline, "it stays where it was:\n{}", cluster.report());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    cluster.door.wait_healthy(port, true, READY).await?;
    cluster.check_logs()
}
