//! Live sockets by client group and client. There is one per client: a newer one displaces the older.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use protocol::error::ErrorBody;
use views::api::ConnectionId;

use crate::control::{Control, Ending};

#[derive(Debug, Default)]
pub(crate) struct Registry {
    next_id: AtomicU64,
    groups: Mutex<HashMap<String, HashMap<String, Entry>>>,
}

#[derive(Clone, Debug)]
struct Entry {
    id: ConnectionId,
    control: Arc<Control>,
}

impl Registry {
    pub(crate) fn new_id(&self) -> ConnectionId {
        ConnectionId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes `id` the socket of its client. The socket that was it before is ended silently and returned, so that the views
    /// hear of its end before they hear of the new one.
    pub(crate) fn register(
        &self,
        group: &str,
        client: &str,
        id: ConnectionId,
        control: Arc<Control>,
    ) -> Option<ConnectionId> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let old = groups.entry(group.to_owned()).or_default().insert(client.to_owned(), Entry { id, control })?;
        old.control.end(Ending::Silent("displaced"));
        Some(old.id)
    }

    /// False when another socket has taken the place already.
    pub(crate) fn remove(&self, group: &str, client: &str, id: ConnectionId) -> bool {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(clients) = groups.get_mut(group) else { return false };
        if clients.get(client).is_none_or(|entry| entry.id != id) {
            return false;
        }
        clients.remove(client);
        if clients.is_empty() {
            groups.remove(group);
        }
        true
    }

    /// Sends an error to the client's socket and closes it, if the client is connected here.
    pub(crate) fn fail(&self, group: &str, client: &str, error: &ErrorBody) {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = groups.get(group).and_then(|clients| clients.get(client)) {
            entry.control.end(Ending::Error(error.clone(), None));
        }
    }

    /// Ends every socket.
    pub(crate) fn end_all(&self, ending: &Ending) {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in groups.values().flat_map(HashMap::values) {
            entry.control.end(ending.clone());
        }
    }
}
