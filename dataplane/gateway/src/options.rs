//! What the composition root decides.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::crud::CrudOptions;

/// Text that must not reach a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Port 0 lets the system choose; the bound address is reported by the server.
    pub listen: SocketAddr,
    pub app_id: String,
    pub shard_num: u32,
    pub mutate: ApiOptions,
    pub query: ApiOptions,
    /// `None`: CRUD mutations are refused.
    pub crud: Option<CrudOptions>,
    pub auth: AuthOptions,
    /// Origins of web pages that may connect, such as `https://app.example.com` or `https://*.example.com`. Empty: all.
    pub origins: Vec<String>,
    pub limits: Limits,
}

impl Options {
    /// Defaults of the reference for application `app_id`, shard 0.
    #[must_use]
    pub fn new(app_id: impl Into<String>) -> Options {
        Options {
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 4848)),
            app_id: app_id.into(),
            shard_num: 0,
            mutate: ApiOptions::default(),
            query: ApiOptions::default(),
            crud: None,
            auth: AuthOptions::default(),
            origins: Vec::new(),
            limits: Limits::default(),
        }
    }
}

/// One endpoint of the application's API server.
#[derive(Clone, Debug, Default)]
pub struct ApiOptions {
    /// URL patterns that clients may choose from; the first is the default. Empty: not configured.
    pub urls: Vec<String>,
    pub api_key: Option<Secret>,
    pub forward_cookies: bool,
    pub allowed_client_headers: Vec<String>,
    pub allowed_request_headers: Vec<String>,
}

impl ApiOptions {
    /// Lower-case names of request headers that the endpoint may be sent.
    pub(crate) fn forwarded(&self) -> impl Iterator<Item = String> + '_ {
        let cookie = self.forward_cookies.then_some("cookie");
        let listed = self.allowed_request_headers.iter().map(String::as_str);
        listed.chain(cookie).chain(["origin"]).map(str::to_ascii_lowercase)
    }
}

/// At most one of `jwk`, `secret` and `jwks_url`. With none, tokens are opaque and only forwarded.
#[derive(Clone, Debug, Default)]
pub struct AuthOptions {
    pub jwk: Option<Secret>,
    pub secret: Option<Secret>,
    pub jwks_url: Option<String>,
    pub issuer: Option<String>,
    pub audience: Option<String>,
}

