//! Flushes as statements of bounded size.
//!
//! Invariant: rows come before the records that name them, and of two records of a group only the later one is left.

use std::collections::{BTreeMap, VecDeque};

use rows::Version;
use rustc_hash::FxHashSet;

use super::{Delta, Flush, GroupRow, Lineage, LineageId, Tenure};

/// Bytes of one statement. An item that is larger goes alone.
const PART_BYTES: usize = 16 << 20;
/// Flushes are taken together up to so many bytes.
const TAKEN_BYTES: usize = 64 << 20;
/// Postgres takes no value of a gigabyte, and needs several times the memory of one on the way.
const ITEM_BYTES_MAX: usize = 256 << 20;

/// What is stored in one piece.
pub(super) enum Item {
    Lineage(Lineage),
    Delta(Delta),
    Group(GroupRow),
}

impl Item {
    pub(super) fn bytes(&self) -> usize {
        const AROUND: usize = 64;
        AROUND
            + match self {
                Item::Lineage(lineage) => lineage.base.len() + lineage.key.len(),
                Item::Delta(delta) => delta.entries.len(),
                Item::Group(group) => group.record.len() + group.id.len() + group.lineages.len() * 8,
            }
    }

    pub(super) fn is_too_large(&self) -> bool {
        self.bytes() > ITEM_BYTES_MAX
    }
}

/// Several flushes, to be stored in order.
#[derive(Default)]
pub(super) struct Taken {
    pub version: Version,
    rows: Vec<Item>,
    groups: BTreeMap<String, GroupRow>,
    pub released: Vec<Tenure>,
    pub leave: bool,
    bytes: usize,
}

impl Taken {
    /// `without`: lineages whose history could not be stored; what follows would have a gap before it.
    pub(super) fn add(&mut self, flush: Flush, without: &FxHashSet<LineageId>) {
        self.version = self.version.max(flush.version);
        let lineages = flush.lineages.into_iter().filter(|lineage| !without.contains(&lineage.id)).map(Item::Lineage);
        let deltas = flush.deltas.into_iter().filter(|delta| !without.contains(&delta.lineage)).map(Item::Delta);
        for item in lineages.chain(deltas) {
            self.bytes += item.bytes();
            self.rows.push(item);
        }
        for group in flush.groups {
            self.bytes += group.record.len();
            self.groups.insert(group.id.clone(), group);
        }
        self.released.extend(flush.released);
        self.leave |= flush.leave;
    }

    /// Whether no more should be added.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= TAKEN_BYTES || self.leave
    }

    /// What each statement stores. One at least, for the version.
    pub(super) fn parts(&mut self) -> VecDeque<Vec<Item>> {
        let groups = std::mem::take(&mut self.groups).into_values().map(Item::Group);
        let mut parts = VecDeque::new();
        let (mut part, mut bytes) = (Vec::new(), 0);
        for item in std::mem::take(&mut self.rows).into_iter().chain(groups) {
            if bytes + item.bytes() > PART_BYTES && !part.is_empty() {
                parts.push_back(std::mem::take(&mut part));
                bytes = 0;
            }
            bytes += item.bytes();
            part.push(item);
        }
        parts.push_back(part);
        parts
    }
}

/// The columns of one statement.
#[derive(Default)]
pub(super) struct Columns<'a> {
    pub lineages: Vec<&'a Lineage>,
    pub deltas: Vec<&'a Delta>,
    pub groups: Vec<&'a GroupRow>,
    pub bytes: usize,
}

impl<'a> Columns<'a> {
    pub(super) fn of(part: &'a [Item]) -> Columns<'a> {
        let mut columns = Columns { bytes: part.iter().map(Item::bytes).sum(), ..Columns::default() };
        for item in part {
            match item {
                Item::Lineage(lineage) => columns.lineages.push(lineage),
                Item::Delta(delta) => columns.deltas.push(delta),
                Item::Group(group) => columns.groups.push(group),
            }
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn group(id: &str, record: String) -> GroupRow {
        GroupRow { id: id.into(), epoch: 1, record, is_idle: false, connected_at: Instant::now(), lineages: vec![] }
    }

    #[test]
    fn statements_are_bounded_and_keep_the_order() {
        let delta = |lineage, mib: usize| Delta { lineage, version: Version::new(1), entries: vec![0; mib << 20] };
        let mut taken = Taken::default();
        let flush = |deltas, groups| Flush { version: Version::new(1), deltas, groups, ..Flush::default() };
        taken.add(flush(vec![delta(1, 10), delta(2, 10)], vec![group("g", "old".into())]), &FxHashSet::default());
        assert!(!taken.is_full());
        let without = FxHashSet::from_iter([3]);
        taken.add(flush(vec![delta(3, 1), delta(4, 50)], vec![group("g", "new".into())]), &without);
        assert!(taken.is_full());
        let parts = taken.parts();
        let text = |item: &Item| match item {
            Item::Delta(delta) => delta.lineage.to_string(),
            Item::Group(group) => group.record.clone(),
            Item::Lineage(_) => unreachable!("none was added"),
        };
        let parts: Vec<Vec<String>> = parts.iter().map(|part| part.iter().map(text).collect()).collect();
        assert_eq!(parts, [vec!["1"], vec!["2"], vec!["4"], vec!["new"]]);
        assert_eq!(taken.parts().len(), 1, "the version is stored in any case");
    }
}
