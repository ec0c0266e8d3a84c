//! Who reaches what: clients get back to their node by a cookie, and the change stream is for view-syncers alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::client::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::fence;
use crate::ground::Place;
use crate::kubectl::{apply, kubectl, run};
use crate::site::{MANAGER, SYNCER, Site, is_ready, name_of, only};

const OPEN: &str = "zero_sync_websocket_open_connections";
/// How late a controller may be.
const KNOWN_WITHIN: Duration = Duration::from_secs(20);
const ACCEPTED: &str = "zero_sync_websocket_connection_successes_total";

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_leads_each_client_back_to_its_node() -> Result<()> {
    let _place = Place::shared().await;
    let two = |cache: &mut Value| cache["spec"]["viewSyncer"]["replicas"] = json!(2);
    let site = Site::start("sticky", two).await?;
    let outcome = stick(&site, 80).await;
    site.judge(outcome).await
}

/// Clients come through the proxy on this port of the node.
pub async fn stick(site: &Site, port: u16) -> Result<()> {
    site.wait_pods(SYNCER, "two ready", |pods| pods.iter().filter(|pod| is_ready(pod)).count() == 2).await?;
    both_are_known(site, port).await?;
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..6 {
        clients.push(site.client_by(port, &[fence()]).await?);
    }
    let cookies: Vec<_> = clients.iter().map(Client::http_cookies).collect();
    ensure!(cookies.iter().all(|cookie| cookie.starts_with("zc_affinity=")), "the cookies are {cookies:?}");
    let mut share: BTreeMap<&str, usize> = BTreeMap::new();
    cookies.iter().for_each(|cookie| *share.entry(cookie).or_default() += 1);
    ensure!(share.len() == 2, "six clients without a cookie all landed on one node: {share:?}");
    ensure!(read(site, OPEN).await?.values().sum::<f64>() as usize == 6, "not all are connected");

    // One client comes back again and again: only its node sees it.
    let before = read(site, ACCEPTED).await?;
    for _ in 0..5 {
        clients[0].connect().await.context("connect with a cookie")?;
    }
    let after = read(site, ACCEPTED).await?;
    let mut rises: Vec<_> = after.iter().map(|(pod, count)| count - before.get(pod).copied().unwrap_or(0.0)).collect();
    rises.sort_by(f64::total_cmp);
    ensure!(rises == [0.0, 5.0], "connections with one cookie were spread {rises:?}");
    ensure!(clients[0].http_cookies() == cookies[0], "the cookie was replaced");
    Ok(())
}

/// A controller reads changes of the cluster in batches: waits until it has given two visitors different cookies.
async fn both_are_known(site: &Site, port: u16) -> Result<()> {
    let deadline = Instant::now() + KNOWN_WITHIN;
    let mut given = BTreeSet::new();
    while given.len() < 2 {
        ensure!(Instant::now() < deadline, "the proxy knows only {given:?} after {KNOWN_WITHIN:?}");
        let answer = visit(&site.host(), port).await.unwrap_or_default().to_lowercase();
        given.extend(answer.lines().filter(|line| line.starts_with("set-cookie:")).map(str::to_owned));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// The head and body of a plain answer.
async fn visit(host: &str, port: u16) -> Result<String> {
    let mut stream = TcpStream::connect((host, port)).await?;
    stream
        .write_all(format!("GET /keepalive HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// A metric of each view-syncer, all labels added up.
async fn read(site: &Site, name: &str) -> Result<BTreeMap<String, f64>> {
    let mut values = BTreeMap::new();
    for pod in site.pods(SYNCER).await? {
        let path = format!("/api/v1/namespaces/{}/pods/{}:4850/proxy/metrics", site.namespace, name_of(&pod));
        let text = kubectl(&["get", "--raw", &path]).await?;
        let lines = text.lines().filter(|line| line.starts_with(name) && line[name.len()..].starts_with(['{', ' ']));
        let sum = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        values.insert(name_of(&pod).to_owned(), sum);
    }
    Ok(values)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_change_stream_is_closed_to_foreign_pods() -> Result<()> {
    let _place = Place::shared().await;
    let site = Site::start("closed", |_| ()).await?;
    let outcome = knock(&site).await;
    site.judge(outcome).await
}

async fn knock(site: &Site) -> Result<()> {
    let elsewhere = format!("{}-elsewhere", site.namespace);
    kubectl(&["create", "namespace", &elsewhere]).await?;
    let container = json!({"name": "pause", "image": "localhost/pause:e2e", "imagePullPolicy": "Never"});
    let mut strangers = Vec::new();
    for namespace in [&site.namespace, &elsewhere] {
        let meta = json!({"name": "foreign", "namespace": namespace});
        apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [container]}}))
            .await?;
        kubectl(&["wait", "-n", namespace, "pod/foreign", "--for=condition=Ready", "--timeout=60s"]).await?;
        strangers.push(crate::kubectl::get(namespace, &["pod", "foreign"]).await?);
    }
    let manager = address(only(&site.pods(MANAGER).await?)?)?;
    let syncers = site.pods(SYNCER).await?;
    let syncer = address(only(&syncers)?)?;
    let service = kubectl(&["get", "-n", &site.namespace, "svc", "app-rm", "-o", "jsonpath={.spec.clusterIP}"]).await?;
    ensure!(connects(&syncers[0], &manager, 4849).await?, "a view-syncer does not reach its replication-manager");
    ensure!(connects(&syncers[0], &service, 4849).await?, "a view-syncer does not reach the Service");
    for stranger in &strangers {
        let from = stranger["metadata"]["namespace"].as_str().unwrap_or_default();
        ensure!(!connects(stranger, &manager, 4849).await?, "4849 is open to a foreign pod of {from}");
        ensure!(!connects(stranger, &service, 4849).await?, "4849 is open to a foreign pod of {from} by the Service");
        ensure!(connects(stranger, &syncer, 4848).await?, "4848 is closed to a pod of {from}");
        ensure!(!connects(stranger, &syncer, 4850).await?, "4850 is open to a foreign pod of {from}");
    }
    let services = crate::kubectl::list(&site.namespace, "services", "app.kubernetes.io/instance=app").await?;
    for service in services {
        let has_stream = service["spec"]["ports"].to_string().contains("4849");
        ensure!(!has_stream || service["spec"]["type"] == "ClusterIP", "{} shows 4849 outside", name_of(&service));
    }
    kubectl(&["delete", "namespace", &elsewhere, "--wait=false"]).await.map(drop)
}

fn address(pod: &Value) -> Result<String> {
    pod["status"]["podIP"].as_str().map(str::to_owned).with_context(|| format!("{} has no address", name_of(pod)))
}

/// Whether a connection from inside a pod is accepted. There is no shell in the images, so the node's enters the pod's network.
async fn connects(pod: &Value, to: &str, port: u16) -> Result<bool> {
    let own = address(pod)?;
    let spaces: Vec<PathBuf> = std::fs::read_dir("/run/netns")?.flatten().map(|entry| entry.path()).collect();
    for space in spaces {
        let Some(name) = space.file_name().and_then(|name| name.to_str()) else { continue };
        let Ok(shown) = run("ip", &["-n", name, "-4", "-o", "address"], None).await else { continue };
        if shown.contains(&format!(" {own}/")) {
            let knock = format!("exec 3<>/dev/tcp/{to}/{port}");
            return Ok(run("ip", &["netns", "exec", name, "timeout", "3", "bash", "-c", &knock], None).await.is_ok());
        }
    }
    anyhow::bail!("no network namespace has the address {own}")
}
