//! Kubernetes' quantities, and numbers of pods that may be shares of all: what its API takes, in a schema and when they are read.
//!
//! A document that holds what Kubernetes takes nowhere else must not be stored: whatever is made of it would be refused.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A number and a suffix. Exponents of more digits mean numbers that no computer has.
const QUANTITY: &str = r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,3})?$";
/// The same with a digit that is not zero.
const POSITIVE: &str = r"^\+?(0*[1-9][0-9]*(\.[0-9]*)?|0*\.0*[1-9][0-9]*)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,3})?$";
const SHARE_OF_ALL: &str = r"^(100|[0-9]{1,2})%$";
const SHARE: &str = r"^[0-9]{1,5}%$";
const TEXT_MAX: u32 = 64;
const COUNT_MAX: i64 = i32::MAX as i64;

/// Kubernetes caps larger numbers.
const NANOS_MAX: u128 = (i64::MAX as u128) * 1_000_000_000;
/// Digits that are heeded: more than the largest number has.
const DIGITS_MAX: usize = 30;

/// Billionths of a quantity that is not negative, such as `20Gi`, `1.5G`, `100m` or `1e9`; nothing where Kubernetes would not take
/// it. What is smaller than a billionth is rounded up.
#[must_use]
pub fn nanos(text: &str) -> Option<u128> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + part.len() == 0 || part.contains('.') {
        return None;
    }
    let (exponent, doublings) = scale(suffix)?;
    let all = format!("{whole}{part}");
    let significant = all.trim_start_matches('0');
    let heeded = &significant[..significant.len().min(DIGITS_MAX)];
    let digits: u128 = if heeded.is_empty() { 0 } else { heeded.parse().ok()? };
    let dropped = i64::try_from(significant.len() - heeded.len()).ok()?;
    let exponent = exponent + 9 + dropped - i64::try_from(part.len()).ok()?;
    let doubled = digits.saturating_mul(1 << doublings);
    let power = 10_u128.checked_pow(u32::try_from(exponent.unsigned_abs()).ok()?);
    let nanos = match (exponent >= 0, power) {
        _ if digits == 0 => 0,
        (true, Some(power)) => doubled.saturating_mul(power),
        (true, None) => NANOS_MAX,
        (false, Some(power)) => doubled.div_ceil(power),
        (false, None) => 1,
    };
    Some(nanos.min(NANOS_MAX))
}

/// Powers of ten and of two that a suffix stands for.
fn scale(suffix: &str) -> Option<(i64, u32)> {
    Some(match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        exponent => {
            let number = exponent.strip_prefix(['e', 'E'])?;
            let digits = number.strip_prefix(['+', '-']).unwrap_or(number);
            let is_number = (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
            (number.parse().ok().filter(|_| is_number)?, 0)
        }
    })
}

/// Whether Kubernetes takes it as a number of pods, or as a share of all of them.
#[must_use]
pub fn is_share(text: &str, may_exceed_all: bool) -> bool {
    let Some(number) = text.strip_suffix('%') else { return false };
    let is_number = (1..=5).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number && (may_exceed_all || number.parse::<u32>().is_ok_and(|number| number <= 100 && text.len() <= 4))
}

fn quantity_of(pattern: &str, least: u32) -> Value {
    json!({ "x-kubernetes-int-or-string": true, "maxLength": TEXT_MAX, "pattern": pattern, "minimum": least })
}

/// A quantity greater than zero.
pub(crate) fn positive(_: &mut SchemaGenerator) -> Schema {
    schema(quantity_of(POSITIVE, 1))
}

/// Kubernetes' own resource requirements, whose quantities are looked at by nobody else before pods are made.
pub(crate) fn resources(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<k8s_openapi::api::core::v1::ResourceRequirements>();
    let properties = schema.get_mut("properties").expect("resource requirements are an object");
    for name in ["limits", "requests"] {
        properties[name]["additionalProperties"] = quantity_of(QUANTITY, 0);
    }
    schema
}

/// Pods that may be added.
pub(crate) fn surplus(_: &mut SchemaGenerator) -> Schema {
    share(SHARE)
}

/// Pods of those there are.
pub(crate) fn some_of_all(_: &mut SchemaGenerator) -> Schema {
    share(SHARE_OF_ALL)
}

fn share(pattern: &str) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true, "maxLength": TEXT_MAX, "pattern": pattern, "minimum": 0, "maximum": COUNT_MAX,
    })
}

fn schema(value: Value) -> Schema {
    Schema::try_from(value).expect("an object is a schema")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_compared_by_size() {
        const ONE: u128 = 1_000_000_000;
        for (text, expected) in [
            ("20Gi", (20 << 30) * ONE),
            ("1.5Gi", (3 << 29) * ONE),
            ("1536Mi", (3 << 29) * ONE),
            ("1G", ONE * ONE),
            ("1e9", ONE * ONE),
            ("1E+9", ONE * ONE),
            ("5e-1", ONE / 2),
            (".5k", 500 * ONE),
            ("100m", ONE / 10),
            ("0.1n", 1),
            ("+17", 17 * ONE),
            ("000", 0),
            ("1.", ONE),
            ("9999999999999999999999999999Ei", NANOS_MAX),
            ("1e999", NANOS_MAX),
            ("1e-999", 1),
        ] {
            assert_eq!(nanos(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn shares_are_those_of_workloads() {
        for text in ["0%", "5%", "25%", "100%"] {
            assert!(is_share(text, false) && is_share(text, true), "{text}");
        }
        for text in ["101%", "99999%"] {
            assert!(!is_share(text, false) && is_share(text, true), "{text}");
        }
        for text in ["", "%", "25", "-5%", "2.5%", " 5%", "5 %", "100000%"] {
            assert!(!is_share(text, true), "{text}");
        }
    }
}
