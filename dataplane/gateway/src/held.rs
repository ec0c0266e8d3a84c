//! What a socket said for the application, until its credentials are known to be good.

use std::collections::VecDeque;

use protocol::up::Push;

use crate::budget::{Lease, STRANGER_BYTES};

/// Messages that a stranger may have waiting.
const MESSAGES_MAX: usize = 32;

/// Something for the application's API server.
#[derive(Debug)]
pub(crate) enum Act {
    Push(Box<Push>),
    /// A client has seen its results up to a mutation.
    Acknowledge {
        client_id: String,
        up_to: i64,
    },
    /// Clients are gone for good.
    Forget(Vec<String>),
}

impl Act {
    /// Memory that it takes until the API server has it: its text, and once more in the request.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Act::Push(push) => 2 * push.size(),
            Act::Acknowledge { client_id, .. } => 2 * client_id.len(),
            Act::Forget(client_ids) => 4 * client_ids.iter().map(String::len).sum::<usize>(),
        }
    }
}

/// In order. What the views keep for a stranger meanwhile counts as well.
#[derive(Debug, Default)]
pub(crate) struct Held {
    acts: VecDeque<(Act, Lease)>,
    messages: usize,
    bytes: usize,
}

impl Held {
    pub(crate) fn keep(&mut self, act: Act, lease: Lease) {
        self.count(act.bytes());
        self.acts.push_back((act, lease));
    }

    /// Counts a message that waits elsewhere.
    pub(crate) fn count(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }

    /// Whether a stranger has said enough for the moment.
    pub(crate) fn is_full(&self) -> bool {
        self.messages >= MESSAGES_MAX || self.bytes >= STRANGER_BYTES
    }

    /// The next one, when it may be carried out. Nothing waits any longer once there is none.
    pub(crate) fn next(&mut self) -> Option<(Act, Lease)> {
        let next = self.acts.pop_front();
        if next.is_none() {
            *self = Held::default();
        }
        next
    }
}
