//! From Postgres' text output to cells. The stream decodes text; the initial copy decodes Postgres' binary format where that is
//! faster ([`binary`]) and must come to equal cells.

pub(crate) mod array;
pub(crate) mod binary;
pub(crate) mod time;

use rows::{Cell, ColumnType};

use crate::reader::Malformed;

/// How a value is written by Postgres and held by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Scalar(Scalar),
    /// Any array; `delimiter` stands between its elements.
    Array {
        element: Scalar,
        delimiter: u8,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric,
    Date,
    /// With and without time zone: the session's zone is UTC.
    Timestamp,
    Time,
    TimeTz,
    /// Text whose binary form is the text itself.
    Text,
    Uuid,
    Json,
    Jsonb,
    Bytea,
    /// Text as Postgres prints it; no binary form is known.
    Printed,
}

/// Object ids of built-in types; they never change.
pub(crate) fn builtin(oid: u32) -> Option<(Scalar, ColumnType)> {
    use ColumnType as C;
    use Scalar as S;
    Some(match oid {
        16 => (S::Bool, C::Bool),
        17 => (S::Bytea, C::Hidden),
        20 => (S::Int8, C::Int),
        21 => (S::Int2, C::Int),
        23 => (S::Int4, C::Int),
        25 | 1042 | 1043 => (S::Text, C::Str),
        114 => (S::Json, C::Json),
        3802 => (S::Jsonb, C::Json),
        700 => (S::Float4, C::Float),
        701 => (S::Float8, C::Float),
        1700 => (S::Numeric, C::Float),
        1082 => (S::Date, C::Float),
        1083 => (S::Time, C::Float),
        1266 => (S::TimeTz, C::Float),
        1114 | 1184 => (S::Timestamp, C::Float),
        2950 => (S::Uuid, C::Str),
        // inet, cidr, macaddr, macaddr8, pg_lsn
        869 | 650 | 829 | 774 | 3220 => (S::Printed, C::Str),
        _ => return None,
    })
}

/// Text kinds of extensions, which have no fixed object id.
pub(crate) const TEXT_EXTENSIONS: [&str; 8] = ["ean13", "isbn", "isbn13", "ismn", "ismn13", "issn", "issn13", "upc"];

/// Decodes one value of the stream.
pub(crate) fn text(kind: Kind, bytes: &[u8]) -> Result<Cell, Malformed> {
    match kind {
        Kind::Scalar(scalar) => scalar_text(scalar, bytes),
        Kind::Array { element, delimiter } => {
            let mut json = Vec::with_capacity(bytes.len() + 8);
            array::to_json(element, delimiter, bytes, &mut json)?;
            Ok(Cell::Text(utf8(&json)?.into()))
        }
    }
}

#[inline]
fn scalar_text(scalar: Scalar, bytes: &[u8]) -> Result<Cell, Malformed> {
    Ok(match scalar {
        Scalar::Bool => Cell::Bool(bool_text(bytes)?),
        Scalar::Int2 | Scalar::Int4 | Scalar::Int8 => Cell::Int(int_text(bytes)?),
        Scalar::Text | Scalar::Uuid | Scalar::Json | Scalar::Jsonb => Cell::Text(utf8(bytes)?.into()),
        Scalar::Printed => Cell::Text(printed(bytes).into()),
        Scalar::Bytea => Cell::Bytes(bytea_text(bytes)?.into()),
        number => Cell::Float(float_text(number, bytes)?),
    })
}

/// The kinds that become a double.
pub(crate) fn float_text(scalar: Scalar, bytes: &[u8]) -> Result<f64, Malformed> {
    match scalar {
        Scalar::Float4 => Ok(widen(parse_number(bytes)?)),
        Scalar::Date => time::date_text(bytes),
        Scalar::Timestamp => time::timestamp_text(bytes),
        Scalar::Time => time::time_text(bytes),
        Scalar::TimeTz => time::timetz_text(bytes),
        _ => parse_number(bytes).map(one_nan),
    }
}

fn parse_number<F: std::str::FromStr>(bytes: &[u8]) -> Result<F, Malformed> {
    std::str::from_utf8(bytes)
        .ok()
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| Malformed::new("a number is not a number"))
}

/// The double that a person means by a `real`: 0.1, not 0.10000000149011612. Both decoders go through here.
pub(crate) fn widen(f: f32) -> f64 {
    if f.is_nan() {
        return f64::NAN;
    }
    // Integers below 2^24 and infinities widen exactly; printing them would give the same.
    if f.is_infinite() || (f.fract() == 0.0 && f.abs() < 16_777_216.0) {
        return f64::from(f);
    }
    f.to_string().parse().expect("a printed number can be read")
}

/// One bit pattern for every NaN.
pub(crate) fn one_nan(f: f64) -> f64 {
    if f.is_nan() { f64::NAN } else { f }
}

