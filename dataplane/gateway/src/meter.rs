//! Counts the bytes of a socket as they arrive: a message that never ends takes memory like one that does.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::budget::{Lease, STRANGER_BYTES};
use crate::standing::Standing;

/// What is taken of the budget at once: at least so much, for more a quarter of what there is.
const STEP_BYTES: usize = 4 * 1024;
const STEP_BYTES_MAX: usize = 256 * 1024;

/// What arrived and belongs to no message that was handled.
#[derive(Debug)]
pub(crate) struct Meter {
    standing: Arc<Standing>,
    arrived: Mutex<Arrived>,
    is_over: AtomicBool,
}

#[derive(Debug, Default)]
struct Arrived {
    bytes: usize,
    /// Of the budget; never less than what arrived.
    leased: usize,
    leases: Vec<Lease>,
}

impl Meter {
    pub(crate) fn new(standing: Arc<Standing>) -> Arc<Meter> {
        Arc::new(Meter { standing, arrived: Mutex::default(), is_over: AtomicBool::new(false) })
    }

    /// Of the socket whose bytes these are.
    pub(crate) fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }

    /// The message that arrived is dealt with.
    pub(crate) fn settle(&self) {
        *self.arrived.lock().unwrap_or_else(PoisonError::into_inner) = Arrived::default();
    }

    /// Whether reading failed because there was no room for more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    fn bytes(&self) -> usize {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    fn count(&self, bytes: usize) -> io::Result<()> {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.bytes += bytes;
        while arrived.leased < arrived.bytes {
            let step = (arrived.leased / 4).clamp(STEP_BYTES, STEP_BYTES_MAX);
            let Some(lease) = self.standing.purse.take(step) else {
                self.is_over.store(true, Ordering::Release);
                return Err(io::ErrorKind::OutOfMemory.into());
            };
            arrived.leased += step;
            arrived.leases.push(lease);
        }
        Ok(())
    }
}

/// A stream whose incoming bytes are counted.
#[derive(Debug)]
pub(crate) struct Metered<S> {
    stream: S,
    meter: Arc<Meter>,
}

impl<S> Metered<S> {
    pub(crate) fn new(stream: S, meter: Arc<Meter>) -> Metered<S> {
        Metered { stream, meter }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // What comes after its first message can wait in the kernel, where it holds the sender up.
        if this.meter.bytes() >= STRANGER_BYTES && this.meter.standing.holds_back(cx.waker()) {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        Poll::Ready(this.meter.count(buffer.filled().len() - before))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
