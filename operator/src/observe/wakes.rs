//! Who is to be looked at again: keys of resources, on their way to the controller of their namespace.

use tokio::sync::mpsc;

use super::world::{Key, Scope};

/// A full queue makes watches wait: nothing is lost, and the controller drops what is there twice.
const QUEUE: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    One(Key),
    /// Something changed that concerns every resource.
    All,
}

/// Sends to the controllers of all scopes.
#[derive(Clone, Debug)]
pub struct Wakes(Vec<(Scope, mpsc::Sender<Wake>)>);

impl Wakes {
    /// One queue a scope.
    #[must_use]
    pub fn new(scopes: &[Scope]) -> (Wakes, Vec<(Scope, mpsc::Receiver<Wake>)>) {
        let mut senders = Vec::new();
        let mut receivers = Vec::new();
        for scope in scopes {
            let (sender, receiver) = mpsc::channel(QUEUE);
            senders.push((scope.clone(), sender));
            receivers.push((scope.clone(), receiver));
        }
        (Wakes(senders), receivers)
    }

    fn to(&self, key: &Key) -> Option<&mpsc::Sender<Wake>> {
        let is_its = |scope: &Scope| scope.as_ref().is_none_or(|namespace| *namespace == key.namespace);
        self.0.iter().find(|(scope, _)| is_its(scope)).map(|(_, sender)| sender)
    }

    /// A controller that is gone has nothing to look at.
    pub async fn send(&self, keys: impl IntoIterator<Item = Key>) {
        for key in keys {
            if let Some(sender) = self.to(&key) {
                let _ = sender.send(Wake::One(key)).await;
            }
        }
    }

    /// Without waiting: every resource is looked at now and then anyway.
    pub fn hint(&self, key: Key) {
        if let Some(sender) = self.to(&key) {
            let _ = sender.try_send(Wake::One(key));
        }
    }

    /// Without waiting: every resource is looked at now and then anyway.
    pub fn all(&self) {
        for (_, sender) in &self.0 {
            let _ = sender.try_send(Wake::All);
        }
    }
}
