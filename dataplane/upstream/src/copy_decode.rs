//! `COPY ... TO STDOUT (FORMAT binary)` of one table, as blocks of cells.

use std::collections::BTreeSet;

use rows::CopyBlock;

use crate::catalog::Published;
use crate::connect::quote_identifier;
use crate::decode::{Kind, Scalar, binary};
use crate::limit::{Limit, Place};
use crate::reader::{Malformed, Reader};
use crate::wire::{Connection, parse_error};
use crate::{Error, Result};

/// A block is handed over at this many rows or bytes of text, whichever comes first: small enough to keep memory low, large
/// enough that the hand-over costs nothing.
const BLOCK_ROWS: usize = 2000;
const BLOCK_BYTES: usize = 1 << 20;

/// A range of pages; `None` as end reads to the end of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pages {
    pub start: u64,
    pub end: Option<u64>,
}

/// The statement that reads a table, or a range of its pages.
pub(crate) fn statement(table: &Published, pages: Option<Pages>) -> String {
    let columns: Vec<String> =
        table.spec.columns.iter().zip(&table.columns).map(|(c, d)| selected(&c.name, d.kind)).collect();
    let mut conditions = Vec::new();
    if let Some(Pages { start, end }) = pages {
        conditions.push(format!("ctid >= '({start},0)'::tid"));
        if let Some(end) = end {
            conditions.push(format!("ctid < '({end},0)'::tid"));
        }
    }
    if let Some(filter) = &table.filter {
        conditions.push(format!("({filter})"));
    }
    let filter = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    // The children of an inheritance parent are tables of their own; those of a partitioned table are not.
    let only = if table.partitions.is_some() { "" } else { "ONLY " };
    format!(
        "COPY (SELECT {} FROM {only}{}.{}{filter}) TO STDOUT (FORMAT binary)",
        columns.join(", "),
        quote_identifier(&table.spec.schema),
        quote_identifier(&table.spec.name),
    )
}

/// A cast to text is not what Postgres prints for some types (inet, "char"); `format` is. Plain `IS NULL` would be true for
/// a row value of nulls.
fn selected(name: &str, kind: Kind) -> String {
    let column = quote_identifier(name);
    match kind {
        Kind::Array { .. } | Kind::Scalar(Scalar::Printed) => {
            format!("CASE WHEN {column} IS DISTINCT FROM NULL THEN format('%s', {column}) END")
        }
        Kind::Scalar(_) => column,
    }
}

/// One running COPY.
pub(crate) struct TableCopy<'a> {
    connection: &'a mut Connection,
    table: String,
    rows: RowDecoder,
    ended: bool,
}

impl<'a> TableCopy<'a> {
    pub(crate) async fn start(
        connection: &'a mut Connection,
        table: &Published,
        pages: Option<Pages>,
        row_bytes_max: usize,
    ) -> Result<TableCopy<'a>> {
        connection.send_query(&statement(table, pages)).await?;
        Ok(TableCopy {
            connection,
            table: format!("{}.{}", table.spec.schema, table.spec.name),
            rows: RowDecoder::new(table, row_bytes_max),
            ended: false,
        })
    }

    /// The next rows; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<CopyBlock>> {
        if self.ended {
            return Ok(None);
        }
        let mut block = CopyBlock::new(self.rows.kinds.len());
        loop {
            let frame = self.connection.frame().await?;
            match frame.tag {
                b'd' => {
                    self.rows
                        .message(frame.body, &mut block)
                        .map_err(|e| e.within(format!("the copy of {}", self.table)))?;
                    if block.row_count() >= BLOCK_ROWS || block.byte_count() >= BLOCK_BYTES {
                        return Ok(Some(block));
                    }
                }
                b'E' => return Err(Error::response(&format!("copy table {}", self.table), &parse_error(frame.body))),
                b'Z' => {
                    self.ended = true;
                    return Ok((block.row_count() > 0).then_some(block));
                }
                _ => {}
            }
        }
    }
}

struct RowDecoder {
    kinds: Vec<Kind>,
    names: Vec<String>,
    limit: Limit,
    header_read: bool,
    scratch: Vec<u8>,
    table: String,
    /// Columns whose values made rows be left out.
    left_out: BTreeSet<usize>,
}

/// Once for each column of a reading: the values themselves are not for the log.
fn tell_left_out(left_out: &mut BTreeSet<usize>, table: &str, names: &[String], column: usize, reason: &Malformed) {
    if left_out.insert(column) {
        let (column, remedy) = (&names[column], fault::path::UNREADABLE.remedy);
        tracing::warn!(table, column, %reason, remedy, "rows with a value that cannot be represented are left out");
    }
}

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

impl RowDecoder {
    fn new(table: &Published, row_bytes_max: usize) -> RowDecoder {
        RowDecoder {
            kinds: table.columns.iter().map(|c| c.kind).collect(),
            names: table.spec.columns.iter().map(|c| c.name.clone()).collect(),
            limit: Limit::new(table, row_bytes_max, Place::default()),
            header_read: false,
            scratch: Vec::new(),
            table: table.spec.wire_name(),
            left_out: BTreeSet::new(),
        }
    }

