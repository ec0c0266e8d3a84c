//! The port: binding, accepting, shutting down.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use port::{Addresses, BindError, HeadLimits, Pages, Tasks, websocket};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout_at;
use views::api::{Command, Transformer};

use crate::api::{Bounds, Caller, Endpoint, EndpointError};
use crate::auth::{AuthError, Verifier};
use crate::budget::Budget;
use crate::control::Ending;
use crate::gate::Gate;
use crate::http;
use crate::metrics::Metrics;
use crate::mutate::Pusher;
use crate::options::{ApiOptions, Limits, Options};
use crate::origins::Origins;
use crate::query::QueryTransformer;
use crate::registry::Registry;
use crate::upgrade;

/// Unsent bytes that the kernel may hold per socket. What it holds is ahead of any pong.
const UNSENT_BYTES: u32 = 128 * 1024;
/// A peer that acknowledges nothing for this long is gone, whatever the retransmission schedule says.
const UNACKNOWLEDGED: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error("register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("prepare TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// How the server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Views drained, pushes answered and sockets closed within the time for it.
    pub is_graceful: bool,
}

/// What all sockets share.
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) pages: Pages,
    /// Lower-case names of request headers that API servers may be sent.
    pub(crate) forwarded: Vec<String>,
    pub(crate) gate: Gate,
    pub(crate) registry: Arc<Registry>,
    pub(crate) verifier: Verifier,
    pub(crate) pusher: Pusher,
    pub(crate) sockets: Tasks,
    /// Web pages that may connect.
    pub(crate) origins: Origins,
    /// For what all sockets send, until everybody is done with it.
    pub(crate) budget: Arc<Budget>,
    /// Where sockets come from whose credentials are yet to be judged.
    pub(crate) addresses: Arc<Addresses>,
}

/// A bound port. Probes are answered as soon as it runs; sockets are accepted once its gate is open.
pub struct Server {
    shared: Arc<Shared>,
    listener: TcpListener,
    address: SocketAddr,
    transformer: Arc<dyn Transformer>,
    requests: Tasks,
}

impl Server {
    /// Binds the port and reads the configuration. `registry` receives this crate's metrics; `pages` are what the port answers over
    /// plain HTTP.
    pub async fn build(options: Options, registry: &prometheus::Registry, pages: Pages) -> Result<Server, BuildError> {
        let metrics = Metrics::register(registry)?;
        let limits = options.limits;
        let caller = Caller::new(limits.api_timeout, limits.api_response_bytes_max, metrics.clone())?;
        let bounds = Bounds {
            at_once: limits.api_calls_max,
            bytes: limits.api_waiting_bytes_max,
            wait: limits.api_turn_timeout,
        };
        let mutate = Endpoint::build(&options.mutate, &options.app_id, options.shard_num, bounds)?;
        let query = Endpoint::build(&options.query, &options.app_id, options.shard_num, bounds)?;
        let has_api = mutate.is_some() && query.is_some();
        let verifier = Verifier::build(&options.auth, &caller, limits.keys_timeout, has_api)?;
        let registry = Arc::new(Registry::default());
        let pusher = Pusher::new(
            mutate,
            caller.clone(),
            options.crud,
            Arc::clone(&registry),
            limits.push_queue_bytes_max,
            metrics.clone(),
        );
        let transformer: Arc<dyn Transformer> =
            Arc::new(QueryTransformer::new(query, caller, limits.transform_cache_ttl, metrics.clone()));
        let (listener, address) = port::bind(options.listen).await?;
        let forwarded = [&options.mutate, &options.query].into_iter().flat_map(ApiOptions::forwarded).collect();
        let budget = Budget::new(limits.inbound_memory_max, &metrics.inbound_bytes);
        let addresses = Addresses::new(limits.strangers_per_address_max);
        let shared = Arc::new(Shared {
            limits,
            metrics,
            pages,
            forwarded,
            gate: Gate::new(),
            registry,
            verifier,
            pusher,
            sockets: Tasks::default(),
            origins: Origins::new(&options.origins),
            budget,
            addresses,
        });
        Ok(Server { shared, listener, address, transformer, requests: Tasks::default() })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// To be opened when the node is ready.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.shared.gate.clone()
    }

