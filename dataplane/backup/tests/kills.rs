//! Killed at any moment, between any two writes to the store: what is restored is the replica as it was at some version, no
//! older than what was called restorable; and the next owner goes on from there.

use std::collections::HashMap;
use std::time::Duration;

use backup::Error;
use ivm::generators::Rng;
use rows::Version;

use crate::fixture::{Source, bucket, contents, open, restore, start};

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_replica_is_one_that_was() {
    let seeds = [1, 2, testkit::seed("a_restored_replica_is_one_that_was")];
    for seed in seeds {
        life(seed).await;
    }
}

async fn life(seed: u64) {
    let mut rng = Rng::new(seed);
    let (s3, mut options) = bucket("app/one").await;
    options.snapshot_interval = Duration::from_millis(400);
    options.retention = Duration::from_millis(1500);
    let directory = tempfile::tempdir().unwrap();
    let mut path = directory.path().join("replica0.db");
    let mut source = Source::new(seed);
    let mut writer = source.create(&path);
    // What the file held at each version, the log of changes, and the newest version that was called restorable.
    let mut known = HashMap::new();
    let mut log = Vec::new();
    let mut promised = None;
    known.insert(writer.version(), contents(&path).1);
    for round in 1..=8 {
        s3.limit_writes(None);
        let (target, running) = start(&options, &mut writer, round).await;
        let limit = rng.below(60) as u32;
        for step in 0..rng.below(40) {
            if step == 10 {
                // From here on writes run out: the process dies between two of them.
                s3.limit_writes(Some(limit));
            }
            let transaction = source.transaction(15);
            log.push(transaction.clone());
            writer.apply(&[transaction]).unwrap();
            known.insert(writer.version(), contents(&path).1);
            if rng.one_in(6) {
                writer.checkpoint().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(rng.below(30) as u64)).await;
        }
        let progress = running.progress.borrow().clone();
        drop(running);
        promised = promised.max(progress.restorable_version);
        drop(writer);
        let restored = directory.path().join(format!("replica{round}.db"));
        match restore(&target, &restored).await {
            Ok(result) => {
                assert!(Some(result.version) >= promised, "{} was promised, not {}", show(promised), result.version);
                assert!(!result.is_previous_point);
                let (version, tables) = contents(&restored);
                assert_eq!(version, result.version);
                assert!(tables == known[&version], "seed {seed} round {round}: {version} is not what it was");
                path = restored;
            }
            Err(Error::Nothing { .. }) => assert_eq!(promised, None),
            Err(error) => panic!("seed {seed} round {round}: {error}"),
        }
        // Restored or not: the log of changes brings the next owner to the present.
        writer = open(&path);
        for transaction in &log {
            writer.apply(std::slice::from_ref(transaction)).unwrap();
        }
        let (version, tables) = contents(&path);
        assert!(tables == known[&version], "seed {seed} round {round}: catching up from the log differs");
    }
}

fn show(version: Option<Version>) -> String {
    version.map_or_else(|| "nothing".to_owned(), |v| v.to_string())
}
