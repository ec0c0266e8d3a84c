//! Connection URLs, read like the data plane reads them.
//!
//! What cannot be read is never quoted: it may hold a part of the password.

use std::fmt;
use std::str::FromStr;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Tls {
    Off,
    /// Used if the server offers it, without checking the certificate.
    Prefer,
    /// Insisted on; `verify` checks the certificate and the host name.
    Require {
        verify: bool,
    },
}

#[derive(Clone)]
pub(in super::super) struct Address {
    pub(super) config: Config,
    pub(super) tls: Tls,
    /// Tried in this order.
    pub(super) places: Vec<(String, u16)>,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("server", &self.server()).finish_non_exhaustive()
    }
}

const FORM: &str = "the value is not a connection URL such as postgres://user:password@host:5432/database";
const PORT: u16 = 5432;

/// Parameters that other clients define and that mean nothing here.
const FOREIGN: [&str; 6] = ["uselibpqcompat", "schema", "pgbouncer", "pool", "connection_limit", "sslrootcert"];

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let (rest, parameters) = split_parameters(text.trim());
        let mut tls = Tls::Prefer;
        let mut kept: Vec<String> = Vec::new();
        for parameter in parameters {
            let (key, value) = parameter.split_once('=').unwrap_or((&parameter, ""));
            match key {
                "sslmode" | "ssl" => tls = tls_of(value)?,
                _ if FOREIGN.contains(&key) => {}
                _ => kept.push(parameter),
            }
        }
        let text = match (is_url(&rest), kept.is_empty()) {
            (_, true) => rest,
            (true, false) => format!("{rest}?{}", kept.join("&")),
            (false, false) => format!("{rest} {}", kept.join(" ")),
        };
        let mut config = Config::from_str(&text).map_err(|_| FORM.to_owned())?;
        if config.get_user().is_none() {
            return Err("the connection URL names no user".to_owned());
        }
        if config.get_dbname().is_none() {
            let user = config.get_user().unwrap_or_default().to_owned();
            config.dbname(user);
        }
        config.ssl_mode(match tls {
            Tls::Off => SslMode::Disable,
            Tls::Prefer => SslMode::Prefer,
            Tls::Require { .. } => SslMode::Require,
        });
        let places = places(&config)?;
        Ok(Address { config, tls, places })
    }
}

fn places(config: &Config) -> Result<Vec<(String, u16)>, String> {
    let hosts: Vec<String> = match config.get_hostaddrs() {
        [] => config
            .get_hosts()
            .iter()
            .map(|host| match host {
                Host::Tcp(name) => Ok(name.clone()),
                #[cfg(unix)]
                Host::Unix(_) => Err("the connection URL names a Unix socket; name a host".to_owned()),
            })
            .collect::<Result<_, _>>()?,
        addresses => addresses.iter().map(ToString::to_string).collect(),
    };
    if hosts.is_empty() {
        return Err("the connection URL names no host".to_owned());
    }
    let ports = config.get_ports();
    let port = |index: usize| ports.get(index).or_else(|| ports.first()).copied().unwrap_or(PORT);
    Ok(hosts.into_iter().enumerate().map(|(index, host)| (host, port(index))).collect())
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
                (rest.to_owned(), query.split('&').filter(|it| !it.is_empty()).map(str::to_owned).collect())
            }
        };
    }
    let is_ours = |word: &&str| word.starts_with("sslmode=") || word.starts_with("ssl=");
    let (ours, rest): (Vec<&str>, Vec<&str>) = text.split(' ').partition(is_ours);
    (rest.join(" "), ours.into_iter().map(str::to_owned).collect())
}

fn tls_of(value: &str) -> Result<Tls, String> {
    match value {
        "disable" | "false" | "0" | "no" => Ok(Tls::Off),
        "prefer" | "allow" => Ok(Tls::Prefer),
        "require" | "no-verify" => Ok(Tls::Require { verify: false }),
        "verify-ca" | "verify-full" | "true" | "1" | "yes" => Ok(Tls::Require { verify: true }),
        _ => Err("sslmode of the connection URL is not known: use disable, prefer, require, no-verify or verify-full"
            .to_owned()),
    }
}

impl Address {
    /// `host:port`.
    pub fn server(&self) -> String {
        let (host, port) = self.places.first().map_or(("", PORT), |(host, port)| (host, *port));
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    pub fn user(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }

    pub fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn urls_are_read_like_the_data_plane_reads_them() {
        let address = read("postgres://u:p@h:99/d?sslmode=no-verify&application_name=x&pgbouncer=true");
        assert_eq!((address.server().as_str(), address.user(), address.database()), ("h:99", "u", "d"));
        assert_eq!(address.tls, Tls::Require { verify: false });
        assert_eq!(read("postgresql://u@h").server(), "h:5432");
        assert_eq!(read("postgresql://u@h").database(), "u");
        assert_eq!(read("postgres://u@a:1,b:2/d").places, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
        assert_eq!(read("postgres://u@[::1]:7/d").server(), "[::1]:7");
        assert_eq!(read("host=h port=7 user=u sslmode=disable").tls, Tls::Off);
        assert_eq!(read("postgres://u@h/d?sslmode=verify-full").tls, Tls::Require { verify: true });
    }

    #[test]
    fn what_cannot_be_read_is_never_quoted() {
        for bad in [
            "",
            "secret",
            "mysql://u:secret@h/d",
            "postgres://u:secret@h:secret/d",
            "postgres://u:secret@h/d?sslmode=secret",
            "postgres://u:secret@h/d?secret=1",
            "postgres://h/d",
            "postgres://u:secret@/d",
            "postgres://u:secret@%2Ftmp%2Fsecret/d",
        ] {
            let error = bad.parse::<Address>().unwrap_err();
            assert!(!error.contains("secret"), "{bad}: {error}");
            assert!(error.contains("connection URL"), "{bad}: {error}");
        }
        assert!(!format!("{:?}", read("postgres://u:secret@h/d")).contains("secret"));
    }
}
