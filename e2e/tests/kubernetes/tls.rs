//! A change stream with certificates: nodes follow over TLS, the operator and the kubelet ask over it, and a renewed certificate
//! restarts nobody.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testkit::tab::Tab;
use testkit::tls::Authority;

use crate::app::{all_issues, fence};
use crate::ground::{NEW, Place};
use crate::kubectl::apply;
use crate::site::{MANAGER, READY, SYNCER, Site, is_ready, name_of};
use crate::standby::{has_standby, with_standby};
use crate::upgrade::{under_load, upgrade_to};

const SECRET: &str = "stream";

/// The operator asks over TLS as well: nobody else says how far the log is.
fn is_asked(cache: &Value) -> bool {
    has_standby(cache) && cache["status"]["replicationManager"]["replicaVersion"].is_string()
}

async fn is_ready_still(site: &Site) -> Result<bool> {
    let mut pods = site.pods(MANAGER).await?;
    pods.extend(site.pods(SYNCER).await?);
    Ok(pods.len() == 4 && pods.iter().all(is_ready))
}

/// What an issuer writes into the namespace.
async fn put_certificate(site: &Site, authority: &Authority) -> Result<()> {
    let domain = format!("{}.svc.cluster.local", site.namespace);
    let issued = authority.issue(&format!("DNS:app-rm.{domain},DNS:*.app-rm-headless.{domain}"))?;
    let data = json!({"tls.crt": issued.certificate, "tls.key": issued.key, "ca.crt": authority.certificate});
    let meta = json!({"name": SECRET, "namespace": site.namespace});
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": meta, "stringData": data});
    apply(&secret).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_follow_over_tls_and_a_renewed_certificate_restarts_nobody() -> Result<()> {
    let _place = Place::alone().await;
    let site = Site::start("stream-tls", with_standby).await?;
    let outcome = encrypt(&site).await;
    site.judge(outcome).await
}

async fn encrypt(site: &Site) -> Result<()> {
    let authority = Authority::new()?;
    site.wait(READY, "a standby", is_asked).await?;
    site.change(json!({"security": {"changeStream": {"tlsSecretName": SECRET}}})).await?;
    let names_it = |cache: &Value| {
        let conditions = cache["status"]["conditions"].as_array().into_iter().flatten();
        let texts: Vec<_> = conditions.filter_map(|it| it["message"].as_str()).collect();
        texts.iter().any(|text| text.contains("security.changeStream.tlsSecretName: Secret stream does not exist"))
    };
    site.wait(READY, "the missing Secret to be named", names_it).await?;
    ensure!(is_ready_still(site).await?, "what runs was touched though a Secret is missing");

    // Nodes of both sorts are there for a while, and view-syncers of the former one follow late.
    let test = "nodes_follow_over_tls_and_a_renewed_certificate_restarts_nobody";
    let felt = under_load(site, test, READY, async {
        put_certificate(site, &authority).await?;
        let is_encrypted = |cache: &Value| {
            let address = cache["status"]["endpoints"]["changeStreamer"].as_str().unwrap_or_default();
            is_asked(cache) && address.starts_with("wss://")
        };
        site.wait(READY, "a rollout of certificates", is_encrypted).await.map(drop)
    });
    felt.await?.tell("a change to TLS")?;
    for pod in site.pods(MANAGER).await? {
        let scheme = &pod["spec"]["containers"][0]["readinessProbe"]["httpGet"]["scheme"];
        ensure!(scheme == "HTTPS", "{} is asked by {scheme}", name_of(&pod));
    }

    let tab = Tab::keep("tab", site.client(&[fence(), all_issues()]).await?);
    let before = pods(site).await?;
    put_certificate(site, &authority).await?;
    site.database.execute("UPDATE fence SET value = 41 WHERE id = 1").await?;
    tab.wait(READY, "a change", |store| store.rows["fence"]["[1]"]["value"] == 41).await?;
    // A rollout begins within a second.
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(pods(site).await? == before, "a renewed certificate restarted pods");

    upgrade_to(site, NEW).await?;
    site.database.execute("UPDATE fence SET value = 42 WHERE id = 1").await?;
    tab.wait(READY, "a change after an upgrade", |store| store.rows["fence"]["[1]"]["value"] == 42).await?;
    tab.check()
}

/// Which pods there are to stay, and how often each was restarted.
async fn pods(site: &Site) -> Result<Vec<(String, Value)>> {
    let mut pods = Vec::new();
    for role in [MANAGER, SYNCER] {
        for pod in site.pods(role).await?.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()) {
            pods.push((name_of(pod).to_owned(), pod["status"]["containerStatuses"][0]["restartCount"].clone()));
        }
    }
    Ok(pods)
}
