//! A packed row: one shared allocation holding the version, an offset table and the cells.
//!
//! Layout (native endian, private to this file): `version: u64`, `columns: u32`, then one `u32` per column with the offset of
//! its cell from the start of the cell area, then the cells. A cell is a tag byte and its payload; text runs to the next
//! offset (or the end).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::value::{Value, ValueRef};
use crate::version::Version;

const TAG_NULL: u8 = 0;
const TAG_FALSE: u8 = 1;
const TAG_TRUE: u8 = 2;
const TAG_INT: u8 = 3;
const TAG_FLOAT: u8 = 4;
const TAG_STR: u8 = 5;
const TAG_JSON: u8 = 6;

const HEADER: usize = 12;

/// A row with the replica version that last wrote it. Cloning shares the allocation.
#[derive(Clone)]
pub struct Row(Arc<[u8]>);

impl Row {
    /// The replica version of the transaction that last wrote this row.
    #[must_use]
    pub fn version(&self) -> Version {
        Version::new(u64::from_ne_bytes(fixed(&self.0[..8])))
    }

    /// Number of columns.
    #[must_use]
    pub fn len(&self) -> usize {
        u32::from_ne_bytes(fixed(&self.0[8..HEADER])) as usize
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The cell of column `index`; panics when the index is out of range, which only a wrong schema can cause.
    #[must_use]
    pub fn get(&self, index: usize) -> ValueRef<'_> {
        read_cell(&self.0[HEADER..], self.len(), index)
    }

    pub fn iter(&self) -> impl Iterator<Item = ValueRef<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// The cells of `columns`, in that order, as a key.
    #[must_use]
    pub fn key(&self, columns: &[usize]) -> Key {
        // Cells are packed alike in rows and keys, so they are copied as bytes, into one allocation of the right size.
        let (area, count) = (&self.0[HEADER..], self.len());
        let size: usize = columns.iter().map(|&c| 4 + packed_cell(area, count, c).len()).sum();
        let mut bytes = Vec::with_capacity(4 + size);
        bytes.extend_from_slice(&column_count(columns.len()));
        let mut offset = 0_u32;
        for &column in columns {
            bytes.extend_from_slice(&offset.to_ne_bytes());
            offset += packed_cell(area, count, column).len() as u32;
        }
        for &column in columns {
            bytes.extend_from_slice(packed_cell(area, count, column));
        }
        Key(bytes.into_boxed_slice())
    }

    /// Whether the cell of column `index` is null.
    #[must_use]
    pub fn is_null(&self, index: usize) -> bool {
        packed_cell(&self.0[HEADER..], self.len(), index)[0] == TAG_NULL
    }

    /// Whether the cells (not the version) are equal.
    #[must_use]
    pub fn same_cells(&self, other: &Row) -> bool {
        self.0[8..] == other.0[8..]
    }

    /// Bytes held by this row.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A short packed tuple without a version: a primary key, a correlation key. Equal tuples of one column list have equal
/// bytes; `Hash`, `Eq` and `Ord` go by bytes (the order is only for determinism of containers, not the query order).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(Box<[u8]>);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0);
    }
}

impl Key {
    #[must_use]
    pub fn from_values(values: &[Value]) -> Key {
        let mut builder = RowBuilder::new(values.len());
        for value in values {
            builder.push(value.as_ref());
        }
        builder.finish_key()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        u32::from_ne_bytes(fixed(&self.0[..4])) as usize
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[must_use]
    pub fn get(&self, index: usize) -> ValueRef<'_> {
        read_cell(&self.0[4..], self.len(), index)
    }

    pub fn iter(&self) -> impl Iterator<Item = ValueRef<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// Whether any cell is null; such a key joins nothing.
    #[must_use]
    pub fn has_null(&self) -> bool {
        self.iter().any(ValueRef::is_null)
    }

    /// The packed bytes, for storage by the same build (native endian).
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Appends cells one by one, then freezes them.
#[derive(Debug)]
pub struct RowBuilder {
    /// Offset table followed by cells.
    bytes: Vec<u8>,
    columns: usize,
    pushed: usize,
}

impl RowBuilder {
    #[must_use]
    pub fn new(columns: usize) -> RowBuilder {
        let mut bytes = Vec::with_capacity(HEADER + columns * 16);
        bytes.resize(HEADER + columns * 4, 0);
        RowBuilder { bytes, columns, pushed: 0 }
    }

