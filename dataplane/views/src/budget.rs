//! Parts of the node's memory, and who holds how much of them.
//!
//! In which order things give way when a part is full is written in `relief`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A part is full.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoRoom(pub String);

/// Cheap handle to a part of the memory.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Part>);

#[derive(Debug)]
struct Part {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    #[must_use]
    pub fn new(max: usize) -> Budget {
        Budget(Arc::new(Part { used: AtomicUsize::new(0), max }))
    }

    /// A share of nothing yet.
    #[must_use]
    pub fn share(&self) -> Share {
        Share { of: self.clone(), bytes: 0 }
    }

    #[must_use]
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn max(&self) -> usize {
        self.0.max
    }
}

/// Bytes of a budget, given back when dropped.
#[derive(Debug)]
pub struct Share {
    of: Budget,
    bytes: usize,
}

impl Share {
    /// Takes more, if there is so much.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        let max = self.of.0.max;
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= max);
        let grown = self.of.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if grown {
            self.bytes += bytes;
        }
        grown
    }

    /// Says how much it is, be there room or not: what has grown by itself is counted as it is.
    pub fn set(&mut self, bytes: usize) {
        self.of.0.used.fetch_add(bytes, Ordering::Relaxed);
        self.of.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }

    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_grow_within_the_budget_and_are_given_back() {
        let budget = Budget::new(100);
        let (mut a, mut b) = (budget.share(), budget.share());
        assert!(a.grow(60) && !b.grow(50) && b.grow(40) && !a.grow(1));
        assert!(!a.grow(usize::MAX));
        assert_eq!((budget.used(), a.bytes(), b.bytes()), (100, 60, 40));
        a.set(90);
        assert_eq!(budget.used(), 130, "what is there counts");
        drop(a);
        assert!(b.grow(60));
        drop(b);
        assert_eq!(budget.used(), 0);
    }
}
