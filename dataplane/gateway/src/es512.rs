//! Tokens signed with ES512, which the library that reads all others does not know.
//!
//! Only the signature is looked at here. What the claims must be is that library's business: it reads them from a token that is signed
//! anew with a key of the moment, so that no second set of checks can differ from the first.

use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde_json::Value;

/// How tokens are signed anew.
pub(crate) const SIGNED_ANEW: Algorithm = Algorithm::HS256;
/// Of one coordinate of a point.
const COORDINATE_BYTES: usize = 66;

/// A token whose header says that it is signed so.
pub(crate) struct Token<'a> {
    pub key_id: Option<String>,
    signed: &'a str,
    payload: &'a str,
    signature: &'a str,
}

/// `None` if the token is another's to read.
pub(crate) fn read(token: &str) -> Option<Token<'_>> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, payload) = signed.split_once('.')?;
    let header: Value = serde_json::from_slice(&BASE64.decode(header).ok()?).ok()?;
    // What is critical and not known makes a token unreadable; the library says so.
    if header.get("alg")?.as_str()? != "ES512" || header.get("crit").is_some() {
        return None;
    }
    let key_id = header.get("kid").and_then(Value::as_str).map(str::to_owned);
    Some(Token { key_id, signed, payload, signature })
}

/// Whether tokens can be verified with the key.
pub(crate) fn fits(jwk: &Jwk) -> bool {
    point(jwk).is_ok()
}

/// The uncompressed point of a key.
fn point(jwk: &Jwk) -> Result<Vec<u8>, String> {
    let AlgorithmParameters::EllipticCurve(parameters) = &jwk.algorithm else {
        return Err("its algorithm does not fit the key".to_owned());
    };
    // The library has no name for ES512.
    let is_named_otherwise =
        jwk.common.key_algorithm.is_some_and(|algorithm| algorithm != KeyAlgorithm::UNKNOWN_ALGORITHM);
    if parameters.curve != EllipticCurve::P521 || is_named_otherwise {
        return Err("its algorithm does not fit the key".to_owned());
    }
    let mut point = vec![4];
    for coordinate in [&parameters.x, &parameters.y] {
        let bytes = BASE64.decode(coordinate.trim_end_matches('=')).map_err(|error| error.to_string())?;
        let pad = COORDINATE_BYTES.checked_sub(bytes.len()).ok_or("a coordinate of the key is too long")?;
        point.extend(std::iter::repeat_n(0, pad));
        point.extend(bytes);
    }
    Ok(point)
}

impl Token<'_> {
    /// The claims, if `jwk` signed them and they are as `validation` wants, which must be for [`SIGNED_ANEW`].
    pub(crate) fn verify(&self, jwk: &Jwk, validation: &Validation) -> Result<Value, String> {
        let signature = BASE64.decode(self.signature).map_err(|error| error.to_string())?;
        UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, point(jwk)?)
            .verify(self.signed.as_bytes(), &signature)
            .map_err(|_| "InvalidSignature".to_owned())?;
        let claims = BASE64.decode(self.payload).map_err(|error| error.to_string())?;
        let claims: Value = serde_json::from_slice(&claims).map_err(|error| error.to_string())?;
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| "no randomness".to_owned())?;
        let anew =
            encode(&Header::new(SIGNED_ANEW), &claims, &EncodingKey::from_secret(&key)).map_err(|e| e.to_string())?;
        let data = decode::<Value>(&anew, &DecodingKey::from_secret(&key), validation);
        data.map(|data| data.claims).map_err(|error| error.to_string())
    }
}
