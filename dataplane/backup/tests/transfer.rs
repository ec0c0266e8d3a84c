//! The stream form: a replica as bytes, while its writer goes on.

use std::io::Cursor;

use backup::{Error, restore_bytes, snapshot_bytes};
use futures_util::StreamExt as _;
use rows::Version;

use crate::fixture::{Source, bulk, contents, identity, leftovers, open};

async fn bytes(mut stream: backup::SnapshotStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        all.extend_from_slice(&chunk.unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_travels_while_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("replica.db");
    let mut source = Source::new(1);
    let mut writer = source.create(&path);
    for _ in 0..30 {
        writer.apply(&[source.transaction(60)]).unwrap();
    }
    source.version += 1;
    writer.apply(&[bulk(source.version, 300)]).unwrap();
    let before = contents(&path);
    let stream = snapshot_bytes(&path).await.unwrap();
    assert_eq!(stream.version, writer.version());
    assert!(stream.database_bytes > 1_000_000);
    // The view was taken when the stream was.
    for _ in 0..10 {
        writer.apply(&[source.transaction(60)]).unwrap();
        writer.checkpoint().unwrap();
    }
    let sent = bytes(stream).await;
    let restored = folder.path().join("restored.db");
    let result =
        restore_bytes(Cursor::new(&sent), &restored, &identity(), Some(Version::new(1)), |_| ()).await.unwrap();
    assert_eq!((result.version, result.bytes), (before.0, sent.len() as u64));
    assert_eq!(contents(&restored), before);
    open(&restored).apply(&[bulk(9_999, 5)]).unwrap();

    // A stream that breaks off, is damaged, or is of another copy leaves the old file as it is.
    let kept = contents(&restored);
    let cut = &sent[..sent.len() - 1];
    let error = restore_bytes(Cursor::new(cut), &restored, &identity(), None, |_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    let mut flipped = sent.clone();
    flipped[sent.len() / 2] ^= 4;
    let error = restore_bytes(Cursor::new(&flipped), &restored, &identity(), None, |_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    let wanted = Some(Version::new(77));
    let error = restore_bytes(Cursor::new(&sent), &restored, &identity(), wanted, |_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }), "{error}");
    let error = restore_bytes(Cursor::new(b""), &restored, &identity(), None, |_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert_eq!(contents(&restored), kept);
    drop(writer);
    assert_eq!(leftovers(folder.path(), &["replica.db", "restored.db"]), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_nobody_reads_lets_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("replica.db");
    let mut writer = Source::new(2).create(&path);
    for version in 2..12 {
        writer.apply(&[bulk(version, 1000)]).unwrap();
    }
    let stream = snapshot_bytes(&path).await.unwrap();
    writer.apply(&[bulk(12, 10)]).unwrap();
    drop(stream);
    let wal = folder.path().join("replica.db-wal");
    let mut tries = 0;
    while std::fs::metadata(&wal).unwrap().len() > 0 {
        tries += 1;
        assert!(tries < 100, "the WAL cannot be cut");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        writer.checkpoint().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_replica_cannot_be_streamed() {
    let folder = tempfile::tempdir().unwrap();
    let error = snapshot_bytes(&folder.path().join("nothing.db")).await.unwrap_err();
    assert!(matches!(error, Error::Local { .. }), "{error}");
}
