//! From `kubectl apply` to the first synced row at the published client, with a database of 100 MB and the images present.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::postgres::Database;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::ground::{Ground, NODE, Place};
use crate::kubectl::{apply, root};
use crate::site::Site;

const LIMIT: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(150);
/// Tables beside those of the application.
const ARCHIVE: &str = "CREATE TABLE archive (id int PRIMARY KEY, text text NOT NULL);
    INSERT INTO archive SELECT n, repeat(md5(n::text), 32) FROM generate_series(1, 100000) n; CHECKPOINT";

#[tokio::test(flavor = "multi_thread")]
async fn the_published_client_has_its_first_row_within_thirty_seconds() -> Result<()> {
    let _place = Place::alone().await;
    let ground = Ground::get().await?;
    let name = "first_row".to_owned();
    let database = Database { postgres: &ground.postgres, name: name.clone() };
    let mut application = Application::start(&ground.postgres.url("postgres"), &name, "first-row.test").await?;
    database.execute(ARCHIVE).await?;
    let site = Site::prepare_on("first-row", database, application.api_port).await?;
    let outcome = first_row(&site, &mut application).await;
    site.judge(outcome).await
}

async fn first_row(site: &Site, application: &mut Application) -> Result<()> {
    let size = "SELECT pg_database_size(current_database())";
    let bytes: i64 = site.database.connect().await?.query_one(size, &[]).await?.get(0);
    let mut cache = site.cache();
    // What a person gets who says nothing of it.
    let syncers = cache["spec"]["viewSyncer"].as_object_mut().context("it is an object")?;
    syncers.retain(|key, _| key == "resources" || key == "storage");
    let begin = Instant::now();
    apply(&cache).await?;
    application.say("connect").await?;
    let first = application.hear("the first row").await?;
    let took = begin.elapsed();
    println!("{} MiB upstream: first row at the published client {took:.1?} after kubectl apply", bytes >> 20);
    ensure!(first["rows"].as_u64().is_some_and(|rows| rows > 0), "the client shows {first}");
    // And it lives: a mutation of its own, and somebody else's commit.
    application.say("work").await?;
    ensure!(application.hear("its mutation and a change").await?["title"] == "By Postgres", "the client does not live");
    ensure!(took < LIMIT, "the first row took {took:?}");
    Ok(())
}

/// The published client and an API server made with its server half, in Node.
struct Application {
    _process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    api_port: u16,
}

impl Application {
    async fn start(postgres: &str, database: &str, host: &str) -> Result<Application> {
        let script = root().join("e2e/real-client/deployment.mjs");
        let mut process = Command::new("node")
            .arg(script)
            .args([postgres, database, &NODE.to_string(), &format!("http://{host}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start Node")?;
        let input = process.stdin.take().context("it has an input")?;
        let output = BufReader::new(process.stdout.take().context("it has an output")?).lines();
        let mut application = Application { _process: process, input, output, api_port: 0 };
        let api = application.hear("the API server's port").await?["port"].as_u64();
        application.api_port = api.and_then(|port| port.try_into().ok()).context("a port")?;
        Ok(application)
    }

    async fn say(&mut self, word: &str) -> Result<()> {
        self.input.write_all(json!([word]).to_string().as_bytes()).await?;
        self.input.write_all(b"\n").await.context("tell Node")
    }

    async fn hear(&mut self, what: &str) -> Result<Value> {
        let line = tokio::time::timeout(PATIENCE, self.output.next_line()).await;
        let line = line.with_context(|| format!("waited {PATIENCE:?} for {what}"))??;
        serde_json::from_str(&line.with_context(|| format!("Node ended before {what}"))?)
            .context("parse what Node says")
    }
}
