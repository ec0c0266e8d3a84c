//! Calls of the application's API servers.

mod call;
mod endpoint;

pub(crate) use call::{Caller, Operation};
pub use endpoint::EndpointError;
pub(crate) use endpoint::{Endpoint, Request};

use protocol::error::{CallReason, Failure};

/// Why a call gave no usable answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{0}")]
    Refused(String),
    #[error("the API server cannot be reached: {0}")]
    Network(String),
    #[error("the API server did not answer within {0} s")]
    Timeout(u64),
    #[error("the API server answered with status {status}")]
    Http { status: u16, body: String },
    #[error("the answer of the API server is longer than {0} bytes")]
    TooLong(usize),
}

impl CallError {
    /// What the client is told.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            CallError::Refused(_) | CallError::Network(_) => Failure::ZeroCache(CallReason::Internal),
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
            CallError::Timeout(_) => "timeout",
            CallError::Http { .. } => "http_error",
            CallError::TooLong(_) => "parse_error",
        }
    }
}
