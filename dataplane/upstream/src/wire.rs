//! A Postgres connection of our own, for what SQL drivers do not do: replication mode, and COPY without a copy per row.
//!
//! Everything received lies in one reusable buffer; messages are lent out of it. Lengths are checked before anything is read,
//! and a message above [`MESSAGE_MAX`] ends the connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;

use crate::connect::{Address, Tls};
use crate::error::ServerError;
use crate::{Error, Result};

/// Postgres itself limits a message's contents to 1 GiB; a length beyond that is garbage.
const MESSAGE_MAX: usize = (1 << 30) + 4;
/// The memory of a larger message is given back when it is read.
const KEPT_BYTES: usize = 4 << 20;
/// A read fills at least this much, so that small messages cost few system calls.
const READ_BYTES: usize = 128 << 10;

pub(crate) struct Connection {
    socket: Socket,
    received: BytesMut,
    /// Bytes of `received` that the last lent message occupies; given back by the next read.
    lent: usize,
    out: BytesMut,
    address: String,
}

/// One message: its tag and body.
pub(crate) struct Frame<'a> {
    pub tag: u8,
    pub body: &'a [u8],
}

impl Connection {
    /// Connects, authenticates and waits until the server is ready. Values are printed in one fixed style on such connections.
    pub(crate) async fn open(address: &Address, application_name: &str, replication: bool) -> Result<Connection> {
        let timeout = address.config().get_connect_timeout().copied().unwrap_or(std::time::Duration::from_secs(10));
        match tokio::time::timeout(timeout, Connection::start(address, application_name, replication)).await {
            Ok(result) => result,
            Err(_) => {
                Err(Error::transient(format!("cannot connect to Postgres at {address}: no answer within {timeout:?}")))
            }
        }
    }

    async fn start(address: &Address, application_name: &str, replication: bool) -> Result<Connection> {
        let fail = |e: io::Error| Error::transient_from(format!("cannot connect to Postgres at {address}: {e}"), e);
        let socket = dial(address).await.map_err(fail)?;
        let mut connection = Connection {
            socket,
            received: BytesMut::with_capacity(READ_BYTES),
            lent: 0,
            out: BytesMut::with_capacity(256),
            address: address.to_string(),
        };
        let config = address.config();
        let user = config.get_user().unwrap_or_default();
        let mut parameters = vec![
            ("user", user),
            ("database", config.get_dbname().unwrap_or(user)),
            ("application_name", application_name),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO"),
            ("IntervalStyle", "postgres"),
            ("TimeZone", "UTC"),
            ("extra_float_digits", "3"),
            ("bytea_output", "hex"),
            ("lc_monetary", "C"),
        ];
        if let Some(options) = config.get_options() {
            parameters.push(("options", options));
        }
        if replication {
            parameters.push(("replication", "database"));
        }
        frontend::startup_message(parameters, &mut connection.out).map_err(fail)?;
        connection.flush().await?;
        connection.authenticate(user, config.get_password()).await?;
        loop {
            let frame = connection.frame().await?;
            match frame.tag {
                b'Z' => return Ok(connection),
                b'E' => return Err(refused(address, frame.body)),
                _ => {}
            }
        }
    }

    async fn authenticate(&mut self, user: &str, password: Option<&[u8]>) -> Result<()> {
        let garbled = |e: io::Error| Error::transient_from(format!("cannot authenticate with Postgres: {e}"), e);
        let required = || Error::configuration("Postgres asks for a password, and the connection string has none");
        let mut scram: Option<ScramSha256> = None;
        loop {
            let address = self.address.clone();
            let message = {
                let frame = self.frame().await?;
                if frame.tag == b'E' {
                    let error = parse_error(frame.body);
                    return Err(Error::response(&format!("connect to Postgres at {address}"), &error));
                }
                if frame.tag != b'R' {
                    return Err(Error::transient("Postgres did not follow the protocol while authenticating"));
                }
                parse_message(&frame).map_err(garbled)?
            };
            match message {
                Message::AuthenticationOk => return Ok(()),
                Message::AuthenticationCleartextPassword => {
                    frontend::password_message(password.ok_or_else(required)?, &mut self.out).map_err(garbled)?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(user.as_bytes(), password.ok_or_else(required)?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut self.out).map_err(garbled)?;
                }
                Message::AuthenticationSasl(body) => {
                    if !offers_scram(&body) {
                        return Err(Error::configuration(
                            "Postgres asks for a kind of SASL authentication that is not known here",
                        ));
                    }
                    let exchange = ScramSha256::new(password.ok_or_else(required)?, ChannelBinding::unsupported());
                    frontend::sasl_initial_response(SCRAM_SHA_256, exchange.message(), &mut self.out)
                        .map_err(garbled)?;
                    scram = Some(exchange);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let exchange =
                        scram.as_mut().ok_or_else(|| Error::transient("Postgres continued what was not begun"))?;
                    exchange.update(body.data()).map_err(garbled)?;
                    frontend::sasl_response(exchange.message(), &mut self.out).map_err(garbled)?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let exchange =
                        scram.as_mut().ok_or_else(|| Error::transient("Postgres ended what was not begun"))?;
                    exchange.finish(body.data()).map_err(garbled)?;
                }
                _ => {
                    return Err(Error::configuration(
                        "Postgres asks for a kind of authentication that is not supported here",
                    ));
                }
            }
            self.flush().await?;
        }
    }

