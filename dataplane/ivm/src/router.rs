//! Which graphs can a batch concern? A predicate index over all graphs of an engine.
//!
//! A graph is listed once per level and EXISTS condition: under (table, column, value) if all rows that the part can ever
//! select have that value in that column, else under the table. A changed row visits the lists of its old and new cells.

use rows::{Key, Row, Value};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::changes::Changes;
use crate::delta::KeyedTable;
use crate::graph::Graph;
use crate::level::Selection;

/// The caller's number for a graph.
pub type GraphId = u64;

#[derive(Debug, Default)]
pub struct Router {
    tables: FxHashMap<Box<str>, TableIndex>,
    /// What to take out again, per graph.
    listed: FxHashMap<GraphId, Vec<Listing>>,
}

/// Graphs with the number of their parts that are listed.
type Readers = FxHashMap<GraphId, usize>;

#[derive(Debug, Default)]
struct TableIndex {
    /// Everything that reads the table, indexed or not.
    readers: Readers,
    unindexed: Readers,
    /// Few columns per table are ever compared with constants.
    columns: Vec<(usize, FxHashMap<Key, Readers>)>,
}

#[derive(Debug)]
struct Listing {
    table: Box<str>,
    constant: Option<(usize, Key)>,
}

impl Router {
    /// Lists a graph; one that is listed already is listed anew.
    pub fn insert(&mut self, id: GraphId, graph: &Graph) {
        self.remove(id);
        let program = &graph.program;
        let levels = program.levels.iter().map(|l| &*l.rows);
        let conditions = program.exists.iter().map(|e| &*e.rows);
        let listings: Vec<Listing> =
            levels.chain(conditions).map(|rows| listing(rows, &program.tables[rows.table])).collect();
        for listing in &listings {
            let table = self.tables.entry(listing.table.clone()).or_default();
            *table.readers.entry(id).or_default() += 1;
            *table.list(listing.constant.as_ref()).entry(id).or_default() += 1;
        }
        self.listed.insert(id, listings);
    }

    pub fn remove(&mut self, id: GraphId) {
        for Listing { table: name, constant } in self.listed.remove(&id).unwrap_or_default() {
            let Some(table) = self.tables.get_mut(&name) else { continue };
            release(&mut table.readers, id);
            release(table.list(constant.as_ref()), id);
            table.prune(constant.as_ref());
            if table.readers.is_empty() {
                self.tables.remove(&name);
            }
        }
    }

    /// The graphs that `changes` can concern, ascending. All others have the same result before and after.
    #[must_use]
    pub fn route(&self, changes: &Changes) -> Vec<GraphId> {
        let mut found = FxHashSet::default();
        for changed in changes.tables() {
            let Some(table) = self.tables.get(&*changed.table.name) else { continue };
            if changed.reset {
                found.extend(table.readers.keys());
                continue;
            }
            if changed.rows().is_empty() {
                continue;
            }
            found.extend(table.unindexed.keys());
            for row in changed.rows().iter().flat_map(|c| [&c.old, &c.new]).flatten() {
                table.visit(row, &mut found);
            }
        }
        let mut found: Vec<GraphId> = found.into_iter().collect();
        found.sort_unstable();
        found
    }

    /// Graphs listed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.listed.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }
}

impl TableIndex {
    fn list(&mut self, constant: Option<&(usize, Key)>) -> &mut Readers {
        let Some((column, value)) = constant else { return &mut self.unindexed };
        let at = self.columns.iter().position(|(c, _)| c == column).unwrap_or_else(|| {
            self.columns.push((*column, FxHashMap::default()));
            self.columns.len() - 1
        });
        self.columns[at].1.entry(value.clone()).or_default()
    }

    /// Drops a list that became empty.
    fn prune(&mut self, constant: Option<&(usize, Key)>) {
        let Some((column, value)) = constant else { return };
        for (_, values) in self.columns.iter_mut().filter(|(c, _)| c == column) {
            if values.get(value).is_some_and(FxHashMap::is_empty) {
                values.remove(value);
            }
        }
        self.columns.retain(|(_, values)| !values.is_empty());
    }

    fn visit(&self, row: &Row, found: &mut FxHashSet<GraphId>) {
        for (column, values) in &self.columns {
            if let Some(graphs) = values.get(&row.key(&[*column])) {
                found.extend(graphs.keys());
            }
        }
    }
}

fn release(graphs: &mut Readers, id: GraphId) {
    if let Some(count) = graphs.get_mut(&id) {
        *count -= 1;
        if *count == 0 {
            graphs.remove(&id);
        }
    }
}

fn listing(rows: &Selection, keyed: &KeyedTable) -> Listing {
    // A key column has the most different values, so its lists are the shortest; a join column comes next.
    let preference = |column: usize| (!keyed.key.contains(&column), !rows.plan.constraint.contains(&column), column);
    let constant = rows
        .constants
        .iter()
        .filter(|(_, value)| !matches!(value, Value::Bool(_)))
        .min_by_key(|(column, _)| preference(*column))
        .or_else(|| rows.constants.first())
        .map(|(column, value)| (*column, Key::from_values(std::slice::from_ref(value))));
    Listing { table: (*keyed.table.name).into(), constant }
}
