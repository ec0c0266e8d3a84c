//! Memory for what clients send, from the moment its bytes arrive until everybody is done with it.
//!
//! Three separate purses, so that no kind of sender can take the others' part: sockets whose credentials are known to be good;
//! strangers, for a little each; and strangers with more to say than that. A purse that is empty refuses: whoever asked is told to
//! come back later, and nobody waits for another's memory while holding some.
//!
//! Invariant: what was taken is given back when its [`Lease`] is dropped, to where it came from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use prometheus::IntGauge;

/// What a stranger may send whatever other strangers hold: a first message of the usual kind.
pub(crate) const STRANGER_BYTES: usize = 64 * 1024;

/// So many bytes, and how many of them are taken.
#[derive(Debug)]
struct Pool {
    bytes_max: usize,
    taken: AtomicUsize,
    /// Shows what is taken of this and others.
    gauge: Option<IntGauge>,
}

impl Pool {
    fn new(bytes_max: usize, gauge: Option<&IntGauge>) -> Arc<Pool> {
        Arc::new(Pool { bytes_max, taken: AtomicUsize::new(0), gauge: gauge.cloned() })
    }

    fn take(self: &Arc<Pool>, bytes: usize) -> Option<Part> {
        let fits = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).ok()?;
        if let Some(gauge) = &self.gauge {
            gauge.add(shown(bytes));
        }
        Some(Part { pool: Arc::clone(self), bytes })
    }
}

#[derive(Debug)]
struct Part {
    pool: Arc<Pool>,
    bytes: usize,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.pool.taken.fetch_sub(self.bytes, Ordering::AcqRel);
        if let Some(gauge) = &self.pool.gauge {
            gauge.sub(shown(self.bytes));
        }
    }
}

fn shown(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Memory that was taken.
#[derive(Debug)]
pub(crate) struct Lease {
    _shared: Part,
    _own: Option<Part>,
}

/// What all sockets share.
#[derive(Debug)]
pub(crate) struct Budget {
    known: Arc<Pool>,
    strangers: Arc<Pool>,
    strangers_more: Arc<Pool>,
}

impl Budget {
    /// An eighth of `bytes` is for what little every stranger may send, a quarter for strangers who send more. `gauge` shows what is
    /// taken of all.
    pub(crate) fn new(bytes: usize, gauge: &IntGauge) -> Arc<Budget> {
        let (little, more) = (bytes / 8, bytes / 4);
        Arc::new(Budget {
            known: Pool::new(bytes - little - more, Some(gauge)),
            strangers: Pool::new(little, Some(gauge)),
            strangers_more: Pool::new(more, Some(gauge)),
        })
    }

    /// For one socket, which is a stranger's.
    pub(crate) fn purse(self: &Arc<Budget>) -> Purse {
        Purse { budget: Arc::clone(self), little: Pool::new(STRANGER_BYTES, None), is_known: AtomicBool::new(false) }
    }
}

/// What one socket takes from.
#[derive(Debug)]
pub(crate) struct Purse {
    budget: Arc<Budget>,
    /// Of what every stranger may send, the part of this one.
    little: Arc<Pool>,
    is_known: AtomicBool,
}

impl Purse {
    /// From now on it takes from what is for sockets whose credentials are good.
    pub(crate) fn become_known(&self) {
        self.is_known.store(true, Ordering::Release);
    }

    /// `None`: there is no room, and whoever asked should come back later.
    pub(crate) fn take(&self, bytes: usize) -> Option<Lease> {
        if self.is_known.load(Ordering::Acquire) {
            return Some(Lease { _shared: self.budget.known.take(bytes)?, _own: None });
        }
        if let Some(own) = self.little.take(bytes)
            && let Some(shared) = self.budget.strangers.take(bytes)
        {
            return Some(Lease { _shared: shared, _own: Some(own) });
        }
        Some(Lease { _shared: self.budget.strangers_more.take(bytes)?, _own: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(bytes: usize) -> (Arc<Budget>, IntGauge) {
        let gauge = IntGauge::new("taken", "taken").unwrap();
        (Budget::new(bytes, &gauge), gauge)
    }

    #[test]
    fn what_is_taken_comes_back() {
        let (budget, taken) = budget(8 << 20);
        let purse = budget.purse();
        let leases = [10, STRANGER_BYTES, 1 << 20].map(|bytes| purse.take(bytes).unwrap());
        purse.become_known();
        let known = purse.take(3 << 20).unwrap();
        assert_eq!(taken.get(), shown(10 + STRANGER_BYTES + (4 << 20)));
        drop((leases, known));
        assert_eq!(taken.get(), 0);
    }

    #[test]
    fn strangers_leave_room_for_each_other_and_for_those_who_are_known() {
        let (budget, taken) = budget(8 << 20);
        let (greedy, modest, known) = (budget.purse(), budget.purse(), budget.purse());
        known.become_known();
        let mut held = Vec::new();
        while let Some(lease) = greedy.take(32 << 10) {
            held.push(lease);
        }
        assert_eq!(taken.get(), shown((2 << 20) + STRANGER_BYTES), "a quarter, and its own little");
        assert!(modest.take(STRANGER_BYTES).is_some(), "a little is left for everybody");
        assert!(modest.take(STRANGER_BYTES + 1).is_none());
        assert!(known.take(5 << 20).is_some(), "all that is theirs");
        assert!(known.take((5 << 20) + 1).is_none());
        // However many they are.
        let crowd: Vec<Purse> = (0..1_000).map(|_| budget.purse()).collect();
        let leases: Vec<_> = crowd.iter().filter_map(|purse| purse.take(STRANGER_BYTES)).collect();
        assert_eq!(leases.len(), 16 - 1);
        assert!(known.take(5 << 20).is_some());
    }

    #[test]
    fn sizes_beyond_counting_are_refused() {
        let (budget, _taken) = budget(1 << 20);
        let purse = budget.purse();
        purse.become_known();
        let _some = purse.take(10).unwrap();
        assert!(purse.take(usize::MAX).is_none());
    }
}
