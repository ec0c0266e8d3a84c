//! A relay in front of Postgres that understands its wire protocol and does to single messages what a test's script says: alters,
//! delays, repeats, swallows or cuts them, in either direction.
//!
//! ```text
//! server under test <--> Evil: message by message, each shown to the script <--> Postgres
//! ```
//!
//! Speaks no TLS: it refuses it as a server without TLS does.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Who sent a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Client,
    Server,
}

/// One message, as the script sees it.
#[derive(Clone, Debug)]
pub struct Frame {
    pub from: From,
    /// The name that the client gave at its start.
    pub application: Arc<str>,
    /// 0 for the start of a connection, which has no tag.
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Frame {
    /// Whether a client sends this statement, whatever follows it.
    #[must_use]
    pub fn is_query(&self, beginning: &str) -> bool {
        self.from == From::Client && self.tag == b'Q' && self.body.starts_with(beginning.as_bytes())
    }

    /// The message of logical replication in it, with its tag first.
    #[must_use]
    pub fn replicated(&self) -> Option<&[u8]> {
        let is_data = self.from == From::Server && self.tag == b'd' && self.body.first() == Some(&b'w');
        if is_data { self.body.get(25..) } else { None }
    }

    /// The same message with another message of logical replication in it.
    #[must_use]
    pub fn replicating(&self, message: &[u8]) -> Vec<u8> {
        let head = self.body.get(..25).unwrap_or_default();
        message_bytes(self.tag, &[head, message].concat())
    }

    /// Its bytes on the wire.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        message_bytes(self.tag, &self.body)
    }
}

/// What becomes of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    #[default]
    Pass,
    /// These bytes go on in its place: another message, several, or what is none.
    Instead(Vec<u8>),
    Swallow,
    /// It goes on after this time, and whatever follows it waits.
    Delay(Duration),
    /// So many of its bytes go on, then the connection ends.
    Cut(usize),
    /// The sender gets these bytes, and the receiver nothing.
    Answer(Vec<u8>),
}

/// A message as it is on the wire.
#[must_use]
pub fn message_bytes(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = if tag == 0 { Vec::new() } else { vec![tag] };
    bytes.extend(u32::try_from(body.len() + 4).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(body);
    bytes
}

/// An ErrorResponse, and ReadyForQuery after it.
#[must_use]
pub fn error_response(sqlstate: &str, message: &str) -> Vec<u8> {
    let body = format!("SERROR\0VERROR\0C{sqlstate}\0M{message}\0\0");
    let mut bytes = message_bytes(b'E', body.as_bytes());
    bytes.extend(message_bytes(b'Z', b"I"));
    bytes
}

type Script = Box<dyn FnMut(&Frame) -> Verdict + Send>;

/// A running relay.
pub struct Evil {
    port: u16,
    script: Arc<Mutex<Script>>,
    task: JoinHandle<()>,
}

impl Evil {
    /// Stands in front of the Postgres at `server` and does no harm yet.
    pub async fn start(server: u16) -> Result<Evil> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("bind the relay")?;
        let port = listener.local_addr()?.port();
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(|_| Verdict::Pass)));
        let task = tokio::spawn(accept(listener, server, Arc::clone(&script)));
        Ok(Evil { port, script, task })
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `url` of the server as it is reached through the relay.
    #[must_use]
    pub fn url(&self, url: &str, server: u16) -> String {
        url.replace(&format!(":{server}/"), &format!(":{}/", self.port))
    }

    /// From now on each message of every connection is shown to `script`, one at a time.
    pub fn script(&self, script: impl FnMut(&Frame) -> Verdict + Send + 'static) {
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(script);
    }

    /// Does no harm any more.
    pub fn relent(&self) {
        self.script(|_| Verdict::Pass);
    }
}

impl Drop for Evil {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, server: u16, script: Arc<Mutex<Script>>) {
    while let Ok((client, _)) = listener.accept().await {
        let script = Arc::clone(&script);
        tokio::spawn(async move {
            // Either side may hang up at any time; the test sees it at the other.
            let _ = relay(client, server, script).await;
        });
    }
}

async fn relay(client: TcpStream, server: u16, script: Arc<Mutex<Script>>) -> std::io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (to_client, to_server) = (tokio::sync::Mutex::new(to_client), tokio::sync::Mutex::new(to_server));
    let start = loop {
        let body = read_body(&mut from_client).await?;
        // Requests for TLS or GSS encryption: neither is offered.
        if body.len() == 4 && matches!(body[..], [4, 210, 22, 47 | 48]) {
            to_client.lock().await.write_all(b"N").await?;
        } else {
            break body;
        }
    };
    let application: Arc<str> = application_name(&start).into();
    let first = Frame { from: From::Client, application: Arc::clone(&application), tag: 0, body: start };
    if !pass(first, &script, &to_server, &to_client).await? {
        return Ok(());
    }
    let there = pump(From::Client, &application, from_client, &script, &to_server, &to_client);
    let back = pump(From::Server, &application, from_server, &script, &to_client, &to_server);
    // The connection ends for both when it ends for one.
    tokio::select! {
        ended = there => ended,
        ended = back => ended,
    }
}

async fn pump(
    from: From,
    application: &Arc<str>,
    mut source: OwnedReadHalf,
    script: &Mutex<Script>,
    to: &tokio::sync::Mutex<OwnedWriteHalf>,
    back: &tokio::sync::Mutex<OwnedWriteHalf>,
) -> std::io::Result<()> {
    loop {
        let tag = source.read_u8().await?;
        let body = read_body(&mut source).await?;
        if !pass(Frame { from, application: Arc::clone(application), tag, body }, script, to, back).await? {
            return Ok(());
        }
    }
}

/// `false` if the connection is to end.
async fn pass(
    frame: Frame,
    script: &Mutex<Script>,
    to: &tokio::sync::Mutex<OwnedWriteHalf>,
    back: &tokio::sync::Mutex<OwnedWriteHalf>,
) -> std::io::Result<bool> {
    let verdict = script.lock().unwrap_or_else(PoisonError::into_inner)(&frame);
    let bytes = frame.bytes();
    match verdict {
        Verdict::Pass => to.lock().await.write_all(&bytes).await?,
        Verdict::Instead(bytes) => to.lock().await.write_all(&bytes).await?,
        Verdict::Swallow => {}
        Verdict::Delay(time) => {
            tokio::time::sleep(time).await;
            to.lock().await.write_all(&bytes).await?;
        }
        Verdict::Cut(count) => {
            to.lock().await.write_all(&bytes[..count.min(bytes.len())]).await?;
            return Ok(false);
        }
        Verdict::Answer(answer) => back.lock().await.write_all(&answer).await?,
    }
    Ok(true)
}

async fn read_body(source: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let length = source.read_u32().await? as usize;
    let mut body = vec![0; length.saturating_sub(4)];
    source.read_exact(&mut body).await?;
    Ok(body)
}

/// From the parameters of a start message, which are zero-terminated names and values after four bytes.
fn application_name(start: &[u8]) -> String {
    let mut words = start.get(4..).unwrap_or_default().split(|b| *b == 0);
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        if name == b"application_name" {
            return String::from_utf8_lossy(value).into_owned();
        }
    }
    String::new()
}
