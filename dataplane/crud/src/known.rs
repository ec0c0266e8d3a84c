//! The catalog as it was read last, and when it is read again: when it is some seconds old, and when something in a mutation is
//! not as it says.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio_postgres::Client;
use upstream::App;

use crate::catalog::Tables;

/// What was withdrawn from publication can be written for so long.
const FRESH: Duration = Duration::from_secs(10);
/// Those who name what is not there do not make it be read more often.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Known {
    last: RwLock<Option<(Instant, Arc<Tables>)>>,
    /// One reads at a time.
    turn: Mutex<()>,
}

impl Known {
    fn last(&self) -> Option<(Instant, Arc<Tables>)> {
        self.last.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The catalog, unless it must be read first.
    pub(crate) fn fresh(&self) -> Option<(Instant, Arc<Tables>)> {
        self.last().filter(|(read_at, _)| read_at.elapsed() < FRESH)
    }

    /// Reads it, unless somebody else has meanwhile. `seen` is what was found wanting, if anything was: `None` is returned if looking again
    /// so soon would be of no use.
    pub(crate) async fn read(
        &self,
        client: &Client,
        app: &App,
        seen: Option<Instant>,
    ) -> Result<Option<(Instant, Arc<Tables>)>, upstream::Error> {
        let _turn = self.turn.lock().await;
        if let Some((read_at, tables)) = self.last() {
            let is_newer = seen.is_none_or(|seen| read_at > seen) && read_at.elapsed() < FRESH;
            if is_newer {
                return Ok(Some((read_at, tables)));
            }
            if seen.is_some() && read_at.elapsed() < PAUSE {
                return Ok(None);
            }
        }
        let read_at = Instant::now();
        let known = (read_at, Arc::new(Tables::load(client, app).await?));
        *self.last.write().unwrap_or_else(PoisonError::into_inner) = Some(known.clone());
        Ok(Some(known))
    }
}
