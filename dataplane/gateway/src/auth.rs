//! Tokens: what they must be, and how one replaces another.

use std::time::{Duration, SystemTime};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use protocol::error::ErrorBody;
use serde_json::Value;
use url::Url;

use crate::api::Caller;
use crate::es512;
use crate::keys::{Keys, family, usable};
use crate::options::{AuthOptions, Secret};

/// A token that is good for longer than this is good for ever.
const SECONDS_MAX: f64 = 1e11;

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

    /// When it stops being good; `None` if it does not say, or nobody here can read it.
    pub(crate) fn expires_at(&self) -> Option<SystemTime> {
        let Auth::Jwt { claims, .. } = self else { return None };
        let seconds = claims.get("exp")?.as_f64().filter(|seconds| (0.0..SECONDS_MAX).contains(seconds))?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs_f64(seconds))
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
    Keys(Keys),
}

/// Whether tokens can be verified with a configured key.
pub fn check_jwk(text: &str) -> Result<(), AuthError> {
    read_jwk(text).map(drop)
}

fn read_jwk(text: &str) -> Result<Jwk, AuthError> {
    let jwk: Jwk = serde_json::from_str(text).map_err(|e| AuthError::Jwk(e.to_string()))?;
    DecodingKey::from_jwk(&jwk).map_err(|e| AuthError::Jwk(e.to_string()))?;
    Ok(jwk)
}

impl Verifier {
    /// `has_api` says whether both a mutate and a query URL are configured. A set of keys is fetched within `keys_timeout`.
    pub(crate) fn build(
        options: &AuthOptions,
        caller: &Caller,
        keys_timeout: Duration,
        has_api: bool,
    ) -> Result<Verifier, AuthError> {
        let mode = match (&options.jwk, &options.secret, &options.jwks_url) {
            (None, None, None) if has_api => Mode::Opaque,
            (None, None, None) => Mode::Refuse,
            (None, Some(Secret(secret)), None) => Mode::Secret(secret.as_bytes().to_vec()),
            (Some(Secret(jwk)), None, None) => Mode::Key(Box::new(read_jwk(jwk)?)),
            (None, None, Some(url)) => {
                let url = Url::parse(url).map_err(|_| AuthError::JwksUrl)?;
                if !matches!(url.scheme(), "http" | "https") {
                    return Err(AuthError::JwksUrl);
                }
                let keys = Keys::new(url, caller.clone(), keys_timeout);
                keys.prepare();
                Mode::Keys(keys)
            }
            _ => return Err(AuthError::TooMany),
        };
        Ok(Verifier { mode, issuer: options.issuer.clone(), audience: options.audience.clone() })
    }

    /// The credentials of a new connection.
    pub(crate) async fn authenticate(&self, token: Option<&str>, user_id: Option<&str>) -> Result<Auth, ErrorBody> {
        let Some(token) = token else {
            // Where tokens are verified here, nothing but a token says who somebody is; an API server may take the claim for granted.
            return match user_id {
                Some(_) if self.verifies() => Err(ErrorBody::unauthorized("a userID was given without a token")),
                _ => Ok(Auth::None),
            };
        };
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

    /// Whether tokens are judged here, and not by an API server alone.
    fn verifies(&self) -> bool {
        matches!(self.mode, Mode::Secret(_) | Mode::Key(_) | Mode::Keys(_))
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
        if let Some(token) = es512::read(token) {
            let jwk = match &self.mode {
                Mode::Key(jwk) => (**jwk).clone(),
                Mode::Keys(keys) => {
                    let jwk = keys.find(token.key_id.as_deref(), &es512::fits).await?;
                    jwk.ok_or_else(|| invalid("no published key fits it".to_owned()))?
                }
                Mode::Secret(_) | Mode::Opaque | Mode::Refuse => {
                    return Err(invalid("its algorithm does not fit the key".to_owned()));
                }
            };
            return token.verify(&jwk, &self.validation(es512::SIGNED_ANEW, user_id)).map_err(invalid);
        }
        let header = decode_header(token).map_err(|e| invalid(e.to_string()))?;
        let key = match &self.mode {
            Mode::Secret(secret) => DecodingKey::from_secret(secret),
            Mode::Key(jwk) => usable(jwk, header.alg).map_err(invalid)?,
            Mode::Keys(keys) => {
                let jwk = keys.find(header.kid.as_deref(), &|jwk| usable(jwk, header.alg).is_ok()).await?;
                let jwk = jwk.ok_or_else(|| invalid("no published key fits it".to_owned()))?;
                usable(&jwk, header.alg).map_err(invalid)?
            }
            Mode::Opaque | Mode::Refuse => return Err(ErrorBody::internal("no key to verify tokens with")),
        };
        // A key decides the family of algorithms; a token must not talk us into another.
        if key.family() != family(header.alg) {
            return Err(invalid("its algorithm does not fit the key".to_owned()));
        }
        let validation = self.validation(header.alg, user_id);
        decode::<Value>(token, &key, &validation).map(|data| data.claims).map_err(|e| invalid(e.to_string()))
    }

    /// What claims must be.
    fn validation(&self, algorithm: Algorithm, user_id: &str) -> Validation {
        let mut validation = Validation::new(algorithm);
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
        validation
    }
}

fn issued_at(claims: &Value) -> Option<f64> {
    claims.get("iat").and_then(Value::as_f64)
}
