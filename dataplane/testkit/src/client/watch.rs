//! Looking at a client's store from outside, and waiting for what comes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tokio::sync::watch;

use super::Store;

/// The store of a client that somebody else drives.
#[derive(Clone, Debug)]
pub struct Watch {
    store: Arc<Mutex<Store>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Watch {
    pub(super) fn new() -> Watch {
        Watch { store: Arc::new(Mutex::new(Store::default())), changed: Arc::new(watch::Sender::new(0)) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the store without copying it.
    pub fn look<T>(&self, at: impl FnOnce(&Store) -> T) -> T {
        at(&self.lock())
    }

    /// Lets everybody who waits look again.
    pub(crate) fn announce(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// From now on, [`Store::longest_gap`] is about what comes.
    pub fn measure_gaps(&self) {
        self.lock().measure_gaps();
    }

    /// Waits until the condition gives something or an error. Fails at once on a breach of the protocol.
    pub async fn wait<T>(
        &self,
        limit: Duration,
        what: &str,
        mut condition: impl FnMut(&Store) -> Result<Option<T>>,
    ) -> Result<T> {
        let mut changes = self.changed.subscribe();
        let wait = async {
            loop {
                {
                    let store = self.lock();
                    if let Some(violation) = &store.violation {
                        bail!("the server broke the protocol: {violation}");
                    }
                    if let Some(found) = condition(&store)? {
                        return Ok(found);
                    }
                }
                changes.changed().await.context("the client is alive")?;
            }
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(outcome) => outcome.with_context(|| format!("waiting for {what}")),
            Err(_) => {
                let store = self.lock();
                let transcript: Vec<_> = store.transcript.iter().map(String::as_str).collect();
                Err(anyhow!(
                    "waited {limit:?} for {what}; cookie {:?}, got {:?}; the last messages were\n{}",
                    store.cookie,
                    store.got,
                    transcript.join("\n")
                ))
            }
        }
    }

    /// Waits for the end of the connection: the `error` body, if one was sent, and the reason.
    pub async fn closed(&self) -> (Option<Value>, String) {
        let mut changes = self.changed.subscribe();
        loop {
            let ended = self.look(|store| store.closed.clone().map(|reason| (store.error.clone(), reason)));
            if let Some(ended) = ended {
                return ended;
            }
            if changes.changed().await.is_err() {
                return (None, "the client is gone".to_owned());
            }
        }
    }
}
