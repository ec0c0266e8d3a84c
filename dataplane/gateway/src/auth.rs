//! Tokens: what they must be, and how one replaces another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Validation, decode, decode_header};
use protocol::error::ErrorBody;
use serde_json::Value;
use tokio::sync::Mutex;
use url::Url;

use crate::api::{Caller, Operation};
use crate::options::{AuthOptions, Secret};

/// How long fetched keys are used without asking again.
const KEYS_TTL: Duration = Duration::from_secs(600);
/// Shortest time between two fetches, whatever tokens arrive.
const KEYS_COOLDOWN: Duration = Duration::from_secs(30);

/// Token options that contradict each other or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("only one of the token options jwk, secret and jwks-url may be set")]
    TooMany,
    #[error("the token option jwk is not a usable JSON Web Key: {0}")]
    Jwk(String),
    #[error("the token option jwks-url is not an http URL")]
    JwksUrl,
}

/// The credentials of a connection.
#[derive(Clone, PartialEq)]
pub(crate) enum Auth {
    None,
    Opaque(String),
    Jwt { token: String, claims: Value },
}

impl Auth {
    pub(crate) fn token(&self) -> Option<String> {
        match self {
            Auth::None => None,
            Auth::Opaque(token) | Auth::Jwt { token, .. } => Some(token.clone()),
        }
    }

    pub(crate) fn claims(&self) -> Option<Value> {
        match self {
            Auth::Jwt { claims, .. } => Some(claims.clone()),
            Auth::None | Auth::Opaque(_) => None,
        }
    }
}

/// Decides about tokens.
pub(crate) struct Verifier {
    mode: Mode,
    issuer: Option<String>,
    audience: Option<String>,
}

enum Mode {
    /// Tokens mean nothing to us; API servers judge them.
    Opaque,
    /// There is nobody to judge a token.
    Refuse,
    Secret(Vec<u8>),
    Key(Box<Jwk>),
    Keys(Box<Keys>),
}

struct Keys {
    url: Url,
    caller: Caller,
    fetched: Mutex<Option<Fetched>>,
}

struct Fetched {
    set: Arc<JwkSet>,
    at: Instant,
}

impl Verifier {
    /// `has_api` says whether both a mutate and a query URL are configured.
    pub(crate) fn build(options: &AuthOptions, caller: &Caller, has_api: bool) -> Result<Verifier, AuthError> {
        let mode = match (&options.jwk, &options.secret, &options.jwks_url) {
            (None, None, None) if has_api => Mode::Opaque,
            (None, None, None) => Mode::Refuse,
            (None, Some(Secret(secret)), None) => Mode::Secret(secret.as_bytes().to_vec()),
            (Some(Secret(jwk)), None, None) => {
                let jwk: Jwk = serde_json::from_str(jwk).map_err(|e| AuthError::Jwk(e.to_string()))?;
                DecodingKey::from_jwk(&jwk).map_err(|e| AuthError::Jwk(e.to_string()))?;
                Mode::Key(Box::new(jwk))
            }
            (None, None, Some(url)) => {
                let url = Url::parse(url).map_err(|_| AuthError::JwksUrl)?;
                if !matches!(url.scheme(), "http" | "https") {
                    return Err(AuthError::JwksUrl);
                }
                Mode::Keys(Box::new(Keys { url, caller: caller.clone(), fetched: Mutex::new(None) }))
            }
            _ => return Err(AuthError::TooMany),
        };
        Ok(Verifier { mode, issuer: options.issuer.clone(), audience: options.audience.clone() })
    }

    /// The credentials of a new connection.
    pub(crate) async fn authenticate(&self, token: Option<&str>, user_id: Option<&str>) -> Result<Auth, ErrorBody> {
        let Some(token) = token else { return Ok(Auth::None) };
        let Some(user_id) = user_id else {
            return Err(ErrorBody::unauthorized("a token was given without a userID"));
        };
        match &self.mode {
            Mode::Opaque => Ok(Auth::Opaque(token.to_owned())),
            Mode::Refuse => Err(ErrorBody::internal(
                "a token was given, but the server has neither a token option (jwk, secret, jwks-url) nor both a \
                 mutate and a query URL",
            )),
            Mode::Secret(_) | Mode::Key(_) | Mode::Keys(_) => {
                let claims = self.verify(token, user_id).await?;
                Ok(Auth::Jwt { token: token.to_owned(), claims })
            }
        }
    }

    /// The credentials after `updateAuth`; `None` when nothing changes.
    pub(crate) async fn update(
        &self,
        current: &Auth,
        token: &str,
        user_id: Option<&str>,
    ) -> Result<Option<Auth>, ErrorBody> {
        if token.is_empty() {
            return match current {
                Auth::None => Ok(None),
                Auth::Opaque(_) | Auth::Jwt { .. } => Err(ErrorBody::unauthorized("the token was withdrawn")),
            };
        }
        let next = self.authenticate(Some(token), user_id).await?;
        match (current, &next) {
            (Auth::Opaque(_), Auth::Jwt { .. }) | (Auth::Jwt { .. }, Auth::Opaque(_)) => {
                Err(ErrorBody::unauthorized("the type of the token changed"))
            }
            (Auth::Jwt { claims: old, .. }, Auth::Jwt { claims: new, .. }) => match (issued_at(old), issued_at(new)) {
                (Some(_), None) => Err(ErrorBody::unauthorized("the new token has no time of issue (iat)")),
                (Some(old), Some(new)) if new <= old => Ok(None),
                _ => Ok((*current != next).then_some(next)),
            },
            _ => Ok((*current != next).then_some(next)),
        }
    }

