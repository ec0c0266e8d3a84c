//! From an address to an encrypted byte stream to its primary server: the way that every connection takes.
//!
//! Knows no SQL. A server that is gone without a word is noticed: by the kernel, which probes idle connections and bounds how long
//! sent bytes may stay unconfirmed, and, where a proxy confirms what it does not deliver, because an answer that is due does not come.

use std::future::{Future, Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep};
use tokio_postgres::config::Host;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use crate::address::{Address, Tls};
use crate::{Error, Result, binding};

const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// Sent bytes that stay unconfirmed for so long end the connection.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(30);

/// One place to connect to.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// The host's number in the address.
    host: usize,
    to: To,
}

#[derive(Clone, Debug)]
enum To {
    /// The name is what a certificate must be for.
    Tcp(SocketAddr, String),
    Unix(PathBuf),
}

/// Goes through the servers of an address, the last known primary first.
pub(crate) struct Search<'a> {
    address: &'a Address,
    endpoints: std::vec::IntoIter<Endpoint>,
    failure: Option<Error>,
}

impl<'a> Search<'a> {
    pub(crate) async fn begin(address: &'a Address) -> Result<Search<'a>> {
        let found = tokio::time::timeout(address.connect_timeout(), endpoints(address)).await;
        let mut endpoints = found.map_err(|_| silent(address))?.map_err(|e| failed(address, e))?;
        let known = address.primary();
        endpoints.sort_by_key(|endpoint| endpoint.host != known);
        Ok(Search { address, endpoints: endpoints.into_iter(), failure: None })
    }

    pub(crate) fn next(&mut self) -> Option<Endpoint> {
        self.endpoints.next()
    }

    /// Whether it must be asked of a server whether it is the primary. Where there is no other, it is used or refused by its user.
    pub(crate) fn is_choosy(&self) -> bool {
        self.address.host_count() > 1
    }

    /// The outcome of one attempt, which is bounded in time here. `None` if the next endpoint is to be tried.
    pub(crate) async fn attempt<T>(
        &mut self,
        endpoint: &Endpoint,
        opening: impl Future<Output = Result<T>>,
    ) -> Option<T> {
        let outcome = tokio::time::timeout(self.address.connect_timeout(), opening).await;
        match outcome.unwrap_or_else(|_| Err(silent(self.address))) {
            Ok(opened) => {
                self.address.set_primary(endpoint.host);
                Some(opened)
            }
            Err(error) => {
                // What a person must mend is worth more than that another server was not there.
                if !matches!(self.failure, Some(Error::Configuration { .. })) {
                    self.failure = Some(error);
                }
                None
            }
        }
    }

    /// Why none was found.
    pub(crate) fn failure(self) -> Error {
        self.failure.unwrap_or_else(|| Error::transient(format!("cannot connect to Postgres at {}", self.address)))
    }

    /// For a server that is none to be used.
    pub(crate) fn standby(&self) -> Error {
        Error::transient(format!("none of the servers at {} is a primary", self.address))
    }
}

fn silent(address: &Address) -> Error {
    let limit = address.connect_timeout();
    Error::transient(format!("cannot connect to Postgres at {address}: no answer within {limit:?}"))
}

pub(crate) fn failed(address: &Address, error: io::Error) -> Error {
    Error::transient_from(format!("cannot connect to Postgres at {address}: {error}"), error)
}

async fn endpoints(address: &Address) -> io::Result<Vec<Endpoint>> {
    let (config, mut found) = (address.config(), Vec::new());
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name of the host leads nowhere");
    for host in 0..address.host_count() {
        let port = address.port(host);
        match (config.get_hosts().get(host), config.get_hostaddrs().get(host)) {
            (Some(Host::Unix(folder)), _) => {
                found.push(Endpoint { host, to: To::Unix(folder.join(format!(".s.PGSQL.{port}"))) })
            }
            (Some(Host::Tcp(name)), Some(ip)) => {
                found.push(Endpoint { host, to: To::Tcp(SocketAddr::new(*ip, port), name.clone()) });
            }
            (None, Some(ip)) => {
                found.push(Endpoint { host, to: To::Tcp(SocketAddr::new(*ip, port), ip.to_string()) });
            }
            (Some(Host::Tcp(name)), None) => match tokio::net::lookup_host((name.as_str(), port)).await {
                Ok(known) => found.extend(known.map(|to| Endpoint { host, to: To::Tcp(to, name.clone()) })),
                Err(error) => last = error,
            },
            (None, None) => {}
        }
    }
    if found.is_empty() { Err(last) } else { Ok(found) }
}

/// Connects and encrypts. `answer_max` bounds the time between what is sent and the next byte that comes.
pub(crate) async fn dial(address: &Address, endpoint: &Endpoint, answer_max: Option<Duration>) -> Result<Channel> {
    encrypted(address, endpoint, answer_max).await.map_err(|e| failed(address, e))
}

async fn encrypted(address: &Address, endpoint: &Endpoint, answer_max: Option<Duration>) -> io::Result<Channel> {
    let (to, name) = match &endpoint.to {
        To::Unix(path) => {
            let socket = Socket { raw: Raw::Unix(UnixStream::connect(path).await?), watch: answer_max.map(Watch::new) };
            return Ok(Channel::Plain(socket));
        }
        To::Tcp(to, name) => (*to, name),
    };
    let tcp = TcpStream::connect(to).await?;
    tcp.set_nodelay(true)?;
    let kernel = SockRef::from(&tcp);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    kernel.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_RETRIES))?;
    #[cfg(target_os = "linux")]
    kernel.set_tcp_user_timeout(Some(UNCONFIRMED_MAX))?;
    let mut socket = Socket { raw: Raw::Tcp(tcp), watch: answer_max.map(Watch::new) };
    let channel = match address.tls_config() {
        Some(tls) if address.is_direct() || offers_tls(&mut socket).await? => {
            let server =
                ServerName::try_from(name.clone()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(tls));
            let stream = connector.connect(server, socket).await?;
            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let binding = certificate.and_then(|certificate| binding::of(certificate));
            Channel::Tls(Box::new(stream), binding)
        }
        Some(_) if matches!(address.tls(), Tls::Require(_)) => {
            return Err(io::Error::other("the server does not offer TLS, and the connection string insists on it"));
        }
        _ => Channel::Plain(socket),
    };
    if !to.ip().is_loopback() {
        address.tell(matches!(channel, Channel::Tls(..)));
    }
    Ok(channel)
}

