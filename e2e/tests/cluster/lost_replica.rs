//! A replication-manager that is killed at random points and loses its disk restores the backup and goes on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::crowd::Crowd;
use super::writer::Writer;
use super::{Cluster, Plan};
use crate::app::copies;

const KILLS: u32 = 6;

#[tokio::test(flavor = "multi_thread")]
async fn a_replication_manager_without_its_disk_restores_and_goes_on() -> Result<()> {
    let seed = testkit::seed("a_replication_manager_without_its_disk_restores_and_goes_on");
    let mut dice = StdRng::seed_from_u64(seed);
    let plan = Plan { syncers: 1, has_store: true, ..Plan::new("lost_replica") };
    let mut cluster = Cluster::start(plan).await?;
    let mut writer = Writer::random(&cluster.database.url(), dice.random(), Duration::from_millis(5));
    let crowd = Crowd::gather(|| cluster.options(), 3, 1, &mut dice);
    // The first backup is made after the copy; without one there is nothing to restore.
    cluster.await_backup().await?;
    for kill in 1..=KILLS {
        tokio::time::sleep(Duration::from_millis(dice.random_range(0..2500))).await;
        cluster.crash_manager(true)?;
        cluster.revive().await.with_context(|| format!("kill {kill}, ZERO_SEED={seed}\n{}", cluster.report()))?;
        let log = cluster.managers[0].last_log();
        ensure!(copies(&log) == 0, "kill {kill}: a new copy was made\n{log}");
        if kill % 2 == 0 {
            writer.pause().await?;
            let settled = crowd.settle(&cluster.database).await;
            settled.with_context(|| format!("kill {kill}, ZERO_SEED={seed}\n{}", cluster.report()))?;
            writer.go_on();
        }
    }
    // A view-syncer that starts from what was restored agrees as well.
    writer.pause().await?;
    cluster.replace_syncer().await.with_context(|| cluster.report())?;
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    cluster.check_logs()
}
