//! How an upstream table is laid out in SQLite.
//!
//! Tables and columns are named by `oid` and `attnum`, so that renames upstream are a change of metadata only, and names that
//! differ in case only, which SQLite cannot tell apart, do not collide. Indexes are named by their columns: two sets of
//! indexes are compared by name.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use rows::schema::{ColumnSpec, IndexSpec};
use rows::{ColumnType, Row, Schema, Table, TableSpec, Version};

/// The version that last wrote a row; 0 means the table's [`Layout::min_version`].
pub(crate) const VERSION_COLUMN: &str = "_0_version";

#[derive(Debug)]
pub(crate) struct Layout {
    pub spec: Arc<TableSpec>,
    /// What queries see; the reason when they see nothing.
    pub table: Result<Arc<Table>, String>,
    /// Rows count as written at least at this version: set when the whole table was rewritten.
    pub min_version: Version,
    /// Positions in `spec.columns` of the visible columns.
    pub visible: Vec<usize>,
    /// Positions in `spec.columns` of the row key; empty if there is none.
    pub key: Vec<usize>,
    /// Positions in `spec.columns` of those columns of the row key whose cells may have no value that clients can receive.
    pub fragile: Vec<usize>,
    /// Positions in `spec.columns` of the replica identity.
    pub identity: Vec<usize>,
    /// For each position in `spec.identity` that identifies the row: (index into the identity tuple, position in `spec.columns`).
    /// The row key where the identity contains it, else the whole identity.
    pub locate: Vec<(usize, usize)>,
    /// Upstream checks the key at the end of a transaction: within it, rows may have the same key. They are told apart by the whole
    /// identity, without which upstream refuses to change them.
    pub deferred: bool,
    /// Why the table is left out although its description would do: its contents contradict it.
    pub left_out: Option<String>,
}

impl Layout {
    pub(crate) fn new(spec: Arc<TableSpec>, min_version: Version) -> Layout {
        let table = Table::visible(&spec).map(Arc::new).map_err(|e| e.to_string());
        Layout::of(spec, table, min_version, None)
    }

    /// Of a table that queries must not see, for a reason that its description does not show.
    pub(crate) fn left_out(spec: Arc<TableSpec>, min_version: Version, reason: String) -> Layout {
        Layout::of(spec, Err(reason.clone()), min_version, Some(reason))
    }

    fn of(
        spec: Arc<TableSpec>,
        table: Result<Arc<Table>, String>,
        min_version: Version,
        left_out: Option<String>,
    ) -> Layout {
        let position = |name: &str| spec.columns.iter().position(|c| c.name == name);
        let visible: Vec<usize> =
            (0..spec.columns.len()).filter(|&i| spec.columns[i].ty != ColumnType::Hidden).collect();
        let (key, fragile): (Vec<usize>, Vec<usize>) = match &table {
            Ok(t) => {
                (t.key.iter().map(|&k| visible[k]).collect(), t.fragile_key().into_iter().map(|k| visible[k]).collect())
            }
            Err(_) => (Vec::new(), Vec::new()),
        };
        let identity: Vec<usize> = spec.identity.iter().filter_map(|n| position(n)).collect();
        let of_key: Option<Vec<(usize, usize)>> =
            key.iter().map(|k| identity.iter().position(|i| i == k).map(|at| (at, *k))).collect();
        let deferred = !key.is_empty() && is_deferred(&spec, &key);
        let locate = match of_key {
            Some(of_key) if !of_key.is_empty() && !deferred => of_key,
            _ => identity.iter().copied().enumerate().collect(),
        };
        Layout { table, min_version, visible, key, fragile, identity, locate, deferred, left_out, spec }
    }

    pub(crate) fn name(&self) -> String {
        table_name(self.spec.oid)
    }

    /// Whether queries see a row of the visible table; see [`Table::shows`].
    pub(crate) fn shows(&self, row: &Row) -> bool {
        self.fragile.is_empty() || self.table.as_ref().is_ok_and(|table| table.shows(row))
    }

    /// What [`Layout::shows`] says, as conditions on stored rows of `alias`, each followed by AND. A sign in front keeps SQLite
    /// from taking it for a way to find rows.
    pub(crate) fn shown(&self, alias: usize) -> String {
        self.fragile.iter().fold(String::new(), |mut sql, &k| {
            let _ = write!(sql, "+t{alias}.{} BETWEEN {:e} AND {:e} AND ", self.column(k), f64::MIN, f64::MAX);
            sql
        })
    }