    /// The next message. Dropping the future loses nothing.
    pub(crate) async fn frame(&mut self) -> Result<Frame<'_>> {
        loop {
            if let Some(length) = self.buffered()? {
                return Ok(self.lend(length));
            }
            self.fill().await?;
        }
    }

    /// The next message if it has arrived already.
    pub(crate) fn try_frame(&mut self) -> Result<Option<Frame<'_>>> {
        Ok(self.buffered()?.map(|length| self.lend(length)))
    }

    /// Reads what the socket has. Dropping the future loses nothing.
    pub(crate) async fn fill(&mut self) -> Result<()> {
        self.give_back();
        if self.received.capacity() - self.received.len() < READ_BYTES / 4 {
            self.received.reserve(READ_BYTES);
        }
        match self.socket.read_buf(&mut self.received).await {
            Ok(0) => Err(Error::transient(format!("Postgres at {} closed the connection", self.address))),
            Ok(_) => Ok(()),
            Err(e) => Err(self.lost(e)),
        }
    }

    /// Length of a whole buffered message, tag included.
    fn buffered(&mut self) -> Result<Option<usize>> {
        self.give_back();
        let Some(header) = self.received.get(..5) else { return Ok(None) };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if !(4..=MESSAGE_MAX).contains(&length) {
            return Err(Error::transient(format!("Postgres sent a message of {length} bytes, which cannot be right")));
        }
        if self.received.len() > length {
            return Ok(Some(length + 1));
        }
        self.received.reserve(length + 1 - self.received.len());
        Ok(None)
    }

    fn lend(&mut self, length: usize) -> Frame<'_> {
        self.lent = length;
        Frame { tag: self.received[0], body: &self.received[5..length] }
    }

    fn give_back(&mut self) {
        self.received.advance(self.lent);
        if self.lent > KEPT_BYTES {
            let mut rest = BytesMut::with_capacity(READ_BYTES.max(self.received.len()));
            rest.extend_from_slice(&self.received);
            self.received = rest;
        }
        self.lent = 0;
    }

    /// Queues a message body in CopyData; [`Connection::flush`] sends it.
    pub(crate) fn queue_copy_data(&mut self, body: &[u8]) {
        self.out.extend_from_slice(b"d");
        let length = u32::try_from(body.len() + 4).expect("what we send is short");
        self.out.extend_from_slice(&length.to_be_bytes());
        self.out.extend_from_slice(body);
    }

    /// Sends what is queued. Dropping the future keeps the rest queued.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        while self.out.has_remaining() {
            match self.socket.write_buf(&mut self.out).await {
                Ok(0) => return Err(Error::transient(format!("Postgres at {} closed the connection", self.address))),
                Ok(_) => {}
                Err(e) => return Err(self.lost(e)),
            }
        }
        self.socket.flush().await.map_err(|e| self.lost(e))
    }

    fn lost(&self, error: io::Error) -> Error {
        Error::transient_from(format!("the connection to Postgres at {} was lost: {error}", self.address), error)
    }

    /// Sends one simple query without waiting for the answer.
    pub(crate) async fn send_query(&mut self, sql: &str) -> Result<()> {
        frontend::query(sql, &mut self.out).map_err(|e| Error::transient_from("cannot write a query", e))?;
        self.flush().await
    }

    /// Runs one simple query; the error response is returned as such, because callers react to its code.
    pub(crate) async fn query(
        &mut self,
        sql: &str,
    ) -> Result<std::result::Result<Vec<Vec<Option<String>>>, ServerError>> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            let frame = self.frame().await?;
            match frame.tag {
                b'D' => rows.push(parse_data_row(frame.body)?),
                b'E' => error = Some(parse_error(frame.body)),
                b'Z' => return Ok(error.map_or(Ok(rows), Err)),
                _ => {}
            }
        }
    }

    /// The same where every error has one meaning; `doing` completes "cannot ...".
    pub(crate) async fn run(&mut self, sql: &str, doing: &str) -> Result<Vec<Vec<Option<String>>>> {
        self.query(sql).await?.map_err(|e| Error::response(doing, &e))
    }
}

fn refused(address: &Address, body: &[u8]) -> Error {
    Error::response(&format!("connect to Postgres at {address}"), &parse_error(body))
}

