//! What happened between two catalogs.

use std::collections::BTreeSet;
use std::sync::Arc;

use rows::Cell;
use rows::transaction::{AddedColumn, Backfill, SchemaChange};

use crate::catalog::{Catalog, ColumnDetail, Published};
use crate::ddl::CREATING_TAGS;
use crate::decode::{self, Kind, array};

/// A change, and whether the table's contents must be read anew because they cannot be derived.
#[derive(Debug)]
pub(crate) struct Step {
    pub oid: u32,
    pub change: SchemaChange,
    pub reread: bool,
}

/// Drops come first, so that a name can pass from one table to another; then alterations, then new tables.
pub(crate) fn diff(old: &Catalog, new: &Catalog, tag: &str, rewritten: &BTreeSet<u32>) -> Vec<Step> {
    let creating = CREATING_TAGS.contains(&tag);
    let mut steps = Vec::new();
    for (&oid, before) in &old.tables {
        if !new.tables.contains_key(&oid) {
            let change = SchemaChange::DropTable { table: Arc::clone(&before.spec) };
            steps.push(Step { oid, change, reread: false });
        }
    }
    for (&oid, after) in &new.tables {
        let Some(before) = old.tables.get(&oid) else { continue };
        let (added, derivable) = added_columns(before, after);
        // A column that appears through anything but ALTER TABLE was there, with values, and was not published.
        let reread = !derivable
            || (!added.is_empty() && tag != "ALTER TABLE")
            || rewritten.contains(&oid)
            || retyped(before, after)
            || filter_changed(before, after)
            || partitions_moved(before, after, creating);
        if before.spec != after.spec || reread {
            let change = SchemaChange::AlterTable {
                old: Arc::clone(&before.spec),
                new: Arc::clone(&after.spec),
                added,
                rows: Backfill::None,
            };
            steps.push(Step { oid, change, reread });
        }
    }
    for (&oid, after) in &new.tables {
        if !old.tables.contains_key(&oid) {
            let change = SchemaChange::CreateTable { table: Arc::clone(&after.spec), rows: Backfill::None };
            steps.push(Step { oid, change, reread: !creating });
        }
    }
    steps
}

/// New columns with the value that existing rows have in them; `false` if some value must be read, because it differs from row to
/// row or cannot be understood.
fn added_columns(before: &Published, after: &Published) -> (Vec<AddedColumn>, bool) {
    let mut added = Vec::new();
    let mut derivable = true;
    for (column, detail) in after.spec.columns.iter().zip(&after.columns) {
        if before.spec.columns.iter().any(|c| c.attnum == column.attnum) {
            continue;
        }
        let value = match &detail.missing {
            Some(text) => missing_value(detail.kind, text).unwrap_or_else(|| {
                tracing::warn!(
                    table = after.spec.wire_name(),
                    column = column.name,
                    "the default of a new column is stored in a form that is not understood; its values are read"
                );
                derivable = false;
                Cell::Null
            }),
            None => {
                // A default without a stored value for older rows was computed for each of them.
                derivable &= !detail.filled;
                Cell::Null
            }
        };
        added.push(AddedColumn { name: column.name.clone(), value });
    }
    (added, derivable)
}

/// Postgres stores the value as an array with one element, so it is unquoted once before it is decoded.
fn missing_value(kind: Kind, text: &str) -> Option<Cell> {
    decode::text(kind, &array::single(text.as_bytes())?).ok()
}

/// Columns whose old cells are not what the new type would show.
fn retyped(before: &Published, after: &Published) -> bool {
    let same = |old: &ColumnDetail, new: &ColumnDetail| {
        old.kind == new.kind && old.labels.iter().all(|(oid, label)| new.labels.get(oid).is_none_or(|l| l == label))
    };
    after.spec.columns.iter().zip(&after.columns).any(|(column, detail)| {
        before
            .spec
            .columns
            .iter()
            .zip(&before.columns)
            .any(|(old, old_detail)| old.attnum == column.attnum && (old.ty != column.ty || !same(old_detail, detail)))
    })
}

/// Rows that a filter lets in or out are not replicated when the filter changes.
fn filter_changed(before: &Published, after: &Published) -> bool {
    before.filter != after.filter
}

