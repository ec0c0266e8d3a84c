//! Encoded rows on their way from a query to sockets, whoever holds them: a hydration kept for those who ask for it, a poke that
//! waits for a socket to drain.
//!
//! They are in memory while the node's share for them lasts, and beyond it in files without a name, where whoever sends them
//! reads them again piece by piece. So a result may be larger than the memory of the node, and what a slow client has still to
//! take costs disk. Bytes that many hold are there, and counted, once.
//!
//! Must not know: rows, clients, what the bytes mean.
//!
//! Invariant: all pieces in memory together never exceed the share.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::budget::{Budget, NoRoom, Share};

/// Size of a file. It is gone when none of its pieces is held any more.
const FILE_BYTES: usize = 32 << 20;
/// What a piece in memory takes beside its bytes.
const OVERHEAD_BYTES: usize = 128;
/// So much of the volume stays free for the replica: a tenth, up to this.
const RESERVE_BYTES_MAX: u64 = 4 << 30;

/// Cheap handle; all clones share the node's share.
#[derive(Clone, Debug)]
pub struct Spool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    memory: Budget,
    disk: Budget,
    folder: PathBuf,
    /// The file that is written to and how far it is filled.
    newest: Mutex<Option<(Arc<Counted<File>>, usize)>>,
}

/// Something that counts until it is dropped.
#[derive(Debug)]
struct Counted<T> {
    inner: T,
    share: Share,
}

impl AsRef<[u8]> for Counted<Vec<u8>> {
    fn as_ref(&self) -> &[u8] {
        &self.inner
    }
}

/// Bytes in memory or in a file. Clones share them.
#[derive(Clone, Debug)]
pub enum Piece {
    Memory(Bytes),
    File(Stored),
}

/// A range of a file.
#[derive(Clone, Debug)]
pub struct Stored {
    file: Arc<Counted<File>>,
    offset: u64,
    len: usize,
}

impl Spool {
    /// `folder` is on the volume that may be used; nothing there has a name for longer than a moment.
    #[must_use]
    pub fn new(folder: &Path, memory_max: usize) -> Spool {
        Spool(Arc::new(Shared {
            memory: Budget::new(memory_max),
            disk: Budget::new(usize::MAX),
            folder: folder.to_owned(),
            newest: Mutex::default(),
        }))
    }

    /// Keeps bytes for as long as the piece, or a clone of it, is held. May write to disk.
    pub fn keep(&self, mut bytes: Vec<u8>) -> Result<Piece, NoRoom> {
        let mut share = self.0.memory.share();
        if share.grow(bytes.len() + OVERHEAD_BYTES) {
            bytes.shrink_to_fit();
            return Ok(Piece::Memory(Bytes::from_owner(Counted { inner: bytes, share })));
        }
        let folder = self.0.folder.display();
        self.write(&bytes)
            .map(Piece::File)
            .map_err(|error| NoRoom(format!("no room for encoded rows in memory, nor in {folder}: {error}")))
    }

    /// Bytes of the pieces in memory.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.0.memory.used()
    }

    /// Bytes of the files.
    #[must_use]
    pub fn disk(&self) -> usize {
        self.0.disk.used()
    }

    fn write(&self, bytes: &[u8]) -> io::Result<Stored> {
        let stored = self.allot(bytes.len())?;
        stored.file.inner.write_all_at(bytes, stored.offset)?;
        Ok(stored)
    }

    /// A range that nobody else writes to.
    fn allot(&self, len: usize) -> io::Result<Stored> {
        let mut newest = self.0.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((file, filled)) = &mut *newest {
            if Arc::strong_count(file) == 1 {
                // Nobody holds anything of it.
                *filled = 0;
            }
            if *filled + len <= file.share.bytes() {
                let offset = *filled as u64;
                *filled += len;
                return Ok(Stored { file: Arc::clone(file), offset, len });
            }
        }
        let size = FILE_BYTES.max(len);
        self.check_volume(size)?;
        let inner = tempfile::tempfile_in(&self.0.folder)?;
        let mut share = self.0.disk.share();
        share.set(size);
        let file = Arc::new(Counted { inner, share });
        *newest = Some((Arc::clone(&file), len));
        Ok(Stored { file, offset: 0, len })
    }

    /// What waits for clients must not take the room that the replica needs.
    fn check_volume(&self, size: usize) -> io::Result<()> {
        let volume = rustix::fs::statvfs(&self.0.folder)?;
        let reserve = (volume.f_blocks.saturating_mul(volume.f_frsize) / 10).min(RESERVE_BYTES_MAX);
        let available = volume.f_bavail.saturating_mul(volume.f_frsize);
        if available < reserve.saturating_add(size as u64) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the volume is nearly full"));
        }
        Ok(())
    }
}

