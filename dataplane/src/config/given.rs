//! What the command line and the environment give for each setting, and its reading by kind.
//!
//! A flag comes before the environment, the environment before the default; lists are replaced, not joined. A variable that is
//! present but empty is not given. Unknown variables are left alone: they belong to somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use clap::{Arg, ArgAction, Command, builder::ValueParser, error::ErrorKind};

use super::option::{Effect, Kind, Setting};
use super::problem::{Problem, Refusal};
use super::secret::{MASK, Secret, SecretUrl, mask_text};
use super::{exit, settings};

/// More of a value is not logged.
const VALUE_CHARS_MAX: usize = 160;

/// The environment, as a value.
pub type Environment = BTreeMap<String, String>;

const COMMANDS: &str = "\
Commands:
  zero-cache backup --help   looks at a backup, restores it, deletes it
  zero-cache health --help   asks a node whether it is ready
  zero-cache permissions --help   deploys, checks and shows permissions";
const ABOUT: &str = "Syncs the results of queries over a Postgres database to many clients, live.";

/// The settings that were given, and the problems found while they are read.
pub struct Given {
    texts: BTreeMap<&'static str, Vec<String>>,
    problems: Vec<Problem>,
    read: BTreeSet<&'static str>,
}

impl Given {
    /// `arguments` are those after the program's name.
    pub fn gather(arguments: &[String], environment: &Environment) -> Result<Self, Refusal> {
        let matches = command()
            .try_get_matches_from(std::iter::once("zero-cache").chain(arguments.iter().map(String::as_str)))
            .map_err(|error| match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Refusal::Help(error.to_string()),
                _ => Refusal::Usage(error.to_string()),
            })?;
        let mut given = Given { texts: BTreeMap::new(), problems: Vec::new(), read: BTreeSet::new() };
        for setting in settings::all() {
            let flag = setting.flag().and_then(|flag| matches.get_many::<String>(&flag));
            let texts = match flag {
                Some(words) => words.cloned().collect(),
                None => match environment.get(setting.variable).filter(|text| !text.is_empty()) {
                    Some(text) if setting.kind == Kind::List => split(text),
                    Some(text) => vec![text.clone()],
                    None => continue,
                },
            };
            if setting.effect != Effect::Internal {
                given.check_kind(setting, &texts);
                given.texts.insert(setting.variable, texts);
            }
        }
        Ok(given)
    }

    fn check_kind(&mut self, setting: &'static Setting, texts: &[String]) {
        let text = texts.first().map_or("", String::as_str);
        let (expected, remedy) = match setting.kind {
            Kind::Number if number(text).is_none() => ("a number", "give a number such as 10".to_owned()),
            Kind::Bool if boolean(text).is_none() => ("a boolean", "give true, 1, false or 0".to_owned()),
            Kind::Choice(choices) if !choices.contains(&text) => {
                ("one of the known values", format!("give one of {}", choices.join(", ")))
            }
            _ => return,
        };
        self.problem(setting.variable, format!("{} is not {expected}", shown(setting, text)), remedy);
    }

    pub fn problem(&mut self, variable: &'static str, fault: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem { variable, fault: fault.into(), remedy: remedy.into() });
    }

    /// All problems so far, in the order of the table.
    pub fn into_problems(mut self) -> Vec<Problem> {
        let order: BTreeMap<_, _> = settings::all().enumerate().map(|(at, setting)| (setting.variable, at)).collect();
        self.problems.sort_by_key(|problem| order.get(problem.variable).copied());
        self.problems
    }

    pub fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// Variables whose setting was asked for, whether given or not.
    #[cfg(test)]
    pub fn read_variables(&self) -> &BTreeSet<&'static str> {
        &self.read
    }

    pub fn is_given(&self, variable: &'static str) -> bool {
        self.texts.contains_key(variable)
    }

    /// The text of a setting that is checked but not obeyed.
    pub fn peek(&self, variable: &str) -> Option<&str> {
        self.texts.get(variable)?.first().map(String::as_str)
    }

    /// Settings that were given, in the order of the table.
    pub fn given(&self) -> impl Iterator<Item = &'static Setting> + '_ {
        settings::all().filter(|setting| self.texts.contains_key(setting.variable))
    }

    /// The same with their values, fit to be logged.
    pub fn masked(&self) -> Vec<(&'static str, String)> {
        self.given().map(|setting| (setting.variable, masked(setting, &self.texts[setting.variable]))).collect()
    }

    /// The text given, or the table's default.
    pub fn text(&mut self, variable: &'static str) -> Option<String> {
        let setting = self.setting(variable);
        match self.texts.get(variable) {
            Some(texts) => texts.first().cloned(),
            None => setting.default.map(str::to_owned),
        }
    }

    pub fn secret(&mut self, variable: &'static str) -> Option<Secret> {
        self.text(variable).map(Secret::new)
    }

    pub fn list(&mut self, variable: &'static str) -> Vec<String> {
        let setting = self.setting(variable);
        match self.texts.get(variable) {
            Some(texts) => texts.clone(),
            None => setting.default.map(split).unwrap_or_default(),
        }
    }

    pub fn boolean(&mut self, variable: &'static str) -> bool {
        // A malformed boolean is a problem already; what is returned for it is never used.
        self.text(variable).and_then(|text| boolean(&text)).unwrap_or_default()
    }

    pub fn number(&mut self, variable: &'static str) -> Option<f64> {
        self.text(variable).and_then(|text| number(&text))
    }

    /// A whole number in the range; the range's start stands in for one that is not.
    pub fn integer(&mut self, variable: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let value = self.number(variable)?;
        if value.fract() == 0.0 && value >= f64::from(*range.start()) && value <= f64::from(*range.end()) {
            // Whole and within u32 by the check above.
            return Some(value as u32);
        }
        let (low, high) = range.into_inner();
        let remedy = if high == u32::MAX {
            format!("give a whole number of at least {low}")
        } else {
            format!("give a whole number from {low} to {high}")
        };
        self.problem(variable, format!("{value} is out of range"), remedy);
        Some(low)
    }

    /// A span of time whose number counts `unit`s.
    pub fn duration(&mut self, variable: &'static str, unit: Duration) -> Option<Duration> {
        let value = self.number(variable)?;
        let span = Duration::try_from_secs_f64(value * unit.as_secs_f64());
        if span.is_err() {
            self.problem(variable, format!("{value} is not a span of time"), "give a number that is not negative");
        }
        span.ok()
    }

    /// A URL with one of the schemes.
    pub fn url(&mut self, variable: &'static str, schemes: &[&str], example: &str) -> Option<SecretUrl> {
        let text = self.text(variable)?;
        let fault = match SecretUrl::parse(&text) {
            Ok(url) if schemes.contains(&url.scheme()) => return Some(url),
            Ok(url) => format!("the scheme \"{}\" is not {}", url.scheme(), schemes.join(" or ")),
            Err(error) => format!("not a URL ({error})"),
        };
        self.problem(variable, fault, format!("give a URL such as {example}, with special characters percent-encoded"));
        None
    }

    /// A URL of Postgres, in all the forms that providers print. What cannot be obeyed is a problem here, not at the first connect.
    pub fn postgres(&mut self, variable: &'static str) -> Option<SecretUrl> {
        let text = self.text(variable)?;
        let text = text.trim();
        if !["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme)) {
            return self.url(variable, &["postgres", "postgresql"], POSTGRES_EXAMPLE);
        }
        match text.parse::<upstream::Address>() {
            Ok(_) => Some(SecretUrl::of_postgres(text)),
            Err(error) => {
                let remedy = format!("give a URL such as {POSTGRES_EXAMPLE}, with special characters percent-encoded");
                self.problem(variable, error.to_string(), remedy);
                None
            }
        }
    }

    fn setting(&mut self, variable: &'static str) -> &'static Setting {
        self.read.insert(variable);
        settings::all()
            .find(|setting| setting.variable == variable)
            .expect("every variable that is read is in the table")
    }
}

