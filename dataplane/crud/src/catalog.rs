//! What clients may name: published tables, their visible columns and their keys, with what SQL needs to know of them.

use std::collections::BTreeMap;

use rows::ColumnType;
use tokio_postgres::Client;
use upstream::{App, PublishedTable, quote_identifier};

use crate::value::Form;

/// As of one look at upstream. By names as clients have them.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    tables: BTreeMap<String, Table>,
    /// By which letters of all alphabets are made small; `None` if the server has no such collation.
    pub folding: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Table {
    pub name: String,
    /// Schema and name, quoted.
    pub sql: String,
    columns: BTreeMap<String, Column>,
    /// Sorted names of the columns that together are unique and never null.
    keys: Vec<Vec<String>>,
    /// Rows that fail it are not published, and not there for rules.
    pub filter: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Column {
    pub name: String,
    /// Quoted.
    pub sql: String,
    pub cast: String,
    pub form: Form,
    pub ty: ColumnType,
    pub type_oid: u32,
    pub collation: u32,
    pub is_deterministic: bool,
    /// Its operators are an extension's: there is no saying in which schema.
    pub is_foreign: bool,
}

/// Types of extensions that clients may see.
const FOREIGN: [&str; 8] = ["ean13", "isbn", "isbn13", "ismn", "ismn13", "issn", "issn13", "upc"];

impl Tables {
    pub(crate) async fn load(client: &Client, app: &App) -> Result<Tables, upstream::Error> {
        let published = upstream::published(client, app).await?;
        let folding = client
            .query_typed(
                "SELECT l.collname::text FROM pg_catalog.pg_collation l
                 WHERE l.collnamespace = 'pg_catalog'::regnamespace AND l.collname IN ('und-x-icu', 'pg_c_utf8')
                 ORDER BY l.collname DESC LIMIT 1",
                &[],
            )
            .await;
        // Servers that have neither fold as the database does.
        let folding = folding.ok().and_then(|rows| rows.first().map(|row| row.get(0)));
        Ok(Tables { tables: published.into_iter().filter_map(table).map(|t| (t.name.clone(), t)).collect(), folding })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Table> {
        self.tables.get(name)
    }
}

/// `None` if clients see nothing of it.
fn table(published: PublishedTable) -> Option<Table> {
    let spec = &published.spec;
    let visible = rows::schema::Table::visible(spec).ok()?;
    let name_of = |position: &usize| visible.columns[*position].name.to_string();
    let mut keys: Vec<Vec<String>> =
        visible.unique_keys.iter().map(|key| key.iter().map(name_of).collect::<Vec<_>>()).collect();
    keys.iter_mut().for_each(|key| key.sort_unstable());
    let column = |(spec, sql): (&rows::schema::ColumnSpec, upstream::SqlColumn)| {
        let column = Column {
            name: spec.name.clone(),
            sql: quote_identifier(&spec.name),
            cast: sql.cast,
            form: Form::of(spec.type_oid, sql.element),
            ty: spec.ty,
            type_oid: spec.type_oid,
            collation: sql.collation,
            is_deterministic: sql.is_deterministic,
            is_foreign: FOREIGN.contains(&spec.type_name.as_str()),
        };
        (spec.ty != ColumnType::Hidden).then(|| (spec.name.clone(), column))
    };
    Some(Table {
        name: spec.wire_name(),
        sql: format!("{}.{}", quote_identifier(&spec.schema), quote_identifier(&spec.name)),
        columns: spec.columns.iter().zip(published.columns).filter_map(column).collect(),
        keys,
        filter: published.filter,
    })
}

impl Table {
    pub(crate) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.get(name)
    }

    /// Whether these columns tell every row from every other.
    pub(crate) fn is_key(&self, names: &[String]) -> bool {
        let mut sorted = names.to_vec();
        sorted.sort_unstable();
        self.keys.contains(&sorted)
    }
}