    async fn verify(&self, token: &str, user_id: &str) -> Result<Value, ErrorBody> {
        let invalid = |reason: String| ErrorBody::auth_invalidated(format!("the token is not valid: {reason}"));
        let header = decode_header(token).map_err(|e| invalid(e.to_string()))?;
        let key = match &self.mode {
            Mode::Secret(secret) => DecodingKey::from_secret(secret),
            Mode::Key(jwk) => usable(jwk, header.alg).map_err(invalid)?,
            Mode::Keys(keys) => {
                let jwk = keys.find(header.kid.as_deref(), header.alg).await?;
                let jwk = jwk.ok_or_else(|| invalid("no published key fits it".to_owned()))?;
                usable(&jwk, header.alg).map_err(invalid)?
            }
            Mode::Opaque | Mode::Refuse => return Err(ErrorBody::internal("no key to verify tokens with")),
        };
        // A key decides the family of algorithms; a token must not talk us into another.
        if key.family() != family(header.alg) {
            return Err(invalid("its algorithm does not fit the key".to_owned()));
        }
        let mut validation = Validation::new(header.alg);
        validation.leeway = 0;
        validation.validate_nbf = true;
        validation.validate_aud = self.audience.is_some();
        let mut required = vec!["sub"];
        validation.sub = Some(user_id.to_owned());
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        decode::<Value>(token, &key, &validation).map(|data| data.claims).map_err(|e| invalid(e.to_string()))
    }
}

impl Keys {
    async fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Option<Jwk>, ErrorBody> {
        let mut fetched = self.fetched.lock().await;
        if let Some(known) = fetched.as_ref() {
            let found = select(&known.set, kid, algorithm);
            let age = known.at.elapsed();
            if age < KEYS_COOLDOWN || (found.is_some() && age < KEYS_TTL) {
                return Ok(found);
            }
        }
        match self.fetch().await {
            Ok(set) => {
                let found = select(&set, kid, algorithm);
                *fetched = Some(Fetched { set: Arc::new(set), at: Instant::now() });
                Ok(found)
            }
            // Keys rarely change: yesterday's are better than refusing everybody.
            Err(reason) => match fetched.as_ref().and_then(|known| select(&known.set, kid, algorithm)) {
                Some(jwk) => Ok(Some(jwk)),
                // Not the client's fault: it must come back, not ask for other credentials.
                None => Err(ErrorBody::overloaded(
                    format!("the keys for tokens cannot be fetched: {reason}"),
                    5_000,
                    30_000,
                )),
            },
        }
    }

    async fn fetch(&self) -> Result<JwkSet, String> {
        let body = self.caller.get(Operation::Keys, &self.url).await.map_err(|e| e.to_string())?;
        let set: Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or("the key set has no \"keys\"")?;
        // Keys of kinds that we do not know must not hide the others.
        Ok(JwkSet { keys: keys.iter().filter_map(|key| serde_json::from_value(key.clone()).ok()).collect() })
    }
}

/// The key with the token's id, or without an id the only one that fits.
fn select(set: &JwkSet, kid: Option<&str>, algorithm: Algorithm) -> Option<Jwk> {
    let mut fitting = set.keys.iter().filter(|jwk| usable(jwk, algorithm).is_ok());
    match kid {
        Some(kid) => fitting.find(|jwk| jwk.common.key_id.as_deref() == Some(kid)).cloned(),
        None => fitting.next().filter(|_| fitting.next().is_none()).cloned(),
    }
}

fn usable(jwk: &Jwk, algorithm: Algorithm) -> Result<DecodingKey, String> {
    if let Some(named) = jwk.common.key_algorithm.as_ref().and_then(|a| a.to_string().parse::<Algorithm>().ok())
        && named != algorithm
    {
        return Err("its algorithm is not the key's".to_owned());
    }
    let key = DecodingKey::from_jwk(jwk).map_err(|e| e.to_string())?;
    if key.family() == family(algorithm) { Ok(key) } else { Err("its algorithm does not fit the key".to_owned()) }
}

fn family(algorithm: Algorithm) -> AlgorithmFamily {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => AlgorithmFamily::Hmac,
        Algorithm::ES256 | Algorithm::ES384 => AlgorithmFamily::Ec,
        Algorithm::EdDSA => AlgorithmFamily::Ed,
        _ => AlgorithmFamily::Rsa,
    }
}

fn issued_at(claims: &Value) -> Option<f64> {
    claims.get("iat").and_then(Value::as_f64)
}
