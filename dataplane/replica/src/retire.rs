//! Removing a replica that a node has left behind, and nothing else.

use std::path::Path;
use std::time::Duration;

use crate::connection;
use crate::error::{At, Error};
use crate::load::{remove_database, temporary_path};
use crate::meta::{self, Identity};
use crate::open::{Found, check, inspect};

/// Removes the replica at `path` with what belongs to it. Fails, and removes nothing, unless it is one of `expect` that nobody has
/// open.
pub fn retire(path: &Path, expect: &Identity) -> Result<(), Error> {
    let refused = |reason: &str| Error::Refused { path: path.to_path_buf(), reason: reason.to_owned() };
    if inspect(path)? != Found::Ours {
        return Err(refused("it holds no replica"));
    }
    {
        let conn = connection::open(path, false, 1024, 16).at(path, "open")?;
        let description = meta::read_description(&conn).at(path, "read whose replica it is")?;
        check(path, &description.identity, expect)?;
        // SQLite leaves the write-ahead log only if no other connection is open, in any process.
        conn.busy_timeout(Duration::ZERO).at(path, "open")?;
        let mode = conn.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get::<_, String>(0));
        if mode.is_ok_and(|mode| mode == "delete") { Ok(()) } else { Err(refused("somebody uses it")) }?;
    }
    remove_database(&temporary_path(path)).at(path, "remove")?;
    remove_database(path).at(path, "remove")
}
