//! LIKE and ILIKE inside SQLite, by the engine's own implementation, so that both always agree.

use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;

use crate::error::Fault;

/// `zql_like(text, pattern, case_insensitive)`; NULL for NULL text.
pub(crate) fn register(conn: &Connection) -> Result<(), Fault> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS;
    conn.create_scalar_function("zql_like", 3, flags, |context| {
        let (ValueRef::Text(text), ValueRef::Text(pattern)) = (context.get_raw(0), context.get_raw(1)) else {
            return Ok(None);
        };
        let (Ok(text), Ok(pattern)) = (std::str::from_utf8(text), std::str::from_utf8(pattern)) else {
            return Ok(None);
        };
        Ok(Some(ivm::like::like(text, pattern, context.get::<i64>(2)? != 0)))
    })?;
    Ok(())
}
