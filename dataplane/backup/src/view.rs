//! One version of a replica file, held still while its pages are read.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rows::Version;
use rusqlite::{Connection, OpenFlags};

use crate::error::Error;
use crate::ltx::{self, Encoder};
use crate::name::Txid;
use crate::now_ms;

/// Pages between two looks at whether to go on.
const PAGES_PER_LOOK: u32 = 1024;

/// A read transaction over the whole file. SQLite keeps every later change in the WAL until this is dropped.
#[derive(Debug)]
pub struct View {
    path: PathBuf,
    conn: Connection,
    pub version: Version,
    pub page_size: u32,
    /// Pages of the database.
    pub commit: u32,
    /// Set from outside to end [`View::dump`] early.
    pub given_up: Arc<AtomicBool>,
}

impl View {
    /// Holds the present version.
    pub fn open(path: &Path) -> Result<View, Error> {
        let mut view = View::prepare(path)?;
        view.begin()?;
        Ok(view)
    }

    /// Opens the file without holding anything yet, which takes longer than [`View::begin`].
    pub fn prepare(path: &Path) -> Result<View, Error> {
        let conn = connect(path).map_err(|e| Error::local(path, "open", e))?;
        Ok(View {
            path: path.to_path_buf(),
            conn,
            version: Version::ZERO,
            page_size: 0,
            commit: 0,
            given_up: Arc::default(),
        })
    }

    pub fn begin(&mut self) -> Result<(), Error> {
        let begun = || -> rusqlite::Result<(Version, u32, u32)> {
            self.conn.execute_batch("BEGIN")?;
            let version = version(&self.conn)?;
            let page_size = self.conn.query_row("PRAGMA page_size", [], |row| row.get(0))?;
            let commit = self.conn.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            Ok((version, page_size, commit))
        };
        let begun = begun().map_err(|e| Error::local(&self.path, "begin reading", e))?;
        (self.version, self.page_size, self.commit) = begun;
        Ok(())
    }

    #[must_use]
    pub fn byte_count(&self) -> u64 {
        u64::from(self.commit) * u64::from(self.page_size)
    }

    /// Writes all pages as a snapshot of the transactions up to `max`, and returns the writer.
    pub fn dump<W: Write>(&self, max: Txid, out: W) -> Result<W, Error> {
        let header = ltx::Header {
            page_size: self.page_size,
            commit: self.commit,
            min: Txid::FIRST,
            max,
            timestamp_ms: now_ms(),
            version: self.version.as_u64(),
        };
        let failed = |e: std::io::Error| {
            Error::from_io(e).unwrap_or_else(|e| Error::local(&self.path, "write the snapshot of", e))
        };
        let reading = |e: rusqlite::Error| Error::local(&self.path, "read", e);
        let mut encoder = Encoder::new(out, header).map_err(failed)?;
        let mut statement = self.conn.prepare("SELECT pgno, data FROM sqlite_dbpage").map_err(reading)?;
        let mut rows = statement.query([]).map_err(reading)?;
        while let Some(row) = rows.next().map_err(reading)? {
            let number: u32 = row.get(0).map_err(reading)?;
            if number == header.lock_page() {
                continue;
            }
            if number.is_multiple_of(PAGES_PER_LOOK) && self.given_up.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let content = row.get_ref(1).map_err(reading)?.as_blob().map_err(|e| reading(e.into()))?;
            encoder.page(number, content).map_err(failed)?;
        }
        Ok(encoder.finish().map_err(failed)?.0)
    }
}

/// Opens a replica file for reading; it must be there.
pub fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(conn)
}

/// The version that a read transaction sees. As its first read this also begins it in earnest.
pub fn version(conn: &Connection) -> rusqlite::Result<Version> {
    let version: i64 = conn.prepare_cached(replica::VERSION_QUERY)?.query_row([], |row| row.get(0))?;
    Ok(Version::new(version as u64))
}
