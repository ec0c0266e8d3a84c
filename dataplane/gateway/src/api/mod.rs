//! Calls of the application's API servers.

mod call;
mod endpoint;
mod lanes;

pub(crate) use call::{Caller, Operation};
pub(crate) use endpoint::{Endpoint, Request};
pub use endpoint::{EndpointError, check_url};
pub(crate) use lanes::{Bounds, Lanes};

use fault::{Class, Entry, path};
use protocol::error::{CallReason, ErrorBody, Failure};

/// What goes into one call, unless a single item is larger: servers refuse long bodies, and those that do not may fail over them.
pub(crate) const CALL_BYTES: usize = 1024 * 1024;
pub(crate) const CALL_ITEMS: usize = 1000;

/// Why a call gave no usable answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{0}")]
    Refused(String),
    #[error("the API server cannot be reached: {0}")]
    Network(String),
    /// It is this node that cannot.
    #[error("no further connection to the API server can be made: {0}")]
    Exhausted(String),
    /// Others' calls take all the turns there are.
    #[error("too many calls of the API server wait for their turn")]
    Crowded,
    #[error("the API server did not answer within {0} s")]
    Timeout(u64),
    /// With a status that says that it is its own fault.
    #[error("the API server answered with status {status}")]
    Failed { status: u16, body: String },
    #[error("the API server answered with status {status}")]
    Answered { status: u16, body: String },
    #[error("the answer of the API server is longer than {0} bytes")]
    TooLong(usize),
}

impl CallError {
    pub(crate) fn of_status(status: u16, body: String) -> CallError {
        if status >= 500 { CallError::Failed { status, body } } else { CallError::Answered { status, body } }
    }

    /// What is known of it.
    pub(crate) fn entry(&self) -> &'static Entry {
        match self {
            CallError::Refused(_) => &path::CALL_REFUSED,
            CallError::Network(_) => &path::CALL_NETWORK,
            CallError::Exhausted(_) => &path::CALL_EXHAUSTED,
            CallError::Crowded => &path::CALL_CROWDED,
            CallError::Timeout(_) => &path::CALL_TIMEOUT,
            CallError::Failed { .. } => &path::CALL_FAILED,
            CallError::Answered { .. } => &path::CALL_ANSWERED,
            CallError::TooLong(_) => &path::CALL_TOO_LONG,
        }
    }

    /// That the client should come back later, if that is all there is to say: it passes however often it comes.
    pub(crate) fn passes(&self) -> Option<ErrorBody> {
        let Entry { repeated, meaning, .. } = self.entry();
        (*repeated == Class::Passes).then(|| ErrorBody::overloaded(*meaning, 2_000, 30_000))
    }

    /// What the client is told otherwise.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            CallError::Refused(_) | CallError::Network(_) | CallError::Exhausted(_) | CallError::Crowded => {
                Failure::ZeroCache(CallReason::Internal)
            }
            CallError::Timeout(_) => Failure::ZeroCache(CallReason::Timeout),
            CallError::Failed { status, body } | CallError::Answered { status, body } => Failure::http(*status, body),
            CallError::TooLong(_) => Failure::ZeroCache(CallReason::Parse),
        }
    }

    /// A label for metrics.
    pub(crate) fn result(&self) -> &'static str {
        match self {
            CallError::Refused(_) => "url_not_allowed",
            CallError::Network(_) => "fetch_error",
            CallError::Exhausted(_) => "exhausted",
            CallError::Timeout(_) => "timeout",
            CallError::Crowded => "crowded",
            CallError::Failed { .. } | CallError::Answered { .. } => "http_error",
            CallError::TooLong(_) => "parse_error",
        }
    }
}
