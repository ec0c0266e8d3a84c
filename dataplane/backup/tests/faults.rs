//! Stores that fail, and backups that are damaged, foreign or somebody else's.

use std::fs;
use std::path::Path;
use std::time::Duration;

use backup::{Error, Target};
use replica::Identity;
use rows::Version;
use testkit::s3::Faults;

use crate::fixture::{
    BUCKET, Source, bucket, contents, directory, identity, leftovers, lineage, metrics, restorable, restore, start,
};

/// A backup of some length in a directory; returns its files by name.
async fn written(root: &Path, options: &backup::Options, seed: u64) -> (Target, Vec<Version>) {
    let path = root.join("replica.db");
    let mut source = Source::new(seed);
    let mut writer = source.create(&path);
    let (target, running) = start(options, &mut writer, 1).await;
    let mut versions = Vec::new();
    for _ in 0..12 {
        writer.apply(&[source.transaction(20)]).unwrap();
        restorable(&running, writer.version()).await;
        versions.push(writer.version());
    }
    running.stop().await.unwrap();
    (target, versions)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_now_and_then_delays_the_backup_only() {
    let (s3, options) = bucket("p").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("replica.db");
    let mut source = Source::new(7);
    let mut writer = source.create(&path);
    let (target, running) = start(&options, &mut writer, 1).await;
    let faults = [
        Faults { errors: 0.3, ..Faults::default() },
        Faults { cuts: 0.2, ..Faults::default() },
        Faults { delay: Duration::from_millis(150), ..Faults::default() },
        Faults { is_denied: true, ..Faults::default() },
    ];
    for fault in faults {
        s3.set_faults(fault);
        for _ in 0..10 {
            writer.apply(&[source.transaction(20)]).unwrap();
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
    let is_denied =
        |p: &backup::Progress| p.failure.as_ref().is_some_and(|f| f.is_denied && f.message.contains("denies"));
    running.progress.clone().wait_for(is_denied).await.unwrap();
    s3.set_faults(Faults::default());
    restorable(&running, writer.version()).await;
    s3.set_faults(Faults { errors: 0.2, ..Faults::default() });
    let restored = folder.path().join("restored.db");
    restore(&target, &restored).await.unwrap();
    assert_eq!(contents(&restored), contents(&path));
    s3.set_faults(Faults::default());
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_used_is_told_apart() {
    let (s3, options) = bucket("p").await;
    let with = |change: &dyn Fn(&mut backup::Options)| {
        let mut options = options.clone();
        change(&mut options);
        async move { Target::open(&options).await.unwrap_err() }
    };
    let refused = |error: Error, text: &str| {
        assert!(error.needs_a_person() && error.to_string().contains(text), "{error}");
        assert!(!error.to_string().contains("testkit-secret"), "{error}");
    };
    refused(with(&|o| o.url = "s3://nowhere/p".into()).await, "bucket 'nowhere' does not exist");
    refused(with(&|o| o.credentials.as_mut().unwrap().secret_access_key = "wrong".into()).await, "denies access");
    refused(with(&|o| o.credentials.as_mut().unwrap().access_key_id = "nobody".into()).await, "denies access");
    refused(with(&|o| o.url = "gs://bucket/p".into()).await, "'gs' is not supported");
    refused(with(&|o| o.url = "not a url".into()).await, "not a URL");
    refused(with(&|o| o.url = "s3://key:testkit-secret@bucket/p".into()).await, "must be only s3://bucket/path");
    let port = testkit::free_ports(1).unwrap();
    let error = with(&|o| o.endpoint = Some(format!("http://127.0.0.1:{port}"))).await;
    assert!(matches!(error, Error::Unavailable { .. }) && error.to_string().contains("cannot be reached"), "{error}");
    s3.set_faults(Faults { is_denied: true, ..Faults::default() });
    refused(with(&|_| ()).await, "denies access (AccessDenied)");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_backup_says_so() {
    let (_s3, options) = bucket("p").await;
    let folder = tempfile::tempdir().unwrap();
    let target = Target::open(&options).await.unwrap();
    let error = restore(&target, &folder.path().join("r.db")).await.unwrap_err();
    assert!(matches!(&error, Error::Nothing { .. }) && error.to_string().contains("is empty"), "{error}");
    assert_eq!(leftovers(folder.path(), &[]), Vec::<std::path::PathBuf>::new());
    assert!(!backup::verify(&target).await.unwrap().is_good());
    assert!(backup::list(&target).await.unwrap().to_string().contains("nothing can be restored"));
}

/// A file that is damaged, cut short or gone: restoring ends at the point before it, or goes around it.
#[tokio::test(flavor = "multi_thread")]
async fn damage_leads_to_the_point_before_it() {
    for (how, seed) in ["flip", "cut", "delete", "empty"].into_iter().zip(1..) {
        let (s3, mut options) = bucket("p").await;
        // No mergers: each version has a file.
        options.pace.compaction = [Duration::from_secs(3600); 3];
        let folder = tempfile::tempdir().unwrap();
        let (target, versions) = written(folder.path(), &options, seed).await;
        let listing = backup::list(&target).await.unwrap();
        let increments: Vec<_> = listing.files.iter().filter(|f| f.name.level == 0).collect();
        let bad = increments[increments.len() / 2];
        let object = s3.object(BUCKET, &format!("p/{}", bad.name.key()));
        let mut bytes = fs::read(&object).unwrap();
        match how {
            "flip" => {
                let at = bytes.len() / 2;
                bytes[at] ^= 0x10;
                fs::write(&object, &bytes).unwrap();
            }
            "cut" => fs::write(&object, &bytes[..bytes.len() - 20]).unwrap(),
            "delete" => fs::remove_file(&object).unwrap(),
            _ => fs::write(&object, b"").unwrap(),
        }
        let report = backup::verify(&target).await.unwrap();
        let restored = folder.path().join("restored.db");
        let result = restore(&target, &restored).await.unwrap();
        let (version, _) = contents(&restored);
        assert_eq!(version, result.version);
        assert!(versions.contains(&version) || version == Version::new(1), "{how}");
        assert!(version < *versions.last().unwrap(), "{how}: {version}");
        assert_eq!(result.txid.next(), bad.name.min, "{how}");
        assert_eq!(report.good_until, result.txid, "{how}\n{report}");
        if how != "delete" {
            assert!(result.is_previous_point && !report.is_good(), "{how}\n{report}");
            assert!(report.to_string().contains("BAD"), "{report}");
        }
    }
}

/// The same, where mergers and an older snapshot hold the same: nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn damage_is_gone_around_where_possible() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = directory(&folder.path().join("backup"));
    options.snapshot_interval = Duration::from_millis(150);
    // Nothing is deleted.
    options.pace.covered = [Duration::from_secs(3600); 3];
    let (target, versions) = written(folder.path(), &options, 3).await;
    let last = *versions.last().unwrap();
    let listing = backup::list(&target).await.unwrap();
    let mut around = 0;
    for name in listing.plan.iter().rev() {
        let key = name.key();
        let (_, file) = key.split_once('/').unwrap();
        let object = folder.path().join(format!("backup/ltx/{}/{file}", name.level));
        let whole = fs::read(&object).unwrap();
        let mut bytes = whole.clone();
        let at = bytes.len() * 2 / 3;
        bytes[at] ^= 1;
        fs::write(&object, &bytes).unwrap();
        let restored = folder.path().join("restored.db");
        let result = restore(&target, &restored).await.unwrap();
        let (version, tables) = contents(&restored);
        assert_eq!(version, result.version);
        if version == last {
            around += 1;
            assert!(tables == contents(&folder.path().join("replica.db")).1, "{name}");
        }
        fs::write(&object, &whole).unwrap();
    }
    assert!(around > 0, "{listing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_backup_without_a_usable_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let options = directory(&folder.path().join("backup"));
    let (target, _) = written(folder.path(), &options, 4).await;
    for file in fs::read_dir(folder.path().join("backup/ltx/9")).unwrap() {
        fs::write(file.unwrap().path(), b"no snapshot").unwrap();
    }
    let error = restore(&target, &folder.path().join("restored.db")).await.unwrap_err();
    assert!(matches!(error, Error::Nothing { .. }) && error.to_string().contains("none of its snapshots"), "{error}");
    assert_eq!(leftovers(folder.path(), &["backup", "replica.db"]), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_backup_is_refused() {
    for is_bucket in [true, false] {
        let (_s3, bucket_options) = bucket("p").await;
        let folder = tempfile::tempdir().unwrap();
        let options = if is_bucket { bucket_options } else { directory(&folder.path().join("backup")) };
        let (target, _) = written(folder.path(), &options, 5).await;
        let restored = folder.path().join("restored.db");
        let other = Identity { app: "other".into(), shard: 0 };
        let error = backup::restore(&target, &restored, &other, None, |_, _| ()).await.unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }) && error.to_string().contains("app 'zero'"), "{error}");
        let error = backup::restore(&target, &restored, &identity(), Some(Version::new(99)), |_, _| ()).await;
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
        // A file of somebody else is never replaced.
        fs::write(&restored, b"precious").unwrap();
        let error = restore(&target, &restored).await.unwrap_err();
        assert!(matches!(error, Error::Replica(replica::Error::Refused { .. })), "{error}");
        assert_eq!(fs::read(&restored).unwrap(), b"precious");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let options = directory(&folder.path().join("backup"));
    let path = folder.path().join("replica.db");
    let mut writer = Source::new(6).create(&path);
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 77).unwrap();
    let (target, running) = start(&options, &mut writer, 1).await;
    restorable(&running, writer.version()).await;
    running.stop().await.unwrap();
    let error = restore(&target, &folder.path().join("restored.db")).await.unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }) && error.to_string().contains("format 77"), "{error}");
}

/// Two owners write to one path for a while. The later one wins whatever the order of their writes, and the former notices.
#[tokio::test(flavor = "multi_thread")]
async fn the_later_owner_wins() {
    let (_s3, options) = bucket("p").await;
    let folder = tempfile::tempdir().unwrap();
    let (former_path, path) = (folder.path().join("former.db"), folder.path().join("replica.db"));
    let mut former_source = Source::new(8);
    let mut former = former_source.create(&former_path);
    let mut source = Source::new(9);
    let mut writer = source.create(&path);
    let mut former_options = options.clone();
    former_options.pace.sweep = Duration::from_millis(1500);
    let (target, mut former_running) = start(&former_options, &mut former, 4).await;
    restorable(&former_running, former.version()).await;
    let (_, running) = start(&options, &mut writer, 5).await;
    restorable(&running, writer.version()).await;
    for _ in 0..30 {
        former.apply(&[former_source.transaction(20)]).unwrap();
        writer.apply(&[source.transaction(20)]).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    restorable(&running, writer.version()).await;
    let restored = folder.path().join("restored.db");
    restore(&target, &restored).await.unwrap();
    assert_eq!(contents(&restored), contents(&path));
    let ended = tokio::time::timeout(Duration::from_secs(20), former_running.ended()).await.unwrap();
    assert!(matches!(ended, Error::Superseded { .. }), "{ended}");
    running.stop().await.unwrap();
    // Nor can it come back.
    let running = backup::start(target, &mut former, backup::Ownership::fixed(4), lineage(), metrics()).unwrap();
    let mut running = running;
    let ended = tokio::time::timeout(Duration::from_secs(20), running.ended()).await.unwrap();
    assert!(matches!(ended, Error::Superseded { .. }), "{ended}");
}

/// Somebody empties the bucket beneath a running backup: a new snapshot mends it.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_chain_begins_again() {
    let (s3, options) = bucket("p").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("replica.db");
    let mut source = Source::new(10);
    let mut writer = source.create(&path);
    let (target, running) = start(&options, &mut writer, 1).await;
    writer.apply(&[source.transaction(20)]).unwrap();
    restorable(&running, writer.version()).await;
    let uploaded = running.progress.borrow().uploaded_bytes;
    fs::remove_dir_all(s3.object(BUCKET, "p")).unwrap();
    let again = |p: &backup::Progress| p.is_complete && p.uploaded_bytes > uploaded;
    tokio::time::timeout(Duration::from_secs(20), running.progress.clone().wait_for(again)).await.unwrap().unwrap();
    writer.apply(&[source.transaction(20)]).unwrap();
    restorable(&running, writer.version()).await;
    let restored = folder.path().join("restored.db");
    let mut result = restore(&target, &restored).await;
    while matches!(&result, Err(Error::Nothing { .. })) {
        // It was emptied again by nobody: the new snapshot may just be on its way.
        tokio::time::sleep(Duration::from_millis(50)).await;
        result = restore(&target, &restored).await;
    }
    assert_eq!(contents(&restored), contents(&path));
    running.stop().await.unwrap();
}

/// The numbers of owners began again, and the store holds what was written under higher ones: the owner continues above them.
#[tokio::test(flavor = "multi_thread")]
async fn an_owner_whose_numbers_began_again_is_no_former_one() {
    let (_s3, options) = bucket("p").await;
    let folder = tempfile::tempdir().unwrap();
    let (former_path, path) = (folder.path().join("former.db"), folder.path().join("replica.db"));
    let mut former = Source::new(11).create(&former_path);
    let (target, former_running) = start(&options, &mut former, 7).await;
    restorable(&former_running, former.version()).await;
    former_running.stop().await.unwrap();
    let mut source = Source::new(12);
    let mut writer = source.create(&path);
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let told = std::sync::Arc::clone(&asked);
    let claim: backup::Claim = std::sync::Arc::new(move |above| {
        told.store(above, std::sync::atomic::Ordering::Release);
        Box::pin(std::future::ready(Some(above + 1)))
    });
    let ownership = backup::Ownership { epoch: 1, claim };
    let running = backup::start(target.clone(), &mut writer, ownership, lineage(), metrics()).unwrap();
    for _ in 0..10 {
        writer.apply(&[source.transaction(20)]).unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    restorable(&running, writer.version()).await;
    assert_eq!(asked.load(std::sync::atomic::Ordering::Acquire), 7);
    let restored = folder.path().join("restored.db");
    restore(&target, &restored).await.unwrap();
    assert_eq!(contents(&restored), contents(&path));
    running.stop().await.unwrap();
}