    pub(crate) fn tell_not_shown(&self) {
        let columns: Vec<&str> = self.fragile.iter().map(|&k| self.spec.columns[k].name.as_str()).collect();
        tracing::warn!(
            table = self.spec.wire_name(),
            ?columns,
            "rows whose key is infinite or not a number are not shown to clients, which have no such keys; they are shown once it is finite"
        );
    }

    /// SQLite name of the column at a position of `spec.columns`.
    pub(crate) fn column(&self, position: usize) -> String {
        column_name(self.spec.columns[position].attnum)
    }

    /// `attnum` of the column at a position of the visible table.
    pub(crate) fn attnum(&self, position: usize) -> i16 {
        self.spec.columns[self.visible[position]].attnum
    }

    /// SQLite name of the column at a position of the visible table.
    pub(crate) fn visible_column(&self, position: usize) -> String {
        self.column(self.visible[position])
    }

    pub(crate) fn create_table(&self) -> String {
        let mut sql = format!("CREATE TABLE {} (", self.name());
        for column in &self.spec.columns {
            let _ = write!(sql, "{} {}, ", column_name(column.attnum), declared_type(column));
        }
        let _ = write!(sql, "\"{VERSION_COLUMN}\" INTEGER NOT NULL)");
        sql
    }

    /// All columns and the version, one parameter each.
    pub(crate) fn insert(&self) -> String {
        let mut sql = format!("INSERT INTO {} (", self.name());
        for i in 0..self.spec.columns.len() {
            let _ = write!(sql, "{}, ", self.column(i));
        }
        let _ = write!(sql, "\"{VERSION_COLUMN}\") VALUES (");
        for _ in 0..self.spec.columns.len() {
            sql.push_str("?, ");
        }
        sql.push_str("?)");
        sql
    }

    /// Every index this table should have, by name, with the statement that creates it.
    ///
    /// The row key is UNIQUE, unless upstream defers that. Indexes mirrored from upstream are not, because within a transaction rows may collide for a
    /// moment; they end with the row key, so that an ordering completed by the key, and a join that only needs the key, can be
    /// read from the index alone.
    pub(crate) fn indexes(&self) -> BTreeMap<String, String> {
        let mut indexes = BTreeMap::new();
        if !self.key.is_empty() {
            let columns: Vec<(usize, bool)> = self.key.iter().map(|&k| (k, false)).collect();
            let (name, sql) = self.index("k", !self.deferred, &columns);
            indexes.insert(name, sql);
        }
        for index in &self.spec.indexes {
            if let Some((name, sql)) = self.mirrored(index) {
                indexes.insert(name, sql);
            }
        }
        let whole = self.identity.len() == self.spec.columns.len();
        let located: Vec<(usize, bool)> = self.locate.iter().map(|&(_, c)| (c, false)).collect();
        if !located.is_empty() && !whole && !self.starts_an_index(&located) {
            let (name, sql) = self.index("i", false, &located);
            indexes.insert(name, sql);
        }
        indexes
    }

    fn mirrored(&self, index: &IndexSpec) -> Option<(String, String)> {
        let mut columns: Vec<(usize, bool)> = index
            .columns
            .iter()
            .map(|(name, desc)| self.spec.columns.iter().position(|c| c.name == *name).map(|p| (p, *desc)))
            .collect::<Option<_>>()?;
        self.complete(&mut columns);
        let is_key = columns.len() == self.key.len() && columns.iter().zip(&self.key).all(|(&(c, d), &k)| c == k && !d);
        (!is_key && !columns.is_empty()).then(|| self.index("i", false, &columns))
    }

    /// Appends the columns of the row key that are not there yet.
    fn complete(&self, columns: &mut Vec<(usize, bool)>) {
        for &k in &self.key {
            if columns.iter().all(|&(c, _)| c != k) {
                columns.push((k, false));
            }
        }
    }

    fn starts_an_index(&self, columns: &[(usize, bool)]) -> bool {
        let leads =
            |index: &[usize]| index.len() >= columns.len() && columns.iter().zip(index).all(|(&(c, _), &i)| c == i);
        leads(&self.key)
            || self.spec.indexes.iter().any(|i| {
                let positions: Option<Vec<usize>> =
                    i.columns.iter().map(|(n, _)| self.spec.columns.iter().position(|c| c.name == *n)).collect();
                positions.is_some_and(|p| leads(&p))
            })
    }

