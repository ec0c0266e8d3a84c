//! A set of tasks that can be counted and waited for. A panic inside one is [`contained`], logged, and does not
//! leave the set hanging.

use std::future::Future;
use std::sync::Arc;

use fault::contained;
use tokio::sync::watch;

/// Cheap to clone: clones are of one set.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    live: Arc<watch::Sender<usize>>,
}

/// Counts as long as it lives.
pub struct Member {
    live: Arc<watch::Sender<usize>>,
    name: &'static str,
}

impl Drop for Member {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.name, "task panicked");
        }
        self.live.send_modify(|n| *n -= 1);
    }
}

impl Tasks {
    /// Counts a member unless there are `max` already.
    #[must_use]
    pub fn admit(&self, name: &'static str, max: usize) -> Option<Member> {
        let admitted = self.live.send_if_modified(|n| {
            let is_free = *n < max;
            *n += usize::from(is_free);
            is_free
        });
        admitted.then(|| Member { live: Arc::clone(&self.live), name })
    }

    /// Runs a task that counts, however many there are: for work whose number is bounded elsewhere.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.live.send_modify(|n| *n += 1);
        Member { live: Arc::clone(&self.live), name }.spawn(task);
    }

    /// How many members there are.
    #[must_use]
    pub fn live(&self) -> usize {
        *self.live.borrow()
    }

    /// Returns when no member is left.
    pub async fn finished(&self) {
        let mut live = self.live.subscribe();
        // The sender lives as long as self.
        let _ = live.wait_for(|n| *n == 0).await;
    }
}

impl Member {
    /// Runs a task that counts as this member.
    pub fn spawn(self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(async move {
            let _member = self;
            contained(task).await;
        });
    }
}
