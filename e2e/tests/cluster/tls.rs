//! Nodes that follow over TLS, while the certificates in the folder that they all mount are replaced.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use testkit::http::{get, get_over_tls};
use testkit::process::ZeroCache;
use testkit::tls::{Authority, Mount};

use super::crowd::Crowd;
use super::standby::{RESIGNED, SILENCE_MAX, STANDS_BY, await_owner, row};
use super::{Cluster, Plan, READY};
use crate::app::copies;
use crate::bad_input::wait_for_complaint;

const CERTIFICATE: &str = "ZERO_CHANGE_STREAMER_TLS_CERT_FILE";
const KEY: &str = "ZERO_CHANGE_STREAMER_TLS_KEY_FILE";
const AUTHORITY: &str = "ZERO_CHANGE_STREAMER_TLS_CA_FILE";

/// A Secret of type `kubernetes.io/tls` that its issuer has just made.
fn secret(authority: &Authority) -> Result<Vec<(&'static str, String)>> {
    let issued = authority.issue("DNS:localhost")?;
    Ok(vec![("tls.crt", issued.certificate), ("tls.key", issued.key), ("ca.crt", authority.certificate.clone())])
}

fn texts<'a>(secret: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    secret.iter().map(|(name, text)| (*name, text.as_str())).collect()
}

/// A replication-manager that registers the name that its certificate is for.
fn manager(cluster: &mut Cluster) -> Result<ZeroCache> {
    let mut node = cluster.manager()?;
    let address = format!("localhost:{}", node.change_port());
    node.set("ZERO_CHANGE_STREAMER_ADDRESS", &address);
    Ok(node)
}

/// A view-syncer that looks up who owns the change log.
fn finding(cluster: &mut Cluster) -> Result<ZeroCache> {
    let mut node = cluster.syncer()?.env("ZERO_CHANGE_STREAMER_MODE", "discover");
    node.unset("ZERO_CHANGE_STREAMER_URI");
    node.spawn()?;
    Ok(node)
}

/// Lets clients in.
async fn open(cluster: &mut Cluster, node: ZeroCache) -> Result<()> {
    cluster.door.add(node.port());
    cluster.syncers.push(node);
    cluster.await_syncers().await.with_context(|| cluster.report())
}

