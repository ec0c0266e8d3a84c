//! A node without a usable replica: the owner keeps the log for it while it restores, and sends a snapshot if there is no backup.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use rows::Version;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::client::broken;
use crate::dial::{Dialled, Ledger, Options, dial};
use crate::error::{Error, Result};
use crate::socket::{Source, receive};
use crate::tls::Connection;
use crate::wire::{FromOwner, SnapshotInfo, Welcome};

/// Pieces of a snapshot that may wait, in number; their bytes are bounded by the window.
const QUEUE_PIECES: usize = 256;

/// While it lives, the owner keeps what follows the backup or the snapshot. To be dropped once the node streams.
#[derive(Debug)]
pub struct Reservation {
    shared: Arc<Shared>,
    lost: watch::Receiver<Option<Error>>,
    task: JoinHandle<()>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Shared {
    ledger: Arc<Ledger>,
    /// Who waits for the snapshot to begin.
    asked: Mutex<Option<oneshot::Sender<(SnapshotInfo, SnapshotReader)>>>,
}

/// A snapshot's bytes, as a stream or to be read. It ends without an error only if the owner said that it is complete.
#[derive(Debug)]
pub struct SnapshotReader {
    pieces: mpsc::Receiver<Piece>,
    ledger: Arc<Ledger>,
    rest: Bytes,
    is_over: bool,
}

#[derive(Debug)]
enum Piece {
    Data { bytes: Bytes, frame_bytes: u64 },
    End,
    Failed(Error),
}

/// Reserves and fetches in one go. The reservation is to be kept until the node streams.
pub async fn fetch_snapshot(options: &Options) -> Result<(Welcome, SnapshotInfo, SnapshotReader, Reservation)> {
    let (welcome, mut reservation) = Reservation::open(options).await?;
    let (info, reader) = reservation.fetch().await?;
    Ok((welcome, info, reader, reservation))
}

impl Reservation {
    /// Asks for a reservation. The welcome says whether there is a backup or a snapshot.
    pub async fn open(options: &Options) -> Result<(Welcome, Reservation)> {
        let Dialled { welcome, mut sink, source, .. } = dial(options, "snapshot", None, Version::ZERO).await?;
        let ledger = Ledger::new(Version::ZERO, options.window_bytes);
        let shared = Arc::new(Shared { ledger: Arc::clone(&ledger), asked: Mutex::default() });
        let (tell, lost) = watch::channel(None);
        let mut pump = Pump { source, shared: Arc::clone(&shared), pieces: None, received: 0 };
        let (silence_max, heartbeat) = (options.silence_max, options.heartbeat);
        let task = tokio::spawn(async move {
            let error = tokio::select! {
                error = pump.run(silence_max) => error,
                ended = ledger.tell(&mut sink, heartbeat) => broken(&ended),
            };
            pump.fail(&error).await;
            tell.send_replace(Some(error));
        });
        Ok((welcome, Reservation { shared, lost, task }))
    }

    /// Asks the owner for a snapshot, once.
    pub async fn fetch(&mut self) -> Result<(SnapshotInfo, SnapshotReader)> {
        let (asked, answer) = oneshot::channel();
        *lock(&self.shared.asked) = Some(asked);
        self.shared.ledger.fetch();
        tokio::select! {
            // What was begun before the end is handed out; its reader learns of the end.
            biased;
            Ok(begun) = answer => Ok(begun),
            error = self.lost() => Err(error),
        }
    }

    /// Completes when the owner does not keep the log for this node any more.
    pub async fn lost(&self) -> Error {
        let mut lost = self.lost.clone();
        let error = lost.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        error.unwrap_or_else(|| Error::transient("the reservation has ended"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Pump {
    source: Source<Connection>,
    shared: Arc<Shared>,
    pieces: Option<mpsc::Sender<Piece>>,
    received: u64,
}

impl Pump {
    /// Returns the error that ended the reservation.
    async fn run(&mut self, silence_max: Duration) -> Error {
        loop {
            let frame = match receive(&mut self.source, silence_max).await {
                Ok(frame) => frame,
                Err(ended) => return broken(&ended),
            };
            let frame_bytes = frame.len() as u64;
            let taken = match FromOwner::decode(frame) {
                Ok(FromOwner::SnapshotData(bytes)) => self.data(bytes, frame_bytes).await,
                Ok(other) => {
                    self.shared.ledger.consume(frame_bytes);
                    self.other(other).await
                }
                Err(error) => Err(Error::transient(error.to_string())),
            };
            if let Err(error) = taken {
                return error;
            }
        }
    }

    async fn other(&mut self, frame: FromOwner) -> Result<()> {
        match frame {
            FromOwner::Head { .. } => Ok(()),
            FromOwner::SnapshotStart(info) => {
                let asked = lock(&self.shared.asked).take();
                let asked =
                    asked.ok_or_else(|| Error::transient("the owner sent a snapshot that was not asked for"))?;
                let (sender, pieces) = mpsc::channel(QUEUE_PIECES);
                let ledger = Arc::clone(&self.shared.ledger);
                let reader = SnapshotReader { pieces, ledger, rest: Bytes::new(), is_over: false };
                self.pieces = Some(sender);
                asked.send((info, reader)).map_err(|_| abandoned())
            }
            FromOwner::SnapshotEnd { bytes } => {
                let sender = self.pieces.take().ok_or_else(|| Error::transient("the owner ended no snapshot"))?;
                if bytes != self.received {
                    let error = Error::transient(format!(
                        "the snapshot is incomplete: {} of {bytes} bytes were received",
                        self.received
                    ));
                    // The reader learns it with the end of the reservation if it is gone already.
                    let _ = sender.send(Piece::Failed(error.clone())).await;
                    return Err(error);
                }
                sender.send(Piece::End).await.map_err(|_| abandoned())
            }
            FromOwner::Refused(refusal) => Err(Error::refused(&refusal)),
            _ => Err(Error::transient("the owner sent a frame that has no place in a reservation")),
        }
    }

    async fn data(&mut self, bytes: Bytes, frame_bytes: u64) -> Result<()> {
        let sender = self.pieces.as_ref().ok_or_else(|| Error::transient("the owner sent data of no snapshot"))?;
        self.received += bytes.len() as u64;
        sender.send(Piece::Data { bytes, frame_bytes }).await.map_err(|_| abandoned())
    }

    async fn fail(&mut self, error: &Error) {
        if let Some(sender) = self.pieces.take() {
            // A reader that is gone needs no answer.
            let _ = sender.send(Piece::Failed(error.clone())).await;
        }
    }
}

fn abandoned() -> Error {
    Error::transient("the receiver of the snapshot is gone")
}

impl Stream for SnapshotReader {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.rest))));
        }
        if self.is_over {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.pieces.poll_recv(cx)) {
            Some(Piece::Data { bytes, frame_bytes }) => {
                self.ledger.consume(frame_bytes);
                Some(Ok(bytes))
            }
            Some(Piece::End) => {
                self.is_over = true;
                None
            }
            Some(Piece::Failed(error)) => {
                self.is_over = true;
                Some(Err(io::Error::new(io::ErrorKind::ConnectionAborted, error)))
            }
            None => {
                self.is_over = true;
                Some(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the reservation was dropped before the snapshot's end",
                )))
            }
        })
    }
}

impl AsyncRead for SnapshotReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.as_mut().poll_next(cx)) {
                Some(bytes) => self.rest = bytes?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = self.rest.len().min(buf.remaining());
        let bytes = self.rest.split_to(taken);
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}