pub(crate) fn bool_text(bytes: &[u8]) -> Result<bool, Malformed> {
    match bytes {
        b"t" => Ok(true),
        b"f" => Ok(false),
        _ => Err(Malformed::new("a boolean is neither t nor f")),
    }
}

#[inline]
pub(crate) fn int_text(bytes: &[u8]) -> Result<i64, Malformed> {
    let wrong = || Malformed::new("an integer is not an integer");
    let (negative, digits) = match bytes {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, bytes),
    };
    if digits.is_empty() {
        return Err(wrong());
    }
    // Accumulated below zero, where i64 reaches one further.
    let mut n = 0_i64;
    for &b in digits {
        let d = b.wrapping_sub(b'0');
        if d > 9 {
            return Err(wrong());
        }
        n = n.checked_mul(10).and_then(|n| n.checked_sub(i64::from(d))).ok_or_else(wrong)?;
    }
    if negative { Ok(n) } else { n.checked_neg().ok_or_else(wrong) }
}

pub(crate) fn utf8(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed::new("text is not UTF-8"))
}

/// What some types print is not text in the database's encoding, such as a `"char"` above 127.
pub(crate) fn printed(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn bytea_text(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let wrong = || Malformed::new("a bytea value is not in hex format");
    let hex = bytes.strip_prefix(b"\\x").ok_or_else(wrong)?;
    let digit = |b: u8| (b as char).to_digit(16).ok_or_else(wrong);
    if hex.len() % 2 != 0 {
        return Err(wrong());
    }
    hex.chunks_exact(2).map(|pair| Ok((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(scalar: Scalar, input: &str, expected: &Cell) {
        assert_eq!(&text(Kind::Scalar(scalar), input.as_bytes()).unwrap(), expected, "{input}");
    }

    #[test]
    fn literals() {
        check(Scalar::Bool, "t", &Cell::Bool(true));
        check(Scalar::Bool, "f", &Cell::Bool(false));
        check(Scalar::Int8, "-9223372036854775808", &Cell::Int(i64::MIN));
        check(Scalar::Int8, "9223372036854775807", &Cell::Int(i64::MAX));
        check(Scalar::Int2, "0", &Cell::Int(0));
        check(Scalar::Float8, "1e+300", &Cell::Float(1e300));
        check(Scalar::Float8, "-Infinity", &Cell::Float(f64::NEG_INFINITY));
        check(Scalar::Float4, "0.1", &Cell::Float(0.1));
        check(Scalar::Float4, "3.4028235e+38", &Cell::Float(3.4028235e38));
        check(Scalar::Numeric, "12345678901234567890.5", &Cell::Float(12_345_678_901_234_567_890.5));
        check(Scalar::Text, "", &Cell::Text("".into()));
        check(Scalar::Json, "{\"a\": 1}", &Cell::Text("{\"a\": 1}".into()));
        check(Scalar::Bytea, "\\x00ff10", &Cell::Bytes([0, 255, 16].into()));
        check(Scalar::Bytea, "\\x", &Cell::Bytes([].into()));
        let Cell::Float(nan) = text(Kind::Scalar(Scalar::Numeric), b"NaN").unwrap() else { panic!() };
        assert_eq!(nan.to_bits(), f64::NAN.to_bits());
    }

    #[test]
    fn wrong_values_are_errors() {
        for (scalar, input) in [
            (Scalar::Bool, "true"),
            (Scalar::Int4, ""),
            (Scalar::Int4, "-"),
            (Scalar::Int4, "1x"),
            (Scalar::Int8, "9223372036854775808"),
            (Scalar::Float8, "x"),
            (Scalar::Bytea, "\\x0"),
            (Scalar::Bytea, "\\xzz"),
            (Scalar::Bytea, "abc"),
            (Scalar::Date, "2024-13-01x"),
        ] {
            assert!(text(Kind::Scalar(scalar), input.as_bytes()).is_err(), "{input}");
        }
        assert!(text(Kind::Scalar(Scalar::Text), &[0xff]).is_err());
    }

    proptest! {
        #[test]
        fn integers_round_trip(i in any::<i64>()) {
            prop_assert_eq!(int_text(i.to_string().as_bytes()), Ok(i));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            for scalar in [
                Scalar::Bool, Scalar::Int8, Scalar::Float4, Scalar::Float8, Scalar::Numeric, Scalar::Date, Scalar::Timestamp,
                Scalar::Time, Scalar::TimeTz, Scalar::Text, Scalar::Bytea, Scalar::Json,
            ] {
                let _ = text(Kind::Scalar(scalar), &bytes);
                let _ = text(Kind::Array { element: scalar, delimiter: b',' }, &bytes);
            }
        }
    }
}
