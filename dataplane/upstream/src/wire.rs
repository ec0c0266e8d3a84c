//! A Postgres connection of our own, for what SQL drivers do not do: replication mode, and COPY without a copy per row.
//!
//! Everything received lies in one reusable buffer; messages are lent out of it. Lengths are checked before anything is read,
//! and a message above [`MESSAGE_MAX`] ends the connection.

use std::io;
use std::pin::Pin;

use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::config::ChannelBinding as Wish;

use crate::address::Address;
use crate::dial::{Channel, Endpoint, Search, dial, failed};
use crate::error::ServerError;
use crate::{Error, Result, session};

/// Postgres itself limits a message's contents to 1 GiB; a length beyond that is garbage.
const MESSAGE_MAX: usize = (1 << 30) + 4;
/// The memory of a larger message is given back when it is read.
const KEPT_BYTES: usize = 4 << 20;
/// A read fills at least this much, so that small messages cost few system calls.
const READ_BYTES: usize = 128 << 10;

pub(crate) struct Connection {
    socket: Channel,
    received: BytesMut,
    /// Bytes of `received` that the last lent message occupies; given back by the next read.
    lent: usize,
    out: BytesMut,
    address: Address,
    /// The server's process, as it is named in `pg_stat_activity`.
    pid: i32,
}

/// One message: its tag and body.
pub(crate) struct Frame<'a> {
    pub tag: u8,
    pub body: &'a [u8],
}

impl Connection {
    /// Connects to the primary, authenticates and waits until the server is ready. Whatever a role or database sets is set to what
    /// our statements depend on.
    pub(crate) async fn open(address: &Address, application_name: &str, replication: bool) -> Result<Connection> {
        let mut search = Search::begin(address).await?;
        while let Some(endpoint) = search.next() {
            let (is_choosy, standby) = (search.is_choosy(), search.standby());
            let opening = async {
                let mut connection = Connection::start(address, &endpoint, application_name, replication).await?;
                if is_choosy {
                    let rows = connection.run("SELECT pg_is_in_recovery()", "ask whether this is a standby").await?;
                    if rows.first().and_then(|row| row.first()) != Some(&Some("f".to_owned())) {
                        return Err(standby);
                    }
                }
                connection.run(session::prepare(), "set a connection to Postgres up").await?;
                Ok(connection)
            };
            if let Some(connection) = search.attempt(&endpoint, opening).await {
                return Ok(connection);
            }
        }
        Err(search.failure())
    }

    async fn start(
        address: &Address,
        endpoint: &Endpoint,
        application_name: &str,
        replication: bool,
    ) -> Result<Connection> {
        let mut connection = Connection {
            socket: dial(address, endpoint, None).await?,
            received: BytesMut::with_capacity(READ_BYTES),
            lent: 0,
            out: BytesMut::with_capacity(256),
            address: address.clone(),
            pid: 0,
        };
        let config = address.config();
        let user = config.get_user().unwrap_or_default();
        let mut parameters = vec![
            ("user", user),
            ("database", config.get_dbname().unwrap_or(user)),
            ("application_name", application_name),
            ("client_encoding", "UTF8"),
        ];
        if let Some(options) = config.get_options() {
            parameters.push(("options", options));
        }
        if replication {
            parameters.push(("replication", "database"));
        }
        frontend::startup_message(parameters, &mut connection.out).map_err(|e| failed(address, e))?;
        connection.flush().await?;
        connection.authenticate(user, config.get_password()).await?;
        loop {
            let frame = connection.frame().await?;
            match (frame.tag, frame.body) {
                (b'Z', _) => return Ok(connection),
                (b'E', body) => return Err(refused(address, body)),
                (b'K', &[a, b, c, d, ..]) => connection.pid = i32::from_be_bytes([a, b, c, d]),
                _ => {}
            }
        }
    }

