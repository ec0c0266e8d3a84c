//! A WAL that must be cut while it is captured, and disks that are full.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rows::Version;
use testkit::s3::Faults;

use crate::fixture::{Source, bucket, bulk, contents, directory, restorable, restore, start};

/// Much more than the writer lets the WAL grow to goes through; the WAL starts over again and again, and nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn the_wal_starts_over_beneath_a_running_backup() {
    let folder = tempfile::tempdir().unwrap();
    let options = directory(&folder.path().join("backup"));
    let path = folder.path().join("replica.db");
    let mut writer = Source::new(1).create(&path);
    let (target, running) = start(&options, &mut writer, 1).await;
    restorable(&running, Version::new(1)).await;
    let wal = folder.path().join("replica.db-wal");
    let (mut longest, mut salts) = (0, std::collections::BTreeSet::new());
    for version in 2..45 {
        writer.apply(&[bulk(version, 1500)]).unwrap();
        let header = std::fs::read(&wal).unwrap();
        longest = longest.max(header.len());
        // They change when the WAL starts over, in place or cut.
        salts.insert(header[16..24].to_vec());
        if version % 20 == 0 {
            writer.checkpoint().unwrap();
            assert_eq!(std::fs::metadata(&wal).unwrap().len(), 0);
        }
    }
    restorable(&running, writer.version()).await;
    assert!(salts.len() >= 6, "the WAL started over {} times; it grew to {longest} bytes", salts.len());
    assert!(longest < 100 << 20, "the WAL grew to {longest} bytes");
    // One chain all along: cutting the WAL does not cost a snapshot.
    assert_eq!(running.progress.borrow().failure, None);
    running.stop().await.unwrap();
    let listing = backup::list(&target).await.unwrap();
    assert_eq!(listing.files.iter().filter(|f| f.name.level == backup::SNAPSHOT).count(), 1, "{listing}");
    let restored = folder.path().join("restored.db");
    restore(&target, &restored).await.unwrap();
    assert!(contents(&restored) == contents(&path));
}

/// While the store is away the WAL and a bounded part of memory keep what it has not taken.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_under_load_loses_nothing() {
    let (s3, options) = bucket("p").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("replica.db");
    let mut writer = Source::new(1).create(&path);
    let (target, running) = start(&options, &mut writer, 1).await;
    restorable(&running, Version::new(1)).await;
    s3.set_faults(Faults { errors: 1.0, ..Faults::default() });
    for version in 2..60 {
        writer.apply(&[bulk(version, 1500)]).unwrap();
    }
    let failed = |p: &backup::Progress| p.failure.is_some();
    tokio::time::timeout(Duration::from_secs(60), running.progress.clone().wait_for(failed)).await.unwrap().unwrap();
    s3.set_faults(Faults::default());
    restorable(&running, writer.version()).await;
    running.stop().await.unwrap();
    let listing = backup::list(&target).await.unwrap();
    assert_eq!(listing.files.iter().filter(|f| f.name.level == backup::SNAPSHOT).count(), 1, "{listing}");
    let restored = folder.path().join("restored.db");
    restore(&target, &restored).await.unwrap();
    assert!(contents(&restored) == contents(&path));
}

/// A limit on file sizes stands for the end of the disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let options = directory(&folder.path().join("backup"));
    let path = folder.path().join("replica.db");
    let mut writer = Source::new(1).create(&path);
    writer.apply(&[bulk(2, 3000)]).unwrap();
    let (_, running) = start(&options, &mut writer, 1).await;
    restorable(&running, Version::new(2)).await;
    running.stop().await.unwrap();
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 4000; exec \"$0\" pressure::child_full --exact --ignored --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env("BACKUP_FOLDER", folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by a_full_disk_is_named_and_nothing_is_left in a process of its own"]
async fn child_full() {
    let folder = std::env::var_os("BACKUP_FOLDER").unwrap();
    let folder = Path::new(&folder);
    let target = backup::Target::open(&directory(&folder.join("backup"))).await.unwrap();
    let error = restore(&target, &folder.join("restored.db")).await.unwrap_err();
    assert!(matches!(error, backup::Error::DiskFull { needed, .. } if needed > 8 << 20), "{error}");
    assert!(error.to_string().contains("no room to write"), "{error}");
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("restor")), "{left:?}");
}
