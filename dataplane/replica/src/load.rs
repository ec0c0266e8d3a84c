//! The initial copy: into a temporary file beside the target, which takes the target's name when it is complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rows::{CellRef, CopyBlock, TableSpec, Version};
use rusqlite::types::ValueRef as Stored;
use rusqlite::{Connection, OpenFlags};

use crate::alter;
use crate::cells::{bind, to_stored};
use crate::connection;
use crate::error::{At, Error, Fault};
use crate::layout::Layout;
use crate::meta::{self, Description};
use crate::names;
use crate::open::{self, Found};

const CACHE_KIB: u32 = 16 << 10;
/// Sorting for indexes may use more: nothing else runs then.
const INDEX_CACHE_KIB: u32 = 64 << 10;

/// An initial copy under way. Dropped before [`Loader::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Loader {
    target: PathBuf,
    temporary: PathBuf,
    description: Description,
    tables: Vec<Layout>,
    inserts: Vec<String>,
    /// Tables of which it was said that they have rows that are not shown.
    told: Vec<bool>,
    /// `None` once finished.
    conn: Option<Connection>,
}

impl Loader {
    /// Starts a copy of `tables` for `target`. An older replica of the same app and shard stays in place until
    /// [`Loader::finish`]; any other file there is refused.
    pub fn create(target: &Path, description: Description, tables: Vec<Arc<TableSpec>>) -> Result<Loader, Error> {
        match open::inspect(target)? {
            Found::Missing | Found::Empty => {}
            Found::Ours => open::check_owner(target, &description.identity)?,
        }
        let temporary = temporary_path(target);
        remove_database(&temporary).at(&temporary, "remove the rest of an unfinished copy")?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(&temporary, flags).at(&temporary, "create")?;
        // Owns the file from here on, so that every error path removes it.
        let mut loader = Loader {
            target: target.to_path_buf(),
            temporary,
            description,
            tables: Vec::new(),
            inserts: Vec::new(),
            told: Vec::new(),
            conn: Some(conn),
        };
        loader.prepare(tables).map_err(|fault| fault.at(&loader.temporary, "create tables"))?;
        Ok(loader)
    }

    fn prepare(&mut self, specs: Vec<Arc<TableSpec>>) -> Result<(), Fault> {
        let conn = self.conn.as_ref().expect("open until finished");
        conn.execute_batch(&format!(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -{CACHE_KIB};"
        ))?;
        meta::create(conn)?;
        conn.execute_batch("BEGIN")?;
        for spec in specs {
            // The rows carry version 0, which the table's minimum version stands in for.
            let layout = Layout::new(spec, Version::ZERO);
            conn.execute_batch(&layout.create_table())?;
            self.inserts.push(layout.insert());
            self.told.push(false);
            self.tables.push(layout);
        }
        conn.set_prepared_statement_cache_capacity(self.tables.len().max(16));
        Ok(())
    }

    /// Appends rows to the table at `index` of the list given to [`Loader::create`].
    pub fn block(&mut self, index: usize, block: &CopyBlock) -> Result<(), Error> {
        let layout = &self.tables[index];
        let unbounded = |row: usize, k: usize| matches!(block.cell(row, k), CellRef::Float(f) if !f.is_finite());
        if !self.told[index] && (0..block.row_count()).any(|row| layout.fragile.iter().any(|&k| unbounded(row, k))) {
            self.told[index] = true;
            layout.tell_not_shown();
        }
        self.append(index, block).map_err(|fault| fault.at(&self.temporary, "copy rows"))
    }

    fn append(&self, index: usize, block: &CopyBlock) -> Result<(), Fault> {
        let conn = self.conn.as_ref().expect("open until finished");
        let columns = &self.tables[index].spec.columns;
        if block.column_count() != columns.len() {
            return Err(Fault::diverged(format!(
                "copied rows of table {} have {} columns instead of {}",
                self.tables[index].spec.wire_name(),
                block.column_count(),
                columns.len()
            )));
        }
        let mut statement = conn.prepare_cached(&self.inserts[index])?;
        bind(&mut statement, columns.len() + 1, Stored::Integer(0))?;
        for row in 0..block.row_count() {
            for (i, column) in columns.iter().enumerate() {
                bind(&mut statement, i + 1, to_stored(column, block.cell(row, i))?)?;
            }
            statement.raw_execute()?;
        }
        Ok(())
    }

    /// Completes the copy, which is upstream at `version`, and puts it in the target's place.
    pub fn finish(mut self, version: Version) -> Result<(), Error> {
        self.complete(version).map_err(|fault| fault.at(&self.temporary, "complete the copy"))?;
        // A WAL of the file that is replaced must never be read together with the new one.
        remove_database(&self.target).at(&self.target, "remove the former replica")?;
        fs::rename(&self.temporary, &self.target).at(&self.target, "put the new copy in place")?;
        sync_directory(&self.target).at(&self.target, "make the new copy durable")
    }

    fn complete(&mut self, version: Version) -> Result<(), Fault> {
        let conn = self.conn.take().expect("finished once");
        self.description.initial_version = version;
        meta::write_description(&conn, &self.description)?;
        for layout in self.tables.drain(..) {
            let layout = Layout::new(layout.spec, version);
            meta::write_table(&conn, &layout)?;
        }
        conn.execute_batch("COMMIT")?;
        connection::spill_beside(&conn, &self.target);
        conn.execute_batch(&format!("PRAGMA cache_size = -{INDEX_CACHE_KIB}"))?;
        let layouts = meta::read_catalog(&conn)?.layouts;
        let specs: Vec<Arc<TableSpec>> = layouts.values().map(|l| Arc::clone(&l.spec)).collect();
        for layout in layouts.values() {
            let indexed = alter::add_indexes(&conn, layout)?;
            if indexed.left_out.is_some() {
                meta::write_table(&conn, &indexed)?;
            }
        }
        names::renew(&conn, &specs)?;
        conn.execute_batch("PRAGMA analysis_limit = 1000; ANALYZE;")?;
        conn.execute_batch("PRAGMA locking_mode = NORMAL; PRAGMA synchronous = FULL;")?;
        conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        conn.close().map_err(|(_, e)| e)?;
        File::open(&self.temporary)?.sync_all()?;
        Ok(())
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        drop(self.conn.take());
        if let Err(e) = remove_database(&self.temporary) {
            tracing::warn!(path = %self.temporary.display(), error = %e, "an unfinished copy could not be removed");
        }
    }
}

/// Where an initial copy for `target` is built.
pub(crate) fn temporary_path(target: &Path) -> PathBuf {
    with_suffix(target, ".copying")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes a database file, then what belongs to it.
pub(crate) fn remove_database(path: &Path) -> std::io::Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        match fs::remove_file(with_suffix(path, suffix)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(parent(path))?.sync_all()
}
