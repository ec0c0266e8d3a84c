//! From an accepted connection to one that HTTP is spoken on.
//!
//! Must not know: what is asked for over it.
//!
//! Invariant: whoever says nothing costs a socket and no more, and that only until the deadline.

use std::io;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;

use crate::server::Shared;
use crate::tls::Connection;

/// Encrypted if the port has a certificate. `None` when there is nobody to serve.
pub(crate) async fn establish(shared: &Shared, stream: TcpStream, peer: &str, deadline: Instant) -> Option<Connection> {
    let Some(certificate) = &shared.options.certificate else { return Some(Connection::Plain(stream)) };
    let handshake = async {
        // The session and its buffers are made for those who have begun to speak.
        stream.readable().await?;
        TlsAcceptor::from(certificate.shown()).accept(stream).await
    };
    match timeout_at(deadline, handshake).await {
        Ok(Ok(stream)) => return Some(Connection::Tls(Box::new(stream.into()))),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
            shared.metrics.refusals.with_label_values(&["tls"]).inc();
            if shared.may_warn() {
                tracing::warn!(peer, %error, "refused a connection to the change stream's port: TLS was not agreed on");
            }
        }
        // Whoever only looks whether the port is open leaves without a word.
        Ok(Err(error)) => tracing::debug!(peer, %error, "a connection ended before TLS was agreed on"),
        Err(_) => tracing::debug!(peer, "a connection was too slow to agree on TLS"),
    }
    None
}
