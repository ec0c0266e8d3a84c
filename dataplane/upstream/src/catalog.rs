//! What is published, read from the JSON that [`crate::ddl`]'s functions print: once under the snapshot of the initial copy,
//! then from the events of the stream.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rows::schema::{ColumnSpec, IndexSpec};
use rows::{ColumnType, TableSpec};
use serde::Deserialize;

use crate::decode::{Kind, Scalar, TEXT_EXTENSIONS, builtin};
use crate::key::Blurred;
use crate::{Error, Result};

/// A table with what the wire shape cannot say.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub spec: Arc<TableSpec>,
    /// One per column of the spec.
    pub columns: Vec<ColumnDetail>,
    /// Row filter, as an SQL condition; `None` publishes every row.
    pub filter: Option<String>,
    /// How many columns it ever had, dropped and unpublished ones included: grows with each new one.
    pub attributes: i16,
    /// Leaves, if the table is partitioned and published as one.
    pub partitions: Option<Vec<i64>>,
}

#[derive(Clone, Debug)]
pub(crate) struct ColumnDetail {
    pub kind: Kind,
    /// Filled by a default or identity when the column is added.
    pub filled: bool,
    /// The value that older rows have, as a one-element array in text form.
    pub missing: Option<String>,
    /// Labels of an enum by object id: renaming one changes what rows show.
    pub labels: BTreeMap<i64, String>,
    /// Whether it was said that a value was too large; shared, so that it is said once.
    pub told_too_large: Arc<AtomicBool>,
}

/// Published tables by object id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    pub tables: BTreeMap<u32, Published>,
    /// Tables that cannot be replicated, whose changes are therefore ignored.
    pub excluded: BTreeSet<u32>,
    /// One line per excluded table or hidden column.
    pub warnings: Vec<String>,
}

impl Catalog {
    pub(crate) fn parse(json: &str) -> Result<Catalog> {
        let raw: RawCatalog = serde_json::from_str(json).map_err(unreadable)?;
        let mut catalog = Catalog::default();
        for table in raw.tables {
            catalog.add(table);
        }
        Ok(catalog)
    }

    /// Adds a table, or replaces it.
    pub(crate) fn put(&mut self, json: &str) -> Result<()> {
        let table: RawTable = serde_json::from_str(json).map_err(unreadable)?;
        self.remove(table.oid);
        self.add(table);
        Ok(())
    }

    pub(crate) fn remove(&mut self, oid: u32) {
        self.tables.remove(&oid);
        self.excluded.remove(&oid);
    }

    fn add(&mut self, table: RawTable) {
        let oid = table.oid;
        if table.internal {
            self.excluded.insert(oid);
            return;
        }
        let name = format!("{}.{}", table.schema, table.name);
        match table.validate() {
            Ok(()) => {
                let published = table.publish(&mut self.warnings);
                self.tables.insert(oid, published);
            }
            Err(reason) => {
                self.warnings.push(format!("table {name} is not replicated: {reason}"));
                self.excluded.insert(oid);
            }
        }
    }

    pub(crate) fn specs(&self) -> Vec<Arc<TableSpec>> {
        self.tables.values().map(|t| Arc::clone(&t.spec)).collect()
    }
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::reset(format!("the schema snapshot in the database cannot be read: {error}"))
}

#[derive(Deserialize)]
struct RawCatalog {
    tables: Vec<RawTable>,
}

#[derive(Deserialize)]
struct RawTable {
    oid: u32,
    schema: String,
    name: String,
    identity: String,
    attributes: i16,
    conflict: bool,
    /// Of a server like this one, which must not follow its own writes. Absent in snapshots of former releases.
    #[serde(default)]
    internal: bool,
    filter: Option<String>,
    partitions: Option<Vec<i64>>,
    columns: Vec<RawColumn>,
    indexes: Vec<RawIndex>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawColumn {
    attnum: i16,
    name: String,
    type_oid: u32,
    #[serde(rename = "type")]
    type_name: String,
    class: String,
    element: Option<RawElement>,
    dimensions: i16,
    /// Absent in snapshots of former releases.
    modifier: Option<i32>,
    not_null: bool,
    filled: bool,
    missing: Option<String>,
    labels: Option<Vec<(i64, String)>>,
}

#[derive(Deserialize)]
struct RawElement {
    oid: u32,
    #[serde(rename = "type")]
    type_name: String,
    class: String,
    delimiter: String,
}

#[derive(Deserialize)]
struct RawIndex {
    name: String,
    unique: bool,
    primary: bool,
    identity: bool,
    columns: Option<Vec<(String, bool)>>,
}

/// Letters and underscores first, then also digits and `more`.
fn plain_name(name: &str, more: &[u8]) -> bool {
    let starts = name.as_bytes().first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_');
    starts && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || more.contains(&b))
}

