//! The rows of a hydration, encoded, in chunks that all who ask for them share.
//!
//! Chunks, and the identities of their rows, are in the spool: a payload holds no row in memory that has no room there.

use std::ops::Range;
use std::sync::Arc;

use rows::Version;

use crate::budget::NoRoom;
use crate::encode::Unencodable;
use crate::materialisation::Entry;
use crate::row_id::{Encoder, Presence, RowId, decode};
use crate::spool::{Piece, Spool};

/// A chunk is cut here, so that a large result is many frames and not one.
const CHUNK_BYTES: usize = 256 * 1024;

#[derive(Debug)]
pub struct Payload {
    pub version: Version,
    chunks: Vec<Chunk>,
    rows: usize,
    /// What leads from the chunks to `version`. The history cannot: its entries lead from one version that the views were at to
    /// the next, and a job may run at one in between.
    pub tail: Option<Arc<Entry>>,
}

#[derive(Debug)]
pub struct Chunk {
    /// Row operations joined by commas.
    pub ops: Piece,
    /// Where each of them ends.
    ends: Vec<u32>,
    /// The identities of their rows, in the stored form of row sets.
    ids: Piece,
}

impl Chunk {
    pub fn rows(&self) -> usize {
        self.ends.len()
    }

    /// Calls with every row and where in the chunk its operation is.
    fn each<E: From<std::io::Error>>(
        &self,
        call: &mut dyn FnMut(RowId, Range<usize>) -> Result<(), E>,
    ) -> Result<(), E> {
        let ids = self.ids.read()?;
        let (mut start, mut ends, mut outcome) = (0, self.ends.iter(), Ok(()));
        decode(&ids, |id, _| {
            let end = ends.next().map_or(start, |end| *end as usize);
            if outcome.is_ok() {
                outcome = call(id, start..end);
            }
            start = end + 1;
        })
        .map_err(std::io::Error::other)?;
        outcome
    }

    fn size(&self) -> usize {
        self.ops.len() + self.ids.len() + self.ends.len() * size_of::<u32>()
    }
}

/// Takes a row and its operation.
type EachRow<'a, E> = &'a mut dyn FnMut(RowId, &[u8]) -> Result<(), E>;

impl Payload {
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Rows in the chunks.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Calls with every row of the chunks and where its operation lies.
    pub fn each_lying<E: From<std::io::Error>>(
        &self,
        mut call: impl FnMut(RowId, &dyn Fn() -> Piece) -> Result<(), E>,
    ) -> Result<(), E> {
        for chunk in &self.chunks {
            chunk.each(&mut |id, range| call(id, &|| chunk.ops.slice(range.clone())))?;
        }
        Ok(())
    }

    /// Calls with every row of the chunks and its operation.
    pub fn each<E: From<std::io::Error>>(&self, call: EachRow<'_, E>) -> Result<(), E> {
        for chunk in &self.chunks {
            let ops = chunk.ops.read()?;
            chunk.each(&mut |id, range| call(id, &ops[range]))?;
        }
        Ok(())
    }

    /// Bytes held, in memory and on disk.
    pub fn size(&self) -> usize {
        let tail = self.tail.as_ref().map_or(0, |entry| entry.size());
        self.chunks.iter().map(Chunk::size).sum::<usize>() + tail
    }
}

/// Why a row could not be added.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Unencodable(#[from] Unencodable),
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

pub struct PayloadBuilder {
    spool: Spool,
    chunks: Vec<Chunk>,
    rows: usize,
    ops: Vec<u8>,
    ends: Vec<u32>,
    ids: Encoder,
}

impl PayloadBuilder {
    pub fn new(spool: &Spool) -> PayloadBuilder {
        PayloadBuilder {
            spool: spool.clone(),
            chunks: Vec::new(),
            rows: 0,
            ops: Vec::new(),
            ends: Vec::new(),
            ids: Encoder::default(),
        }
    }

    pub fn push(
        &mut self,
        id: &RowId,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), Unencodable>,
    ) -> Result<(), PushError> {
        if self.ops.len() >= CHUNK_BYTES {
            self.cut()?;
        }
        if !self.ops.is_empty() {
            self.ops.push(b',');
        }
        write(&mut self.ops)?;
        self.ends.push(self.ops.len() as u32);
        self.ids.push(id, Presence::Gone);
        self.rows += 1;
        Ok(())
    }

    fn cut(&mut self) -> Result<(), NoRoom> {
        if !self.ends.is_empty() {
            self.ends.shrink_to_fit();
            self.chunks.push(Chunk {
                ops: self.spool.keep(std::mem::take(&mut self.ops))?,
                ends: std::mem::take(&mut self.ends),
                ids: self.spool.keep(std::mem::take(&mut self.ids).finish())?,
            });
        }
        Ok(())
    }

    pub fn finish(mut self, version: Version) -> Result<Payload, NoRoom> {
        self.cut()?;
        Ok(Payload { version, chunks: self.chunks, rows: self.rows, tail: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rows::{Key, Value};

    #[test]
    fn rows_come_back_in_order_from_memory_and_disk() {
        let folder = tempfile::tempdir().unwrap();
        for memory in [0, 300_000, usize::MAX] {
            let spool = Spool::new(folder.path(), memory);
            let mut builder = PayloadBuilder::new(&spool);
            let id = |n: i64| RowId { table: "t".into(), key: Key::from_values(&[Value::Int(n)]) };
            let op = |n: i64| format!("{{\"n\":{n},\"text\":\"{}\"}}", "x".repeat((n * 37 % 20_000) as usize));
            for n in 0..300 {
                builder
                    .push(&id(n), |out| {
                        out.extend_from_slice(op(n).as_bytes());
                        Ok(())
                    })
                    .unwrap();
            }
            let payload = builder.finish(Version::new(1)).unwrap();
            assert!(payload.chunks().len() > 3);
            assert_eq!(payload.rows(), payload.chunks().iter().map(Chunk::rows).sum::<usize>());
            let mut n = 0;
            payload
                .each::<std::io::Error>(&mut |row, bytes| {
                    assert_eq!((row, bytes), (id(n), op(n).as_bytes()));
                    n += 1;
                    Ok(())
                })
                .unwrap();
            assert_eq!(n, 300);
            assert_eq!(memory == 0, spool.memory() == 0);
            assert_eq!(memory == usize::MAX, spool.disk() == 0);
        }
    }
}
