//! Log lines on standard output: text for people, or one JSON object per line for machines.
//!
//! `ZERO_LOG_LEVEL` and `ZERO_LOG_FORMAT` are the only switches. Libraries below the sockets log at `info` at most, because
//! their `debug` lines drown ours and may hold what clients sent.
//!
//! Messages are lower-case and say what happened; what varies goes into fields. Rows, tokens and passwords are never logged.
//!
//! Invariant: one event is one line, and a field ends where it says so, whatever clients and servers put into what is logged. In
//! JSON the format sees to that; in text [`Fields`] does.

use std::fmt::{self, Debug, Write as _};
use std::io::IsTerminal as _;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::SetGlobalDefaultError;
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer as _;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;

use crate::config::{LogFormat, Logging};

const LIBRARIES: &[&str] = &[
    "h2",
    "hyper",
    "hyper_rustls",
    "hyper_util",
    "mio",
    "rustls",
    "rustls_platform_verifier",
    "tokio",
    "tokio_postgres",
    "tokio_tungstenite",
    "tungstenite",
];

/// Starts logging for the process. Fails when logging was started before.
pub fn start(logging: Logging) -> Result<(), SetGlobalDefaultError> {
    let colours = std::io::stdout().is_terminal();
    tracing::subscriber::set_global_default(subscriber(logging, colours, std::io::stdout))
}

fn subscriber<W>(logging: Logging, colours: bool, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let filter = filter(logging.level);
    match logging.format {
        LogFormat::Text => {
            let layer = layer.with_ansi(colours).fmt_fields(Fields).with_filter(filter);
            Box::new(tracing_subscriber::registry().with(layer))
        }
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(false).with_filter(filter);
            Box::new(tracing_subscriber::registry().with(layer))
        }
    }
}

/// The message, then `name=value` for each field. A value with blanks, or with anything that is no printable character, is quoted.
struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line { writer, is_empty: true, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'writer> {
    writer: Writer<'writer>,
    is_empty: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn write(&mut self, field: &Field, text: &str, is_quoted: bool) {
        let blank = if std::mem::take(&mut self.is_empty) { "" } else { " " };
        self.result = self.result.and_then(|()| match field.name() {
            "message" => write!(self.writer, "{blank}{}", OnOneLine(text)),
            name if is_quoted || !is_plain(text) => write!(self.writer, "{blank}{name}={text:?}"),
            name => write!(self.writer, "{blank}{name}={text}"),
        });
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, value, true);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, &format!("{value:?}"), false);
    }
}

/// Whether a value without quotes cannot be taken for anything else.
fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && c != '=' && is_printable(c))
}

fn is_printable(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

/// A message as it is, but for what would end the line or steer a terminal.
struct OnOneLine<'a>(&'a str);

impl fmt::Display for OnOneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match is_printable(c) {
            true => f.write_char(c),
            false => write!(f, "{}", c.escape_debug()),
        })
    }
}

fn filter(level: Level) -> Targets {
    let libraries = LevelFilter::from_level(level).min(LevelFilter::INFO);
    Targets::new().with_default(level).with_targets(LIBRARIES.iter().map(|target| (*target, libraries)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: Level, format: LogFormat) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let logging = Logging { level, format };
        tracing::subscriber::with_default(subscriber(logging, false, move || writer.clone()), || {
            tracing::info!(port = 4848, "serving clients");
            tracing::debug!("a detail");
            tracing::debug!(target: "hyper::proto", "a detail of a library");
        });
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_is_one_object_per_line() {
        let text = logged(Level::INFO, LogFormat::Json);
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "serving clients");
        assert_eq!(line["port"], 4848);
    }

    #[test]
    fn text_is_for_people() {
        let text = logged(Level::INFO, LogFormat::Text);
        assert_eq!(text.lines().count(), 1);
        assert!(text.trim_end().ends_with("serving clients port=4848"), "{text}");
        assert!(!text.contains('\u{1b}'));
    }

    /// What a client can have put into a line, and what is to be read there.
    #[test]
    fn nobody_forges_a_line_or_a_field() {
        const FORGED: &str = "x\n2026-01-01T00:00:00Z  INFO zero: fine\r\u{1b}[2K\u{9b}1A\u{2028}\u{202e}\" level=\"INFO\" {\"level\":\"INFO\"}";
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = Lines::default();
            let writer = lines.clone();
            let logging = Logging { level: Level::INFO, format };
            tracing::subscriber::with_default(subscriber(logging, false, move || writer.clone()), || {
                let error = std::io::Error::other(FORGED);
                tracing::info!(shown = %FORGED, text = FORGED, debug = ?error, %error, count = 1, "said {FORGED}");
            });
            let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.trim_end().contains(['\n', '\r', '\u{1b}']), "{text}");
            match format {
                LogFormat::Json => {
                    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(
                        (&line["level"], &line["shown"], &line["text"]),
                        (&"INFO".into(), &FORGED.into(), &FORGED.into())
                    );
                }
                LogFormat::Text => {
                    assert!(!text.contains(['\u{9b}', '\u{2028}', '\u{202e}']), "{text}");
                    let quoted = format!("{FORGED:?}");
                    for field in [format!("shown={quoted}"), format!("text={quoted}"), format!("error={quoted}")] {
                        assert!(text.contains(&field), "{text} lacks {field}");
                    }
                    assert!(text.trim_end().ends_with(" count=1"), "{text}");
                }
            }
        }
    }

    #[test]
    fn values_without_blanks_are_not_quoted() {
        for (text, plain) in [("0/1A2B", true), ("[\"a\",\"b\"]", true), ("", false), ("a b", false), ("a=b", false)] {
            assert_eq!(is_plain(text), plain, "{text}");
        }
    }

    #[test]
    fn the_level_is_obeyed_and_libraries_stay_quiet() {
        assert_eq!(logged(Level::WARN, LogFormat::Text), "");
        let text = logged(Level::DEBUG, LogFormat::Text);
        assert!(text.contains("a detail") && !text.contains("of a library"), "{text}");
    }
}
