//! The operator as a process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

use crate::proxy::Proxy;
use crate::site::{Site, root};

/// How an operator differs from the usual one.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Another configuration than the administrator's.
    pub kubeconfig: Option<PathBuf>,
    pub environment: BTreeMap<&'static str, String>,
}

pub struct Operator {
    child: Child,
    pub port: u16,
    log: PathBuf,
}

/// Where the program is, built when it is not told.
async fn program() -> Result<PathBuf> {
    static PROGRAM: OnceCell<PathBuf> = OnceCell::const_new();
    let found = PROGRAM.get_or_try_init(|| async {
        if let Some(given) = std::env::var_os("ZERO_CACHE_OPERATOR_BIN") {
            return Ok(PathBuf::from(given));
        }
        // Tests are in `deps` of the profile's folder.
        let tests = std::env::current_exe()?;
        let profile = tests.parent().and_then(|deps| deps.parent()).context("find the target folder")?.to_owned();
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "-p", "zero-cache-operator"]).current_dir(root());
        build.env("CARGO_TARGET_DIR", profile.parent().context("find the target folder")?);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        ensure!(build.status().await?.success(), "build the operator");
        Ok(profile.join("zero-cache-operator"))
    });
    found.await.cloned()
}

impl Operator {
    /// The usual one: it watches the site's namespace only, and needs no Lease.
    pub async fn start(site: &Site) -> Result<Operator> {
        Operator::start_with(site, Options::default()).await
    }

    /// With the proxy's credentials and a Lease, as the chart starts it.
    pub async fn start_behind(site: &Site, proxy: &Proxy) -> Result<Operator> {
        let environment = BTreeMap::from([("LEADER_ELECTION", "true".to_owned())]);
        Operator::start_with(site, Options { kubeconfig: Some(proxy.kubeconfig()?), environment }).await
    }

    pub async fn start_with(site: &Site, options: Options) -> Result<Operator> {
        let port = testkit::free_ports(1)?;
        let folder = std::env::temp_dir().join(format!("control-plane-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let log = folder.join(format!("{}-{port}.log", site.name));
        let file = std::fs::File::create(&log)?;
        let mut command = Command::new(program().await?);
        command
            .arg("run")
            .env("WATCH_NAMESPACES", &site.name)
            .env("LEADER_ELECTION", "false")
            .env("POD_NAMESPACE", &site.name)
            .env("POD_NAME", "operator")
            .env("METRICS_ADDR", format!("127.0.0.1:{port}"))
            .env("LOG_FORMAT", "text")
            .envs(&options.environment)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true);
        if let Some(path) = options.kubeconfig {
            command.env("KUBECONFIG", path);
        }
        let child = command.spawn().context("start the operator")?;
        Ok(Operator { child, port, log })
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// As a crash would.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.context("kill the operator")
    }

    /// As Kubernetes does; its exit code.
    pub async fn stop(mut self) -> Result<i32> {
        let pid = self.pid().to_string();
        ensure!(Command::new("kill").args(["-TERM", &pid]).status().await?.success(), "send SIGTERM");
        let ended = tokio::time::timeout(Duration::from_secs(25), self.child.wait()).await;
        Ok(ended.context("wait for the operator's end")??.code().unwrap_or(-1))
    }

    /// Waits for the end of the process; its exit code.
    pub async fn ended(mut self, seconds: u64) -> Result<i32> {
        let ended = tokio::time::timeout(Duration::from_secs(seconds), self.child.wait()).await;
        Ok(ended.context("wait for the operator's end")??.code().unwrap_or(-1))
    }

    /// Status and body of an answer.
    pub async fn ask(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: operator\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
        let status = head.split(' ').nth(1).context("an answer has a status")?.parse()?;
        Ok((status, body.to_owned()))
    }

    /// Waits until `/readyz` says so.
    pub async fn until_ready(&self, wanted: bool) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            match self.ask("/readyz").await {
                Ok((status, _)) if (status == 200) == wanted => return Ok(()),
                _ if Instant::now() > end => bail!("/readyz did not become {wanted}:\n{}", self.log()),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// The sum of a metric's series whose labels contain all of `labels`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        let (_, text) = self.ask("/metrics").await?;
        let mut sum = 0.0;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let is_it = series.split('{').next() == Some(name) && labels.iter().all(|label| series.contains(label));
            if is_it {
                sum += value.parse::<f64>()?;
            }
        }
        Ok(sum)
    }
}
