//! A subscriber's errors, by what it does next.

use fault::{Entry, path};
use rows::Version;

use crate::wire::{Backup, Refusal};

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Retry with back-off.
    #[error("{message}")]
    Transient {
        message: String,
        /// The owner's address, if the peer knew one: where to connect instead.
        owner: Option<String>,
    },
    /// Retry, but elsewhere: nobody is there, or one that is about to end.
    #[error("{message}")]
    Gone { message: String },
    /// Retry with back-off: somebody answers, of whom this node cannot tell who it is.
    #[error("{message}")]
    Unverified { message: String },
    /// The replica cannot be continued from here: restore it anew.
    #[error("the replica must be restored anew: {message}")]
    Reset { message: String },
    /// Nothing but a person can mend it.
    #[error("{message}")]
    Configuration { message: String },
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// What is known of it.
    #[must_use]
    pub fn entry(&self) -> &'static Entry {
        match self {
            Error::Transient { .. } => &path::STREAM_TRANSIENT,
            Error::Gone { .. } => &path::STREAM_GONE,
            Error::Unverified { .. } => &path::STREAM_UNVERIFIED,
            Error::Reset { .. } => &path::STREAM_RESET,
            Error::Configuration { .. } => &path::STREAM_CONFIGURATION,
        }
    }

    pub(crate) fn transient(message: impl Into<String>) -> Error {
        Error::Transient { message: message.into(), owner: None }
    }

    pub(crate) fn configuration(message: impl Into<String>) -> Error {
        Error::Configuration { message: message.into() }
    }

    /// What a refusal means for a subscriber.
    pub(crate) fn refused(refusal: &Refusal) -> Error {
        let message = refusal.to_string();
        match refusal {
            Refusal::TooOld { .. } | Refusal::OtherReplica { .. } | Refusal::Ahead { .. } => Error::Reset { message },
            Refusal::OtherApp { .. } | Refusal::NoSnapshot => Error::Configuration { message },
            Refusal::NotOwner { owner } => {
                Error::Transient { message, owner: Some(owner.clone()).filter(|owner| !owner.is_empty()) }
            }
            Refusal::Draining => Error::Gone { message },
            Refusal::Starting
            | Refusal::Stalled { .. }
            | Refusal::Expired
            | Refusal::Busy { .. }
            | Refusal::Protocol { .. }
            | Refusal::Other { .. } => Error::transient(message),
        }
    }
}

impl Backup {
    /// Whether restoring it and streaming from there is possible with a log that begins after `start`.
    #[must_use]
    pub fn reaches(&self, start: Version) -> bool {
        self.version >= start
    }
}
