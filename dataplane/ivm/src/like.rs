//! LIKE and ILIKE: one implementation for evaluation here and for the function that storage registers.

/// Whether the whole of `text` matches `pattern`: `%` any run, `_` one code point, `\` takes the next character literally. Both
/// wildcards match newlines. Case-insensitive means that both sides are lower-cased by Unicode first. A pattern that ends in
/// a lone backslash matches nothing.
#[must_use]
pub fn like(text: &str, pattern: &str, case_insensitive: bool) -> bool {
    if case_insensitive { matches(&text.to_lowercase(), &pattern.to_lowercase()) } else { matches(text, pattern) }
}

/// Whether the pattern stands only for itself, so that LIKE is equality.
#[must_use]
pub fn is_literal(pattern: &str) -> bool {
    !pattern.contains(['%', '_', '\\'])
}

fn matches(text: &str, pattern: &str) -> bool {
    if ends_in_escape(pattern) {
        return false;
    }
    let (mut t, mut p) = (text.chars(), pattern.chars());
    // Where to resume when a mismatch shows that the last `%` must take one more character.
    let mut resume = None;
    loop {
        let mut rest = p.clone();
        let matched = match rest.next() {
            Some('%') => {
                p = rest;
                resume = Some((t.clone(), p.clone()));
                continue;
            }
            Some('_') => t.next().is_some(),
            Some('\\') => {
                let literal = rest.next();
                t.next() == literal
            }
            Some(c) => t.next() == Some(c),
            None if t.as_str().is_empty() => return true,
            None => false,
        };
        if matched {
            p = rest;
            continue;
        }
        let Some((from, after)) = &mut resume else { return false };
        if from.next().is_none() {
            return false;
        }
        t = from.clone();
        p = after.clone();
    }
}

fn ends_in_escape(pattern: &str) -> bool {
    pattern.bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (text, pattern, sensitive, insensitive) in [
            ("", "", true, true),
            ("", "%", true, true),
            ("", "_", false, false),
            ("abc", "abc", true, true),
            ("abc", "ABC", false, true),
            ("abc", "a%", true, true),
            ("abc", "%c", true, true),
            ("abc", "%b%", true, true),
            ("abc", "a_c", true, true),
            ("abc", "a_", false, false),
            ("abc", "____", false, false),
            ("abc", "", false, false),
            ("aXbXc", "a%X%c", true, true),
            ("aab", "a%ab", true, true),
            ("mississippi", "m%iss%ip%", true, true),
            ("mississippi", "m%iss%ipp", false, false),
            ("a\nb", "a_b", true, true),
            ("a\nb\nc", "a%c", true, true),
            ("a\0b", "a%b", true, true),
            ("😀", "_", true, true),
            ("😀x", "_", false, false),
            ("100%", "100\\%", true, true),
            ("100x", "100\\%", false, false),
            ("a_b", "a\\_b", true, true),
            ("axb", "a\\_b", false, false),
            ("a\\b", "a\\\\b", true, true),
            ("ab", "a\\b", true, true),
            ("a", "a\\", false, false),
            ("a\\", "a\\", false, false),
            ("a\\", "a\\\\", true, true),
            ("anything", "%\\", false, false),
            ("ŽLUŤ", "žluť", false, true),
            ("ŽLUŤ", "ž%", false, true),
            ("\u{212A}x", "k_", false, true),
            ("ẞx", "ß%", false, true),
            ("ΑΣ", "%ς", false, true),
            ("%", "\\%", true, true),
            ("aaaaaaaaaaaaaaaaaaaaaaaaaaab", "%a%a%a%a%a%a%a%c", false, false),
        ] {
            assert_eq!(like(text, pattern, false), sensitive, "{text:?} LIKE {pattern:?}");
            assert_eq!(like(text, pattern, true), insensitive, "{text:?} ILIKE {pattern:?}");
        }
    }
}
