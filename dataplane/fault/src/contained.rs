//! Work whose panic is the end of itself only, because nothing else depends on it.
//!
//! Must not know: what becomes of other panics.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether what runs on this thread now is contained.
#[must_use]
pub fn is_contained() -> bool {
    CONTAINED.get()
}

/// The same work, marked. Threads and tasks that it starts are not.
pub async fn contained<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    poll_fn(|context| {
        let _mark = Mark(CONTAINED.replace(true));
        work.as_mut().poll(context)
    })
    .await
}

/// The result of work on this thread, or nothing if it panicked. What it was changing is not to be used any more then.
pub fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let _mark = Mark(CONTAINED.replace(true));
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Restores what was before, after a panic as well.
struct Mark(bool);

impl Drop for Mark {
    fn drop(&mut self) {
        CONTAINED.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_caught_is_marked_and_nothing_after_it() {
        assert_eq!(caught(is_contained), Some(true));
        assert_eq!(caught(|| panic!("on purpose")), None::<()>);
        assert!(!is_contained());
    }
}
