//! Contents that the stream does not carry: a table that joined a publication with rows in it, a rewritten table, a default
//! that differs from row to row.
//!
//! A temporary slot gives a snapshot and its exact position S in the stream. The table is read under that snapshot and its contents
//! become part of the transaction C that wants them. Changes of the table that commit between C and S are in those contents
//! already, so they are skipped ([`Skipped`]); from S on the table equals upstream again. Between C and S it shows upstream's
//! future, which is a consistent state of that table.

use std::collections::BTreeSet;

use rows::transaction::{Backfill, SchemaChange};
use rows::{Cell, CellRef, Change, CopyBlock};

use crate::catalog::{Catalog, Published};
use crate::connect::{connect, quote_literal};
use crate::copy::schema_json;
use crate::copy_decode::TableCopy;
use crate::options::Options;
use crate::transaction::{Finished, Skipped, UNTIL_NEXT_SHAPE};
use crate::wire::Connection;
use crate::{Error, Result, slot};

/// Reads what `finished` wants and puts it into its schema changes. Returns the positions up to which the tables' changes are
/// to be skipped.
pub(crate) async fn complete(options: &Options, wanted: Vec<Published>, finished: &mut Finished) -> Result<Skipped> {
    let mut slot = slot::create_temporary(options, "zero-backfill-stream").await?;
    let position = slot.consistent_point.as_u64();
    let import = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; SET LOCAL statement_timeout = 0",
        quote_literal(&slot.snapshot)
    );
    let client = connect(&options.address, "zero-backfill-stream").await?;
    client.batch_execute(&import).await.map_err(|e| Error::statement("use the snapshot of a backfill", e))?;
    let mut reader = Connection::open(&options.address, "zero-backfill-stream", false).await?;
    reader.run(&import, "use the snapshot of a backfill").await?;
    let now = Catalog::parse(&schema_json(&client, options).await?)?;

    let mut skipped = Skipped::new();
    for table in wanted {
        let oid = table.spec.oid;
        let name = table.spec.wire_name();
        let same_shape = now.tables.get(&oid).is_some_and(|n| same_shape(&table, n));
        let rows = if same_shape {
            check_size(&client, options, &table).await?;
            tracing::info!(table = name, "reading the table's contents anew");
            skipped.insert(oid, position);
            read(&mut reader, &table).await?
        } else {
            // It changed again since; the contents come with that change.
            skipped.insert(oid, UNTIL_NEXT_SHAPE);
            Vec::new()
        };
        put(finished, &table, rows);
    }
    // Ends the temporary slot.
    slot.connection.run("SELECT 1", "end a backfill").await?;
    Ok(skipped)
}

fn same_shape(a: &Published, b: &Published) -> bool {
    a.spec.columns == b.spec.columns
        && a.spec.name == b.spec.name
        && a.spec.schema == b.spec.schema
        && a.filter == b.filter
        && a.partitions == b.partitions
}

async fn check_size(client: &tokio_postgres::Client, options: &Options, table: &Published) -> Result<()> {
    let row = client
        .query_one(
            "SELECT coalesce(sum(pg_table_size(l.leaf)), 0)::int8
             FROM (SELECT $1::int8::oid AS leaf UNION SELECT relid FROM pg_partition_tree($1::int8::oid::regclass)) l",
            &[&i64::from(table.spec.oid)],
        )
        .await
        .map_err(|e| Error::statement("read the size of a table", e))?;
    let bytes = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
    if bytes <= options.backfill_bytes_max {
        return Ok(());
    }
    Err(Error::reset(format!(
        "the schema change of table {} needs its contents anew, and its {} MiB are more than is read within the stream",
        table.spec.wire_name(),
        bytes >> 20
    )))
}

async fn read(connection: &mut Connection, table: &Published) -> Result<Vec<Vec<Cell>>> {
    let mut copy = TableCopy::start(connection, table, None).await?;
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
    if let Change::Schema(SchemaChange::CreateTable { rows, .. } | SchemaChange::AlterTable { rows, .. }) = &mut changes[last] {
        *rows = Backfill::Rows(contents);
    }
    let mut position = 0;
    changes.retain_mut(|change| {
        position += 1;
        if position - 1 <= last {
            return true;
        }
        match change {
            Change::Insert { table, .. } | Change::Update { table, .. } | Change::Delete { table, .. } => table.oid != oid,
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
        Published { spec: Arc::new(spec), columns: Vec::new(), filter: None, partitions: None }
    }

    #[test]
    fn contents_replace_the_changes_after_them() {
        let (a, b) = (published(1), published(2));
        let insert = |t: &Published| Change::Insert { table: Arc::clone(&t.spec), new: Vec::new() };
        let create = SchemaChange::CreateTable { table: Arc::clone(&a.spec), rows: Backfill::None };
        let truncate = Change::Truncate { tables: vec![Arc::clone(&a.spec), Arc::clone(&b.spec)] };
        let changes = vec![insert(&a), Change::Schema(create), insert(&a), insert(&b), truncate];
        let transaction = Transaction { version: Version::new(9), commit_time_us: 0, changes };
        let mut finished = Finished { transaction, bytes: 0, schema_changed: false, reread: BTreeSet::from([1]) };
        put(&mut finished, &a, vec![vec![Cell::Int(1)]]);
        let left: Vec<String> = finished
            .transaction
            .changes
            .iter()
            .map(|c| match c {
                Change::Insert { table, .. } => format!("insert {}", table.oid),
                Change::Truncate { tables } => format!("truncate {}", tables.len()),
                Change::Schema(SchemaChange::CreateTable { rows: Backfill::Rows(rows), .. }) => format!("create {}", rows.len()),
                _ => "other".to_owned(),
            })
            .collect();
        assert_eq!(left, ["insert 1", "create 1", "insert 2", "truncate 1"]);
    }
}
