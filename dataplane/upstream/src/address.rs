//! Connection strings: the one place that reads them.
//!
//! Knows no socket. What a provider prints must be usable as it is: each parameter is obeyed, or named as having no effect, or, where
//! leaving it out would be less safe than what was asked for, refused. The password never leaves [`Address`] except towards the
//! server.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, SslNegotiation};

use crate::tls::{self, Files, Verify};
use crate::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    Off,
    /// Use it if the server offers it.
    Prefer(Verify),
    Require(Verify),
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may be silent when an answer is due, before it is looked at whether it still is at work.
const PATIENCE: Duration = Duration::from_secs(30);

/// A parsed connection string.
#[derive(Clone)]
pub struct Address {
    config: Config,
    tls: Tls,
    is_direct: bool,
    /// Made once: reading the system's root certificates takes milliseconds. `None` when TLS is off.
    tls_config: Option<Arc<rustls::ClientConfig>>,
    patience: Duration,
    /// Which of several servers was the primary last, so that all connections go to the same one.
    primary: Arc<AtomicUsize>,
    /// How well the connection is protected has been told.
    is_told: Arc<AtomicBool>,
}

/// Host, port, database and user; never the password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for n in 0..self.host_count() {
            let comma = if n > 0 { "," } else { "" };
            let port = self.port(n);
            match self.config.get_hosts().get(n) {
                Some(Host::Tcp(host)) if host.contains(':') => write!(f, "{comma}[{host}]:{port}")?,
                Some(Host::Tcp(host)) => write!(f, "{comma}{host}:{port}")?,
                Some(Host::Unix(path)) => write!(f, "{comma}{}:{port}", path.display())?,
                None => write!(f, "{comma}{}:{port}", self.config.get_hostaddrs()[n])?,
            }
        }
        let (database, user) = (self.config.get_dbname(), self.config.get_user());
        write!(f, "/{} as {}", database.unwrap_or_default(), user.unwrap_or_default())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("to", &format_args!("{self}")).field("tls", &self.tls).finish()
    }
}

