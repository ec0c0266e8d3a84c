//! The end that a signal asks for: when it was asked for, how long what is still to be done may take, and what was given up when
//! that time was over.
//!
//! Must not know: what is done, and by whom. Giving up loses nothing: what is not stored was acknowledged to nobody, so Postgres
//! sends it again; what is stored and not applied is in the change log; clients are caught up when they connect again.
//!
//! Invariant: once asked for, the process ends within the grace, whatever stands still. A thread with a runtime of its own sees
//! to that, so not even a stuck scheduler is waited for.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::exit;

/// What is left of the grace to end in order once everything has had its time.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// Cheap to clone: all clones are one.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    grace: Duration,
    /// When it was asked for.
    asked: watch::Sender<Option<Instant>>,
    /// What is under way and may be given up.
    stages: Mutex<Vec<&'static str>>,
    given_up: Mutex<Vec<&'static str>>,
}

impl Stop {
    /// Takes SIGTERM and SIGINT from here on; everything is then over within `grace`. A second signal, and SIGQUIT, mean now.
    pub fn listen(grace: Duration) -> io::Result<Stop> {
        let stop = Stop::new(grace);
        let (tell, told) = std::sync::mpsc::channel();
        let listening = stop.clone();
        std::thread::Builder::new().name("stop".to_owned()).spawn(move || {
            let prepared = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
                let signals = runtime.block_on(async { Signals::new() })?;
                Ok((runtime, signals))
            });
            // The receiver waits for this.
            match prepared {
                Ok((runtime, signals)) => {
                    let _ = tell.send(Ok(()));
                    runtime.block_on(listening.end(signals));
                }
                Err(error) => drop(tell.send(Err(error))),
            }
        })?;
        told.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that takes signals has ended")))?;
        Ok(stop)
    }

    fn new(grace: Duration) -> Stop {
        Stop(Arc::new(Inner {
            grace,
            asked: watch::Sender::new(None),
            stages: Mutex::default(),
            given_up: Mutex::default(),
        }))
    }

    async fn end(self, mut signals: Signals) {
        let mut asked = self.0.asked.subscribe();
        tokio::select! {
            name = signals.next() => {
                info!("{name}: draining");
                self.ask();
            }
            // The sender lives as long as self.
            _ = asked.wait_for(Option::is_some) => {}
        }
        tokio::select! {
            _ = signals.next() => {
                warn!("second signal: exiting at once");
                std::process::exit(i32::from(exit::ERROR));
            }
            () = tokio::time::sleep(self.0.grace) => {}
        }
        let under_way = lock(&self.0.stages).clone();
        lock(&self.0.given_up).extend(under_way);
        self.tell();
        std::process::exit(i32::from(exit::OK));
    }

    /// Begins the end, as a signal does.
    pub fn ask(&self) {
        self.0.asked.send_if_modified(|asked| {
            let is_first = asked.is_none();
            asked.get_or_insert_with(Instant::now);
            is_first
        });
    }

    /// Completes when the end was asked for.
    pub async fn asked(&self) {
        self.deadline().await;
    }

    /// When the grace is over, once it has begun.
    async fn deadline(&self) -> Instant {
        let mut asked = self.0.asked.subscribe();
        // The sender lives as long as self.
        let begun = asked.wait_for(Option::is_some).await.ok().and_then(|asked| *asked);
        begun.unwrap_or_else(Instant::now) + self.0.grace
    }

    /// Does something that may be given up. Takes as long as it takes, unless the end is asked for: then `share` of the grace at most,
    /// and never longer than all of it. `None` if it was given up.
    pub async fn within<T>(&self, what: &'static str, share: Share, work: impl Future<Output = T>) -> Option<T> {
        let _stage = Stage::begin(&self.0, what);
        let over = async {
            let deadline = self.deadline().await - LAST_MOMENT.min(self.0.grace / 4);
            tokio::time::sleep_until(deadline.min(Instant::now() + share.of(self.0.grace))).await;
        };
        tokio::select! {
            biased;
            done = work => Some(done),
            () = over => {
                self.give_up(what);
                None
            }
        }
    }

    /// Takes note of something that was not waited for.
    pub fn give_up(&self, what: &'static str) {
        lock(&self.0.given_up).push(what);
    }

    /// Says what was given up, if anything was.
    pub fn tell(&self) {
        let given_up = lock(&self.0.given_up).join(", ");
        if !given_up.is_empty() {
            warn!(
                given_up,
                "stopped without waiting any longer; nothing that was acknowledged is lost: what is not stored here comes from Postgres again, and clients are caught up when they connect"
            );
        }
    }
}

/// What one thing may take of the grace.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// One part of so many.
    pub part: u32,
    pub at_most: Duration,
}

impl Share {
    pub fn of(self, grace: Duration) -> Duration {
        (grace / self.part).min(self.at_most)
    }
}

/// Listed as under way while it lives.
struct Stage<'a> {
    inner: &'a Inner,
    what: &'static str,
}

impl<'a> Stage<'a> {
    fn begin(inner: &'a Inner, what: &'static str) -> Stage<'a> {
        lock(&inner.stages).push(what);
        Stage { inner, what }
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        let mut stages = lock(&self.inner.stages);
        if let Some(at) = stages.iter().position(|what| *what == self.what) {
            stages.remove(at);
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// The next one that asks for an end in order. SIGQUIT does not: tools for development send it.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.quit.recv() => {
                info!("SIGQUIT: exiting at once");
                std::process::exit(i32::from(exit::STOPPED))
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_millis(400);
    const QUARTER: Share = Share { part: 4, at_most: Duration::from_secs(30) };

    fn given_up(stop: &Stop) -> Vec<&'static str> {
        lock(&stop.0.given_up).clone()
    }

    #[tokio::test]
    async fn what_does_not_end_is_given_up_only_after_the_signal() {
        let stop = Stop::new(GRACE);
        assert_eq!(stop.within("patience", QUARTER, tokio::time::sleep(GRACE * 3 / 2)).await, Some(()));
        let stuck = stop.within("storing", QUARTER, std::future::pending::<()>());
        let asking = async {
            tokio::time::sleep(GRACE / 2).await;
            stop.ask();
            Instant::now()
        };
        let (done, asked) = tokio::join!(stuck, asking);
        assert_eq!(done, None);
        assert!(asked.elapsed() >= GRACE / 4, "{:?}", asked.elapsed());
        assert_eq!(given_up(&stop), ["storing"]);
    }

    #[tokio::test]
    async fn all_parts_together_take_no_longer_than_the_grace() {
        let stop = Stop::new(GRACE);
        stop.ask();
        let deadline = stop.deadline().await;
        for _ in 0..100 {
            assert_eq!(stop.within("one of many", QUARTER, std::future::pending::<()>()).await, None);
        }
        // Each took no time once there was none left; a quarter each would have been 25 times the grace.
        assert!(Instant::now() < deadline + 4 * GRACE);
        assert_eq!(stop.within("what is done at once", QUARTER, async { 1 }).await, Some(1));
        assert_eq!(given_up(&stop).len(), 100);
        assert!(lock(&stop.0.stages).is_empty());
    }

    #[tokio::test]
    async fn asking_again_does_not_begin_anew() {
        let stop = Stop::new(GRACE);
        stop.ask();
        let deadline = stop.deadline().await;
        tokio::time::sleep(GRACE / 8).await;
        stop.ask();
        assert_eq!(stop.deadline().await, deadline);
    }
}