    /// For the views.
    #[must_use]
    pub fn transformer(&self) -> Arc<dyn Transformer> {
        Arc::clone(&self.transformer)
    }

    /// Serves until `shutdown` completes, then drains.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Outcome {
        tokio::select! {
            () = self.accept() => {}
            () = shutdown => {}
        }
        // Probes are answered to the end; who comes anew is sent elsewhere.
        let outcome = tokio::select! {
            outcome = drain(&self.shared, &self.requests) => outcome,
            () = self.accept() => Outcome { is_graceful: false },
        };
        drop(self.listener);
        outcome
    }

    async fn accept(&self) {
        loop {
            let stream = port::accept(&self.listener).await;
            let Some(member) = self.requests.admit("http connection", self.shared.limits.requests_max) else {
                self.shared.metrics.connection_failures.with_label_values(&["requests"]).inc();
                continue;
            };
            prepare(&stream);
            member.spawn(serve(Arc::clone(&self.shared), stream));
        }
    }
}

fn prepare(stream: &TcpStream) {
    port::prepare(stream, UNACKNOWLEDGED);
    if let Err(error) = SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES) {
        tracing::debug!(%error, "set a socket option");
    }
}

async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    // One that has none is gone.
    let Ok(peer) = stream.peer_addr() else { return };
    let gate = &shared.gate;
    let limits = HeadLimits { timeout: shared.limits.handshake_timeout, bytes_max: shared.limits.header_bytes_max };
    // One that comes while the node drains is for one request, a probe most likely, and is closed after it.
    let is_last = gate.is_draining();
    let draining = async {
        if is_last {
            std::future::pending::<()>().await;
        }
        gate.draining().await;
    };
    let answer = async |request| {
        if websocket::is_upgrade(&request) {
            upgrade::accept(&shared, request, peer.ip()).await
        } else {
            http::answer(&shared, &request, peer.ip()).await
        }
    };
    port::serve(stream, limits, draining, answer).await;
}

async fn drain(shared: &Arc<Shared>, requests: &Tasks) -> Outcome {
    let started = Instant::now();
    let deadline = tokio::time::Instant::now() + shared.limits.drain_timeout;
    shared.gate.drain();
    tracing::info!(sockets = shared.sockets.live(), "draining");
    if shared.sockets.live() > 0 {
        let _ = timeout_at(deadline, tokio::time::sleep(shared.limits.drain_lead)).await;
    }
    let mut late = Vec::new();
    if let Some(views) = shared.gate.views() {
        let (done, drained) = oneshot::channel();
        // The views close their clients' sockets at their own pace, then drop `done`; views that are gone drop it at once.
        // Some time must be left for what the last groups changed.
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let _ = views.commands.send(Command::Drain { done, within: shared.limits.drain_spread.min(left * 3 / 4) });
        if timeout_at(deadline, drained).await.is_err() {
            late.push("views");
        }
    }
    // What the views left open, and sockets that were in their handshake.
    let goodbye = Ending::Close(1001, "the server is shutting down".to_owned());
    let closing = async {
        while shared.sockets.live() > 0 {
            shared.registry.end_all(&goodbye);
            let _ = tokio::time::timeout(Duration::from_millis(100), shared.sockets.finished()).await;
        }
    };
    // Pushes that are under way get their answer even when views took all the time there was.
    let grace = deadline.max(tokio::time::Instant::now() + Duration::from_secs(1));
    if timeout_at(grace, shared.pusher.finished()).await.is_err() {
        late.push("pushes");
    }
    let grace = grace.max(tokio::time::Instant::now() + Duration::from_secs(1));
    if timeout_at(grace, closing).await.is_err() {
        late.push("sockets");
    }
    if timeout_at(grace, requests.finished()).await.is_err() {
        late.push("requests");
    }
    let is_graceful = late.is_empty();
    tracing::info!(
        is_graceful,
        ?late,
        sockets = shared.sockets.live(),
        pushes = shared.pusher.live(),
        seconds = started.elapsed().as_secs_f64(),
        "drained"
    );
    Outcome { is_graceful }
}
