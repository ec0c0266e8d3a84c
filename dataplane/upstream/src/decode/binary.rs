//! Postgres' binary format, for the initial copy.

use rows::CellRef;

use super::{Kind, Scalar, array, one_nan, printed, time, utf8, widen};
use crate::reader::{Malformed, Reader};

/// Decodes one value and hands it to `emit`. `scratch` holds what has to be built.
#[inline]
pub(crate) fn value(
    kind: Kind,
    bytes: &[u8],
    scratch: &mut Vec<u8>,
    emit: &mut impl FnMut(CellRef<'_>),
) -> Result<(), Malformed> {
    let scalar = match kind {
        Kind::Scalar(scalar) => scalar,
        // Selected as text: one decoder for arrays.
        Kind::Array { element, delimiter } => {
            scratch.clear();
            array::to_json(element, delimiter, bytes, scratch)?;
            emit(CellRef::Text(utf8(scratch)?));
            return Ok(());
        }
    };
    let cell = match scalar {
        Scalar::Bool => match bytes {
            [0] => CellRef::Bool(false),
            [1] => CellRef::Bool(true),
            _ => return Err(Malformed::new("a boolean is neither 0 nor 1")),
        },
        Scalar::Int2 => CellRef::Int(i64::from(i16::from_be_bytes(exactly(bytes)?))),
        Scalar::Int4 => CellRef::Int(i64::from(i32::from_be_bytes(exactly(bytes)?))),
        Scalar::Int8 => CellRef::Int(i64::from_be_bytes(exactly(bytes)?)),
        Scalar::Float4 => CellRef::Float(widen(f32::from_be_bytes(exactly(bytes)?))),
        Scalar::Float8 => CellRef::Float(one_nan(f64::from_be_bytes(exactly(bytes)?))),
        Scalar::Numeric => CellRef::Float(numeric(bytes, scratch)?),
        Scalar::Date => CellRef::Float(time::date_binary(i32::from_be_bytes(exactly(bytes)?))),
        Scalar::Timestamp => CellRef::Float(time::timestamp_binary(i64::from_be_bytes(exactly(bytes)?))),
        Scalar::Time => CellRef::Float(time::time_binary(i64::from_be_bytes(exactly(bytes)?))),
        Scalar::TimeTz => {
            let mut r = Reader::new(bytes);
            let us = r.i64()?;
            CellRef::Float(time::timetz_binary(us, r.i32()?))
        }
        Scalar::Text | Scalar::Json => CellRef::Text(utf8(bytes)?),
        Scalar::Printed => {
            emit(CellRef::Text(&printed(bytes)));
            return Ok(());
        }
        Scalar::Jsonb => match bytes {
            [1, text @ ..] => CellRef::Text(utf8(text)?),
            _ => return Err(Malformed::new("a jsonb value has an unknown version")),
        },
        Scalar::Uuid => {
            uuid(exactly(bytes)?, scratch);
            CellRef::Text(utf8(scratch)?)
        }
        Scalar::Bytea => CellRef::Bytes(bytes),
    };
    emit(cell);
    Ok(())
}

fn exactly<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Malformed> {
    bytes.try_into().map_err(|_| Malformed::new(format!("a value has {} bytes instead of {N}", bytes.len())))
}

fn uuid(bytes: [u8; 16], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.clear();
    for (i, b) in bytes.into_iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        out.push(HEX[usize::from(b >> 4)]);
        out.push(HEX[usize::from(b & 15)]);
    }
}

