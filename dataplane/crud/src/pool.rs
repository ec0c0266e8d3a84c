//! Connections to upstream for mutations: at most so many, opened when they are needed, one transaction at a time each.
//!
//! Nothing is set for a session and no statement has a name, so a pooler in transaction mode may stand between.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::Client;
use upstream::Address;

pub(crate) struct Pool {
    address: Address,
    permits: Semaphore,
    idle: Mutex<Vec<Client>>,
}

/// A connection with no transaction open. Closed when dropped, unless it is given back.
pub(crate) struct Lent<'a> {
    pub client: Client,
    _permit: SemaphorePermit<'a>,
}

impl Pool {
    pub(crate) fn new(address: Address, connections_max: usize) -> Pool {
        let permits = Semaphore::new(connections_max.clamp(1, Semaphore::MAX_PERMITS));
        Pool { address, permits, idle: Mutex::default() }
    }

    /// Waits for one, in order of arrival.
    pub(crate) async fn take(&self) -> Result<Lent<'_>, upstream::Error> {
        let permit = self.permits.acquire().await.expect("it is never closed");
        let idle = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|client| !client.is_closed());
            // The one that was used last: others are closed by the server when it likes to.
            idle.pop()
        };
        let client = match idle {
            Some(client) => client,
            None => upstream::connect_pooled(&self.address, "zero-crud").await?,
        };
        Ok(Lent { client, _permit: permit })
    }

    /// Only when its transaction has ended.
    pub(crate) fn give_back(&self, lent: Lent<'_>) {
        if !lent.client.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(lent.client);
        }
    }
}