/// What becomes of a parameter that is not about TLS.
enum Fate {
    /// The driver's parser reads it.
    Read,
    /// We have an opinion of our own, or it is another program's.
    NoEffect,
    Refused(&'static str),
}

fn fate(key: &str, value: &str) -> Fate {
    match (key, value) {
        ("user" | "password" | "dbname" | "host" | "hostaddr" | "port" | "options" | "channel_binding", _) => {
            Fate::Read
        }
        ("target_session_attrs", "any" | "read-write" | "primary") => Fate::NoEffect,
        ("target_session_attrs", _) => Fate::Refused("only a primary server can be used: leave it out"),
        ("gssencmode", "require") => Fate::Refused("GSSAPI is not supported: use TLS"),
        ("require_auth" | "requirepeer" | "service", _) => Fate::Refused("it is not supported"),
        _ if key.starts_with("ssl") && key != "sslcompression" && key != "sslsni" => {
            Fate::Refused("it is not supported")
        }
        _ => Fate::NoEffect,
    }
}

/// Parameters that change nothing for anybody: not worth a line.
const UNREMARKABLE: [&str; 5] =
    ["application_name", "target_session_attrs", "gssencmode", "connect_timeout", "client_encoding"];

#[derive(Default)]
struct Protection {
    mode: Option<String>,
    files: Files,
    is_direct: bool,
}

impl Protection {
    /// `false` if the parameter is about something else.
    fn take(&mut self, key: &str, value: &str) -> Result<bool> {
        match (key, value) {
            ("sslmode" | "ssl", _) => self.mode = Some(value.to_owned()),
            ("sslrootcert", _) => self.files.roots = Some(value.into()),
            ("sslcert", _) => self.files.certificate = Some(value.into()),
            ("sslkey", _) => self.files.key = Some(value.into()),
            ("sslnegotiation", "postgres") => self.is_direct = false,
            ("sslnegotiation", "direct") => self.is_direct = true,
            ("sslnegotiation", _) => {
                return Err(Error::configuration("the connection parameter sslnegotiation must be postgres or direct"));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn tls(&mut self) -> Result<Tls> {
        // As libpq has it: the word stands for the system's authorities, and for checking everything.
        let is_system = self.files.roots.as_ref().is_some_and(|file| file.as_os_str() == "system");
        if is_system {
            self.files.roots = None;
        }
        let has_roots = is_system || self.files.roots.is_some();
        let tls = match self.mode.as_deref().unwrap_or("prefer") {
            "disable" | "false" | "0" | "no" => Tls::Off,
            "prefer" | "allow" if is_system => Tls::Require(Verify::Full),
            "prefer" | "allow" => Tls::Prefer(Verify::Nothing),
            "no-verify" => Tls::Require(Verify::Nothing),
            "require" if is_system => Tls::Require(Verify::Full),
            // Whoever names an authority wants it to count.
            "require" if has_roots => Tls::Require(Verify::Authority),
            "require" => Tls::Require(Verify::Nothing),
            "verify-ca" => Tls::Require(Verify::Authority),
            "verify-full" | "true" | "1" | "yes" => Tls::Require(Verify::Full),
            other => {
                return Err(Error::configuration(format!(
                    "the connection parameter sslmode={other} is not known: use disable, prefer, require, no-verify, verify-ca or verify-full"
                )));
            }
        };
        match tls {
            Tls::Off | Tls::Prefer(_) if self.is_direct => Err(Error::configuration(
                "the connection parameter sslnegotiation=direct needs sslmode=require or more",
            )),
            tls => Ok(tls),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Address> {
        let (rest, parameters) = split(text.trim())?;
        let (mut protection, mut kept) = (Protection::default(), Vec::new());
        let (mut timeout, mut unused) = (None, Vec::new());
        for (key, value) in &parameters {
            if protection.take(key, value)? {
                continue;
            }
            if key == "connect_timeout" {
                timeout = value.parse::<u64>().ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
            }
            match fate(key, value) {
                Fate::Read => kept.push(format!("{key}={}", quoted(value))),
                Fate::Refused(why) => {
                    return Err(Error::configuration(format!("the connection parameter {key} cannot be used: {why}")));
                }
                Fate::NoEffect if UNREMARKABLE.contains(&key.as_str()) => {}
                Fate::NoEffect => unused.push(key.as_str()),
            }
        }
        let unreadable = |e: tokio_postgres::Error| {
            // The parser's messages name keys, not values, except for numbers and enumerations.
            let reason = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            Error::configuration(format!("the connection string cannot be read: {reason}"))
        };
        let mut config = Config::from_str(rest).map_err(unreadable)?;
        merge(&mut config, &Config::from_str(&kept.join(" ")).map_err(unreadable)?);
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            config.host("localhost");
        }
        let (hosts, addresses) = (config.get_hosts().len(), config.get_hostaddrs().len());
        if hosts > 0 && addresses > 0 && hosts != addresses {
            return Err(Error::configuration("the connection string has not as many parts in hostaddr as in host"));
        }
        if !matches!(config.get_ports().len(), 0 | 1) && config.get_ports().len() != hosts.max(addresses) {
            return Err(Error::configuration("the connection string has neither one port nor one for each host"));
        }
        if config.get_user().is_none() {
            return Err(Error::configuration("the connection string names no user"));
        }
        if config.get_dbname().is_none() {
            let user = config.get_user().unwrap_or_default().to_owned();
            config.dbname(user);
        }
        let tls = protection.tls()?;
        let tls_config = match tls {
            Tls::Off => None,
            Tls::Prefer(verify) | Tls::Require(verify) => {
                Some(Arc::new(tls::client_config(verify, &protection.files, protection.is_direct)?))
            }
        };
        // TLS is negotiated before the driver takes over.
        config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        config.connect_timeout(timeout.unwrap_or(CONNECT_TIMEOUT));
        if !unused.is_empty() {
            tracing::info!(
                parameters = unused.join(", "),
                "these parameters of a connection string have no effect here"
            );
        }
        Ok(Address {
            config,
            tls,
            is_direct: protection.is_direct,
            tls_config,
            patience: PATIENCE,
            primary: Arc::default(),
            is_told: Arc::default(),
        })
    }
}

/// Takes the parameters off a connection string: what is left is a URL without any, or nothing.
fn split(text: &str) -> Result<(&str, Vec<(String, String)>)> {
    if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
        return Ok(("", words(text)?));
    }
    let Some((rest, query)) = text.split_once('?') else { return Ok((text, Vec::new())) };
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(Cow::into_owned);
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decoded(key)?, decoded(value)?))
    });
    let pairs: std::result::Result<_, std::str::Utf8Error> = pairs.collect();
    Ok((rest, pairs.map_err(|_| Error::configuration("a parameter of the connection string is not UTF-8"))?))
}

