//! Shapes and helpers that the tests share.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ivm::filter::Filter;
use ivm::source::{ScanArgs, ScanPlan, Source};
use replica::{Description, Identity, Loader, Opened, Replica};
use rows::schema::{ColumnSpec, IndexSpec};
use rows::{ColumnType, CopyBlock, Direction, Key, Row, SortKey, Table, TableSpec, Transaction, Version};

pub fn identity() -> Identity {
    Identity { app: "zero".into(), shard: 0 }
}

pub fn description() -> Description {
    Description {
        identity: identity(),
        replica_id: "copy-1".into(),
        slot: "zero_0_1".into(),
        initial_version: Version::ZERO,
    }
}

pub fn column(attnum: i16, name: &str, ty: ColumnType, not_null: bool) -> ColumnSpec {
    let type_name = match ty {
        ColumnType::Bool => "bool",
        ColumnType::Int => "int8",
        ColumnType::Float => "float8",
        ColumnType::Str => "text",
        ColumnType::Json => "jsonb",
        ColumnType::Hidden => "bytea",
    };
    ColumnSpec { attnum, name: name.into(), type_oid: 25, type_name: type_name.into(), ty, not_null }
}

pub fn index(name: &str, unique: bool, columns: &[&str]) -> IndexSpec {
    IndexSpec { name: name.into(), unique, columns: columns.iter().map(|c| ((*c).to_owned(), false)).collect() }
}

/// A table with a primary key, its index, and further indexes.
pub fn table(oid: u32, name: &str, columns: Vec<ColumnSpec>, key: &[&str], indexes: Vec<IndexSpec>) -> TableSpec {
    let names: Vec<String> = key.iter().map(|c| (*c).to_owned()).collect();
    let mut all = vec![index(&format!("{name}_pkey"), true, key)];
    all.extend(indexes);
    TableSpec {
        oid,
        schema: "public".into(),
        name: name.into(),
        columns,
        primary_key: names.clone(),
        identity: names,
        indexes: all,
    }
}

/// An empty replica of these tables at version 1.
pub fn create(path: &Path, specs: &[Arc<TableSpec>]) -> Replica {
    load(path, specs, &[])
}

pub fn load(path: &Path, specs: &[Arc<TableSpec>], blocks: &[(usize, CopyBlock)]) -> Replica {
    let mut loader = Loader::create(path, description(), specs.to_vec()).unwrap();
    for (at, block) in blocks {
        loader.block(*at, block).unwrap();
    }
    loader.finish(Version::new(1)).unwrap();
    open(path)
}

pub fn open(path: &Path) -> Replica {
    match Replica::open(path, &identity()).unwrap() {
        Opened::Usable(replica) => replica,
        Opened::Missing => panic!("the replica is missing"),
    }
}

pub fn transaction(version: u64, changes: Vec<rows::Change>) -> Transaction {
    Transaction { version: Version::new(version), commit_time_us: version as i64 * 10, changes }
}

pub fn plan(table: &Arc<Table>, filter: Filter, order: Vec<(usize, Direction)>) -> ScanPlan {
    static NEXT: AtomicU64 = AtomicU64::new(1 << 40);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    ScanPlan { id, table: Arc::clone(table), constraint: Vec::new(), filter, order: SortKey(order), start: None }
}

pub fn everything(table: &Arc<Table>) -> ScanPlan {
    plan(table, Filter::And(Vec::new()), table.key.iter().map(|&k| (k, Direction::Asc)).collect())
}

pub fn rows(source: &mut dyn Source, plan: &ScanPlan, args: ScanArgs<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    source
        .scan(plan, args, &mut |row| {
            rows.push(row);
            ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

/// The contents of a table by row key.
pub fn contents(source: &mut dyn Source, table: &Arc<Table>) -> BTreeMap<Key, Row> {
    rows(source, &everything(table), ScanArgs::default()).into_iter().map(|r| (r.key(&table.key), r)).collect()
}
