//! Figures of deployments with two roles, printed by
//! `cargo test --release -p e2e -- --ignored --nocapture cluster::speed`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testkit::client::{Client, Options};
use testkit::process::ZeroCache;

use super::{Cluster, Plan};
use crate::app::{client_schema, fence, query};

const BEATS: i32 = 500;

/// Half of the times from a commit's acknowledgement to its poke are below this.
async fn commit_to_poke(cluster: &Cluster, port: u16) -> Result<Duration> {
    let client = Client::start(Options::new(port, client_schema()), &[fence()]).await?;
    let upstream = cluster.database.connect().await?;
    let statement = upstream.prepare("UPDATE fence SET value = $1 WHERE id = 1").await?;
    let mut times = Vec::new();
    for beat in 1..=BEATS {
        upstream.execute(&statement, &[&beat]).await?;
        let begin = Instant::now();
        client.wait_for("the beat", |store| store.rows["fence"]["[1]"]["value"] == json!(beat)).await?;
        times.push(begin.elapsed());
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
    times.sort();
    Ok(times[times.len() / 2])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures; needs a quiet machine and a release build"]
async fn two_roles_add_less_than_three_milliseconds() -> Result<()> {
    let mut differences = Vec::new();
    for round in 0..3 {
        let mut cluster = Cluster::start(Plan { syncers: 1, ..Plan::new("two_roles") }).await?;
        let two = commit_to_poke(&cluster, cluster.syncers[0].port()).await?;
        let mut single = cluster.node("single node")?;
        // Another application on the same database, so that both see the same commits.
        single.set("ZERO_APP_ID", "single");
        single.set("ZERO_QUERY_URL", &cluster.api.query_url());
        single.start()?;
        let one = commit_to_poke(&cluster, single.port()).await?;
        println!("round {round}: commit to poke p50: single node {one:.2?}, two roles {two:.2?}");
        differences.push(two.saturating_sub(one));
    }
    differences.sort();
    println!("two roles cost {:.2?} (median of three rounds)", differences[1]);
    ensure!(differences[1] < Duration::from_millis(3), "the second role costs {differences:.2?}");
    Ok(())
}

/// From the start of the process to the first rows at a client.
async fn time_to_serve(node: &mut ZeroCache) -> Result<(Duration, Duration)> {
    let begin = Instant::now();
    node.spawn()?;
    node.wait_ready(Duration::from_secs(120))?;
    let ready = begin.elapsed();
    let table = json!({"columns": {"id": {"type": "number"}, "text": {"type": "string"}}, "primaryKey": ["id"]});
    let schema = json!({"tables": {"big": table}});
    let some = query(json!({"table": "big", "orderBy": [["id", "asc"]], "limit": 10}));
    Client::start(Options::new(node.port(), schema), &[some]).await?;
    Ok((ready, begin.elapsed()))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures; needs a quiet machine, a release build and 5 GB of disk"]
async fn a_new_view_syncer_serves_a_gigabyte_in_ten_seconds() -> Result<()> {
    let sql = "CREATE TABLE big (id int PRIMARY KEY, text text NOT NULL);
        INSERT INTO big SELECT n, repeat(md5(n::text), 32) FROM generate_series(1, 1000000) n";
    for has_store in [true, false] {
        let plan = Plan { syncers: 0, has_store, sql: sql.to_owned(), ..Plan::new("gigabyte") };
        let mut cluster = Cluster::prepare(plan).await?;
        cluster.add_manager().await.with_context(|| cluster.report())?;
        if has_store {
            cluster.await_backup().await?;
        }
        let bytes = std::fs::metadata(cluster.managers[0].replica_file())?.len();
        let mut node = cluster.syncer()?;
        let (ready, served) = time_to_serve(&mut node).await.with_context(|| node.log_tail(20))?;
        let from = if has_store { "the store" } else { "the replication-manager" };
        let rate = bytes as f64 / ready.as_secs_f64() / f64::from(1 << 20);
        println!(
            "{} MiB from {from}: ready after {ready:.1?} ({rate:.0} MiB/s), first rows after {served:.1?}",
            bytes >> 20
        );
        ensure!(served < Duration::from_secs(10), "a new view-syncer took {served:?}");
    }
    Ok(())
}
