//! Whether this node takes clients.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use port::Health;
use tokio::sync::watch;
use views::api::Handle;

/// Opened once by the composition root when the node is ready, closed by the stop signal.
#[derive(Clone, Debug)]
pub struct Gate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `Some(None)`: ready, but a node without views (a replication-manager).
    views: OnceLock<Option<Handle>>,
    is_open: watch::Sender<bool>,
    draining: watch::Sender<bool>,
    keepalive: Mutex<Option<Instant>>,
}

impl Gate {
    pub(crate) fn new() -> Gate {
        Gate {
            inner: Arc::new(Inner {
                views: OnceLock::new(),
                is_open: watch::Sender::new(false),
                draining: watch::Sender::new(false),
                keepalive: Mutex::new(None),
            }),
        }
    }

    /// Probes are answered 200 from now on, and sockets are accepted if there are views. Later calls change nothing.
    pub fn open(&self, views: Option<Handle>) {
        let _ = self.inner.views.set(views);
        self.inner.is_open.send_replace(true);
    }

    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.health() == Health::Ready
    }

    /// When `/keepalive` was last asked, for the watch on a load balancer that went away.
    #[must_use]
    pub fn last_keepalive(&self) -> Option<Instant> {
        *self.inner.keepalive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn saw_keepalive(&self) {
        *self.inner.keepalive.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// What probes are told.
    #[must_use]
    pub fn health(&self) -> Health {
        let was_ready = self.inner.views.get().is_some();
        match (self.is_draining(), was_ready) {
            (true, was_ready) => Health::Draining { was_ready },
            (false, true) => Health::Ready,
            (false, false) => Health::Starting,
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.inner.draining.borrow()
    }

    pub(crate) fn drain(&self) {
        self.inner.draining.send_replace(true);
    }

    pub(crate) async fn draining(&self) {
        let mut draining = self.inner.draining.subscribe();
        // The sender lives as long as self.
        let _ = draining.wait_for(|on| *on).await;
    }

    /// Returns when the node is ready, or will never be.
    pub(crate) async fn opened(&self) {
        let mut is_open = self.inner.is_open.subscribe();
        tokio::select! {
            // The sender lives as long as self.
            _ = is_open.wait_for(|on| *on) => {}
            () = self.draining() => {}
        }
    }

    /// The views, once the node is ready; a node without views gives `None` for ever.
    pub(crate) fn views(&self) -> Option<Handle> {
        self.inner.views.get().cloned().flatten()
    }
}
