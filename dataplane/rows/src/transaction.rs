//! One upstream transaction, decoded: what replication hands to the change log and to the replica.

use std::sync::Arc;

use crate::schema::TableSpec;
use crate::version::Version;

/// A cell of the replication stream, one per replicated column (hidden ones included), in `attnum` order.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Text of `Str`, `Json` and of hidden types that have no binary form.
    Text(Box<str>),
    /// bytea
    Bytes(Box<[u8]>),
    /// An unchanged TOASTed value: keep what the replica has.
    Unchanged,
}

/// A whole upstream transaction.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Commit LSN.
    pub version: Version,
    /// Commit time upstream, microseconds since the Unix epoch.
    pub commit_time_us: i64,
    pub changes: Vec<Change>,
}

/// One change, in the order upstream made it.
#[derive(Clone, Debug)]
pub enum Change {
    Insert {
        table: Arc<TableSpec>,
        new: Vec<Cell>,
    },
    /// `key` is the old identity (cells in the order of `TableSpec::identity`), sent only if the identity changed or is FULL.
    Update {
        table: Arc<TableSpec>,
        key: Option<Vec<Cell>>,
        new: Vec<Cell>,
    },
    /// `key`: cells in the order of `TableSpec::identity`.
    Delete {
        table: Arc<TableSpec>,
        key: Vec<Cell>,
    },
    Truncate {
        tables: Vec<Arc<TableSpec>>,
    },
    Schema(SchemaChange),
}

/// A change of what is published. Data changes after it in the stream use the new spec.
#[derive(Clone, Debug)]
pub enum SchemaChange {
    /// A new, empty table (rows follow as inserts), or a table that joined the publication, whose present rows are
    /// `backfill` (wanted by the receiver before it shows the table).
    CreateTable {
        table: Arc<TableSpec>,
        rows: Backfill,
    },
    DropTable {
        table: Arc<TableSpec>,
    },
    /// Renames, added, dropped and retyped columns, changed keys and indexes: everything between two specs of one oid.
    /// Columns are matched by `attnum`. `rows`: new contents of the whole table where old contents cannot be derived
    /// (a default that is not a constant, a rewritten type).
    AlterTable {
        old: Arc<TableSpec>,
        new: Arc<TableSpec>,
        added: Vec<AddedColumn>,
        rows: Backfill,
    },
}

/// The value that existing rows have in a column that was just added.
#[derive(Clone, Debug, PartialEq)]
pub struct AddedColumn {
    pub name: String,
    pub value: Cell,
}

/// Rows read from upstream to complete a schema change, consistent with the transaction that carries it.
#[derive(Clone, Debug, Default)]
pub enum Backfill {
    /// Nothing to read.
    #[default]
    None,
    /// The complete contents of the table (cells of every replicated column, `attnum` order), replacing what is there.
    Rows(Vec<Vec<Cell>>),
}

/// A borrowed cell of a [`CopyBlock`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CellRef<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl From<CellRef<'_>> for Cell {
    fn from(cell: CellRef<'_>) -> Cell {
        match cell {
            CellRef::Null => Cell::Null,
            CellRef::Bool(b) => Cell::Bool(b),
            CellRef::Int(i) => Cell::Int(i),
            CellRef::Float(f) => Cell::Float(f),
            CellRef::Text(s) => Cell::Text(s.into()),
            CellRef::Bytes(b) => Cell::Bytes(b.into()),
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum BlockCell {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(u32, u32),
    Bytes(u32, u32),
}

/// Many rows of one table in two allocations: what the initial copy hands over. The builder flushes by size, so that offsets
/// fit 32 bits.
#[derive(Debug)]
pub struct CopyBlock {
    columns: usize,
    cells: Vec<BlockCell>,
    bytes: Vec<u8>,
}

impl CopyBlock {
    #[must_use]
    pub fn new(columns: usize) -> CopyBlock {
        assert!(columns > 0, "a copied table has columns");
        CopyBlock { columns, cells: Vec::new(), bytes: Vec::new() }
    }

    /// Appends the next cell in row-major order.
    pub fn push(&mut self, cell: CellRef<'_>) {
        let cell = match cell {
            CellRef::Null => BlockCell::Null,
            CellRef::Bool(b) => BlockCell::Bool(b),
            CellRef::Int(i) => BlockCell::Int(i),
            CellRef::Float(f) => BlockCell::Float(f),
            CellRef::Text(s) => {
                let (at, len) = self.append(s.as_bytes());
                BlockCell::Text(at, len)
            }
            CellRef::Bytes(b) => {
                let (at, len) = self.append(b);
                BlockCell::Bytes(at, len)
            }
        };
        self.cells.push(cell);
    }

    /// Removes the last row, whose cells have all been pushed.
    pub fn take_back(&mut self) {
        self.cells.truncate(self.cells.len().saturating_sub(self.columns));
    }

    fn append(&mut self, bytes: &[u8]) -> (u32, u32) {
        let at = u32::try_from(self.bytes.len()).expect("blocks are flushed long before 4 GiB");
        self.bytes.extend_from_slice(bytes);
        (at, u32::try_from(bytes.len()).expect("a Postgres value is below 1 GiB"))
    }

    #[must_use]
    pub fn row_count(&self) -> usize {
        self.cells.len() / self.columns
    }

    /// Bytes of text and blobs held; the builder flushes on this.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        self.bytes.len()
    }

    #[must_use]
    pub fn column_count(&self) -> usize {
        self.columns
    }

    #[must_use]
    pub fn cell(&self, row: usize, column: usize) -> CellRef<'_> {
        match self.cells[row * self.columns + column] {
            BlockCell::Null => CellRef::Null,
            BlockCell::Bool(b) => CellRef::Bool(b),
            BlockCell::Int(i) => CellRef::Int(i),
            BlockCell::Float(f) => CellRef::Float(f),
            BlockCell::Text(at, len) => CellRef::Text(
                std::str::from_utf8(&self.bytes[at as usize..(at + len) as usize]).expect("pushed as str"),
            ),
            BlockCell::Bytes(at, len) => CellRef::Bytes(&self.bytes[at as usize..(at + len) as usize]),
        }
    }
}