    /// An index that the replica keeps for itself, because a query correlates on these visible columns.
    pub(crate) fn extra_index(&self, columns: &[usize]) -> (String, String) {
        let mut columns: Vec<(usize, bool)> = columns.iter().map(|&c| (self.visible[c], false)).collect();
        self.complete(&mut columns);
        self.index("x", false, &columns)
    }

    fn index(&self, kind: &str, unique: bool, columns: &[(usize, bool)]) -> (String, String) {
        let mut name = format!("{kind}{}", self.spec.oid);
        let mut list = String::new();
        for &(column, desc) in columns {
            let _ = write!(name, "_{}{}", self.spec.columns[column].attnum, if desc { "d" } else { "" });
            let separator = if list.is_empty() { "" } else { ", " };
            let _ = write!(list, "{separator}{}{}", self.column(column), if desc { " DESC" } else { "" });
        }
        let unique = if unique { "UNIQUE " } else { "" };
        let sql = format!("CREATE {unique}INDEX {name} ON {} ({list})", self.name());
        (name, sql)
    }

    /// The version a client knows for a stored one.
    pub(crate) fn row_version(&self, stored: i64) -> Version {
        Version::new(stored as u64).max(self.min_version)
    }
}

/// Whether the key is a primary key that no index enforces at once.
fn is_deferred(spec: &TableSpec, key: &[usize]) -> bool {
    let names: Vec<&str> = key.iter().map(|&k| spec.columns[k].name.as_str()).collect();
    let mut same = spec
        .indexes
        .iter()
        .filter(|i| i.columns.len() == names.len() && i.columns.iter().all(|(name, _)| names.contains(&name.as_str())));
    spec.primary_key == names && same.clone().next().is_some() && same.all(|i| !i.unique)
}

pub(crate) fn table_name(oid: u32) -> String {
    format!("t{oid}")
}

pub(crate) fn column_name(attnum: i16) -> String {
    format!("c{attnum}")
}

/// `attnum`s of an index's columns, read back from its name, and whether it is one of ours for that table.
pub(crate) fn index_columns(oid: u32, name: &str) -> Option<Vec<i16>> {
    let rest = name.strip_prefix(['k', 'i', 'x'])?.strip_prefix(&oid.to_string())?.strip_prefix('_')?;
    rest.split('_').map(|part| part.trim_end_matches('d').parse().ok()).collect()
}

/// The declaration whose affinity keeps values of the type as they are.
pub(crate) fn declared_type(column: &ColumnSpec) -> &'static str {
    match column.ty {
        ColumnType::Bool | ColumnType::Int => "INTEGER",
        ColumnType::Float => "REAL",
        ColumnType::Str | ColumnType::Json => "TEXT",
        ColumnType::Hidden if column.type_name == "bytea" => "BLOB",
        ColumnType::Hidden => "TEXT",
    }
}

/// All replicated tables at one version.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    pub layouts: BTreeMap<u32, Arc<Layout>>,
    pub schema: Arc<Schema>,
}

impl Catalog {
    pub(crate) fn new(layouts: BTreeMap<u32, Arc<Layout>>) -> Catalog {
        let mut schema = Schema::default();
        let mut named: BTreeMap<String, Vec<&Layout>> = BTreeMap::new();
        for layout in layouts.values() {
            named.entry(layout.spec.wire_name()).or_default().push(layout);
        }
        for (name, namesakes) in named {
            let name: Arc<str> = name.into();
            match (&namesakes[0].table, namesakes.len()) {
                (Ok(table), 1) => drop(schema.tables.insert(name, Arc::clone(table))),
                (Err(reason), 1) => drop(schema.hidden.insert(name, reason.clone())),
                // Queries would read one and follow the other.
                _ => drop(schema.hidden.insert(Arc::clone(&name), ambiguous(&name, &namesakes))),
            }
        }
        Catalog { layouts, schema: Arc::new(schema) }
    }

    /// The layout of a visible table by wire name.
    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<Layout>> {
        let table = self.schema.tables.get(name)?;
        self.layouts.values().find(|l| l.table.as_ref().is_ok_and(|t| Arc::ptr_eq(t, table)))
    }
}

/// Says why several tables cannot be synced under one name.
fn ambiguous(name: &str, namesakes: &[&Layout]) -> String {
    let tables: Vec<String> = namesakes.iter().map(|l| format!("\"{}\".\"{}\"", l.spec.schema, l.spec.name)).collect();
    format!(
        "clients would know the tables {} by the one name \"{name}\"; rename all but one of them",
        tables.join(" and ")
    )
}