async fn offers_tls(socket: &mut Socket) -> io::Result<bool> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await?;
    Ok(socket.read_u8().await? == b'S')
}

/// A connection below the protocol of Postgres.
pub(crate) enum Channel {
    Plain(Socket),
    /// With what binds a password to this very server, if that is known.
    Tls(Box<tokio_rustls::client::TlsStream<Socket>>, Option<Vec<u8>>),
}

impl Channel {
    pub(crate) fn binding(&self) -> Option<&[u8]> {
        match self {
            Channel::Plain(_) => None,
            Channel::Tls(_, binding) => binding.as_deref(),
        }
    }
}

pub(crate) struct Socket {
    raw: Raw,
    watch: Option<Watch>,
}

enum Raw {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Fails a read that an answer is due for.
struct Watch {
    limit: Duration,
    is_due: bool,
    deadline: Pin<Box<Sleep>>,
}

impl Watch {
    fn new(limit: Duration) -> Watch {
        Watch { limit, is_due: false, deadline: Box::pin(tokio::time::sleep(limit)) }
    }

    fn sent(&mut self) {
        self.is_due = true;
        self.deadline.as_mut().reset(Instant::now() + self.limit);
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if !self.is_due || self.deadline.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let message = format!("no answer within {:?}", self.limit);
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, message))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let socket = self.get_mut();
        let read = match &mut socket.raw {
            Raw::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Raw::Unix(s) => Pin::new(s).poll_read(cx, buf),
        };
        match (&mut socket.watch, read.is_pending()) {
            (Some(watch), true) => watch.poll_late(cx).map(Err),
            (Some(watch), false) => {
                watch.is_due = false;
                read
            }
            (None, _) => read,
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let socket = self.get_mut();
        let written = match &mut socket.raw {
            Raw::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Raw::Unix(s) => Pin::new(s).poll_write(cx, buf),
        };
        if written.is_ready()
            && let Some(watch) = &mut socket.watch
        {
            watch.sent();
            // The reader may be waiting already, for nothing in particular.
            cx.waker().wake_by_ref();
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().raw {
            Raw::Tcp(s) => Pin::new(s).poll_flush(cx),
            Raw::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().raw {
            Raw::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Raw::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Channel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Channel::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Channel::Tls(s, _) => Pin::new(s.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Channel {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Channel::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Channel::Tls(s, _) => Pin::new(s.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Channel::Plain(s) => Pin::new(s).poll_flush(cx),
            Channel::Tls(s, _) => Pin::new(s.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Channel::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Channel::Tls(s, _) => Pin::new(s.as_mut()).poll_shutdown(cx),
        }
    }
}

/// For the SQL driver, which shall not encrypt what is encrypted.
impl TlsStream for Channel {
    fn channel_binding(&self) -> ChannelBinding {
        self.binding()
            .map_or_else(ChannelBinding::none, |binding| ChannelBinding::tls_server_end_point(binding.to_vec()))
    }
}

pub(crate) struct Established;

impl TlsConnect<Channel> for Established {
    type Stream = Channel;
    type Error = io::Error;
    type Future = Ready<io::Result<Channel>>;

    fn connect(self, channel: Channel) -> Self::Future {
        ready(Ok(channel))
    }
}
