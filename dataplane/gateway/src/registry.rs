//! Live sockets by client group and client. There is one per client: a newer one displaces the older, once its credentials are known
//! to be good. Until then it is nobody's.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use protocol::error::ErrorBody;
use views::api::{Admitted, ConnectionId};

use crate::control::{Control, Ending};

#[derive(Debug, Default)]
pub(crate) struct Registry {
    next_id: AtomicU64,
    sockets: Mutex<Sockets>,
}

#[derive(Debug, Default)]
struct Sockets {
    strangers: HashMap<ConnectionId, Arc<Control>>,
    groups: HashMap<String, HashMap<String, Entry>>,
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

    /// Notes a socket whose credentials are yet to be judged.
    pub(crate) fn enter(&self, id: ConnectionId, control: Arc<Control>) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).strangers.insert(id, control);
    }

    /// Makes `id` the socket of its client, and ends silently the one that was it before: of two the newer one stays.
    pub(crate) fn admit(&self, group: &str, client: &str, id: ConnectionId) -> Admitted {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        // Its end is told by its own task, to which it is a stranger's until then.
        let Some(control) = sockets.strangers.get(&id).map(Arc::clone) else { return Admitted::TooLate };
        let clients = sockets.groups.entry(group.to_owned()).or_default();
        let old = clients.get(client).cloned();
        if old.as_ref().is_some_and(|old| old.id > id) {
            control.end(Ending::Silent("displaced"));
            return Admitted::TooLate;
        }
        clients.insert(client.to_owned(), Entry { id, control });
        sockets.strangers.remove(&id);
        match old {
            None => Admitted::Alone,
            Some(old) => {
                old.control.end(Ending::Silent("displaced"));
                Admitted::InsteadOf(old.id)
            }
        }
    }

    /// False when another socket has taken the place already.
    pub(crate) fn remove(&self, group: &str, client: &str, id: ConnectionId) -> bool {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if sockets.strangers.remove(&id).is_some() {
            return true;
        }
        let Some(clients) = sockets.groups.get_mut(group) else { return false };
        if clients.get(client).is_none_or(|entry| entry.id != id) {
            return false;
        }
        clients.remove(client);
        if clients.is_empty() {
            sockets.groups.remove(group);
        }
        true
    }

    /// Sends an error to the client's socket and closes it, if the client is connected here.
    pub(crate) fn fail(&self, group: &str, client: &str, error: &ErrorBody) {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = sockets.groups.get(group).and_then(|clients| clients.get(client)) {
            entry.control.end(Ending::Error(error.clone(), None));
        }
    }

    /// Sends an error to this very socket, which stays open; nothing if it is gone.
    pub(crate) fn tell(&self, group: &str, client: &str, id: ConnectionId, error: &ErrorBody) {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = sockets.groups.get(group).and_then(|clients| clients.get(client));
        if let Some(entry) = entry.filter(|entry| entry.id == id) {
            entry.control.tell(error);
        }
    }

    /// Ends every socket.
    pub(crate) fn end_all(&self, ending: &Ending) {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = sockets.groups.values().flat_map(HashMap::values).map(|entry| &entry.control);
        for control in admitted.chain(sockets.strangers.values()) {
            control.end(ending.clone());
        }
    }
}
