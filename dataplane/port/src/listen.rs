//! Listening, and one connection's HTTP.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use fault::Backoff;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// When a connection cannot be accepted.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
/// The least that hyper can read a request head with.
const HEADER_BYTES_MIN: usize = 16 * 1024;

/// The address cannot be listened at.
#[derive(Debug, thiserror::Error)]
#[error("bind {address}: {error}")]
pub struct BindError {
    pub address: SocketAddr,
    pub error: io::Error,
}

/// Binds `address` and says what was bound: port 0 lets the system choose.
pub async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), BindError> {
    let listener = match TcpListener::bind(address).await {
        // A host without IPv6 has no "any address" of it.
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && is_no_ipv6(&error) => {
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            TcpListener::bind(address).await.map_err(|error| BindError { address, error })?
        }
        bound => bound.map_err(|error| BindError { address, error })?,
    };
    let bound = listener.local_addr().map_err(|error| BindError { address, error })?;
    Ok((listener, bound))
}

fn is_no_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT has no kind of its own.
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(97)
}

/// The next connection.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    let mut retry = RETRY;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                // Out of file descriptors, usually: waiting is all that helps, spinning makes it worse.
                tracing::error!(%error, "accept a connection");
                tokio::time::sleep(retry.pause()).await;
            }
        }
    }
}

/// Sends at once, and gives a peer up that acknowledges nothing for so long, whatever the retransmission schedule says. Neither is
/// vital: where the system refuses one, the connection works without.
pub fn prepare(stream: &TcpStream, unacknowledged: Duration) {
    let socket = SockRef::from(stream);
    let options = [socket.set_tcp_nodelay(true), socket.set_tcp_user_timeout(Some(unacknowledged))];
    for error in options.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "set a socket option");
    }
}

/// What a peer may take to say what it wants.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// From the TCP accept, or the answer before, to the end of the request head.
    pub timeout: Duration,
    /// A larger request head: 431.
    pub bytes_max: usize,
}

/// Serves one connection, which may be upgraded, until it ends; after `draining` it ends with the request under way.
pub async fn serve<S, F, R>(stream: S, limits: HeadLimits, draining: impl Future<Output = ()>, answer: F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(|request| {
        let response = answer(request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.timeout)
        .max_buf_size(limits.bytes_max.max(HEADER_BYTES_MIN))
        .max_header_size(limits.bytes_max.max(HEADER_BYTES_MIN))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = draining => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "http connection ended");
    }
}
