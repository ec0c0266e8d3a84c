//! The straight path: a replica changes, the backup follows, and what is restored is what was there.

use crate::fixture::{Source, bucket, contents, directory, identity, leftovers, open, restorable, restore, start};
use rows::Version;

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_follows_the_writer() {
    let (_s3, options) = bucket("app/generation-1").await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("replica.db");
    let mut source = Source::new(1);
    let mut writer = source.create(&path);
    let (target, running) = start(&options, &mut writer, 3).await;
    for _ in 0..60 {
        let transaction = source.transaction(20);
        writer.apply(&[transaction]).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let version = writer.version();
    restorable(&running, version).await;
    let restored = directory.path().join("restored.db");
    let result = restore(&target, &restored).await.unwrap();
    assert_eq!((result.version, result.is_previous_point), (version, false));
    assert_eq!(contents(&restored), contents(&path));
    // What is still unsent at the end is sent then.
    writer.apply(&[source.transaction(20)]).unwrap();
    running.stop().await.unwrap();
    writer.checkpoint().unwrap();
    let result = restore(&target, &restored).await.unwrap();
    assert_eq!(result.version, writer.version());
    assert_eq!(contents(&restored), contents(&path));
    // It can be gone on with.
    let mut other = open(&restored);
    other.apply(&[source.transaction(20)]).unwrap();
    drop((writer, other));
    assert_eq!(leftovers(directory.path(), &["replica.db", "restored.db"]), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_follows_the_writer() {
    let directory_ = tempfile::tempdir().unwrap();
    let options = directory(&directory_.path().join("backup"));
    let path = directory_.path().join("replica.db");
    let mut source = Source::new(2);
    let mut writer = source.create(&path);
    let (target, running) = start(&options, &mut writer, 1).await;
    for _ in 0..200 {
        let many: Vec<_> = (0..3).map(|_| source.transaction(30)).collect();
        writer.apply(&many).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    running.stop().await.unwrap();
    let listing = backup::list(&target).await.unwrap();
    println!("{listing}");
    assert!(listing.files.iter().any(|f| f.name.level == 2), "{listing}");
    assert_eq!(listing.version, Some(Version::new(source.version)));
    let report = backup::verify(&target).await.unwrap();
    assert!(report.is_good(), "{report}");
    let restored = directory_.path().join("restored.db");
    let result = backup::restore(&target, &restored, &identity(), None, |_, _| ()).await.unwrap();
    assert_eq!(result.version, Version::new(source.version));
    assert_eq!(contents(&restored), contents(&path));
}
