//! TLS towards Postgres: what each `sslmode` checks, as libpq means it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::{Error, Result};

/// What is checked of a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verify {
    Nothing,
    /// Who signed it.
    Authority,
    /// Also that it is for the host's name.
    Full,
}

/// The files that a connection string names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Files {
    /// Of certificates to trust in place of the system's.
    pub roots: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

pub(crate) fn client_config(verify: Verify, files: &Files, is_direct: bool) -> Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::configuration(format!("cannot set TLS up: {e}")))?;
    let builder = match verify {
        Verify::Nothing => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Lenient { provider, authority: None }))
        }
        Verify::Full => builder.with_root_certificates(roots(files.roots.as_deref())?),
        Verify::Authority => {
            let roots = Arc::new(roots(files.roots.as_deref())?);
            let authority = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                .build()
                .map_err(|e| Error::configuration(format!("cannot set TLS up: {e}")))?;
            let verifier = Lenient { provider, authority: Some(authority) };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let mut config = match (&files.certificate, &files.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let chain = certificates("sslcert", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|e| unusable("sslkey", key, &e))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| Error::configuration(format!("sslcert and sslkey cannot be used: {e}")))?
        }
        (Some(_), None) => return Err(Error::configuration("the connection string names sslcert but no sslkey")),
        (None, Some(_)) => return Err(Error::configuration("the connection string names sslkey but no sslcert")),
    };
    if is_direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(config)
}

fn roots(file: Option<&Path>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match file {
        Some(file) => {
            for certificate in certificates("sslrootcert", file)? {
                roots.add(certificate).map_err(|e| unusable("sslrootcert", file, &e))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(Error::configuration(
            "sslmode=verify-full needs root certificates, and the system has none: name a file in sslrootcert, install ca-certificates or set SSL_CERT_FILE",
        ));
    }
    Ok(roots)
}

fn certificates(parameter: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(file).map_err(|e| unusable(parameter, file, &e))?;
    let found = found.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| unusable(parameter, file, &e))?;
    if found.is_empty() {
        return Err(unusable(parameter, file, &"it holds no certificate"));
    }
    Ok(found)
}

fn unusable(parameter: &str, file: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::configuration(format!("the file of {parameter}, {}, cannot be used: {reason}", file.display()))
}

/// Checks less than everything: what `prefer` and `require` mean (nothing but the signatures of the handshake), and `verify-ca`
/// (everything but the name).
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    authority: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        // The name is compared last, so this error means that all else is right.
        match authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
