//! The stored history of a materialisation: where it begins, and how what is stored leads to what is live.

use std::sync::Arc;

use bytes::Bytes;
use ivm::Graph;
use rows::{Schema, Version};
use rustc_hash::{FxHashMap, FxHashSet};
use tracing::warn;

use crate::convert::KeyChoice;
use crate::encode;
use crate::materialisation::{Entry, History, MaterialisationId, State, Stored};
use crate::materialisations::Materialisations;
use crate::payload::Payload;
use crate::row_id::{Encoder, Presence, RowId};
use crate::spool::Piece;
use crate::store::{Delta, Flush, Lineage, LineageId};

impl Materialisations {
    /// Begins every stored history at `version`, the present one, under the number that it has.
    pub(crate) fn store_again(&mut self, version: Version, flush: &mut Flush) {
        for m in self.by_id.values_mut() {
            if let State::Live(graph) = &m.state {
                m.settled_at = version;
                flush.lineages.push(base(m.lineage, &m.key, version, graph));
            }
        }
    }

    /// Writes down where the history of a materialisation that became live begins, or how its rows differ from where it ended.
    pub(crate) fn settle_lineage(
        &mut self,
        id: MaterialisationId,
        stored: Stored,
        version: Version,
        schema: &Schema,
        flush: &mut Flush,
    ) -> std::io::Result<()> {
        let Some(m) = self.by_id.get_mut(&id) else { return Ok(()) };
        let State::Live(graph) = &m.state else { return Ok(()) };
        m.settled_at = version;
        match stored {
            Stored::New => {
                flush.lineages.push(base(m.lineage, &m.key, version, graph));
                return Ok(());
            }
            Stored::Rows(old) if old.version <= version => {
                let entry = difference(&old.rows, graph, m.payload.as_ref(), &m.history, version, schema, &m.keys)?;
                // A version has one delta at most: what is stored at this one cannot be amended.
                if entry.is_empty() || old.version < version {
                    // One entry leads from the stored rows to the present ones, and from the payload too. The stored rows
                    // are as old as the payload at least: nothing changed in between, or it would have been stored.
                    let before = Version::new(version.as_u64().saturating_sub(1));
                    m.history = History::starting_at(m.history.floor.min(before));
                    if !entry.is_empty() {
                        flush.deltas.push(stored_form(m.lineage, &entry, graph));
                        m.history.push(Arc::new(entry));
                    }
                    return Ok(());
                }
                warn!(
                    "the stored rows of a query are not those of the replica at the same version; its history begins anew"
                );
            }
            Stored::Rows(_) => {
                warn!("the stored rows of a query are newer than the replica; its history begins anew");
            }
            Stored::Lost | Stored::Asked => {
                warn!("the stored history of a query cannot be read; clients that hold it start over");
            }
        }
        // Under another number, so that what clients hold under the old one is told apart.
        let key = Arc::clone(&m.key);
        let lineage = self.new_lineage(&key);
        let Some(m) = self.by_id.get_mut(&id) else { return Ok(()) };
        self.by_lineage.remove(&m.lineage);
        m.lineage = lineage;
        self.by_lineage.insert(lineage, id);
        if let State::Live(graph) = &m.state {
            flush.lineages.push(base(lineage, &key, version, graph));
        }
        Ok(())
    }
}

fn base(id: LineageId, key: &str, version: Version, graph: &Graph) -> Lineage {
    let mut base = Encoder::default();
    for (id, version) in sorted_rows(graph) {
        base.push(&id, Presence::Present(version));
    }
    Lineage { id, key: key.to_owned(), version, base: base.finish() }
}

/// What leads from the row set `old` to that of `graph`, whose encoded rows are `payload` and the history after it.
pub fn difference(
    old: &FxHashMap<RowId, Version>,
    graph: &Graph,
    payload: Option<&Payload>,
    history: &History,
    version: Version,
    schema: &Schema,
    keys: &KeyChoice,
) -> std::io::Result<Entry> {
    let mut ops: FxHashMap<&RowId, &Piece> = FxHashMap::default();
    let mut recent: FxHashSet<&RowId> = FxHashSet::default();
    for e in &history.entries {
        ops.extend(e.puts.iter().map(|(id, op)| (id, op)));
        recent.extend(e.ids());
    }
    let mut entry = Entry { version, puts: Vec::new(), dels: Vec::new() };
    let differs = |id: &RowId| {
        let present = graph.version_of(&id.table, &id.key);
        present.is_some() && (old.get(id).copied() != present || recent.contains(id))
    };
    if let Some(payload) = payload {
        payload.each_lying::<std::io::Error>(|id, op| {
            if !ops.contains_key(&id) && differs(&id) {
                entry.puts.push((id, op()));
            }
            Ok(())
        })?;
    }
    entry.puts.extend(ops.iter().filter(|(id, _)| differs(id)).map(|(id, op)| ((*id).clone(), (*op).clone())));
    entry.puts.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    let mut gone: Vec<&RowId> =
        old.keys().chain(recent.iter().copied()).filter(|id| graph.version_of(&id.table, &id.key).is_none()).collect();
    gone.sort_unstable();
    gone.dedup();
    for id in gone {
        if let Some(op) = del_op(schema, keys, id) {
            entry.dels.push((id.clone(), op));
        }
    }
    Ok(entry)
}

/// The operation that deletes a row; `None` when its table is gone, and with it every client that knew the table.
pub fn del_op(schema: &Schema, keys: &KeyChoice, id: &RowId) -> Option<Bytes> {
    let table = schema.tables.get(&id.table)?;
    let keyed = ivm::KeyedTable::new(Arc::clone(table), keys.columns(table));
    (keyed.key.len() == id.key.len()).then(|| encode::del(&keyed, id))
}

pub fn sorted_rows(graph: &Graph) -> Vec<(RowId, Version)> {
    let mut rows: Vec<(RowId, Version)> =
        graph.rows().map(|(table, key, version)| (RowId::of(table, key), version)).collect();
    rows.sort_unstable();
    rows
}

/// The entry as the database keeps it.
pub fn stored_form(lineage: LineageId, entry: &Entry, graph: &Graph) -> Delta {
    let mut encoder = Encoder::default();
    for (id, _) in &entry.puts {
        let version = graph.version_of(&id.table, &id.key).unwrap_or(entry.version);
        encoder.push(id, Presence::Present(version));
    }
    for (id, _) in &entry.dels {
        encoder.push(id, Presence::Gone);
    }
    Delta { lineage, version: entry.version, entries: encoder.finish() }
}
