//! What all parts of a node share during one of its lives.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fault::{Backoff, Class};
use replica::Identity;
use tokio::sync::watch;
use tracing::warn;
use upstream::Address;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::status::Status;
use crate::stop::Stop;

/// How a life of the parts ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The stop signal; everything is finished.
    Over,
    /// The replica must be made anew.
    Reset(Anew),
    /// The replica must be fetched anew: it cannot be continued, and another process replicates with one that can.
    Stale,
    /// Another process replicates now.
    SteppedDown,
}

/// What a replica that is not there may be made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anew {
    /// Whatever is at hand: the backup, another node's replica, a copy.
    Any,
    /// What cannot share the fault of the former one: upstream for its owner, the owner's own replica for a node that follows or
    /// stands by.
    Source,
}

pub struct Node<'a> {
    pub config: &'a Config,
    pub metrics: Metrics,
    pub status: Status,
    pub backup_metrics: backup::metrics::Metrics,
    pub stream_metrics: streamer::Metrics,
    pub view_metrics: views::metrics::Metrics,
    /// The clients' port.
    pub gate: gateway::Gate,
    pub transformer: Arc<dyn views::api::Transformer>,
    /// The port of the change stream; absent on a view-syncer.
    pub stream: Option<streamer::Gate>,
    pub token: Option<streamer::Token>,
    /// What nodes that are yet to be restarted know instead.
    pub former_tokens: Vec<streamer::Token>,
    /// Whom this node trusts when it connects to another, instead of the system's authorities.
    pub authority: Option<streamer::Authority>,
    /// What this life begins from, if there is no replica.
    pub anew: Anew,
    /// Becomes true when clients are gone and everything is to be finished.
    pub finish: watch::Receiver<bool>,
    /// What `/livez` goes by.
    pub liveness: port::Liveness,
    /// Limits what is still done then.
    pub stop: Stop,
    pub started: Instant,
}

impl Node<'_> {
    pub fn identity(&self) -> Identity {
        Identity { app: self.config.app.id.clone(), shard: self.config.app.shard_num }
    }

    /// Completes when everything is to be finished.
    pub async fn finishing(&self) {
        let mut finish = self.finish.clone();
        // A sender that is gone is a reason to finish as well.
        let _ = finish.wait_for(|on| *on).await;
    }

    /// `None` when everything is to be finished before `work` is done.
    pub async fn unless_finishing<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.finishing() => None,
        }
    }
}

/// Why the replica is made anew, for people.
pub fn reset(reason: &str, anew: Anew) -> Life {
    warn!(reason, "the replica will be rebuilt");
    Life::Reset(anew)
}

/// Why the replica is fetched anew, for people.
pub fn stale(reason: &str) -> Life {
    warn!(reason, "the replica will be fetched from the process that replicates");
    Life::Stale
}

/// Whether a replica of ours is there but cannot be used.
pub fn is_unusable(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(replica::Error::Resync { .. }))
}

/// Waits until a database answers. An error is what does not pass by itself.
pub async fn await_database(what: &str, address: &Address) -> Result<()> {
    let mut retry = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let error = match upstream::connect_pooled(address, "zero-start").await {
            Ok(_) => return Ok(()),
            Err(error) if error.entry().class == Class::Passes => error,
            Err(error) => return Err(error).with_context(|| what.to_owned()),
        };
        let pause = retry.pause();
        warn!(%error, retry_ms = pause.as_millis() as u64, "{what} is not there yet");
        tokio::time::sleep(pause).await;
    }
}
