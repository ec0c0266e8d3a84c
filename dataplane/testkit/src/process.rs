//! The server under test as a process: `ZERO_CACHE_BIN`, or `release/zero-cache` in the cargo target directory.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{free_ports, http, watchdog};

/// Configuration by environment and a folder that outlives restarts.
#[derive(Debug)]
pub struct ZeroCache {
    folder: PathBuf,
    environment: Vec<(String, String)>,
    port: u16,
    child: Option<Child>,
    /// How the last one ended.
    ended: Option<ExitStatus>,
    starts: u32,
    allowed_errors: Vec<String>,
    name: String,
    /// A program that starts the server, with its arguments.
    wrapper: Vec<String>,
}

impl ZeroCache {
    /// A server for the database, not started yet. Its replica, log and ports are its own.
    pub fn new(upstream: &str) -> Result<ZeroCache> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let folder = std::env::temp_dir().join(format!(
            "zero-testkit-server-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let port = free_ports(3)?;
        let environment = [
            ("ZERO_UPSTREAM_DB", upstream),
            ("ZERO_REPLICA_FILE", &folder.join("replica.db").display().to_string()),
            ("ZERO_PORT", &port.to_string()),
            ("ZERO_ADMIN_PASSWORD", "test"),
            ("ZERO_ENABLE_TELEMETRY", "false"),
            ("ZERO_LOG_LEVEL", "info"),
            ("ZERO_LOG_FORMAT", "text"),
            ("DO_NOT_TRACK", "1"),
        ];
        let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(ZeroCache {
            folder,
            environment,
            port,
            child: None,
            ended: None,
            starts: 0,
            allowed_errors: Vec::new(),
            name: "the server".to_owned(),
            wrapper: Vec::new(),
        })
    }

    /// What messages call it.
    #[must_use]
    pub fn named(mut self, name: &str) -> ZeroCache {
        name.clone_into(&mut self.name);
        self
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Exactly this environment, instead of the usual one. It must say that the server listens on `port`.
    #[must_use]
    pub fn with_environment(mut self, environment: Vec<(String, String)>, port: u16) -> ZeroCache {
        self.environment = environment;
        self.port = port;
        self
    }

    /// The server is started by this program, which must become it: `prlimit`, say.
    #[must_use]
    pub fn started_by(mut self, wrapper: &[&str]) -> ZeroCache {
        self.wrapper = wrapper.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> ZeroCache {
        self.set(name, value);
        self
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.unset(name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    pub fn unset(&mut self, name: &str) {
        self.environment.retain(|(known, _)| known != name);
    }

    /// ERROR lines that contain this text are expected.
    #[must_use]
    pub fn allow_error(mut self, text: &str) -> ZeroCache {
        self.allowed_errors.push(text.to_owned());
        self
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the server shows what is for those who operate it.
    #[must_use]
    pub fn admin_port(&self) -> u16 {
        let own = self.environment.iter().find(|(name, _)| name == "ZERO_ADMIN_PORT");
        own.and_then(|(_, port)| port.parse().ok()).unwrap_or(self.port)
    }

    /// A port that nothing else uses, for `ZERO_ADMIN_PORT`.
    #[must_use]
    pub fn spare_port(&self) -> u16 {
        self.port + 2
    }

    /// Where the server listens for others of its kind unless told otherwise.
    #[must_use]
    pub fn change_port(&self) -> u16 {
        self.port + 1
    }

    /// Everything the server writes is in here.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Loses the replica, as a node without a disk of its own does.
    pub fn delete_replica(&self) -> Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("replica.db")) {
                fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)).context("delete the replica")?;
            }
        }
        Ok(())
    }

    #[must_use]
    pub fn replica_file(&self) -> PathBuf {
        self.folder.join("replica.db")
    }

    /// Starts the process without waiting for anything.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the server runs already");
        let binary = binary()?;
        self.starts += 1;
        let log = File::create(self.log_file(self.starts))?;
        let mut command = match self.wrapper.split_first() {
            None => Command::new(&binary),
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&binary);
                command
            }
        };
        command.env_clear().envs(std::env::vars().filter(|(name, _)| !name.starts_with("ZERO_") && name != "NODE_ENV"));
        command.envs(self.environment.iter().cloned()).current_dir(&self.folder);
        // A process group of its own, so that Ctrl-C reaches the tests alone.
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("start {}", binary.display()))?;
        watchdog::watch(child.id())?;
        self.child = Some(child);
        Ok(())
    }

    /// Starts the process and waits until `/` answers 200.
    pub fn start(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        self.spawn()?;
        self.wait_ready(Duration::from_secs(60))?;
        Ok(begin.elapsed())
    }

    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if self.answers(self.port) {
                return Ok(());
            }
            if let Some(status) = self.try_wait()? {
                bail!("{} ended with {status} before it was ready; its log ends:\n{}", self.name, self.log_tail(20));
            }
            if Instant::now() > deadline {
                bail!("{} was not ready within {limit:?}; its log ends:\n{}", self.name, self.log_tail(20));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether `/` of a port of this server answers 200.
    #[must_use]
    pub fn answers(&self, port: u16) -> bool {
        matches!(http::get(port, "/", ""), Ok((200, _)))
    }

    fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            return self.ended.map(Some).with_context(|| format!("{} was not started", self.name));
        };
        let (id, status) = (child.id(), child.try_wait()?);
        if status.is_some() {
            watchdog::forget(id);
            self.child = None;
            self.ended = status;
        }
        Ok(status)
    }

    /// Waits for the process to end by itself.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "{} did not end within {limit:?}; its log ends:\n{}",
                self.name,
                self.log_tail(20)
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether the process is alive.
    pub fn is_running(&mut self) -> bool {
        self.child.is_some() && matches!(self.try_wait(), Ok(None))
    }

    /// `SIGTERM`, then waits for the end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.terminate_within(Duration::from_secs(20))
    }

    /// `SIGTERM`, then waits so long for the end.
    pub fn terminate_within(&mut self, grace: Duration) -> Result<ExitStatus> {
        self.ask_to_end()?;
        self.wait_exit(grace)
    }

    /// `SIGTERM` without waiting.
    pub fn ask_to_end(&self) -> Result<()> {
        self.signal("TERM")
    }

    /// `SIGQUIT`: an end without a drain.
    pub fn quit(&mut self) -> Result<ExitStatus> {
        self.signal("QUIT")?;
        self.wait_exit(Duration::from_secs(10))
    }

    /// `SIGSTOP`: the process is there and does nothing, as a machine that swaps or a network that swallows packets.
    pub fn freeze(&self) -> Result<()> {
        self.signal("STOP")
    }

    /// `SIGCONT`
    pub fn thaw(&self) -> Result<()> {
        self.signal("CONT")
    }

    /// `SIGKILL` to the process and all its descendants.
    pub fn kill(&mut self) -> Result<()> {
        self.signal("KILL")?;
        self.wait_exit(Duration::from_secs(5)).map(drop)
    }

    fn signal(&self, name: &str) -> Result<()> {
        let id = self.child.as_ref().with_context(|| format!("{} is not running", self.name))?.id();
        let mut targets = vec![id.to_string()];
        if name == "KILL" {
            add_descendants(&id.to_string(), &mut targets);
        }
        let status = Command::new("kill").arg("-s").arg(name).arg("--").args(targets).status().context("run kill")?;
        ensure!(status.success(), "kill -s {name} failed");
        Ok(())
    }

    /// A small HTTP GET: status and body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        http::get(self.port, path, "")
    }

    /// GET with HTTP basic authentication by the admin password.
    pub fn get_as_admin(&self, path: &str) -> Result<(u16, String)> {
        http::get(self.admin_port(), path, &http::basic("admin", "test"))
    }

    /// The value of a metric without labels, or the sum over its labels.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let (status, body) = self.get_as_admin("/metrics")?;
        ensure!(status == 200, "/metrics answered {status}");
        let mut sum = None;
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix(name)
                && rest.starts_with([' ', '{'])
                && let Some(value) = line.rsplit(' ').next()
            {
                *sum.get_or_insert(0.0) += value.parse::<f64>()?;
            }
        }
        sum.with_context(|| format!("no metric {name} in /metrics"))
    }

    /// The most memory that the running server ever had, in bytes, as the system saw it.
    pub fn peak_memory(&self) -> Result<u64> {
        let child = self.child.as_ref().context("the server does not run")?;
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    fn log_file(&self, start: u32) -> PathBuf {
        self.folder.join(format!("log-{start}"))
    }

    /// The log of all starts.
    #[must_use]
    pub fn log(&self) -> String {
        (1..=self.starts).map(|start| read_lossy(&self.log_file(start))).collect()
    }

    /// The log since the last start.
    #[must_use]
    pub fn last_log(&self) -> String {
        read_lossy(&self.log_file(self.starts))
    }

    /// The last lines of the log since the last start.
    #[must_use]
    pub fn log_tail(&self, count: usize) -> String {
        let log = self.last_log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    /// Fails on an ERROR line that was not announced, and on any panic.
    pub fn check_log(&self) -> Result<()> {
        for line in self.log().lines() {
            ensure!(!line.contains("panicked at"), "{} panicked: {line}", self.name);
            let is_error = [" ERROR ", "level=ERROR", "\"level\":\"ERROR\""].iter().any(|mark| line.contains(mark));
            ensure!(
                !is_error || self.allowed_errors.iter().any(|text| line.contains(text)),
                "unexpected ERROR in the log of {}: {line}",
                self.name
            );
        }
        Ok(())
    }
}

impl Drop for ZeroCache {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.kill();
        }
        if std::thread::panicking() || std::env::var_os("ZERO_TEST_KEEP").is_some() {
            eprintln!("the log of {} is kept in {}", self.name, self.folder.display());
        } else {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

fn add_descendants(id: &str, found: &mut Vec<String>) {
    let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    for children in threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok()) {
        for child in children.split_whitespace() {
            found.push(child.to_owned());
            add_descendants(child, found);
        }
    }
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// The program to test.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ZERO_CACHE_BIN") {
        return Ok(path.into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    let path = target.join("release/zero-cache");
    ensure!(path.is_file(), "no {}: run `cargo build --release -p zero-cache`, or set ZERO_CACHE_BIN", path.display());
    Ok(path)
}
