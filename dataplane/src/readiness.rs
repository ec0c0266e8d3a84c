//! Whether a node that takes clients still does its work, as far as load balancers are concerned.
//!
//! Must not know: what the parts do. They say what keeps them from it, and since when. Sockets that are open stay, and whoever
//! comes all the same is served what is here: that is better than nothing, but another node may do better.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use crate::status::Status;

/// What is mended within this time is nobody's concern.
const HINDERED_GRACE: Duration = Duration::from_secs(5);
/// Nobody is told anything new while nothing is stored. A database that fails over takes as long as this, about.
const UNSTORED_GRACE: Duration = Duration::from_secs(30);
const PERIOD: Duration = Duration::from_secs(1);

/// What a node's readiness goes by once it has begun.
pub struct Readiness {
    pub status: Status,
    pub clients: gateway::Gate,
    /// The port of the change stream.
    pub stream: Option<streamer::Gate>,
    /// Since when the views have something that is not stored; absent without views.
    pub unstored: Option<watch::Receiver<Option<Instant>>>,
}

impl Readiness {
    /// Tells the ports, for as long as it is polled. `counts_standing` says whether it matters here that replication stands.
    pub async fn tell(self, counts_standing: impl Fn() -> bool) {
        let mut period = tokio::time::interval(PERIOD);
        let mut told = None;
        loop {
            period.tick().await;
            let why = self.hindrance(counts_standing());
            if why != told {
                match why {
                    Some(reason) => warn!(reason, "not ready any more"),
                    None => info!("ready again"),
                }
                told = why;
            }
            self.clients.hinder(why.is_some());
            if let Some(stream) = &self.stream {
                stream.hinder(why.is_some());
            }
        }
    }

    fn hindrance(&self, counts_standing: bool) -> Option<&'static str> {
        let age = self.unstored.as_ref().and_then(|since| since.borrow().map(|since| since.elapsed()));
        match age {
            Some(age) if age >= UNSTORED_GRACE => Some("the CVR database does not store what clients are to be told"),
            _ if counts_standing && self.status.is_hindered(HINDERED_GRACE) => {
                Some("replication needs a person, see the fault in /statz")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use fault::Class;
    use rows::Version;

    use super::*;
    use crate::status::Standing;

    async fn clients() -> gateway::Gate {
        let registry = prometheus::Registry::new();
        let status: port::Status = std::sync::Arc::new(|_| Box::pin(std::future::ready(serde_json::Value::Null)));
        let failed = prometheus::IntCounter::new("failed", "of a test").unwrap();
        let page = port::StatusPage::new(status, None, true, failed);
        let pages = port::Pages::new(registry.clone(), page, port::Inside::Hidden);
        let listen = "127.0.0.1:0".parse().unwrap();
        let options = gateway::Options { listen, ..gateway::Options::new("zero") };
        gateway::Server::build(options, &registry, pages).await.unwrap().gate()
    }

    async fn until(gate: &gateway::Gate, is_ready: bool) {
        while gate.is_ready() != is_ready {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn a_node_is_ready_while_what_it_does_gets_anywhere() {
        let (clients, status) = (clients().await, Status::default());
        clients.open(None);
        let (unstored, since) = watch::channel(None);
        let readiness =
            Readiness { status: status.clone(), clients: clients.clone(), stream: None, unstored: Some(since) };
        let telling = tokio::spawn(readiness.tell(|| true));
        until(&clients, true).await;

        let ago = |duration| Instant::now().checked_sub(duration);
        unstored.send_replace(ago(UNSTORED_GRACE / 2));
        tokio::time::sleep(PERIOD * 3 / 2).await;
        assert!(clients.is_ready(), "for a moment only");
        unstored.send_replace(ago(UNSTORED_GRACE));
        until(&clients, false).await;
        unstored.send_replace(None);
        until(&clients, true).await;

        let since = SystemTime::now() - HINDERED_GRACE;
        let (position, message, attempts) = (Version::default(), String::new(), 1);
        status.stands(Standing { class: Class::Person, position, message, remedy: "", attempts, since });
        until(&clients, false).await;
        status.advances();
        until(&clients, true).await;
        telling.abort();
    }
}
