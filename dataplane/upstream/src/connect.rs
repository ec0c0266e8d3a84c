//! Connection strings and SQL connections: the one place that reads them.
//!
//! The password never leaves [`Address`] except towards the server.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::config::SslMode;
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{Error, Result, tls};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tls {
    Off,
    /// Use it if the server offers it, without checking the certificate.
    Prefer,
    /// Insist on it; `verify` checks the certificate and the host name.
    Require {
        verify: bool,
    },
}

/// A parsed connection string.
#[derive(Clone)]
pub struct Address {
    config: Config,
    tls: Tls,
    /// Made once: reading the system's root certificates takes milliseconds. `None` when TLS is off.
    tls_config: Option<Arc<rustls::ClientConfig>>,
}

/// Host, port, database and user; never the password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = match self.config.get_hosts().first() {
            Some(tokio_postgres::config::Host::Tcp(host)) => host.clone(),
            #[cfg(unix)]
            Some(tokio_postgres::config::Host::Unix(path)) => path.display().to_string(),
            None => "localhost".to_owned(),
        };
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        write!(
            f,
            "{host}:{port}/{} as {}",
            self.config.get_dbname().unwrap_or(""),
            self.config.get_user().unwrap_or("")
        )
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("to", &format_args!("{self}")).field("tls", &self.tls).finish()
    }
}

/// Parameters that other clients define and that mean nothing here.
const FOREIGN: [&str; 6] = ["uselibpqcompat", "schema", "pgbouncer", "pool", "connection_limit", "sslrootcert"];

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Address> {
        let (rest, parameters) = split_parameters(text.trim());
        let mut tls = Tls::Prefer;
        let mut kept: Vec<String> = Vec::new();
        for parameter in parameters {
            let (key, value) = parameter.split_once('=').unwrap_or((&parameter, ""));
            match key {
                "sslmode" | "ssl" => tls = parse_tls(key, value)?,
                _ if FOREIGN.contains(&key) => {
                    tracing::warn!(parameter = key, "connection parameter has no effect here")
                }
                _ => kept.push(parameter),
            }
        }
        let text = match (is_url(&rest), kept.is_empty()) {
            (_, true) => rest,
            (true, false) => format!("{rest}?{}", kept.join("&")),
            (false, false) => format!("{rest} {}", kept.join(" ")),
        };
        // The parser's messages name keys, not values, except for numbers and enumerations.
        let mut config = Config::from_str(&text).map_err(|e| {
            let reason = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            Error::configuration(format!("the connection string cannot be read: {reason}"))
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            config.host("localhost");
        }
        if config.get_user().is_none() {
            return Err(Error::configuration("the connection string names no user"));
        }
        if config.get_dbname().is_none() {
            let user = config.get_user().unwrap_or_default().to_owned();
            config.dbname(user);
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(10));
        }
        config.ssl_mode(match tls {
            Tls::Off => SslMode::Disable,
            Tls::Prefer => SslMode::Prefer,
            Tls::Require { .. } => SslMode::Require,
        });
        let tls_config = match tls {
            Tls::Off => None,
            Tls::Prefer => Some(Arc::new(tls::client_config(false)?)),
            Tls::Require { verify } => Some(Arc::new(tls::client_config(verify)?)),
        };
        Ok(Address { config, tls, tls_config })
    }
}

