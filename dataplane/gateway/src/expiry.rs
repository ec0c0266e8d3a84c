//! The moment from which a socket's token is good no longer.

use std::time::{Duration, SystemTime};

use tokio::sync::watch;

/// Clocks may be set while a socket waits; it is looked at again after so long.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Shared by whoever replaces the token and whoever ends the socket.
#[derive(Clone, Debug)]
pub(crate) struct Expiry {
    at: watch::Sender<Option<SystemTime>>,
}

impl Expiry {
    pub(crate) fn new(at: Option<SystemTime>) -> Expiry {
        Expiry { at: watch::Sender::new(at) }
    }

    /// A new token, or one without an end.
    pub(crate) fn set(&self, at: Option<SystemTime>) {
        self.at.send_replace(at);
    }

    /// Returns when the token that is in force by then has expired.
    pub(crate) async fn passed(&self) {
        let mut changes = self.at.subscribe();
        loop {
            let at = *changes.borrow_and_update();
            let wait = async {
                let Some(at) = at else { return std::future::pending().await };
                while let Ok(left) = at.duration_since(SystemTime::now()).map(|left| left.min(LOOK_AGAIN)) {
                    if left.is_zero() {
                        return;
                    }
                    tokio::time::sleep(left).await;
                }
            };
            tokio::select! {
                () = wait => return,
                // The sender lives as long as self.
                _ = changes.changed() => {}
            }
        }
    }
}
