//! Certificates and keys in files that somebody else replaces while the process runs.
//!
//! Must not know: what they are for, when to read them again.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A file cannot be used as it is. Tells nothing of what it holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} {fault}", file.display())]
pub struct Unusable {
    pub file: PathBuf,
    pub fault: String,
}

impl Unusable {
    pub(crate) fn new(file: &Path, fault: impl Into<String>) -> Unusable {
        Unusable { file: file.to_owned(), fault: fault.into() }
    }

    pub(crate) fn unread(file: &Path, error: &std::io::Error) -> Unusable {
        Unusable::new(file, format!("cannot be read: {error}"))
    }
}

/// At least one; what else is in the file is left alone.
pub(crate) fn certificates(file: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(Unusable::new(file, "holds no certificate in PEM")),
        Ok(found) => Ok(found),
        // Some errors show a piece of the text, which may be a key that was taken for a certificate.
        Err(_) => Err(Unusable::new(file, "is not PEM")),
    }
}

/// The first one.
pub(crate) fn key(file: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, Unusable> {
    use rustls::pki_types::pem::Error;
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        Error::NoItemsFound => Unusable::new(file, "holds no private key in PEM that is not encrypted"),
        _ => Unusable::new(file, "is not PEM"),
    })
}
