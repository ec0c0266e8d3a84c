//! Ten view-syncers put no more load on the upstream database than one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::client::Client;

use super::{Cluster, Plan};
use crate::app::{all_issues, fence};

/// Every statement is logged behind the name of its database.
const LOGGING: &[(&str, &str)] = &[("log_statement", "all"), ("log_line_prefix", "db=%d app=%a ")];
const COMMITS: usize = 40;

/// What the upstream database has been asked by others than the application, and by how many connections.
#[derive(Clone, Copy, Debug)]
struct Load {
    connections: i64,
    statements: usize,
}

fn statements(cluster: &Cluster) -> usize {
    let mark = format!("db={} app=zero", cluster.database.name);
    let is_statement =
        |line: &&str| line.starts_with(&mark) && (line.contains("statement: ") || line.contains("execute "));
    cluster.database.postgres.log().lines().filter(is_statement).count()
}

/// The load while the application commits for two seconds.
async fn measure(cluster: &Cluster, observer: &tokio_postgres::Client) -> Result<Load> {
    let before = statements(cluster);
    let application = cluster.database.connect().await?;
    for n in 0..COMMITS {
        application.batch_execute(&format!("UPDATE issue SET rank = {n} WHERE id = 'i1'")).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'zero%'";
    let connections = observer.query_one(sql, &[&cluster.database.name]).await?.get(0);
    Ok(Load { connections, statements: statements(cluster) - before })
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_view_syncers_load_upstream_no_more_than_one() -> Result<()> {
    // The records of clients and the change log live elsewhere, so that what remains is what upstream has to bear.
    let plan = Plan { syncers: 1, owns_postgres: true, postgres_settings: LOGGING, ..Plan::new("upstream_load") };
    let mut cluster = Cluster::prepare(plan).await?;
    let elsewhere = cluster.database.postgres.create_database("elsewhere").await?.url();
    cluster.plan.settings = vec![("ZERO_CVR_DB", elsewhere.clone()), ("ZERO_CHANGE_DB", elsewhere)];
    let observer = cluster.database.postgres.connect("postgres").await?;

    cluster.add_manager().await?;
    ensure!(statements(&cluster) > 10, "the first copy asked upstream nothing: the log is not read rightly");
    cluster.spawn_syncer()?;
    cluster.await_syncers().await.with_context(|| cluster.report())?;
    let mut clients = vec![Client::start(cluster.options(), &[all_issues(), fence()]).await?];
    let one = measure(&cluster, &observer).await?;

    let before = statements(&cluster);
    for _ in 0..9 {
        cluster.spawn_syncer()?;
    }
    cluster.await_syncers().await.with_context(|| cluster.report())?;
    for _ in 0..20 {
        clients.push(Client::start(cluster.options(), &[all_issues(), fence()]).await?);
    }
    let starting = statements(&cluster) - before;
    let ten = measure(&cluster, &observer).await?;
    println!("upstream with one view-syncer: {one:?}; with ten: {ten:?}; while nine started: {starting} statements");
    ensure!(ten.connections <= one.connections, "connections: {one:?} became {ten:?}");
    // What the replication-manager does now and then may fall into either.
    ensure!(ten.statements <= one.statements + 10, "statements: {one:?} became {ten:?}");
    ensure!(starting <= 10, "upstream was asked {starting} times to start nine view-syncers");
    cluster.check_logs()
}
