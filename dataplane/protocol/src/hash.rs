//! The hashes that clients use for ids. A hash received from a client is an opaque key and is never recomputed.

use xxhash_rust::xxh32::xxh32;

#[must_use]
pub fn h32(text: &str) -> u32 {
    xxh32(text.as_bytes(), 0)
}

#[must_use]
pub fn h64(text: &str) -> u64 {
    u64::from(xxh32(text.as_bytes(), 0)) << 32 | u64::from(xxh32(text.as_bytes(), 1))
}

#[must_use]
pub fn h128(text: &str) -> u128 {
    (0..4).fold(0, |hash, seed| hash << 32 | u128::from(xxh32(text.as_bytes(), seed)))
}

/// Lower-case base 36 without padding.
#[must_use]
pub fn base36(mut n: u128) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut text = Vec::with_capacity(25);
    loop {
        text.push(char::from(DIGITS[(n % 36) as usize]));
        n /= 36;
        if n == 0 {
            break;
        }
    }
    text.iter().rev().collect()
}

/// The id that clients give to a named query.
#[must_use]
pub fn named_query_hash(name: &str, args_json: &str) -> String {
    base36(u128::from(h64(&format!("{name}:{args_json}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_clients() {
        assert_eq!(h32("abc"), 852_579_327);
        assert_eq!(base36(u128::from(h64("abc"))), "rtjjvs99c9of");
        assert_eq!(h128("abc") >> 64, u128::from(h64("abc")));
        assert_eq!(named_query_hash("issueById", r#"[{"id":"1"}]"#), "pe2z7etdnrdw");
        assert_eq!(named_query_hash("allIssues", "[]"), "3hqsmc1p5vs54");
        assert_eq!(base36(u128::from(h64(r#"{"table":"issue"}"#))), "2uh1iy5olazzo");
        assert_eq!(base36(0), "0");
    }
}
