//! Positions: the replica version (commit LSN of an upstream transaction) and the cookie of a client's view.
//!
//! A version is written as a LexiVersion: base-36 digits with one leading digit that holds their count minus one, so that
//! text order equals numeric order. A cookie is `version` or `version:config`; both parts are LexiVersions, which makes cookies
//! of one group ascend as strings as well.

use std::fmt;
use std::str::FromStr;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{text}' is not a {kind}: {reason}")]
pub struct ParseError {
    pub text: String,
    pub kind: &'static str,
    pub reason: &'static str,
}

/// The commit LSN of the last applied upstream transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    pub const ZERO: Version = Version(0);

    #[must_use]
    pub fn new(lsn: u64) -> Version {
        Version(lsn)
    }

    #[must_use]
    pub fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_lexi(self.0))
    }
}

impl FromStr for Version {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Version, ParseError> {
        from_lexi(text).map(Version).map_err(|reason| ParseError { text: text.to_owned(), kind: "version", reason })
    }
}

/// What a client's store is at: a replica version, and how often the group's query set changed since that version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie {
    pub version: Version,
    /// 0 is written without a suffix.
    pub config: u64,
}

impl Cookie {
    /// The cookie of a client that holds nothing.
    pub const EMPTY: Cookie = Cookie { version: Version::ZERO, config: 0 };

    #[must_use]
    pub fn new(version: Version, config: u64) -> Cookie {
        Cookie { version, config }
    }

    /// The next cookie at the same replica version.
    #[must_use]
    pub fn bump_config(self) -> Cookie {
        Cookie { version: self.version, config: self.config + 1 }
    }
}

impl fmt::Display for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.version)?;
        if self.config > 0 {
            write!(f, ":{}", to_lexi(self.config))?;
        }
        Ok(())
    }
}

impl FromStr for Cookie {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Cookie, ParseError> {
        let error = |reason| ParseError { text: text.chars().take(64).collect(), kind: "cookie", reason };
        let (version, config) = match text.split_once(':') {
            None => (text, None),
            Some((version, config)) => (version, Some(config)),
        };
        let version = Version(from_lexi(version).map_err(error)?);
        let config = match config {
            None => 0,
            Some(config) => from_lexi(config).map_err(error)?,
        };
        Ok(Cookie { version, config })
    }
}

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// `n` as a LexiVersion.
#[must_use]
pub fn to_lexi(mut n: u64) -> String {
    // 2^64 has 13 digits in base 36.
    let mut digits = [0_u8; 14];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = DIGITS[(n % 36) as usize];
        n /= 36;
        if n == 0 {
            break;
        }
    }
    let length = digits.len() - at;
    at -= 1;
    digits[at] = DIGITS[length - 1];
    digits[at..].iter().map(|&b| b as char).collect()
}

/// The number written as a LexiVersion.
pub fn from_lexi(text: &str) -> Result<u64, &'static str> {
    let digit = |b: u8| DIGITS.iter().position(|&d| d == b).map(|p| p as u64);
    let (&first, rest) = text.as_bytes().split_first().ok_or("it is empty")?;
    let length = digit(first).ok_or("its first character is not a base-36 digit")? + 1;
    if rest.len() as u64 != length {
        return Err("its length does not match its first digit");
    }
    rest.iter().try_fold(0_u64, |n, &b| {
        let d = digit(b).ok_or("it has a character that is not a base-36 digit")?;
        n.checked_mul(36).and_then(|n| n.checked_add(d)).ok_or("it exceeds 64 bits")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lexi_versions_match_the_published_table() {
        for (n, text) in [
            (0, "00"),
            (1, "01"),
            (35, "0z"),
            (36, "110"),
            (46655, "2zzz"),
            (1 << 32, "61z141z4"),
            ((1 << 53) - 1, "a2gosa7pa2gv"),
            (u64::MAX, "c3w5e11264sgsf"),
        ] {
            assert_eq!(to_lexi(n), text);
            assert_eq!(from_lexi(text), Ok(n));
        }
        for bad in ["", "0", "1a", "0A", "c3w5e11264sgsg", "0é"] {
            assert!(from_lexi(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cookies_ascend_as_text_too() {
        let steps = [
            Cookie::EMPTY,
            Cookie::new(Version::ZERO, 1),
            Cookie::new(Version::new(5), 0),
            Cookie::new(Version::new(5), 35),
            Cookie::new(Version::new(5), 36),
            Cookie::new(Version::new(36), 0),
            Cookie::new(Version::new(1 << 40), 3),
        ];
        for pair in steps.windows(2) {
            assert!(pair[0] < pair[1]);
            assert!(pair[0].to_string() < pair[1].to_string(), "{pair:?}");
        }
        for cookie in steps {
            assert_eq!(cookie.to_string().parse(), Ok(cookie));
        }
        assert_eq!(Cookie::new(Version::ZERO, 1).to_string(), "00:01");
        assert!("00:01:01".parse::<Cookie>().is_err());
        assert!("".parse::<Cookie>().is_err());
    }
}
