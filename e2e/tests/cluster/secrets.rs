//! The secrets that nodes share are changed while everything runs: the replication-manager first, then the view-syncers.

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::crowd::Crowd;
use super::{Cluster, Plan};
use crate::app::copies;
use crate::bad_input::wait_for_complaint;

const TOKEN: &str = "ZERO_CHANGE_STREAMER_TOKEN";
const PREVIOUS: &str = "ZERO_CHANGE_STREAMER_TOKEN_PREVIOUS";
const PASSWORD: &str = "ZERO_ADMIN_PASSWORD";
const PREVIOUS_PASSWORD: &str = "ZERO_ADMIN_PASSWORD_PREVIOUS";

/// The replication-manager is replaced, then the view-syncer; nobody is refused meanwhile.
async fn rotate(
    cluster: &mut Cluster,
    crowd: &Crowd,
    before: &[(&'static str, &str)],
    after: &[(&'static str, &str)],
) -> Result<()> {
    let what = || format!("{before:?} to {after:?}");
    // The present view-syncer knows only the former secret.
    cluster.plan.settings = before.iter().chain(after).map(|(name, value)| (*name, (*value).to_owned())).collect();
    cluster.replace_manager().await.with_context(|| format!("{}\n{}", what(), cluster.report()))?;
    crowd.settle(&cluster.database).await.with_context(|| format!("{}\n{}", what(), cluster.report()))?;
    // A view-syncer has no use for what was before.
    cluster.plan.settings = after.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    cluster.replace_syncer().await.with_context(|| format!("{}\n{}", what(), cluster.report()))?;
    crowd.settle(&cluster.database).await.with_context(|| format!("{}\n{}", what(), cluster.report()))?;
    ensure!(copies(&cluster.managers[0].last_log()) == 0, "a copy was made");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_changed_without_a_refused_node() -> Result<()> {
    let mut plan = Plan { syncers: 1, ..Plan::new("secrets") };
    plan.settings = vec![(TOKEN, "first".to_owned())];
    let mut cluster = Cluster::start(plan).await?;
    let mut dice = StdRng::seed_from_u64(testkit::seed("secrets"));
    let crowd = Crowd::gather(|| cluster.options(), 2, 1, &mut dice);
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;

    rotate(&mut cluster, &crowd, &[(PREVIOUS, "first")], &[(TOKEN, "second")]).await?;
    // From a token to one made from the password, and on to another password.
    rotate(&mut cluster, &crowd, &[(PREVIOUS, "second")], &[(PASSWORD, "test")]).await?;
    rotate(&mut cluster, &crowd, &[(PREVIOUS_PASSWORD, "test")], &[(PASSWORD, "other")]).await?;
    cluster.check_logs()?;

    // What is neither present nor previous stays outside, and no secret is in a log.
    let mut stranger = cluster.syncer()?.env(TOKEN, "first");
    stranger.spawn()?;
    wait_for_complaint(&mut stranger, &["401", "token"])?;
    for node in cluster.managers.iter().chain(&cluster.syncers).chain([&stranger]) {
        let log = node.log();
        ensure!(!["first", "second", "other"].iter().any(|secret| log.contains(&format!("\"{secret}\""))), "{log}");
    }
    Ok(())
}
