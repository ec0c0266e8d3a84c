//! Starts pgbouncer in transaction mode in front of a test server: every transaction may land on another connection, so a client
//! that keeps prepared statements, settings or locks in its session breaks.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::account::User;
use crate::free_ports;
use crate::postgres::Postgres;

/// Runs the program until the end of its input, then kills it: a killed test run leaves nothing behind.
const GUARD: &str = r#"
"$@" </dev/null & pooler=$!
read -r _
kill -KILL $pooler
wait $pooler
"#;

/// A running pooler, stopped when dropped.
#[derive(Debug)]
pub struct PgBouncer {
    folder: PathBuf,
    port: u16,
    guard: Child,
}

impl PgBouncer {
    /// All databases of the server through at most `pool_size` connections each.
    pub fn start(postgres: &Postgres, pool_size: u32) -> Result<PgBouncer> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let program = program()?;
        let user = User::unprivileged()?;
        let folder = std::env::temp_dir().join(format!(
            "zero-testkit-pgbouncer-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let mut last = None;
        for _ in 0..5 {
            let port = free_ports(1)?;
            fs::write(folder.join("pgbouncer.ini"), settings(&folder, &program, port, postgres.port(), pool_size)?)?;
            fs::write(folder.join("users"), "\"postgres\" \"\"\n")?;
            match launch(&program, &folder, port, user) {
                Ok(guard) => return Ok(PgBouncer { folder, port, guard }),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("five attempts were made")?)
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connection URL of a database through the pooler.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Debian's, unless `ZERO_TEST_PGBOUNCER` names another.
fn program() -> Result<PathBuf> {
    let path = std::env::var_os("ZERO_TEST_PGBOUNCER").map_or_else(|| "/usr/sbin/pgbouncer".into(), PathBuf::from);
    ensure!(
        path.is_file(),
        "no {}: install the package pgbouncer, or set ZERO_TEST_PGBOUNCER to the program",
        path.display()
    );
    Ok(path)
}

fn settings(folder: &Path, program: &Path, port: u16, server: u16, pool_size: u32) -> Result<String> {
    let output = Command::new(program).arg("--version").output().context("run pgbouncer --version")?;
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    let minor: u32 = version
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.split('.').nth(1)?.parse().ok())
        .with_context(|| format!("pgbouncer --version says {version:?}"))?;
    // Poolers since 1.21 can keep prepared statements for their clients; the older ones in use do not.
    let prepared = if minor >= 21 { "max_prepared_statements = 0\n" } else { "" };
    let folder = folder.display();
    Ok(format!(
        "[databases]\n* = host=127.0.0.1 port={server}\n\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n\
         auth_file = {folder}/users\npool_mode = transaction\ndefault_pool_size = {pool_size}\nmax_client_conn = 500\n\
         {prepared}"
    ))
}

fn launch(program: &Path, folder: &Path, port: u16, user: Option<User>) -> Result<Child> {
    let log = fs::File::create(folder.join("log"))?;
    let mut command = Command::new("sh");
    command.args(["-c", GUARD, "pgbouncer-guard"]).arg(program).arg(folder.join("pgbouncer.ini"));
    command.current_dir("/").stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0);
    if let Some(user) = user {
        user.own(folder)?;
        user.run(&mut command);
    }
    let mut guard = command.spawn().context("start the guard shell of pgbouncer")?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
        if log.contains("FATAL") || Instant::now() > deadline {
            drop(guard.stdin.take());
            let _ = guard.wait();
            bail!("pgbouncer on port {port} did not start:\n{log}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(guard)
}
