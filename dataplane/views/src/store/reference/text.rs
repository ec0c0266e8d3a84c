//! What Rocicorp's server writes as text: cookies, and keys of rows.

use std::sync::Arc;

use rows::{ColumnType, Cookie, RowBuilder, Schema, ValueRef, Version};
use rustc_hash::FxHashMap;
use serde_json::{Map, Value};

use crate::convert::KeyChoice;
use crate::row_id::RowId;

/// A cookie, or where it stands among those that are written here: a version of the reference may have a minor part, of which
/// clients are told nothing between two of its versions, and which comes after all counters of the version without one.
pub(super) fn cookie(text: &str) -> Result<Cookie, String> {
    let refuse = |error: &dyn std::fmt::Display| format!("a version of the record: {error}");
    let Some((major, rest)) = text.split_once('.') else { return text.parse().map_err(|e| refuse(&e)) };
    let major: Version = major.parse().map_err(|e| refuse(&e))?;
    // The rest is written as a cookie is.
    let minor: Cookie = rest.parse().map_err(|e| refuse(&e))?;
    let (Ok(minor_part), Ok(counter)) = (u32::try_from(minor.version.as_u64()), u32::try_from(minor.config)) else {
        return Err("a version of the record has a part that is too large".into());
    };
    Ok(Cookie::new(major, u64::from(minor_part) << 32 | u64::from(counter)))
}

/// Turns the reference's keys of rows into those by which the group's clients know the rows.
pub(super) struct Keys<'a> {
    schema: &'a Schema,
    choice: KeyChoice,
    /// Tables whose rows clients hold in another form.
    own_tables: &'a [String],
    tables: FxHashMap<String, Option<TableKey>>,
}

/// A table's key as clients know it.
struct TableKey {
    table: Arc<str>,
    columns: Vec<(Arc<str>, ColumnType)>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(schema: &'a Schema, choice: KeyChoice, own_tables: &'a [String]) -> Keys<'a> {
        Keys { schema, choice, own_tables, tables: FxHashMap::default() }
    }

    /// `None`: nobody holds rows of the table that have to be deleted. A table that is gone took the clients that knew it with it.
    pub(super) fn row_id(&mut self, table: &str, key: &str) -> Result<Option<RowId>, String> {
        if !self.tables.contains_key(table) {
            let known = self.table_key(table);
            self.tables.insert(table.to_owned(), known);
        }
        let Some(Some(known)) = self.tables.get(table) else { return Ok(None) };
        let cells: Map<String, Value> =
            serde_json::from_str(key).map_err(|_| format!("a row of {table} has a key that is no object"))?;
        let mut builder = RowBuilder::new(known.columns.len());
        for (column, ty) in &known.columns {
            // The reference may have chosen other columns; the row may be gone, so nothing else leads to its key.
            let value = cells.get(&**column).ok_or_else(|| format!("a row of {table} has a key without {column}"))?;
            let refuse = || format!("a row of {table} has a key whose {column} is not of the column's type");
            match (ty, value) {
                (ColumnType::Bool, Value::Bool(b)) => builder.push(ValueRef::Bool(*b)),
                (ColumnType::Int, Value::Number(n)) => builder.push(ValueRef::Int(n.as_i64().ok_or_else(refuse)?)),
                (ColumnType::Float, Value::Number(n)) => builder.push(ValueRef::Float(n.as_f64().ok_or_else(refuse)?)),
                (ColumnType::Str, Value::String(s)) => builder.push(ValueRef::Str(s)),
                (ColumnType::Json, value) if !value.is_null() => builder.push(ValueRef::Json(&value.to_string())),
                _ => return Err(refuse()),
            }
        }
        Ok(Some(RowId { table: Arc::clone(&known.table), key: builder.finish_key() }))
    }

    fn table_key(&self, name: &str) -> Option<TableKey> {
        if self.own_tables.iter().any(|own| own == name) {
            return None;
        }
        let table = self.schema.tables.get(name)?;
        let column = |&k: &usize| (Arc::clone(&table.columns[k].name), table.columns[k].ty);
        let columns = self.choice.columns(table).iter().map(column).collect();
        Some(TableKey { table: Arc::clone(&table.name), columns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_a_minor_part_come_after_all_without() {
        let mut cookies =
            ["00", "00:01", "123:05", "123.01", "123.01:02", "123.02", "124"].map(|text| cookie(text).unwrap());
        let sorted = cookies;
        cookies.sort_unstable();
        assert_eq!(cookies, sorted);
        for text in ["", "1", "12", "00.", "00.01:", "00:01.01", "00.01.01", "00.a2gosa7pa2gv"] {
            assert!(cookie(text).is_err(), "{text}");
        }
    }
}
