//! What a node begins with is tried until it succeeds: what passes by itself, and what a person mends meanwhile.
//!
//! Must not know: what is tried. Its error says what is known of it, and the class of that decides. What no further attempt can
//! mend is handed back: a fault of the program, a replica that must be made anew, another process that replicates now.
//!
//! Invariant: while nothing succeeds the process stays up, and the status says why, since when and what to do.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use fault::{Backoff, Class, Entry, Recurrence, path};
use rows::Version;
use tracing::{error, warn};

use crate::status::{Standing, Status};

/// Short at first: a database that starts together with this node is there in a moment.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// Whatever their class, the process ends with these, or its replica does.
const FINAL: &[Entry] = &[
    path::PANICKED,
    path::CHANGES_NOT_OWNER,
    path::CHANGES_OUT_OF_ORDER,
    path::REPLICA_RESYNC,
    path::REPLICA_STORAGE,
    path::REPLICA_WITHHELD,
];

/// What is known of an error of the server's own parts.
fn entry(error: &anyhow::Error) -> Option<&'static Entry> {
    None.or_else(|| error.downcast_ref().map(upstream::Error::entry))
        .or_else(|| error.downcast_ref().map(changes::Error::entry))
        .or_else(|| error.downcast_ref().map(streamer::Error::entry))
        .or_else(|| error.downcast_ref().map(backup::Error::entry))
        .or_else(|| error.downcast_ref().map(replica::Error::entry))
        .or_else(|| error.downcast_ref().map(|error: &views::store::Unopened| error.entry))
}

/// Attempts at one thing, one after the other.
pub struct Attempts {
    /// Completes "cannot ...".
    doing: &'static str,
    status: Status,
    retry: Backoff,
    recurrence: Recurrence,
}

impl Attempts {
    pub fn new(doing: &'static str, status: &Status) -> Attempts {
        Attempts { doing, status: status.clone(), retry: RETRY, recurrence: Recurrence::default() }
    }

    #[must_use]
    pub fn paced(self, retry: Backoff) -> Attempts {
        Attempts { retry, ..self }
    }

    /// Tells of a failure, and waits before the next attempt. The error, if that would mend nothing.
    pub async fn failed(&mut self, failure: anyhow::Error) -> Result<()> {
        let Some(entry) = entry(&failure).filter(|entry| !FINAL.contains(entry)) else { return Err(failure) };
        let message = format!("cannot {}: {failure:#}", self.doing);
        let class = self.recurrence.class(0, entry, &message);
        // Another attempt is another copy; that it does not do either is for a person to find out.
        let class = match (class, self.recurrence.times()) {
            (Class::NewCopy, 1) => Class::Passes,
            (Class::NewCopy, _) => Class::Person,
            (class, _) => class,
        };
        let (attempts, remedy, pause) = (self.recurrence.times(), entry.remedy, self.retry.pause());
        let retry_ms = pause.as_millis() as u64;
        match class {
            Class::Person => error!(error = message, attempts, remedy, retry_ms, "this node needs a person"),
            _ => {
                warn!(error = message, attempts, remedy, retry_ms, "this node cannot begin yet, will retry");
            }
        }
        let (position, since) = (Version::default(), SystemTime::now());
        self.status.stands(Standing { class, position, message, remedy, attempts, since });
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Tries until it succeeds.
    pub async fn until<T>(mut self, mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        loop {
            match attempt().await {
                Ok(done) => {
                    self.status.advances();
                    return Ok(done);
                }
                Err(failure) => self.failed(failure).await?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use serde_json::json;

    use super::*;

    fn refused() -> anyhow::Error {
        let message = "the token is wrong".to_owned();
        anyhow::Error::new(streamer::Error::Configuration { message }).context("ZERO_CHANGE_STREAMER_URI")
    }

    #[tokio::test]
    async fn what_a_person_mends_is_waited_for_and_told() {
        let status = Status::default();
        let fault = || status.facts("", "", None)["fault"].clone();
        let pace = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        let mut times = 0;
        let attempts = Attempts::new("follow", &status).paced(pace);
        let done = attempts.until(async || {
            times += 1;
            match times {
                1 => Err(refused()),
                2 => {
                    assert_eq!(fault()["class"], json!("person"));
                    assert_eq!(
                        fault()["message"],
                        json!("cannot follow: ZERO_CHANGE_STREAMER_URI: the token is wrong")
                    );
                    Err(changes::Error::Empty).context("change database")
                }
                _ => Ok(times),
            }
        });
        assert_eq!(done.await.unwrap(), 3);
        assert_eq!(fault(), json!(null));
    }

    /// A pooler remembers for a while that Postgres was away, and says so with a code of its own.
    #[tokio::test]
    async fn a_database_that_is_away_again_and_again_needs_no_person() {
        let status = Status::default();
        let pace = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        let mut attempts = Attempts::new("start the views", &status).paced(pace);
        for entry in [fault::sqlstate("08P01"), fault::sqlstate("57P03"), fault::sqlstate("53300"), &path::CVR_AWAY] {
            for times in 1..4 {
                let message = "server login has been failing, try again later".to_owned();
                attempts.failed(views::store::Unopened { message, entry }.into()).await.unwrap();
                assert_eq!(status.facts("", "", None)["fault"]["class"], json!("passes"), "{} {times}", entry.name);
            }
        }
        let message = "password authentication failed".to_owned();
        let wrong = views::store::Unopened { message, entry: fault::sqlstate("28P01") };
        attempts.failed(wrong.into()).await.unwrap();
        assert_eq!(status.facts("", "", None)["fault"]["class"], json!("person"));
    }

    #[tokio::test]
    async fn what_nobody_mends_is_handed_back() {
        for failure in [
            anyhow::anyhow!("of no class"),
            anyhow::Error::new(changes::Error::NotOwner),
            anyhow::Error::new(upstream::Error::Panicked { task: "a task", reason: String::new() }).context("around"),
            anyhow::Error::new(replica::Error::Resync { path: "/".into(), reason: String::new() }),
        ] {
            let said = format!("{failure:#}");
            let status = Status::default();
            let handed_back = Attempts::new("begin", &status).failed(failure).await.unwrap_err();
            assert_eq!(format!("{handed_back:#}"), said);
            assert_eq!(status.facts("", "", None)["fault"], json!(null));
        }
    }
}
