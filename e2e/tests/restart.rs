//! What survives: restarts without a new copy, reconnects by difference, SIGTERM, a Postgres that goes away.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::app::{Site, all_issues, copies, fence, query, with_log};

/// Rows of all tables, so that a resend would show.
fn everything() -> Vec<testkit::client::Query> {
    ["issue", "comment", "person", "label", "issue_label"]
        .iter()
        .map(|table| query(json!({"table": table})))
        .chain([fence()])
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_sends_only_the_difference() -> Result<()> {
    let mut site = Site::start("difference").await?;
    let mut client = site.client(&everything()).await?;
    site.check(&client).await?;
    ensure!(copies(&site.server.log()) == 1, "the first copy is not in the log:\n{}", site.server.log());
    for kill in [false, true] {
        if kill {
            site.server.kill()?;
        } else {
            site.server.terminate()?;
        }
        client.kill();
        site.database
            .execute(
                "UPDATE issue SET title = 'changed ' || random() WHERE id IN ('i5', 'i6'); INSERT INTO label VALUES ('l' || random(), 'new');
                 DELETE FROM comment WHERE id IN (SELECT id FROM comment ORDER BY id LIMIT 3)",
            )
            .await?;
        let before = client.counts();
        site.server.start()?;
        ensure!(copies(&site.server.last_log()) == 0, "a new copy was made:\n{}", site.server.last_log());
        client.connect().await?;
        let checked = site.check(&client).await;
        with_log(checked, &site.server)?;
        let after = client.counts();
        // Two updates, an insert and the fence; three deletes.
        ensure!(after.puts - before.puts <= 4, "{} puts after a restart", after.puts - before.puts);
        ensure!(after.deletes - before.deletes == 3, "{} deletes after a restart", after.deletes - before.deletes);
        ensure!(after.redundant_puts == before.redundant_puts && after.redundant_deletes == before.redundant_deletes);
    }
    site.server.check_log()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_without_changes_sends_no_rows() -> Result<()> {
    let site = Site::start("no_rows").await?;
    let mut client = site.client(&everything()).await?;
    site.check(&client).await?;
    let before = client.counts();
    for _ in 0..3 {
        client.connect().await?;
        let pokes = client.counts().pokes;
        // Clients since 1.8 need a first poke even when nothing has changed.
        client
            .wait_for("the first poke", |store| store.counts.pokes > pokes || store.counts.pokes > before.pokes)
            .await?;
    }
    let after = client.counts();
    ensure!((after.puts, after.deletes) == (before.puts, before.deletes), "{before:?} {after:?}");
    site.check(&client).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_cookie_is_served_as_well_as_the_last() -> Result<()> {
    let site = Site::start("old_cookie").await?;
    let mut client = site.client(&everything()).await?;
    site.check(&client).await?;
    client.kill();
    let watcher = testkit::client::Client::start(client.options.sibling(), &everything()).await?;
    for n in 0..5 {
        site.database
            .execute(&format!("UPDATE issue SET rank = {n} WHERE id = 'i{n}'; DELETE FROM label WHERE id = 'l{n}'"))
            .await?;
        site.check(&watcher).await?;
    }
    client.connect().await?;
    site.check(&client).await?;
    ensure!(client.counts().redundant_puts == 0, "{:?}", client.counts());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_loses_nothing_and_says_goodbye() -> Result<()> {
    let mut site = Site::start("sigterm").await?;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(site.client(&everything()).await?);
    }
    for round in 0..3 {
        // Writes go on while the server is told to stop.
        let url = site.database.url();
        let writer = tokio::spawn(async move {
            let upstream = testkit::postgres::connect(&url).await?;
            for n in 0..100 {
                upstream
                    .batch_execute(&format!("INSERT INTO label VALUES ('r{round}n{n}', 'written while stopping')"))
                    .await?;
            }
            anyhow::Ok(())
        });
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        let status = site.server.terminate()?;
        ensure!(status.success(), "the server ended with {status} after SIGTERM:\n{}", site.server.last_log());
        for client in &clients {
            let (error, reason) = client.wait_closed().await?;
            ensure!(
                error.as_ref().is_none_or(|e| e["kind"] == json!("Rehome") || e["kind"] == json!("Rebalance")),
                "clients must be sent away politely, not by {error:?} {reason}"
            );
        }
        writer.await?.context("write while the server stops")?;
        site.server.start()?;
        for client in &mut clients {
            client.connect().await?;
            site.check(client).await?;
            let transcript = client.store().transcript;
            ensure!(
                client.counts().redundant_puts == 0,
                "rows were sent again: {:?}\n{transcript:#?}",
                client.counts()
            );
        }
    }
    site.server.check_log()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_restarts_is_waited_for() -> Result<()> {
    use testkit::postgres::{Options, Postgres, Version};
    // Not the shared server: this test takes it away.
    let postgres: &'static Postgres =
        Box::leak(Box::new(Postgres::start_with(Version::V15, Options { fsync: true, ..Options::default() })?));
    let database = postgres.create_database("restarts").await?;
    database
        .execute(
            "CREATE TABLE issue (id text PRIMARY KEY, title text NOT NULL); INSERT INTO issue VALUES ('i1', 'one')",
        )
        .await?;
    let api = testkit::api::Api::start(testkit::api::App::default().query("any", |args| Ok(args[0].clone()))).await?;
    let mut server = crate::app::server(&database, &api)?;
    server.start()?;
    let schema = json!({"tables": {"issue": {"columns": {"id": {"type": "string"}, "title": {"type": "string"}}, "primaryKey": ["id"]}}});
    let mut client =
        testkit::client::Client::start(testkit::client::Options::new(server.port(), schema), &[all_issues()]).await?;
    for (n, kill) in [(1, false), (2, true)] {
        if kill {
            postgres.kill()?;
        } else {
            postgres.stop()?;
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        ensure!(server.is_running(), "the server ended when Postgres did:\n{}", server.last_log());
        postgres.resume()?;
        database.execute(&format!("INSERT INTO issue VALUES ('n{n}', 'after the restart')")).await?;
        if !client.is_connected() {
            client.connect().await?;
        }
        let key = format!("[\"n{n}\"]");
        let waited = client.wait_for("the new row", |store| store.rows["issue"].contains_key(&key)).await;
        with_log(waited, &server)?;
    }
    ensure!(!server.log().contains("panicked at"));
    Ok(())
}

/// Upstream, change log and client groups are in one database here, so all of them go back together.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_set_back_is_copied_anew() -> Result<()> {
    use testkit::postgres::{Options, Postgres, Version};
    // Not the shared server: this test restores a snapshot of it.
    let postgres: &'static Postgres = Box::leak(Box::new(Postgres::start_with(Version::V15, Options::default())?));
    let database = postgres.create_database("set_back").await?;
    database.execute(&format!("{}{}", crate::app::TABLES_SQL, crate::app::ROWS_SQL)).await?;
    let api = testkit::api::Api::start(crate::app::app(&database.url())).await?;
    let server = crate::app::server(&database, &api)?;
    let mut site = Site { database, api, server };
    site.server.start()?;
    site.check(&site.client(&everything()).await?).await?;
    for is_running in [true, false] {
        postgres.stop()?;
        postgres.keep()?;
        postgres.resume()?;
        // What the snapshot lacks, and what it still has.
        let lost = "INSERT INTO label SELECT 'gone' || n, 'in one history' FROM generate_series(1, 500) n;
             DELETE FROM comment WHERE id IN (SELECT id FROM comment ORDER BY id LIMIT 10)";
        let client = fresh(&site).await?;
        site.database.execute(lost).await?;
        with_log(site.check(&client).await, &site.server)?;
        drop(client);
        if !is_running {
            site.server.terminate()?;
        }
        postgres.stop()?;
        postgres.set_back()?;
        postgres.resume()?;
        // So much that the positions of the other history are behind.
        let other =
            "INSERT INTO label SELECT 'other' || random() || n, 'in another history' FROM generate_series(1, 1500) n";
        site.database.execute(other).await?;
        if !is_running {
            site.server.start()?;
        }
        let client = fresh(&site).await?;
        with_log(site.check(&client).await, &site.server)?;
        ensure!(site.server.log().contains("was set back"), "nobody was told:\n{}", site.server.last_log());
    }
    ensure!(!site.server.log().contains("panicked at"));
    Ok(())
}

/// The walsender that reads for us is no standby, and what we write ourselves waits for none.
#[tokio::test]
async fn nothing_of_ours_waits_for_a_standby() -> Result<()> {
    use testkit::postgres::{Options, Postgres, Version};
    // Not the shared server: no commit of it would end.
    let postgres: &'static Postgres = Box::leak(Box::new(Postgres::start_with(Version::V15, Options::default())?));
    let database = postgres.create_database("lonely").await?;
    database.execute(&format!("{}{}", crate::app::TABLES_SQL, crate::app::ROWS_SQL)).await?;
    database.connect().await?.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", &[]).await?;
    database.execute("SELECT pg_reload_conf()").await?;
    let api = testkit::api::Api::start(crate::app::app(&database.url())).await?;
    let server = crate::app::server(&database, &api)?;
    let mut site = Site { database, api, server };
    site.server.start()?;
    let client = fresh(&site).await?;
    site.database.execute("SET synchronous_commit = local; INSERT INTO label VALUES ('lonely', 'one')").await?;
    with_log(site.check(&client).await, &site.server)?;
    site.server.terminate().map(drop)
}

/// A client that has nothing yet, as soon as one is served everything.
async fn fresh(site: &Site) -> Result<testkit::client::Client> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match site.client(&everything()).await {
            Ok(client) if site.check(&client).await.is_ok() => return Ok(client),
            Ok(_) | Err(_) if std::time::Instant::now() < deadline => {
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
            Ok(_) => return with_log(Err(anyhow::anyhow!("no client gets what Postgres has")), &site.server),
            Err(error) => return with_log(Err(error), &site.server),
        }
    }
}