/// Attaching and detaching partitions moves rows without row changes; a new partition is empty.
fn partitions_moved(before: &Published, after: &Published, creating: bool) -> bool {
    let empty = Vec::new();
    let old = before.partitions.as_ref().unwrap_or(&empty);
    let new = after.partitions.as_ref().unwrap_or(&empty);
    let lost = old.iter().any(|p| !new.contains(p));
    let gained = new.iter().any(|p| !old.contains(p));
    lost || (gained && !creating)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog(columns: &str, filter: &str, partitions: &str) -> Catalog {
        Catalog::parse(&format!(
            r#"{{"tables":[{{"oid":7,"schema":"public","name":"t","identity":"d","attributes":1,"conflict":false,"filter":{filter},
                "partitions":{partitions},"columns":[{columns}],
                "indexes":[{{"name":"p","unique":true,"primary":true,"identity":false,"columns":[["id",false]]}}]}}]}}"#
        ))
        .unwrap()
    }

    fn column(attnum: i16, name: &str, oid: u32, filled: bool, missing: &str, labels: &str) -> String {
        format!(
            r#"{{"attnum":{attnum},"name":"{name}","typeOid":{oid},"type":"x","class":"e","element":null,
                "dimensions":0,"notNull":false,"filled":{filled},"missing":{missing},"labels":{labels}}}"#
        )
    }

    fn id() -> String {
        column(1, "id", 23, false, "null", "null")
    }

    fn one(old: &Catalog, new: &Catalog, tag: &str) -> Step {
        let mut steps = diff(old, new, tag, &BTreeSet::new());
        assert_eq!(steps.len(), 1);
        steps.remove(0)
    }

    #[test]
    fn equal_catalogs_have_no_steps() {
        let c = catalog(&id(), "null", "null");
        assert!(diff(&c, &c, "ALTER TABLE", &BTreeSet::new()).is_empty());
        assert!(diff(&c, &c, "ALTER TABLE", &BTreeSet::from([7]))[0].reread);
    }

    #[test]
    fn constant_defaults_are_values_and_others_are_read() {
        let old = catalog(&id(), "null", "null");
        for (filled, missing, value, reread) in [
            (false, "null", Cell::Null, false),
            (true, r#""{5}""#, Cell::Int(5), false),
            (true, "null", Cell::Null, true),
            (true, r#""{five}""#, Cell::Null, true),
            (true, r#""5""#, Cell::Null, true),
        ] {
            let new = catalog(&format!("{},{}", id(), column(2, "n", 20, filled, missing, "null")), "null", "null");
            let step = one(&old, &new, "ALTER TABLE");
            assert_eq!(step.reread, reread);
            let SchemaChange::AlterTable { added, .. } = step.change else { panic!() };
            assert_eq!(added, [AddedColumn { name: "n".to_owned(), value }]);
        }
    }

    #[test]
    fn a_column_that_becomes_published_is_read() {
        let old = catalog(&id(), "null", "null");
        let new = catalog(&format!("{},{}", id(), column(2, "n", 20, false, "null", "null")), "null", "null");
        assert!(one(&old, &new, "ALTER PUBLICATION").reread);
        assert!(!one(&old, &new, "ALTER TABLE").reread);
    }

    #[test]
    fn a_text_default_keeps_its_quotes() {
        let old = catalog(&id(), "null", "null");
        let missing = serde_json::to_string(r#"{"a\"b,{"}"#).unwrap();
        let new = catalog(&format!("{},{}", id(), column(2, "n", 25, true, &missing, "null")), "null", "null");
        let SchemaChange::AlterTable { added, .. } = one(&old, &new, "ALTER TABLE").change else { panic!() };
        assert_eq!(added[0].value, Cell::Text("a\"b,{".into()));
    }

    #[test]
    fn renames_keep_contents_and_new_types_do_not() {
        let old = catalog(&format!("{},{}", id(), column(2, "a", 23, false, "null", "null")), "null", "null");
        let renamed = catalog(&format!("{},{}", id(), column(2, "b", 23, false, "null", "null")), "null", "null");
        let retyped = catalog(&format!("{},{}", id(), column(2, "a", 25, false, "null", "null")), "null", "null");
        assert!(!one(&old, &renamed, "ALTER TABLE").reread);
        assert!(one(&old, &retyped, "ALTER TABLE").reread);
    }

    #[test]
    fn renamed_labels_filters_and_partitions_are_read_anew() {
        let with = |labels: &str| {
            catalog(&format!("{},{}", id(), column(2, "e", 9999, false, "null", labels)), "null", "null")
        };
        let old = with(r#"[[1,"a"]]"#);
        assert!(one(&old, &with(r#"[[1,"b"]]"#), "ALTER TYPE").reread);
        assert!(diff(&old, &with(r#"[[1,"a"],[2,"b"]]"#), "ALTER TYPE", &BTreeSet::new()).is_empty());
        let plain = catalog(&id(), "null", "[1]");
        assert!(one(&plain, &catalog(&id(), "\"(id > 1)\"", "[1]"), "ALTER PUBLICATION").reread);
        assert!(one(&plain, &catalog(&id(), "null", "[1,2]"), "ALTER TABLE").reread);
        assert!(diff(&plain, &catalog(&id(), "null", "[1,2]"), "CREATE TABLE", &BTreeSet::new()).is_empty());
        assert!(one(&plain, &catalog(&id(), "null", "[]"), "DROP TABLE").reread);
    }

    #[test]
    fn tables_come_and_go() {
        let none = Catalog::default();
        let some = catalog(&id(), "null", "null");
        assert!(!one(&none, &some, "CREATE TABLE").reread);
        assert!(one(&none, &some, "ALTER PUBLICATION").reread);
        assert!(matches!(one(&some, &none, "DROP TABLE").change, SchemaChange::DropTable { .. }));
    }
}
