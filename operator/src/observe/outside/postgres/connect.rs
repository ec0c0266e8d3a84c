//! One SQL connection.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsStream};
use tokio_postgres::{Client, Connection, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::certificates::Certificates;
use super::super::inputs::beside;
use super::address::{Address, Tls};
use super::backend::{Named, Watched, WatchedTls};
use crate::observe::Fault;

/// Shows in `pg_stat_activity` whose connection it is.
const APPLICATION: &str = "zero-operator";
/// Longest text of a server's that is passed on.
const TEXT_MAX: usize = 300;

/// A connection; closed when dropped.
pub(in super::super) struct Session {
    pub client: Client,
    named: Named,
    driver: Driver,
}

/// The task that moves the connection's bytes; ends with the session, also when the server hangs.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    /// Another process answers than the one that was promised.
    pub fn is_pooled(&self, process: i32) -> bool {
        self.named.process().is_none_or(|named| named != process)
    }

    /// Closes it and waits until the server was told.
    pub async fn close(self) {
        let Session { client, mut driver, .. } = self;
        drop(client);
        // A server that does not take the farewell is cut off by the time limit around this.
        let _ = (&mut driver.0).await;
    }
}

/// Tries the places of an address in their order, as pods of the namespace find them.
pub(in super::super) async fn connect(
    address: &Address,
    namespace: &str,
    certificates: &Certificates,
) -> Result<Session, Fault> {
    let mut last = Fault::Unreachable("the connection URL names no host".to_owned());
    for (host, port) in &address.places {
        match connect_to(address, host, *port, namespace, certificates).await {
            Ok(session) => return Ok(session),
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

async fn connect_to(
    address: &Address,
    host: &str,
    port: u16,
    namespace: &str,
    certificates: &Certificates,
) -> Result<Session, Fault> {
    let place = || format!("{host}:{port}");
    let unreachable = |error: &io::Error| Fault::Unreachable(format!("{}: {}", place(), short(&error.to_string())));
    let stream = reach(host, port, namespace).await.map_err(|error| unreachable(&error))?;
    stream.set_nodelay(true).map_err(|error| unreachable(&error))?;
    let named = Named::default();
    let stream = Watched::new(stream, &named);
    let mut config = address.config.clone();
    config.application_name(APPLICATION);
    let refused = |error: tokio_postgres::Error| refusal(&place(), &error);
    let (client, driver) = match address.tls {
        Tls::Off => {
            let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(refused)?;
            (client, drive(connection))
        }
        Tls::Prefer | Tls::Require { .. } => {
            let verify = address.tls == Tls::Require { verify: true };
            let tls = certificates.client(verify).map_err(Fault::Unreachable)?;
            let made = MakeRustlsConnect::new(tls);
            let tls = WatchedTls { tls: tls_to(made, host), named: named.clone() };
            let (client, connection) = config.connect_raw(stream, tls).await.map_err(refused)?;
            (client, drive(connection))
        }
    };
    Ok(Session { client, named, driver })
}

async fn reach(host: &str, port: u16, namespace: &str) -> io::Result<TcpStream> {
    if let Some(name) = beside(host, namespace)
        && let Ok(found) = tokio::net::lookup_host((name, port)).await
    {
        let found: Vec<SocketAddr> = found.collect();
        return TcpStream::connect(found.as_slice()).await;
    }
    TcpStream::connect((host, port)).await
}

type Stream = Watched<TcpStream>;

type RustlsConnect = <MakeRustlsConnect as MakeTlsConnect<Stream>>::TlsConnect;

fn tls_to(mut made: MakeRustlsConnect, host: &str) -> RustlsConnect {
    let Ok(tls) = MakeTlsConnect::<Stream>::make_tls_connect(&mut made, host);
    tls
}

fn drive<T>(connection: Connection<Stream, T>) -> Driver
where
    T: TlsStream + Unpin + Send + 'static,
{
    Driver(tokio::spawn(async move {
        // Calls of the client say what is wrong.
        let _ = connection.await;
    }))
}

/// What a failed connection means.
fn refusal(place: &str, error: &tokio_postgres::Error) -> Fault {
    let text = format!("{place}: {}", described(error));
    match error.code() {
        Some(code) if *code == SqlState::INVALID_CATALOG_NAME => Fault::NoDatabase(text),
        Some(code) if code.code().starts_with("28") => Fault::LoginRefused(text),
        _ => Fault::Unreachable(text),
    }
}

/// What the server said, or what kept it from saying something. Never holds a statement or a value.
pub(in super::super) fn described(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return short(&format!("{} (SQLSTATE {})", error.message(), error.code().code()));
    }
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    short(&text)
}

/// One line of bounded length.
fn short(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_MAX).collect()
}