/// Waits until probes of the change stream's port see what this mount vouches for.
fn await_trust(port: u16, mount: &Mount) -> Result<()> {
    let deadline = Instant::now() + READY;
    loop {
        match get_over_tls(port, "/", "", &mount.file("ca.crt")) {
            Ok((200, _)) => return Ok(()),
            other => ensure!(Instant::now() < deadline, "the port is not as it should be: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_follow_over_tls_while_certificates_are_replaced() -> Result<()> {
    let mut mount = Mount::new(&texts(&secret(&Authority::new()?)?))?;
    let file = |name| mount.file(name).display().to_string();
    let settings = vec![(CERTIFICATE, file("tls.crt")), (KEY, file("tls.key")), (AUTHORITY, file("ca.crt"))];
    let mut cluster = Cluster::prepare(Plan { syncers: 0, settings, ..Plan::new("tls") }).await?;
    let mut first = manager(&mut cluster)?;
    first.start()?;
    let port = first.change_port();
    cluster.managers.push(first);

    // One is told where the replication-manager is, one finds it.
    let mut told = cluster.syncer()?.env("ZERO_CHANGE_STREAMER_URI", &format!("wss://localhost:{port}"));
    told.spawn()?;
    let finding = finding(&mut cluster)?;
    open(&mut cluster, told).await?;
    open(&mut cluster, finding).await?;
    let mut dice = StdRng::seed_from_u64(testkit::seed("tls"));
    let crowd = Crowd::gather(|| cluster.options(), 2, 1, &mut dice);
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;

    for path in ["/", "/livez", "/keepalive", "/metrics"] {
        let (status, _) = get_over_tls(port, path, "", &mount.file("ca.crt"))?;
        ensure!(status == 200, "{path} answers {status}");
    }
    // Whoever does not speak TLS gets nothing, and is told what to do if it is ours.
    ensure!(get(port, "/", "").is_err());
    let mut plain = cluster.syncer()?.env("ZERO_CHANGE_STREAMER_URI", &format!("ws://localhost:{port}"));
    plain.spawn()?;
    wait_for_complaint(&mut plain, &[" WARN ", "wss://"])?;
    plain.kill()?;
    ensure!(cluster.managers[0].metric("zero_change_stream_refusals_total")? >= 2.0);

    // Another authority altogether: nobody is restarted, and nobody is let go.
    mount.put(&texts(&secret(&Authority::new()?)?))?;
    await_trust(port, &mount).with_context(|| cluster.report())?;
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    cluster.crash_syncer(0)?;
    cluster.await_syncers().await.with_context(|| cluster.report())?;
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;

    // A successor gets its replica from the one that it relieves, and both view-syncers are sent to it.
    let mut next = manager(&mut cluster)?;
    next.start().with_context(|| cluster.report())?;
    cluster.managers.push(next);
    let mut old = cluster.managers.remove(0);
    let status = old.wait_exit(READY)?;
    ensure!(matches!(status.code(), Some(0 | 14)), "it stepped down with {status}:\n{}", old.log_tail(20));
    old.check_log()?;
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    let next = &cluster.managers[0];
    ensure!(copies(&next.log()) == 0, "a copy was made:\n{}", next.log());
    await_trust(next.change_port(), &mount)?;
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_asks_over_tls_and_relieves_nobody_whose_certificate_it_does_not_trust() -> Result<()> {
    let (authority, stranger) = (Authority::new()?, Authority::new()?);
    let mount = Mount::new(&texts(&secret(&authority)?))?;
    let mut trusted = Mount::new(&[("ca.crt", &authority.certificate)])?;
    let file = |name| mount.file(name).display().to_string();
    let settings = vec![(CERTIFICATE, file("tls.crt")), (KEY, file("tls.key")), (AUTHORITY, file("ca.crt"))];
    let mut cluster = Cluster::prepare(Plan { syncers: 0, settings, ..Plan::new("tls_standby") }).await?;
    for name in ["rm-0", "rm-1"] {
        let node = manager(&mut cluster)?.named(name).env("ZERO_TASK_ID", name);
        let mut node = node.env("ZERO_CHANGE_STREAMER_STANDBY", "true");
        if name == "rm-1" {
            node.set(AUTHORITY, &trusted.file("ca.crt").display().to_string());
        }
        node.spawn()?;
        let port = node.change_port();
        cluster.managers.push(node);
        await_trust(port, &mount).with_context(|| cluster.report())?;
    }
    let finding = finding(&mut cluster)?;
    open(&mut cluster, finding).await?;
    let mut dice = StdRng::seed_from_u64(testkit::seed("tls_standby"));
    let crowd = Crowd::gather(|| cluster.options(), 1, 1, &mut dice);
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;

    // Each is longer than what a silent owner is given.
    let before = row(&cluster).await?;
    for (vouching, lines) in [(&authority, 0), (&stranger, 1), (&authority, 1)] {
        trusted.put(&[("ca.crt", &vouching.certificate)])?;
        tokio::time::sleep(Duration::from_secs(6)).await;
        let log = cluster.managers[1].log();
        let count = log.matches("cannot tell whether it is the owner").count();
        ensure!(count == lines && log.matches(STANDS_BY).count() == 1 && !log.contains("does not answer"), "{log}");
    }
    ensure!(row(&cluster).await? == before, "the log has changed hands: {before:?}, {:?}", row(&cluster).await?);

    cluster.managers[0].ask_to_end()?;
    await_owner(&cluster, 1, SILENCE_MAX).await?;
    let status = cluster.managers[0].wait_exit(READY)?;
    ensure!(status.success(), "it ended with {status}:\n{}", cluster.managers[0].log_tail(20));
    crowd.settle(&cluster.database).await.with_context(|| cluster.report())?;
    let log = cluster.managers[1].log();
    ensure!(log.contains(RESIGNED) && copies(&log) == 0, "it was given up, or a new copy was made:\n{log}");
    cluster.check_logs()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_of_no_use_end_the_start() -> Result<()> {
    let authority = Authority::new()?;
    let (mut files, other) = (secret(&authority)?, authority.issue("DNS:localhost")?);
    files[1].1 = other.key;
    let mount = Mount::new(&texts(&files))?;
    let file = |name| mount.file(name).display().to_string();
    let mut cluster = Cluster::prepare(Plan { syncers: 0, ..Plan::new("tls_files") }).await?;
    for (settings, words) in [
        (vec![(CERTIFICATE, file("tls.crt"))], vec![KEY, "it is not set"]),
        (vec![(CERTIFICATE, file("tls.crt")), (KEY, file("tls.key"))], vec![KEY, "is not the key of"]),
        (vec![(AUTHORITY, file("tls.key"))], vec![AUTHORITY, "holds no certificate in PEM"]),
        (vec![(AUTHORITY, file("missing"))], vec![AUTHORITY, "cannot be read"]),
    ] {
        let mut node = cluster.manager()?;
        settings.iter().for_each(|(name, value)| node.set(name, value));
        node.spawn()?;
        let log = wait_for_complaint(&mut node, &words)?;
        let status = node.wait_exit(READY)?;
        ensure!(status.code() == Some(255), "the node ended with {status}:\n{log}");
    }
    Ok(())
}
