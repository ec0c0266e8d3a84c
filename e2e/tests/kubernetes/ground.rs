//! What all tests stand on: the operator from its chart, the data plane's image under several tags, a real Postgres, a real object
//! store. Started once, on a runtime that outlives each test's.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use testkit::postgres::{Options, Postgres, Version};
use testkit::s3::S3;
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::kubectl::{helm, kubectl, run};

/// Pods reach whatever listens here; every name below `test` means it.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
pub const BUCKET: &str = "replicas";
/// Where the operator runs.
pub const SYSTEM: &str = "zero-cache-system";
pub const OPERATOR: &str = "app.kubernetes.io/name=zero-cache-operator";
/// Tags of the data plane's image. The second is the same program; the third never answers; no node has the fourth.
pub const OLD: &str = "0.1.0";
pub const NEW: &str = "0.1.1";
pub const SILENT: &str = "0.1.2";
pub const ABSENT: &str = "0.1.3";

/// Its tasks are the servers that several tests use.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("threads can be started"));
static GROUND: OnceCell<Ground> = OnceCell::const_new();
/// Held for reading by tests that bear others beside them.
static QUIET: RwLock<()> = RwLock::const_new(());

/// Keeps a test apart from tests that measure or kill what all share.
#[derive(Debug)]
pub enum Place {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

impl Place {
    pub async fn shared() -> Place {
        Place::Shared { _guard: QUIET.read().await }
    }

    pub async fn alone() -> Place {
        Place::Alone { _guard: QUIET.write().await }
    }
}

#[derive(Debug)]
pub struct Ground {
    pub postgres: Postgres,
    pub s3: S3,
}

impl Ground {
    pub async fn get() -> Result<&'static Ground> {
        check_harness()?;
        GROUND
            .get_or_try_init(|| async {
                let ground = RUNTIME.spawn(async {
                    let (postgres, s3) = servers().await?;
                    install_operator().await?;
                    anyhow::Ok(Ground { postgres, s3 })
                });
                ground.await.context("the start of the common ground failed")?
            })
            .await
    }
}

/// Fails where the tests were started without their cluster.
pub fn check_harness() -> Result<()> {
    let inside = std::env::var("NODE_IP").is_ok_and(|ip| ip == NODE.to_string()) && std::env::var_os("W").is_some();
    ensure!(inside, "these tests need a cluster: e2e/kube/cluster --images -- cargo test -p e2e --test kubernetes");
    Ok(())
}

/// Postgres and the object store, for pods.
pub async fn servers() -> Result<(Postgres, S3)> {
    let folder = std::env::var("W").context("W names the cluster's folder")?;
    let access = Path::new(&folder).join("pg_hba.conf");
    // Pods come with a password; this process, by the loopback address, without.
    let rules = "local all all trust\nhost all all 127.0.0.1/32 trust\nhost all all 0.0.0.0/0 scram-sha-256\n";
    std::fs::write(&access, rules)?;
    let settings = [("listen_addresses", "*"), ("hba_file", &access.display().to_string()), ("max_connections", "200")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let postgres = Postgres::start_with(Version::V15, Options { settings, ..Options::default() })?;
    Ok((postgres, S3::start_at(BUCKET, NODE).await?))
}

/// The charts, as their values allow, with the images of this project.
async fn install_operator() -> Result<()> {
    for (from, tag) in [("zero-cache:e2e", OLD), ("zero-cache:e2e", NEW), ("pause:e2e", SILENT)] {
        let (from, to) = (format!("localhost/{from}"), format!("localhost/zero-cache:{tag}"));
        run("ctr", &["images", "tag", "--force", &from, &to], None)
            .await
            .context("start the cluster with --images: the data plane's image is not loaded")?;
    }
    helm(&[
        "upgrade",
        "--install",
        "zero-cache-crds",
        "charts/zero-cache-crds",
        "--namespace",
        SYSTEM,
        "--create-namespace",
    ])
    .await?;
    let data_plane = format!("zeroCache.image.repository=localhost/zero-cache,zeroCache.image.tag={OLD}");
    let images = format!("image.repository=localhost/zero-cache-operator,image.tag=e2e,{data_plane}");
    let release = ["zero-cache-operator", "charts/zero-cache-operator", "--namespace", SYSTEM];
    let patience = ["--set", &images, "--wait", "--timeout", "60s"];
    let arguments = [&["upgrade", "--install"][..], &release, &patience].concat();
    let installed = helm(&arguments);
    if let Err(error) = installed.await {
        let pods = kubectl(&["describe", "pods", "-n", SYSTEM]).await.unwrap_or_default();
        return Err(error.context(format!("{}\n{pods}", operator_log(60).await)));
    }
    Ok(())
}

/// The end of what the operator has logged.
pub async fn operator_log(lines: u32) -> String {
    let tail = format!("--tail={lines}");
    let log = kubectl(&["logs", "-n", SYSTEM, "-l", OPERATOR, "--prefix", &tail]).await;
    log.unwrap_or_else(|error| format!("{error:#}"))
}
