//! The way around a socket's queue: pongs, errors that leave it open, and the end of the socket.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use protocol::down;
use protocol::error::ErrorBody;
use tokio::sync::Notify;

/// Why and how a socket ends.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    /// Without an error and without a status code.
    Silent(&'static str),
    /// After an `error` message; auth errors at connect carry a status code.
    Error(ErrorBody, Option<(u16, String)>),
    Close(u16, String),
    /// The peer is gone, or said goodbye.
    Gone(&'static str),
}

impl Ending {
    /// A label for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Ending::Silent(reason) | Ending::Gone(reason) => reason,
            Ending::Error(body, _) => body.kind_name(),
            Ending::Close(1001, _) => "shutdown",
            Ending::Close(1002, _) => "bad_request",
            Ending::Close(1009, _) => "message_too_big",
            Ending::Close(..) => "protocol_error",
        }
    }
}

/// Errors waiting for one socket.
const ERRORS_MAX: usize = 256;

/// Shared by a socket's reader, its writer, and those who may end it. The first ending counts.
#[derive(Debug, Default)]
pub(crate) struct Control {
    pong: AtomicBool,
    has_ended: AtomicBool,
    errors: Mutex<VecDeque<Bytes>>,
    ending: Mutex<Option<Ending>>,
    writer: Notify,
    reader: Notify,
}

impl Control {
    /// Asks for a pong ahead of everything queued. Several requests before one is sent are answered by one.
    pub(crate) fn pong(&self) {
        self.pong.store(true, Ordering::Release);
        self.writer.notify_one();
    }

    pub(crate) fn take_pong(&self) -> bool {
        self.pong.swap(false, Ordering::AcqRel)
    }

    /// Sends an error and leaves the socket open. A client that takes none of many is sent away.
    pub(crate) fn tell(&self, error: &ErrorBody) {
        let is_full = {
            let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            errors.push_back(down::error(error));
            errors.len() > ERRORS_MAX
        };
        match is_full {
            true => self.end(Ending::Silent("slow_client")),
            false => self.writer.notify_one(),
        }
    }

    /// The next error to send.
    pub(crate) fn take_error(&self) -> Option<Bytes> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    pub(crate) fn end(&self, ending: Ending) {
        let mut slot = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.has_ended.swap(true, Ordering::AcqRel) {
            *slot = Some(ending);
            self.writer.notify_one();
            self.reader.notify_one();
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// The ending, for the writer that carries it out.
    pub(crate) fn take_ending(&self) -> Option<Ending> {
        if !self.has_ended() {
            return None;
        }
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns when there is a pong or an error to send or an ending to carry out. One waiter at a time: the writer.
    pub(crate) async fn writer_has_work(&self) {
        self.writer.notified().await;
    }

    /// Returns when the socket ends. One waiter at a time: the reader.
    pub(crate) async fn ended(&self) {
        while !self.has_ended() {
            self.reader.notified().await;
        }
    }
}
