//! The LTX file format: the pages that a range of transactions changed, or all pages of a database.
//!
//! ```text
//! header    100 bytes
//! pages     (page number u32, flags u16, size u32, LZ4 block)*, then six zero bytes
//! index     (page number, offset, size: varints)*, 0, then the size of the index as u64
//! trailer   checksum of the database (0: not kept), checksum of the file
//! ```
//!
//! Numbers are big-endian. The file's checksum covers everything but itself, with page contents uncompressed.

mod decode;
mod encode;
mod merge;

pub use decode::Decoder;
pub use encode::Encoder;
pub use merge::merge;

use crate::name::Txid;

pub(crate) const HEADER_SIZE: usize = 100;
pub(crate) const PAGE_HEADER_SIZE: usize = 6;
pub(crate) const TRAILER_SIZE: usize = 16;

const MAGIC: &[u8; 4] = b"LTX1";
/// In the header: no checksum over the database's pages is kept. Files of Litestream 0.5 are like that.
const NO_CHECKSUM: u32 = 1 << 1;
/// In a page's header: a size and one LZ4 block follow.
const SIZED: u16 = 1;
/// Set in every checksum, so that none is zero.
const CHECKSUM_FLAG: u64 = 1 << 63;

/// What the beginning of a file says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub page_size: u32,
    /// Pages of the database after the last transaction.
    pub commit: u32,
    pub min: Txid,
    pub max: Txid,
    pub timestamp_ms: u64,
    /// The replica's version after the last transaction; 0 if it is not known. Stands where others note a node's number.
    pub version: u64,
}

impl Header {
    /// Whether the file holds all pages of the database.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.min == Txid::FIRST
    }

    /// SQLite locks byte 2^30 and leaves its page unused; it is never in a file.
    #[must_use]
    pub fn lock_page(&self) -> u32 {
        lock_page(self.page_size)
    }

    fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4..8].copy_from_slice(&NO_CHECKSUM.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.page_size.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.commit.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.min.as_u64().to_be_bytes());
        bytes[24..32].copy_from_slice(&self.max.as_u64().to_be_bytes());
        bytes[32..40].copy_from_slice(&self.timestamp_ms.to_be_bytes());
        // From 40: the checksum before (not kept), and the place in a WAL (of no use after the WAL is gone).
        bytes[72..80].copy_from_slice(&self.version.to_be_bytes());
        bytes
    }

    /// Fails with the reason if a reader cannot trust or understand what follows.
    fn from_bytes(bytes: &[u8; HEADER_SIZE]) -> Result<Header, String> {
        let u32_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if &bytes[..4] != MAGIC {
            return Err("it is not an LTX file of version 1".to_owned());
        }
        let header = Header {
            page_size: u32_at(8),
            commit: u32_at(12),
            min: Txid::new(u64_at(16)),
            max: Txid::new(u64_at(24)),
            timestamp_ms: u64_at(32),
            version: u64_at(72),
        };
        let flags = u32_at(4);
        if flags & !NO_CHECKSUM != 0 {
            return Err(format!("its header has the unknown flags {flags:#x}"));
        }
        if !header.page_size.is_power_of_two() || !(512..=65536).contains(&header.page_size) {
            return Err(format!("{} is not a page size", header.page_size));
        }
        if header.min == Txid::ZERO || header.min > header.max {
            return Err(format!("its transactions {} to {} are no range", header.min, header.max));
        }
        if header.commit == 0 {
            return Err("it describes a database without pages".to_owned());
        }
        Ok(header)
    }
}

#[must_use]
pub fn lock_page(page_size: u32) -> u32 {
    0x4000_0000 / page_size + 1
}

/// CRC-64/GO-ISO, with the top bit set in the result.
#[derive(Debug)]
struct Checksum(crc_fast::Digest);

impl Checksum {
    fn new() -> Checksum {
        Checksum(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso))
    }

    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn value(&self) -> u64 {
        self.0.finalize() | CHECKSUM_FLAG
    }
}

/// The longest LZ4 block that a page can become.
fn packed_size_max(page_size: u32) -> usize {
    lz4_flex::block::get_maximum_output_size(page_size as usize)
}

fn write_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}
