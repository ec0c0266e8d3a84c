//! Whether a socket's credentials are known to be good, as its reader sees it. Before that it is a stranger: it may hold little, and
//! what it says reaches nobody but the views, which are to judge it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use port::Guest;
use tokio::sync::Notify;

use crate::budget::Purse;

/// Shared by a socket's reader, the bytes below it, and the views' word.
#[derive(Debug)]
pub(crate) struct Standing {
    is_known: AtomicBool,
    /// It has said what it wants to be judged by: more of it can wait.
    has_introduced_itself: AtomicBool,
    pub(crate) purse: Purse,
    /// Until it is known.
    guest: Mutex<Option<Guest>>,
    reader: Notify,
    bytes: AtomicWaker,
}

impl Standing {
    pub(crate) fn stranger(purse: Purse, guest: Guest) -> Arc<Standing> {
        Arc::new(Standing {
            is_known: AtomicBool::new(false),
            has_introduced_itself: AtomicBool::new(false),
            purse,
            guest: Mutex::new(Some(guest)),
            reader: Notify::new(),
            bytes: AtomicWaker::new(),
        })
    }

    /// Its credentials are good, now and as long as the views let it live.
    pub(crate) fn become_known(&self) {
        self.purse.become_known();
        self.is_known.store(true, Ordering::Release);
        self.guest.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.reader.notify_one();
        self.bytes.wake();
    }

    pub(crate) fn is_known(&self) -> bool {
        self.is_known.load(Ordering::Acquire)
    }

    pub(crate) fn introduce(&self) {
        self.has_introduced_itself.store(true, Ordering::Release);
    }

    /// Returns when it is known. One waiter at a time: the reader.
    pub(crate) async fn known(&self) {
        while !self.is_known() {
            self.reader.notified().await;
        }
    }

    /// Whether bytes beyond what every stranger may hold should stay where they are until it is known. If so, `waker` is called
    /// when it is.
    pub(crate) fn holds_back(&self, waker: &Waker) -> bool {
        let waits = || !self.is_known() && self.has_introduced_itself.load(Ordering::Acquire);
        if !waits() {
            return false;
        }
        self.bytes.register(waker);
        waits()
    }
}
