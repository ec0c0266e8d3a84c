//! Cells as JSON, printed as JavaScript would print them.

use crate::value::ValueRef;

/// Largest integer that a JavaScript number holds exactly.
pub const MAX_SAFE_INTEGER: i64 = (1 << 53) - 1;

/// An integer that a client's number type cannot hold. It must never be rounded silently.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("integer {value} is outside of the bounds that clients can represent (±2^53-1)")]
pub struct UnsafeInteger {
    pub value: i64,
}

/// Appends `value` as JSON. JSON cells are copied as they are; non-finite numbers become `null`, as JavaScript does.
pub fn write_value(out: &mut Vec<u8>, value: ValueRef<'_>) -> Result<(), UnsafeInteger> {
    match value {
        ValueRef::Null => out.extend_from_slice(b"null"),
        ValueRef::Bool(true) => out.extend_from_slice(b"true"),
        ValueRef::Bool(false) => out.extend_from_slice(b"false"),
        ValueRef::Int(i) => {
            if !(-MAX_SAFE_INTEGER..=MAX_SAFE_INTEGER).contains(&i) {
                return Err(UnsafeInteger { value: i });
            }
            write_int(out, i);
        }
        ValueRef::Float(f) if f.is_finite() => {
            out.extend_from_slice(ryu_js::Buffer::new().format_finite(f).as_bytes());
        }
        ValueRef::Float(_) => out.extend_from_slice(b"null"),
        ValueRef::Str(s) => write_string(out, s),
        ValueRef::Json(s) => out.extend_from_slice(s.as_bytes()),
    }
    Ok(())
}

fn write_int(out: &mut Vec<u8>, i: i64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    let mut n = i.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    if i < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends `s` as a JSON string.
pub fn write_string(out: &mut Vec<u8>, s: &str) {
    out.push(b'"');
    let bytes = s.as_bytes();
    let mut from = 0;
    for (i, &b) in bytes.iter().enumerate() {
        if b >= 0x20 && b != b'"' && b != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[from..i]);
        from = i + 1;
        match b {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[(b >> 4) as usize]);
                out.push(HEX[(b & 15) as usize]);
            }
        }
    }
    out.extend_from_slice(&bytes[from..]);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: ValueRef<'_>) -> String {
        let mut out = Vec::new();
        write_value(&mut out, value).expect("safe");
        String::from_utf8(out).expect("utf8")
    }

    #[test]
    fn prints_numbers_as_javascript_does() {
        for (value, expected) in [
            (ValueRef::Int(0), "0"),
            (ValueRef::Int(-12), "-12"),
            (ValueRef::Int(MAX_SAFE_INTEGER), "9007199254740991"),
            (ValueRef::Float(5.0), "5"),
            (ValueRef::Float(-0.0), "0"),
            (ValueRef::Float(1e21), "1e+21"),
            (ValueRef::Float(0.1), "0.1"),
            (ValueRef::Float(f64::NAN), "null"),
            (ValueRef::Float(f64::INFINITY), "null"),
        ] {
            assert_eq!(text(value), expected);
        }
        assert_eq!(
            write_value(&mut Vec::new(), ValueRef::Int(MAX_SAFE_INTEGER + 1)),
            Err(UnsafeInteger { value: MAX_SAFE_INTEGER + 1 })
        );
    }

    #[test]
    fn escapes_strings() {
        assert_eq!(text(ValueRef::Str("a\"b\\c\n\u{1}ž")), "\"a\\\"b\\\\c\\n\\u0001ž\"");
    }
}
