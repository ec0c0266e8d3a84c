//! Tables: what upstream publishes ([`TableSpec`]) and what queries can see of it ([`Table`]).

use std::sync::Arc;

use crate::row::Row;
use crate::value::ValueRef;

/// How a column's cells are held and what a client receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColumnType {
    Bool,
    /// smallint, integer, bigint
    Int,
    /// real, double, numeric; date, time, timestamp as milliseconds
    Float,
    /// text kinds, uuid, enums, network addresses
    Str,
    /// json, jsonb and every array, as JSON text
    Json,
    /// Replicated but never shown to clients (bytea and unsupported types).
    Hidden,
}

impl ColumnType {
    /// The name of the type in a client schema; `None` for hidden columns.
    #[must_use]
    pub fn client_name(self) -> Option<&'static str> {
        match self {
            ColumnType::Bool => Some("boolean"),
            ColumnType::Int | ColumnType::Float => Some("number"),
            ColumnType::Str => Some("string"),
            ColumnType::Json => Some("json"),
            ColumnType::Hidden => None,
        }
    }
}

/// A published upstream table, as the catalog describes it. Identity across renames: `oid` and each column's `attnum`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSpec {
    pub oid: u32,
    /// Postgres schema and name.
    pub schema: String,
    pub name: String,
    /// In `attnum` order; hidden columns included.
    pub columns: Vec<ColumnSpec>,
    /// Column names of the primary key, in key order; empty if there is none, or none by which clients can tell rows apart.
    pub primary_key: Vec<String>,
    /// Column names of the replica identity (what a delete or key update carries): the primary key by default, the index of
    /// `REPLICA IDENTITY USING INDEX`, or all columns for `FULL`.
    pub identity: Vec<String>,
    /// Every plain (no expression, no predicate) index, the primary key's included.
    pub indexes: Vec<IndexSpec>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnSpec {
    pub attnum: i16,
    pub name: String,
    pub type_oid: u32,
    /// Postgres type as written in messages, e.g. `int4`, `my_enum`, `text[]`.
    pub type_name: String,
    pub ty: ColumnType,
    pub not_null: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexSpec {
    /// Without schema.
    pub name: String,
    /// Also for clients: rows that differ in it upstream differ in it for them.
    pub unique: bool,
    /// Column names with `true` for descending.
    pub columns: Vec<(String, bool)>,
}

impl TableSpec {
    /// The table's name on the wire and in the replica: `name`, or `schema.name` outside `public`.
    #[must_use]
    pub fn wire_name(&self) -> String {
        if self.schema == "public" { self.name.clone() } else { format!("{}.{}", self.schema, self.name) }
    }

    #[must_use]
    pub fn column(&self, name: &str) -> Option<&ColumnSpec> {
        self.columns.iter().find(|c| c.name == name)
    }
}

impl ColumnSpec {
    /// Whether a cell that is not null upstream is null here: a number that is none has no other place.
    fn may_become_null(&self) -> bool {
        self.ty == ColumnType::Float && ["float4", "float8", "numeric"].contains(&self.type_name.as_str())
    }
}

/// A table as queries see it: visible columns only, in `attnum` order, which is the order of the cells of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Wire name.
    pub name: Arc<str>,
    pub columns: Vec<Column>,
    /// The key that identifies a row in the replica: positions into `columns`. The primary key if it is visible, else the
    /// shortest unique index over visible NOT NULL columns, ties by column names.
    pub key: Vec<usize>,
    /// Every set of columns (sorted positions) that a client schema may declare as primary key: unique, visible, NOT NULL, and with
    /// a value in every row that is shown (see [`Table::shows`]).
    pub unique_keys: Vec<Vec<usize>>,
    /// Leading columns of every index, as positions; for the planner.
    pub indexes: Vec<Vec<usize>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: Arc<str>,
    pub ty: ColumnType,
    pub not_null: bool,
}

impl Table {
    #[must_use]
    pub fn position(&self, column: &str) -> Option<usize> {
        self.columns.iter().position(|c| &*c.name == column)
    }

    /// Key columns whose cells may have no value that a client can receive.
    #[must_use]
    pub fn fragile_key(&self) -> Vec<usize> {
        self.key.iter().copied().filter(|&k| self.columns[k].ty == ColumnType::Float).collect()
    }

    /// Whether clients can hold a row: an infinite date or a number that is none reaches them as null, and no row can be
    /// identified by null. Such a row exists upstream and in the replica, and in no query's result.
    #[must_use]
    pub fn shows(&self, row: &Row) -> bool {
        self.key.iter().all(|&k| match row.get(k) {
            ValueRef::Null => false,
            ValueRef::Float(f) => f.is_finite(),
            _ => true,
        })
    }

