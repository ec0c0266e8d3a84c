//! A WebSocket as a pair of frame queues, the same on both ends.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};

/// How long, and for how much, a finished socket is still read, so that what was sent last is not lost to a reset.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 << 20;
/// A close frame holds no longer text.
const REASON_BYTES_MAX: usize = 123;

pub(crate) type Source<S> = SplitStream<WebSocketStream<S>>;

/// How a socket ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("the peer closed the connection{0}")]
    Closed(String),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the peer was silent for {0:?}")]
    Silent(Duration),
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
}

impl Ended {
    /// A name for metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Ended::Closed(_) => "closed",
            Ended::Broken(_) => "broken",
            Ended::Silent(_) => "silent",
            Ended::Protocol(_) => "protocol",
        }
    }
}

pub(crate) fn config(frame_bytes_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(frame_bytes_max.min(128 * 1024))
        .write_buffer_size(128 * 1024)
        .max_message_size(Some(frame_bytes_max))
        .max_frame_size(Some(frame_bytes_max))
}

/// The next frame. Anything that arrives in between counts as a sign of life.
pub(crate) async fn receive<S>(source: &mut Source<S>, silence_max: Duration) -> Result<Bytes, Ended>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let message = match timeout(silence_max, source.next()).await {
            Err(_) => return Err(Ended::Silent(silence_max)),
            Ok(None) => return Err(Ended::Closed(String::new())),
            Ok(Some(Err(error))) => return Err(broken(error)),
            Ok(Some(Ok(message))) => message,
        };
        match message {
            Message::Binary(frame) => return Ok(frame),
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(frame) => {
                let reason = frame.map(|frame| format!(": {}", frame.reason)).unwrap_or_default();
                return Err(Ended::Closed(reason));
            }
            Message::Text(_) | Message::Frame(_) => {
                return Err(Ended::Protocol("a frame of the change stream is binary".to_owned()));
            }
        }
    }
}

fn broken(error: tokio_tungstenite::tungstenite::Error) -> Ended {
    use tokio_tungstenite::tungstenite::Error;
    use tokio_tungstenite::tungstenite::error::ProtocolError;
    match error {
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Ended::Closed(String::new()),
        Error::Protocol(_) | Error::Capacity(_) | Error::Utf8(_) => Ended::Protocol(error.to_string()),
        error => Ended::Broken(error.to_string()),
    }
}

/// Sends frames; counts what it sent.
pub(crate) struct Sink<S> {
    inner: SplitSink<WebSocketStream<S>, Message>,
    /// Bytes of frames sent so far.
    pub(crate) sent: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sink<S> {
    /// Queues a frame; waits while the peer takes nothing.
    pub(crate) async fn feed(&mut self, frame: Bytes) -> Result<(), Ended> {
        self.sent += frame.len() as u64;
        self.inner.feed(Message::Binary(frame)).await.map_err(broken)
    }

    pub(crate) async fn flush(&mut self) -> Result<(), Ended> {
        self.inner.flush().await.map_err(broken)
    }

    /// Queues a frame and sends everything.
    pub(crate) async fn send(&mut self, frame: Bytes) -> Result<(), Ended> {
        self.feed(frame).await?;
        self.flush().await
    }
}

pub(crate) fn split<S>(stream: WebSocketStream<S>) -> (Sink<S>, Source<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (inner, source) = stream.split();
    (Sink { inner, sent: 0 }, source)
}

/// Says a last word and closes. Whatever goes wrong here, the socket is dropped next.
pub(crate) async fn finish<S>(mut sink: Sink<S>, source: Source<S>, last: Option<Bytes>, reason: &str)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let close = CloseFrame { code: CloseCode::Normal, reason: short(reason).into() };
    let closing = async {
        if let Some(frame) = last {
            sink.feed(frame).await.ok()?;
        }
        sink.inner.send(Message::Close(Some(close))).await.ok()?;
        let mut stream = source.reunite(sink.inner).ok()?.into_inner();
        stream.shutdown().await.ok()?;
        let mut buffer = [0_u8; 4096];
        let mut budget = LINGER_BYTES;
        loop {
            let n = stream.read(&mut buffer).await.ok()?;
            budget = budget.checked_sub(n).filter(|_| n > 0)?;
        }
    };
    let _: Result<Option<()>, _> = timeout(LINGER, Box::pin(closing)).await;
}

/// Cut to what a close frame holds.
pub(crate) fn short(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}
