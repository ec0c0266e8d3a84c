//! Arrays in Postgres' text form as JSON text.

use rows::{ValueRef, json};

use super::{Scalar, bool_text, float_text, int_text, printed, utf8};
use crate::reader::Malformed;

/// Postgres' own limit of dimensions.
const DEPTH_MAX: usize = 6;

/// Appends the JSON of `text`, e.g. `{1,NULL,{"a\"b"}}`.
pub(crate) fn to_json(element: Scalar, delimiter: u8, text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let wrong = || Malformed::new("an array is not an array");
    // Unusual lower bounds are printed in front: [0:1]={1,2}.
    let mut rest = text;
    if rest.first() == Some(&b'[') {
        let equals = rest.iter().position(|&b| b == b'=').ok_or_else(wrong)?;
        rest = &rest[equals + 1..];
    }
    let mut depth = 0;
    let mut unquoted = Vec::new();
    // Whether a value or an opening brace may come next.
    let mut value_expected = true;
    while let Some((&first, tail)) = rest.split_first() {
        match first {
            b'{' if value_expected && depth < DEPTH_MAX => {
                depth += 1;
                out.push(b'[');
                rest = tail;
                if rest.first() == Some(&b'}') {
                    value_expected = false;
                }
            }
            b'}' if depth > 0 && !value_expected => {
                depth -= 1;
                out.push(b']');
                rest = tail;
                if depth == 0 {
                    return if rest.is_empty() { Ok(()) } else { Err(wrong()) };
                }
            }
            b if b == delimiter && depth > 0 && !value_expected => {
                out.push(b',');
                value_expected = true;
                rest = tail;
            }
            b'"' if depth > 0 && value_expected => {
                unquoted.clear();
                rest = unquote(tail, &mut unquoted).ok_or_else(wrong)?;
                write_element(element, &unquoted, out)?;
                value_expected = false;
            }
            _ if depth > 0 && value_expected => {
                let end = rest.iter().position(|&b| b == delimiter || b == b'}').ok_or_else(wrong)?;
                let (value, tail) = rest.split_at(end);
                if value.is_empty() {
                    return Err(wrong());
                }
                if value.eq_ignore_ascii_case(b"NULL") {
                    out.extend_from_slice(b"null");
                } else {
                    write_element(element, value, out)?;
                }
                rest = tail;
                value_expected = false;
            }
            _ => return Err(wrong()),
        }
    }
    Err(wrong())
}

/// The text of the only element of `{x}`; `None` if it is not such an array, or the element is null.
pub(crate) fn single(text: &[u8]) -> Option<Vec<u8>> {
    let inner = text.strip_prefix(b"{")?.strip_suffix(b"}")?;
    match inner.strip_prefix(b"\"") {
        None if inner.is_empty() || inner.eq_ignore_ascii_case(b"NULL") => None,
        None => Some(inner.to_vec()),
        Some(quoted) => {
            let mut out = Vec::with_capacity(quoted.len());
            unquote(quoted, &mut out)?.is_empty().then_some(out)
        }
    }
}

/// Reads up to the closing quote; returns what follows it.
fn unquote<'a>(text: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    let mut i = 0;
    loop {
        match *text.get(i)? {
            b'"' => return Some(&text[i + 1..]),
            b'\\' => {
                out.push(*text.get(i + 1)?);
                i += 2;
            }
            b => {
                out.push(b);
                i += 1;
            }
        }
    }
}

fn write_element(element: Scalar, text: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    match element {
        Scalar::Bool => out.extend_from_slice(if bool_text(text)? { b"true" } else { b"false" }),
        Scalar::Int2 | Scalar::Int4 | Scalar::Int8 => {
            // Kept digit by digit: JSON text has no limit on integers.
            int_text(text)?;
            out.extend_from_slice(text);
        }
        Scalar::Json | Scalar::Jsonb => out.extend_from_slice(utf8(text)?.as_bytes()),
        Scalar::Text | Scalar::Uuid | Scalar::Bytea => json::write_string(out, utf8(text)?),
        Scalar::Printed => json::write_string(out, &printed(text)),
        number => {
            let value = float_text(number, text)?;
            json::write_value(out, ValueRef::Float(value)).map_err(|e| Malformed::new(e.to_string()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(element: Scalar, text: &str, expected: &str) {
        let mut out = Vec::new();
        to_json(element, b',', text.as_bytes(), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{text}");
    }

    #[test]
    fn arrays_become_json() {
        check(Scalar::Int4, "{}", "[]");
        check(Scalar::Int4, "{1,NULL,-3}", "[1,null,-3]");
        check(Scalar::Int8, "{9223372036854775807}", "[9223372036854775807]");
        check(Scalar::Int4, "{{1,2},{3,4}}", "[[1,2],[3,4]]");
        check(Scalar::Int4, "[0:1]={1,2}", "[1,2]");
        check(Scalar::Bool, "{t,f,NULL}", "[true,false,null]");
        check(
            Scalar::Text,
            r#"{a,"b,c","d\"e\\f","NULL",NULL,"","{}"}"#,
            r#"["a","b,c","d\"e\\f","NULL",null,"","{}"]"#,
        );
        check(Scalar::Json, r#"{"{\"a\": [1, 2]}",null,"\"x\""}"#, r#"[{"a": [1, 2]},null,"x"]"#);
        check(Scalar::Numeric, "{1.50,NaN,Infinity}", "[1.5,null,null]");
        check(Scalar::Timestamp, r#"{"1970-01-01 00:00:01",NULL}"#, "[1000,null]");
        check(Scalar::Date, "{1970-01-02,infinity}", "[86400000,null]");
        check(Scalar::Float4, "{0.1}", "[0.1]");
        let mut out = Vec::new();
        to_json(Scalar::Printed, b';', b"{(1,1),(0,0);(2,2),(1,1)}", &mut out).unwrap();
        assert_eq!(out, br#"["(1,1),(0,0)","(2,2),(1,1)"]"#);
    }

    #[test]
    fn wrong_arrays_are_errors() {
        for bad in [
            "",
            "1",
            "{",
            "}",
            "{1",
            "{1}}",
            "{1}x",
            "{,}",
            "{1,}",
            "{\"a}",
            "{\"a\\",
            "[0:1]",
            "{1{2}}",
            "{{{{{{{1}}}}}}}",
            "{1\"a\"}",
        ] {
            assert!(to_json(Scalar::Int4, b',', bad.as_bytes(), &mut Vec::new()).is_err(), "{bad}");
        }
    }
}