impl Piece {
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Piece::Memory(bytes) => bytes.len(),
            Piece::File(stored) => stored.len,
        }
    }

    /// Of these, those in memory.
    #[must_use]
    pub fn memory(&self) -> usize {
        match self {
            Piece::Memory(bytes) => bytes.len(),
            Piece::File(_) => 0,
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of it, which keeps all of it.
    #[must_use]
    pub fn slice(&self, range: std::ops::Range<usize>) -> Piece {
        match self {
            Piece::Memory(bytes) => Piece::Memory(bytes.slice(range)),
            Piece::File(Stored { file, offset, .. }) => {
                Piece::File(Stored { file: Arc::clone(file), offset: offset + range.start as u64, len: range.len() })
            }
        }
    }

    /// All its bytes. Reads from disk where they are there.
    pub fn read(&self) -> io::Result<Bytes> {
        self.read_part(0, self.len())
    }

    /// Up to `max` bytes from position `from` on.
    pub fn read_part(&self, from: usize, max: usize) -> io::Result<Bytes> {
        let from = from.min(self.len());
        let to = self.len().min(from.saturating_add(max));
        match self {
            Piece::Memory(bytes) => Ok(bytes.slice(from..to)),
            Piece::File(stored) => {
                let mut bytes = vec![0; to - from];
                stored.file.inner.read_exact_at(&mut bytes, stored.offset + from as u64)?;
                Ok(bytes.into())
            }
        }
    }
}

impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Piece {
        Piece::Memory(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(seed: usize, len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 + seed) as u8).collect()
    }

    #[test]
    fn memory_first_then_files_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::new(folder.path(), 100_000);
        let pieces: Vec<Piece> = (0..50).map(|n| spool.keep(pattern(n, 10_000 + n)).unwrap()).collect();
        let in_memory = pieces.iter().filter(|p| matches!(p, Piece::Memory(_))).count();
        assert!((8..10).contains(&in_memory), "{in_memory}");
        assert!(spool.memory() <= 100_000);
        assert_eq!(spool.disk(), FILE_BYTES, "they share a file");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "it has no name");
        for (n, piece) in pieces.iter().enumerate() {
            assert_eq!(piece.read().unwrap(), pattern(n, 10_000 + n));
            assert_eq!(piece.read_part(9_999, 7).unwrap(), &pattern(n, 10_006)[9_999..][..7.min(n + 1)]);
            assert_eq!(piece.read_part(20_000, 1).unwrap().len(), 0);
            assert_eq!(piece.slice(5_000..9_000).slice(100..107).read().unwrap(), &pattern(n, 10_000)[5_100..5_107]);
        }
        let clone = pieces.last().unwrap().clone();
        drop(pieces);
        assert_eq!(spool.memory(), 0);
        assert_eq!(clone.read().unwrap(), pattern(49, 10_049), "a clone keeps the bytes");
        drop(clone);
        // The newest file is used again from its start.
        let again = Spool::new(folder.path(), 0);
        for n in 0..10 {
            let piece = again.keep(pattern(n, 20 << 20)).unwrap();
            assert_eq!(piece.read_part(20 << 19, 9).unwrap(), &pattern(n, 20 << 20)[20 << 19..][..9]);
            assert_eq!(again.disk(), FILE_BYTES);
        }
        let large = again.keep(pattern(1, FILE_BYTES + 1)).unwrap();
        assert_eq!(large.read().unwrap(), pattern(1, FILE_BYTES + 1));
        drop(large);
        assert_eq!(again.disk(), FILE_BYTES + 1, "only the newest is there");
    }

    #[test]
    fn a_folder_that_is_not_there_is_no_room() {
        let spool = Spool::new(Path::new("/nonexistent/folder"), 1_000);
        assert!(spool.keep(vec![1; 500]).is_ok());
        let error = spool.keep(vec![1; 500_000]).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/folder"), "{error}");
    }
}
