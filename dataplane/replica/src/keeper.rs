//! What a copy of the WAL elsewhere needs of the writer: to know where the WAL ends, and to be asked before it is cut.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rows::Version;

/// Copies the WAL elsewhere, frame by frame. Between the calls it holds a read transaction, so that SQLite never starts the WAL
/// over before its frames are copied.
///
/// Both methods run on the writer's thread, between two commits, and the [`crate::CommitGate`] may be closed: waiting for the gate
/// in them would wait forever.
pub trait WalKeeper: Send + Debug {
    /// The writer wants to cut the WAL, which ends at `version`, or to have it started over by the next commit. To allow it, copy
    /// what is not copied yet, end all read transactions, and answer `true`. After `false` the WAL stays and grows.
    fn release(&mut self, version: Version) -> bool;

    /// After a [`WalKeeper::release`] that allowed it: the cut was tried. [`WalEnd::frames`] says what the WAL now holds; no commit
    /// happened meanwhile.
    fn resume(&mut self);
}

/// The end of the WAL as of the last commit. Both numbers belong together only while the [`crate::CommitGate`] is pinned.
#[derive(Debug, Default)]
pub struct WalEnd {
    frames: AtomicU32,
    commits: AtomicU64,
}

impl WalEnd {
    /// Frames in the WAL, all of them committed.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.frames.load(Ordering::Acquire)
    }

    /// Grows with every commit of this writer.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Acquire)
    }

    pub(crate) fn committed(&self, frames: u32) {
        self.frames.store(frames, Ordering::Release);
        self.commits.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn checkpointed(&self, frames: u32) {
        self.frames.store(frames, Ordering::Release);
    }
}
