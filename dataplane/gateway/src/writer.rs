//! Writing to one socket.
//!
//! A message goes out as fragments of bounded size, whose bytes are taken from where they lie as the socket drains: memory per
//! socket does not grow with what a client is owed, and a peer that takes nothing for a while is noticed. Pongs and endings pass between messages, ahead of everything queued.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, Sink, SinkExt};
use protocol::{connect, down};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as WireFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error, Message};
use views::api::{Frame, OutboxReceiver, Piece};

use crate::control::{Control, Ending};
use crate::metrics::Metrics;

/// Payload of one WebSocket frame, at most.
pub(crate) const FRAGMENT_BYTES: usize = 16 * 1024;

/// Read from disk at once.
const READ_BYTES: usize = 128 * 1024;

/// To say goodbye; a peer that does not take it in this time is cut off.
const GOODBYE: Duration = Duration::from_secs(5);

pub(crate) struct Writer<S> {
    pub(crate) sink: S,
    pub(crate) stall_timeout: Duration,
    pub(crate) pong_after: Duration,
    pub(crate) metrics: Metrics,
}

impl<S: Sink<Message, Error = Error> + Unpin> Writer<S> {
    /// Writes until the socket ends and returns why it did, as a label for metrics.
    pub(crate) async fn run(&mut self, outbox: &mut OutboxReceiver, control: &Control) -> &'static str {
        match self.write(outbox, control).await {
            Ok(reason) | Err(reason) => reason,
        }
    }

    async fn write(&mut self, outbox: &mut OutboxReceiver, control: &Control) -> Result<&'static str, &'static str> {
        let mut last = Instant::now();
        // Received while waiting; written only after control was looked at once more.
        let mut waiting: Option<Frame> = None;
        loop {
            if let Some(ending) = control.take_ending() {
                let reason = ending.reason();
                self.finish(ending).await;
                return Ok(reason);
            }
            if outbox.overflowed() {
                return Err("slow_client");
            }
            if control.take_pong() {
                self.send(&[down::pong().into()]).await?;
                last = Instant::now();
                continue;
            }
            if let Some(error) = control.take_error() {
                self.send(&[error.into()]).await?;
                last = Instant::now();
                continue;
            }
            let next = waiting.take().map(Some).or_else(|| outbox.recv().now_or_never());
            match next {
                Some(Some(Frame::Close(status))) => {
                    self.close(status).await;
                    return Ok("closed_by_views");
                }
                Some(None) => {
                    self.close(None).await;
                    return Ok("closed_by_views");
                }
                Some(Some(frame)) => {
                    match &frame {
                        Frame::Parts(parts) => self.send(parts).await?,
                        Frame::Text(text) => self.send(&[text.clone().into()]).await?,
                        Frame::Close(_) => {}
                    }
                    outbox.sent(&frame);
                    last = Instant::now();
                }
                None => {
                    self.flush().await?;
                    tokio::select! {
                        biased;
                        () = control.writer_has_work() => {}
                        frame = outbox.recv() => match frame {
                            Some(frame) => waiting = Some(frame),
                            None => {
                                self.close(None).await;
                                return Ok("closed_by_views");
                            }
                        },
                        () = tokio::time::sleep_until(last + self.pong_after) => control.pong(),
                    }
                }
            }
        }
    }

    /// One text message whose payload is the concatenation of `parts`.
    async fn send(&mut self, parts: &[Piece]) -> Result<(), &'static str> {
        let total: usize = parts.iter().map(Piece::len).sum();
        let mut sent = 0;
        let mut opcode = Data::Text;
        for part in parts {
            let mut read = 0;
            while read < part.len() {
                let mut rest = read_part(part, read).await?;
                read += rest.len();
                while !rest.is_empty() {
                    let fragment = rest.split_to(rest.len().min(FRAGMENT_BYTES));
                    sent += fragment.len();
                    let frame = WireFrame::message(fragment, OpCode::Data(opcode), sent == total);
                    within(self.stall_timeout, self.sink.feed(Message::Frame(frame))).await?;
                    opcode = Data::Continue;
                }
            }
        }
        self.metrics.messages_sent.inc();
        self.metrics.bytes_sent.inc_by(total as u64);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), &'static str> {
        within(self.stall_timeout, self.sink.flush()).await
    }

    async fn finish(&mut self, ending: Ending) {
        match ending {
            Ending::Silent(_) => self.close(None).await,
            Ending::Close(code, reason) => self.close(Some((code, reason))).await,
            Ending::Error(body, status) => {
                let error = down::error(&body);
                if timeout(GOODBYE, self.send(&[error.into()])).await.is_ok_and(|sent| sent.is_ok()) {
                    self.close(status).await;
                }
            }
            Ending::Gone(_) => {}
        }
    }

    async fn close(&mut self, status: Option<(u16, String)>) {
        let frame = status
            .map(|(code, reason)| CloseFrame { code: code.into(), reason: connect::close_reason(&reason).into() });
        // A peer that is gone needs no goodbye.
        let _ = timeout(GOODBYE, self.sink.send(Message::Close(frame))).await;
    }
}

/// The next bytes of a piece. Those on disk are read on a thread that may wait for the disk.
async fn read_part(piece: &Piece, from: usize) -> Result<Bytes, &'static str> {
    let read = match piece {
        Piece::Memory(_) => piece.read_part(from, usize::MAX),
        Piece::File(_) => {
            let piece = piece.clone();
            let read = tokio::task::spawn_blocking(move || piece.read_part(from, READ_BYTES)).await;
            read.unwrap_or_else(|error| Err(std::io::Error::other(error)))
        }
    };
    read.map_err(|error| {
        tracing::error!(%error, "cannot read what waits for a client");
        "read_failed"
    })
}

async fn within(limit: Duration, step: impl Future<Output = Result<(), Error>>) -> Result<(), &'static str> {
    match timeout(limit, step).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("io_error"),
        Err(_) => Err("send_stalled"),
    }
}
