//! Sending to one peer within the window that it grants, with signs of life while there is nothing to send or no room.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use rows::Version;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use crate::fanout::{Fanout, clock_us};
use crate::socket::{Ended, Sink};
use crate::wire::{FromOwner, Refusal};

/// Bounds of one socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) heartbeat: Duration,
    pub(crate) silence_max: Duration,
    pub(crate) stall_max: Option<Duration>,
}

/// Why the owner's side of a socket ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The peer is told.
    Refused(Refusal),
    Socket(Ended),
}

impl From<Ended> for End {
    fn from(ended: Ended) -> End {
        match ended {
            Ended::Protocol(reason) => End::Refused(Refusal::Protocol { reason }),
            ended => End::Socket(ended),
        }
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> End {
        End::Refused(refusal)
    }
}

impl End {
    pub(crate) fn protocol(reason: &str) -> End {
        End::Refused(Refusal::Protocol { reason: reason.to_owned() })
    }
}

/// What the peer has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) applied: Version,
    pub(crate) consumed: u64,
}

/// What the peer was sent. Written before the bytes leave, so that no acknowledgement comes too early.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) version: AtomicU64,
    bytes: AtomicU64,
    /// Up to the last frame that is more than a sign of life.
    substance: AtomicU64,
}

/// Both sides of the accounting for one peer.
pub(crate) struct Account {
    told: watch::Sender<Progress>,
    pub(crate) sent: Sent,
}

impl Account {
    pub(crate) fn new(applied: Version) -> Account {
        Account {
            told: watch::Sender::new(Progress { applied, consumed: 0 }),
            sent: Sent { version: AtomicU64::new(applied.as_u64()), ..Sent::default() },
        }
    }

    /// Takes an acknowledgement; nobody has more than was sent, or less than before.
    pub(crate) fn note(&self, next: Progress) -> Result<(), End> {
        let before = *self.told.borrow();
        let is_plausible = next.consumed >= before.consumed
            && next.consumed <= self.sent.bytes.load(Ordering::Acquire)
            && next.applied >= before.applied
            && next.applied.as_u64() <= self.sent.version.load(Ordering::Acquire);
        if !is_plausible {
            return Err(End::protocol("it acknowledged what it was not sent, or went back"));
        }
        self.told.send_if_modified(|progress| std::mem::replace(progress, next) != next);
        Ok(())
    }

    /// Completes when a peer that has something to do has done nothing for too long.
    pub(crate) async fn stalled(&self, stall_max: Option<Duration>) -> Refusal {
        let Some(stall_max) = stall_max else { return std::future::pending().await };
        let mut since = Instant::now();
        let mut seen = *self.told.borrow();
        loop {
            tokio::time::sleep(stall_max / 8).await;
            let now = *self.told.borrow();
            let is_behind = now.consumed < self.sent.substance.load(Ordering::Acquire)
                || now.applied.as_u64() < self.sent.version.load(Ordering::Acquire);
            if now != seen || !is_behind {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() >= stall_max {
                let reason = format!("it has been at {} for {stall_max:?} although there was more", now.applied);
                return Refusal::Stalled { reason };
            }
        }
    }
}

pub(crate) struct Line<'a, S> {
    sink: &'a mut Sink<S>,
    fanout: &'a Fanout,
    account: &'a Account,
    progress: watch::Receiver<Progress>,
    window: u64,
    heartbeat: Interval,
    /// Whether the owner is behind upstream, until the peer was told that it is not; absent if it is not to be told.
    behind: Option<watch::Receiver<bool>>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Line<'a, S> {
    pub(crate) fn new(
        sink: &'a mut Sink<S>,
        fanout: &'a Fanout,
        account: &'a Account,
        window: u64,
        period: Duration,
    ) -> Line<'a, S> {
        sink.sent = 0;
        let mut heartbeat = interval(period);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Line {
            sink,
            fanout,
            account,
            progress: account.told.subscribe(),
            window: window.max(1),
            heartbeat,
            behind: None,
        }
    }

    /// Tells as well when the owner is where upstream was.
    pub(crate) fn telling(self, behind: Option<watch::Receiver<bool>>) -> Line<'a, S> {
        Line { behind, ..self }
    }

    /// Queues a frame once the window has room for it.
    pub(crate) async fn feed(&mut self, frame: Bytes) -> Result<(), End> {
        if self.behind.as_ref().is_some_and(|behind| !*behind.borrow()) {
            self.abreast().await?;
        }
        while self.sink.sent - self.progress.borrow_and_update().consumed >= self.window {
            self.sink.flush().await?;
            tokio::select! {
                // The sender lives as long as the account.
                _ = self.progress.changed() => {}
                _ = self.heartbeat.tick() => self.head().await?,
            }
        }
        if self.heartbeat.tick().now_or_never().is_some() {
            self.head().await?;
        }
        let bytes = self.sink.sent + frame.len() as u64;
        self.account.sent.bytes.store(bytes, Ordering::Release);
        self.account.sent.substance.store(bytes, Ordering::Release);
        Ok(self.sink.feed(frame).await?)
    }

    pub(crate) async fn flush(&mut self) -> Result<(), End> {
        Ok(self.sink.flush().await?)
    }

    /// Sends what is queued, then waits for `future` and gives signs of life meanwhile.
    pub(crate) async fn attend<T>(&mut self, future: impl Future<Output = T>) -> Result<T, End> {
        let mut future = std::pin::pin!(future);
        if let Some(value) = (&mut future).now_or_never() {
            return Ok(value);
        }
        self.flush().await?;
        loop {
            tokio::select! {
                biased;
                value = &mut future => return Ok(value),
                () = caught_up(&mut self.behind) => self.abreast().await?,
                _ = self.heartbeat.tick() => self.head().await?,
            }
        }
    }

    async fn head(&mut self) -> Result<(), End> {
        self.tell(&FromOwner::Head { head: self.fanout.head(), owner_clock_us: clock_us() }).await
    }

    async fn abreast(&mut self) -> Result<(), End> {
        self.behind = None;
        self.tell(&FromOwner::Abreast { version: self.fanout.head() }).await
    }

    /// Sends what is no reason for the peer to do anything.
    async fn tell(&mut self, news: &FromOwner) -> Result<(), End> {
        let frame = news.encode();
        self.account.sent.bytes.store(self.sink.sent + frame.len() as u64, Ordering::Release);
        Ok(self.sink.send(frame).await?)
    }
}

/// Completes when the owner is not behind; never if that was told, or is not to be.
async fn caught_up(behind: &mut Option<watch::Receiver<bool>>) {
    let is_told = match behind {
        // A sender that is gone has nothing more to tell.
        Some(behind) => behind.wait_for(|is_behind| !is_behind).await.is_ok(),
        None => false,
    };
    if !is_told {
        std::future::pending().await
    }
}

/// Counts in a gauge while it lives.
pub(crate) struct Counted(prometheus::IntGauge);

impl Counted {
    pub(crate) fn new(gauge: prometheus::IntGauge) -> Counted {
        gauge.inc();
        Counted(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
