//! Transactions as bytes: a format version, then a string of length-checked fields.
//!
//! A transaction names each table description once; changes refer to it by number. Integers are variable-length (LEB128, signed
//! ones zigzag), text carries its length.

use std::sync::Arc;

use rows::schema::{ColumnSpec, IndexSpec};
use rows::transaction::{AddedColumn, Backfill, SchemaChange};
use rows::{Cell, Change, ColumnType, TableSpec, Transaction, Version};

/// Raised when the layout changes; older layouts are refused, which makes the reader start from a new copy.
const FORMAT: u8 = 1;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a stored transaction cannot be read: {0}")]
pub struct CodecError(&'static str);

type Result<T> = std::result::Result<T, CodecError>;

/// Appends one transaction.
pub fn encode(transaction: &Transaction, out: &mut Vec<u8>) {
    let mut writer = Writer { out, specs: Vec::new() };
    writer.out.push(FORMAT);
    writer.uint(transaction.version.as_u64());
    writer.int(transaction.commit_time_us);
    writer.uint(transaction.changes.len() as u64);
    for change in &transaction.changes {
        writer.change(change);
    }
}

/// Reads one transaction from the front of `bytes`, which is advanced past it.
pub fn decode(bytes: &mut &[u8]) -> Result<Transaction> {
    let mut reader = Reader { rest: bytes, specs: Vec::new() };
    if reader.u8()? != FORMAT {
        return Err(CodecError("it is of another format"));
    }
    let version = Version::new(reader.uint()?);
    let commit_time_us = reader.int()?;
    let changes = reader.list(Reader::change)?;
    *bytes = reader.rest;
    Ok(Transaction { version, commit_time_us, changes })
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// Descriptions written so far; a change refers to one by position, and position = length announces a new one.
    specs: Vec<Arc<TableSpec>>,
}

impl Writer<'_> {
    fn uint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.out.push((n as u8) | 0x80);
            n >>= 7;
        }
        self.out.push(n as u8);
    }

    fn int(&mut self, n: i64) {
        self.uint(((n << 1) ^ (n >> 63)) as u64);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.uint(bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    fn spec(&mut self, spec: &Arc<TableSpec>) {
        // The table of the previous change is the likeliest; pointers are enough, because a second copy only costs bytes.
        if let Some(known) = self.specs.iter().rposition(|s| Arc::ptr_eq(s, spec)) {
            return self.uint(known as u64);
        }
        self.uint(self.specs.len() as u64);
        self.specs.push(Arc::clone(spec));
        self.uint(u64::from(spec.oid));
        self.bytes(spec.schema.as_bytes());
        self.bytes(spec.name.as_bytes());
        self.uint(spec.columns.len() as u64);
        for column in &spec.columns {
            self.int(i64::from(column.attnum));
            self.bytes(column.name.as_bytes());
            self.uint(u64::from(column.type_oid));
            self.bytes(column.type_name.as_bytes());
            self.out.push(type_tag(column.ty));
            self.out.push(u8::from(column.not_null));
        }
        self.names(&spec.primary_key);
        self.names(&spec.identity);
        self.uint(spec.indexes.len() as u64);
        for index in &spec.indexes {
            self.bytes(index.name.as_bytes());
            self.out.push(u8::from(index.unique));
            self.uint(index.columns.len() as u64);
            for (name, descending) in &index.columns {
                self.bytes(name.as_bytes());
                self.out.push(u8::from(*descending));
            }
        }
    }

    fn names(&mut self, names: &[String]) {
        self.uint(names.len() as u64);
        for name in names {
            self.bytes(name.as_bytes());
        }
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Insert { table, new } => {
                self.out.push(0);
                self.spec(table);
                self.cells(new);
            }
            Change::Update { table, key: None, new } => {
                self.out.push(1);
                self.spec(table);
                self.cells(new);
            }
            Change::Update { table, key: Some(key), new } => {
                self.out.push(2);
                self.spec(table);
                self.cells(key);
                self.cells(new);
            }
            Change::Delete { table, key } => {
                self.out.push(3);
                self.spec(table);
                self.cells(key);
            }
            Change::Truncate { tables } => {
                self.out.push(4);
                self.uint(tables.len() as u64);
                for table in tables {
                    self.spec(table);
                }
            }
            Change::Schema(SchemaChange::CreateTable { table, rows }) => {
                self.out.push(5);
                self.spec(table);
                self.backfill(rows);
            }
            Change::Schema(SchemaChange::DropTable { table }) => {
                self.out.push(6);
                self.spec(table);
            }
            Change::Schema(SchemaChange::AlterTable { old, new, added, rows }) => {
                self.out.push(7);
                self.spec(old);
                self.spec(new);
                self.uint(added.len() as u64);
                for column in added {
                    self.bytes(column.name.as_bytes());
                    self.cell(&column.value);
                }
                self.backfill(rows);
            }
        }
    }

    fn backfill(&mut self, rows: &Backfill) {
        match rows {
            Backfill::None => self.out.push(0),
            Backfill::Rows(rows) => {
                self.out.push(1);
                self.uint(rows.len() as u64);
                for row in rows {
                    self.cells(row);
                }
            }
        }
    }

    fn cells(&mut self, cells: &[Cell]) {
        self.uint(cells.len() as u64);
        for cell in cells {
            self.cell(cell);
        }
    }

    #[inline]
    fn cell(&mut self, cell: &Cell) {
        match cell {
            Cell::Null => self.out.push(0),
            Cell::Bool(false) => self.out.push(1),
            Cell::Bool(true) => self.out.push(2),
            Cell::Int(n) => {
                self.out.push(3);
                self.int(*n);
            }
            Cell::Float(f) => {
                self.out.push(4);
                self.out.extend_from_slice(&f.to_le_bytes());
            }
            Cell::Text(text) => {
                self.out.push(5);
                self.bytes(text.as_bytes());
            }
            Cell::Bytes(bytes) => {
                self.out.push(6);
                self.bytes(bytes);
            }
            Cell::Unchanged => self.out.push(7),
        }
    }
}

