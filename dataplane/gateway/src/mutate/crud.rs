//! CRUD mutations in their group's turn: one after the other, each told to its socket if it failed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use protocol::error::{ErrorBody, Kind};
use protocol::up::Push;
use views::api::ConnectionContext;

use crate::crud::{CrudOptions, CrudOutcome, CrudRequest, CrudWriter, RateLimit};
use crate::metrics::Metrics;

/// How a push went.
pub(super) enum Written {
    Wholly,
    /// Its socket must end with this.
    Ended(ErrorBody),
}

pub(super) struct Crud {
    writer: Arc<dyn CrudWriter>,
    limiter: Option<Limiter>,
    metrics: Metrics,
}

impl Crud {
    pub(super) fn new(options: CrudOptions, metrics: Metrics) -> Crud {
        Crud { writer: options.writer, limiter: options.limit.map(Limiter::new), metrics }
    }

    /// Why this socket's CRUD mutations are not taken at all.
    pub(super) fn refusal(context: &ConnectionContext) -> Option<ErrorBody> {
        (context.token.is_some() && context.claims.is_none()).then(|| {
            ErrorBody::internal(
                "CRUD mutations need a token that this server can verify: set ZERO_AUTH_SECRET, ZERO_AUTH_JWK or \
                 ZERO_AUTH_JWKS_URL, or use custom mutators",
            )
        })
    }

    /// Applies the mutations in order; what does not end the socket is passed to `tell`.
    pub(super) async fn write(
        &self,
        group: &str,
        push: &Push,
        context: &Arc<ConnectionContext>,
        tell: impl Fn(&ErrorBody),
    ) -> Written {
        let group: Arc<str> = group.into();
        for mutation in &push.mutations {
            let ops = match mutation.crud_ops() {
                Ok(ops) => ops,
                Err(error) => return Written::Ended(ErrorBody::invalid_message(error.to_string())),
            };
            if self.limiter.as_ref().is_some_and(|limiter| !limiter.allows(&group, Instant::now())) {
                self.metrics.rate_limited_mutations.inc();
                tell(&ErrorBody::new(Kind::MutationRateLimited, "too many mutations: try again later"));
                // Those that follow would be out of order.
                return Written::Wholly;
            }
            let request = CrudRequest {
                group: Arc::clone(&group),
                client_id: mutation.client_id.clone(),
                id: mutation.id,
                ops,
                context: Arc::clone(context),
            };
            match self.writer.apply(request).await {
                CrudOutcome::Done => {}
                CrudOutcome::Failed(message) => tell(&ErrorBody::new(Kind::MutationFailed, message)),
                CrudOutcome::OutOfOrder { expected } => {
                    return Written::Ended(ErrorBody::invalid_push(format!(
                        "mutation {} of client {} arrived out of order: {expected} is next",
                        mutation.id, mutation.client_id
                    )));
                }
                CrudOutcome::Unavailable => {
                    let message = "the database for mutations does not answer";
                    return Written::Ended(ErrorBody::overloaded(message, 1_000, 30_000));
                }
            }
        }
        Written::Wholly
    }
}

/// When each group's mutations of the last window were.
struct Limiter {
    limit: RateLimit,
    groups: Mutex<HashMap<Arc<str>, VecDeque<Instant>>>,
}

/// Groups that are remembered before those without a recent mutation are forgotten.
const GROUPS_KEPT: usize = 1024;

impl Limiter {
    fn new(limit: RateLimit) -> Limiter {
        Limiter { limit, groups: Mutex::default() }
    }

    /// Counts one more, if there may be one.
    fn allows(&self, group: &Arc<str>, now: Instant) -> bool {
        let RateLimit { mutations_max, window } = self.limit;
        let is_past = |at: &Instant| now.duration_since(*at) >= window;
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if groups.len() >= GROUPS_KEPT.max(groups.capacity() / 2) && !groups.contains_key(group) {
            groups.retain(|_, times| times.back().is_some_and(|last| !is_past(last)));
        }
        let times = groups.entry(Arc::clone(group)).or_default();
        while times.front().is_some_and(is_past) {
            times.pop_front();
        }
        let allowed = times.len() < mutations_max;
        if allowed {
            times.push_back(now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_window_slides() {
        let limiter = Limiter::new(RateLimit { mutations_max: 2, window: Duration::from_secs(10) });
        let (a, b, start): (Arc<str>, Arc<str>, _) = ("a".into(), "b".into(), Instant::now());
        for (group, second, allowed) in [
            (&a, 0, true),
            (&a, 6, true),
            (&a, 7, false),
            (&b, 7, true),
            (&a, 9, false),
            (&a, 10, true),
            (&a, 15, false),
            (&a, 16, true),
        ] {
            assert_eq!(limiter.allows(group, start + Duration::from_secs(second)), allowed, "{group} {second}");
        }
    }

    #[test]
    fn groups_that_are_gone_are_forgotten() {
        let limiter = Limiter::new(RateLimit { mutations_max: 1, window: Duration::from_secs(1) });
        let start = Instant::now();
        for n in 0..20_000_u64 {
            assert!(limiter.allows(&n.to_string().into(), start + Duration::from_millis(n * 10)));
        }
        assert!(limiter.groups.lock().unwrap().len() < 2 * GROUPS_KEPT);
    }
}
