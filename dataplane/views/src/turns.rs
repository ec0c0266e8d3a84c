//! When the views' thread was last seen to go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Cheap to clone: all clones are one. A thread that has nothing to do takes a turn now and then as well.
#[derive(Clone, Debug)]
pub struct Turns {
    since: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Turns {
    pub(crate) fn new() -> Turns {
        Turns { since: Instant::now(), last_ms: Arc::default() }
    }

    pub(crate) fn turn(&self) {
        self.last_ms.store(u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How long the present turn has taken.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.since.elapsed().saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Relaxed)))
    }
}
