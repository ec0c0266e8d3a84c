//! A replica on its way here, from a backup or from another node: shown in the status, told in the log, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use backup::{Error, Restored};
use tracing::info;

use crate::metrics::Metrics;
use crate::node::Node;
use crate::status::{Status, Underway};

/// Between two lines about progress.
const TELL_SECONDS: u64 = 2;

/// Where a replica comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Backup,
    Snapshot,
}

/// One attempt.
pub struct Restoring {
    source: Source,
    status: Status,
    metrics: Metrics,
    began: Instant,
    bytes: Arc<AtomicU64>,
    _underway: Underway,
}

impl Restoring {
    pub fn begin(node: &Node<'_>, source: Source) -> Restoring {
        Restoring {
            source,
            status: node.status.clone(),
            metrics: node.metrics.clone(),
            began: Instant::now(),
            bytes: Arc::default(),
            _underway: node.status.restoring(),
        }
    }

    /// To be told bytes done and bytes in all (0 if that is unknown); logs how far it is from time to time.
    pub fn progress(&self) -> impl Fn(u64, u64) + Send + Sync + 'static {
        let (began, source, told, bytes) = (self.began, self.source, AtomicU64::new(0), Arc::clone(&self.bytes));
        move |done, total| {
            bytes.store(done, Ordering::Relaxed);
            let seconds = began.elapsed().as_secs();
            if seconds < told.load(Ordering::Relaxed) + TELL_SECONDS {
                return;
            }
            told.store(seconds, Ordering::Relaxed);
            let percent = (done * 100).checked_div(total).map(|percent| percent.min(100));
            let left = total.saturating_sub(done) * seconds / done.max(1);
            let doing = match source {
                Source::Backup => "restoring the backup",
                Source::Snapshot => "receiving the replica",
            };
            info!(bytes = done, percent, seconds_left = (total > 0).then_some(left), "{doing}");
        }
    }

    pub fn end(self, result: Result<Restored, Error>) -> Result<Restored, Error> {
        let source = match self.source {
            Source::Backup => "backup",
            Source::Snapshot => "snapshot",
        };
        self.metrics.restores.with_label_values(&[source, outcome(&result)]).inc();
        self.metrics.restored_bytes.inc_by(self.bytes.load(Ordering::Relaxed));
        match &result {
            Ok(restored) => {
                self.metrics.restore.observe(self.began.elapsed().as_secs_f64());
                info!(version = %restored.version, source, "restored the replica");
                self.blame(None);
            }
            // The store works; there is nothing of use in it.
            Err(Error::Nothing { .. } | Error::Foreign { .. }) => self.blame(None),
            Err(error) => self.blame(Some(error)),
        }
        result
    }

    fn blame(&self, error: Option<&Error>) {
        if self.source == Source::Backup {
            self.status.backup(|backup| backup.fault = error.map(Into::into));
        }
    }
}

fn outcome(result: &Result<Restored, Error>) -> &'static str {
    match result {
        Ok(restored) if restored.is_previous_point => "previous_point",
        Ok(_) => "complete",
        Err(Error::Nothing { .. }) => "nothing",
        Err(Error::Foreign { .. }) => "foreign",
        Err(Error::Denied { .. }) => "denied",
        Err(_) => "failed",
    }
}
