//! What does not pass by itself: it is told while it lasts, clients are served what is there, and it heals or says what to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::evil::{Evil, Verdict, error_response};

use crate::app::{Site, all_issues, copies, fence, with_log};

/// A site whose server reaches Postgres through a relay.
async fn behind_evil(test: &str) -> Result<(Site, Evil)> {
    let mut site = Site::prepare(test).await?;
    let port = site.database.postgres.port();
    let evil = Evil::start(port).await?;
    site.server.set("ZERO_UPSTREAM_DB", &evil.url(&site.database.url(), port));
    site.server.set("ZERO_CHANGE_DB", &site.database.url());
    site.server.set("ZERO_CVR_DB", &site.database.url());
    Ok((site, evil))
}

fn fault(site: &Site) -> Result<Value> {
    let (status, body) = site.server.get_as_admin("/statz?group=node&format=json")?;
    ensure!(status == 200, "/statz answered {status}");
    Ok(serde_json::from_str::<Value>(&body)?["node"]["fault"].take())
}

async fn until(what: &str, site: &Site, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !is_so()? {
        ensure!(Instant::now() < deadline, "{what} did not come:\n{}", site.server.log_tail(40));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn end_the_stream(site: &Site) -> Result<()> {
    site.database
        .execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active AND database = current_database()",
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_person_is_told_and_clears() -> Result<()> {
    let (mut site, evil) = behind_evil("needs_a_person").await?;
    site.server = site.server.allow_error("needs a person");
    site.server.start()?;
    let client = site.client(&[all_issues(), fence()]).await?;
    ensure!(fault(&site)? == Value::Null);
    let is_passing = Arc::new(AtomicBool::new(true));
    let refused = Arc::clone(&is_passing);
    evil.script(move |frame| match (frame.is_query("START_REPLICATION"), refused.load(Ordering::Relaxed)) {
        (true, true) => Verdict::Answer(error_response("53300", "too many clients")),
        (true, false) => Verdict::Answer(error_response("42501", "permission denied")),
        _ => Verdict::Pass,
    });
    end_the_stream(&site).await?;
    until("what passes", &site, || Ok(fault(&site)?["class"] == "passes")).await?;
    ensure!(site.server.get("/")?.0 == 200, "what passes by itself is no reason to send nobody");
    is_passing.store(false, Ordering::Relaxed);
    until("not ready", &site, || Ok(site.server.get("/")?.0 == 503)).await?;
    let told = fault(&site)?;
    ensure!(told["class"] == "person" && told["position"].is_string() && told["attempts"].is_u64(), "{told}");
    ensure!(told["message"].as_str().is_some_and(|message| message.contains("42501")), "{told}");
    ensure!(told["remedy"].as_str().is_some_and(|remedy| remedy.contains("role")), "{told}");
    ensure!(site.server.metric("zero_replication_fault")? == 1.0);
    for path in ["/livez", "/keepalive"] {
        ensure!(site.server.get(path)?.0 == 200, "{path}: nobody should kill a node that serves what it has");
    }
    site.database.execute("UPDATE issue SET title = 'after' WHERE id = 'i1'").await?;
    ensure!(client.is_connected(), "clients stay");
    evil.relent();
    until("ready again", &site, || Ok(site.server.get("/")?.0 == 200 && fault(&site)? == Value::Null)).await?;
    ensure!(site.server.metric("zero_replication_fault").is_err());
    let checked = site.check(&client).await;
    with_log(checked, &site.server)?;
    site.server.check_log()
}

/// The same bytes bring the same error, so another copy is made, which does not need them.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_understood_twice_is_copied_anew() -> Result<()> {
    let (mut site, evil) = behind_evil("garbled_twice").await?;
    site.server.start()?;
    evil.script(|frame| match frame.replicated() {
        Some([b'I', rest @ ..]) if rest.windows(8).any(|window| window == b"unspoken") => {
            Verdict::Instead(frame.replicating(&[&b"?"[..], rest].concat()))
        }
        _ => Verdict::Pass,
    });
    site.database.execute("INSERT INTO issue VALUES ('i99', 'unspoken', true, 1)").await?;
    until("the second copy", &site, || Ok(copies(&site.server.log()) == 2)).await?;
    until("ready", &site, || Ok(site.server.get("/")?.0 == 200)).await?;
    let client = site.client(&[all_issues(), fence()]).await?;
    let checked = site.check(&client).await;
    with_log(checked, &site.server)?;
    site.server.check_log()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_publication_is_made_anew_with_a_copy() -> Result<()> {
    let mut site = Site::prepare("dropped_publication").await?;
    site.server.start()?;
    site.database.execute("DROP PUBLICATION _zero_public_0").await?;
    site.database.execute("UPDATE issue SET title = 'unpublished' WHERE id = 'i1'").await?;
    until("the second copy", &site, || Ok(copies(&site.server.log()) == 2)).await?;
    until("ready", &site, || Ok(site.server.get("/")?.0 == 200)).await?;
    let client = site.client(&[all_issues(), fence()]).await?;
    let checked = site.check(&client).await;
    with_log(checked, &site.server)?;
    site.server.check_log()
}

/// Other tables reach clients while a table is read anew, whatever is open or locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_read_anew_holds_nobody_up() -> Result<()> {
    let site = Site::start("read_anew").await?;
    let client = site.client(&[all_issues(), fence()]).await?;
    let mut writer = site.database.connect().await?;
    let open = writer.transaction().await?;
    open.batch_execute("INSERT INTO label VALUES ('l99', 'open')").await?;
    site.database.execute("ALTER TABLE comment ADD COLUMN r float8 DEFAULT random()").await?;
    let mut locker = site.database.connect().await?;
    let lock = locker.transaction().await?;
    lock.batch_execute("LOCK TABLE comment IN ACCESS EXCLUSIVE MODE").await?;
    site.database.execute("UPDATE issue SET title = 'meanwhile' WHERE id = 'i2'").await?;
    with_log(site.settle(&[&client]).await, &site.server)?;
    ensure!(client.store().rows["issue"].values().any(|row| row["title"] == json!("meanwhile")));
    lock.commit().await?;
    open.commit().await?;
    let checked = site.check(&client).await;
    with_log(checked, &site.server)?;
    site.server.check_log()
}
