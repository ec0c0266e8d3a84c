//! Views under the tables' and columns' own names, for a person who looks into the file: `SELECT title FROM albums`.
//!
//! The server itself never reads them. They are made and dropped in the transaction that changes the tables, and always name
//! tables and columns that exist: SQLite refuses to alter a table while some view is broken.
//!
//! A view has the table's wire name, unless SQLite keeps that name, a table or index of ours has it or might, or another view
//! has it in another case, which SQLite cannot tell apart; then the name is longer, as in `public.t16385`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use rows::TableSpec;
use rusqlite::Connection;

use crate::error::Fault;
use crate::layout::{column_name, table_name};

/// Makes the views be those of these tables.
pub(crate) fn renew(conn: &Connection, specs: &[Arc<TableSpec>]) -> Result<(), Fault> {
    let wanted = views(specs);
    let present = present(conn)?;
    for (name, sql) in &present {
        if wanted.get(name) != Some(sql) {
            remove(conn, name)?;
        }
    }
    for (name, sql) in &wanted {
        if present.get(name) != Some(sql) {
            conn.execute_batch(sql)?;
        }
    }
    Ok(())
}

pub(crate) fn are_current(conn: &Connection, specs: &[Arc<TableSpec>]) -> Result<bool, Fault> {
    Ok(present(conn)? == views(specs))
}

/// Drops the view of a table that is about to change.
pub(crate) fn release(conn: &Connection, oid: u32) -> Result<(), Fault> {
    let end = end(oid);
    for (name, _) in present(conn)?.iter().filter(|(_, sql)| sql.ends_with(&end)) {
        remove(conn, name)?;
    }
    Ok(())
}

/// Names and texts of all views.
fn present(conn: &Connection) -> Result<BTreeMap<String, String>, Fault> {
    let mut statement = conn.prepare("SELECT name, sql FROM sqlite_schema WHERE type = 'view'")?;
    let views = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(views.collect::<Result<_, _>>()?)
}

fn remove(conn: &Connection, name: &str) -> Result<(), Fault> {
    Ok(conn.execute_batch(&format!("DROP VIEW {}", quoted(name)))?)
}

fn views(specs: &[Arc<TableSpec>]) -> BTreeMap<String, String> {
    let mut taken = BTreeSet::new();
    let mut views = BTreeMap::new();
    for spec in specs {
        let (schema, name, oid) = (&spec.schema, &spec.name, spec.oid);
        let names = [
            spec.wire_name(),
            format!("{schema}.{name}"),
            format!("{schema}.{name}.{oid}"),
            format!("table.{schema}.{name}.{oid}"),
        ];
        let free = names.into_iter().find(|n| !is_reserved(n) && taken.insert(n.to_ascii_lowercase()));
        if let Some(name) = free {
            let text = text(&name, spec);
            views.insert(name, text);
        }
    }
    views
}

/// Whether a name is SQLite's, or of the form of our tables and indexes or the original server's.
fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let numbered =
        name.strip_prefix(['t', 'k', 'i', 'x']).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    numbered || ["sqlite_", "_zero_", "_zero."].iter().any(|prefix| name.starts_with(prefix))
}

fn text(name: &str, spec: &TableSpec) -> String {
    let mut sql = format!("CREATE VIEW {} AS SELECT ", quoted(name));
    for (i, column) in spec.columns.iter().enumerate() {
        let comma = if i > 0 { ", " } else { "" };
        let _ = write!(sql, "{comma}{} AS {}", column_name(column.attnum), quoted(&column.name));
    }
    sql + &end(spec.oid)
}

fn end(oid: u32) -> String {
    format!(" FROM {}", table_name(oid))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
