//! The certificate that the port shows, read again when its files change.
//!
//! Must not know: sockets, when to look at the files.
//!
//! Invariant: what is shown is a certificate with the key that fits it, whatever became of the files since.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::crypto::aws_lc_rs;
use rustls::{InconsistentKeys, ServerConfig};
use sha2::{Digest, Sha256};

use crate::pem::{self, Unusable};

/// Cheap to clone: clones show the same.
#[derive(Clone, Debug)]
pub struct Certificate {
    files: Arc<Files>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Debug)]
struct State {
    shown: Arc<ServerConfig>,
    /// Of what was read last, whether it was usable or not.
    fingerprint: [u8; 32],
}

/// What the two files held, or why that is not known.
type Texts = Result<(Vec<u8>, Vec<u8>), Unusable>;

impl Certificate {
    /// PEM: the certificate with its chain, the port's own first, and the key.
    pub fn open(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Result<Certificate, Unusable> {
        let files = Files { certificate: certificate.into(), key: key.into() };
        let texts = files.texts();
        let fingerprint = fingerprint(&texts);
        let state = State { shown: files.config(texts)?, fingerprint };
        Ok(Certificate { files: Arc::new(files), state: Arc::new(Mutex::new(state)) })
    }

    /// For the next handshake.
    pub(crate) fn shown(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.state().shown)
    }

    /// Looks at the files: whether another certificate is shown from now on. What changed and is of no use leaves the former one in
    /// place, and is an error once.
    pub(crate) async fn renew(&self) -> Result<bool, Unusable> {
        let files = Arc::clone(&self.files);
        let Ok(texts) = tokio::task::spawn_blocking(move || files.texts()).await else { return Ok(false) };
        let fingerprint = fingerprint(&texts);
        if std::mem::replace(&mut self.state().fingerprint, fingerprint) == fingerprint {
            return Ok(false);
        }
        self.state().shown = self.files.config(texts)?;
        Ok(true)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn texts(&self) -> Texts {
        let read = |file: &Path| std::fs::read(file).map_err(|error| Unusable::unread(file, &error));
        Ok((read(&self.certificate)?, read(&self.key)?))
    }

    fn config(&self, texts: Texts) -> Result<Arc<ServerConfig>, Unusable> {
        let (certificate, key) = texts?;
        let chain = pem::certificates(&self.certificate, &certificate)?;
        let key = pem::key(&self.key, &key)?;
        let wrong = |error: rustls::Error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                Unusable::new(&self.key, format!("is not the key of {}", self.certificate.display()))
            }
            rustls::Error::InvalidCertificate(fault) => {
                Unusable::new(&self.certificate, format!("holds no usable certificate: {fault:?}"))
            }
            error => Unusable::new(&self.key, format!("cannot be used: {error}")),
        };
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(wrong)?;
        let mut config = builder.with_no_client_auth().with_single_cert(chain, key).map_err(wrong)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn fingerprint(texts: &Texts) -> [u8; 32] {
    let mut digest = Sha256::new();
    match texts {
        Ok((certificate, key)) => {
            // Each by itself, so that nothing moves from one to the other unseen.
            digest.update(Sha256::digest(certificate));
            digest.update(Sha256::digest(key));
        }
        Err(unusable) => digest.update(unusable.to_string()),
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use testkit::tls::{Authority, Mount};

    use super::*;

    #[tokio::test]
    async fn a_change_is_told_once_and_what_is_shown_is_always_of_use() {
        let authority = Authority::new().unwrap();
        let (first, second) = (authority.issue("DNS:a").unwrap(), authority.issue("DNS:a").unwrap());
        let mut mount = Mount::new(&[("tls.crt", &first.certificate), ("tls.key", &first.key)]).unwrap();
        let certificate = Certificate::open(mount.file("tls.crt"), mount.file("tls.key")).unwrap();
        let mut shown = certificate.shown();
        for (files, expected) in [
            // The same again, in other files.
            (vec![("tls.crt", &first.certificate), ("tls.key", &first.key)], Ok(false)),
            (vec![("tls.crt", &second.certificate), ("tls.key", &first.key)], Err("is not the key of")),
            (vec![("tls.key", &second.key)], Err("cannot be read")),
            (vec![("tls.crt", &second.certificate), ("tls.key", &second.key)], Ok(true)),
            (vec![("tls.crt", &second.key), ("tls.key", &second.key)], Err("holds no certificate")),
            (vec![("tls.crt", &second.certificate), ("tls.key", &second.key)], Ok(true)),
        ] {
            mount.put(&files.iter().map(|(name, text)| (*name, text.as_str())).collect::<Vec<_>>()).unwrap();
            let outcome = certificate.renew().await;
            match (&outcome, expected) {
                (Ok(is_new), Ok(expected)) => assert_eq!(*is_new, expected),
                (Err(unusable), Err(fault)) => assert!(unusable.fault.contains(fault), "{unusable}"),
                _ => panic!("{outcome:?} instead of {expected:?}"),
            }
            assert_eq!(!Arc::ptr_eq(&shown, &certificate.shown()), outcome == Ok(true));
            shown = certificate.shown();
            assert_eq!(certificate.renew().await, Ok(false));
        }
    }
}
