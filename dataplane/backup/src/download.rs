//! Reads files from the store in ranges, several at a time, in order.

use std::ops::Range;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use crate::error::Error;
use crate::name::Name;
use crate::plan::File;
use crate::stream::ChunkReader;
use crate::target::{RANGE_SIZE, Target};

/// For files of which many are read at the same time.
const SMALL_RANGE_SIZE: usize = 1 << 20;

/// The contents of `files` one after the other, `concurrency` ranges at a time. Ends early when the receiver is dropped.
pub fn all(target: &Target, files: &[File], concurrency: usize, arrived: impl Fn(u64) + Send + 'static) -> ChunkReader {
    read(target, files, concurrency, RANGE_SIZE, arrived)
}

/// The contents of one of many files that are read at the same time.
pub fn one(target: &Target, file: &File) -> ChunkReader {
    read(target, std::slice::from_ref(file), 1, SMALL_RANGE_SIZE, |_| ())
}

fn read(
    target: &Target,
    files: &[File],
    concurrency: usize,
    range_size: usize,
    arrived: impl Fn(u64) + Send + 'static,
) -> ChunkReader {
    let ranges: Vec<(Name, Range<u64>)> =
        files.iter().flat_map(|file| ranges(file.size, range_size).map(|range| (file.name, range))).collect();
    let store = target.store.clone();
    let (sender, receiver) = mpsc::channel::<Result<Bytes, Error>>(1);
    tokio::spawn(async move {
        let gets = futures_util::stream::iter(ranges).map(|(name, range)| {
            let store = store.clone();
            // A task of its own, so that it goes on while the one before it is waited for.
            let get = tokio::spawn(async move { store.get(name, range).await });
            async move { get.await.unwrap_or(Err(Error::Cancelled)) }
        });
        let mut chunks = std::pin::pin!(gets.buffered(concurrency));
        while let Some(chunk) = chunks.next().await {
            let is_last = chunk.is_err();
            if let Ok(bytes) = &chunk {
                arrived(bytes.len() as u64);
            }
            if sender.send(chunk).await.is_err() || is_last {
                break;
            }
        }
    });
    ChunkReader::new(receiver)
}

fn ranges(size: u64, range_size: usize) -> impl Iterator<Item = Range<u64>> {
    (0..size).step_by(range_size).map(move |start| start..size.min(start + range_size as u64))
}
