//! Contents that the stream does not carry: a table that joined a publication with rows in it, a rewritten table, a default
//! that differs from row to row.
//!
//! A temporary slot gives a snapshot and its exact position S in the stream. The table is read under that snapshot and its contents
//! become part of the transaction C that wants them. Changes of the table that commit between C and S are in those contents
//! already, so they are skipped ([`Skipped`]); from S on the table equals upstream again. Between C and S it shows upstream's
//! future, which is a consistent state of that table.

use std::collections::BTreeSet;
use std::time::Duration;

use rows::transaction::{Backfill, SchemaChange};
use rows::{Cell, CellRef, Change, CopyBlock};

use crate::catalog::{Catalog, Published};
use crate::connect::{quote_identifier, quote_literal};
use crate::copy_decode::TableCopy;
use crate::options::Options;
use crate::transaction::{Finished, Skipped, UNTIL_NEXT_SHAPE};
use crate::wire::Connection;
use crate::{Error, Result, slot};

/// How long a lock is waited for. Below `deadlock_timeout`, so that in a deadlock it is us who give up, never a user's statement.
const LOCK_TIMEOUT_MS: u32 = 500;
const ATTEMPTS: u32 = 100;

/// Reads what `finished` wants and puts it into its schema changes. Returns the positions up to which the tables' changes are
/// to be skipped.
pub(crate) async fn complete(options: &Options, wanted: Vec<Published>, finished: &mut Finished) -> Result<Skipped> {
    for attempt in 1..=ATTEMPTS {
        let Some((contents, skipped)) = attempt_all(options, &wanted).await? else {
            tracing::debug!(attempt, "a table to be read anew is locked");
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        };
        for (table, rows) in wanted.iter().zip(contents) {
            put(finished, table, rows);
        }
        return Ok(skipped);
    }
    Err(Error::transient("a table whose contents must be read anew stays locked by another transaction (see pg_locks)"))
}

/// `None` if some table is locked; nothing is locked by us then.
async fn attempt_all(options: &Options, wanted: &[Published]) -> Result<Option<(Vec<Vec<Vec<Cell>>>, Skipped)>> {
    let mut slot = slot::create_temporary(options, "zero-backfill-stream").await?;
    let position = slot.consistent_point.as_u64();
    let mut reader = Connection::open(&options.address, "zero-backfill-stream", false).await?;
    let import = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; \
         SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}",
        quote_literal(&slot.snapshot)
    );
    reader.run(&import, "use the snapshot of a backfill").await?;
    // Outside of the snapshot: sees the schema as it is.
    let mut present = Connection::open(&options.address, "zero-backfill-stream", false).await?;

    let mut contents = Vec::with_capacity(wanted.len());
    let mut skipped = Skipped::new();
    for table in wanted {
        let rows = match keep_shape(&mut reader, &mut present, table).await? {
            Shape::Busy => return Ok(None),
            Shape::Wanted => {
                check_size(&mut reader, options, table).await?;
                tracing::info!(table = table.spec.wire_name(), "reading the table's contents anew");
                skipped.insert(table.spec.oid, position);
                read(&mut reader, options, table).await?
            }
            Shape::Other => {
                skipped.insert(table.spec.oid, UNTIL_NEXT_SHAPE);
                Vec::new()
            }
        };
        contents.push(rows);
    }
    // Ends the temporary slot.
    slot.connection.run("SELECT 1", "end a backfill").await?;
    Ok(Some((contents, skipped)))
}

enum Shape {
    /// As wanted, and locked against schema changes for the rest of the reader's transaction.
    Wanted,
    /// It changed again since; the contents come with that change.
    Other,
    /// Somebody holds a lock on it.
    Busy,
}

const LOCK_NOT_AVAILABLE: &str = "55P03";
const DEADLOCK: &str = "40P01";

/// Compares the shape under the snapshot, and the present one, with the wanted one. Reads only the catalogs, which needs no
/// lock on any table.
async fn keep_shape(reader: &mut Connection, present: &mut Connection, table: &Published) -> Result<Shape> {
    let lock = format!(
        "SAVEPOINT shape; LOCK TABLE {}.{} IN ACCESS SHARE MODE",
        quote_identifier(&table.spec.schema),
        quote_identifier(&table.spec.name)
    );
    if let Err(error) = reader.query(&lock).await? {
        if error.code == LOCK_NOT_AVAILABLE || error.code == DEADLOCK {
            return Ok(Shape::Busy);
        }
        // Under this name there is nothing now.
        reader.run("ROLLBACK TO SAVEPOINT shape", "go on with a backfill").await?;
        return Ok(Shape::Other);
    }
    let numbers: Vec<String> = table.spec.columns.iter().map(|c| c.attnum.to_string()).collect();
    let shape = format!(
        "SELECT n.nspname, c.relname, c.relnatts, a.attnum, a.attname, a.atttypid
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
         WHERE c.oid = {} AND NOT a.attisdropped AND a.attnum IN ({}) ORDER BY a.attnum",
        table.spec.oid,
        numbers.join(", ")
    );
    let wanted: Vec<Vec<Option<String>>> = table
        .spec
        .columns
        .iter()
        .map(|c| {
            [
                table.spec.schema.clone(),
                table.spec.name.clone(),
                table.attributes.to_string(),
                c.attnum.to_string(),
                c.name.clone(),
                c.type_oid.to_string(),
            ]
            .map(Some)
            .to_vec()
        })
        .collect();
    let doing = "read the shape of a table";
    let same = reader.run(&shape, doing).await? == wanted && present.run(&shape, doing).await? == wanted;
    Ok(if same { Shape::Wanted } else { Shape::Other })
}

