//! Connections to a replica file, for the writer and for readers.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::error::Fault;
use crate::like;

pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens an existing file; never creates one.
pub(crate) fn open(path: &Path, read_only: bool, cache_kib: u32, statements: usize) -> Result<Connection, Fault> {
    let access = if read_only { OpenFlags::SQLITE_OPEN_READ_ONLY } else { OpenFlags::SQLITE_OPEN_READ_WRITE };
    let conn = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    // A plan must depend on the statement alone: peeking at bound values would prepare statements again and again.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    conn.pragma_update(None, "cache_size", -i64::from(cache_kib))?;
    conn.set_prepared_statement_cache_capacity(statements);
    like::register(&conn)?;
    Ok(conn)
}