/// `key = value 'quoted value'`, as libpq reads it.
fn words(text: &str) -> Result<Vec<(String, String)>> {
    let malformed = || Error::configuration("the connection string is neither a URL nor a list of key=value");
    let (mut pairs, mut rest) = (Vec::new(), text.trim_start());
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or_else(malformed)?;
        let (key, mut after) = (key.trim(), after.trim_start());
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(malformed());
        }
        let is_quoted = after.starts_with('\'');
        after = after.strip_prefix('\'').unwrap_or(after);
        let (mut value, mut end, mut letters) = (String::new(), None, after.char_indices());
        while let Some((at, letter)) = letters.next() {
            match letter {
                '\\' => value.extend(letters.next().map(|(_, escaped)| escaped)),
                '\'' if is_quoted => end = Some(at + 1),
                _ if !is_quoted && letter.is_whitespace() => end = Some(at),
                _ => value.push(letter),
            }
            if end.is_some() {
                break;
            }
        }
        let end = end.or_else(|| (!is_quoted).then_some(after.len())).ok_or_else(malformed)?;
        pairs.push((key.to_owned(), value));
        rest = after[end..].trim_start();
    }
    Ok(pairs)
}

fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// What parameters say wins over the rest of a URL.
fn merge(config: &mut Config, parameters: &Config) {
    if let Some(user) = parameters.get_user() {
        config.user(user);
    }
    if let Some(password) = parameters.get_password() {
        config.password(password);
    }
    if let Some(name) = parameters.get_dbname() {
        config.dbname(name);
    }
    if let Some(options) = parameters.get_options() {
        config.options(options);
    }
    for host in parameters.get_hosts() {
        match host {
            Host::Tcp(host) => config.host(host),
            Host::Unix(path) => config.host_path(path),
        };
    }
    for address in parameters.get_hostaddrs() {
        config.hostaddr(*address);
    }
    for port in parameters.get_ports() {
        config.port(*port);
    }
    config.channel_binding(parameters.get_channel_binding());
}