async fn check_size(connection: &mut Connection, options: &Options, table: &Published) -> Result<()> {
    let sql = format!(
        "SELECT coalesce(sum(pg_table_size(l.leaf)), 0)::int8
         FROM (SELECT {0}::oid AS leaf UNION SELECT relid FROM pg_partition_tree({0}::oid::regclass)) l",
        table.spec.oid
    );
    let rows = connection.run(&sql, "read the size of a table").await?;
    let bytes: u64 =
        rows.first().and_then(|r| r.first()).and_then(Option::as_deref).and_then(|t| t.parse().ok()).unwrap_or(0);
    if bytes <= options.backfill_bytes_max {
        return Ok(());
    }
    Err(Error::reset(format!(
        "the schema change of table {} needs its contents anew, and its {} MiB are more than is read within the stream",
        table.spec.wire_name(),
        bytes >> 20
    )))
}

async fn read(connection: &mut Connection, options: &Options, table: &Published) -> Result<Vec<Vec<Cell>>> {
    let mut copy = TableCopy::start(connection, table, None, options.row_bytes_max).await?;
    let mut rows = Vec::new();
    while let Some(block) = copy.next().await? {
        rows.extend((0..block.row_count()).map(|row| owned(&block, row)));
    }
    Ok(rows)
}

fn owned(block: &CopyBlock, row: usize) -> Vec<Cell> {
    (0..block.column_count())
        .map(|column| match block.cell(row, column) {
            CellRef::Null => Cell::Null,
            CellRef::Bool(b) => Cell::Bool(b),
            CellRef::Int(i) => Cell::Int(i),
            CellRef::Float(f) => Cell::Float(f),
            CellRef::Text(s) => Cell::Text(s.into()),
            CellRef::Bytes(b) => Cell::Bytes(b.into()),
        })
        .collect()
}

/// Puts contents into the last schema change of the table and drops the table's changes after it, which they include.
fn put(finished: &mut Finished, table: &Published, contents: Vec<Vec<Cell>>) {
    let oid = table.spec.oid;
    let changes = &mut finished.transaction.changes;
    let last = changes.iter().rposition(|c| match c {
        Change::Schema(SchemaChange::CreateTable { table, .. }) => table.oid == oid,
        Change::Schema(SchemaChange::AlterTable { new, .. }) => new.oid == oid,
        _ => false,
    });
    let Some(last) = last else { return };
    if let Change::Schema(SchemaChange::CreateTable { rows, .. } | SchemaChange::AlterTable { rows, .. }) =
        &mut changes[last]
    {
        *rows = Backfill::Rows(contents);
    }
    let mut position = 0;
    changes.retain_mut(|change| {
        position += 1;
        if position - 1 <= last {
            return true;
        }
        match change {
            Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => {
                table.oid != oid
            }
            Change::Truncate { tables } => {
                tables.retain(|t| t.oid != oid);
                !tables.is_empty()
            }
            Change::Schema(_) => true,
        }
    });
}

/// The present descriptions of the tables that `finished` wants.
pub(crate) fn wanted(catalog: &Catalog, reread: &BTreeSet<u32>) -> Vec<Published> {
    reread.iter().filter_map(|oid| catalog.tables.get(oid)).map(Published::clone).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use rows::{TableSpec, Transaction, Version};

    fn published(oid: u32) -> Published {
        let spec = TableSpec {
            oid,
            schema: "public".to_owned(),
            name: format!("t{oid}"),
            columns: Vec::new(),
            primary_key: Vec::new(),
            identity: Vec::new(),
            indexes: Vec::new(),
        };
        Published { spec: Arc::new(spec), columns: Vec::new(), filter: None, attributes: 0, partitions: None }
    }

    #[test]
    fn contents_replace_the_changes_after_them() {
        let (a, b) = (published(1), published(2));
        let insert = |t: &Published| Change::Insert { table: Arc::clone(&t.spec), new: Vec::new() };
        let create = SchemaChange::CreateTable { table: Arc::clone(&a.spec), rows: Backfill::None };
        let truncate = Change::Truncate { tables: vec![Arc::clone(&a.spec), Arc::clone(&b.spec)] };
        let changes = vec![insert(&a), Change::Schema(create), insert(&a), insert(&b), truncate];
        let transaction = Transaction { version: Version::new(9), commit_time_us: 0, changes };
        let mut finished = Finished { transaction, bytes: 0, described: BTreeSet::new(), reread: BTreeSet::from([1]) };
        put(&mut finished, &a, vec![vec![Cell::Int(1)]]);
        let left: Vec<String> = finished
            .transaction
            .changes
            .iter()
            .map(|c| match c {
                Change::Insert { table, .. } => format!("insert {}", table.oid),
                Change::Truncate { tables } => format!("truncate {}", tables.len()),
                Change::Schema(SchemaChange::CreateTable { rows: Backfill::Rows(rows), .. }) => {
                    format!("create {}", rows.len())
                }
                _ => "other".to_owned(),
            })
            .collect();
        assert_eq!(left, ["insert 1", "create 1", "insert 2", "truncate 1"]);
    }
}
