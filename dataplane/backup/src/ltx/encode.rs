//! Writes an LTX file, page by page.

use std::io::{self, Write};

use super::{Checksum, Header, PAGE_HEADER_SIZE, SIZED, packed_size_max, write_varint};

#[derive(Debug)]
pub struct Encoder<W> {
    out: W,
    header: Header,
    checksum: Checksum,
    written: u64,
    last: u32,
    /// Distance from the page before and size of the block, per page: a tenth of what the index itself takes.
    blocks: Vec<u8>,
    packed: Vec<u8>,
}

impl<W: Write> Encoder<W> {
    pub fn new(out: W, header: Header) -> io::Result<Encoder<W>> {
        let mut encoder = Encoder {
            out,
            header,
            checksum: Checksum::new(),
            written: 0,
            last: 0,
            blocks: Vec::new(),
            packed: vec![0; PAGE_HEADER_SIZE + 4 + packed_size_max(header.page_size)],
        };
        encoder.write(&header.to_bytes())?;
        Ok(encoder)
    }

    /// Adds a page. Pages come in ascending order; of a snapshot, all but the lock page must come.
    pub fn page(&mut self, number: u32, content: &[u8]) -> io::Result<()> {
        assert_eq!(content.len(), self.header.page_size as usize, "a page has the database's page size");
        let lock_page = self.header.lock_page();
        let follows = if self.header.is_snapshot() {
            number == if self.last + 1 == lock_page { self.last + 2 } else { self.last + 1 }
        } else {
            number > self.last
        };
        if !follows || number > self.header.commit || number == lock_page {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("page {number} cannot follow page {} of a database of {} pages", self.last, self.header.commit),
            ));
        }
        let body = PAGE_HEADER_SIZE + 4;
        let size = lz4_flex::block::compress_into(content, &mut self.packed[body..]).map_err(io::Error::other)?;
        let size = u32::try_from(size).expect("a page is at most 64 KiB");
        self.packed[..4].copy_from_slice(&number.to_be_bytes());
        self.packed[4..6].copy_from_slice(&SIZED.to_be_bytes());
        self.packed[6..10].copy_from_slice(&size.to_be_bytes());
        self.checksum.update(&self.packed[..body]);
        self.checksum.update(content);
        let end = body + size as usize;
        self.out.write_all(&self.packed[..end])?;
        self.written += end as u64;
        write_varint(&mut self.blocks, u64::from(number - self.last));
        write_varint(&mut self.blocks, end as u64);
        self.last = number;
        Ok(())
    }

    /// Writes index and trailer. Returns what was written to, and the size of the file.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        if self.header.is_snapshot() {
            let lock_page = self.header.lock_page();
            let end = if self.header.commit == lock_page { lock_page - 1 } else { self.header.commit };
            if self.last != end {
                let message = format!("the snapshot ends after page {} of {}", self.last, self.header.commit);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            }
        }
        self.write(&[0; PAGE_HEADER_SIZE])?;
        self.index()?;
        // The checksum of the database is not kept.
        self.checksum.update(&0_u64.to_be_bytes());
        let mut trailer = [0; 16];
        trailer[8..].copy_from_slice(&self.checksum.value().to_be_bytes());
        self.out.write_all(&trailer)?;
        self.written += trailer.len() as u64;
        Ok((self.out, self.written))
    }

    fn index(&mut self) -> io::Result<()> {
        let blocks = std::mem::take(&mut self.blocks);
        let begin = self.written;
        let (mut number, mut offset) = (0, super::HEADER_SIZE as u64);
        let mut buffer = Vec::with_capacity(1 << 16);
        let mut rest = &blocks[..];
        while !rest.is_empty() {
            number += read_varint(&mut rest);
            let size = read_varint(&mut rest);
            for n in [number, offset, size] {
                write_varint(&mut buffer, n);
            }
            offset += size;
            if buffer.len() > (1 << 16) - 64 {
                self.write(&buffer)?;
                buffer.clear();
            }
        }
        write_varint(&mut buffer, 0);
        self.write(&buffer)?;
        let size = self.written - begin;
        self.write(&size.to_be_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.checksum.update(bytes);
        self.out.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// Reads what [`write_varint`] wrote in this process.
fn read_varint(bytes: &mut &[u8]) -> u64 {
    let (mut n, mut shift) = (0, 0);
    while let Some((&byte, rest)) = bytes.split_first() {
        *bytes = rest;
        n |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
        shift += 7;
    }
    n
}
