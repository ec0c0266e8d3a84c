//! Results of 72 MB: read at full speed, changed at once, missed, and asked for by many. And more than the memory that there is.

use anyhow::{Result, ensure};
use serde_json::json;
use testkit::client::Client;
use testkit::postgres::Version;

use crate::app::{Site, TABLES_SQL, fence, query};

const ROWS: usize = 3_600;

fn comments() -> testkit::client::Query {
    query(json!({"table": "comment", "orderBy": [["id", "asc"]]}))
}

/// A site with the rows, its server not started.
async fn prepare(test: &str) -> Result<Site> {
    let rows = format!(
        "INSERT INTO fence VALUES (1, 0);
        INSERT INTO comment SELECT 'c' || n, 'i' || n, NULL, repeat('x', 20000), n FROM generate_series(1, {ROWS}) n;"
    );
    Site::prepare_on(test, Version::V15, &format!("{TABLES_SQL}{rows}")).await
}

async fn has_all(client: &Client, text: &str) -> Result<()> {
    let what = format!("{ROWS} rows of {text}");
    client
        .wait_for(&what, |store| {
            store.rows.get("comment").is_some_and(|rows| {
                rows.len() == ROWS && rows.values().all(|row| row["body"].as_str().is_some_and(|b| b.starts_with(text)))
            })
        })
        .await
}

/// The most memory that the server had within the time of `work`, above what it had before.
async fn growth(site: &Site, work: impl Future<Output = Result<()>>) -> Result<f64> {
    let before = site.server.metric("process_resident_memory_bytes")?;
    let mut most = before;
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(50));
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                done?;
                return Ok(most - before);
            }
            _ = pace.tick() => most = most.max(site.server.metric("process_resident_memory_bytes")?),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_gets_all_of_it() -> Result<()> {
    let mut site = prepare("large").await?;
    site.server.start()?;
    let mut client = site.client(&[comments(), fence()]).await?;
    has_all(&client, "x").await?;
    site.database.execute("UPDATE comment SET body = repeat('y', 20000)").await?;
    has_all(&client, "y").await?;
    client.kill();
    site.database.execute("UPDATE comment SET body = repeat('z', 20000)").await?;
    client.connect().await?;
    has_all(&client, "z").await?;
    site.check(&client).await?;
    // What all ask for is in memory once.
    let wanted = [comments()];
    let grown = growth(&site, async {
        let many = (0..4).map(|_| site.client(&wanted));
        for client in futures_util::future::try_join_all(many).await? {
            has_all(&client, "z").await?;
        }
        Ok(())
    })
    .await?;
    ensure!(grown < 150e6, "four clients with 72 MB each took {:.0} MB", grown / 1e6);
    site.server.check_log()
}

/// What the server is told that it may have. One that goes by the machine's memory takes more for these results.
const MEMORY: u64 = 128 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_memory_goes_to_clients_that_read() -> Result<()> {
    let mut site = prepare("limited").await?;
    // It believes the limit of its control group: here, in a namespace of its own, that is a file of ours.
    let limited = format!(
        "flags=-m; [ \"$(id -u)\" = 0 ] || flags=-rm
         exec unshare $flags sh -c 'mount -t tmpfs none /sys/fs/cgroup && echo {MEMORY} >/sys/fs/cgroup/memory.max && exec \"$0\"' \"$0\""
    );
    site.server = site.server.started_by(&["sh", "-c", &limited]);
    site.server.start()?;
    let wanted = [comments()];
    // 72 MB each, at once and then again.
    for _ in 0..2 {
        let many = (0..4).map(|_| site.client(&wanted));
        for client in futures_util::future::try_join_all(many).await? {
            has_all(&client, "x").await?;
        }
    }
    let peak = site.server.peak_memory()?;
    ensure!(peak < MEMORY, "576 MB for eight clients took {} MiB", peak >> 20);
    site.server.check_log()
}