impl RawTable {
    fn validate(&self) -> std::result::Result<(), String> {
        if !plain_name(&self.name, b"-") {
            return Err("its name has characters other than A-Z, a-z, 0-9, _ and -; rename it".to_owned());
        }
        if self.conflict {
            return Err("its publications list different columns; publish the same columns everywhere".to_owned());
        }
        if self.columns.is_empty() {
            return Err("it has no columns".to_owned());
        }
        for column in &self.columns {
            if column.name == "_0_version" {
                return Err("the column name _0_version is reserved; rename it".to_owned());
            }
            if !plain_name(&column.name, b"-.") {
                return Err(format!(
                    "its column {:?} has characters other than A-Z, a-z, 0-9, _, - and .; rename it",
                    column.name
                ));
            }
        }
        match self.identity.as_str() {
            "n" => Err("its replica identity is NOTHING; use ALTER TABLE ... REPLICA IDENTITY DEFAULT".to_owned()),
            "i" if !self.indexes.iter().any(|i| i.identity) => {
                Err("the index of its replica identity is missing; use ALTER TABLE ... REPLICA IDENTITY DEFAULT"
                    .to_owned())
            }
            _ => Ok(()),
        }
    }

    fn publish(self, warnings: &mut Vec<String>) -> Published {
        let table = format!("{}.{}", self.schema, self.name);
        let mut columns = Vec::with_capacity(self.columns.len());
        let mut details = Vec::with_capacity(self.columns.len());
        let mut blurred = Blurred::default();
        for raw in self.columns {
            let (kind, ty) = raw.kind();
            blurred.note(&raw.name, kind, raw.modifier);
            let type_name = raw.written_type();
            if ty == ColumnType::Hidden {
                warnings.push(format!(
                    "column {} of table {table} has type {type_name}, which clients cannot receive; it stays hidden",
                    raw.name
                ));
            }
            columns.push(ColumnSpec {
                attnum: raw.attnum,
                name: raw.name,
                type_oid: raw.type_oid,
                type_name,
                ty,
                not_null: raw.not_null,
            });
            details.push(ColumnDetail {
                kind,
                filled: raw.filled,
                missing: raw.missing,
                labels: raw.labels.into_iter().flatten().collect(),
                told_too_large: Arc::default(),
            });
        }
        let published = |names: &[(String, bool)]| names.iter().all(|(n, _)| columns.iter().any(|c| c.name == *n));
        let names = |i: &RawIndex| i.columns.iter().flatten().map(|(n, _)| n.clone()).collect::<Vec<_>>();
        let usable: Vec<&RawIndex> =
            self.indexes.iter().filter(|i| i.columns.as_ref().is_some_and(|c| !c.is_empty() && published(c))).collect();
        let mut primary_key = usable.iter().find(|i| i.primary).map(|i| names(i)).unwrap_or_default();
        let identity = match self.identity.as_str() {
            "f" => columns.iter().map(|c| c.name.clone()).collect(),
            "i" => usable.iter().find(|i| i.identity).map(|i| names(i)).unwrap_or_default(),
            _ => primary_key.clone(),
        };
        if let Some(reason) = blurred.obstacle(&primary_key, &identity).filter(|_| !primary_key.is_empty()) {
            warnings.push(format!(
                "the primary key of table {table} cannot identify rows for clients: {reason}; a unique index over other NOT NULL columns takes its place if it is made the replica identity (ALTER TABLE ... REPLICA IDENTITY USING INDEX ...), and without one the table is not synced"
            ));
            primary_key.clear();
        }
        if identity.is_empty() {
            warnings.push(format!(
                "table {table} has neither a primary key nor a replica identity: Postgres refuses updates and deletes of its rows while it is published"
            ));
        }
        let indexes = usable
            .into_iter()
            .map(|i| IndexSpec {
                name: i.name.clone(),
                // For clients, that is: what differs upstream may be equal for them.
                unique: i.unique && blurred.obstacle(&names(i), &identity).is_none(),
                columns: i.columns.clone().unwrap_or_default(),
            })
            .collect();
        Published {
            spec: Arc::new(TableSpec {
                oid: self.oid,
                schema: self.schema,
                name: self.name,
                columns,
                primary_key,
                identity,
                indexes,
            }),
            columns: details,
            filter: self.filter,
            attributes: self.attributes,
            partitions: self.partitions,
        }
    }
}