    /// The server's process.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    async fn authenticate(&mut self, user: &str, password: Option<&[u8]>) -> Result<()> {
        let garbled = |e: io::Error| Error::transient_from(format!("cannot authenticate with Postgres: {e}"), e);
        let required = || Error::configuration("Postgres asks for a password, and the connection string has none");
        let mut scram: Option<ScramSha256> = None;
        loop {
            let message = {
                let address = self.address.clone();
                let frame = self.frame().await?;
                if frame.tag == b'E' {
                    return Err(refused(&address, frame.body));
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
                    let (mechanism, binding) =
                        mechanism(&body, self.socket.binding(), self.address.config().get_channel_binding())?;
                    let exchange = ScramSha256::new(password.ok_or_else(required)?, binding);
                    frontend::sasl_initial_response(mechanism, exchange.message(), &mut self.out).map_err(garbled)?;
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

    /// The next message, which is due. A server that is silent is looked at now and then. Dropping the future loses nothing.
    pub(crate) async fn frame(&mut self) -> Result<Frame<'_>> {
        loop {
            if let Some(length) = self.buffered()? {
                return Ok(self.lend(length));
            }
            if let Ok(filled) = tokio::time::timeout(self.address.patience(), self.fill()).await {
                filled?;
                continue;
            }
            if !is_served(self.address.clone(), self.pid).await {
                return Err(Error::transient(format!(
                    "the connection to Postgres at {} is broken: nothing came for {:?}",
                    self.address,
                    self.address.patience()
                )));
            }
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
            return Err(Error::Garbled { message: format!("a message of {length} bytes") });
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

/// Whether the server still works for the connection of its process `pid`, by what it says on another one. That it waits to be read
/// from, while nothing arrives here, means that something between swallows it. Boxed, for it waits for messages itself.
fn is_served(address: Address, pid: i32) -> Pin<Box<dyn Future<Output = bool> + Send>> {
    Box::pin(async move {
        let sql = format!("SELECT wait_event IS DISTINCT FROM 'ClientWrite' FROM pg_stat_activity WHERE pid = {pid}");
        let asking = async {
            let mut other = Connection::open(&address, "zero-change-source", false).await?;
            other.run(&sql, "look at a silent connection").await
        };
        // Bounded by what an attempt to connect and one answer may take.
        match tokio::time::timeout(address.connect_timeout() * 2, asking).await {
            Ok(Ok(rows)) => rows.first().and_then(|row| row.first()) == Some(&Some("t".to_owned())),
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot look at a silent connection");
                false
            }
            Err(_) => false,
        }
    })
}

fn refused(address: &Address, body: &[u8]) -> Error {
    Error::response(&format!("connect to Postgres at {address}"), &parse_error(body))
}

/// How to prove to know the password: so that it counts for this very server, where both sides can.
fn mechanism(
    body: &AuthenticationSaslBody,
    binding: Option<&[u8]>,
    wish: Wish,
) -> Result<(&'static str, ChannelBinding)> {
    let (mut is_plain_offered, mut is_bound_offered) = (false, false);
    let mut mechanisms = body.mechanisms();
    while let Ok(Some(mechanism)) = mechanisms.next() {
        is_plain_offered |= mechanism == SCRAM_SHA_256;
        is_bound_offered |= mechanism == SCRAM_SHA_256_PLUS;
    }
    match binding.filter(|_| wish != Wish::Disable) {
        Some(binding) if is_bound_offered => {
            Ok((SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(binding.to_vec())))
        }
        _ if wish == Wish::Require => Err(Error::configuration(
            "the connection string has channel_binding=require, and there is none between this server and Postgres",
        )),
        Some(_) if is_plain_offered => Ok((SCRAM_SHA_256, ChannelBinding::unrequested())),
        None if is_plain_offered => Ok((SCRAM_SHA_256, ChannelBinding::unsupported())),
        _ => Err(Error::configuration("Postgres asks for a kind of SASL authentication that is not known here")),
    }
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
    let garbled = || Error::Garbled { message: "a row that ends before its end".to_owned() };
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
