//! Letting a connection in: the moment from which it counts as its client's.
//!
//! Only the views learn whether a connection's credentials are good and whether its client group is its user's; only the gateway
//! knows the sockets. Until the views have said so, a connection displaces nobody and nothing that it says reaches the application.

use std::fmt;

use crate::api::ConnectionId;

/// Carried by a connection, to be used once.
#[derive(Default)]
pub struct Admission {
    admit: Option<Box<dyn FnOnce() -> Admitted + Send>>,
}

/// What letting a connection in meant for others of the same client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    Alone,
    /// This older connection is ended: it is gone for the views from now on.
    InsteadOf(ConnectionId),
    /// A newer one of the same client was let in before; this one is being closed.
    TooLate,
}

impl Admission {
    /// `admit` is called when the connection is let in.
    #[must_use]
    pub fn new(admit: impl FnOnce() -> Admitted + Send + 'static) -> Admission {
        Admission { admit: Some(Box::new(admit)) }
    }

    /// Lets the connection in. Without anybody to tell, and the second time, it is alone.
    pub fn admit(&mut self) -> Admitted {
        self.admit.take().map_or(Admitted::Alone, |admit| admit())
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission").field("is_open", &self.admit.is_some()).finish()
    }
}
