//! LIKE and ILIKE: one implementation for evaluation here and for the function that storage registers.
//!
//! A pattern is prepared once. The time to match is linear in the text for patterns without `_`, and for others in the text times
//! a sixty-fourth of the pattern, whatever either contains: both come from outside.

use memchr::memmem::Finder;
use rustc_hash::FxHashMap;

/// A prepared pattern.
///
/// The whole of a text matches: `%` any run, `_` one code point, `\` takes the next character literally. Both wildcards match
/// newlines. Case-insensitive means that both sides are lower-cased by Unicode first. A pattern that ends in a lone backslash
/// matches nothing.
#[derive(Debug)]
pub struct Pattern {
    text: Box<str>,
    case_insensitive: bool,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Never,
    /// Without `%`.
    Whole(Run),
    /// Around and between `%`.
    Parts {
        first: Run,
        middle: Vec<Search>,
        last: Run,
    },
}

/// What stands between two `%`: characters, or `None` for any one.
#[derive(Debug, Default)]
struct Run(Vec<Option<char>>);

/// A run that is looked for.
#[derive(Debug)]
enum Search {
    Text(Box<Finder<'static>>),
    Wild(Wild),
}

/// Finds a run with `_` by keeping, as bits, which of its prefixes end at a character of the text.
#[derive(Debug)]
struct Wild {
    len: usize,
    /// Bit n of a character's words: it may stand at position n.
    accepts: FxHashMap<char, Box<[u64]>>,
    /// The same for all other characters.
    others: Box<[u64]>,
}

impl Pattern {
    #[must_use]
    pub fn new(pattern: &str, case_insensitive: bool) -> Pattern {
        let shape = if case_insensitive { Shape::of(&pattern.to_lowercase()) } else { Shape::of(pattern) };
        Pattern { text: pattern.into(), case_insensitive, shape }
    }

    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        if self.case_insensitive { self.shape.matches(&text.to_lowercase()) } else { self.shape.matches(text) }
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn is_case_insensitive(&self) -> bool {
        self.case_insensitive
    }
}

/// Whether the pattern stands only for itself, so that LIKE is equality.
#[must_use]
pub fn is_literal(pattern: &str) -> bool {
    !pattern.contains(['%', '_', '\\'])
}

impl Shape {
    fn of(pattern: &str) -> Shape {
        let mut runs = vec![Run::default()];
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            let one = match c {
                '%' => {
                    runs.push(Run::default());
                    continue;
                }
                '_' => None,
                '\\' => match chars.next() {
                    Some(literal) => Some(literal),
                    None => return Shape::Never,
                },
                c => Some(c),
            };
            runs.last_mut().expect("there is one from the start").0.push(one);
        }
        let last = runs.pop().expect("there is one from the start");
        if runs.is_empty() {
            return Shape::Whole(last);
        }
        let first = runs.remove(0);
        let middle = runs.iter().filter(|run| !run.0.is_empty()).map(Search::of).collect();
        Shape::Parts { first, middle, last }
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Shape::Never => false,
            Shape::Whole(run) => run.strip_prefix(text).is_some_and(str::is_empty),
            Shape::Parts { first, middle, last } => {
                let rest = first.strip_prefix(text).and_then(|rest| last.strip_suffix(rest));
                let Some(mut rest) = rest else { return false };
                // The leftmost place leaves most for those that follow.
                for search in middle {
                    match search.end_of_first(rest) {
                        Some(end) => rest = &rest[end..],
                        None => return false,
                    }
                }
                true
            }
        }
    }
}

impl Run {
    fn strip_prefix<'t>(&self, text: &'t str) -> Option<&'t str> {
        let mut chars = text.chars();
        let fits = self.0.iter().all(|one| chars.next().is_some_and(|c| one.is_none_or(|o| o == c)));
        fits.then_some(chars.as_str())
    }

    fn strip_suffix<'t>(&self, text: &'t str) -> Option<&'t str> {
        let mut chars = text.chars();
        let fits = self.0.iter().rev().all(|one| chars.next_back().is_some_and(|c| one.is_none_or(|o| o == c)));
        fits.then_some(chars.as_str())
    }
}

impl Search {
    fn of(run: &Run) -> Search {
        match run.0.iter().copied().collect::<Option<String>>() {
            Some(text) => Search::Text(Box::new(Finder::new(&text).into_owned())),
            None => Search::Wild(Wild::of(run)),
        }
    }

    /// Where the first occurrence ends.
    fn end_of_first(&self, text: &str) -> Option<usize> {
        match self {
            Search::Text(finder) => finder.find(text.as_bytes()).map(|start| start + finder.needle().len()),
            Search::Wild(wild) => wild.end_of_first(text),
        }
    }
}