    pub fn push(&mut self, value: ValueRef<'_>) {
        debug_assert!(self.pushed < self.columns, "more cells than columns");
        let cells_start = HEADER + self.columns * 4;
        let offset = u32::try_from(self.bytes.len() - cells_start).unwrap_or(u32::MAX);
        let slot = HEADER + self.pushed * 4;
        self.bytes[slot..slot + 4].copy_from_slice(&offset.to_ne_bytes());
        self.pushed += 1;
        match value {
            ValueRef::Null => self.bytes.push(TAG_NULL),
            ValueRef::Bool(false) => self.bytes.push(TAG_FALSE),
            ValueRef::Bool(true) => self.bytes.push(TAG_TRUE),
            ValueRef::Int(i) => {
                self.bytes.push(TAG_INT);
                self.bytes.extend_from_slice(&i.to_ne_bytes());
            }
            ValueRef::Float(f) => {
                self.bytes.push(TAG_FLOAT);
                // One representation per number, so that equal cells have equal bytes.
                let f = if f == 0.0 {
                    0.0
                } else if f.is_nan() {
                    f64::NAN
                } else {
                    f
                };
                self.bytes.extend_from_slice(&f.to_ne_bytes());
            }
            ValueRef::Str(s) => {
                self.bytes.push(TAG_STR);
                self.bytes.extend_from_slice(s.as_bytes());
            }
            ValueRef::Json(s) => {
                self.bytes.push(TAG_JSON);
                self.bytes.extend_from_slice(s.as_bytes());
            }
        }
    }

    /// Freezes the cells into a row; every column must have been pushed.
    #[must_use]
    pub fn finish(mut self, version: Version) -> Row {
        assert_eq!(self.pushed, self.columns, "a row has a cell for every column");
        self.bytes[..8].copy_from_slice(&version.as_u64().to_ne_bytes());
        self.bytes[8..HEADER].copy_from_slice(&column_count(self.columns));
        Row(self.bytes.into())
    }

    #[must_use]
    pub fn finish_key(mut self) -> Key {
        assert_eq!(self.pushed, self.columns, "a key has a cell for every column");
        self.bytes[8..HEADER].copy_from_slice(&column_count(self.columns));
        Key(self.bytes[8..].into())
    }
}

fn column_count(columns: usize) -> [u8; 4] {
    // Postgres has at most 1,664 result columns.
    (columns as u32).to_ne_bytes()
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[..N]);
    out
}

/// The tag and payload of a cell. `area` starts with the offset table of `columns` entries.
fn packed_cell(area: &[u8], columns: usize, index: usize) -> &[u8] {
    assert!(index < columns, "column {index} of {columns}");
    let cells = &area[columns * 4..];
    let offset = |i: usize| u32::from_ne_bytes(fixed(&area[i * 4..])) as usize;
    let start = offset(index);
    let end = if index + 1 < columns { offset(index + 1) } else { cells.len() };
    &cells[start..end]
}

fn read_cell(area: &[u8], columns: usize, index: usize) -> ValueRef<'_> {
    let cell = packed_cell(area, columns, index);
    let payload = &cell[1..];
    match cell[0] {
        TAG_NULL => ValueRef::Null,
        TAG_FALSE => ValueRef::Bool(false),
        TAG_TRUE => ValueRef::Bool(true),
        TAG_INT => ValueRef::Int(i64::from_ne_bytes(fixed(payload))),
        TAG_FLOAT => ValueRef::Float(f64::from_ne_bytes(fixed(payload))),
        TAG_STR => ValueRef::Str(text(payload)),
        _ => ValueRef::Json(text(payload)),
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("cells are only built from str")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[ValueRef<'_>], version: u64) -> Row {
        let mut b = RowBuilder::new(values.len());
        for &v in values {
            b.push(v);
        }
        b.finish(Version::new(version))
    }

    #[test]
    fn every_kind_of_cell_round_trips() {
        let cells = [
            ValueRef::Null,
            ValueRef::Bool(true),
            ValueRef::Bool(false),
            ValueRef::Int(i64::MIN),
            ValueRef::Float(1.5),
            ValueRef::Str("žluť"),
            ValueRef::Str(""),
            ValueRef::Json("{\"a\":1}"),
        ];
        let r = row(&cells, 77);
        assert_eq!(r.version().as_u64(), 77);
        assert_eq!(r.iter().collect::<Vec<_>>(), cells);
    }

    #[test]
    fn keys_compare_by_content() {
        let a = row(&[ValueRef::Int(1), ValueRef::Str("x"), ValueRef::Float(-0.0)], 1);
        let b = row(&[ValueRef::Int(1), ValueRef::Str("x"), ValueRef::Float(0.0)], 2);
        assert_eq!(a.key(&[2, 1]), b.key(&[2, 1]));
        assert!(a.same_cells(&b));
        assert_ne!(a.key(&[0]), a.key(&[1]));
        // Keys of rows and keys of values are the same thing.
        for columns in [&[2, 1][..], &[0, 1, 2], &[1], &[]] {
            let values: Vec<Value> = columns.iter().map(|&c| a.get(c).to_owned()).collect();
            assert_eq!(a.key(columns), Key::from_values(&values));
        }
        assert!(row(&[ValueRef::Null], 0).key(&[0]).has_null());
        assert!(row(&[ValueRef::Null], 0).is_null(0) && !a.is_null(1));
    }
}
