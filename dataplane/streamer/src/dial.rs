//! A subscriber's way to an owner that has accepted it, and what both of its sockets do: count and acknowledge.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rows::Version;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::client::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::http::{Response, StatusCode, Uri};

use crate::auth::Token;
use crate::authority::Authority;
use crate::error::{Error, Result};
use crate::socket::{self, Ended, Sink, Source, receive, split};
use crate::tls::{Connection, HANDSHAKE_MAX, Target};
use crate::wire::{
    ERROR_HEADER, FromOwner, FromSubscriber, Hello, OWNER_FRAME_BYTES_MAX, VERSIONS, VERSIONS_HEADER, Welcome,
    print_versions,
};

/// Between two acknowledgements at least; what happens meanwhile is told with the next.
const ACK_INTERVAL: Duration = Duration::from_millis(5);

/// How a subscriber reaches its owner and who it is.
#[derive(Clone, Debug)]
pub struct Options {
    /// `ws://`, `wss://`, `http://` or `https://` with the host and port of the owner.
    pub uri: String,
    pub token: Option<Token>,
    pub app: String,
    pub shard: u32,
    /// Unique among nodes.
    pub node: String,
    /// What is spoken; another range than [`VERSIONS`] serves tests of upgrades.
    pub versions: RangeInclusive<u16>,
    /// Encoded bytes that may be on their way or waiting to be taken.
    pub window_bytes: u64,
    /// From the TCP connect to the owner's answer.
    pub connect_timeout: Duration,
    /// A sign of life is given this often.
    pub heartbeat: Duration,
    /// An owner that sends nothing for this long is gone.
    pub silence_max: Duration,
    /// Instead of the system's certificates.
    pub tls: Option<Authority>,
}

impl Options {
    #[must_use]
    pub fn new(uri: impl Into<String>, app: impl Into<String>, shard: u32, node: impl Into<String>) -> Options {
        Options {
            uri: uri.into(),
            token: None,
            app: app.into(),
            shard,
            node: node.into(),
            versions: VERSIONS,
            window_bytes: 16 << 20,
            connect_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(4),
            silence_max: Duration::from_secs(12),
            tls: None,
        }
    }
}

/// What was taken and applied, told to the owner by [`Ledger::tell`].
#[derive(Debug)]
pub(crate) struct Ledger {
    applied: AtomicU64,
    consumed: AtomicU64,
    /// A snapshot is to be asked for.
    fetch: AtomicBool,
    changed: Notify,
    /// Consumption is told once it has grown by this much.
    told_every: u64,
    told: AtomicU64,
}

impl Ledger {
    pub(crate) fn new(after: Version, window: u64) -> Arc<Ledger> {
        Arc::new(Ledger {
            applied: AtomicU64::new(after.as_u64()),
            consumed: AtomicU64::new(0),
            fetch: AtomicBool::new(false),
            changed: Notify::new(),
            told_every: window / 8,
            told: AtomicU64::new(0),
        })
    }

    pub(crate) fn apply(&self, version: Version) {
        if self.applied.fetch_max(version.as_u64(), Ordering::AcqRel) < version.as_u64() {
            self.changed.notify_one();
        }
    }

    pub(crate) fn consume(&self, bytes: u64) {
        let consumed = self.consumed.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if consumed - self.told.load(Ordering::Acquire) >= self.told_every {
            self.changed.notify_one();
        }
    }

    pub(crate) fn fetch(&self) {
        self.fetch.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// Acknowledges until the socket breaks.
    pub(crate) async fn tell(&self, sink: &mut Sink<Connection>, heartbeat: Duration) -> Ended {
        let mut ticks = interval(heartbeat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                _ = ticks.tick() => {}
            }
            if self.fetch.swap(false, Ordering::AcqRel)
                && let Err(ended) = sink.send(FromSubscriber::Fetch.encode()).await
            {
                return ended;
            }
            let consumed = self.consumed.load(Ordering::Acquire);
            self.told.store(consumed, Ordering::Release);
            let applied = Version::new(self.applied.load(Ordering::Acquire));
            if let Err(ended) = sink.send(FromSubscriber::Ack { applied, consumed }.encode()).await {
                return ended;
            }
            tokio::time::sleep(ACK_INTERVAL).await;
        }
    }
}

/// An accepted socket.
pub(crate) struct Dialled {
    pub(crate) welcome: Welcome,
    /// What both speak.
    pub(crate) version: u16,
    pub(crate) sink: Sink<Connection>,
    pub(crate) source: Source<Connection>,
}

