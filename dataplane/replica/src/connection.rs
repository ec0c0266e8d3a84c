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

/// Lets this process's large sorts spill beside the replica: a container's other directories may be small or read-only.
pub(crate) fn spill_beside(conn: &Connection, path: &Path) {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    if let Err(e) = conn.pragma_update(None, "temp_store_directory", directory.to_string_lossy()) {
        tracing::debug!(directory = %directory.display(), error = %e, "sorting will use the system's temporary directory");
    }
}
