//! Settings of deployments of several nodes: the change stream between them and the backup that new ones start from.

use std::path::PathBuf;
use std::time::Duration;

use super::given::Given;
use super::load::{span, whole};
use super::{Backup, CertificateFiles, ChangeStream, Secret, StreamSource};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// What may be lost with the machine that writes the backup.
const BACKUP_INTERVAL_MAX: Duration = Duration::from_secs(10);

pub(super) fn source(given: &mut Given) -> Option<StreamSource> {
    let discover = given.text("ZERO_CHANGE_STREAMER_MODE").as_deref() == Some("discover");
    let example = "ws://replication-manager:4849/";
    match given.url("ZERO_CHANGE_STREAMER_URI", &["ws", "wss", "http", "https"], example) {
        Some(uri) => Some(StreamSource::Uri(uri)),
        None => discover.then_some(StreamSource::Discover),
    }
}

pub(super) fn change_stream(given: &mut Given, source: Option<StreamSource>, client_port: u16) -> ChangeStream {
    let port = given.integer("ZERO_CHANGE_STREAMER_PORT", 1..=u32::from(u16::MAX));
    let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or_else(|| client_port.saturating_add(1));
    if port == client_port {
        given.problem("ZERO_CHANGE_STREAMER_PORT", format!("{port} is also ZERO_PORT"), "give two different ports");
    }
    let grace = given.number("ZERO_CHANGE_STREAMER_FLOW_CONTROL_SLOW_SUBSCRIBER_GRACE_PERIOD_SECONDS");
    let certificate = certificate(given);
    let scheme = if certificate.is_some() { "wss" } else { "ws" };
    ChangeStream {
        source,
        token: token(given, "ZERO_CHANGE_STREAMER_TOKEN"),
        previous_token: token(given, "ZERO_CHANGE_STREAMER_TOKEN_PREVIOUS"),
        port,
        address: given.text("ZERO_CHANGE_STREAMER_ADDRESS"),
        scheme: given.text("ZERO_CHANGE_STREAMER_PROTOCOL").unwrap_or_else(|| scheme.to_owned()),
        certificate,
        authority_file: given.text("ZERO_CHANGE_STREAMER_TLS_CA_FILE").map(PathBuf::from),
        startup_delay: span(given, "ZERO_CHANGE_STREAMER_STARTUP_DELAY_MS", MILLISECOND),
        stands_by: given.boolean("ZERO_CHANGE_STREAMER_STANDBY"),
        slow_subscriber_grace: grace.filter(|s| *s > 0.0).and_then(|s| Duration::try_from_secs_f64(s).ok()),
    }
}

/// What nodes show each other in a header.
fn token(given: &mut Given, variable: &'static str) -> Option<Secret> {
    let token = given.secret(variable);
    if streamer::Token::from_config(token.as_ref().map(Secret::expose), None).is_err() {
        given.problem(variable, "it cannot be sent", "give visible ASCII characters without spaces");
    }
    token
}

fn certificate(given: &mut Given) -> Option<CertificateFiles> {
    let (certificate, key) = ("ZERO_CHANGE_STREAMER_TLS_CERT_FILE", "ZERO_CHANGE_STREAMER_TLS_KEY_FILE");
    let (missing, present) = match (given.text(certificate), given.text(key)) {
        (Some(certificate), Some(key)) => {
            return Some(CertificateFiles { certificate: certificate.into(), key: key.into() });
        }
        (None, None) => return None,
        (Some(_), None) => (key, certificate),
        (None, Some(_)) => (certificate, key),
    };
    given.problem(missing, format!("it is not set, but {present} is"), "give both, or neither for a port without TLS");
    None
}

pub(super) fn backup(given: &mut Given) -> Backup {
    let variable = "ZERO_LITESTREAM_BACKUP_URL";
    let url = given.text(variable);
    if let Some(text) = &url
        && let Err(fault) = bucket(text)
    {
        given.problem(variable, fault, "give a URL such as s3://bucket/path");
    }
    Backup {
        url,
        key: key(given),
        endpoint: given
            .url("ZERO_LITESTREAM_ENDPOINT", &["https", "http"], "https://storage.example.com")
            .map(|url| url.expose().to_owned()),
        region: given.text("ZERO_LITESTREAM_REGION"),
        interval: span(given, "ZERO_LITESTREAM_INCREMENTAL_BACKUP_INTERVAL_SECONDS", SECOND)
            .clamp(Duration::from_millis(100), BACKUP_INTERVAL_MAX),
        snapshot_interval: span(given, "ZERO_LITESTREAM_SNAPSHOT_BACKUP_INTERVAL_HOURS", HOUR).max(60 * SECOND),
        restore_parallelism: whole(given, "ZERO_LITESTREAM_RESTORE_PARALLELISM"),
        multipart_bytes: whole(given, "ZERO_LITESTREAM_MULTIPART_SIZE"),
        multipart_concurrency: whole(given, "ZERO_LITESTREAM_MULTIPART_CONCURRENCY"),
    }
}

/// As Litestream is given it.
fn key(given: &mut Given) -> Option<(String, Secret)> {
    let (id, secret) = ("LITESTREAM_ACCESS_KEY_ID", "LITESTREAM_SECRET_ACCESS_KEY");
    let (missing, present) = match (given.text(id), given.secret(secret)) {
        (Some(id), Some(secret)) => return Some((id, secret)),
        (None, None) => return None,
        (Some(_), None) => (secret, id),
        (None, Some(_)) => (id, secret),
    };
    given.problem(missing, format!("it is not set, but {present} is"), "give both, or neither");
    None
}

fn bucket(text: &str) -> Result<(), String> {
    let url = url::Url::parse(text).map_err(|error| format!("it is not a URL: {error}"))?;
    match (url.scheme(), url.host_str()) {
        ("s3", Some(_)) => Ok(()),
        ("s3", None) => Err("it names no bucket".to_owned()),
        (other, _) => Err(format!("the scheme {other:?} is not s3")),
    }
}
