//! The dialects of Traefik and of ingress-nginx, read by a real controller instead of the stand-in. Traefik's build from nothing takes
//! 12 minutes, so it is asked for: `E2E_TRAEFIK=1 e2e/test`.

use std::process::Stdio;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::ground::{NODE, Place};
use crate::kubectl::{apply, run};
use crate::network::stick;
use crate::site::Site;

const PORT: u16 = 8090;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a real Traefik takes 12 minutes to build; E2E_TRAEFIK=1 e2e/test runs it"]
async fn a_real_traefik_understands_two_dialects() -> Result<()> {
    let _place = Place::alone().await;
    let _traefik = start().await?;
    let dialects =
        [("traefik", "Traefik", "traefik.io/ingress-controller"), ("nginx", "IngressNginx", "k8s.io/ingress-nginx")];
    for (class, provider, controller) in dialects {
        let meta = json!({"name": class});
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": meta, "spec": {"controller": controller},
        });
        apply(&object).await?;
        let change = |cache: &mut Value| {
            cache["spec"]["viewSyncer"]["replicas"] = json!(2);
            cache["spec"]["ingress"]["provider"] = json!(provider);
            cache["spec"]["ingress"]["className"] = json!(class);
        };
        let site = Site::start(&format!("by-{class}"), change).await?;
        let outcome = stick(&site, PORT).await.context(provider);
        site.judge(outcome).await?;
    }
    Ok(())
}

async fn start() -> Result<Child> {
    let folder = run("e2e/kube/build", &["-t", "traefik"], None).await?;
    let log = std::fs::File::create(std::env::temp_dir().join("traefik.log"))?;
    Command::new(format!("{}/traefik", folder.trim()))
        .args([
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
            "--providers.kubernetesingressnginx",
        ])
        .args(["--providers.kubernetesingress", "--providers.kubernetesingress.ingressclass=traefik"])
        .arg(format!("--entrypoints.web.address={NODE}:{PORT}"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .context("start Traefik")
}
