//! The internal tables: whose replica this is, at which version, and the upstream shape of every table.

use std::collections::BTreeMap;
use std::sync::Arc;

use rows::schema::{ColumnSpec, IndexSpec};
use rows::{ColumnType, TableSpec, Version};
use rusqlite::{Connection, params};
use serde_json::{Value, json};

use crate::error::Fault;
use crate::layout::{Catalog, Layout};

/// In the SQLite header of every replica file: "ZRep".
pub(crate) const APPLICATION_ID: i32 = 0x5a52_6570;
/// Layout of the file; a release refuses files with a larger number.
pub(crate) const FORMAT: i32 = 1;

/// Asks a replica file for its version, in whatever transaction it is asked.
pub const VERSION_QUERY: &str = "SELECT version FROM _zero_replica";

/// Whose data a file holds. A file of another app or shard is never touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub app: String,
    pub shard: u32,
}

/// Fixed at the initial copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub identity: Identity,
    /// Names this copy; a new copy has a new one.
    pub replica_id: String,
    /// Replication slot upstream that continues this copy.
    pub slot: String,
    /// Version of the initial copy.
    pub initial_version: Version,
}

/// Changes with commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub version: Version,
    pub commit_time_us: i64,
    /// Grows when a table's shape changes: readers load the catalog again.
    pub schema_epoch: i64,
    /// Grows when planner statistics or indexes change: readers open the file again.
    pub stats_epoch: i64,
}

pub(crate) fn create(conn: &Connection) -> Result<(), Fault> {
    conn.pragma_update(None, "application_id", APPLICATION_ID)?;
    conn.pragma_update(None, "user_version", FORMAT)?;
    conn.execute_batch(
        "CREATE TABLE _zero_replica (
           one INTEGER PRIMARY KEY CHECK (one = 1),
           app TEXT NOT NULL, shard INTEGER NOT NULL, replica_id TEXT NOT NULL, slot TEXT NOT NULL,
           initial_version INTEGER NOT NULL,
           version INTEGER NOT NULL, commit_time_us INTEGER NOT NULL,
           schema_epoch INTEGER NOT NULL, stats_epoch INTEGER NOT NULL);
         CREATE TABLE _zero_tables (
           oid INTEGER PRIMARY KEY, name TEXT NOT NULL, min_version INTEGER NOT NULL, spec TEXT NOT NULL);",
    )?;
    yield_to_original(conn)
}

/// Makes the original server, if it is ever started on this file, replace it by a replica of its own, as it does with one of its own
/// from before its version 4. Without the mark it would take the file for an empty one, and fail for good.
pub(crate) fn yield_to_original(conn: &Connection) -> Result<(), Fault> {
    conn.execute_batch(
        "CREATE TABLE IF NOT EXISTS \"_zero.versionHistory\" (
           dataVersion INTEGER NOT NULL, schemaVersion INTEGER NOT NULL, minSafeVersion INTEGER NOT NULL,
           lock INTEGER PRIMARY KEY DEFAULT 1 CHECK (lock = 1));
         INSERT OR IGNORE INTO \"_zero.versionHistory\" VALUES (3, 3, 1, 1);",
    )?;
    Ok(())
}

pub(crate) fn write_description(conn: &Connection, d: &Description) -> Result<(), Fault> {
    conn.execute(
        "INSERT INTO _zero_replica VALUES (1, ?1, ?2, ?3, ?4, ?5, ?5, 0, 1, 1)",
        params![d.identity.app, d.identity.shard, d.replica_id, d.slot, d.initial_version.as_u64() as i64],
    )?;
    Ok(())
}

pub(crate) fn read_description(conn: &Connection) -> Result<Description, Fault> {
    let sql = "SELECT app, shard, replica_id, slot, initial_version FROM _zero_replica";
    let result = conn.query_row(sql, [], |row| {
        Ok(Description {
            identity: Identity { app: row.get(0)?, shard: row.get(1)? },
            replica_id: row.get(2)?,
            slot: row.get(3)?,
            initial_version: Version::new(row.get::<_, i64>(4)? as u64),
        })
    });
    match result {
        // "No such table" and the like.
        Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::Unknown) => {
            Err(Fault::diverged(format!("it lacks its description: {e}")))
        }
        result => Ok(result?),
    }
}

pub(crate) fn read_state(conn: &Connection) -> Result<State, Fault> {
    let mut statement =
        conn.prepare_cached("SELECT version, commit_time_us, schema_epoch, stats_epoch FROM _zero_replica")?;
    Ok(statement.query_row([], |row| {
        Ok(State {
            version: Version::new(row.get::<_, i64>(0)? as u64),
            commit_time_us: row.get(1)?,
            schema_epoch: row.get(2)?,
            stats_epoch: row.get(3)?,
        })
    })?)
}

