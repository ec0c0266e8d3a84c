//! `zero-cache backup list|verify|restore|delete` and `zero-cache health`, as people and Jobs run them: whole processes against a real
//! store.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use testkit::process::binary;
use testkit::s3::Faults;

use super::store::ObjectStore;
use super::{Cluster, Plan};

struct Outcome {
    code: Option<i32>,
    text: String,
    last_line: String,
}

fn run(arguments: &[&str], environment: &[(&'static str, String)]) -> Result<Outcome> {
    let mut command = Command::new(binary()?);
    let own = |name: &str| ["ZERO_", "AWS_"].iter().any(|prefix| name.starts_with(prefix));
    command.env_clear().envs(std::env::vars().filter(|(name, _)| !own(name)));
    // No `.env` file and no profile of whoever runs the tests.
    command.envs([("HOME", "/nonexistent")]).current_dir(std::env::temp_dir());
    command.args(arguments).envs(environment.iter().map(|(name, value)| (*name, value)));
    let Output { status, stdout, stderr } = command.output().context("run the program")?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    let last_line = stdout.lines().last().unwrap_or_default().to_owned();
    Ok(Outcome { code: status.code(), text: format!("{stdout}{}", String::from_utf8_lossy(&stderr)), last_line })
}

impl Outcome {
    fn expect(&self, code: i32, words: &[&str]) -> Result<&Outcome> {
        ensure!(self.code == Some(code), "it ended with {:?} instead of {code}:\n{}", self.code, self.text);
        for word in words {
            ensure!(self.text.contains(word), "no {word:?} in:\n{}", self.text);
        }
        ensure!(!self.text.contains("panicked"), "{}", self.text);
        Ok(self)
    }
}

fn environment(store: &ObjectStore) -> Vec<(&'static str, String)> {
    let mut environment = store.access();
    environment.push(("ZERO_LITESTREAM_BACKUP_URL", store.url()));
    environment
}

fn with(environment: &[(&'static str, String)], name: &'static str, value: &str) -> Vec<(&'static str, String)> {
    let others = environment.iter().filter(|(other, _)| *other != name).cloned();
    others.chain([(name, value.to_owned())]).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

/// How many cells of a replica hold such a text. Its tables are named by what only the server knows.
fn cells(replica: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<usize> {
    let connection = rusqlite::Connection::open(replica)?;
    let mut tables = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'")?;
    let tables = tables.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    let mut count = 0;
    for table in tables {
        let mut statement = connection.prepare(&format!("SELECT * FROM \"{table}\""))?;
        let width = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let texts = (0..width).filter_map(|column| row.get::<_, String>(column).ok());
            count += texts.filter(|text| is_wanted(text)).count();
        }
    }
    Ok(count)
}

fn seconds_from_now(offset: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    now.saturating_add_signed(offset).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_listed_verified_restored_and_deleted() -> Result<()> {
    let mut cluster = Cluster::prepare(Plan { has_store: true, ..Plan::new("backup_command") }).await?;
    cluster.add_manager().await.with_context(|| cluster.report())?;
    cluster.await_backup().await?;
    // Readiness by the ports of the same process.
    let manager = &mut cluster.managers[0];
    for port in [manager.port(), manager.change_port()] {
        run(&["health", &format!("--url=http://127.0.0.1:{port}/")], &[])?.expect(0, &["200"])?;
    }
    run(&["health"], &[("ZERO_PORT", manager.port().to_string())])?.expect(0, &["200"])?;
    cluster.database.execute("UPDATE issue SET title = 'in the backup'").await?;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let manager = &mut cluster.managers[0];
    ensure!(manager.terminate()?.success());
    run(&["health"], &[("ZERO_PORT", manager.port().to_string())])?.expect(255, &["refused"])?;

    let store = cluster.store.as_ref().context("there is a store")?;
    let environment = environment(store);
    run(&["backup", "list"], &environment)?.expect(0, &["snapshot", "restorable to version", &store.url()])?;
    run(&["backup", "verify"], &environment)?.expect(0, &["ok ", "good: restorable"])?;
    let folder = tempdir()?;
    let file = folder.0.join("restored.db");
    let path = file.display().to_string();
    run(&["backup", "restore", &path], &environment)?.expect(0, &["restored version", &path])?;
    let titles = cells(&file, |text| text == "in the backup")?;
    ensure!(titles == 30, "{titles} of 30 rows are as they were");
    run(&["backup", "restore", &path], &environment)?.expect(255, &[&path, "exists already"])?;
    let foreign = with(&environment, "ZERO_APP_ID", "other");
    let other = folder.0.join("other.db").display().to_string();
    run(&["backup", "restore", &other], &foreign)?.expect(255, &["cannot be used here", "other"])?;
    ensure!(!Path::new(&other).exists());

    // A generation whose name begins like this one's stays.
    let bucket = store.server.object("replicas", "app");
    fs::create_dir_all(bucket.join("10/ltx"))?;
    fs::write(bucket.join("10/ltx/kept"), "kept")?;
    let count = files(&bucket.join("1")).len();
    let url = format!("--url={}/", store.url());
    let early = format!("--unless-written-after={}", seconds_from_now(-3600));
    let words = folder.0.join("last-words");
    let report = format!("--report={}", words.display());
    run(&["backup", "delete", &url, &early, &report], &environment)?.expect(255, &["stays", "app/1/"])?;
    ensure!(fs::read_to_string(&words)?.contains("stays"), "why nothing was deleted is not reported");
    ensure!(files(&bucket.join("1")).len() == count, "something was deleted");
    let late = format!("--unless-written-after={}", seconds_from_now(60));
    run(&["backup", "delete", &format!("--url={}", store.url()), &late], &environment)?.expect(255, &["slash"])?;
    let deleted = run(&["backup", "delete", &url, &late, &report], &environment)?;
    deleted.expect(0, &[])?;
    ensure!(fs::read_to_string(&words)? == format!("deleted {count} objects"));
    fs::remove_file(&words)?;
    ensure!(deleted.last_line == format!("deleted {count} objects"), "{}", deleted.text);
    ensure!(files(&bucket.join("1")).is_empty() && bucket.join("10/ltx/kept").exists());
    let again = run(&["backup", "delete", &url, &late], &environment)?;
    ensure!(again.expect(0, &[])?.last_line == "deleted 0 objects", "{}", again.text);

    // What is left is nothing.
    run(&["backup", "list"], &environment)?.expect(0, &["nothing can be restored"])?;
    run(&["backup", "verify"], &environment)?.expect(13, &["nothing can be restored"])?;
    let nowhere = folder.0.join("nowhere.db").display().to_string();
    run(&["backup", "restore", &nowhere], &environment)?.expect(255, &["it is empty"])?;
    ensure!(fs::read_dir(&folder.0)?.count() == 1, "a failed restore left files behind");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_told_and_gone_around() -> Result<()> {
    let mut cluster = Cluster::prepare(Plan { has_store: true, ..Plan::new("backup_damaged") }).await?;
    cluster.add_manager().await.with_context(|| cluster.report())?;
    cluster.await_backup().await?;
    cluster.database.execute("UPDATE issue SET title = 'lost with the damage'").await?;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    cluster.managers[0].kill()?;
    let store = cluster.store.as_ref().context("there is a store")?;
    let environment = environment(store);
    run(&["backup", "verify"], &environment)?.expect(0, &["good"])?;
    let level = store.server.object("replicas", "app/1/0000");
    ensure!(level.is_dir(), "increments are not at {}", level.display());
    for file in files(&level) {
        let mut bytes = fs::read(&file)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&file, bytes)?;
    }
    run(&["backup", "verify"], &environment)?.expect(13, &["BAD", "damaged: restorable to transaction"])?;
    let folder = tempdir()?;
    let file = folder.0.join("restored.db");
    run(&["backup", "restore", &file.display().to_string()], &environment)?.expect(0, &["restored version"])?;
    let titles = cells(&file, |text| text.starts_with("Issue "))?;
    ensure!(titles == 30, "the point before the damage has {titles} of 30 rows");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_is_named() -> Result<()> {
    let store = ObjectStore::start().await?;
    let environment = environment(&store);
    let folder = tempdir()?;
    let file = folder.0.join("restored.db").display().to_string();
    let late = format!("--unless-written-after={}", seconds_from_now(60));
    let commands: [&[&str]; 3] = [&["backup", "list"], &["backup", "verify"], &["backup", "restore", &file]];
    let no_bucket = with(&environment, "ZERO_LITESTREAM_BACKUP_URL", "s3://no-such-bucket/app/1");
    let wrong_key = with(&environment, "AWS_SECRET_ACCESS_KEY", "hunter2");
    for command in commands {
        run(command, &no_bucket)?.expect(255, &["no-such-bucket", "does not exist"])?;
        let denied = run(command, &wrong_key)?;
        denied.expect(255, &["denies access", "AWS_SECRET_ACCESS_KEY"])?;
        ensure!(!denied.text.contains("hunter2"), "the key is told:\n{}", denied.text);
    }
    run(&["backup", "delete", "--url=s3://no-such-bucket/app/1/", &late], &environment)?
        .expect(255, &["no-such-bucket", "does not exist"])?;
    let url = format!("--url={}/", store.url());
    run(&["backup", "delete", &url, &late], &wrong_key)?.expect(255, &["denies access"])?;
    store.server.set_faults(Faults { is_denied: true, ..Faults::default() });
    run(&["backup", "delete", &url, &late], &environment)?.expect(255, &["denies access"])?;

    let mut none: Vec<_> = environment.clone();
    none.retain(|(name, _)| *name != "ZERO_LITESTREAM_BACKUP_URL");
    run(&["backup", "list"], &none)?.expect(255, &["ZERO_LITESTREAM_BACKUP_URL is not set"])?;
    run(&["backup", "delete"], &environment)?.expect(255, &["--url"])?;
    run(&["backup", "delete", &url], &environment)?.expect(255, &["--unless-written-after"])?;
    run(&["backup", "purge"], &environment)?.expect(255, &["usage"])?;
    run(&["backup", "--help"], &[])?.expect(0, &["usage", "delete"])?;
    run(&["health", "--help"], &[])?.expect(0, &["usage"])?;
    Ok(())
}

/// A folder that is removed with everything in it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tempdir() -> Result<Folder> {
    let folder =
        std::env::temp_dir().join(format!("zero-restore-{}-{:08x}", std::process::id(), rand::random::<u32>()));
    fs::create_dir(&folder)?;
    Ok(Folder(folder))
}