    /// What clients may see of an upstream table; `Err` says why they can see nothing.
    pub fn visible(spec: &TableSpec) -> Result<Table, NotVisible> {
        let mut columns: Vec<Column> = spec
            .columns
            .iter()
            .filter(|c| c.ty != ColumnType::Hidden)
            .map(|c| Column {
                name: c.name.as_str().into(),
                ty: c.ty,
                not_null: (c.not_null || spec.primary_key.contains(&c.name)) && !c.may_become_null(),
            })
            .collect();
        let position = |name: &str| columns.iter().position(|c| &*c.name == name);
        let present = |name: &str| spec.column(name).is_some_and(|c| c.not_null || spec.primary_key.contains(&c.name));
        let usable = |names: &[&str]| -> Option<Vec<usize>> {
            names.iter().map(|n| position(n).filter(|&p| present(n) && columns[p].ty != ColumnType::Json)).collect()
        };
        let primary: Vec<&str> = spec.primary_key.iter().map(String::as_str).collect();
        let mut candidates: Vec<Vec<usize>> = Vec::new();
        if !primary.is_empty() {
            candidates.extend(usable(&primary));
        }
        let mut unique: Vec<Vec<&str>> = spec
            .indexes
            .iter()
            .filter(|i| i.unique)
            .map(|i| i.columns.iter().map(|(c, _)| c.as_str()).collect())
            .collect();
        unique.sort_by(|a, b| a.len().cmp(&b.len()).then_with(|| a.cmp(b)));
        candidates.extend(unique.iter().filter_map(|names| usable(names)));
        let Some(key) = candidates.first().cloned() else {
            return Err(NotVisible { table: spec.wire_name() });
        };
        let mut unique_keys: Vec<Vec<usize>> = candidates
            .into_iter()
            .filter(|k| *k == key || k.iter().all(|&c| columns[c].ty != ColumnType::Float))
            .map(|mut k| {
                k.sort_unstable();
                k
            })
            .collect();
        unique_keys.sort();
        unique_keys.dedup();
        let indexes = spec.indexes.iter().map(|i| i.columns.iter().map_while(|(c, _)| position(c)).collect()).collect();
        for &k in &key {
            // Rows without a value in it are not shown.
            columns[k].not_null = true;
        }
        Ok(Table { name: spec.wire_name().into(), columns, key, unique_keys, indexes })
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "table {table} has no primary key and no unique index over NOT NULL columns of types whose values clients can tell apart, so its rows cannot be synced to clients"
)]
pub struct NotVisible {
    pub table: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::RowBuilder;
    use crate::version::Version;

    fn spec(key: &[&str], unique: &[&[&str]]) -> TableSpec {
        let column = |attnum, name: &str, type_name: &str, ty| ColumnSpec {
            attnum,
            name: name.to_owned(),
            type_oid: 0,
            type_name: type_name.to_owned(),
            ty,
            not_null: true,
        };
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<String>>();
        let index = |columns: &[&str]| IndexSpec {
            name: columns.join("_"),
            unique: true,
            columns: names(columns).into_iter().map(|n| (n, false)).collect(),
        };
        TableSpec {
            oid: 1,
            schema: "public".to_owned(),
            name: "t".to_owned(),
            columns: vec![
                column(1, "id", "int8", ColumnType::Int),
                column(2, "at", "timestamptz", ColumnType::Float),
                column(3, "size", "float8", ColumnType::Float),
            ],
            primary_key: names(key),
            identity: names(key),
            indexes: unique.iter().map(|u| index(u)).collect(),
        }
    }

    #[test]
    fn a_key_has_a_value_in_every_row_that_is_shown() {
        let of = |spec: &TableSpec| Table::visible(spec).unwrap();
        let table = of(&spec(&["id"], &[&["id"], &["at"], &["size"]]));
        assert_eq!(table.unique_keys, [vec![0]], "what may be infinite is the key of no client");
        assert_eq!(table.columns.iter().map(|c| c.not_null).collect::<Vec<_>>(), [true, true, false]);
        let table = of(&spec(&["size", "id"], &[&["size", "id"]]));
        assert_eq!((table.key.as_slice(), table.unique_keys.as_slice()), (&[2, 0][..], &[vec![0, 2]][..]));
        assert!(table.columns[2].not_null && table.fragile_key() == [2]);
        for (size, shown) in [
            (ValueRef::Float(1.5), true),
            (ValueRef::Null, false),
            (ValueRef::Float(f64::INFINITY), false),
            (ValueRef::Float(f64::NEG_INFINITY), false),
        ] {
            let mut row = RowBuilder::new(3);
            [ValueRef::Int(1), ValueRef::Float(f64::INFINITY), size].into_iter().for_each(|cell| row.push(cell));
            assert_eq!(table.shows(&row.finish(Version::ZERO)), shown, "{size:?}");
        }
    }
}