impl Wild {
    fn of(run: &Run) -> Wild {
        let words = run.0.len().div_ceil(64);
        let mut others = vec![0; words].into_boxed_slice();
        for (n, _) in run.0.iter().enumerate().filter(|(_, one)| one.is_none()) {
            others[n / 64] |= 1 << (n % 64);
        }
        let mut accepts: FxHashMap<char, Box<[u64]>> = FxHashMap::default();
        for (n, c) in run.0.iter().enumerate().filter_map(|(n, one)| Some((n, (*one)?))) {
            accepts.entry(c).or_insert_with(|| others.clone())[n / 64] |= 1 << (n % 64);
        }
        Wild { len: run.0.len(), accepts, others }
    }

    fn end_of_first(&self, text: &str) -> Option<usize> {
        let mut ends = vec![0_u64; self.others.len()];
        let last = self.len - 1;
        for (at, c) in text.char_indices() {
            let accepts = self.accepts.get(&c).unwrap_or(&self.others);
            // The empty prefix ends everywhere.
            let mut carry = 1;
            for (word, accepts) in ends.iter_mut().zip(accepts) {
                let shifted = (*word << 1) | carry;
                carry = *word >> 63;
                *word = shifted & accepts;
            }
            if ends[last / 64] & (1 << (last % 64)) != 0 {
                return Some(at + c.len_utf8());
            }
        }
        None
    }
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
            let like = |insensitive: bool| Pattern::new(pattern, insensitive).matches(text);
            assert_eq!(like(false), sensitive, "{text:?} LIKE {pattern:?}");
            assert_eq!(like(true), insensitive, "{text:?} ILIKE {pattern:?}");
        }
    }

    /// The definition, by trying everything.
    fn defined(text: &[char], pattern: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['%', rest @ ..] => (0..=text.len()).any(|n| defined(&text[n..], rest)),
            ['_', rest @ ..] => !text.is_empty() && defined(&text[1..], rest),
            ['\\', c, rest @ ..] => text.first() == Some(c) && defined(&text[1..], rest),
            ['\\'] => false,
            [c, rest @ ..] => text.first() == Some(c) && defined(&text[1..], rest),
        }
    }

    #[test]
    fn every_short_pattern_means_what_is_defined() {
        let words = |alphabet: &[char], len: u32| {
            let count = alphabet.len().pow(len);
            (0..count)
                .map(move |mut n| {
                    (0..len)
                        .map(|_| {
                            let c = alphabet[n % alphabet.len()];
                            n /= alphabet.len();
                            c
                        })
                        .collect::<Vec<char>>()
                })
                .collect::<Vec<_>>()
        };
        let texts: Vec<Vec<char>> = (0..=5).flat_map(|len| words(&['a', '\u{17e}'], len)).collect();
        for pattern in (0..=5).flat_map(|len| words(&['a', '\u{17e}', '%', '_', '\\'], len)) {
            if pattern.iter().rev().take_while(|c| **c == '\\').count() % 2 == 1 {
                continue;
            }
            let prepared = Pattern::new(&pattern.iter().collect::<String>(), false);
            for text in &texts {
                let string: String = text.iter().collect();
                assert_eq!(prepared.matches(&string), defined(text, &pattern), "{string} LIKE {}", prepared.text());
            }
        }
    }

    #[test]
    fn long_runs_with_wildcards_cross_words() {
        for len in [63, 64, 65, 127, 128, 129, 200] {
            let run: String = (0..len).map(|n| if n % 7 == 3 { '_' } else { 'a' }).collect();
            let pattern = Pattern::new(&format!("%b{run}c%"), false);
            let body: String = (0..len).map(|n| if n % 7 == 3 { 'x' } else { 'a' }).collect();
            assert!(pattern.matches(&format!("aab{}b{body}caa", &body[..9])), "{len}");
            assert!(!pattern.matches(&format!("aab{body}ab{}c", &body[1..])), "{len}");
        }
    }

    #[test]
    fn hostile_patterns_take_no_longer_than_others() {
        // By trying everything from every place these take hours.
        let text = "a".repeat(1_000_000);
        for pattern in [
            format!("%{}b%", "a".repeat(8_000)),
            format!("%{}_b%", "a".repeat(8_000)),
            format!("{}b", "%a".repeat(4_000)),
            format!("%{}b%", "_a".repeat(4_000)),
        ] {
            assert!(!Pattern::new(&pattern, true).matches(&text));
        }
    }
}
