//! Calls of the application's API servers.

mod call;
mod endpoint;

pub(crate) use call::{Caller, Operation};
pub use endpoint::EndpointError;
pub(crate) use endpoint::{Endpoint, Request};

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
    #[error("the API server did not answer within {0} s")]
    Timeout(u64),
    #[error("the API server answered with status {status}")]
    Http { status: u16, body: String },
    #[error("the answer of the API server is longer than {0} bytes")]
    TooLong(usize),
}

impl CallError {
    /// That the client should come back later, if that is all there is to say.
    pub(crate) fn passes(&self) -> Option<ErrorBody> {
        let passes = matches!(self, CallError::Exhausted(_));
        passes.then(|| ErrorBody::overloaded("this node cannot make further connections for the moment", 2_000, 30_000))
    }

    /// What the client is told otherwise.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            CallError::Refused(_) | CallError::Network(_) | CallError::Exhausted(_) => {
                Failure::ZeroCache(CallReason::Internal)
            }
            CallError::Timeout(_) => Failure::ZeroCache(CallReason::Timeout),
            CallError::Http { status, body } => Failure::http(*status, body),
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
            CallError::Http { .. } => "http_error",
            CallError::TooLong(_) => "parse_error",
        }
    }
}