    /// Reads one CopyData message, which holds whole rows.
    fn message(&mut self, body: &[u8], block: &mut CopyBlock) -> std::result::Result<(), Malformed> {
        let mut r = Reader::new(body);
        if !self.header_read {
            if r.bytes(SIGNATURE.len())? != SIGNATURE {
                return Err(Malformed::new("the signature of binary COPY is missing"));
            }
            r.u32()?;
            let extension = r.u32()? as usize;
            r.bytes(extension)?;
            self.header_read = true;
        }
        while !r.is_empty() {
            let count = r.i16()?;
            if count == -1 {
                return Ok(());
            }
            if usize::try_from(count) != Ok(self.kinds.len()) {
                return Err(Malformed::new(format!("a row has {count} columns instead of {}", self.kinds.len())));
            }
            let mut is_left_out = false;
            let mut room = self.limit.row();
            for (column, kind) in self.kinds.iter().enumerate() {
                let Ok(length) = usize::try_from(r.i32()?) else {
                    block.push(rows::CellRef::Null);
                    continue;
                };
                let bytes = r.bytes(length)?;
                if !self.limit.admits(&mut room, column, length) {
                    block.push(self.limit.stand_in(column, length));
                    continue;
                }
                let read = binary::value(*kind, bytes, &mut self.scratch, &mut |cell| block.push(cell));
                if let Err(reason) = read {
                    // The other columns keep their places until the row is taken back.
                    block.push(rows::CellRef::Null);
                    is_left_out = true;
                    tell_left_out(&mut self.left_out, &self.table, &self.names, column, &reason);
                }
            }
            if is_left_out {
                block.take_back();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use proptest::prelude::*;
    use rows::CellRef;

    fn table(filter: &str) -> Published {
        let json = format!(
            r#"{{"tables":[{{"oid":7,"schema":"public","name":"t","identity":"d","attributes":1,"conflict":false,"filter":{filter},"partitions":null,
            "columns":[{{"attnum":1,"name":"id","typeOid":23,"type":"int4","class":"b","element":null,"dimensions":0,
                        "notNull":true,"filled":false,"missing":null,"labels":null}},
                       {{"attnum":2,"name":"a\".b","typeOid":25,"type":"text","class":"b","element":null,"dimensions":0,
                        "notNull":true,"filled":false,"missing":null,"labels":null}}],"indexes":[]}}]}}"#
        );
        let json = json.replace("a\\\".b", "ab");
        Catalog::parse(&json).unwrap().tables.remove(&7).unwrap()
    }

    #[test]
    fn statements_respect_filters_and_pages() {
        assert_eq!(
            statement(&table("null"), None),
            "COPY (SELECT \"id\", \"ab\" FROM ONLY \"public\".\"t\") TO STDOUT (FORMAT binary)"
        );
        assert_eq!(
            statement(&table("\"(id > 1) OR (id < 0)\""), Some(Pages { start: 5, end: Some(9) })),
            "COPY (SELECT \"id\", \"ab\" FROM ONLY \"public\".\"t\" WHERE ctid >= '(5,0)'::tid AND ctid < '(9,0)'::tid AND ((id > 1) OR (id < 0))) TO STDOUT (FORMAT binary)"
        );
    }

    fn message() -> Vec<u8> {
        let mut m = SIGNATURE.to_vec();
        m.extend([0; 8]);
        m.extend([0, 2, 0, 0, 0, 4, 0, 0, 0, 9, 0, 0, 0, 1, b'x']);
        m.extend([0, 2, 0, 0, 0, 4, 0, 0, 0, 8, 255, 255, 255, 255]);
        m.extend([255, 255]);
        m
    }

    #[test]
    fn rows_are_read() {
        let mut block = CopyBlock::new(2);
        RowDecoder::new(&table("null"), usize::MAX).message(&message(), &mut block).unwrap();
        assert_eq!(block.row_count(), 2);
        assert_eq!(block.cell(0, 0), CellRef::Int(9));
        assert_eq!(block.cell(0, 1), CellRef::Text("x"));
        assert_eq!(block.cell(1, 1), CellRef::Null);
    }

    #[test]
    fn a_row_with_an_unreadable_value_is_left_out() {
        let mut m = message();
        let at = m.iter().position(|b| *b == b'x').unwrap();
        m[at] = 0xff;
        let mut block = CopyBlock::new(2);
        RowDecoder::new(&table("null"), usize::MAX).message(&m, &mut block).unwrap();
        assert_eq!(block.row_count(), 1);
        assert_eq!((block.cell(0, 0), block.cell(0, 1)), (CellRef::Int(8), CellRef::Null));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(at in 0..40_usize, b in any::<u8>(), end in 0..50_usize) {
            let mut m = message();
            let length = m.len();
            m[at % length] ^= b;
            m.truncate(end.min(length));
            let _ = RowDecoder::new(&table("null"), usize::MAX).message(&m, &mut CopyBlock::new(2));
        }
    }
}
