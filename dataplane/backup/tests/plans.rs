//! Decisions about files, against what they must guarantee.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use backup::plan::{File, compaction, expired, restore};
use backup::{Name, SNAPSHOT, TOP, Txid};
use ivm::generators::Rng;

fn file(level: u8, min: u64, max: u64, age_s: u64) -> File {
    let name = Name { level, min: Txid::new(min), max: Txid::new(max) };
    File { name, size: 1000, modified: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age_s) }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn names(files: &[File]) -> Vec<(u8, u64, u64)> {
    files.iter().map(|f| (f.name.level, f.name.min.as_u64(), f.name.max.as_u64())).collect()
}

#[test]
fn names_are_read_as_they_are_written() {
    let name = Name { level: 2, min: Txid::new(0x0100_0000_0002), max: Txid::new(0x0100_0000_00ff) };
    assert_eq!(name.key(), "0002/0000010000000002-00000100000000ff.ltx");
    assert_eq!(Name::parse(&name.key()), Some(name));
    for key in [
        "",
        "0002",
        "2/0000010000000002-00000100000000ff.ltx",
        "0002/0000010000000002-00000100000000FF.ltx",
        "0002/0000010000000002-00000100000000ff.ltx.tmp",
        "0002/00000100000000ff-0000010000000002.ltx",
        "0002/0000000000000000-0000010000000002.ltx",
        "0009/0000000000000002-0000010000000002.ltx",
        "0002/x/0000010000000002-00000100000000ff.ltx",
        "0002/+000010000000002-00000100000000ff.ltx",
        "ffff/0000010000000002-00000100000000ff.ltx",
    ] {
        assert_eq!(Name::parse(key), None, "{key}");
    }
}

#[test]
fn the_longest_way_is_taken() {
    let files = [
        file(9, 1, 5, 0),
        file(9, 1, 10, 0),
        file(0, 11, 11, 0),
        file(1, 8, 14, 0),
        file(0, 15, 15, 0),
        // A gap, then what a later owner sent before its snapshot.
        file(0, 17, 17, 0),
    ];
    assert_eq!(names(&restore(&files, Txid::ZERO, &HashSet::new())), [(9, 1, 10), (1, 8, 14), (0, 15, 15)]);
    let bad = HashSet::from([files[1].name]);
    assert_eq!(names(&restore(&files, Txid::ZERO, &bad)), [(9, 1, 5)]);
    let bad = HashSet::from([files[3].name]);
    assert_eq!(names(&restore(&files, Txid::ZERO, &bad)), [(9, 1, 10), (0, 11, 11)]);
    assert_eq!(names(&restore(&files, Txid::new(14), &HashSet::new())), [(0, 15, 15)]);
    assert!(restore(&files[2..], Txid::ZERO, &HashSet::new()).is_empty());
}

#[test]
fn only_neighbours_of_this_owner_are_merged() {
    let files = [file(0, 3, 3, 0), file(0, 4, 4, 0), file(0, 5, 5, 0), file(0, 7, 7, 0), file(1, 1, 2, 0)];
    assert_eq!(names(&compaction(&files, 1, Txid::new(1))), [(0, 3, 3), (0, 4, 4), (0, 5, 5)]);
    assert_eq!(names(&compaction(&files, 1, Txid::new(5))), [(0, 5, 5)]);
    assert_eq!(names(&compaction(&files, 1, Txid::new(6))), [(0, 7, 7)]);
    let merged = [&files[..], &[file(1, 3, 5, 0)]].concat();
    assert_eq!(names(&compaction(&merged, 1, Txid::new(1))), [(0, 7, 7)]);
    assert_eq!(names(&compaction(&merged, 2, Txid::new(1))), [(1, 1, 2), (1, 3, 5)]);
}

/// A long random life on paper: the newest point is always restorable, so is every kept snapshot, and little is kept.
#[test]
fn what_is_promised_stays_restorable() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let (mut files, mut clock, mut epoch) = (Vec::new(), 0_u64, 1_u64);
        let mut next = Txid::first_of(epoch);
        let mut from = next;
        let mut newest = None;
        let retention = Duration::from_secs(3000);
        let covered = [Duration::from_secs(100), Duration::from_secs(300), Duration::from_secs(900)];
        let at = |clock: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(clock);
        for _ in 0..2500 {
            clock += rng.below(10) as u64;
            let put = |files: &mut Vec<File>, name| files.push(File { name, size: 1, modified: at(clock) });
            match rng.below(40) {
                // Another owner, or a broken chain.
                0 => {
                    if rng.one_in(2) {
                        epoch += 1;
                        next = Txid::first_of(epoch);
                    }
                    from = next;
                    put(&mut files, Name::snapshot(next));
                    newest = Some(Name::snapshot(next));
                    next = next.next();
                }
                1 if newest.is_some() => {
                    let name = Name::snapshot(Txid::new(next.as_u64() - 1));
                    if newest != Some(name) {
                        put(&mut files, name);
                        newest = Some(name);
                    }
                }
                n @ 2..8 => {
                    let level = (n as u8 - 2) % TOP + 1;
                    let run = compaction(&files, level, from);
                    if let (Some(first), Some(last)) = (run.first(), run.last()) {
                        put(&mut files, Name { level, min: first.name.min, max: last.name.max });
                    }
                }
                8 | 9 => {
                    let Some(newest) = newest else { continue };
                    let gone = expired(&files, newest, at(clock), retention, &covered);
                    files.retain(|f| !gone.contains(&f.name));
                }
                _ if newest.is_some() => {
                    put(&mut files, Name { level: 0, min: next, max: next });
                    next = next.next();
                }
                _ => {}
            }
            if newest.is_none() {
                continue;
            }
            let plan = restore(&files, Txid::ZERO, &HashSet::new());
            assert_eq!(plan.last().unwrap().name.max, Txid::new(next.as_u64() - 1), "seed {seed}");
            // From every snapshot of this chain the end can be reached as well.
            for snapshot in files.iter().filter(|f| f.name.level == SNAPSHOT && f.name.max >= from) {
                let rest = restore(&files, snapshot.name.max, &HashSet::new());
                let end = rest.last().map_or(snapshot.name.max, |f| f.name.max);
                assert_eq!(end, Txid::new(next.as_u64() - 1), "seed {seed}");
            }
        }
        assert!(files.len() < 450, "seed {seed}: {} files are kept", files.len());
    }
}

#[test]
fn the_newest_chain_is_never_deleted() {
    let covered = [Duration::ZERO; 3];
    let old = [file(9, 1, 10, 900), file(0, 11, 11, 800), file(0, 12, 12, 700)];
    assert!(expired(&old, old[0].name, now(), Duration::ZERO, &covered).is_empty());
    // Old, but nothing newer is complete.
    let foreign = [&old[..], &[file(0, 99, 99, 0)]].concat();
    assert!(expired(&foreign, old[0].name, now(), Duration::ZERO, &covered).is_empty());
    let both = [&old[..], &[file(9, 1, 12, 0)]].concat();
    let gone = expired(&both, both[3].name, now(), Duration::ZERO, &covered);
    assert_eq!(gone.len(), 3);
    assert!(expired(&both, both[3].name, now(), Duration::from_secs(1000), &covered).is_empty());
}
