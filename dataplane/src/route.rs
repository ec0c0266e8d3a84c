//! The way to the replication-manager, for a node that follows it.

use anyhow::{Result, bail};
use streamer::Error;
use tokio::time::{Duration, Instant, MissedTickBehavior};

use crate::config::StreamSource;
use crate::node::Node;
use crate::options;

/// Attempts in vain to reach the owner where it is said to be, before it is looked for as configured: it may be gone as well.
const OWNER_ATTEMPTS: u32 = 2;

/// Between two looks whether the owner that is followed is still the one that the change log names.
const OWNER_PERIOD: Duration = Duration::from_secs(5);

pub struct Route {
    source: Source,
    options: streamer::Options,
    /// Where the last one that was asked said that the owner is, and how often in turn that was tried in vain.
    pointed_to: Option<(String, u32)>,
}

enum Source {
    Fixed(String),
    ChangeLog(Box<changes::Options>),
}

impl Route {
    pub fn new(node: &Node<'_>) -> Result<Route> {
        let config = node.config;
        let source = match &config.change_stream.source {
            Some(StreamSource::Uri(uri)) => Source::Fixed(uri.expose().to_owned()),
            Some(StreamSource::Discover) => Source::ChangeLog(Box::new(options::changes(config)?)),
            None => bail!("a node that follows has ZERO_CHANGE_STREAMER_URI or ZERO_CHANGE_STREAMER_MODE=discover"),
        };
        Ok(Route { source, options: options::subscriber(node), pointed_to: None })
    }

    /// How to connect now: first where the owner is said to be, then as configured.
    pub async fn options(&self) -> streamer::Result<streamer::Options> {
        let uri = match (&self.pointed_to, &self.source) {
            (Some((owner, _)), _) => owner.clone(),
            (None, Source::Fixed(uri)) => uri.clone(),
            (None, Source::ChangeLog(options)) => discover(options).await?,
        };
        Ok(streamer::Options { uri, ..self.options.clone() })
    }

    /// Completes when the change log names another owner than the one at `uri`, with where that is. Whoever works on for another
    /// database, from whose files this one's were copied, is not left otherwise. Never, where the address is configured.
    pub fn moved(&self, uri: &str) -> impl Future<Output = String> + use<> {
        let source = match &self.source {
            Source::Fixed(_) => None,
            Source::ChangeLog(options) => Some(options.clone()),
        };
        let uri = uri.to_owned();
        async move {
            let Some(options) = source else { return std::future::pending().await };
            let mut period = tokio::time::interval_at(Instant::now() + OWNER_PERIOD, OWNER_PERIOD);
            period.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                period.tick().await;
                // A database that is away names nobody.
                if let Ok(address) = discover(&options).await
                    && address != uri
                {
                    return address;
                }
            }
        }
    }

    /// The owner was where it was looked for.
    pub fn reached(&mut self) {
        if let Some((_, failures)) = &mut self.pointed_to {
            *failures = 0;
        }
    }

    /// Takes note of where the owner is, or that it is not there.
    pub fn learn(&mut self, error: &Error) {
        self.pointed_to = learned(self.pointed_to.take(), error);
    }

    /// Whether the next attempt goes to a place that was just named.
    pub fn is_pointed(&self) -> bool {
        matches!(self.pointed_to, Some((_, 0)))
    }
}

fn learned(pointed_to: Option<(String, u32)>, error: &Error) -> Option<(String, u32)> {
    match (error, pointed_to) {
        (Error::Transient { owner: Some(owner), .. }, _) => Some((owner.clone(), 0)),
        (Error::Gone { .. }, _) => None,
        // A successor that has just taken over may need a moment.
        (_, Some((owner, failures))) if failures < OWNER_ATTEMPTS => Some((owner, failures + 1)),
        _ => None,
    }
}

async fn discover(options: &changes::Options) -> streamer::Result<String> {
    let away = |message: String| Error::Transient { message, owner: None };
    match changes::discover(options).await {
        Ok(Some(owner)) if !owner.address.is_empty() => Ok(owner.address),
        Ok(_) => Err(away("no replication-manager has registered in the change database yet".to_owned())),
        Err(error) => Err(away(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_that_is_not_where_it_was_said_to_be_is_forgotten() {
        let pointing = Error::Transient { message: "elsewhere".to_owned(), owner: Some("ws://b".to_owned()) };
        let silent = Error::Transient { message: "refused".to_owned(), owner: None };
        assert_eq!(learned(None, &silent), None);
        let mut pointed_to = learned(None, &pointing);
        for failures in 0..=OWNER_ATTEMPTS {
            assert_eq!(pointed_to, Some(("ws://b".to_owned(), failures)));
            pointed_to = learned(pointed_to, &silent);
        }
        assert_eq!(pointed_to, None);
        let gone = Error::Gone { message: "the node is draining".to_owned() };
        assert_eq!(learned(learned(None, &pointing), &gone), None);
    }
}
