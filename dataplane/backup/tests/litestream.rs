//! The stock `litestream restore` understands our backups: the real tool, a real S3 server.
//!
//! The tool is built once from its Go module, pinned by `litestream/go.mod` and `go.sum`, into `~/.cache/zero-cache-e2e`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::s3::S3;

use crate::fixture::{BUCKET, Source, bucket, contents, restorable, start};

/// The built tool. Fails where it cannot be built: this proof is never skipped.
fn tool() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/litestream");
    let version = Command::new("go").arg("version").env("GOTOOLCHAIN", "local").output();
    let version = version.unwrap_or_else(|e| {
        panic!("this test builds litestream from its Go module and needs Go 1.26 or later on the PATH: {e}")
    });
    assert!(version.status.success(), "go version: {}", String::from_utf8_lossy(&version.stderr));
    let inputs = [fs::read(source.join("go.mod")).unwrap(), fs::read(source.join("go.sum")).unwrap(), version.stdout];
    let key = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64GoIso, &inputs.concat());
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"));
    let folder = cache.join("zero-cache-e2e").join(format!("litestream-{key:016x}"));
    fs::create_dir_all(&folder).unwrap();
    let tool = folder.join("litestream");
    // A second builder waits, then finds the work done.
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    if !tool.exists() {
        let made = folder.join("litestream.new");
        let built = Command::new("go")
            .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
            .arg(&made)
            .arg("github.com/benbjohnson/litestream/cmd/litestream")
            .current_dir(&source)
            .envs([("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local"), ("GOFLAGS", "-buildvcs=false"), ("GOWORK", "off")])
            .output()
            .unwrap();
        assert!(built.status.success(), "go build: {}", String::from_utf8_lossy(&built.stderr));
        fs::rename(made, &tool).unwrap();
    }
    tool
}

fn litestream_restore(tool: &Path, s3: &S3, key: &str, output: &Path) {
    let config = output.with_extension("yml");
    let text = format!(
        "dbs:\n  - path: /nowhere/replica.db\n    replica:\n      type: s3\n      bucket: {BUCKET}\n      path: {key}\n      endpoint: {}\n      region: us-east-1\n      force-path-style: true\n",
        s3.endpoint()
    );
    fs::write(&config, text).unwrap();
    let run = Command::new(tool)
        .args(["restore", "-integrity-check", "full", "-config"])
        .arg(&config)
        .arg("-o")
        .arg(output)
        .arg("/nowhere/replica.db")
        // Nothing of the machine's own settings: proxies and certificates are for other stores.
        .env_clear()
        .envs(S3::environment())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && output.exists(), "litestream restore: {said}");
}

/// At several moments of a life with mergers, new snapshots, schema changes and a second owner.
#[tokio::test(flavor = "multi_thread")]
async fn stock_litestream_restores_our_backups() {
    let tool = tokio::task::spawn_blocking(tool).await.unwrap();
    let (s3, mut options) = bucket("app/one").await;
    options.snapshot_interval = std::time::Duration::from_millis(700);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("replica.db");
    let mut source = Source::new(testkit::seed("stock_litestream_restores_our_backups"));
    let mut writer = source.create(&path);
    for round in 0..6 {
        let (target, running) = start(&options, &mut writer, 1 + round / 3).await;
        for _ in 0..40 {
            writer.apply(&[source.transaction(40)]).unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(8)).await;
        }
        restorable(&running, writer.version()).await;
        running.stop().await.unwrap();
        let output = directory.path().join(format!("restored{round}.db"));
        litestream_restore(&tool, &s3, "app/one", &output);
        assert_eq!(contents(&output), contents(&path), "{}", backup::list(&target).await.unwrap());
    }
}