fn offers_scram(body: &AuthenticationSaslBody) -> bool {
    let mut mechanisms = body.mechanisms();
    while let Ok(Some(mechanism)) = mechanisms.next() {
        if mechanism == SCRAM_SHA_256 {
            return true;
        }
    }
    false
}

/// Rebuilds the message for the crate's parser; only used while authenticating.
fn parse_message(frame: &Frame<'_>) -> io::Result<Message> {
    let mut bytes = BytesMut::with_capacity(frame.body.len() + 5);
    bytes.extend_from_slice(&[frame.tag]);
    bytes.extend_from_slice(&u32::try_from(frame.body.len() + 4).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(frame.body);
    Message::parse(&mut bytes)?.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "incomplete message"))
}

/// Fields of an ErrorResponse: a type byte and a zero-terminated string each.
pub(crate) fn parse_error(body: &[u8]) -> ServerError {
    let mut error =
        ServerError { code: "XX000".to_owned(), message: "unknown error".to_owned(), ..ServerError::default() };
    for field in body.split(|&b| b == 0) {
        let Some((&kind, text)) = field.split_first() else { continue };
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            b'C' => error.code = text,
            b'M' => error.message = text,
            b'D' => error.detail = Some(text),
            b'H' => error.hint = Some(text),
            _ => {}
        }
    }
    error
}

fn parse_data_row(body: &[u8]) -> Result<Vec<Option<String>>> {
    let garbled = || Error::transient("Postgres sent a row that ends before its end");
    let mut rest = body;
    let mut take = |n: usize| -> Result<&[u8]> {
        let (head, tail) = rest.split_at_checked(n).ok_or_else(garbled)?;
        rest = tail;
        Ok(head)
    };
    let count = take(2)?;
    let count = usize::from(u16::from_be_bytes([count[0], count[1]]));
    let mut row = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        let length = take(4)?;
        let length = i32::from_be_bytes([length[0], length[1], length[2], length[3]]);
        row.push(match usize::try_from(length) {
            Err(_) => None,
            Ok(length) => Some(String::from_utf8_lossy(take(length)?).into_owned()),
        });
    }
    Ok(row)
}

/// Tries each host of the connection string in turn.
async fn dial(address: &Address) -> io::Result<Socket> {
    let config = address.config();
    let ports = config.get_ports();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the connection string names no host");
    for (i, host) in config.get_hosts().iter().enumerate() {
        let port = ports.get(i).or_else(|| ports.first()).copied().unwrap_or(5432);
        let attempt = match host {
            Host::Unix(path) => UnixStream::connect(path.join(format!(".s.PGSQL.{port}"))).await.map(Socket::Unix),
            Host::Tcp(name) => dial_tcp(address, name, port).await,
        };
        match attempt {
            Ok(socket) => return Ok(socket),
            Err(e) => last = e,
        }
    }
    Err(last)
}

async fn dial_tcp(address: &Address, name: &str, port: u16) -> io::Result<Socket> {
    let mut tcp = TcpStream::connect((name, port)).await?;
    tcp.set_nodelay(true)?;
    let Some(tls) = address.tls_config() else { return Ok(Socket::Tcp(tcp)) };
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    tcp.write_all(&request).await?;
    match (tcp.read_u8().await?, address.tls()) {
        (b'S', _) => {
            let server = rustls::pki_types::ServerName::try_from(name.to_owned())
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
            let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::clone(tls));
            Ok(Socket::Tls(Box::new(connector.connect(server, tcp).await?)))
        }
        (_, Tls::Prefer) => Ok(Socket::Tcp(tcp)),
        _ => Err(io::Error::other("the server does not offer TLS, and the connection string insists on it")),
    }
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Socket::Unix(s) => Pin::new(s).poll_read(cx, buf),
            Socket::Tls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Socket::Unix(s) => Pin::new(s).poll_write(cx, buf),
            Socket::Tls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_flush(cx),
            Socket::Unix(s) => Pin::new(s).poll_flush(cx),
            Socket::Tls(s) => Pin::new(s.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Socket::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Socket::Tls(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_fields_are_read_and_garbage_is_survived() {
        let error = parse_error(b"SERROR\0C55006\0Mslot is active\0Hwait\0\0");
        assert_eq!((error.code.as_str(), error.message.as_str()), ("55006", "slot is active"));
        assert_eq!(error.hint.as_deref(), Some("wait"));
        assert_eq!(parse_error(b"").code, "XX000");
        assert_eq!(parse_error(&[0, 255, 255, 0, b'M']).message, "");
    }

    #[test]
    fn rows_are_checked() {
        let row = [0, 2, 0, 0, 0, 1, b'x', 255, 255, 255, 255];
        assert_eq!(parse_data_row(&row).unwrap(), [Some("x".to_owned()), None]);
        for end in 0..row.len() {
            assert!(parse_data_row(&row[..end]).is_err(), "{end}");
        }
    }
}
