//! Reads committed frames out of SQLite's WAL file, proving that nothing is missing between two reads.
//!
//! A WAL is a header of 32 bytes, then frames of 24 bytes and a page. Header and frames carry the same two salts, which change
//! when the WAL starts over, and every frame a checksum over everything before it. So a frame whose salts and checksum continue the
//! last one that was read is the one that SQLite wrote next.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

const HEADER_SIZE: usize = 32;
const FRAME_HEADER_SIZE: usize = 24;
/// The last bit says in which byte order checksums are computed.
const MAGIC: u32 = 0x377f_0682;
/// Read at once.
const BLOCK_SIZE: usize = 1 << 20;

/// How far the WAL is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Before the first frame of whatever WAL is written next.
    Start,
    /// After a frame.
    After { salts: [u32; 2], frame: u32, checksum: [u32; 2] },
}

#[derive(Clone, Copy, Debug)]
struct Header {
    page_size: u32,
    is_big_endian: bool,
    salts: [u32; 2],
    checksum: [u32; 2],
}

/// A frame as [`Wal::read`] hands it out.
#[derive(Debug)]
pub struct Frame<'a> {
    pub page: u32,
    /// Pages of the database after the transaction that this frame ends; 0 if it does not end one.
    pub commit: u32,
    pub content: &'a [u8],
}

#[derive(Debug)]
pub struct Wal {
    file: File,
    header: Header,
}

impl Wal {
    #[must_use]
    pub fn path(database: &Path) -> PathBuf {
        let mut name = database.as_os_str().to_owned();
        name.push("-wal");
        PathBuf::from(name)
    }

    /// Opens the WAL of a database; SQLite holds no locks on it that closing the file could end.
    pub fn open(database: &Path) -> io::Result<Wal> {
        let file = File::open(Wal::path(database))?;
        let mut bytes = [0; HEADER_SIZE];
        file.read_exact_at(&mut bytes, 0)?;
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let (magic, checksum) = (word(0), [word(24), word(28)]);
        let is_big_endian = magic & 1 == 1;
        if magic & !1 != MAGIC || sum(is_big_endian, [0, 0], &bytes[..24]) != checksum {
            return Err(invalid("the WAL has no valid header"));
        }
        let header = Header { page_size: word(8), is_big_endian, salts: [word(16), word(20)], checksum };
        if !header.page_size.is_power_of_two() || !(512..=65536).contains(&header.page_size) {
            return Err(invalid("the WAL has no valid page size"));
        }
        Ok(Wal { file, header })
    }

    #[must_use]
    pub fn page_size(&self) -> u32 {
        self.header.page_size
    }

    /// The position after a frame that is known to be committed.
    pub fn after(&self, frame: u32) -> io::Result<Position> {
        if frame == 0 {
            return Ok(Position::After { salts: self.header.salts, frame, checksum: self.header.checksum });
        }
        let mut bytes = [0; FRAME_HEADER_SIZE];
        self.file.read_exact_at(&mut bytes, self.offset(frame - 1))?;
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if [word(8), word(12)] != self.header.salts {
            return Err(invalid("the WAL is shorter than SQLite says"));
        }
        Ok(Position::After { salts: self.header.salts, frame, checksum: [word(16), word(20)] })
    }

    /// Where reading goes on after `position`: there, or at the beginning if the WAL has started over since.
    pub fn resume(&self, position: Position) -> io::Result<Position> {
        match position {
            Position::After { salts, .. } if salts == self.header.salts => Ok(position),
            // Each new start adds one to the first salt. The reader held off a second one.
            Position::After { salts, .. } if self.header.salts[0] != salts[0].wrapping_add(1) => {
                Err(invalid("the WAL started over more than once"))
            }
            _ => self.after(0),
        }
    }

    /// Hands the frames after `position` up to `end`, which ends a transaction, to `each`, and returns the position after the last.
    /// Stops earlier, at the end of a transaction, when `each` answers `false`.
    pub fn read(&self, position: Position, end: u32, mut each: impl FnMut(Frame<'_>) -> bool) -> io::Result<Position> {
        let Position::After { salts, mut frame, mut checksum } = self.resume(position)? else {
            return Err(invalid("the WAL has no position to read from"));
        };
        let frame_size = FRAME_HEADER_SIZE + self.header.page_size as usize;
        let per_block = u32::try_from((BLOCK_SIZE / frame_size).max(1)).expect("a block has few frames");
        let mut block = Vec::new();
        let mut wants_more = true;
        let mut is_committed = true;
        while frame < end && (wants_more || !is_committed) {
            let count = per_block.min(end - frame);
            block.resize(count as usize * frame_size, 0);
            self.file.read_exact_at(&mut block, self.offset(frame))?;
            for bytes in block.chunks_exact(frame_size) {
                let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
                let content = &bytes[FRAME_HEADER_SIZE..];
                let order = self.header.is_big_endian;
                let expected = sum(order, sum(order, checksum, &bytes[..8]), content);
                if [word(8), word(12)] != salts || [word(16), word(20)] != expected {
                    return Err(invalid("a frame of the WAL does not continue the one before it"));
                }
                checksum = expected;
                frame += 1;
                let (page, commit) = (word(0), word(4));
                is_committed = commit > 0;
                wants_more &= each(Frame { page, commit, content });
                if is_committed && !wants_more {
                    break;
                }
            }
        }
        if !is_committed {
            return Err(invalid("the WAL ends inside a transaction"));
        }
        Ok(Position::After { salts, frame, checksum })
    }

    fn offset(&self, frame: u32) -> u64 {
        HEADER_SIZE as u64 + u64::from(frame) * (FRAME_HEADER_SIZE as u64 + u64::from(self.header.page_size))
    }
}

/// SQLite's checksum over pairs of words, continued from `from`.
fn sum(is_big_endian: bool, from: [u32; 2], bytes: &[u8]) -> [u32; 2] {
    let [mut a, mut b] = from;
    let word = |bytes: &[u8]| {
        let bytes = bytes.try_into().expect("four bytes");
        if is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    };
    for pair in bytes.chunks_exact(8) {
        a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
        b = b.wrapping_add(word(&pair[4..])).wrapping_add(a);
    }
    [a, b]
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
