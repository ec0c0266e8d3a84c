//! A length of time as a user writes it.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A length of time such as `30s`, `10m` or `1h30m`. Keeps the text it was made of, so that it is shown as it was written.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    text: String,
    seconds: u64,
}

impl Span {
    #[must_use]
    pub fn seconds(&self) -> u64 {
        self.seconds
    }

    #[must_use]
    pub fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct InvalidSpan(String);

impl std::fmt::Display for InvalidSpan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} is not a length of time; write it like 30s, 10m or 1h30m", self.0)
    }
}

impl std::error::Error for InvalidSpan {}

impl TryFrom<String> for Span {
    type Error = InvalidSpan;

    fn try_from(text: String) -> Result<Span, InvalidSpan> {
        match parse(&text) {
            Some(seconds) => Ok(Span { text, seconds }),
            None => Err(InvalidSpan(text)),
        }
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        span.text
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<&'static str> for Span {
    /// For defaults, which are literals.
    fn from(text: &'static str) -> Span {
        Span { text: text.to_owned(), seconds: parse(text).expect("a default is a length of time") }
    }
}

fn parse(text: &str) -> Option<u64> {
    let mut seconds = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest.get(..digits).filter(|digits| (1..=6).contains(&digits.len()))?.parse().ok()?;
        let unit = match rest.as_bytes().get(digits)? {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            _ => return None,
        };
        seconds += number * unit;
        rest = &rest[digits + 1..];
    }
    (!text.is_empty()).then_some(seconds)
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // The rules read it with CEL's duration(), which takes these units.
        json_schema!({ "type": "string", "maxLength": 24, "pattern": "^([0-9]{1,6}[hms])+$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_kept_as_written() {
        for (text, seconds) in [("15s", 15), ("30m", 1800), ("1h30m", 5400), ("168h", 604_800), ("0s", 0)] {
            let span = Span::try_from(text.to_owned()).unwrap();
            assert_eq!((span.seconds(), span.to_string().as_str()), (seconds, text));
        }
        for text in ["", "5", "m", "-5m", "1.5h", "1d", "5 m", "1234567s", "ä1s"] {
            assert!(Span::try_from(text.to_owned()).is_err(), "{text:?} was read");
        }
    }
}
