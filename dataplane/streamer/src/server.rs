//! The port: binding, accepting, shutting down.

use std::future::Future;
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use port::{Addresses, BindError, HeadLimits, Inside, Pages, StatusPage, Tasks, websocket};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout_at};

use crate::auth::Token;
use crate::certificate::Certificate;
use crate::line::Pace;
use crate::metrics::Metrics;
use crate::role::{Gate, Role};
use crate::{encryption, http, upgrade, wire};

/// A peer that acknowledges nothing for this long is gone, whatever the retransmission schedule says.
pub(crate) const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Between two lines about refused requests.
const WARN_INTERVAL: Duration = Duration::from_millis(500);

/// What the composition root decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// Port 0 lets the system choose; the bound address is reported by the server.
    pub listen: SocketAddr,
    /// With one the port speaks TLS only.
    pub certificate: Option<Certificate>,
    /// Between two looks whether the certificate's files have changed.
    pub certificate_interval: Duration,
    /// Unique among nodes; told to whoever asks whether the process lives.
    pub node: String,
    /// `None` opens the stream to everyone who can reach the port: for development only.
    pub token: Option<Token>,
    /// What is spoken; another range than [`wire::VERSIONS`] serves tests of upgrades.
    pub versions: RangeInclusive<u16>,
    /// Connections of any kind; further ones are closed at once.
    pub connections_max: usize,
    /// Connections from one address that are no streams, or not yet: probes, scrapes, and whoever is yet to show the token. Further
    /// ones are closed at once, so that one place cannot take all the room. Nodes behind a proxy have its address.
    pub strangers_per_address_max: usize,
    /// A larger request head: 431.
    pub header_bytes_max: usize,
    /// From the TCP accept, over the TLS handshake, to the end of the request head, and again from there to the subscriber's first frame.
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
    /// What `/livez` goes by.
    pub liveness: port::Liveness,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 4849)),
            certificate: None,
            certificate_interval: Duration::from_secs(10),
            node: String::new(),
            token: None,
            versions: wire::VERSIONS,
            connections_max: 1000,
            strangers_per_address_max: 200,
            header_bytes_max: 16 * 1024,
            handshake_timeout: Duration::from_secs(10),
            refusal_delay: Duration::from_millis(300),
            heartbeat: Duration::from_secs(4),
            silence_max: Duration::from_secs(12),
            stall_max: Some(Duration::from_secs(60)),
            window_bytes_max: 64 << 20,
            drain_timeout: Duration::from_secs(10),
            liveness: port::Liveness::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Bind(#[from] BindError),
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
    pub(crate) pages: Pages,
    pub(crate) gate: Gate,
    pub(crate) sockets: Tasks,
    addresses: Arc<Addresses>,
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
        status_page: StatusPage,
    ) -> Result<Server, BuildError> {
        let (listener, address) = port::bind(options.listen).await?;
        let pages = Pages::new(registry, status_page, Inside::Shown).with_liveness(options.liveness.clone());
        let shared = Shared {
            addresses: Addresses::new(Some(options.strangers_per_address_max)),
            options,
            metrics,
            pages,
            gate: Gate::new(),
            sockets: Tasks::default(),
            warned: Mutex::default(),
        };
        Ok(Server { shared: Arc::new(shared), listener, address, requests: Tasks::default() })
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
            () = self.renew() => {}
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

    async fn renew(&self) {
        let Some(certificate) = &self.shared.options.certificate else { return std::future::pending().await };
        loop {
            tokio::time::sleep(self.shared.options.certificate_interval).await;
            match certificate.renew().await {
                Ok(false) => {}
                Ok(true) => tracing::info!("the change stream's port has a new certificate"),
                Err(unusable) => {
                    tracing::warn!(%unusable, "the change stream's port keeps its certificate: the new one is of no use");
                }
            }
        }
    }

    async fn accept(&self) {
        loop {
            let stream = port::accept(&self.listener).await;
            // A socket counts twice for a moment, as a request and as a stream.
            let is_full = self.shared.sockets.live() >= self.shared.options.connections_max;
            let member = self.requests.admit("http connection", self.shared.options.connections_max);
            let Some(member) = member.filter(|_| !is_full) else {
                self.shared.metrics.refusals.with_label_values(&["connections"]).inc();
                continue;
            };
            port::prepare(&stream, UNACKNOWLEDGED);
            member.spawn(serve(Arc::clone(&self.shared), stream));
        }
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    // One that has no address is gone.
    let Ok(address) = stream.peer_addr() else { return };
    let Some(_stranger) = shared.addresses.admit(address.ip()) else {
        shared.metrics.refusals.with_label_values(&["connections"]).inc();
        return;
    };
    let peer = address.to_string();
    let Options { handshake_timeout, header_bytes_max, .. } = shared.options;
    // One that comes while the node drains is for one request, a probe or another node's, and is closed after it.
    let is_last = shared.gate.is_draining();
    let draining = async {
        if is_last {
            std::future::pending::<()>().await;
        }
        shared.gate.draining().await;
    };
    tokio::pin!(draining);
    let deadline = Instant::now() + handshake_timeout;
    let established = tokio::select! {
        established = encryption::establish(&shared, stream, &peer, deadline) => established,
        () = &mut draining => None,
    };
    let Some(stream) = established else { return };
    let limits =
        HeadLimits { timeout: deadline.saturating_duration_since(Instant::now()), bytes_max: header_bytes_max };
    let answer = async |request| {
        if websocket::is_upgrade(&request) {
            upgrade::accept(&shared, request, &peer).await
        } else {
            http::answer(&shared, &request, address.ip()).await
        }
    };
    port::serve(stream, limits, draining, answer).await;
}
