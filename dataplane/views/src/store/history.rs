//! The stored history of one lineage: a base row set and the deltas after it.

use rows::Version;
use rustc_hash::{FxHashMap, FxHashSet};
use tracing::warn;

use super::{LineageId, RowSet};
use crate::row_id::{self, DecodeError, Encoder, Presence, RowId};

/// A delta is merged with the newer ones when these are not much smaller together: each byte is then rewritten a logarithmic
/// number of times, however long a lineage lives.
const MERGE_RATIO: usize = 2;

pub(super) struct History {
    pub base_version: Version,
    pub base: Vec<u8>,
    pub deltas: Vec<Delta>,
}

#[derive(Clone)]
pub(super) struct Delta {
    pub version: Version,
    pub entries: Vec<u8>,
    /// Nobody comes back from before it.
    pub old: bool,
}

/// What replaces the deltas from `from` on (by index): one delta of the newest version.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Merged {
    pub from: usize,
    pub entries: Vec<u8>,
}

impl History {
    pub fn latest(&self, lineage: LineageId) -> Option<RowSet> {
        let mut rows = FxHashMap::default();
        for bytes in std::iter::once(&self.base).chain(self.deltas.iter().map(|d| &d.entries)) {
            if let Err(error) = row_id::fold(bytes, &mut rows) {
                warn!(lineage, %error, "CVR: stored history is not usable");
                return None;
            }
        }
        Some(RowSet { version: self.deltas.last().map_or(self.base_version, |d| d.version), rows })
    }

    pub fn touched(&self, lineage: LineageId, since: Version, held: bool) -> Option<Vec<RowId>> {
        if since < self.base_version {
            return None;
        }
        let mut ids: FxHashSet<RowId> = FxHashSet::default();
        let base = held.then_some(&self.base).into_iter();
        let deltas = self.deltas.iter().filter(|d| held || d.version > since).map(|d| &d.entries);
        for bytes in base.chain(deltas) {
            if let Err(error) = row_id::decode(bytes, |id, _| {
                ids.insert(id);
            }) {
                warn!(lineage, %error, "CVR: stored history is not usable");
                return None;
            }
        }
        let mut ids: Vec<RowId> = ids.into_iter().collect();
        ids.sort_unstable();
        Some(ids)
    }

    /// One delta in place of several of the newest: a client inside the merged range is sent a superset of what it needs.
    pub fn merged(&self) -> Result<Option<Merged>, DecodeError> {
        let mut from = self.deltas.len();
        let mut size = 0;
        while from > 0 && (size == 0 || self.deltas[from - 1].entries.len() <= size * MERGE_RATIO) {
            from -= 1;
            size += self.deltas[from].entries.len();
        }
        if self.deltas.len() - from < 2 {
            return Ok(None);
        }
        let mut merged: FxHashMap<RowId, Presence> = FxHashMap::default();
        for delta in &self.deltas[from..] {
            row_id::decode(&delta.entries, |id, presence| {
                merged.insert(id, presence);
            })?;
        }
        let mut ids: Vec<(RowId, Presence)> = merged.into_iter().collect();
        ids.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(Some(Merged { from, entries: encode(&ids) }))
    }

    /// The base that takes in the deltas that are old, and its version.
    pub fn rebased(&self) -> Result<Option<(Version, Vec<u8>)>, DecodeError> {
        let old = self.deltas.iter().take_while(|d| d.old);
        let Some(version) = old.clone().last().map(|d| d.version) else { return Ok(None) };
        let mut rows = FxHashMap::default();
        for bytes in std::iter::once(&self.base).chain(old.map(|d| &d.entries)) {
            row_id::fold(bytes, &mut rows)?;
        }
        let mut rows: Vec<(RowId, Presence)> = rows.into_iter().map(|(id, v)| (id, Presence::Present(v))).collect();
        rows.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(Some((version, encode(&rows))))
    }
}

fn encode(rows: &[(RowId, Presence)]) -> Vec<u8> {
    let mut encoder = Encoder::default();
    for (id, presence) in rows {
        encoder.push(id, *presence);
    }
    encoder.finish()
}

/// LSNs stay far below 2^63: that would be eight exabytes of WAL.
pub(super) fn as_i64(version: Version) -> i64 {
    version.as_u64().cast_signed()
}

pub(super) fn as_version(stored: i64) -> Version {
    Version::new(stored.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rows::{Key, Value};

    fn id(n: i64) -> RowId {
        RowId { table: "t".into(), key: Key::from_values(&[Value::Int(n)]) }
    }

    fn delta(version: u64, old: bool, rows: &[(i64, Presence)]) -> Delta {
        let rows: Vec<(RowId, Presence)> = rows.iter().map(|(n, p)| (id(*n), *p)).collect();
        Delta { version: Version::new(version), entries: encode(&rows), old }
    }

    fn present(version: u64) -> Presence {
        Presence::Present(Version::new(version))
    }

    fn history() -> History {
        let many: Vec<(i64, Presence)> = (10..60).map(|n| (n, present(2))).collect();
        History {
            base_version: Version::new(1),
            base: encode(&[(id(1), present(1)), (id(2), present(1))]),
            deltas: vec![
                delta(2, true, &many),
                delta(3, true, &[(1, Presence::Gone)]),
                delta(4, false, &[(3, present(4))]),
                delta(5, false, &[(3, Presence::Gone), (4, present(5))]),
            ],
        }
    }

    #[test]
    fn merging_and_rebasing_change_no_row_set() {
        let before = history();
        let set = before.latest(1).unwrap();
        assert_eq!((set.version, set.rows.len()), (Version::new(5), 52));

        let merged = before.merged().unwrap().unwrap();
        assert_eq!(merged.from, 1, "the large delta is left alone");
        let mut after = history();
        after.deltas.truncate(merged.from);
        after.deltas.push(Delta { version: Version::new(5), entries: merged.entries, old: false });
        assert_eq!(after.latest(1).unwrap().rows, set.rows);
        for since in 1..5 {
            let needed = before.touched(1, Version::new(since), false).unwrap();
            let sent = after.touched(1, Version::new(since), false).unwrap();
            assert!(needed.iter().all(|id| sent.contains(id)), "from {since}");
        }
        assert_eq!(after.merged().unwrap(), None);

        let (version, base) = before.rebased().unwrap().unwrap();
        assert_eq!(version, Version::new(3));
        let mut after = history();
        after.base_version = version;
        after.base = base;
        after.deltas.drain(..2);
        assert_eq!(after.latest(1).unwrap().rows, set.rows);
        assert_eq!(after.touched(1, Version::new(2), false), None);
        assert_eq!(after.touched(1, Version::new(3), false).unwrap(), [id(3), id(4)]);
        assert_eq!(after.rebased().unwrap(), None);
    }

    #[test]
    fn all_rows_ever_held_include_those_of_the_base() {
        assert_eq!(history().touched(1, Version::new(4), false).unwrap(), [id(3), id(4)]);
        assert_eq!(history().touched(1, Version::new(4), true).unwrap().len(), 54);
    }
}