/// int2vector and oidvector: arrays that are printed in a form of their own.
const PRINTED_VECTORS: [u32; 2] = [22, 30];

impl RawColumn {
    fn kind(&self) -> (Kind, ColumnType) {
        if let Some(element) = self.element.as_ref().filter(|_| !PRINTED_VECTORS.contains(&self.type_oid)) {
            let (scalar, _) = scalar(element.oid, &element.type_name, &element.class);
            let delimiter = element.delimiter.as_bytes().first().copied().unwrap_or(b',');
            return (Kind::Array { element: scalar, delimiter }, ColumnType::Json);
        }
        let (scalar, ty) = scalar(self.type_oid, &self.type_name, &self.class);
        (Kind::Scalar(scalar), ty)
    }

    fn written_type(&self) -> String {
        match &self.element {
            None => self.type_name.clone(),
            Some(element) => {
                let dimensions = usize::try_from(self.dimensions.max(1)).unwrap_or(1);
                format!("{}{}", element.type_name, "[]".repeat(dimensions))
            }
        }
    }
}

fn scalar(oid: u32, name: &str, class: &str) -> (Scalar, ColumnType) {
    if let Some(known) = builtin(oid) {
        return known;
    }
    match class {
        "e" => (Scalar::Text, ColumnType::Str),
        "b" if TEXT_EXTENSIONS.contains(&name) => (Scalar::Printed, ColumnType::Str),
        _ => (Scalar::Printed, ColumnType::Hidden),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, oid: u32, ty: &str, class: &str) -> String {
        format!(
            r#"{{"attnum":1,"name":"{name}","typeOid":{oid},"type":"{ty}","class":"{class}","element":null,
                "dimensions":0,"notNull":true,"filled":false,"missing":null,"labels":null}}"#
        )
    }

    fn table(name: &str, identity: &str, columns: &[String], indexes: &str) -> String {
        format!(
            r#"{{"tables":[{{"oid":7,"schema":"public","name":"{name}","identity":"{identity}","attributes":1,"conflict":false,"filter":null,
                "partitions":null,"columns":[{}],"indexes":[{indexes}]}}]}}"#,
            columns.join(",")
        )
    }

    const PRIMARY: &str = r#"{"name":"t_pkey","unique":true,"primary":true,"identity":false,"columns":[["id",false]]}"#;

    #[test]
    fn a_table_is_read() {
        let columns =
            [column("id", 23, "int4", "b"), column("mood", 99_001, "mood", "e"), column("d", 99_002, "positive", "d")];
        let catalog = Catalog::parse(&table("t", "d", &columns, PRIMARY)).unwrap();
        let published = &catalog.tables[&7];
        let types: Vec<_> = published.spec.columns.iter().map(|c| c.ty).collect();
        assert_eq!(types, [ColumnType::Int, ColumnType::Str, ColumnType::Hidden]);
        assert_eq!(published.spec.primary_key, ["id"]);
        assert_eq!(published.spec.identity, ["id"]);
        assert_eq!(catalog.warnings.len(), 1, "{:?}", catalog.warnings);
    }

    #[test]
    fn bad_tables_are_excluded_with_a_reason() {
        let id = column("id", 23, "int4", "b");
        for (json, reason) in [
            (table("t x", "d", std::slice::from_ref(&id), PRIMARY), "its name"),
            (table("t", "n", std::slice::from_ref(&id), PRIMARY), "NOTHING"),
            (table("t", "i", std::slice::from_ref(&id), PRIMARY), "index"),
            (table("t", "d", &[], ""), "no columns"),
            (table("t", "d", &[column("_0_version", 25, "text", "b")], ""), "reserved"),
            (table("t", "d", &[column("a b", 25, "text", "b")], ""), "its column"),
        ] {
            let catalog = Catalog::parse(&json).unwrap();
            assert!(catalog.tables.is_empty() && catalog.excluded.contains(&7));
            assert!(catalog.warnings[0].contains(reason), "{:?}", catalog.warnings);
        }
        assert!(matches!(Catalog::parse("{"), Err(Error::ResetRequired { .. })));
    }

    #[test]
    fn an_index_over_unpublished_columns_is_not_seen() {
        let index = r#"{"name":"i","unique":true,"primary":true,"identity":false,"columns":[["gone",false]]}"#;
        let catalog = Catalog::parse(&table("t", "d", &[column("id", 23, "int4", "b")], index)).unwrap();
        assert!(catalog.tables[&7].spec.indexes.is_empty() && catalog.tables[&7].spec.primary_key.is_empty());
    }
}
