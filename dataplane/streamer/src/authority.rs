//! Whom a node trusts that connects to the owner over TLS.
//!
//! Must not know: addresses, sockets.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};

use crate::error::{Error, Result};
use crate::pem::{self, Unusable};

/// The certificates in a file, as it is at each connect.
#[derive(Clone, Debug)]
pub struct Authority {
    file: PathBuf,
}

impl Authority {
    /// PEM, one certificate or several.
    pub fn open(file: impl Into<PathBuf>) -> std::result::Result<Authority, Unusable> {
        let authority = Authority { file: file.into() };
        authority.roots().map(|_| authority)
    }

    fn roots(&self) -> std::result::Result<RootCertStore, Unusable> {
        let pem = std::fs::read(&self.file).map_err(|error| Unusable::unread(&self.file, &error))?;
        let mut roots = RootCertStore::empty();
        for certificate in pem::certificates(&self.file, &pem)? {
            let added = roots.add(certificate);
            added.map_err(|error| Unusable::new(&self.file, format!("holds no usable certificate: {error}")))?;
        }
        Ok(roots)
    }
}

/// Trusts the authority alone, or whom the system trusts.
pub(crate) async fn client_config(authority: Option<&Authority>) -> Result<ClientConfig> {
    let authority = authority.cloned();
    // Files may be slow, and the system's are many.
    let roots = tokio::task::spawn_blocking(move || match authority {
        // It may be about to be replaced.
        Some(authority) => authority.roots().map_err(|unusable| {
            let message = format!("cannot tell whom to trust at the change stream's address: {unusable}");
            Error::Unverified { message }
        }),
        None => system_roots(),
    });
    let roots = roots.await.map_err(|error| Error::transient(error.to_string()))??;
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::configuration(format!("cannot set TLS up: {error}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

fn system_roots() -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(Error::configuration(
            "the change stream's address asks for TLS and the system has no root certificates: install ca-certificates, or set SSL_CERT_FILE or ZERO_CHANGE_STREAMER_TLS_CA_FILE",
        ));
    }
    Ok(roots)
}