fn is_url(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

/// Takes the parameters off a URL, or the words about TLS off a `key=value` string.
fn split_parameters(text: &str) -> (String, Vec<String>) {
    if is_url(text) {
        return match text.split_once('?') {
            None => (text.to_owned(), Vec::new()),
            Some((rest, query)) => {
                (rest.to_owned(), query.split('&').filter(|p| !p.is_empty()).map(str::to_owned).collect())
            }
        };
    }
    let (ours, rest): (Vec<&str>, Vec<&str>) =
        text.split(' ').partition(|word| word.starts_with("sslmode=") || word.starts_with("ssl="));
    (rest.join(" "), ours.into_iter().map(str::to_owned).collect())
}

fn parse_tls(key: &str, value: &str) -> Result<Tls> {
    match value {
        "disable" | "false" | "0" | "no" => Ok(Tls::Off),
        "prefer" | "allow" => Ok(Tls::Prefer),
        "require" | "no-verify" => Ok(Tls::Require { verify: false }),
        "verify-ca" | "verify-full" | "true" | "1" | "yes" => Ok(Tls::Require { verify: true }),
        _ => Err(Error::configuration(format!(
            "the connection parameter {key}={value} is not known: use disable, prefer, require, no-verify or verify-full"
        ))),
    }
}

impl Address {
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn tls(&self) -> Tls {
        self.tls
    }

    pub(crate) fn tls_config(&self) -> Option<&Arc<rustls::ClientConfig>> {
        self.tls_config.as_ref()
    }
}

/// Opens an SQL connection. Its driver task ends when the client is dropped or the server goes away; the client's calls then
/// fail, so nothing needs to watch the task.
pub async fn connect(address: &Address, application_name: &str) -> Result<Client> {
    let mut config = address.config.clone();
    config.application_name(application_name);
    let doing = format!("connect to Postgres at {address}");
    match &address.tls_config {
        None => {
            let (client, connection) = config.connect(NoTls).await.map_err(|e| Error::statement(&doing, e))?;
            tokio::spawn(drive(connection));
            Ok(client)
        }
        Some(tls) => {
            let tls = MakeRustlsConnect::new(rustls::ClientConfig::clone(tls));
            let (client, connection) = config.connect(tls).await.map_err(|e| Error::statement(&doing, e))?;
            tokio::spawn(drive(connection));
            Ok(client)
        }
    }
}

async fn drive<S, T>(connection: tokio_postgres::Connection<S, T>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    if let Err(error) = connection.await {
        tracing::debug!(%error, "connection to Postgres ended");
    }
}

/// `name` as an SQL identifier.
#[must_use]
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as an SQL string literal, whatever `standard_conforming_strings` is.
#[must_use]
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form_of_sslmode() {
        for (parameter, tls) in [
            ("", Tls::Prefer),
            ("?sslmode=disable", Tls::Off),
            ("?ssl=false", Tls::Off),
            ("?sslmode=prefer", Tls::Prefer),
            ("?sslmode=require", Tls::Require { verify: false }),
            ("?sslmode=no-verify", Tls::Require { verify: false }),
            ("?application_name=x&sslmode=no-verify&connect_timeout=3", Tls::Require { verify: false }),
        ] {
            let address: Address = format!("postgres://u:p@h:99/db{parameter}").parse().unwrap();
            assert_eq!(address.tls(), tls, "{parameter}");
            assert_eq!(address.config().get_dbname(), Some("db"));
        }
        assert_eq!(parse_tls("ssl", "true").unwrap(), Tls::Require { verify: true });
        assert_eq!(parse_tls("sslmode", "verify-full").unwrap(), Tls::Require { verify: true });
        let address: Address = "host=/tmp/x port=7 user=u dbname=d sslmode=disable".parse().unwrap();
        assert_eq!((address.tls(), address.to_string().as_str()), (Tls::Off, "/tmp/x:7/d as u"));
    }

    #[test]
    fn refuses_what_it_cannot_read_without_telling_the_password() {
        for bad in
            ["postgres://u:secret@h/db?sslmode=sometimes", "postgres://u:secret@h:xx/db", "", "mysql://secret@h/db"]
        {
            let error = bad.parse::<Address>().unwrap_err();
            assert!(matches!(error, Error::Configuration { .. }), "{bad}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
        let address: Address = "postgres://u:secret@h/db".parse().unwrap();
        assert!(!format!("{address} {address:?}").contains("secret"));
    }

    #[test]
    fn quotes() {
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("a'b"), "'a''b'");
        assert_eq!(quote_literal("a\\'b"), " E'a\\\\''b'");
    }
}
