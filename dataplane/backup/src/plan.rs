//! Decisions about sets of files, without doing anything: what to restore, what to merge, what to delete.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use crate::name::{Name, SNAPSHOT, TOP, Txid};

/// A file as the store lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub name: Name,
    pub size: u64,
    pub modified: SystemTime,
}

/// The files to apply, in order, to something at transaction `at` (zero: to nothing, so the first is a snapshot), leaving out
/// `bad`: the newest snapshot, then always the file that starts no later than what follows, and reaches farthest.
#[must_use]
pub fn restore(files: &[File], at: Txid, bad: &HashSet<Name>) -> Vec<File> {
    let mut plan: Vec<File> = Vec::new();
    let mut at = at;
    if at == Txid::ZERO {
        let snapshots = files.iter().filter(|f| f.name.level == SNAPSHOT && !bad.contains(&f.name));
        let Some(newest) = snapshots.max_by_key(|f| f.name.max) else { return plan };
        at = newest.name.max;
        plan.push(newest.clone());
    }
    loop {
        let next = files
            .iter()
            .filter(|f| f.name.level < SNAPSHOT && !bad.contains(&f.name))
            .filter(|f| f.name.min <= at.next() && f.name.max > at)
            .max_by_key(|f| (f.name.max, std::cmp::Reverse(f.name.min), f.name.level));
        let Some(next) = next else { return plan };
        at = next.name.max;
        plan.push(next.clone());
    }
}

/// At most so many files are merged at once; bounds memory.
pub const MERGED_MAX: usize = 32;

/// The files of the level below `level` that the next file of `level` is made of. Only files from `from` on count: what a former
/// owner left is let alone. Transactions that no file holds separate runs, which are never merged.
#[must_use]
pub fn compaction(files: &[File], level: u8, from: Txid) -> Vec<File> {
    debug_assert!((1..=TOP).contains(&level));
    let merged = files.iter().filter(|f| f.name.level == level).map(|f| f.name.max).max().unwrap_or_default();
    let mut sources: Vec<File> = files
        .iter()
        .filter(|f| f.name.level == level - 1 && f.name.min >= from && f.name.min > merged)
        .cloned()
        .collect();
    sources.sort_by_key(|f| f.name);
    let mut run: Vec<File> = Vec::new();
    for file in sources {
        if run.len() == MERGED_MAX || run.last().is_some_and(|last| file.name.min != last.name.max.next()) {
            break;
        }
        run.push(file);
    }
    run
}

/// A process that starts again and again writes a snapshot each time; more than so many are not kept however young they are.
const SNAPSHOTS_MAX: usize = 6;

/// What may be deleted while the chain that `newest` starts is complete: snapshots older than `retention` but never `newest`,
/// increments that no kept snapshot needs, and increments that a longer file holds as well for so long. Files of later owners
/// are not ours.
#[must_use]
pub fn expired(
    files: &[File],
    newest: Name,
    now: SystemTime,
    retention: Duration,
    covered: &[Duration; TOP as usize],
) -> Vec<Name> {
    let age = |f: &File| now.duration_since(f.modified).unwrap_or_default();
    let mut snapshots: Vec<&File> =
        files.iter().filter(|f| f.name.level == SNAPSHOT && f.name.max <= newest.max).collect();
    snapshots.sort_by_key(|f| std::cmp::Reverse(f.name.max));
    let kept: Vec<Name> = (snapshots.iter().enumerate())
        .filter(|(i, f)| f.name == newest || (*i < SNAPSHOTS_MAX && age(f) < retention))
        .map(|(_, f)| f.name)
        .collect();
    let oldest = kept.iter().map(|n| n.max).min().unwrap_or_default().min(newest.max);
    let is_covered = |f: &File| {
        let longer =
            |g: &&File| g.name.level == f.name.level + 1 && g.name.min <= f.name.min && g.name.max >= f.name.max;
        let holds = covered.get(usize::from(f.name.level));
        holds.is_some_and(|&time| age(f) >= time) && files.iter().any(|g| longer(&g))
    };
    files
        .iter()
        .filter(|f| match f.name.level {
            SNAPSHOT => f.name.max < newest.max && !kept.contains(&f.name),
            _ => f.name.max <= oldest || (f.name.max.epoch() <= newest.max.epoch() && is_covered(f)),
        })
        .map(|f| f.name)
        .collect()
}
