//! When a node lets clients in.
//!
//! Must not know: where changes come from. Whoever follows them says what must be applied to be where the source was when it was
//! found; before that, a node serves an old state without saying so.

use std::time::Duration;

use rows::Version;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::feed::Applied;
use crate::folder;
use crate::node::Node;

/// A node with a replica serves what it has if nothing can be followed for so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at how far the replica is.
const POLL: Duration = Duration::from_millis(5);
/// Between two looks whether something is followed.
const POLL_SOURCE: Duration = Duration::from_millis(100);

/// Lets clients in, and says to other nodes that this one is ready, once the replica is at `goal`.
pub async fn open(
    node: &Node<'_>,
    views: Option<views::api::Handle>,
    applied: Applied,
    mut goal: watch::Receiver<Option<Version>>,
) {
    let reached = async {
        // A sender that is gone will never say it.
        let goal = goal.wait_for(Option::is_some).await.ok().and_then(|goal| *goal)?;
        while applied.version() < goal {
            tokio::time::sleep(POLL).await;
        }
        Some(())
    };
    tokio::select! {
        reached = reached => if reached.is_none() {
            return std::future::pending().await;
        },
        () = unreachable(node) => {
            warn!("what this node follows cannot be reached; clients are served what is here");
        }
    }
    node.gate.open(views);
    if let Some(stream) = &node.stream {
        stream.set_behind(false);
    }
    info!(after_ms = node.started.elapsed().as_millis() as u64, version = %applied.version(), "ready");
    folder::tidy(node);
}

/// Completes when nothing was followed for too long.
async fn unreachable(node: &Node<'_>) {
    let mut since = Instant::now();
    while since.elapsed() < PATIENCE {
        tokio::time::sleep(POLL_SOURCE).await;
        if node.status.is_streaming() {
            since = Instant::now();
        }
    }
}
