//! Byte streams between the threads that encode and decode and the tasks that send and receive: bounded, in order, and with an
//! explicit end, so that a writer that failed is never taken for one that finished.

use std::io::{self, Read, Write};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::error::Error;

/// A piece of a file on its way to the store.
#[derive(Debug)]
pub enum Part {
    Bytes(Bytes),
    /// The file is complete. A stream that ends without this was given up.
    End,
}

/// Cuts what is written into parts of one size. To be used outside the async runtime's threads.
#[derive(Debug)]
pub struct PartWriter {
    parts: mpsc::Sender<Part>,
    buffer: BytesMut,
    part_size: usize,
}

impl PartWriter {
    /// At most `queued` parts wait for the receiver.
    pub fn new(part_size: usize, queued: usize) -> (PartWriter, mpsc::Receiver<Part>) {
        let (parts, receiver) = mpsc::channel(queued.max(1));
        (PartWriter { parts, buffer: BytesMut::new(), part_size }, receiver)
    }

    /// Sends the rest and the end.
    pub fn finish(mut self) -> Result<(), Error> {
        let rest = self.buffer.split().freeze();
        if !rest.is_empty() {
            self.send(Part::Bytes(rest))?;
        }
        self.send(Part::End)
    }

    fn send(&mut self, part: Part) -> Result<(), Error> {
        // The receiver is gone when it failed or was stopped; it says why.
        self.parts.blocking_send(part).map_err(|_| Error::Cancelled)
    }
}

impl Write for PartWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(self.part_size);
        }
        let room = self.part_size - self.buffer.len();
        let taken = room.min(bytes.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == self.part_size {
            let full = std::mem::take(&mut self.buffer).freeze();
            self.send(Part::Bytes(full)).map_err(Error::into_io)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what a task receives, piece by piece. To be used outside the async runtime's threads.
#[derive(Debug)]
pub struct ChunkReader {
    chunks: mpsc::Receiver<Result<Bytes, Error>>,
    current: Bytes,
}

impl ChunkReader {
    pub fn new(chunks: mpsc::Receiver<Result<Bytes, Error>>) -> ChunkReader {
        ChunkReader { chunks, current: Bytes::new() }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(Ok(chunk)) => self.current = chunk,
                Some(Err(error)) => return Err(error.into_io()),
                None => return Ok(0),
            }
        }
        let n = out.len().min(self.current.len());
        out[..n].copy_from_slice(&self.current[..n]);
        // Not `split_to`: that counts references for every page.
        bytes::Buf::advance(&mut self.current, n);
        Ok(n)
    }
}