pub(crate) fn write_state(conn: &Connection, s: &State) -> Result<(), Fault> {
    conn.prepare_cached("UPDATE _zero_replica SET version = ?, commit_time_us = ?, schema_epoch = ?, stats_epoch = ?")?
        .execute(params![s.version.as_u64() as i64, s.commit_time_us, s.schema_epoch, s.stats_epoch])?;
    Ok(())
}

pub(crate) fn write_table(conn: &Connection, layout: &Layout) -> Result<(), Fault> {
    conn.execute(
        "INSERT OR REPLACE INTO _zero_tables VALUES (?, ?, ?, ?)",
        params![
            layout.spec.oid,
            layout.spec.wire_name(),
            layout.min_version.as_u64() as i64,
            layout_to_json(layout).to_string()
        ],
    )?;
    Ok(())
}

pub(crate) fn delete_table(conn: &Connection, oid: u32) -> Result<(), Fault> {
    conn.execute("DELETE FROM _zero_tables WHERE oid = ?", [oid])?;
    Ok(())
}

pub(crate) fn read_catalog(conn: &Connection) -> Result<Catalog, Fault> {
    let mut statement = conn.prepare("SELECT oid, min_version, spec FROM _zero_tables")?;
    let mut rows = statement.query([])?;
    let mut layouts = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let (oid, min_version, text): (u32, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let value: Value = serde_json::from_str(&text)
            .map_err(|e| Fault::diverged(format!("the stored description of table {oid} is not JSON: {e}")))?;
        let spec = spec_from_json(&value)
            .ok_or_else(|| Fault::diverged(format!("the stored description of table {oid} is incomplete")))?;
        let (spec, min_version) = (Arc::new(spec), Version::new(min_version as u64));
        let layout = match value[LEFT_OUT].as_str() {
            Some(reason) => Layout::left_out(spec, min_version, reason.to_owned()),
            None => Layout::new(spec, min_version),
        };
        layouts.insert(oid, Arc::new(layout));
    }
    Ok(Catalog::new(layouts))
}

/// In a table's description: why it is left out.
const LEFT_OUT: &str = "leftOut";

fn layout_to_json(layout: &Layout) -> Value {
    let mut value = spec_to_json(&layout.spec);
    if let Some(reason) = &layout.left_out {
        value[LEFT_OUT] = json!(reason);
    }
    value
}

fn type_name(ty: ColumnType) -> &'static str {
    match ty {
        ColumnType::Bool => "bool",
        ColumnType::Int => "int",
        ColumnType::Float => "float",
        ColumnType::Str => "str",
        ColumnType::Json => "json",
        ColumnType::Hidden => "hidden",
    }
}

fn spec_to_json(spec: &TableSpec) -> Value {
    let columns: Vec<Value> = spec
        .columns
        .iter()
        .map(|c| {
            json!({"attnum": c.attnum, "name": c.name, "typeOid": c.type_oid, "typeName": c.type_name, "type": type_name(c.ty),
                   "notNull": c.not_null})
        })
        .collect();
    let indexes: Vec<Value> =
        spec.indexes.iter().map(|i| json!({"name": i.name, "unique": i.unique, "columns": i.columns})).collect();
    json!({"oid": spec.oid, "schema": spec.schema, "name": spec.name, "columns": columns, "primaryKey": spec.primary_key,
           "identity": spec.identity, "indexes": indexes})
}

fn spec_from_json(v: &Value) -> Option<TableSpec> {
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let names = |v: &Value| v.as_array()?.iter().map(text).collect::<Option<Vec<String>>>();
    let column = |c: &Value| {
        let ty = match c["type"].as_str()? {
            "bool" => ColumnType::Bool,
            "int" => ColumnType::Int,
            "float" => ColumnType::Float,
            "str" => ColumnType::Str,
            "json" => ColumnType::Json,
            "hidden" => ColumnType::Hidden,
            _ => return None,
        };
        Some(ColumnSpec {
            attnum: i16::try_from(c["attnum"].as_i64()?).ok()?,
            name: text(&c["name"])?,
            type_oid: u32::try_from(c["typeOid"].as_u64()?).ok()?,
            type_name: text(&c["typeName"])?,
            ty,
            not_null: c["notNull"].as_bool()?,
        })
    };
    let index = |i: &Value| {
        let columns =
            i["columns"].as_array()?.iter().map(|c| Some((text(&c[0])?, c[1].as_bool()?))).collect::<Option<_>>()?;
        Some(IndexSpec { name: text(&i["name"])?, unique: i["unique"].as_bool()?, columns })
    };
    Some(TableSpec {
        oid: u32::try_from(v["oid"].as_u64()?).ok()?,
        schema: text(&v["schema"])?,
        name: text(&v["name"])?,
        columns: v["columns"].as_array()?.iter().map(column).collect::<Option<_>>()?,
        primary_key: names(&v["primaryKey"])?,
        identity: names(&v["identity"])?,
        indexes: v["indexes"].as_array()?.iter().map(index).collect::<Option<_>>()?,
    })
}
