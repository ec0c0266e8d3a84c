//! The README's section on Kubernetes, word for word: its shell blocks run one after the other in one shell, on a cluster where
//! nothing is installed. Whenever the deployment is Ready, a client finds its rows there.

use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use testkit::api::Api;
use testkit::client::{Client, Options};
use testkit::s3;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::app::{ROWS_SQL, TABLES_SQL, all_issues, app, client_schema};
use crate::ground::{BUCKET, NODE, check_harness, operator_log, servers};
use crate::kubectl::{kubectl, root, run};
use crate::site::is_true;

const SECTION: &str = "## Run it on Kubernetes";
const REGISTRY: &str = "registry.test";
/// The shell says so after each block.
const END: &str = "--- the block ends here";

#[tokio::test(flavor = "multi_thread")]
async fn the_section_on_kubernetes_works_as_it_is_written() -> Result<()> {
    check_harness()?;
    let installed = kubectl(&["get", "crds", "-o", "name"]).await?;
    ensure!(
        !installed.contains("zerocache"),
        "this test needs a cluster of its own: run it alone, `... kubernetes -- readme::`"
    );
    let tags = [("zero-cache", "0.1.0"), ("zero-cache", "0.1.1"), ("zero-cache-operator", "0.1.0")];
    for (name, tag) in tags {
        let (from, to) = (format!("localhost/{name}:e2e"), format!("{REGISTRY}/{name}:{tag}"));
        run("ctr", &["images", "tag", "--force", &from, &to], None).await.context("start the cluster with --images")?;
    }
    let (postgres, store) = servers().await?;
    let database = postgres.create_database("shop").await?;
    let role = "CREATE ROLE zero SUPERUSER LOGIN REPLICATION PASSWORD 'change-me'";
    database.execute(&format!("{TABLES_SQL}{ROWS_SQL}{role}")).await?;
    let api = Api::start_at(app(&database.url()), NODE).await?;
    let set = [
        ("REGISTRY", REGISTRY.to_owned()),
        ("UPSTREAM_DB", format!("postgres://zero:change-me@postgres.test:{}/{}", postgres.port(), database.name)),
        ("BACKUP_URL", format!("s3://{BUCKET}/shop")),
        ("S3_ENDPOINT", format!("http://s3.test:{}", store.port())),
        ("API_URL", format!("http://api.test:{}", api.port())),
        ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY.to_owned()),
        ("AWS_REGION", s3::REGION.to_owned()),
    ];
    let checked = match run_blocks(&set).await {
        Ok(checked) => checked,
        Err(error) => {
            let described = kubectl(&["describe", "zerocache,pods"]).await.unwrap_or_default();
            bail!("{error:#}\n{described}\n{}", operator_log(60).await);
        }
    };
    ensure!(checked >= 4, "clients were served only {checked} times");
    let left = kubectl(&["get", "zerocache,statefulsets,deployments", "-o", "name"]).await?;
    ensure!(left.is_empty(), "the section ends with {left}");
    Ok(())
}

/// Runs all blocks; how often a client was served in between.
async fn run_blocks(set: &[(&str, String)]) -> Result<u32> {
    let text = std::fs::read_to_string(root().join("README.md"))?;
    let blocks = shell_blocks(&text)?;
    let mut shell = Command::new("bash")
        .args(["-euo", "pipefail"])
        .current_dir(root())
        .envs(set.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = shell.stdin.take().context("the shell has an input")?;
    let mut output = BufReader::new(shell.stdout.take().context("the shell has an output")?).lines();
    let mut served = 0;
    for block in &blocks {
        println!("{block}");
        input.write_all(format!("{block}\necho '{END}'\n").as_bytes()).await?;
        loop {
            let line = output.next_line().await?;
            let line = line.with_context(|| format!("the shell ended in\n{block}"))?;
            if line == END {
                break;
            }
            println!("{line}");
        }
        if let Ok(cache) = kubectl(&["get", "zerocache", "shop", "-o", "json"]).await {
            let cache: Value = serde_json::from_str(&cache)?;
            ensure!(is_true(&cache, "Ready"), "it is not ready after\n{block}\n{:#}", cache["status"]);
            let address = kubectl(&["get", "service", "shop-vs", "-o", "jsonpath={.spec.clusterIP}:4848"]).await?;
            let mut options = Options::new(4848, client_schema());
            options.address = address;
            let client =
                Client::start(options, &[all_issues()]).await.with_context(|| format!("a client after\n{block}"))?;
            ensure!(client.store().rows["issue"].len() == 30, "the client lacks rows");
            served += 1;
        }
    }
    Ok(served)
}

/// The blocks marked `sh` of the section.
fn shell_blocks(text: &str) -> Result<Vec<String>> {
    let section = text.split_once(SECTION).with_context(|| format!("README.md has no section {SECTION:?}"))?.1;
    let section = section.split("\n## ").next().unwrap_or_default();
    let blocks = section.split("\n```sh\n").skip(1);
    let blocks: Vec<_> = blocks.filter_map(|rest| Some(rest.split_once("\n```")?.0.to_owned())).collect();
    ensure!(blocks.len() >= 6, "the section has only {} shell blocks", blocks.len());
    Ok(blocks)
}
