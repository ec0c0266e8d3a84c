//! Processes started with the environments that existing deployments have: only addresses, paths and the port are this machine's.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use testkit::deployments::{Deployment, deployments};
use testkit::postgres::{Postgres, Version};
use testkit::process::{self, ZeroCache};
use testkit::s3;

const PATIENCE: Duration = Duration::from_secs(60);

fn deployment(title: &str) -> Result<Deployment> {
    deployments()?.into_iter().find(|found| found.title == title).with_context(|| format!("no deployment {title:?}"))
}

/// The node with exactly the deployment's environment, but for `own`.
fn node(deployment: &Deployment, upstream: &str, own: &[(&str, &str)]) -> Result<ZeroCache> {
    let node = ZeroCache::new("")?.named(deployment.title);
    let (port, replica) = (node.port().to_string(), node.replica_file().display().to_string());
    let mut environment = vec![("ZERO_PORT".to_owned(), port)];
    for (name, value) in &deployment.environment {
        let value = match *name {
            "ZERO_PORT" => continue,
            "ZERO_UPSTREAM_DB" | "ZERO_CVR_DB" | "ZERO_CHANGE_DB" => upstream,
            "ZERO_REPLICA_FILE" => &replica,
            name => own.iter().find(|(known, _)| *known == name).map_or(value, |(_, value)| value),
        };
        environment.push(((*name).to_owned(), value.to_owned()));
    }
    let port = node.port();
    Ok(node.with_environment(environment, port))
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_existing_deployments_start_and_stop_unchanged() -> Result<()> {
    for title in [
        "the same with an admin password",
        "test containers with old and new names of the query endpoint",
        "one node on Railway with a publication",
    ] {
        let database = Postgres::shared(Version::V15)?.create_database("deployments").await?;
        database
            .execute("CREATE TABLE note (id text PRIMARY KEY); CREATE PUBLICATION zero_data FOR TABLE note")
            .await?;
        let mut node = node(&deployment(title)?, &database.url(), &[])?;
        node.start().with_context(|| title.to_owned())?;
        ensure!(node.terminate()?.success(), "{title}: {}", node.log_tail(20));
        node.start()?;
        // As the `zero-cache-dev` of the reference ends its server.
        ensure!(node.quit()?.code() == Some(14), "{title}: {}", node.log_tail(20));
        node.check_log()?;
    }
    Ok(())
}

/// The chart names the store by the variables of AWS alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_replication_manager_of_a_chart_backs_up() -> Result<()> {
    let store = s3::S3::start("bucket").await?;
    let database = Postgres::shared(Version::V15)?.create_database("deployments").await?;
    database
        .execute(
            "CREATE TABLE note (id text PRIMARY KEY); CREATE TABLE more (id text PRIMARY KEY);
             CREATE PUBLICATION zero_data FOR TABLE note; CREATE PUBLICATION zero_more FOR TABLE more",
        )
        .await?;
    // By name: an address of numbers is never taken for a bucket's.
    let endpoint = format!("http://localhost:{}", store.port());
    let own = [
        ("AWS_ENDPOINT_URL", &*endpoint),
        ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY),
        ("AWS_REGION", s3::REGION),
    ];
    let chart = deployment("Helm chart with everything switched on, replication-manager")?;
    let mut node = node(&chart, &database.url(), &own)?;
    node.start()?;
    let since = Instant::now();
    while !store.object("bucket", "path").exists() {
        ensure!(since.elapsed() < PATIENCE, "no backup:\n{}", node.log_tail(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(node.terminate()?.success(), "{}", node.log_tail(20));
    node.check_log()
}

#[test]
fn what_must_be_changed_is_said_at_once() -> Result<()> {
    for deployment in deployments()?.into_iter().filter(|deployment| !deployment.change.is_empty()) {
        let output = Command::new(process::binary()?)
            .env_clear()
            .envs(deployment.environment.iter().copied())
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(255), "{}: {}\n{said}", deployment.title, output.status);
        for variable in &deployment.change {
            ensure!(said.contains(&format!("{variable}: ")), "{}: {variable} is not named:\n{said}", deployment.title);
        }
    }
    Ok(())
}
