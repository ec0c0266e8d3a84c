//! Log lines on standard output: text for people, or one JSON object per line for machines.
//!
//! `ZERO_LOG_LEVEL` and `ZERO_LOG_FORMAT` are the only switches. Libraries below the sockets log at `info` at most, because
//! their `debug` lines drown ours and may hold what clients sent.
//!
//! Messages are lower-case and say what happened; what varies goes into fields. Rows, tokens and passwords are never logged.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing::subscriber::SetGlobalDefaultError;
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
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
            let layer = layer.with_ansi(colours).with_filter(filter);
            Box::new(tracing_subscriber::registry().with(layer))
        }
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(false).with_filter(filter);
            Box::new(tracing_subscriber::registry().with(layer))
        }
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

    #[test]
    fn the_level_is_obeyed_and_libraries_stay_quiet() {
        assert_eq!(logged(Level::WARN, LogFormat::Text), "");
        let text = logged(Level::DEBUG, LogFormat::Text);
        assert!(text.contains("a detail") && !text.contains("of a library"), "{text}");
    }
}
