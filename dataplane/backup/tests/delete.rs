//! Deleting a backup from a real S3 server: all of it, nothing beside it, and not while somebody writes.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use backup::{Error, Options, delete};
use testkit::s3::{Faults, S3};

use crate::fixture::{BUCKET, bucket};

fn put(s3: &S3, key: &str) {
    let path = s3.object(BUCKET, key);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, key).unwrap();
}

/// The keys of all objects, without the server's own notes.
fn keys(s3: &S3) -> Vec<String> {
    let root = s3.root().join(BUCKET);
    let (mut folders, mut keys) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { folders.push(path) } else { keys.push(path) }
        }
    }
    let mut keys: Vec<String> =
        keys.iter().map(|path: &PathBuf| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned()).collect();
    keys.sort();
    keys
}

fn at(options: &Options, path: &str) -> Options {
    Options { url: format!("s3://{BUCKET}/{path}"), ..options.clone() }
}

fn soon() -> SystemTime {
    SystemTime::now() + Duration::from_secs(60)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_below_the_prefix_goes_and_nothing_beside_it() {
    let (s3, options) = bucket("unused").await;
    // More than two pages, files of a backup and others.
    let mine: Vec<String> = (0..2300).map(|n| format!("app/v1/ltx/{}/{n:08}", n % 3)).collect();
    let others = ["app/v1", "app/v10/ltx/0/1", "app/v1.old/x", "app/v2/y", "other/v1/z"];
    for key in mine.iter().map(String::as_str).chain(others.iter().copied().filter(|key| *key != "app/v1")) {
        put(&s3, key);
    }
    assert_eq!(delete(&at(&options, "app/v1/"), soon()).await.unwrap(), 2300);
    assert_eq!(keys(&s3), ["app/v1.old/x", "app/v10/ltx/0/1", "app/v2/y", "other/v1/z"]);
    assert_eq!(delete(&at(&options, "app/v1/"), soon()).await.unwrap(), 0, "a second time");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_while_somebody_writes() {
    let (s3, options) = bucket("unused").await;
    let age = |key: &str, seconds: u64| {
        put(&s3, key);
        let file = fs::File::options().write(true).open(s3.object(BUCKET, key)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    };
    for n in 0..1200 {
        age(&format!("v1/{n:05}"), 3600);
    }
    // On the second page only.
    age("v1/late", 60);
    let limit = SystemTime::now() - Duration::from_secs(600);
    let error = delete(&at(&options, "v1/"), limit).await.unwrap_err();
    assert!(matches!(&error, Error::InUse { key, .. } if key == "v1/late"), "{error}");
    assert!(error.to_string().contains("v1/late"), "{error}");
    assert_eq!(keys(&s3).len(), 1201);
    age("v1/late", 700);
    assert_eq!(delete(&at(&options, "v1/"), limit).await.unwrap(), 1201);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_interrupted_goes_on() {
    let (s3, options) = bucket("unused").await;
    for n in 0..1500 {
        put(&s3, &format!("v1/{n:05}"));
    }
    s3.limit_writes(Some(1));
    delete(&at(&options, "v1/"), soon()).await.unwrap_err();
    assert_eq!(keys(&s3).len(), 500, "the first thousand is gone");
    s3.limit_writes(None);
    assert_eq!(delete(&at(&options, "v1/"), soon()).await.unwrap(), 500);
    assert!(keys(&s3).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_that_is_none_and_a_store_that_refuses_are_named() {
    let (s3, options) = bucket("unused").await;
    put(&s3, "v1/x");
    for (url, words) in [
        (format!("s3://{BUCKET}/v1"), "end with a slash"),
        (format!("s3://{BUCKET}/"), "a whole bucket"),
        (format!("s3://{BUCKET}//"), "a whole bucket"),
        (format!("s3://{BUCKET}"), "slash"),
        ("file:///tmp/v1/".to_owned(), "bucket"),
        ("v1/".to_owned(), "not a URL"),
        ("s3://nowhere/v1/".to_owned(), "does not exist"),
        (format!("s3://user:hunter2@{BUCKET}/v1/"), "only s3://bucket/path"),
    ] {
        let error = delete(&Options { url: url.clone(), ..options.clone() }, soon()).await.unwrap_err();
        assert!(error.needs_a_person() && error.to_string().contains(words), "{url}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    s3.set_faults(Faults { is_denied: true, ..Faults::default() });
    let error = delete(&at(&options, "v1/"), soon()).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    s3.set_faults(Faults { is_denied: true, writes_only: true, ..Faults::default() });
    let error = delete(&at(&options, "v1/"), soon()).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    assert_eq!(keys(&s3), ["v1/x"]);
}
