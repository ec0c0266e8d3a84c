//! Log lines on standard output: text for people, or one JSON object a line. Values of Secrets are never among them.

use std::io::IsTerminal as _;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::settings::{LogFormat, LogLevel, Settings};

/// Starts logging for the process and sends panics there too. Fails when logging was started before.
pub fn start(settings: &Settings) -> Result<(), SetGlobalDefaultError> {
    let level = match settings.log_level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    // Libraries tell of requests and their bodies below this level.
    let filter = Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("zero_cache_operator", level);
    let layer = tracing_subscriber::fmt::layer().with_ansi(std::io::stdout().is_terminal());
    let subscriber: Box<dyn Subscriber + Send + Sync> = match settings.log_format {
        LogFormat::Text => Box::new(tracing_subscriber::registry().with(layer.with_filter(filter))),
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(false).with_span_list(false);
            Box::new(tracing_subscriber::registry().with(layer.with_filter(filter)))
        }
    };
    tracing::subscriber::set_global_default(subscriber)?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let reason = panic.payload_as_str().unwrap_or("no reason given");
        tracing::error!(place, reason, "a part of the operator panicked");
    }));
    Ok(())
}
