//! Work whose panic is the end of itself only, because nothing else depends on it.
//!
//! Must not know: what becomes of other panics.

use std::cell::Cell;
use std::future::{Future, poll_fn};

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

/// Restores what was before, after a panic as well.
struct Mark(bool);

impl Drop for Mark {
    fn drop(&mut self) {
        CONTAINED.set(self.0);
    }
}
