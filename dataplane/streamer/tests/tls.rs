//! An owner behind something that ends TLS.

use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use streamer::{Error, Options, Subscriber};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::harness::{Owner, database, read_to, some, v, versions};

struct Authority {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

/// A certificate for localhost that vouches for itself.
fn authority() -> Authority {
    let folder = std::env::temp_dir().join(format!("zero-streamer-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let authority = Authority {
        certificate: CertificateDer::from_pem_file(&certificate).unwrap(),
        key: PrivateKeyDer::from_pem_file(&key).unwrap(),
    };
    std::fs::remove_dir_all(&folder).unwrap();
    authority
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_runs_over_tls() {
    let database = database("tls").await;
    let mut owner = Owner::begin(&database).await;
    owner.append(&some(11..21)).await;
    let provider = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let Authority { certificate, key } = authority();
    let server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = owner.server.address;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut plain = TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut plain).await;
            });
        }
    });
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let trusting = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    for scheme in ["wss", "https"] {
        let options = Options {
            uri: format!("{scheme}://localhost:{port}"),
            tls: Some(Arc::new(trusting.clone())),
            ..owner.subscriber(scheme)
        };
        let (_, mut subscriber) = Subscriber::connect(&options, v(10), v(10)).await.unwrap();
        assert_eq!(versions(&read_to(&mut subscriber, 20).await), (11..21).collect::<Vec<_>>());
        // The system does not know this authority.
        let error = Subscriber::connect(&Options { tls: None, ..options }, v(10), v(10)).await.err().unwrap();
        assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
        assert!(matches!(error, Error::Transient { .. } | Error::Configuration { .. }));
    }
}
