//! Files in the replica's place that are a replica all the same: of the original server, or of another release of this one. Like
//! every replica they are a cache of Postgres, so they may make way; whatever else lies there may be somebody's only copy.
//!
//! Reads bytes only: SQLite itself might change a file that is not ours, and cannot open the original's.

use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use crate::error::{At, Error};
use crate::meta::{APPLICATION_ID, FORMAT};

/// A table that the original makes first of all, so it is described near the file's beginning.
const ORIGINAL_TABLE: &[u8] = b"_zero.replicationConfig";
const SEARCHED_BYTES: u64 = 64 << 20;

/// Whose replica a file is that this release cannot use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Former {
    /// The original server's.
    Original,
    /// Of another release of this server.
    Format(i32),
}

impl fmt::Display for Former {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Former::Original => f.write_str("a replica of the original zero-cache"),
            Former::Format(format) => {
                write!(f, "a replica in format {format} of another release, and this one has format {FORMAT}")
            }
        }
    }
}

/// `None` if there is nothing at `path`, or something else.
pub fn former(path: &Path) -> Result<Option<Former>, Error> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).at(path, "look at the file"),
    };
    if !file.metadata().at(path, "look at the file")?.is_file() {
        return Ok(None);
    }
    let mut header = [0_u8; 100];
    match file.read_exact(&mut header) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read.at(path, "look at the file")?,
    }
    if !header.starts_with(b"SQLite format 3\0") {
        return Ok(None);
    }
    let number = |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if number(68) == APPLICATION_ID {
        let format = number(60);
        return Ok((format != FORMAT).then_some(Former::Format(format)));
    }
    file.seek(SeekFrom::Start(0)).at(path, "look at the file")?;
    let is_original = contains(file, ORIGINAL_TABLE).at(path, "look at the file")?;
    Ok(is_original.then_some(Former::Original))
}

/// Whether the text is within the part of the file that is searched.
fn contains(file: File, text: &[u8]) -> std::io::Result<bool> {
    let mut reader = BufReader::with_capacity(1 << 20, file.take(SEARCHED_BYTES));
    // What a text that lies across two reads may begin with.
    let mut window: Vec<u8> = Vec::new();
    loop {
        let read = reader.fill_buf()?;
        if read.is_empty() {
            return Ok(false);
        }
        let length = read.len();
        window.extend_from_slice(read);
        if window.windows(text.len()).any(|part| part == text) {
            return Ok(true);
        }
        window.drain(..window.len().saturating_sub(text.len() - 1));
        reader.consume(length);
    }
}
