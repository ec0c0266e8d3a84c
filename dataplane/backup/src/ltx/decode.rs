//! Reads an LTX file, page by page, trusting nothing in it.

use std::io::{self, Read};

use super::{Checksum, HEADER_SIZE, Header, PAGE_HEADER_SIZE, SIZED, TRAILER_SIZE, packed_size_max};
use crate::error::Error;

/// A varint of 64 bits has at most so many bytes.
const VARINT_SIZE_MAX: usize = 10;

#[derive(Debug)]
pub struct Decoder<R> {
    input: R,
    /// For error messages.
    file: String,
    offset: u64,
    header: Header,
    checksum: Checksum,
    last: u32,
    pages: u64,
    packed: Vec<u8>,
}

impl<R: Read> Decoder<R> {
    /// Reads the header. `file` names the input in errors.
    pub fn new(mut input: R, file: &str) -> Result<Decoder<R>, Error> {
        let mut bytes = [0; HEADER_SIZE];
        let mut offset = 0;
        fill(&mut input, &mut bytes, file, &mut offset)?;
        let header = Header::from_bytes(&bytes).map_err(|reason| Error::damaged(file, 0, reason))?;
        let mut checksum = Checksum::new();
        checksum.update(&bytes);
        let packed = vec![0; packed_size_max(header.page_size)];
        Ok(Decoder { input, file: file.to_owned(), offset, header, checksum, last: 0, pages: 0, packed })
    }

    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Reads the next page into `content`, which has the database's page size, and returns its number; `None` after the last.
    /// What it returns is only to be trusted after [`Decoder::finish`].
    pub fn page(&mut self, content: &mut [u8]) -> Result<Option<u32>, Error> {
        assert_eq!(content.len(), self.header.page_size as usize, "a page has the database's page size");
        let begin = self.offset;
        let mut head = [0; PAGE_HEADER_SIZE];
        self.read(&mut head)?;
        if head == [0; PAGE_HEADER_SIZE] {
            return self.check_count(begin).map(|()| None);
        }
        let number = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = u16::from_be_bytes([head[4], head[5]]);
        if flags != SIZED {
            return Err(self.damaged(begin, format!("page {number} has the unknown flags {flags:#x}")));
        }
        let lock_page = self.header.lock_page();
        let follows = if self.header.is_snapshot() {
            number == if self.last + 1 == lock_page { self.last + 2 } else { self.last + 1 }
        } else {
            number > self.last
        };
        if !follows || number > self.header.commit || number == lock_page {
            let reason =
                format!("page {number} follows page {} of a database of {} pages", self.last, self.header.commit);
            return Err(self.damaged(begin, reason));
        }
        let mut size = [0; 4];
        self.read(&mut size)?;
        let size = u32::from_be_bytes(size) as usize;
        if size > self.packed.len() {
            return Err(self.damaged(begin, format!("page {number} claims {size} bytes")));
        }
        fill(&mut self.input, &mut self.packed[..size], &self.file, &mut self.offset)?;
        match lz4_flex::block::decompress_into(&self.packed[..size], content) {
            Ok(n) if n == content.len() => {}
            Ok(n) => return Err(self.damaged(begin, format!("page {number} has only {n} bytes"))),
            Err(e) => return Err(self.damaged(begin, format!("page {number} cannot be decompressed: {e}"))),
        }
        self.checksum.update(content);
        self.last = number;
        self.pages += 1;
        Ok(Some(number))
    }

    /// Reads index and trailer after the last page, and compares the checksum.
    pub fn finish(mut self) -> Result<(), Error> {
        let begin = self.offset;
        let mut entries = 0_u64;
        let mut bytes = Vec::with_capacity(3 * VARINT_SIZE_MAX);
        while self.varint(&mut bytes)? != 0 {
            entries += 1;
            if entries > self.pages {
                return Err(self.damaged(begin, "its index has more entries than it has pages"));
            }
            self.varint(&mut bytes)?;
            self.varint(&mut bytes)?;
            self.checksum.update(&bytes);
            bytes.clear();
        }
        self.checksum.update(&bytes);
        let size = self.offset - begin;
        let mut stated = [0; 8];
        self.read(&mut stated)?;
        if u64::from_be_bytes(stated) != size || entries != self.pages {
            return Err(self.damaged(begin, "its index does not describe its pages"));
        }
        let at = self.offset;
        let mut trailer = [0; TRAILER_SIZE];
        fill(&mut self.input, &mut trailer, &self.file, &mut self.offset)?;
        self.checksum.update(&trailer[..8]);
        let stated = u64::from_be_bytes(trailer[8..].try_into().expect("eight bytes"));
        if stated != self.checksum.value() {
            return Err(self.damaged(at, "the checksum does not match the contents"));
        }
        let mut more = [0; 1];
        match read_some(&mut self.input, &mut more, &self.file)? {
            0 => Ok(()),
            _ => Err(self.damaged(self.offset, "something follows the end of the file")),
        }
    }

    /// A snapshot must be complete.
    fn check_count(&self, at: u64) -> Result<(), Error> {
        let lock_page = self.header.lock_page();
        let end = if self.header.commit == lock_page { lock_page - 1 } else { self.header.commit };
        if self.header.is_snapshot() && self.last != end {
            let reason = format!("the snapshot ends after page {} of {}", self.last, self.header.commit);
            return Err(self.damaged(at, reason));
        }
        Ok(())
    }

    fn varint(&mut self, seen: &mut Vec<u8>) -> Result<u64, Error> {
        let mut n = 0;
        for i in 0..VARINT_SIZE_MAX {
            let mut byte = [0; 1];
            fill(&mut self.input, &mut byte, &self.file, &mut self.offset)?;
            seen.push(byte[0]);
            n |= u64::from(byte[0] & 0x7f) << (7 * i);
            if byte[0] < 0x80 {
                return Ok(n);
            }
        }
        Err(self.damaged(self.offset, "a number of its index does not end"))
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        fill(&mut self.input, bytes, &self.file, &mut self.offset)?;
        self.checksum.update(bytes);
        Ok(())
    }

    fn damaged(&self, offset: u64, reason: impl Into<String>) -> Error {
        Error::damaged(&self.file, offset, reason)
    }
}

fn fill(input: &mut impl Read, bytes: &mut [u8], file: &str, offset: &mut u64) -> Result<(), Error> {
    let mut filled = 0;
    while filled < bytes.len() {
        match read_some(input, &mut bytes[filled..], file)? {
            0 => return Err(Error::damaged(file, *offset + filled as u64, "it ends in the middle")),
            n => filled += n,
        }
    }
    *offset += filled as u64;
    Ok(())
}

fn read_some(input: &mut impl Read, bytes: &mut [u8], file: &str) -> Result<usize, Error> {
    loop {
        match input.read(bytes) {
            Ok(n) => return Ok(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                let local =
                    |e: io::Error| Error::Unavailable { at: file.to_owned(), action: "read", cause: e.to_string() };
                return Err(Error::from_io(e).unwrap_or_else(local));
            }
        }
    }
}
