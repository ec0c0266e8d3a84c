//! Reaching the owner: an address, a TCP connection, TLS where the address says so. And what a connection is, at either end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{interval, timeout};
use tokio_rustls::{TlsConnector, TlsStream};
use url::Url;

use crate::authority::{Authority, client_config};
use crate::error::{Error, Result};
use crate::server::UNACKNOWLEDGED;

/// Between nodes it takes milliseconds.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Where a pod is gone that answered a moment ago, packets vanish; only a new attempt finds whoever answers there by then.
const ANEW_AFTER: Duration = Duration::from_millis(200);
/// For TLS, and again for the answer to the upgrade: they take a node that is at work milliseconds, whatever it is asked for
/// afterwards.
pub(crate) const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

/// Where the owner's port is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) is_tls: bool,
    /// Before the paths of the change stream; empty or without a slash at its end.
    pub(crate) prefix: String,
}

impl Target {
    /// `ws://`, `wss://`, `http://` and `https://` addresses; without a scheme `ws://` is meant.
    pub(crate) fn parse(uri: &str) -> Result<Target> {
        let wrong = |reason: &str| {
            Error::configuration(format!(
                "the change stream's address is not usable: {reason} (expected ws://host:4849, see ZERO_CHANGE_STREAMER_URI)"
            ))
        };
        let with_scheme = if uri.contains("://") { uri.to_owned() } else { format!("ws://{uri}") };
        let url = Url::parse(with_scheme.trim()).map_err(|error| wrong(&error.to_string()))?;
        let is_tls = match url.scheme() {
            "ws" | "http" => false,
            "wss" | "https" => true,
            other => return Err(wrong(&format!("its scheme is {other}"))),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("it names no host"))?;
        let port = url.port().unwrap_or(if is_tls { 443 } else { 80 });
        Ok(Target { host: host.to_owned(), port, is_tls, prefix: url.path().trim_end_matches('/').to_owned() })
    }

    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Connects; `tls` replaces the system's certificates.
    pub(crate) async fn connect(&self, tls: Option<&Authority>) -> Result<Connection> {
        let authority = self.authority();
        let unreachable = |error: &io::Error| format!("cannot reach the change stream at {authority}: {error}");
        let connected = timeout(CONNECT_MAX, first_answer(&authority)).await;
        let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = stream.map_err(|error| Error::Gone { message: unreachable(&error) })?;
        port::prepare(&stream, UNACKNOWLEDGED);
        if !self.is_tls {
            return Ok(Connection::Plain(stream));
        }
        let config = Arc::new(client_config(tls).await?);
        let name = ServerName::try_from(self.host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| Error::configuration(format!("{} is no name that a certificate can be for", self.host)))?;
        let agreed = timeout(HANDSHAKE_MAX, TlsConnector::from(config).connect(name, stream)).await;
        match agreed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => Ok(Connection::Tls(Box::new(stream.into()))),
            Err(error) => Err(not_agreed(unreachable(&error), &error)),
        }
    }
}

/// What the first of several attempts comes to; a later one does not end an earlier, which may only be slow. The name is looked up
/// once: a look-up holds a thread until it is through.
async fn first_answer(authority: &str) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = lookup_host(authority).await?.collect();
    let mut attempts = FuturesUnordered::new();
    let mut ticks = interval(ANEW_AFTER);
    loop {
        tokio::select! {
            _ = ticks.tick() => attempts.push(TcpStream::connect(&addresses[..])),
            Some(answer) = attempts.next() => return answer,
        }
    }
}

/// Why a handshake failed, with what a person can do about it.
fn not_agreed(mut message: String, error: &io::Error) -> Error {
    use rustls::Error::{InvalidCertificate, InvalidMessage};
    let cause = error.get_ref().and_then(|error| error.downcast_ref());
    message += match cause {
        Some(InvalidMessage(_)) => {
            "; it does not speak TLS: give that node ZERO_CHANGE_STREAMER_TLS_CERT_FILE, or an address that begins with ws://"
        }
        // The latter if an authority was made anew under its former name.
        Some(InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature)) => {
            "; if its authority is your own, ZERO_CHANGE_STREAMER_TLS_CA_FILE must hold it"
        }
        _ => "",
    };
    if let Some(InvalidCertificate(_)) = cause { Error::Unverified { message } } else { Error::transient(message) }
}

/// What the change stream's protocol runs on, at either end.
#[derive(Debug)]
pub(crate) enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Connection::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Connection::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Connection::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Connection::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;

    /// A full queue drops what comes, as a network does where a pod was; the system itself asks again only after a second.
    #[tokio::test]
    async fn whoever_answers_after_a_silence_is_found() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let mut queued = Vec::new();
        while let Ok(connected) = timeout(Duration::from_millis(50), TcpStream::connect(&authority)).await {
            queued.push(connected.unwrap());
        }
        let answering = async {
            tokio::time::sleep(ANEW_AFTER / 2).await;
            loop {
                queued.push(listener.accept().await.unwrap().0);
            }
        };
        let found = timeout(3 * ANEW_AFTER, first_answer(&authority));
        tokio::select! {
            found = found => found.unwrap().map(drop).unwrap(),
            () = answering => {}
        }
    }

    #[test]
    fn whoever_shows_a_certificate_that_does_not_do_is_there() {
        let told = |cause: rustls::Error| not_agreed(String::new(), &io::Error::new(io::ErrorKind::InvalidData, cause));
        use CertificateError::{BadSignature, Expired, NotValidForName, NotValidYet, Revoked, UnknownIssuer};
        for fault in [BadSignature, Expired, NotValidForName, NotValidYet, Revoked, UnknownIssuer] {
            let error = told(rustls::Error::InvalidCertificate(fault));
            assert!(matches!(error, Error::Unverified { .. }), "{error:?}");
        }
        let other = told(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType));
        assert!(matches!(other, Error::Transient { .. }), "{other:?}");
        let broken = not_agreed(String::new(), &io::ErrorKind::UnexpectedEof.into());
        assert!(matches!(broken, Error::Transient { .. }), "{broken:?}");
    }

    #[test]
    fn reads_addresses() {
        let target = |host: &str, port, is_tls, prefix: &str| Target {
            host: host.to_owned(),
            port,
            is_tls,
            prefix: prefix.to_owned(),
        };
        for (uri, expected) in [
            ("ws://rm:4849", target("rm", 4849, false, "")),
            ("http://rm:4849/", target("rm", 4849, false, "")),
            ("rm:4849", target("rm", 4849, false, "")),
            ("10.0.0.7:4849", target("10.0.0.7", 4849, false, "")),
            ("wss://rm.example/zero/", target("rm.example", 443, true, "/zero")),
            ("https://[::1]:7", target("[::1]", 7, true, "")),
        ] {
            assert_eq!(Target::parse(uri).unwrap(), expected, "{uri}");
        }
        for bad in ["", "ftp://x", "ws://", "ws://x:99999", "::"] {
            assert!(matches!(Target::parse(bad), Err(Error::Configuration { .. })), "{bad}");
        }
    }
}