pub(super) const POSTGRES_EXAMPLE: &str = "postgres://user:password@host:5432/database";

/// The command line, derived from the table.
fn command() -> Command {
    let mut command = Command::new("zero-cache")
        .about(ABOUT)
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(format!("{}\n\n{COMMANDS}", exit::HELP))
        .args_override_self(true);
    for setting in settings::all() {
        let Some(flag) = setting.flag() else { continue };
        let mut help = format!("{} [env: {}]", setting.meaning, setting.variable);
        if let Some(default) = setting.default.or(setting.derived) {
            help.push_str(&format!(" [default: {default}]"));
        }
        let arg = Arg::new(flag.clone())
            .long(flag)
            .help(help)
            .action(ArgAction::Set)
            .value_parser(ValueParser::string())
            .allow_negative_numbers(true)
            .hide(setting.hidden);
        command = command.arg(match setting.kind {
            Kind::Text => arg.value_name("TEXT"),
            Kind::Number => arg.value_name("NUMBER"),
            Kind::Bool => arg.value_name("BOOL").num_args(0..=1).default_missing_value("true"),
            Kind::List => arg.value_name("TEXT").num_args(1..),
            Kind::Choice(choices) => arg.value_name(choices.join("|")),
        });
    }
    command
}

/// What a log line may say of a value: of a secret nothing, unless it is the URL of a database.
fn masked(setting: &Setting, texts: &[String]) -> String {
    let mut values = texts.iter().map(|text| {
        if setting.secret {
            let url = SecretUrl::parse(text).ok().filter(|url| matches!(url.scheme(), "postgres" | "postgresql"));
            return url.map_or_else(|| MASK.to_owned(), |url| url.masked().to_owned());
        }
        let text = mask_text(text);
        match text.split_once('?') {
            // Keys may be in there.
            Some((place, _)) if place.contains("://") => format!("{place}?{MASK}"),
            _ => text,
        }
    });
    let whole = values.by_ref().collect::<Vec<_>>().join(", ");
    let line: String = whole.chars().take(VALUE_CHARS_MAX).flat_map(char::escape_debug).collect();
    if whole.chars().nth(VALUE_CHARS_MAX).is_some() { format!("{line}...") } else { line }
}