/// The double nearest to the decimal, as parsing its text gives.
fn numeric(bytes: &[u8], scratch: &mut Vec<u8>) -> Result<f64, Malformed> {
    const EXACT_POWERS: [f64; 23] = [
        1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19,
        1e20, 1e21, 1e22,
    ];
    let mut r = Reader::new(bytes);
    let count = i32::from(r.u16()?);
    let weight = i32::from(r.i16()?);
    let sign = r.u16()?;
    r.u16()?;
    let negative = match sign {
        0 => false,
        0x4000 => true,
        0xC000 => return Ok(f64::NAN),
        0xD000 => return Ok(f64::INFINITY),
        0xF000 => return Ok(f64::NEG_INFINITY),
        _ => return Err(Malformed::new("a numeric value has an unknown sign")),
    };
    // The value is the integer of all base-10000 digits, times ten to this power.
    let exponent = (weight - count + 1) * 4;
    let magnitude = if count <= 4 {
        let mut mantissa = 0_u64;
        for _ in 0..count {
            mantissa = mantissa * 10_000 + u64::from(digit(&mut r)?);
        }
        // Both factors are exact doubles, so the one operation rounds correctly.
        let power = EXACT_POWERS.get(exponent.unsigned_abs() as usize);
        match power {
            Some(power) if mantissa < 1 << 53 && exponent < 0 => mantissa as f64 / power,
            Some(power) if mantissa < 1 << 53 => mantissa as f64 * power,
            _ => parsed(&format!("{mantissa}e{exponent}"))?,
        }
    } else {
        scratch.clear();
        for _ in 0..count {
            let d = digit(&mut r)?;
            for part in [d / 1000, d / 100 % 10, d / 10 % 10, d % 10] {
                scratch.push(b'0' + part as u8);
            }
        }
        scratch.extend_from_slice(format!("e{exponent}").as_bytes());
        parsed(utf8(scratch)?)?
    };
    Ok(if negative { -magnitude } else { magnitude })
}

fn digit(r: &mut Reader<'_>) -> Result<u16, Malformed> {
    let d = r.u16()?;
    if d < 10_000 { Ok(d) } else { Err(Malformed::new("a numeric value has a digit above 9999")) }
}

fn parsed(text: &str) -> Result<f64, Malformed> {
    text.parse().map_err(|_| Malformed::new("a numeric value is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numeric_bytes(sign: u16, weight: i16, digits: &[u16]) -> Vec<u8> {
        let mut b = Vec::new();
        b.extend(u16::try_from(digits.len()).unwrap().to_be_bytes());
        b.extend(weight.to_be_bytes());
        b.extend(sign.to_be_bytes());
        b.extend(0_u16.to_be_bytes());
        for d in digits {
            b.extend(d.to_be_bytes());
        }
        b
    }

    #[test]
    fn numerics() {
        for (sign, weight, digits, expected) in [
            (0, 0, &[][..], 0.0),
            (0, 0, &[1][..], 1.0),
            (0x4000, 0, &[1, 5000][..], -1.5),
            (0, -1, &[1][..], 0.0001),
            (0, 1, &[1234, 5678, 9000][..], 12_345_678.9),
            (0, 4, &[1, 2345, 6789, 123, 4567][..], 12_345_678_901_234_567.0),
            (0, 100, &[1][..], f64::INFINITY),
            (0xC000, 0, &[][..], f64::NAN),
            (0xD000, 0, &[][..], f64::INFINITY),
            (0xF000, 0, &[][..], f64::NEG_INFINITY),
        ] {
            let got = numeric(&numeric_bytes(sign, weight, digits), &mut Vec::new()).unwrap();
            assert!(got == expected || (got.is_nan() && expected.is_nan()), "{got} {expected}");
        }
        assert!(numeric(&numeric_bytes(7, 0, &[1]), &mut Vec::new()).is_err());
        assert!(numeric(&numeric_bytes(0, 0, &[10_000]), &mut Vec::new()).is_err());
    }

    proptest! {
        #[test]
        fn numerics_equal_their_text(digits in proptest::collection::vec(0..10_000_u16, 1..12), weight in -6..12_i16) {
            let mut text = String::new();
            for d in &digits {
                text.push_str(&format!("{d:04}"));
            }
            let exponent = (i32::from(weight) - i32::try_from(digits.len()).unwrap() + 1) * 4;
            let expected: f64 = format!("{text}e{exponent}").parse().unwrap();
            prop_assert_eq!(numeric(&numeric_bytes(0, weight, &digits), &mut Vec::new()), Ok(expected));
        }

        #[test]
        fn reals_equal_their_text(bits in any::<u32>()) {
            let f = f32::from_bits(bits);
            prop_assume!(!f.is_nan());
            let text = super::super::float_text(Scalar::Float4, f.to_string().as_bytes()).unwrap();
            prop_assert_eq!(widen(f).to_bits(), text.to_bits());
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            for scalar in [Scalar::Bool, Scalar::Int2, Scalar::Int4, Scalar::Float4, Scalar::Numeric, Scalar::Date,
                           Scalar::Timestamp, Scalar::Time, Scalar::TimeTz, Scalar::Uuid, Scalar::Jsonb, Scalar::Text] {
                let _ = value(Kind::Scalar(scalar), &bytes, &mut Vec::new(), &mut |_| {});
            }
        }
    }
}