/// Connects, authenticates, agrees on a version and says who subscribes.
pub(crate) async fn dial(
    options: &Options,
    purpose: &str,
    replica: Option<Version>,
    after: Version,
) -> Result<Dialled> {
    let hello = Hello {
        app: options.app.clone(),
        shard: options.shard,
        node: options.node.clone(),
        replica,
        after,
        window: options.window_bytes,
    };
    let target = Target::parse(&options.uri)?;
    let authority = target.authority();
    match timeout(options.connect_timeout, reach(options, &target, purpose, hello)).await {
        Ok(dialled) => dialled,
        Err(_) => Err(Error::transient(format!(
            "the change stream at {authority} did not answer within {:?}",
            options.connect_timeout
        ))),
    }
}

async fn reach(options: &Options, target: &Target, purpose: &str, hello: Hello) -> Result<Dialled> {
    let authority = target.authority();
    let stream = target.connect(options.tls.as_ref()).await?;
    let (lowest, prefix) = (options.versions.start(), &target.prefix);
    let uri: Uri = format!("ws://{authority}{prefix}/replication/v{lowest}/{purpose}")
        .parse()
        .map_err(|error| Error::configuration(format!("the change stream's address is not usable: {error}")))?;
    let mut request = ClientRequestBuilder::new(uri).with_header(VERSIONS_HEADER, print_versions(&options.versions));
    if let Some(token) = &options.token {
        request = request.with_header("authorization", token.header());
    }
    let config = socket::config(OWNER_FRAME_BYTES_MAX);
    let upgrade = client_async_with_config(request, stream, Some(config));
    let (stream, response) = match timeout(HANDSHAKE_MAX, upgrade).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(WsError::Http(response))) => return Err(refused(&authority, &response)),
        Err(_) => {
            let message = format!("the change stream at {authority} did not answer within {HANDSHAKE_MAX:?}");
            return Err(Error::transient(message));
        }
        Ok(Err(error @ WsError::Protocol(ProtocolError::HttparseError(_)))) if !target.is_tls => {
            return Err(Error::transient(format!(
                "the server at {authority} does not answer in HTTP: {error}; if it speaks TLS, give an address that begins with wss://"
            )));
        }
        Ok(Err(error)) => {
            return Err(Error::transient(format!(
                "the handshake with the change stream at {authority} failed: {error}"
            )));
        }
    };
    let chosen = response.headers().get(VERSIONS_HEADER).and_then(|value| value.to_str().ok()?.parse::<u16>().ok());
    let Some(version) = chosen.filter(|version| options.versions.contains(version)) else {
        return Err(Error::configuration(format!(
            "the server at {authority} does not speak this change stream: run the same software on all nodes"
        )));
    };
    let (mut sink, mut source) = split(stream);
    let failed = |ended: Ended| Error::transient(format!("the change stream at {authority} failed: {ended}"));
    sink.send(FromSubscriber::Hello(hello).encode()).await.map_err(failed)?;
    let answer = receive(&mut source, options.silence_max).await.map_err(failed)?;
    match FromOwner::decode(answer) {
        Ok(FromOwner::Welcome(welcome)) => Ok(Dialled { welcome, version, sink, source }),
        Ok(FromOwner::Refused(refusal)) => Err(Error::refused(&refusal)),
        Ok(_) => Err(failed(Ended::Protocol("its first frame is no answer".to_owned()))),
        Err(error) => Err(failed(Ended::Protocol(error.to_string()))),
    }
}

const WHERE: &str =
    "it serves no change stream; is ZERO_CHANGE_STREAMER_URI the change stream's port (4849 by default)?";

fn refused(authority: &str, response: &Response<Option<Vec<u8>>>) -> Error {
    let status = response.status();
    let reason = response.headers().get(ERROR_HEADER).and_then(|value| value.to_str().ok());
    let told = reason.map_or_else(String::new, |reason| format!(": {reason}"));
    let message = format!("the server at {authority} refused the change stream with status {}{told}", status.as_u16());
    match status {
        StatusCode::NOT_FOUND if reason.is_none() => Error::configuration(format!("{message}: {WHERE}")),
        // The client port of a node without views says so as well.
        StatusCode::SERVICE_UNAVAILABLE if reason.is_none() => Error::transient(format!("{message}: {WHERE}")),
        // A load balancer or a full node; both pass.
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => Error::transient(message),
        _ => Error::configuration(message),
    }
}