fn shown(setting: &Setting, text: &str) -> String {
    if setting.secret { "the value".to_owned() } else { format!("{:?}", text.chars().take(80).collect::<String>()) }
}

fn split(text: &str) -> Vec<String> {
    text.split(',').map(|part| part.trim().to_owned()).collect()
}

pub(super) fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

/// A finite number in JavaScript syntax.
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let radix = match text.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => 16,
        Some("0o") => 8,
        Some("0b") => 2,
        _ => 10,
    };
    if radix != 10 {
        // A prefixed literal has no sign; precision beyond 2^53 is lost, as in the original.
        let digits = text.get(2..).filter(|digits| !digits.starts_with('+'))?;
        return u64::from_str_radix(digits, radix).ok().map(|value| value as f64);
    }
    // Rust also reads "inf" and "nan", which are not wanted.
    let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    if plain { text.parse().ok().filter(|value: &f64| value.is_finite()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_javascript_reads_them() {
        for (text, value) in [
            ("10", Some(10.0)),
            (" 10 ", Some(10.0)),
            ("-1", Some(-1.0)),
            (".5", Some(0.5)),
            ("5.", Some(5.0)),
            ("1e3", Some(1000.0)),
            ("0x1F", Some(31.0)),
            ("0b101", Some(5.0)),
            ("0o17", Some(15.0)),
            ("0x+1", None),
            ("1_000", None),
            ("10ms", None),
            ("inf", None),
            ("NaN", None),
            ("1e999", None),
            ("e", None),
            ("", None),
            ("é1", None),
        ] {
            assert_eq!(number(text), value, "{text:?}");
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn variables_are_unique() {
        let mut seen = BTreeSet::new();
        for setting in settings::all() {
            assert!(seen.insert(setting.variable), "{} is twice in the table", setting.variable);
        }
    }
}