fn type_tag(ty: ColumnType) -> u8 {
    match ty {
        ColumnType::Bool => 0,
        ColumnType::Int => 1,
        ColumnType::Float => 2,
        ColumnType::Str => 3,
        ColumnType::Json => 4,
        ColumnType::Hidden => 5,
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    specs: Vec<Arc<TableSpec>>,
}

const SHORT: CodecError = CodecError::SHORT;

impl CodecError {
    pub(crate) const SHORT: CodecError = CodecError("it ends too early");
}

impl<'a> Reader<'a> {
    #[inline]
    fn u8(&mut self) -> Result<u8> {
        let (&first, rest) = self.rest.split_first().ok_or(SHORT)?;
        self.rest = rest;
        Ok(first)
    }

    #[inline]
    fn uint(&mut self) -> Result<u64> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let b = self.u8()?;
            let bits = u64::from(b & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            n |= bits << shift;
            if b & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(CodecError("an integer exceeds 64 bits"))
    }

    fn int(&mut self) -> Result<i64> {
        let n = self.uint()?;
        Ok((n >> 1) as i64 ^ -((n & 1) as i64))
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(SHORT)?;
        self.rest = rest;
        Ok(head)
    }

    fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = usize::try_from(self.uint()?).map_err(|_| SHORT)?;
        self.take(length)
    }

    fn text(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| CodecError("text is not UTF-8"))
    }

    fn flag(&mut self) -> Result<bool> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError("a flag is neither 0 nor 1")),
        }
    }

    /// A counted list. Every item takes at least one byte, so a count beyond what is left is refused before anything is
    /// allocated for it.
    fn list<T>(&mut self, item: impl Fn(&mut Reader<'a>) -> Result<T>) -> Result<Vec<T>> {
        let count = usize::try_from(self.uint()?).ok().filter(|&n| n <= self.rest.len()).ok_or(SHORT)?;
        // Items are larger than their bytes; growing bounds the memory by what was really read.
        let mut items = Vec::with_capacity(count.min(4096));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn name(&mut self) -> Result<String> {
        self.text().map(str::to_owned)
    }

    fn spec(&mut self) -> Result<Arc<TableSpec>> {
        let position = usize::try_from(self.uint()?).map_err(|_| SHORT)?;
        if let Some(known) = self.specs.get(position) {
            return Ok(Arc::clone(known));
        }
        if position != self.specs.len() {
            return Err(CodecError("it refers to a table that it does not describe"));
        }
        let oid = u32::try_from(self.uint()?).map_err(|_| CodecError("an object id exceeds 32 bits"))?;
        let spec = Arc::new(TableSpec {
            oid,
            schema: self.name()?,
            name: self.name()?,
            columns: self.list(Reader::column)?,
            primary_key: self.list(Reader::name)?,
            identity: self.list(Reader::name)?,
            indexes: self.list(Reader::index)?,
        });
        self.specs.push(Arc::clone(&spec));
        Ok(spec)
    }

    fn column(&mut self) -> Result<ColumnSpec> {
        Ok(ColumnSpec {
            attnum: i16::try_from(self.int()?).map_err(|_| CodecError("a column number exceeds 16 bits"))?,
            name: self.name()?,
            type_oid: u32::try_from(self.uint()?).map_err(|_| CodecError("an object id exceeds 32 bits"))?,
            type_name: self.name()?,
            ty: match self.u8()? {
                0 => ColumnType::Bool,
                1 => ColumnType::Int,
                2 => ColumnType::Float,
                3 => ColumnType::Str,
                4 => ColumnType::Json,
                5 => ColumnType::Hidden,
                _ => return Err(CodecError("a column has an unknown type")),
            },
            not_null: self.flag()?,
        })
    }

    fn index(&mut self) -> Result<IndexSpec> {
        Ok(IndexSpec { name: self.name()?, unique: self.flag()?, columns: self.list(|r| Ok((r.name()?, r.flag()?)))? })
    }

    fn change(&mut self) -> Result<Change> {
        Ok(match self.u8()? {
            0 => Change::Insert { table: self.spec()?, new: self.cells()? },
            1 => Change::Update { table: self.spec()?, key: None, new: self.cells()? },
            2 => Change::Update { table: self.spec()?, key: Some(self.cells()?), new: self.cells()? },
            3 => Change::Delete { table: self.spec()?, key: self.cells()? },
            4 => Change::Truncate { tables: self.list(Reader::spec)? },
            5 => Change::Schema(SchemaChange::CreateTable { table: self.spec()?, rows: self.backfill()? }),
            6 => Change::Schema(SchemaChange::DropTable { table: self.spec()? }),
            7 => Change::Schema(SchemaChange::AlterTable {
                old: self.spec()?,
                new: self.spec()?,
                added: self.list(|r| Ok(AddedColumn { name: r.name()?, value: r.cell()? }))?,
                rows: self.backfill()?,
            }),
            _ => return Err(CodecError("a change is of an unknown kind")),
        })
    }

    fn backfill(&mut self) -> Result<Backfill> {
        if self.flag()? { Ok(Backfill::Rows(self.list(Reader::cells)?)) } else { Ok(Backfill::None) }
    }

    fn cells(&mut self) -> Result<Vec<Cell>> {
        self.list(Reader::cell)
    }

    #[inline]
    fn cell(&mut self) -> Result<Cell> {
        Ok(match self.u8()? {
            0 => Cell::Null,
            1 => Cell::Bool(false),
            2 => Cell::Bool(true),
            3 => Cell::Int(self.int()?),
            4 => {
                let bytes = self.take(8)?.first_chunk::<8>().ok_or(SHORT)?;
                Cell::Float(f64::from_le_bytes(*bytes))
            }
            5 => Cell::Text(self.text()?.into()),
            6 => Cell::Bytes(self.bytes()?.into()),
            7 => Cell::Unchanged,
            _ => return Err(CodecError("a cell is of an unknown kind")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn cell() -> impl Strategy<Value = Cell> {
        prop_oneof![
            Just(Cell::Null),
            Just(Cell::Unchanged),
            any::<bool>().prop_map(Cell::Bool),
            any::<i64>().prop_map(Cell::Int),
            any::<f64>().prop_map(Cell::Float),
            ".{0,20}".prop_map(|s| Cell::Text(s.into())),
            vec(any::<u8>(), 0..20).prop_map(|b| Cell::Bytes(b.into())),
        ]
    }

    fn spec() -> impl Strategy<Value = Arc<TableSpec>> {
        let ty = prop_oneof![
            Just(ColumnType::Bool),
            Just(ColumnType::Int),
            Just(ColumnType::Float),
            Just(ColumnType::Str),
            Just(ColumnType::Json),
            Just(ColumnType::Hidden)
        ];
        let column = (any::<i16>(), ".{0,9}", any::<u32>(), ".{0,9}", ty, any::<bool>()).prop_map(
            |(attnum, name, type_oid, type_name, ty, not_null)| ColumnSpec {
                attnum,
                name,
                type_oid,
                type_name,
                ty,
                not_null,
            },
        );
        let index = (".{0,9}", any::<bool>(), vec((".{0,9}", any::<bool>()), 0..3))
            .prop_map(|(name, unique, columns)| IndexSpec { name, unique, columns });
        (
            any::<u32>(),
            ".{0,9}",
            ".{0,9}",
            vec(column, 0..4),
            vec(".{0,9}", 0..3),
            vec(".{0,9}", 0..3),
            vec(index, 0..3),
        )
            .prop_map(|(oid, schema, name, columns, primary_key, identity, indexes)| {
                Arc::new(TableSpec { oid, schema, name, columns, primary_key, identity, indexes })
            })
    }

    fn change(tables: Vec<Arc<TableSpec>>) -> impl Strategy<Value = Change> {
        let table = proptest::sample::select(tables);
        let cells = || vec(cell(), 0..5);
        let backfill = prop_oneof![Just(Backfill::None), vec(cells(), 0..3).prop_map(Backfill::Rows)];
        let added = vec((".{0,9}", cell()).prop_map(|(name, value)| AddedColumn { name, value }), 0..3);
        (0..7_u8, table.clone(), table, cells(), proptest::option::of(cells()), backfill, added).prop_map(
            |(kind, table, other, new, key, rows, added)| match kind {
                0 => Change::Insert { table, new },
                1 => Change::Update { table, key, new },
                2 => Change::Delete { table, key: new },
                3 => Change::Truncate { tables: vec![table, other] },
                4 => Change::Schema(SchemaChange::CreateTable { table, rows }),
                5 => Change::Schema(SchemaChange::DropTable { table }),
                _ => Change::Schema(SchemaChange::AlterTable { old: table, new: other, added, rows }),
            },
        )
    }

    fn transaction() -> impl Strategy<Value = Transaction> {
        (any::<u64>(), any::<i64>(), vec(spec(), 1..4))
            .prop_flat_map(|(version, time, tables)| (Just(version), Just(time), vec(change(tables), 0..12)))
            .prop_map(|(version, commit_time_us, changes)| Transaction {
                version: Version::new(version),
                commit_time_us,
                changes,
            })
    }

    /// Debug form: cells hold doubles, and NaN differs from itself.
    fn printed(transaction: &Transaction) -> String {
        format!("{transaction:?}")
    }

    proptest! {
        #[test]
        fn transactions_round_trip(transactions in vec(transaction(), 1..3)) {
            let mut bytes = Vec::new();
            for transaction in &transactions {
                encode(transaction, &mut bytes);
            }
            let mut rest = bytes.as_slice();
            for transaction in &transactions {
                prop_assert_eq!(printed(&decode(&mut rest).unwrap()), printed(transaction));
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn truncated_bytes_are_refused(transaction in transaction()) {
            let mut bytes = Vec::new();
            encode(&transaction, &mut bytes);
            for end in 0..bytes.len() {
                prop_assert!(decode(&mut &bytes[..end]).is_err());
            }
        }

        #[test]
        fn spoiled_bytes_never_panic(transaction in transaction(), spoils in vec((any::<usize>(), any::<u8>()), 1..5)) {
            let mut bytes = Vec::new();
            encode(&transaction, &mut bytes);
            for (at, b) in spoils {
                let at = at % bytes.len();
                bytes[at] = b;
            }
            let _ = decode(&mut bytes.as_slice());
        }

        #[test]
        fn garbage_never_panics(mut bytes in vec(any::<u8>(), 0..100)) {
            let _ = decode(&mut bytes.as_slice());
            bytes.insert(0, FORMAT);
            let _ = decode(&mut bytes.as_slice());
        }
    }

    #[test]
    fn a_count_beyond_the_bytes_allocates_nothing() {
        let mut bytes = vec![FORMAT, 0, 0];
        bytes.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        assert_eq!(decode(&mut bytes.as_slice()).unwrap_err(), SHORT);
        assert_eq!(decode(&mut [9_u8, 0, 0, 0].as_slice()).unwrap_err(), CodecError("it is of another format"));
    }

    #[test]
    fn descriptions_are_shared_after_decoding() {
        let table = Arc::new(TableSpec {
            oid: 1,
            schema: "public".to_owned(),
            name: "t".to_owned(),
            columns: Vec::new(),
            primary_key: Vec::new(),
            identity: Vec::new(),
            indexes: Vec::new(),
        });
        let insert = || Change::Insert { table: Arc::clone(&table), new: vec![Cell::Int(1)] };
        let transaction =
            Transaction { version: Version::new(1), commit_time_us: 0, changes: vec![insert(), insert()] };
        let mut bytes = Vec::new();
        encode(&transaction, &mut bytes);
        let decoded = decode(&mut bytes.as_slice()).unwrap();
        let [Change::Insert { table: a, .. }, Change::Insert { table: b, .. }] = decoded.changes.as_slice() else {
            panic!()
        };
        assert!(Arc::ptr_eq(a, b));
    }
}
