//! LIKE and ILIKE inside SQLite, by the engine's own implementation, so that both always agree.

use std::sync::Arc;

use ivm::like::Pattern;
use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;

use crate::error::Fault;

/// `zql_like(text, pattern, case_insensitive)`; NULL for NULL text. SQLite keeps the prepared pattern while a statement runs.
pub(crate) fn register(conn: &Connection) -> Result<(), Fault> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS;
    conn.create_scalar_function("zql_like", 3, flags, |context| {
        let case_insensitive = context.get::<i64>(2)? != 0;
        let pattern: Arc<Option<Pattern>> = context.get_or_create_aux(1, |pattern| {
            let pattern = match pattern {
                ValueRef::Text(pattern) => std::str::from_utf8(pattern).ok(),
                _ => None,
            };
            Ok::<_, rusqlite::Error>(pattern.map(|pattern| Pattern::new(pattern, case_insensitive)))
        })?;
        let (ValueRef::Text(text), Some(pattern)) = (context.get_raw(0), &*pattern) else { return Ok(None) };
        Ok(std::str::from_utf8(text).ok().map(|text| pattern.matches(text)))
    })?;
    Ok(())
}
