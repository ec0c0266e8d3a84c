//! The API server's time: ages are counted by its clock, not by the node's.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use kube::Client;
use kube::client::Body;

/// A clock of a node that keeps time drifts by less than a second in this time.
const ASKED_EVERY: Duration = Duration::from_secs(300);
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub struct Clock {
    ahead_seconds: AtomicI64,
}

impl Clock {
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let ahead = SignedDuration::from_secs(self.ahead_seconds.load(Ordering::Relaxed));
        Timestamp::now().saturating_add(ahead).unwrap_or(Timestamp::MAX)
    }

    /// Asks once; whether there was an answer.
    pub async fn ask(&self, client: &Client) -> bool {
        let Ok(question) = hyper::Request::get("/version").body(Body::empty()) else { return false };
        let Ok(Ok(answer)) = tokio::time::timeout(ASKED_AGAIN_AFTER, client.send(question)).await else { return false };
        let date = answer.headers().get(hyper::header::DATE).and_then(|date| date.to_str().ok());
        let Some(server) = date.and_then(|date| rfc2822::parse(date).ok()) else { return false };
        self.ahead_seconds.store(ahead(server.timestamp(), Timestamp::now()), Ordering::Relaxed);
        true
    }

    /// Asks now and then, for ever.
    pub async fn keep(&self, client: Client) {
        loop {
            let pause = if self.ask(&client).await { ASKED_EVERY } else { ASKED_AGAIN_AFTER };
            tokio::time::sleep(pause).await;
        }
    }
}

/// The server says whole seconds, and its answer took a while: less than two seconds are no difference.
fn ahead(server: Timestamp, here: Timestamp) -> i64 {
    let seconds = server.as_second() - here.as_second();
    if seconds.abs() < 2 { 0 } else { seconds }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_differences_are_none() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(ahead(at(100), at(101)), 0);
        assert_eq!(ahead(at(100), at(160)), -60);
        let date = rfc2822::parse("Sun, 22 Nov 2026 09:28:07 GMT").unwrap();
        assert_eq!(date.timestamp(), "2026-11-22T09:28:07Z".parse::<Timestamp>().unwrap());
    }
}
