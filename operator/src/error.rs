//! What can go wrong while a resource is reconciled, and what follows from it: the label of the metric, the reason of the
//! event, and when to try again.

use std::time::Duration;

/// A step of a reconcile that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("{doing}: {}", said(.source))]
    Api {
        /// Verb first, as in `apply Service shop-rm`.
        doing: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("{doing}: the API server did not answer within {} s", REQUEST_SECONDS)]
    TimedOut { doing: String },
    /// Somebody else made an object of this name in the same moment.
    #[error("{kind} {name} is another's; it is left alone")]
    Taken { kind: &'static str, name: String },
    /// A kind of object that cannot be watched: nothing can be planned without it.
    #[error("{0}")]
    Unobserved(String),
    #[error("the reconciler stopped in the middle; this is a fault of the operator: {0}")]
    Panicked(String),
}

/// Longest time one request to the API server may take.
pub const REQUEST_SECONDS: u64 = 30;

/// What to do about an error. Its label is stable: alerts match on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Category {
    /// Somebody else wrote in between; looking again settles it.
    Conflict,
    /// The operator lacks a right.
    Forbidden,
    /// The object cannot be as it was asked for.
    Refused,
    /// What was written to is not there any more, or its kind is not served.
    Missing,
    /// The API server asked for patience, or is in trouble.
    Busy,
    /// There was no answer.
    Unreachable,
    /// Part of the cluster cannot be seen.
    Unobserved,
    Panicked,
}

impl Category {
    pub const ALL: [Category; 8] = [
        Category::Conflict,
        Category::Forbidden,
        Category::Refused,
        Category::Missing,
        Category::Busy,
        Category::Unreachable,
        Category::Unobserved,
        Category::Panicked,
    ];

    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Category::Conflict => "conflict",
            Category::Forbidden => "forbidden",
            Category::Refused => "refused",
            Category::Missing => "missing",
            Category::Busy => "busy",
            Category::Unreachable => "unreachable",
            Category::Unobserved => "unobserved",
            Category::Panicked => "panicked",
        }
    }

    /// First and longest time to wait before the next attempt.
    fn pace(self) -> (Duration, Duration) {
        let (first_ms, longest_ms) = match self {
            Category::Conflict => (200, 5_000),
            Category::Missing | Category::Busy | Category::Unreachable => (1_000, 30_000),
            // Only a person can change these; what they change is not always watched.
            Category::Forbidden | Category::Refused | Category::Unobserved => (5_000, 60_000),
            Category::Panicked => (10_000, 300_000),
        };
        (Duration::from_millis(first_ms), Duration::from_millis(longest_ms))
    }

    /// How long to wait after the given number of failures in a row. `jitter` is between 0 and 1 and keeps resources that
    /// failed together from coming back together.
    #[must_use]
    pub fn delay(self, failures: u32, jitter: f64) -> Duration {
        let (first, longest) = self.pace();
        let doubled = first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)));
        doubled.min(longest).mul_f64(0.75 + 0.5 * jitter)
    }

    /// Whether a person should read of it at once. The others are told of when they last.
    #[must_use]
    pub fn is_persistent(self) -> bool {
        matches!(self, Category::Forbidden | Category::Refused | Category::Unobserved | Category::Panicked)
    }
}

impl Error {
    #[must_use]
    pub fn category(&self) -> Category {
        match self {
            Error::Api { source, .. } => match &**source {
                kube::Error::Api(status) => match status.code {
                    409 => Category::Conflict,
                    401 | 403 => Category::Forbidden,
                    404 | 410 => Category::Missing,
                    400 | 405 | 413 | 415 | 422 => Category::Refused,
                    _ => Category::Busy,
                },
                _ => Category::Unreachable,
            },
            Error::TimedOut { .. } => Category::Unreachable,
            Error::Taken { .. } => Category::Conflict,
            Error::Unobserved(_) => Category::Unobserved,
            Error::Panicked(_) => Category::Panicked,
        }
    }
}

/// The API server's own words, without the client's wrapping.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.message.is_empty() => format!("{} {}", status.code, status.reason),
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Waits for an answer of the API server, but not for ever.
pub async fn request<T>(
    doing: impl FnOnce() -> String,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(Duration::from_secs(REQUEST_SECONDS), call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(Error::Api { doing: doing(), source: Box::new(source) }),
        Err(_) => Err(Error::TimedOut { doing: doing() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: u16) -> Error {
        let status = kube::core::Status { code, message: "no".to_owned(), ..kube::core::Status::default() };
        Error::Api { doing: "apply Service a".to_owned(), source: Box::new(kube::Error::Api(Box::new(status))) }
    }

    #[test]
    fn answers_have_categories() {
        for (code, category) in [
            (403, Category::Forbidden),
            (404, Category::Missing),
            (409, Category::Conflict),
            (422, Category::Refused),
            (429, Category::Busy),
            (500, Category::Busy),
        ] {
            assert_eq!(answered(code).category(), category, "{code}");
        }
        assert_eq!(answered(403).to_string(), "apply Service a: no");
    }

    #[test]
    fn delays_grow_to_a_limit_and_are_spread() {
        for category in Category::ALL {
            let delays: Vec<Duration> = (1..40).map(|failures| category.delay(failures, 0.5)).collect();
            assert!(delays.is_sorted() && delays[0] < delays[38] && delays[38] <= Duration::from_secs(300));
            assert!(category.delay(3, 0.0) < category.delay(3, 1.0));
        }
    }
}
