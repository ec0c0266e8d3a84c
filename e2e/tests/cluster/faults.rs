//! Random faults under load: a replication-manager, three view-syncers, sixty tabs in twenty client groups, writes that never
//! stop. After each quiet point every tab's rows equal Postgres, every mutation has run exactly once, and no user saw an error.
//!
//! `ZERO_SOAK_SECONDS` says how long the faults go on (90 by default), `ZERO_SEED` replays a run's choices.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use testkit::s3::Faults;

use super::crowd::Crowd;
use super::writer::Writer;
use super::{Cluster, Plan};

const FAULTS_PER_QUIET_POINT: usize = 4;

/// What can go wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    SyncerCrashes,
    SyncerFreezes,
    SyncerIsReplaced,
    ManagerCrashes,
    ManagerLosesDisk,
    ManagerIsReplaced,
    StoreFails,
    StoreIsSlow,
    PostgresRestarts,
    ConnectionsBreak,
    StreamBreaks,
    RollingRestart,
}

const FAULTS: [(Fault, u32); 12] = [
    (Fault::SyncerCrashes, 4),
    (Fault::SyncerFreezes, 2),
    (Fault::SyncerIsReplaced, 4),
    (Fault::ManagerCrashes, 3),
    (Fault::ManagerLosesDisk, 2),
    (Fault::ManagerIsReplaced, 3),
    (Fault::StoreFails, 3),
    (Fault::StoreIsSlow, 2),
    (Fault::PostgresRestarts, 2),
    (Fault::ConnectionsBreak, 2),
    (Fault::StreamBreaks, 2),
    (Fault::RollingRestart, 1),
];

fn draw(dice: &mut StdRng) -> Fault {
    let mut at = dice.random_range(0..FAULTS.iter().map(|(_, weight)| weight).sum());
    for (fault, weight) in FAULTS {
        if at < weight {
            return fault;
        }
        at -= weight;
    }
    unreachable!("the draw is below the sum of the weights")
}

struct Run {
    cluster: Cluster,
    crowd: Crowd,
    writer: Writer,
    dice: StdRng,
    begin: Instant,
    log: Vec<String>,
    quiet_points: u32,
}

#[tokio::test(flavor = "multi_thread")]
async fn random_faults_are_invisible_to_users() -> Result<()> {
    let seed = testkit::seed("random_faults_are_invisible_to_users");
    let seconds = std::env::var("ZERO_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(90);
    let mut dice = StdRng::seed_from_u64(seed);
    let plan = Plan { syncers: 3, has_store: true, has_pooler: true, owns_postgres: true, ..Plan::new("faults") };
    let cluster = Cluster::start(plan).await?;
    let options = || {
        let mut options = cluster.options();
        options.rising = Some(("fence".to_owned(), "value".to_owned()));
        options
    };
    let crowd = Crowd::gather(options, 20, 3, &mut dice);
    let writer = Writer::random(&cluster.database.url(), dice.random(), Duration::from_millis(15));
    let mut run = Run { cluster, crowd, writer, dice, begin: Instant::now(), log: Vec::new(), quiet_points: 0 };
    let outcome = run.go(Duration::from_secs(seconds)).await;
    println!(
        "{} faults, {} quiet points, {} commits, {} mutations; {}",
        run.log.len(),
        run.quiet_points,
        run.writer.commits(),
        run.crowd.pushes(),
        run.crowd.summary()
    );
    outcome.with_context(|| {
        format!("ZERO_SEED={seed}; the faults were\n  {}\n{}", run.log.join("\n  "), run.cluster.report())
    })?;
    run.cluster.check_logs()
}

impl Run {
    async fn go(&mut self, duration: Duration) -> Result<()> {
        self.quiet_point().await.context("before the first fault")?;
        while self.begin.elapsed() < duration {
            for _ in 0..FAULTS_PER_QUIET_POINT {
                if self.begin.elapsed() > duration {
                    break;
                }
                let fault = draw(&mut self.dice);
                self.log.push(format!("{:>5.1} s {fault:?}", self.begin.elapsed().as_secs_f32()));
                self.strike(fault).await.with_context(|| format!("{fault:?}"))?;
                self.live_on().await?;
                self.crowd.check().with_context(|| format!("after {fault:?}"))?;
            }
            self.quiet_point().await.with_context(|| format!("at quiet point {}", self.quiet_points + 1))?;
        }
        Ok(())
    }

    async fn strike(&mut self, fault: Fault) -> Result<()> {
        let syncer = self.dice.random_range(0..self.cluster.syncers.len());
        match fault {
            Fault::SyncerCrashes => self.cluster.crash_syncer(syncer),
            Fault::SyncerFreezes => {
                let node = &self.cluster.syncers[syncer];
                node.freeze()?;
                tokio::time::sleep(Duration::from_millis(self.dice.random_range(200..3000))).await;
                self.cluster.syncers[syncer].thaw()
            }
            Fault::ManagerCrashes => self.cluster.crash_manager(false),
            Fault::ManagerLosesDisk => self.cluster.crash_manager(true),
            Fault::SyncerIsReplaced => {
                self.calm_down().await?;
                self.cluster.replace_syncer().await.map(drop)
            }
            Fault::ManagerIsReplaced => {
                self.calm_down().await?;
                self.cluster.replace_manager().await
            }
            Fault::RollingRestart => {
                self.calm_down().await?;
                self.cluster.rolling_restart().await
            }
            Fault::StoreFails => self.set_store(Faults { errors: 0.5, cuts: 0.2, ..Faults::default() }),
            Fault::StoreIsSlow => self.set_store(Faults { delay: Duration::from_millis(1500), ..Faults::default() }),
            Fault::PostgresRestarts => self.cluster.database.postgres.restart(),
            Fault::ConnectionsBreak => {
                self.cluster.door.cut_all();
                Ok(())
            }
            Fault::StreamBreaks => {
                self.cluster.stream.cut_all();
                Ok(())
            }
        }
    }

    /// A few seconds of ordinary life.
    async fn live_on(&mut self) -> Result<()> {
        for _ in 0..self.dice.random_range(5..25) {
            match self.dice.random_range(0..10) {
                0..5 => self.crowd.push(&mut self.dice).await?,
                5..8 => self.crowd.change_queries(&mut self.dice).await,
                _ => self.crowd.lose_a_connection(&mut self.dice).await,
            }
            tokio::time::sleep(Duration::from_millis(self.dice.random_range(20..150))).await;
        }
        Ok(())
    }

    fn set_store(&mut self, faults: Faults) -> Result<()> {
        self.cluster.store.as_ref().context("there is a store")?.server.set_faults(faults);
        Ok(())
    }

    /// Whatever was struck is whole again.
    async fn calm_down(&mut self) -> Result<()> {
        self.set_store(Faults::default())?;
        self.cluster.revive().await
    }

    async fn quiet_point(&mut self) -> Result<()> {
        self.calm_down().await?;
        self.writer.pause().await?;
        self.crowd.settle(&self.cluster.database).await?;
        self.quiet_points += 1;
        self.writer.go_on();
        Ok(())
    }
}
