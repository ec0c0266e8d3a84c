//! Recomputes what a graph remembers, for tests.

use std::ops::ControlFlow;

use crate::graph::Graph;
use crate::hydrate::hydrate;
use crate::source::Source;

impl Graph {
    /// Compares masks, versions, references, sizes and bounds with a fresh hydration from a source at the graph's version;
    /// `Err` names the first difference.
    pub fn verify(&self, source: &mut dyn Source) -> Result<(), String> {
        let fresh =
            hydrate(&self.program, source, &mut |_, _, _| ControlFlow::Continue(())).map_err(|e| e.to_string())?;
        for (table, (have, want)) in self.state.rows.iter().zip(&fresh.rows).enumerate() {
            let name = &self.program.tables[table].table.name;
            for (key, entry) in want {
                if have.get(key) != Some(entry) {
                    return Err(format!("row {name} {key:?}: have {:?}, want {entry:?}", have.get(key)));
                }
            }
            if let Some(key) = have.keys().find(|key| !want.contains_key(*key)) {
                return Err(format!("row {name} {key:?} should not be present"));
            }
        }
        for (n, (have, want)) in self.state.partitions.iter().zip(&fresh.partitions).enumerate() {
            for (key, partition) in want {
                if have.get(key) != Some(partition) {
                    return Err(format!("level {n} partition {key:?}: have {:?}, want {partition:?}", have.get(key)));
                }
            }
            if let Some(key) = have.keys().find(|key| !want.contains_key(*key)) {
                return Err(format!("level {n} partition {key:?} should not be active"));
            }
        }
        Ok(())
    }
}
