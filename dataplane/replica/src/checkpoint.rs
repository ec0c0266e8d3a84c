//! Keeps the WAL short. The writer copies it into the file piece by piece; SQLite starts it over when no reader needs it. When
//! readers overlap for so long that it never starts over, new ones are held off for a moment. Whoever copies the WAL elsewhere is
//! asked before it is cut.

use std::sync::Arc;
use std::time::Duration;

use rows::Version;
use rusqlite::Connection;

use crate::connection;
use crate::error::Fault;
use crate::gate::CommitGate;
use crate::keeper::{WalEnd, WalKeeper};

/// Copy after so many pages (32 MiB of 4 KiB pages): rows that change often are then copied once for many changes.
const STEP: u32 = 8 << 10;
/// Try to cut the file back to nothing from here on.
const LONG: u32 = 20 << 10;
/// Hold off new readers and wait for the present ones from here on; if that was in vain, again at twice the length.
const TOO_LONG: u32 = 64 << 10;
const PATIENCE: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Checkpointer {
    end: Arc<WalEnd>,
    due: u32,
    /// Pages at which to wait for readers.
    patient_at: u32,
    keeper: Option<Box<dyn WalKeeper>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Cut {
    Done,
    /// Somebody reads from the WAL.
    InUse,
    /// It is not yet copied elsewhere.
    Kept,
}

impl Checkpointer {
    /// Replaces SQLite's automatic checkpoints.
    pub(crate) fn install(conn: &mut Connection) -> Result<Checkpointer, Fault> {
        let end = Arc::new(WalEnd::default());
        let seen = Arc::clone(&end);
        conn.wal_hook(Some(move |_: &mut rusqlite::hooks::Wal, n: std::ffi::c_int| {
            seen.committed(u32::try_from(n).unwrap_or(0));
            Ok(())
        }))?;
        Ok(Checkpointer { end, due: STEP, patient_at: TOO_LONG, keeper: None })
    }

    pub(crate) fn end(&self) -> Arc<WalEnd> {
        Arc::clone(&self.end)
    }

    /// Asks `keeper` from now on. Cuts once, after which the end of the WAL is known even before the first commit.
    pub(crate) fn keep(
        &mut self,
        conn: &Connection,
        gate: &CommitGate,
        keeper: Box<dyn WalKeeper>,
    ) -> Result<(), Fault> {
        self.keeper = Some(keeper);
        self.truncate(conn, gate).map(drop)
    }

    pub(crate) fn after_commit(&mut self, conn: &Connection, gate: &CommitGate) {
        let pages = self.end.frames();
        if pages < STEP {
            self.due = STEP;
            self.patient_at = TOO_LONG;
        }
        if pages < self.due {
            return;
        }
        self.due = pages + STEP;
        let result = if pages < LONG {
            self.copy(conn, gate.version())
        } else if pages < self.patient_at {
            gate.quiet(|version| self.cut(conn, version, Duration::ZERO)).map(drop)
        } else {
            gate.quiet(|version| self.cut(conn, version, PATIENCE)).map(|cut| {
                if cut == Cut::InUse {
                    self.patient_at = pages.saturating_mul(2);
                    tracing::warn!(pages, "the WAL keeps growing because a read transaction stays open");
                }
            })
        };
        if let Err(e) = result {
            // Nothing is lost: the WAL holds every commit, and the next checkpoint tries again.
            tracing::warn!(error = %e, "checkpoint failed");
        }
    }

    /// Copies everything and cuts the WAL, waiting so long for readers. Whether it was cut.
    pub(crate) fn truncate(&mut self, conn: &Connection, gate: &CommitGate) -> Result<bool, Fault> {
        Ok(gate.quiet(|version| self.cut(conn, version, PATIENCE))? == Cut::Done)
    }

    /// Copies what readers allow. If that is everything, the next commit starts the WAL over in place, which costs less than cutting
    /// it: its blocks stay where they are.
    fn copy(&mut self, conn: &Connection, version: Version) -> Result<(), Fault> {
        let is_released = self.keeper.as_mut().is_some_and(|keeper| keeper.release(version));
        let result = run(conn, "PASSIVE").map(drop);
        if let Some(keeper) = self.keeper.as_mut().filter(|_| is_released) {
            keeper.resume();
        }
        result
    }

    fn cut(&mut self, conn: &Connection, version: Version, patience: Duration) -> Result<Cut, Fault> {
        let Some(keeper) = &mut self.keeper else { return truncate(conn, &self.end, patience) };
        if !keeper.release(version) {
            run(conn, "PASSIVE")?;
            return Ok(Cut::Kept);
        }
        let result = truncate(conn, &self.end, patience);
        keeper.resume();
        result
    }
}

fn truncate(conn: &Connection, end: &WalEnd, patience: Duration) -> Result<Cut, Fault> {
    conn.busy_timeout(patience)?;
    let result = run(conn, "TRUNCATE");
    conn.busy_timeout(connection::BUSY_TIMEOUT)?;
    let (is_complete, frames) = result?;
    if let Some(frames) = frames {
        end.checkpointed(frames);
    }
    Ok(if is_complete { Cut::Done } else { Cut::InUse })
}

/// Whether the checkpoint did all it was asked for, and the number of frames that the WAL holds now.
fn run(conn: &Connection, mode: &str) -> Result<(bool, Option<u32>), Fault> {
    let (busy, frames): (i64, i64) =
        conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok((busy == 0, u32::try_from(frames).ok()))
}
