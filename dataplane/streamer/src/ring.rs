//! The newest frames, for every subscriber that keeps up.
//!
//! Bounded in bytes: the oldest whole pages leave first, and whoever still needed them reads the log.

use std::collections::VecDeque;

use bytes::Bytes;
use changes::Page;
use rows::Version;

use crate::wire::page_frame;

/// A frame and what sending it means.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) frame: Bytes,
    pub(crate) last: Version,
    pub(crate) is_end: bool,
}

impl Entry {
    pub(crate) fn of(page: &Page) -> Entry {
        let frame = page_frame(page.first, page.last, page.part == 0, page.is_end, &page.body);
        Entry { frame, last: page.last, is_end: page.is_end }
    }
}

#[derive(Debug)]
pub(crate) struct Ring {
    entries: VecDeque<Entry>,
    /// Number of the first entry; numbers ascend for ever.
    base: u64,
    bytes: usize,
    bytes_max: usize,
    /// Everything after `start` up to `head` is here.
    start: Version,
    head: Version,
}

pub(crate) enum Taken {
    Entries(Vec<Entry>),
    /// There is nothing yet.
    Nothing,
    /// What comes next has left the ring.
    Fallen,
}

impl Ring {
    pub(crate) fn new(head: Version, bytes_max: usize) -> Ring {
        Ring { entries: VecDeque::new(), base: 0, bytes: 0, bytes_max, start: head, head }
    }

    pub(crate) fn push(&mut self, entries: impl IntoIterator<Item = Entry>) {
        for entry in entries {
            debug_assert!(entry.last >= self.head, "what is published ascends");
            if entry.is_end {
                self.head = entry.last;
            }
            self.bytes += entry.frame.len();
            self.entries.push_back(entry);
        }
        while self.bytes > self.bytes_max
            && let Some(first) = self.entries.pop_front()
        {
            self.base += 1;
            self.bytes -= first.frame.len();
            // Parts of a page leave together: who has half of it gets all of it from the log.
            if first.is_end {
                self.start = first.last;
            } else if self.bytes <= self.bytes_max {
                self.drop_rest_of_page();
            }
        }
    }

    fn drop_rest_of_page(&mut self) {
        while let Some(entry) = self.entries.pop_front() {
            self.base += 1;
            self.bytes -= entry.frame.len();
            if entry.is_end {
                self.start = entry.last;
                return;
            }
        }
    }

    /// The number of the first entry for a subscriber that has everything up to `at`, if nothing in between is missing here.
    pub(crate) fn join(&self, at: Version) -> Option<u64> {
        let skipped = self.entries.partition_point(|entry| entry.last <= at);
        (at >= self.start).then(|| self.base + skipped as u64)
    }

    /// Entries from number `next` on, which is advanced past them: at least one if there is one, then until `bytes_max`.
    pub(crate) fn take(&self, next: &mut u64, bytes_max: usize) -> Taken {
        let Some(skipped) = next.checked_sub(self.base) else { return Taken::Fallen };
        let mut bytes = 0;
        let wanted = |entry: &&Entry| {
            let is_wanted = bytes == 0 || bytes + entry.frame.len() <= bytes_max;
            bytes += entry.frame.len();
            is_wanted
        };
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        let taken: Vec<Entry> = self.entries.iter().skip(skipped).take_while(wanted).cloned().collect();
        *next += taken.len() as u64;
        if taken.is_empty() { Taken::Nothing } else { Taken::Entries(taken) }
    }

    pub(crate) fn head(&self) -> Version {
        self.head
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(last: u64, is_end: bool, bytes: usize) -> Entry {
        Entry { frame: Bytes::from(vec![0; bytes]), last: Version::new(last), is_end }
    }

    fn versions(ring: &Ring, next: &mut u64, bytes_max: usize) -> Option<Vec<u64>> {
        match ring.take(next, bytes_max) {
            Taken::Entries(entries) => Some(entries.iter().map(|e| e.last.as_u64()).collect()),
            Taken::Nothing => Some(Vec::new()),
            Taken::Fallen => None,
        }
    }

    #[test]
    fn a_reader_gets_everything_once_or_falls() {
        let mut ring = Ring::new(Version::new(10), 100);
        assert_eq!(ring.join(Version::new(9)), None);
        let mut next = ring.join(Version::new(10)).unwrap();
        assert_eq!(versions(&ring, &mut next, 1000), Some(vec![]));
        ring.push([entry(11, true, 40), entry(12, true, 40)]);
        assert_eq!(ring.join(Version::new(11)), Some(1));
        assert_eq!(versions(&ring, &mut next, 50), Some(vec![11]));
        assert_eq!(versions(&ring, &mut next, 50), Some(vec![12]));
        ring.push([entry(13, true, 40), entry(14, true, 40)]);
        assert_eq!((ring.start, ring.bytes()), (Version::new(12), 80));
        assert_eq!(ring.join(Version::new(11)), None);
        let mut late = 1;
        assert_eq!(versions(&ring, &mut late, 1000), None);
        assert_eq!(versions(&ring, &mut next, 1000), Some(vec![13, 14]));
        // A subscriber may have read ahead in the log.
        assert_eq!(ring.join(Version::new(99)), Some(4));
    }

    #[test]
    fn pages_leave_whole() {
        let mut ring = Ring::new(Version::new(10), 100);
        ring.push([entry(20, false, 40), entry(20, false, 40), entry(20, true, 10), entry(21, true, 40)]);
        assert_eq!((ring.start, ring.bytes(), ring.base), (Version::new(20), 40, 3));
        ring.push([entry(30, false, 60), entry(30, true, 60)]);
        assert_eq!((ring.start, ring.bytes(), ring.head()), (Version::new(30), 0, Version::new(30)));
        assert_eq!(ring.join(Version::new(30)), Some(6));
    }
}
