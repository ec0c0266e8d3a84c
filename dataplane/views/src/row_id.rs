//! Which row it is: of the database, and as the clients of one schema know it. And the compact form in which row sets and their
//! changes are stored.
//!
//! Two clients may know one row by different keys, and two rows by the same cells. So a [`RowId`] says something only among the
//! ids of one key choice: in one materialisation and its stored history, or in one client group. What is shared beyond that
//! goes by [`Identity`].
//!
//! Invariant: decoding never trusts lengths; garbage is an error, not a panic.

use std::sync::Arc;

use rows::{Key, RowBuilder, ValueRef, Version};
use rustc_hash::FxHashMap;

/// A row of the database: by wire table name and the cells of the replica's own key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    table: Arc<str>,
    key: Key,
}

impl Identity {
    pub fn of(put: &ivm::Put) -> Identity {
        Identity { table: Arc::clone(&put.table.table.name), key: put.identity() }
    }
}

/// A row as clients know it: by wire table name and the cells of the client schema's primary key, in that key's order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId {
    pub table: Arc<str>,
    pub key: Key,
}

impl RowId {
    pub fn of(table: &ivm::KeyedTable, key: &Key) -> RowId {
        RowId { table: Arc::clone(&table.table.name), key: key.clone() }
    }
}

/// What happened to a row: present with the version that last wrote it, or gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Present(Version),
    Gone,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("stored row set is damaged at byte {at}: {reason}")]
pub struct DecodeError {
    at: usize,
    reason: &'static str,
}

/// Format: a format byte; per entry the table (0 and its name when it changes, else 1), the presence as a varint (0 gone,
/// else version + 1), the number of cells and the cells. Integers are LEB128.
const FORMAT: u8 = 1;

/// Appends entries; consecutive entries of one table name it once.
#[derive(Debug)]
pub struct Encoder {
    bytes: Vec<u8>,
    table: Option<Arc<str>>,
}

impl Default for Encoder {
    fn default() -> Self {
        Encoder { bytes: vec![FORMAT], table: None }
    }
}

impl Encoder {
    pub fn push(&mut self, id: &RowId, presence: Presence) {
        if self.table.as_ref() == Some(&id.table) {
            self.bytes.push(1);
        } else {
            self.bytes.push(0);
            self.text(&id.table);
            self.table = Some(Arc::clone(&id.table));
        }
        match presence {
            Presence::Gone => self.varint(0),
            Presence::Present(version) => self.varint(version.as_u64().saturating_add(1)),
        }
        self.varint(id.key.len() as u64);
        for cell in id.key.iter() {
            match cell {
                ValueRef::Null => self.bytes.push(0),
                ValueRef::Bool(b) => self.bytes.push(1 + u8::from(b)),
                ValueRef::Int(i) => {
                    self.bytes.push(3);
                    self.bytes.extend_from_slice(&i.to_le_bytes());
                }
                ValueRef::Float(f) => {
                    self.bytes.push(4);
                    self.bytes.extend_from_slice(&f.to_le_bytes());
                }
                ValueRef::Str(s) => {
                    self.bytes.push(5);
                    self.text(s);
                }
                ValueRef::Json(s) => {
                    self.bytes.push(6);
                    self.text(s);
                }
            }
        }
    }

    /// Bytes until now.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.bytes.push((n as u8) | 0x80);
            n >>= 7;
        }
        self.bytes.push(n as u8);
    }

    fn text(&mut self, s: &str) {
        self.varint(s.len() as u64);
        self.bytes.extend_from_slice(s.as_bytes());
    }
}

