//! The `.env` file of the working directory: variables for a development machine. The real environment wins.
//!
//! One `NAME=value` per line; `export ` before the name and comments after `#` are allowed. Double quotes and no quotes expand
//! `$NAME`, `${NAME}` and `${NAME:-default}`; single quotes expand nothing. Quoted values may span lines.

use std::path::Path;

use super::given::Environment;

/// `environment` completed by the file. A file that is not there or cannot be read adds nothing.
pub fn with_file(environment: Environment, path: &Path) -> Environment {
    match std::fs::read_to_string(path) {
        Ok(text) => complete(environment, &text),
        Err(_) => environment,
    }
}

fn complete(mut environment: Environment, text: &str) -> Environment {
    let mut rest = text;
    while let Some((name, value, after)) = next(rest) {
        rest = after;
        if let Some(name) = name
            && !environment.contains_key(name)
        {
            let value = match value {
                Value::Literal(text) => text.to_owned(),
                Value::Expanded(text) => expand(text, &environment),
                Value::Escaped(text) => expand(&text.replace("\\n", "\n").replace("\\r", "\r"), &environment),
            };
            environment.insert(name.to_owned(), value);
        }
    }
    environment
}

enum Value<'a> {
    Literal(&'a str),
    Expanded(&'a str),
    /// In double quotes, where `\n` is a line break.
    Escaped(&'a str),
}

/// The first entry, if its line is one, and the text after it; `None` at the end.
fn next(text: &str) -> Option<(Option<&str>, Value<'_>, &str)> {
    if text.is_empty() {
        return None;
    }
    let (line, after_line) = text.split_once('\n').unwrap_or((text, ""));
    let skip = Some((None, Value::Literal(""), after_line));
    let Some((name, _)) = line.split_once('=') else { return skip };
    let value_start = name.len() + 1;
    let name = name.trim();
    let name = name.strip_prefix("export ").unwrap_or(name).trim();
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
        return skip;
    }
    let value = text[value_start..].trim_start_matches([' ', '\t']);
    if let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'' | '`'))
        && let Some(length) = value[1..].find(quote)
    {
        let inner = &value[1..=length];
        let after = value[length + 2..].split_once('\n').map_or("", |(_, after)| after);
        return Some((Some(name), if quote == '"' { Value::Escaped(inner) } else { Value::Literal(inner) }, after));
    }
    let bare = line[value_start..].split_once('#').map_or(&line[value_start..], |(before, _)| before);
    Some((Some(name), Value::Expanded(bare.trim()), after_line))
}

fn expand(text: &str, environment: &Environment) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        if let Some(before) = out.strip_suffix('\\') {
            out.truncate(before.len());
            out.push('$');
            rest = &rest[at + 1..];
            continue;
        }
        let reference = &rest[at + 1..];
        let (name, default, length) = match reference.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((inner, _)) => {
                let (name, default) = inner.split_once(":-").unwrap_or((inner, ""));
                (name, default, inner.len() + 2)
            }
            None => {
                let length = reference.bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
                (&reference[..length], "", length)
            }
        };
        if name.is_empty() {
            out.push('$');
        } else {
            out.push_str(environment.get(name).filter(|value| !value.is_empty()).map_or(default, String::as_str));
        }
        rest = &reference[length..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, name: &str, value: Option<&str>) {
        let environment =
            Environment::from([("HOST".to_owned(), "db".to_owned()), ("REAL".to_owned(), "real".to_owned())]);
        assert_eq!(complete(environment, text).get(name).map(String::as_str), value, "{text:?}");
    }

    #[test]
    fn entries() {
        check("A=1", "A", Some("1"));
        check("# note\n\nexport A = 1 # one\nB=2", "A", Some("1"));
        check("# note\n\nexport A = 1 # one\nB=2", "B", Some("2"));
        check("A=\"x # y\" # z\nB=2", "A", Some("x # y"));
        check("A='x\ny'\nB=2", "A", Some("x\ny"));
        check("A='x\ny'\nB=2", "B", Some("2"));
        check("A=\"x\\ny\"", "A", Some("x\ny"));
        check("A='$HOST'", "A", Some("$HOST"));
        check("A=postgres://$HOST:5432/${NAME:-zero}", "A", Some("postgres://db:5432/zero"));
        check("A=1\nB=\"${A}0\"", "B", Some("10"));
        check("A=\\$5 and $", "A", Some("$5 and $"));
        check("A=", "A", Some(""));
        check("A=\"unclosed", "A", Some("\"unclosed"));
        check("REAL=file", "REAL", Some("real"));
        check("not an entry\nA=1", "A", Some("1"));
        check("a b=1", "a b", None);
    }
}
