//! Keeps the WAL short. The writer copies it into the file piece by piece; SQLite starts it over when no reader needs it. When
//! readers overlap for so long that it never starts over, new ones are held off for a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rusqlite::Connection;

use crate::connection;
use crate::error::Fault;
use crate::gate::CommitGate;

/// Copy after so many pages (32 MiB of 4 KiB pages): rows that change often are then copied once for many changes.
const STEP: u32 = 8 << 10;
/// Try to cut the file back to nothing from here on.
const LONG: u32 = 20 << 10;
/// Hold off new readers and wait for the present ones from here on.
const TOO_LONG: u32 = 64 << 10;
const PATIENCE: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Checkpointer {
    /// Pages in the WAL after the last commit.
    pages: Arc<AtomicU32>,
    due: u32,
    warned: bool,
}

impl Checkpointer {
    /// Replaces SQLite's automatic checkpoints.
    pub(crate) fn install(conn: &mut Connection) -> Result<Checkpointer, Fault> {
        let pages = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&pages);
        conn.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, n: std::ffi::c_int| {
            seen.store(u32::try_from(n).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        }))?;
        Ok(Checkpointer { pages, due: STEP, warned: false })
    }

    pub(crate) fn after_commit(&mut self, conn: &Connection, gate: &CommitGate) {
        let pages = self.pages.load(Ordering::Relaxed);
        if pages < STEP {
            self.due = STEP;
            self.warned = false;
        }
        if pages < self.due {
            return;
        }
        self.due = pages + STEP;
        let result = if pages < LONG {
            run(conn, "PASSIVE").map(drop)
        } else if pages < TOO_LONG {
            gate.quiet(|| cut(conn, Duration::ZERO)).map(drop)
        } else {
            gate.quiet(|| cut(conn, PATIENCE)).map(|cut| {
                if !cut && !self.warned {
                    self.warned = true;
                    tracing::warn!(pages, "the WAL keeps growing because a read transaction stays open");
                }
            })
        };
        if let Err(e) = result {
            // Nothing is lost: the WAL holds every commit, and the next checkpoint tries again.
            tracing::warn!(error = %e, "checkpoint failed");
        }
    }

    /// Copies everything and cuts the WAL, waiting so long for readers.
    pub(crate) fn truncate(&mut self, conn: &Connection, gate: &CommitGate) -> Result<bool, Fault> {
        gate.quiet(|| cut(conn, PATIENCE))
    }
}

/// Whether the WAL was cut.
fn cut(conn: &Connection, patience: Duration) -> Result<bool, Fault> {
    conn.busy_timeout(patience)?;
    let result = run(conn, "TRUNCATE");
    conn.busy_timeout(connection::BUSY_TIMEOUT)?;
    result
}

/// Whether the checkpoint did all it was asked for.
fn run(conn: &Connection, mode: &str) -> Result<bool, Fault> {
    let busy: i64 = conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get(0))?;
    Ok(busy == 0)
}
