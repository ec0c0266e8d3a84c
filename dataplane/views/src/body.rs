//! The body of a poke while it is made: its parts go to the spool as they are full.
//!
//! Invariant: no more than one part is here as a whole, however large the body.

use bytes::Bytes;
use protocol::poke::PartBuilder;
use rows::Version;

use crate::api::Frame;
use crate::budget::NoRoom;
use crate::spool::{Piece, Spool};

/// A body up to this size needs no room in the spool: few of them wait for any socket.
const SMALL_BYTES: usize = 16 << 10;

/// Why a body could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    #[error("read encoded rows: {0}")]
    Read(#[from] std::io::Error),
}

pub struct Body {
    /// For everything but rows.
    pub patches: PartBuilder,
    frames: Vec<Frame>,
    spool: Spool,
    /// Row operations added one by one, chunks counted by their rows.
    pub rows: u64,
}

impl Body {
    pub fn new(version: Version, spool: &Spool) -> Body {
        let patches = PartBuilder::new(&version.to_string());
        Body { patches, frames: Vec::new(), spool: spool.clone(), rows: 0 }
    }

    /// Adds a row operation.
    pub fn row(&mut self, op: &[u8]) -> Result<(), BodyError> {
        self.patches.row(op);
        self.rows += 1;
        self.settle()
    }

    /// Adds a row operation from where it lies.
    pub fn lying_row(&mut self, op: &Piece) -> Result<(), BodyError> {
        match op {
            Piece::Memory(op) => self.row(op),
            Piece::File(_) => self.row(&op.read()?),
        }
    }

    /// Adds row operations that are joined by commas and shared with other bodies.
    pub fn chunk(&mut self, ops: &Piece, rows: usize) -> Result<(), BodyError> {
        if ops.is_empty() {
            return Ok(());
        }
        let (before, after): (Bytes, Bytes) = self.patches.around_rows();
        self.settle()?;
        self.frames.push(Frame::Parts([before.into(), ops.clone(), after.into()].into()));
        self.rows += rows as u64;
        Ok(())
    }

    /// The frames, in order; none when nothing was added.
    pub fn finish(mut self) -> Result<Vec<Frame>, BodyError> {
        self.settle()?;
        for part in self.patches.finish() {
            let is_small = self.frames.is_empty() && part.len() <= SMALL_BYTES;
            let piece = if is_small { Bytes::from(part).into() } else { self.spool.keep(part)? };
            self.frames.push(Frame::Parts([piece].into()));
        }
        Ok(self.frames)
    }

    fn settle(&mut self) -> Result<(), BodyError> {
        for part in self.patches.take() {
            self.frames.push(Frame::Parts([self.spool.keep(part)?].into()));
        }
        Ok(())
    }
}
