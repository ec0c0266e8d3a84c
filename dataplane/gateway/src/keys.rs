//! The published keys that tokens are verified with.
//!
//! They are fetched in the background, and nobody waits for that while there is a key that fits: a server of keys that is slow, away
//! or broken takes nothing from those whose key is known. What is waited for is bounded: the first fetch, and one for a key that
//! nobody has heard of, however many tokens name such keys.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use protocol::error::ErrorBody;
use serde_json::Value;
use tokio::sync::watch;
use url::Url;

use crate::api::{Caller, Operation};

/// How long fetched keys are used before they are looked at again.
const FRESH: Duration = Duration::from_secs(600);
/// Shortest time between two fetches for keys that are not known, whatever tokens arrive.
const COOLDOWN: Duration = Duration::from_secs(15);
/// The same while there are no keys at all.
const FIRST_COOLDOWN: Duration = Duration::from_secs(1);

/// Cheap to clone: clones share what was fetched.
#[derive(Clone)]
pub(crate) struct Keys {
    inner: Arc<Inner>,
}

struct Inner {
    url: Url,
    caller: Caller,
    /// Of one fetch, retries included.
    timeout: Duration,
    state: Mutex<State>,
    /// How many fetches have ended.
    ended: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    known: Option<Arc<JwkSet>>,
    fetched_at: Option<Instant>,
    asked_at: Option<Instant>,
    is_fetching: bool,
    fault: Option<String>,
}

/// Whether a token can be verified with a key.
pub(crate) type Fits<'a> = &'a (dyn Fn(&Jwk) -> bool + Sync);

impl State {
    fn find(&self, kid: Option<&str>, fits: Fits<'_>) -> Option<Jwk> {
        select(self.known.as_ref()?, kid, fits)
    }
}

impl Keys {
    pub(crate) fn new(url: Url, caller: Caller, timeout: Duration) -> Keys {
        let ended = watch::Sender::new(0);
        Keys { inner: Arc::new(Inner { url, caller, timeout, state: Mutex::default(), ended }) }
    }

    /// Fetches the keys before anybody asks for one.
    pub(crate) fn prepare(&self) {
        self.fetch(&mut self.state());
    }

    /// The key for a token; `None` if no published one fits it.
    pub(crate) async fn find(&self, kid: Option<&str>, fits: Fits<'_>) -> Result<Option<Jwk>, ErrorBody> {
        let mut ended = self.inner.ended.subscribe();
        let is_asked = {
            let mut state = self.state();
            let found = state.find(kid, fits);
            let is_due = |since: Option<Instant>, pause| since.is_none_or(|at| at.elapsed() >= pause);
            if let Some(found) = found {
                if is_due(state.fetched_at, FRESH) && is_due(state.asked_at, COOLDOWN) {
                    self.fetch(&mut state);
                }
                return Ok(Some(found));
            }
            let pause = if state.known.is_some() { COOLDOWN } else { FIRST_COOLDOWN };
            if is_due(state.asked_at, pause) {
                self.fetch(&mut state);
            }
            state.is_fetching
        };
        if is_asked {
            // The fetch has its own limit of time, and the sender lives as long as self.
            let _ = ended.changed().await;
        }
        let state = self.state();
        match (state.find(kid, fits), &state.fault) {
            // Not the client's fault: it must come back, not ask for other credentials.
            (None, Some(fault)) => {
                let reason = format!("the keys for tokens cannot be fetched: {fault}");
                Err(ErrorBody::overloaded(reason, 5_000, 30_000))
            }
            (found, _) => Ok(found),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One at a time.
    fn fetch(&self, state: &mut State) {
        if std::mem::replace(&mut state.is_fetching, true) {
            return;
        }
        state.asked_at = Some(Instant::now());
        let keys = self.clone();
        tokio::spawn(async move {
            let inner = &keys.inner;
            let fetched = match inner.caller.get(Operation::Keys, &inner.url, inner.timeout).await {
                Ok(body) => read(&body),
                Err(error) => Err(error.to_string()),
            };
            let mut state = keys.state();
            state.is_fetching = false;
            match fetched {
                Ok(set) => {
                    state.known = Some(Arc::new(set));
                    state.fetched_at = Some(Instant::now());
                    state.fault = None;
                }
                Err(fault) => {
                    tracing::warn!(fault, is_known = state.known.is_some(), "cannot fetch the keys for tokens");
                    state.fault = Some(fault);
                }
            }
            drop(state);
            inner.ended.send_modify(|count| *count += 1);
        });
    }
}

fn read(body: &[u8]) -> Result<JwkSet, String> {
    let set: Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let keys = set.get("keys").and_then(Value::as_array).ok_or("the key set has no \"keys\"")?;
    // Keys of kinds that we do not know must not hide the others.
    Ok(JwkSet { keys: keys.iter().filter_map(|key| serde_json::from_value(key.clone()).ok()).collect() })
}

/// The key with the token's id, or without an id the only one that fits.
fn select(set: &JwkSet, kid: Option<&str>, fits: Fits<'_>) -> Option<Jwk> {
    let mut fitting = set.keys.iter().filter(|jwk| fits(jwk));
    match kid {
        Some(kid) => fitting.find(|jwk| jwk.common.key_id.as_deref() == Some(kid)).cloned(),
        None => fitting.next().filter(|_| fitting.next().is_none()).cloned(),
    }
}

/// The key to verify with, if it is for tokens that are signed so.
pub(crate) fn usable(jwk: &Jwk, algorithm: Algorithm) -> Result<DecodingKey, String> {
    if let Some(named) = jwk.common.key_algorithm.as_ref().and_then(|a| a.to_string().parse::<Algorithm>().ok())
        && named != algorithm
    {
        return Err("its algorithm is not the key's".to_owned());
    }
    let curve = match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(parameters) => Some(&parameters.curve),
        _ => None,
    };
    let is_of_other_curve = match algorithm {
        Algorithm::ES256 => curve != Some(&EllipticCurve::P256),
        Algorithm::ES384 => curve != Some(&EllipticCurve::P384),
        _ => false,
    };
    if is_of_other_curve {
        return Err("its algorithm does not fit the key".to_owned());
    }
    let key = DecodingKey::from_jwk(jwk).map_err(|e| e.to_string())?;
    if key.family() == family(algorithm) { Ok(key) } else { Err("its algorithm does not fit the key".to_owned()) }
}

pub(crate) fn family(algorithm: Algorithm) -> AlgorithmFamily {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => AlgorithmFamily::Hmac,
        Algorithm::ES256 | Algorithm::ES384 => AlgorithmFamily::Ec,
        Algorithm::EdDSA => AlgorithmFamily::Ed,
        _ => AlgorithmFamily::Rsa,
    }
}
