//! The files of the change stream's TLS, opened before anything starts: what is wrong with them then is a fault of the
//! configuration. What becomes of them later is not.
//!
//! Must not know: ports, connections, when files are read again.

use std::path::Path;

use streamer::{Authority, Certificate, Unusable};

use crate::config::{Config, Problem, Refusal, Role};

const CERTIFICATE: &str = "ZERO_CHANGE_STREAMER_TLS_CERT_FILE";
const KEY: &str = "ZERO_CHANGE_STREAMER_TLS_KEY_FILE";
const AUTHORITY: &str = "ZERO_CHANGE_STREAMER_TLS_CA_FILE";

/// One for all lives of the parts, so that none begins with less than the one before.
pub struct StreamTls {
    /// What the port shows, on a node that has it.
    pub certificate: Option<Certificate>,
    /// Whom this node trusts instead of the system's authorities.
    pub authority: Option<Authority>,
}

impl StreamTls {
    pub fn open(config: &Config) -> Result<StreamTls, Refusal> {
        let stream = &config.change_stream;
        let files = stream.certificate.as_ref().filter(|_| config.role != Role::ViewSyncer);
        let mut problems = Vec::new();
        let certificate = files.and_then(|files| {
            let unusable = |unusable: Unusable| problems.push(certificate_problem(unusable, &files.key));
            Certificate::open(&files.certificate, &files.key).map_err(unusable).ok()
        });
        let authority = stream.authority_file.as_ref().and_then(|file| {
            let remedy = "give a PEM file of the authorities that vouch for the replication-manager";
            let unusable = |unusable: Unusable| problems.push(problem(AUTHORITY, &unusable, remedy));
            Authority::open(file).map_err(unusable).ok()
        });
        if problems.is_empty() { Ok(StreamTls { certificate, authority }) } else { Err(Refusal::Problems(problems)) }
    }
}

fn certificate_problem(unusable: Unusable, key: &Path) -> Problem {
    if unusable.file == key {
        problem(KEY, &unusable, format!("give a PEM file of the private key of the certificate in {CERTIFICATE}"))
    } else {
        problem(CERTIFICATE, &unusable, "give a PEM file of the port's certificate and, after it, of its chain")
    }
}

fn problem(variable: &'static str, unusable: &Unusable, remedy: impl Into<String>) -> Problem {
    Problem { variable, fault: unusable.to_string(), remedy: remedy.into() }
}

#[cfg(test)]
mod tests {
    use testkit::tls::{self, Mount};

    use super::*;
    use crate::config::{Environment, load};

    fn opened(mount: &Mount, role: (&str, &str)) -> Result<StreamTls, Refusal> {
        let file = |name| mount.file(name).display().to_string();
        let environment = Environment::from(
            [
                ("ZERO_UPSTREAM_DB", "postgres://u@db/zero".to_owned()),
                ("ZERO_ADMIN_PASSWORD", "hunter2".to_owned()),
                (role.0, role.1.to_owned()),
                (CERTIFICATE, file("tls.crt")),
                (KEY, file("tls.key")),
                (AUTHORITY, file("ca.crt")),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        StreamTls::open(&load(&[], &environment).unwrap())
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_with_its_variable() {
        let manager = ("ZERO_NUM_SYNC_WORKERS", "0");
        let syncer = ("ZERO_CHANGE_STREAMER_URI", "wss://manager:4849");
        let authority = tls::Authority::new().unwrap();
        let (issued, other) = (authority.issue("DNS:manager").unwrap(), authority.issue("DNS:manager").unwrap());
        let (good, nonsense) = (("ca.crt", authority.certificate.as_str()), ("ca.crt", "nonsense"));
        let certificate = ("tls.crt", issued.certificate.as_str());
        for (files, parts) in [
            (vec![certificate, ("tls.key", &issued.key), nonsense], vec![(AUTHORITY, "holds no certificate in PEM")]),
            (vec![certificate, ("tls.key", &other.key), good], vec![(KEY, "is not the key of")]),
            (vec![certificate, ("tls.key", "nonsense"), good], vec![(KEY, "holds no private key")]),
            (vec![certificate, good], vec![(KEY, "cannot be read")]),
            (
                vec![("tls.crt", "nonsense"), ("tls.key", &issued.key)],
                vec![(CERTIFICATE, "holds no certificate in PEM"), (AUTHORITY, "cannot be read")],
            ),
        ] {
            let refusal = opened(&Mount::new(&files).unwrap(), manager).err().unwrap();
            let Refusal::Problems(problems) = &refusal else { panic!("{refusal}") };
            assert_eq!(problems.len(), parts.len(), "{refusal}");
            for (problem, (variable, fault)) in problems.iter().zip(parts) {
                assert!(problem.variable == variable && problem.fault.contains(fault), "{refusal}");
            }
        }
        let tls = opened(&Mount::new(&[certificate, ("tls.key", &issued.key), good]).unwrap(), manager).ok().unwrap();
        assert!(tls.certificate.is_some() && tls.authority.is_some());
        // Who has no such port needs no certificate for it.
        let tls = opened(&Mount::new(&[good]).unwrap(), syncer).ok().unwrap();
        assert!(tls.certificate.is_none() && tls.authority.is_some());
    }
}
