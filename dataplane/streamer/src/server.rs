//! The port: binding, accepting, shutting down.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout_at};

use crate::auth::Token;
use crate::line::Pace;
use crate::metrics::Metrics;
use crate::role::{Gate, Role};
use crate::tasks::Tasks;
use crate::{http, upgrade, wire};

/// A peer that acknowledges nothing for this long is gone, whatever the retransmission schedule says.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Between two lines about refused requests.
const WARN_INTERVAL: Duration = Duration::from_millis(500);

/// What the composition root decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// Port 0 lets the system choose; the bound address is reported by the server.
    pub listen: SocketAddr,
    /// `None` opens the stream to everyone who can reach the port: for development only.
    pub token: Option<Token>,
    /// What is spoken; another range than [`wire::VERSIONS`] serves tests of upgrades.
    pub versions: RangeInclusive<u16>,
    /// Connections of any kind; further ones are closed at once.
    pub connections_max: usize,
    /// A larger request head: 431.
    pub header_bytes_max: usize,
    /// From the TCP accept to the end of the request head, and again from there to the subscriber's first frame.
    pub handshake_timeout: Duration,
    /// After a wrong token, before the answer.
    pub refusal_delay: Duration,
    /// The owner gives a sign of life this often.
    pub heartbeat: Duration,
    /// A subscriber that sends nothing for this long is gone.
    pub silence_max: Duration,
    /// A subscriber that is behind and makes no progress for this long is disconnected; `None` waits for ever.
    pub stall_max: Option<Duration>,
    /// Bytes on their way to one subscriber, whatever window it grants.
    pub window_bytes_max: u64,
    /// After the stop signal, for sockets to close.
    pub drain_timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 4849)),
            token: None,
            versions: wire::VERSIONS,
            connections_max: 1000,
            header_bytes_max: 16 * 1024,
            handshake_timeout: Duration::from_secs(10),
            refusal_delay: Duration::from_millis(300),
            heartbeat: Duration::from_secs(4),
            silence_max: Duration::from_secs(12),
            stall_max: Some(Duration::from_secs(60)),
            window_bytes_max: 64 << 20,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("bind {address}: {error}")]
    Bind { address: SocketAddr, error: io::Error },
}

/// How the server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// All sockets closed within the time for it.
    pub is_graceful: bool,
}

/// What all sockets share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) metrics: Metrics,
    pub(crate) prometheus: prometheus::Registry,
    pub(crate) gate: Gate,
    pub(crate) sockets: Tasks,
    warned: Mutex<Option<Instant>>,
}

impl Shared {
    /// Whether a refusal is worth a line in the log: strangers must not be able to fill it. All are counted.
    pub(crate) fn may_warn(&self) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = warned.is_none_or(|at| at.elapsed() >= WARN_INTERVAL);
        if is_due {
            *warned = Some(Instant::now());
        }
        is_due
    }

    pub(crate) fn pace(&self) -> Pace {
        let Options { heartbeat, silence_max, stall_max, .. } = self.options;
        Pace { heartbeat, silence_max, stall_max }
    }
}

/// A bound port. Probes are answered as soon as it runs; subscribers are served according to the role.
pub struct Server {
    shared: Arc<Shared>,
    listener: TcpListener,
    address: SocketAddr,
    requests: Tasks,
}

impl Server {
    /// Binds the port. `registry` is what `/metrics` shows; `metrics` are this crate's, registered in it once per process.
    pub async fn build(
        options: Options,
        registry: prometheus::Registry,
        metrics: Metrics,
    ) -> Result<Server, BuildError> {
        let listener = bind(options.listen).await?;
        let address = listener.local_addr().map_err(|error| BuildError::Bind { address: options.listen, error })?;
        let shared = Shared {
            options,
            metrics,
            prometheus: registry,
            gate: Gate::new(),
            sockets: Tasks::new(),
            warned: Mutex::default(),
        };
        Ok(Server { shared: Arc::new(shared), listener, address, requests: Tasks::new() })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// By which the composition root tells the role of this node.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.shared.gate.clone()
    }

    /// Serves until `shutdown` completes, then tells subscribers to go elsewhere.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Outcome {
        tokio::select! {
            () = self.accept() => {}
            () = shutdown => {}
        }
        let Server { shared, listener, requests, .. } = self;
        // From here on new connections are refused by the kernel: the load balancer goes elsewhere.
        drop(listener);
        shared.gate.set(Role::Draining);
        let deadline = Instant::now() + shared.options.drain_timeout;
        let is_graceful = timeout_at(deadline, shared.sockets.finished()).await.is_ok()
            && timeout_at(deadline, requests.finished()).await.is_ok();
        tracing::info!(is_graceful, sockets = shared.sockets.live(), "the change stream's port is closed");
        Outcome { is_graceful }
    }

    async fn accept(&self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    // A socket counts twice for a moment, as a request and as a stream.
                    let is_full = self.shared.sockets.live() >= self.shared.options.connections_max;
                    let member = self.requests.admit("http connection", self.shared.options.connections_max);
                    let Some(member) = member.filter(|_| !is_full) else {
                        self.shared.metrics.refusals.with_label_values(&["connections"]).inc();
                        continue;
                    };
                    prepare(&stream);
                    member.spawn(serve(Arc::clone(&self.shared), stream));
                }
                Err(error) => {
                    // Out of file descriptors, usually: waiting is all that helps, spinning makes it worse.
                    tracing::error!(%error, "accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, BuildError> {
    match TcpListener::bind(address).await {
        // A host without IPv6 has no "any address" of it.
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && is_no_ipv6(&error) => {
            let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            TcpListener::bind(address).await.map_err(|error| BuildError::Bind { address, error })
        }
        bound => bound.map_err(|error| BuildError::Bind { address, error }),
    }
}

fn is_no_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT has no kind of its own.
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(97)
}

/// Options of a connection between nodes. None is vital: where the system refuses one, the socket works without.
pub(crate) fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let options = [socket.set_tcp_nodelay(true), socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))];
    for error in options.into_iter().filter_map(Result::err) {
        tracing::debug!(%error, "set a socket option");
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let gate = shared.gate.clone();
    let peer = stream.peer_addr().map(|address| address.to_string()).unwrap_or_default();
    let Options { handshake_timeout, header_bytes_max, .. } = shared.options;
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, peer) = (Arc::clone(&shared), peer.clone());
        async move {
            let response = if upgrade::is_upgrade(&request) {
                upgrade::accept(&shared, request, peer).await
            } else {
                http::answer(&shared, &request)
            };
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(handshake_timeout)
        .max_buf_size(header_bytes_max.max(16 * 1024))
        .max_header_size(header_bytes_max.max(16 * 1024))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = gate.draining() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "http connection ended");
    }
}
