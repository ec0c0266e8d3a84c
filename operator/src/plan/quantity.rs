//! Kubernetes' quantities, as far as sizes of volumes go.

/// Bytes of a quantity such as `20Gi`, `1.5G` or `1e9`; nothing when it is none.
pub(super) fn bytes(text: &str) -> Option<u128> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let scale: u128 = match suffix {
        "" => 1,
        "k" => 1000,
        "M" => 1000_u128.pow(2),
        "G" => 1000_u128.pow(3),
        "T" => 1000_u128.pow(4),
        "P" => 1000_u128.pow(5),
        "E" => 1000_u128.pow(6),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        exponent => 10_u128.checked_pow(exponent.strip_prefix(['e', 'E'])?.parse().ok()?)?,
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let whole: u128 = if whole.is_empty() && !part.is_empty() { 0 } else { whole.parse().ok()? };
    let part = part.get(..part.len().min(9)).unwrap_or_default();
    let fraction = match part.is_empty() {
        true => 0,
        false => part.parse::<u128>().ok()?.checked_mul(scale)? / 10_u128.pow(u32::try_from(part.len()).ok()?),
    };
    whole.checked_mul(scale)?.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_compared_by_bytes() {
        for (text, expected) in [
            ("20Gi", 20 << 30),
            ("1.5Gi", 3 << 29),
            ("1536Mi", 3 << 29),
            ("1G", 1_000_000_000),
            ("1e9", 1_000_000_000),
            (".5k", 500),
            ("17", 17),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in ["", "Gi", "1Zi", "-1", "1.2.3", "e9x", "9999999999999999999999999999Ei"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
