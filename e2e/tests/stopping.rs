//! SIGTERM ends the process within its grace, whatever has gone away and whatever it is doing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use testkit::postgres::{Postgres, Version};
use testkit::proxy::{Mood, Proxy};

use crate::app::{Site, fence};

/// What the server is given, and what a machine under load may take on top of it.
const GRACE: Duration = Duration::from_secs(6);
const LOAD: Duration = Duration::from_secs(20);
const GIVEN_UP: &str = "nothing that was acknowledged is lost";

/// A server whose way to each of its databases goes through a proxy.
struct Ways {
    site: Site,
    upstream: Proxy,
    change: Proxy,
    cvr: Proxy,
}

impl Ways {
    async fn prepare(test: &str) -> Result<Ways> {
        let mut site = Site::prepare(test).await?;
        let port = Postgres::shared(Version::V15)?.port();
        let (upstream, change, cvr) = (Proxy::relay(port).await?, Proxy::relay(port).await?, Proxy::relay(port).await?);
        for (variable, proxy) in [("ZERO_UPSTREAM_DB", &upstream), ("ZERO_CHANGE_DB", &change), ("ZERO_CVR_DB", &cvr)] {
            let url = site.database.url().replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
            ensure!(url.contains(&format!(":{}/", proxy.port())), "the proxy is not in {url}");
            site.server.set(variable, &url);
        }
        site.server.set("ZERO_SHUTDOWN_GRACE_SECONDS", &GRACE.as_secs().to_string());
        Ok(Ways { site, upstream, change, cvr })
    }

    fn take_away(&self, which: &str, mood: &Mood) {
        for (name, proxy) in [("upstream", &self.upstream), ("change", &self.change), ("cvr", &self.cvr)] {
            if which == name || which == "all" {
                proxy.set_mood(mood.clone());
            }
        }
    }

    /// The proxies go on meanwhile.
    fn start(&mut self) -> Result<()> {
        tokio::task::block_in_place(|| self.site.server.start()).map(drop)
    }

    /// The server ends by itself, as if nothing were wrong.
    fn ends(&mut self, when: &str) -> Result<()> {
        let ended = tokio::task::block_in_place(|| self.site.server.terminate_within(GRACE + LOAD));
        let status = ended.with_context(|| when.to_owned())?;
        ensure!(status.success(), "{when}: the server ended with {status}:\n{}", self.site.server.log_tail(20));
        ensure!(!self.site.server.log().contains("panicked"), "{when}:\n{}", self.site.server.log());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_server_whose_databases_are_away() -> Result<()> {
    let mut running = Vec::new();
    for (which, mood) in [
        ("all", Mood::Refuses),
        ("all", Mood::Holds),
        ("upstream", Mood::Holds),
        ("change", Mood::Refuses),
        ("change", Mood::Holds),
        ("cvr", Mood::Refuses),
        ("cvr", Mood::Holds),
    ] {
        running.push(tokio::spawn(async move {
            let when = format!("{which} {mood:?}");
            let mut ways = Ways::prepare(&format!("away_{which}")).await?;
            ways.start()?;
            let client = ways.site.client(&[fence()]).await?;
            ways.site.check(&client).await?;
            ways.take_away(which, &mood);
            // Something to store, in the change log as in the records.
            ways.site.database.execute("UPDATE fence SET value = 1000 WHERE id = 1").await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            ways.ends(&when)?;
            let log = ways.site.server.last_log();
            if which == "change" {
                ensure!(log.contains(GIVEN_UP) && log.contains("storing changes"), "{when}:\n{log}");
            }
            // Nothing is lost.
            ways.take_away(which, &Mood::Good);
            ways.start()?;
            let mut client = client;
            client.connect().await?;
            ways.site.check(&client).await.with_context(|| when.clone())
        }));
    }
    for ends in running {
        ends.await??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_server_that_has_not_begun() -> Result<()> {
    let mut running = Vec::new();
    for (which, mood, begun) in [
        ("all", Mood::Refuses, "is not there yet"),
        ("all", Mood::Holds, "listening"),
        ("cvr", Mood::Holds, "initial copy complete"),
        ("upstream", Mood::Slow(64, Duration::from_millis(20)), "listening"),
    ] {
        running.push(tokio::spawn(async move {
            let when = format!("{which} {mood:?} at the start");
            let mut ways = Ways::prepare(&format!("begun_{which}")).await?;
            ways.take_away(which, &mood);
            ways.site.server.spawn()?;
            let deadline = std::time::Instant::now() + Duration::from_secs(30);
            while !ways.site.server.last_log().contains(begun) {
                ensure!(std::time::Instant::now() < deadline, "{when}: {}", ways.site.server.last_log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            ways.ends(&when)?;
            ways.take_away(which, &Mood::Good);
            ways.start()?;
            let client = ways.site.client(&[fence()]).await?;
            ways.site.check(&client).await.with_context(|| when.clone())
        }));
    }
    for ends in running {
        ends.await??;
    }
    Ok(())
}
