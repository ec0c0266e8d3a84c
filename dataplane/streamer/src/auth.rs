//! The secret that nodes share.
//!
//! Either configured, or derived from the admin password, which deployments set on every node anyway. It travels as a bearer
//! token and is compared by digest in constant time.

use std::fmt;

use hkdf::Hkdf;
use hyper::header::{AUTHORIZATION, HeaderMap};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

const SALT: &[u8] = b"zero-cache";
/// What the derived key is for; another use of the password must not lead to the same key.
const LABEL: &[u8] = b"change stream between nodes, version 1";

/// Never printed.
#[derive(Clone)]
pub struct Token {
    text: String,
    /// Of the text, then of the others that are accepted.
    digests: Vec<[u8; 32]>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("ZERO_CHANGE_STREAMER_TOKEN must consist of visible ASCII characters without spaces")]
pub struct InvalidToken;

impl Token {
    /// The configured token, or else the one that follows from the admin password. Empty values count as missing; `None` if both
    /// are.
    pub fn from_config(token: Option<&str>, admin_password: Option<&str>) -> Result<Option<Token>, InvalidToken> {
        if let Some(token) = token.map(str::trim).filter(|token| !token.is_empty()) {
            let is_sendable = token.bytes().all(|b| b.is_ascii_graphic());
            return if is_sendable { Ok(Some(Token::new(token.to_owned()))) } else { Err(InvalidToken) };
        }
        Ok(admin_password.filter(|password| !password.is_empty()).map(Token::derive))
    }

    fn new(text: String) -> Token {
        Token { digests: vec![Sha256::digest(text.as_bytes()).into()], text }
    }

    fn derive(password: &str) -> Token {
        let mut key = [0_u8; 32];
        Hkdf::<Sha256>::new(Some(SALT), password.as_bytes())
            .expand(LABEL, &mut key)
            .expect("32 bytes are a length that HKDF with SHA-256 can produce");
        Token::new(key.iter().map(|b| format!("{b:02x}")).collect())
    }

    /// Shows this token, and accepts the other one as well: nodes learn of a new token one after the other.
    #[must_use]
    pub fn accepting(mut self, other: &Token) -> Token {
        self.digests.extend(&other.digests);
        self
    }

    /// The value of the `Authorization` header.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.text)
    }

    /// Whether a request carries an accepted token.
    pub(crate) fn is_in(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
        given.is_some_and(|given| {
            let digest: [u8; 32] = Sha256::digest(given.as_bytes()).into();
            // All are compared, whichever it is.
            self.digests.iter().fold(false, |is_known, known| is_known | bool::from(known.ct_eq(&digest)))
        })
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn headers(value: &str) -> HeaderMap {
        [(AUTHORIZATION, HeaderValue::from_str(value).unwrap())].into_iter().collect()
    }

    #[test]
    fn the_token_comes_first_then_the_password() {
        let both = Token::from_config(Some(" abc "), Some("pw")).unwrap().unwrap();
        assert_eq!(both.header(), "Bearer abc");
        let derived = Token::from_config(Some(""), Some("pw")).unwrap().unwrap();
        // All nodes of a deployment must derive the same, also across releases.
        assert_eq!(derived.header(), format!("Bearer {DERIVED}"));
        assert!(Token::from_config(None, Some("")).unwrap().is_none());
        assert!(Token::from_config(None, None).unwrap().is_none());
        assert_eq!(Token::from_config(Some("a\nb"), None).unwrap_err(), InvalidToken);
        assert!(!format!("{both:?}{derived:?}").contains("abc"));
    }

    const DERIVED: &str = "28c3d1b3a6ef981ff3247e7d60a44801ce5aea9c435345975feac2b6509bedb2";

    #[test]
    fn only_the_right_token_is_accepted() {
        let token = Token::from_config(Some("abc"), None).unwrap().unwrap();
        for good in ["Bearer abc", "bearer abc", "BEARER  abc"] {
            assert!(token.is_in(&headers(good)), "{good}");
        }
        for bad in ["Bearer abd", "Bearer ab", "Bearer abcd", "Bearer ", "Basic abc", "abc", ""] {
            assert!(!token.is_in(&headers(bad)), "{bad}");
        }
        assert!(!token.is_in(&HeaderMap::new()));
        let other = Token::from_config(Some("old"), None).unwrap().unwrap();
        let both = token.clone().accepting(&other);
        assert_eq!(both.header(), "Bearer abc");
        assert!(both.is_in(&headers("Bearer abc")) && both.is_in(&headers("Bearer old")));
        assert!(!both.is_in(&headers("Bearer older")) && !token.is_in(&headers("Bearer old")));
    }
}
