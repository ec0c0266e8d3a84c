//! A Postgres that is restarted under load. Its fast shutdown waits until replication has taken all that was written, so a
//! replication-manager that waits for its change database, which is in the same server, must let go of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::crowd::Crowd;
use super::writer::Writer;
use super::{Cluster, Plan};

/// Whoever waits for a pooler that keeps its statement waiting lets go of the stream after five seconds.
const STOP_MAX: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn postgres_restarts_under_load() -> Result<()> {
    let mut dice = StdRng::seed_from_u64(testkit::seed("postgres_restarts_under_load"));
    for has_pooler in [false, true] {
        let plan = Plan { syncers: 1, has_pooler, owns_postgres: true, ..Plan::new("busy_restart") };
        let cluster = Cluster::start(plan).await?;
        let crowd = Crowd::gather(|| cluster.options(), 2, 1, &mut dice);
        crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
        let mut writer = Writer::random(&cluster.database.url(), dice.random(), Duration::from_millis(1));
        for restart in 1..=3 {
            tokio::time::sleep(Duration::from_millis(dice.random_range(200..800))).await;
            let begin = Instant::now();
            cluster.database.postgres.restart().with_context(|| format!("restart {restart}\n{}", cluster.report()))?;
            let took = begin.elapsed();
            ensure!(took < STOP_MAX, "restart {restart} took {took:?}, pooler {has_pooler}");
        }
        writer.pause().await?;
        crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
        cluster.check_logs()?;
    }
    Ok(())
}
