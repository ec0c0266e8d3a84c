//! Mutation ids and results: rows of two internal tables that every client group watches. An index by group replaces a query per
//! group.
//!
//! Invariant: an id and the result that belongs to it come from one upstream transaction and leave in one poke.

use std::ops::ControlFlow;
use std::sync::Arc;

use ivm::filter::Filter;
use ivm::source::{ScanArgs, ScanPlan, Source};
use protocol::down::{write_mutation_del, write_mutation_put};
use replica::Reader;
use rows::{Batch, Direction, Key, Row, Schema, SortKey, Table, Value, ValueRef, Version};
use tracing::warn;

use crate::core::Core;

/// Where the internal tables are in the present schema.
pub struct Internal {
    clients: Option<Clients>,
    mutations: Option<Mutations>,
}

struct Clients {
    plan: ScanPlan,
    group: usize,
    client: usize,
    last_mutation: usize,
}

struct Mutations {
    plan: ScanPlan,
    group: usize,
    client: usize,
    id: usize,
    result: usize,
}

/// Plan ids of this module count down from the top; the engine's count up from zero.
const CLIENTS_PLAN: u64 = u64::MAX;
const MUTATIONS_PLAN: u64 = u64::MAX - 1;

/// Changes for one group, for its poke.
#[derive(Debug, Default)]
pub struct GroupMutations {
    pub last_mutation_ids: Vec<(String, i64)>,
    /// Encoded operations.
    pub results: Vec<Vec<u8>>,
}

impl Internal {
    pub fn of(schema: &Schema, clients: &str, mutations: &str) -> Internal {
        let internal = Internal {
            clients: schema.tables.get(clients).and_then(|table| {
                let group = table.position("clientGroupID")?;
                Some(Clients {
                    plan: plan(CLIENTS_PLAN, table, group),
                    group,
                    client: table.position("clientID")?,
                    last_mutation: table.position("lastMutationID")?,
                })
            }),
            mutations: schema.tables.get(mutations).and_then(|table| {
                let group = table.position("clientGroupID")?;
                Some(Mutations {
                    plan: plan(MUTATIONS_PLAN, table, group),
                    group,
                    client: table.position("clientID")?,
                    id: table.position("mutationID")?,
                    result: table.position("result")?,
                })
            }),
        };
        if internal.clients.is_none() || internal.mutations.is_none() {
            warn!(
                clients,
                mutations, "tables of mutation ids are not replicated; mutations will not be confirmed to clients"
            );
        }
        internal
    }

    /// Everything of a group that changed after `since`.
    pub fn read(&self, reader: &mut Reader, group: &str, since: Version) -> Result<GroupMutations, String> {
        let key = Key::from_values(&[Value::Str(group.into())]);
        let mut out = GroupMutations::default();
        let args = ScanArgs { constraint: Some(&key), ..ScanArgs::default() };
        if let Some(clients) = &self.clients {
            reader
                .scan(&clients.plan, args, &mut |row| {
                    if row.version() > since {
                        out.last_mutation_ids.extend(clients.read(&row));
                    }
                    ControlFlow::Continue(())
                })
                .map_err(|e| e.to_string())?;
        }
        if let Some(mutations) = &self.mutations {
            reader
                .scan(&mutations.plan, args, &mut |row| {
                    if row.version() > since {
                        out.results.extend(mutations.put(&row));
                    }
                    ControlFlow::Continue(())
                })
                .map_err(|e| e.to_string())?;
        }
        Ok(out)
    }
}

fn plan(id: u64, table: &Arc<Table>, group: usize) -> ScanPlan {
    ScanPlan {
        id,
        table: Arc::clone(table),
        constraint: vec![group],
        filter: Filter::And(Vec::new()),
        order: SortKey(table.key.iter().map(|&c| (c, Direction::Asc)).collect()),
        start: None,
    }
}

impl Clients {
    fn read(&self, row: &Row) -> Option<(String, i64)> {
        match (row.get(self.client), row.get(self.last_mutation)) {
            (ValueRef::Str(client), ValueRef::Int(id)) => Some((client.to_owned(), id)),
            _ => None,
        }
    }
}

impl Mutations {
    fn put(&self, row: &Row) -> Option<Vec<u8>> {
        match (row.get(self.client), row.get(self.id), row.get(self.result)) {
            (ValueRef::Str(client), ValueRef::Int(id), ValueRef::Json(result)) => {
                let mut out = Vec::with_capacity(result.len() + 96);
                write_mutation_put(&mut out, client, id, result.as_bytes());
                Some(out)
            }
            _ => None,
        }
    }

    fn del(&self, row: &Row) -> Option<Vec<u8>> {
        match (row.get(self.client), row.get(self.id)) {
            (ValueRef::Str(client), ValueRef::Int(id)) => {
                let mut out = Vec::with_capacity(96);
                write_mutation_del(&mut out, client, id);
                Some(out)
            }
            _ => None,
        }
    }
}

impl Core {
    /// Notes what a batch changed in the internal tables, for the groups that are in memory.
    pub(crate) fn note_internal(&mut self, batch: &Batch) {
        for tables in &batch.tables {
            let name = &*tables.table.name;
            if let Some(clients) = self.internal.clients.as_ref().filter(|c| *c.plan.table.name == *name) {
                for row in tables.rows.iter().filter_map(|change| change.new.as_ref()) {
                    let ValueRef::Str(group) = row.get(clients.group) else { continue };
                    let Some(&id) = self.group_names.get(group) else { continue };
                    if let Some((client, last)) = clients.read(row)
                        && let Some(group) = self.groups.get_mut(&id)
                    {
                        group.pending.last_mutation_ids.insert(client, last);
                        self.dirty.insert(id);
                    }
                }
            }
            if let Some(mutations) = self.internal.mutations.as_ref().filter(|m| *m.plan.table.name == *name) {
                for change in &tables.rows {
                    let Some(row) = change.new.as_ref().or(change.old.as_ref()) else { continue };
                    let ValueRef::Str(group) = row.get(mutations.group) else { continue };
                    let Some(&id) = self.group_names.get(group) else { continue };
                    let op = if change.new.is_some() { mutations.put(row) } else { mutations.del(row) };
                    if let Some(op) = op
                        && let Some(group) = self.groups.get_mut(&id)
                    {
                        group.pending.mutations.push(op);
                        self.dirty.insert(id);
                    }
                }
            }
        }
    }
}
