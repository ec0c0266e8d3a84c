//! What was handed to the CVR database and is not stored: which versions, since when, and how much memory it takes, here and in
//! the histories that must not be forgotten before.
//!
//! Beyond a limit the views take no step until something was stored: what changes meanwhile becomes one difference, and replication
//! waits when much of it has gathered. So a database that is away, or slower than what changes, costs no more memory, and nothing
//! is lost or told out of order.

use std::collections::VecDeque;
use std::time::Instant;

use rows::Version;
use tokio::sync::watch;

pub struct Unflushed {
    waiting: VecDeque<Flushing>,
    bytes: usize,
    since: watch::Sender<Option<Instant>>,
}

/// A flush that is not durable yet.
struct Flushing {
    number: u64,
    /// That it carried.
    version: Version,
    since: Instant,
    bytes: usize,
}

impl Unflushed {
    /// `since` is told since when the oldest waits.
    pub fn new(since: watch::Sender<Option<Instant>>) -> Unflushed {
        Unflushed { waiting: VecDeque::new(), bytes: 0, since }
    }

    /// `bytes`: what is kept until it is stored.
    pub fn handed_over(&mut self, number: u64, version: Version, bytes: usize) {
        let since = Instant::now();
        if self.waiting.is_empty() {
            self.since.send_replace(Some(since));
        }
        self.bytes += bytes;
        self.waiting.push_back(Flushing { number, version, since, bytes });
    }

    pub fn stored(&mut self, up_to: u64) {
        while let Some(stored) = self.waiting.pop_front_if(|flushing| flushing.number <= up_to) {
            self.bytes -= stored.bytes;
        }
        self.since.send_replace(self.waiting.front().map(|flushing| flushing.since));
    }

    /// The version of the oldest.
    pub fn oldest(&self) -> Option<Version> {
        self.waiting.front().map(|flushing| flushing.version)
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_until_they_are_stored() {
        let (sender, since) = watch::channel(None);
        let mut unflushed = Unflushed::new(sender);
        for number in 1..=3 {
            unflushed.handed_over(number, Version::new(number * 10), number as usize);
        }
        let first = *since.borrow();
        assert!(first.is_some());
        assert_eq!((unflushed.bytes(), unflushed.oldest()), (6, Some(Version::new(10))));
        unflushed.stored(2);
        assert_eq!((unflushed.bytes(), unflushed.oldest()), (3, Some(Version::new(30))));
        assert!(*since.borrow() >= first);
        unflushed.stored(3);
        assert_eq!((unflushed.bytes(), unflushed.oldest(), *since.borrow()), (0, None, None));
    }
}
