//! A set of tasks that can be waited for. A panic inside one is logged as an event and does not leave the set hanging.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    live: Arc<watch::Sender<usize>>,
}

struct Member {
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
    pub(crate) fn new() -> Tasks {
        Tasks { live: Arc::new(watch::Sender::new(0)) }
    }

    pub(crate) fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.live.send_modify(|n| *n += 1);
        let member = Member { live: Arc::clone(&self.live), name };
        tokio::spawn(async move {
            let _member = member;
            task.await;
        });
    }

    pub(crate) fn live(&self) -> usize {
        *self.live.borrow()
    }

    /// Returns when no task is left.
    pub(crate) async fn finished(&self) {
        let mut live = self.live.subscribe();
        // The sender lives as long as self.
        let _ = live.wait_for(|n| *n == 0).await;
    }
}