/// Every bound of the gateway, with what happens beyond it.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longer message of a client: close 1009, upon which clients drop their local data. Not below 10 MiB in production.
    pub payload_bytes_max: usize,
    /// Larger request head: 431. Clients put up to 8 KiB into one header.
    pub header_bytes_max: usize,
    /// Bytes waiting for one socket beside the bodies of pokes, which the views bound; beyond it the client, which asks and does not
    /// read, is disconnected.
    pub outbox_bytes_max: usize,
    /// Sockets; beyond it upgrades are answered 503.
    pub connections_max: usize,
    /// Connections that are no sockets, or not yet; further ones are closed at once.
    pub requests_max: usize,
    /// Sockets from one address whose credentials are yet to be judged; further ones are answered 503. All clients behind a proxy
    /// have the proxy's. `None`: as many as there are sockets.
    pub strangers_per_address_max: Option<usize>,
    /// How long a client that comes before the node takes clients is kept waiting; then it is answered 503.
    pub start_timeout: Duration,
    /// From the TCP accept to the end of the request head, and again from there to the end of the token check.
    pub handshake_timeout: Duration,
    /// A socket whose client has not said what it wants by then is closed. It may be a lot to say over a slow line.
    pub init_timeout: Duration,
    /// A socket that takes nothing for this long is disconnected.
    pub send_stall_timeout: Duration,
    /// Silence towards a client after which a pong is sent unasked.
    pub pong_after: Duration,
    /// Messages per second that one socket may send on average; a faster one is read more slowly.
    pub messages_per_second: u32,
    /// Memory of one message that the views handle, and of all those of one socket that they are not done with. A larger one ends
    /// the socket; for others to be handled it is read no further.
    pub message_memory_max: usize,
    /// For everything that all sockets have sent, finished messages or not, until views and API server are done with it; who comes
    /// with more is told to come back later. Three eighths are for sockets whose credentials are yet to be judged.
    pub inbound_memory_max: usize,
    /// Bytes of pushes waiting for one client group (and at most 20,000 pushes); beyond it the client is told to come back later.
    pub push_queue_bytes_max: usize,
    /// Calls of one endpoint of an API server at the same time, a quarter of them for one client group; further ones wait.
    pub api_calls_max: usize,
    /// Bodies of calls that wait for their turn, of one endpoint, a quarter of them of one client group; who comes with more is told
    /// to come back later.
    pub api_waiting_bytes_max: usize,
    /// How long a call waits for its turn; then its client is told to come back later.
    pub api_turn_timeout: Duration,
    /// One call of an API server, retries included.
    pub api_timeout: Duration,
    /// One fetch of the keys for tokens, retries included.
    pub keys_timeout: Duration,
    /// A longer answer of an API server is refused.
    pub api_response_bytes_max: usize,
    /// How long a transformed query is reused for an identical request.
    pub transform_cache_ttl: Duration,
    /// After the stop signal, how long the node says that it is not ready before it closes any socket: load balancers need a
    /// moment to turn away. Not waited for without sockets.
    pub drain_lead: Duration,
    /// After that, for all client groups to be sent away, one after the other. They go faster if there are few.
    pub drain_spread: Duration,
    /// After the stop signal: for the views to drain, for pushes to finish, for sockets to close.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            payload_bytes_max: 10 * 1024 * 1024,
            header_bytes_max: 32 * 1024,
            outbox_bytes_max: 64 * 1024 * 1024,
            connections_max: 100_000,
            requests_max: 10_000,
            strangers_per_address_max: Some(10_000),
            // Clients give an attempt up after ten seconds, and try again only some time later.
            start_timeout: Duration::from_secs(9),
            handshake_timeout: Duration::from_secs(10),
            init_timeout: Duration::from_secs(120),
            send_stall_timeout: Duration::from_secs(30),
            pong_after: Duration::from_secs(6),
            messages_per_second: 200,
            message_memory_max: 64 * 1024 * 1024,
            inbound_memory_max: 512 * 1024 * 1024,
            push_queue_bytes_max: 32 * 1024 * 1024,
            api_calls_max: 256,
            api_waiting_bytes_max: 32 * 1024 * 1024,
            api_turn_timeout: Duration::from_secs(10),
            api_timeout: Duration::from_secs(300),
            keys_timeout: Duration::from_secs(5),
            api_response_bytes_max: 32 * 1024 * 1024,
            transform_cache_ttl: Duration::from_secs(5),
            drain_lead: Duration::from_secs(2),
            drain_spread: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// For messages of up to so many bytes, and the budgets for a process that may use so much memory: an eighth for what clients send
    /// and at most a quarter for unfinished request heads, within sensible bounds.
    #[must_use]
    pub fn for_memory(bytes: usize, payload_bytes_max: usize) -> Limits {
        let defaults = Limits::default();
        // The largest message takes up to four times its length: as it comes, as it is read, and twice on its way to the API server.
        let one = payload_bytes_max.saturating_mul(4) / 5 * 8;
        let inbound_memory_max = (bytes / 8).clamp(32 << 20, 1 << 30).max(one);
        Limits {
            payload_bytes_max,
            inbound_memory_max,
            // One message must not be all that there is room for.
            message_memory_max: defaults.message_memory_max.min(inbound_memory_max / 2),
            // Their answers are held while they are read; few are longer than a part of this.
            api_calls_max: (bytes / 8 / (1 << 20)).clamp(32, defaults.api_calls_max),
            requests_max: (bytes / 4 / defaults.header_bytes_max).clamp(500, defaults.requests_max),
            ..defaults
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_follow_the_memory_within_bounds() {
        let small = Limits::for_memory(0, 1 << 20);
        assert_eq!((small.api_calls_max, Limits::for_memory(1 << 30, 1 << 20).api_calls_max), (32, 128));
        assert_eq!((small.inbound_memory_max, small.message_memory_max, small.requests_max), (32 << 20, 16 << 20, 500));
        let middle = Limits::for_memory(1 << 30, 10 << 20);
        assert_eq!((middle.inbound_memory_max, middle.message_memory_max), (128 << 20, 64 << 20));
        assert_eq!((middle.payload_bytes_max, middle.requests_max), (10 << 20, 8192));
        let large = Limits::for_memory(usize::MAX, 10 << 20);
        assert_eq!(
            (large.inbound_memory_max, large.message_memory_max, large.requests_max),
            (1 << 30, 64 << 20, 10_000)
        );
        // However little there is, the largest message is heard.
        assert_eq!(Limits::for_memory(0, 10 << 20).inbound_memory_max, 64 << 20);
    }
}
