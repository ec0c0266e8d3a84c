//! A replica as a stream of bytes, from one node to another: one LTX snapshot, without a store.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use replica::Identity;
use rows::Version;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;

use crate::apply::Applier;
use crate::error::Error;
use crate::ltx::Decoder;
use crate::name::Txid;
use crate::restore::{Restored, Temporary, check_place};
use crate::stream::{ChunkReader, Part, PartWriter};
use crate::view::View;

const PART_SIZE: usize = 1 << 20;
/// Parts read ahead of whoever takes them.
const PARTS_QUEUED: usize = 4;

/// A snapshot on its way. The writer of the replica goes on meanwhile; its WAL grows until this is read or dropped.
#[derive(Debug)]
pub struct SnapshotStream {
    /// The version that the bytes hold.
    pub version: Version,
    /// Size of the database; the stream is shorter, as pages are compressed.
    pub database_bytes: u64,
    parts: mpsc::Receiver<Part>,
    making: Option<tokio::task::JoinHandle<Result<(), Error>>>,
    is_ended: bool,
}

/// Holds the present version of the replica at `path` and streams it.
pub async fn snapshot_bytes(path: &Path) -> Result<SnapshotStream, Error> {
    let path = path.to_path_buf();
    let opened = tokio::task::spawn_blocking(move || View::open(&path)).await;
    let view = opened.unwrap_or(Err(Error::Cancelled))?;
    let (version, database_bytes) = (view.version, view.byte_count());
    let (out, parts) = PartWriter::new(PART_SIZE, PARTS_QUEUED);
    let making = tokio::task::spawn_blocking(move || view.dump(Txid::FIRST, out)?.finish());
    Ok(SnapshotStream { version, database_bytes, parts, making: Some(making), is_ended: false })
}

impl Stream for SnapshotStream {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        match std::task::ready!(self.parts.poll_recv(context)) {
            Some(Part::Bytes(bytes)) => Poll::Ready(Some(Ok(bytes))),
            Some(Part::End) => {
                self.is_ended = true;
                Poll::Ready(None)
            }
            None => {
                // It ended without its end: the thread says why.
                let Some(making) = &mut self.making else { return Poll::Ready(None) };
                let made = std::task::ready!(Pin::new(making).poll(context));
                self.making = None;
                self.is_ended = true;
                Poll::Ready(Some(Err(made.map_err(|_| Error::Cancelled).flatten().err().unwrap_or(Error::Cancelled))))
            }
        }
    }
}

/// Writes the replica that `input` streams to `path`, under the conditions of [`crate::restore()`]. `progress` is told the bytes
/// received.
pub async fn restore_bytes(
    mut input: impl AsyncRead + Unpin + Send,
    path: &Path,
    identity: &Identity,
    lineage: Option<Version>,
    progress: impl Fn(u64) + Send,
) -> Result<Restored, Error> {
    check_place(path, identity)?;
    let temporary = Temporary::create(path)?;
    let mut applier = Applier::new(&temporary.path)?;
    let (chunks, receiver) = mpsc::channel(PARTS_QUEUED);
    let applying = tokio::task::spawn_blocking(move || {
        let decoder = Decoder::new(ChunkReader::new(receiver), "the snapshot stream")?;
        let txid = decoder.header().max;
        applier.apply(decoder, None)?;
        applier.finish()?;
        Ok::<Txid, Error>(txid)
    });
    let mut bytes = 0;
    loop {
        let mut chunk = bytes::BytesMut::with_capacity(PART_SIZE);
        let read = input.read_buf(&mut chunk).await;
        let (item, is_last) = match read {
            Ok(0) => break,
            Ok(n) => {
                bytes += n as u64;
                (Ok(chunk.freeze()), false)
            }
            Err(e) => {
                let (at, cause) = ("the snapshot stream".to_owned(), e.to_string());
                (Err(Error::Unavailable { at, action: "receive", cause }), true)
            }
        };
        // The receiver is gone when it failed; it says why.
        if chunks.send(item).await.is_err() || is_last {
            break;
        }
        progress(bytes);
    }
    drop(chunks);
    let txid = applying.await.unwrap_or(Err(Error::Cancelled))?;
    let (identity, location) = (identity.clone(), "the snapshot stream");
    let placed = tokio::task::spawn_blocking(move || temporary.place(&identity, lineage, location));
    let version = placed.await.unwrap_or(Err(Error::Cancelled))?;
    Ok(Restored { version, txid, bytes, is_previous_point: false })
}