/// Reads entries in the order they were pushed.
pub fn decode(bytes: &[u8], mut each: impl FnMut(RowId, Presence)) -> Result<(), DecodeError> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.byte()? != FORMAT {
        return Err(reader.error("unknown format"));
    }
    let mut table: Option<Arc<str>> = None;
    while reader.at < bytes.len() {
        match reader.byte()? {
            0 => table = Some(reader.text()?.into()),
            1 => {}
            _ => return Err(reader.error("unknown table marker")),
        }
        let Some(table) = &table else {
            return Err(reader.error("entry before any table"));
        };
        let presence = match reader.varint()? {
            0 => Presence::Gone,
            n => Presence::Present(Version::new(n - 1)),
        };
        let cells = reader.varint()?;
        // A Postgres key has at most 32 columns.
        if cells > 64 {
            return Err(reader.error("too many key columns"));
        }
        let mut key = RowBuilder::new(cells as usize);
        for _ in 0..cells {
            let cell = match reader.byte()? {
                0 => ValueRef::Null,
                1 => ValueRef::Bool(false),
                2 => ValueRef::Bool(true),
                3 => ValueRef::Int(i64::from_le_bytes(reader.fixed()?)),
                4 => ValueRef::Float(f64::from_le_bytes(reader.fixed()?)),
                5 => ValueRef::Str(reader.text()?),
                6 => ValueRef::Json(reader.text()?),
                _ => return Err(reader.error("unknown cell tag")),
            };
            key.push(cell);
        }
        each(RowId { table: Arc::clone(table), key: key.finish_key() }, presence);
    }
    Ok(())
}

/// Folds `bytes` over `set`: present rows are put, gone rows removed.
pub fn fold(bytes: &[u8], set: &mut FxHashMap<RowId, Version>) -> Result<(), DecodeError> {
    decode(bytes, |id, presence| match presence {
        Presence::Present(version) => {
            set.insert(id, version);
        }
        Presence::Gone => {
            set.remove(&id);
        }
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, reason: &'static str) -> DecodeError {
        DecodeError { at: self.at, reason }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| self.error("it ends in the middle of an entry"))?;
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    fn fixed(&mut self) -> Result<[u8; 8], DecodeError> {
        let mut out = [0; 8];
        out.copy_from_slice(self.take(8)?);
        Ok(out)
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            n |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(self.error("number too long"))
    }

    fn text(&mut self) -> Result<&'a str, DecodeError> {
        let len = self.varint()?;
        let len = usize::try_from(len).map_err(|_| self.error("text too long"))?;
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).map_err(|_| self.error("text is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rows::Value;

    fn id(table: &str, values: &[Value]) -> RowId {
        RowId { table: table.into(), key: Key::from_values(values) }
    }

    #[test]
    fn entries_round_trip() {
        let entries = [
            (id("issue", &[Value::Str("i1".into())]), Presence::Present(Version::new(0))),
            (id("issue", &[Value::Str(String::new().into())]), Presence::Gone),
            (
                id("label", &[Value::Int(-5), Value::Float(1.5), Value::Bool(true)]),
                Presence::Present(Version::new(u64::MAX - 1)),
            ),
            (id("issue", &[Value::Str("i2".into())]), Presence::Present(Version::new(300))),
        ];
        let mut encoder = Encoder::default();
        for (id, presence) in &entries {
            encoder.push(id, *presence);
        }
        let bytes = encoder.finish();
        let mut read = Vec::new();
        decode(&bytes, |id, presence| read.push((id, presence))).unwrap();
        assert_eq!(read, entries);
        for cut in 0..bytes.len() {
            // Every prefix is either a whole number of entries or an error; none panics.
            let _ = decode(&bytes[..cut], |_, _| {});
        }
        let mut garbage = bytes;
        for i in 0..garbage.len() {
            garbage[i] ^= 0xff;
            let _ = decode(&garbage, |_, _| {});
            garbage[i] ^= 0xff;
        }
        assert!(decode(&[], |_, _| {}).is_err());
    }

    #[test]
    fn fold_applies_in_order() {
        let a = id("t", &[Value::Int(1)]);
        let b = id("t", &[Value::Int(2)]);
        let mut first = Encoder::default();
        first.push(&a, Presence::Present(Version::new(1)));
        first.push(&b, Presence::Present(Version::new(1)));
        let mut second = Encoder::default();
        second.push(&a, Presence::Gone);
        second.push(&b, Presence::Present(Version::new(2)));
        let mut set = FxHashMap::default();
        fold(&first.finish(), &mut set).unwrap();
        fold(&second.finish(), &mut set).unwrap();
        assert_eq!(set.into_iter().collect::<Vec<_>>(), vec![(b, Version::new(2))]);
    }
}