impl Address {
    /// How long a server may be silent when an answer is due: it is then looked at, or given up.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Address {
        Address { patience, ..self }
    }

    /// The name or number of the first host, unless that is a folder of sockets, and its port.
    #[must_use]
    pub fn first_host(&self) -> Option<(String, u16)> {
        let name = match (self.config.get_hosts().first(), self.config.get_hostaddrs().first()) {
            (_, Some(ip)) => ip.to_string(),
            (Some(Host::Tcp(name)), None) => name.clone(),
            (Some(Host::Unix(_)) | None, None) => return None,
        };
        Some((name, self.port(0)))
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        self.config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT)
    }

    pub(crate) fn tls(&self) -> Tls {
        self.tls
    }

    pub(crate) fn tls_config(&self) -> Option<&Arc<rustls::ClientConfig>> {
        self.tls_config.as_ref()
    }

    /// TLS begins without asking.
    pub(crate) fn is_direct(&self) -> bool {
        self.is_direct
    }

    pub(crate) fn host_count(&self) -> usize {
        self.config.get_hosts().len().max(self.config.get_hostaddrs().len())
    }

    pub(crate) fn port(&self, host: usize) -> u16 {
        let ports = self.config.get_ports();
        ports.get(host).or_else(|| ports.first()).copied().unwrap_or(5432)
    }

    /// The host that turned out to be the primary, by its number.
    pub(crate) fn primary(&self) -> usize {
        self.primary.load(Ordering::Relaxed)
    }

    pub(crate) fn set_primary(&self, host: usize) {
        self.primary.store(host, Ordering::Relaxed);
    }

    /// Says once how a connection that leaves this machine is protected, unless it is fully.
    pub(crate) fn tell(&self, is_encrypted: bool) {
        let verify = match self.tls {
            Tls::Prefer(verify) | Tls::Require(verify) => verify,
            Tls::Off => Verify::Nothing,
        };
        if (is_encrypted && verify == Verify::Full) || self.is_told.swap(true, Ordering::Relaxed) {
            return;
        }
        match (is_encrypted, verify) {
            (false, _) => tracing::warn!(
                server = %self,
                "the connection to Postgres is not encrypted: whoever is on the way can read passwords and rows; sslmode=verify-full prevents it"
            ),
            (true, Verify::Nothing) => tracing::info!(
                server = %self,
                "the connection to Postgres is encrypted, but the server's certificate is not checked; sslmode=verify-full does that"
            ),
            (true, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn reads_every_form_of_sslmode() {
        for (parameters, tls) in [
            ("", Tls::Prefer(Verify::Nothing)),
            ("?sslmode=disable", Tls::Off),
            ("?ssl=false", Tls::Off),
            ("?sslmode=allow", Tls::Prefer(Verify::Nothing)),
            ("?sslmode=require", Tls::Require(Verify::Nothing)),
            ("?sslmode=no-verify", Tls::Require(Verify::Nothing)),
            ("?application_name=x&sslmode=no-verify&connect_timeout=3", Tls::Require(Verify::Nothing)),
            ("?ssl=true", Tls::Require(Verify::Full)),
            ("?sslmode=verify-ca", Tls::Require(Verify::Authority)),
            ("?sslmode=verify-full&sslrootcert=system", Tls::Require(Verify::Full)),
            ("?sslrootcert=system", Tls::Require(Verify::Full)),
            ("?sslmode=require&sslnegotiation=direct", Tls::Require(Verify::Nothing)),
        ] {
            let address = address(&format!("postgres://u:p@h:99/db{parameters}"));
            assert_eq!(address.tls(), tls, "{parameters}");
            assert_eq!(address.config().get_dbname(), Some("db"));
        }
    }

    /// As providers and their tools print them.
    #[test]
    fn takes_what_providers_print() {
        for (text, shown) in [
            (" \n postgres://u:p@h/db?sslmode=disable\n", "h:5432/db as u"),
            ("postgresql://u:p%40%2F@h/db?sslmode=require&channel_binding=require", "h:5432/db as u"),
            ("postgres://u:p@h:6543/db?pgbouncer=true&connection_limit=1&pool_timeout=0", "h:6543/db as u"),
            ("postgres://u.ref:p@h/db?workaround=supabase-pooler.vercel&supa=base-pooler.x", "h:5432/db as u.ref"),
            ("postgres://u@h/db?statement_timeout=5000&client_encoding=utf8&max=5&gssencmode=prefer", "h:5432/db as u"),
            ("postgres://u@h/db?options=-c%20geqo%3Doff&sslcompression=0", "h:5432/db as u"),
            ("postgres://u@a:1,b:2,[::1]:3/db?target_session_attrs=read-write", "a:1,b:2,[::1]:3/db as u"),
            ("postgres://u@h/db?hostaddr=10.0.0.1", "h:5432/db as u"),
            ("postgres://u@/db?host=/run/postgresql", "/run/postgresql:5432/db as u"),
            ("postgres://u@%2Frun%2Fpostgresql:7/db", "/run/postgresql:7/db as u"),
            ("postgres://h?user=u&password=p&dbname=db", "h:5432/db as u"),
            ("host=/tmp/x port=7 user=u dbname=d sslmode=disable", "/tmp/x:7/d as u"),
            (r"host = h password='a b\'c' user=u  dbname = 'x y'", "h:5432/x y as u"),
            ("postgres://u@h", "h:5432/u as u"),
        ] {
            assert_eq!(address(text).to_string(), shown, "{text}");
        }
        assert_eq!(address(r"host=h password='a b\'c' user=u").config().get_password(), Some(&b"a b'c"[..]));
        assert_eq!(address("postgres://u:a%26b@h/d").config().get_password(), Some(&b"a&b"[..]));
        assert_eq!(address("postgres://u@h/d?options=-c%20geqo%3Doff").config().get_options(), Some("-c geqo=off"));
        assert_eq!(address("postgres://u@h/d?connect_timeout=3").connect_timeout(), Duration::from_secs(3));
        assert_eq!(address("postgres://u@h/d?connect_timeout=0").connect_timeout(), CONNECT_TIMEOUT);
    }

    #[test]
    fn refuses_what_it_cannot_obey_without_telling_the_password() {
        for (bad, part) in [
            ("postgres://u:secret@h/db?sslmode=sometimes", "sslmode"),
            ("postgres://u:secret@h/db?sslmod=verify-full", "sslmod"),
            ("postgres://u:secret@h/db?sslcrl=/x", "sslcrl"),
            ("postgres://u:secret@h/db?gssencmode=require", "gssencmode"),
            ("postgres://u:secret@h/db?target_session_attrs=standby", "target_session_attrs"),
            ("postgres://u:secret@h/db?sslnegotiation=direct", "sslnegotiation"),
            ("postgres://u:secret@h/db?sslmode=verify-full&sslrootcert=/nowhere/root.pem", "/nowhere/root.pem"),
            ("postgres://u:secret@h/db?sslmode=require&sslcert=/nowhere/x", "sslkey"),
            ("postgres://u:secret@h:xx/db", "cannot be read"),
            ("postgres://u:secret@a:1,b:2/db?host=c", "port"),
            ("postgres://h/db", "no user"),
            ("host=h password='secret", "neither"),
            ("", "no user"),
            ("mysql://secret@h/db", "neither"),
        ] {
            let error = bad.parse::<Address>().unwrap_err();
            assert!(matches!(error, Error::Configuration { .. }), "{bad}");
            assert!(error.to_string().contains(part), "{bad}: {error}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
        let address = address("postgres://u:secret@h/db");
        assert!(!format!("{address} {address:?}").contains("secret"));
    }
}
