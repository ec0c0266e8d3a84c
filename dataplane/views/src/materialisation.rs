//! One query's graph with what its subscribers need: the encoded rows of its hydration and what changed since.
//!
//! Invariant: `payload` with its tail, followed by the history entries above its version, is the row set at the newest version;
//! history holds every delta above `floor`.

use std::cell::Cell;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use ivm::Graph;
use ivm::query::Query;
use rows::Version;

use crate::convert::KeyChoice;
use crate::group::GroupId;
use crate::limits::Limits;
use crate::payload::Payload;
use crate::row_id::RowId;
use crate::spool::Piece;
use crate::store::{LineageId, RowSet};

/// Unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MaterialisationId(pub u64);

pub struct Materialisation {
    /// The exact text of the transformed AST and the row keys: equal text, equal rows.
    pub key: Arc<str>,
    pub query: Arc<Query>,
    pub keys: Arc<KeyChoice>,
    pub lineage: LineageId,
    pub state: State,
    pub subscribers: BTreeSet<GroupId>,
    /// What its graph takes of the node's memory.
    pub room: Option<crate::hydrate::Room>,
    pub payload: Option<Payload>,
    /// A job that will bring a new payload is under way.
    pub payload_pending: bool,
    /// What such a job brought, until the views are at its version.
    pub renewed: Option<Box<crate::hydrate::Hydrated>>,
    pub history: History,
    /// Since when nobody subscribes.
    pub idle_since: Option<Instant>,
    /// When the payload was last of use.
    pub payload_used: Cell<Instant>,
    /// The version at which the stored history began or was continued.
    pub settled_at: Version,
}

pub enum State {
    /// A job is under way. `stored` is the row set that the lineage had when it was last live, once it was read.
    Hydrating {
        stored: Stored,
        hydrated: Option<Box<crate::hydrate::Hydrated>>,
    },
    Live(Box<Graph>),
    /// Cannot be served.
    Failed {
        /// For the application's developer.
        message: String,
        /// Rows that clients may hold of it.
        left: Vec<RowId>,
    },
}

/// What the CVR database knows of a lineage's rows.
#[derive(Debug)]
pub enum Stored {
    /// Nothing: the lineage is new.
    New,
    /// Asked, not answered yet.
    Asked,
    Rows(RowSet),
    /// The history cannot be read; the lineage starts anew under another number.
    Lost,
}

impl Materialisation {
    pub fn graph(&self) -> Option<&Graph> {
        match &self.state {
            State::Live(graph) => Some(graph),
            _ => None,
        }
    }

    /// The encoded rows at `version`, which is the newest: the payload and what followed it. `None` until a payload is there.
    pub fn rows_at(&self, version: Version) -> Option<(&Payload, impl Iterator<Item = &Arc<Entry>>)> {
        self.payload_used.set(Instant::now());
        let payload = self.payload.as_ref()?;
        // It may be so old that the history does not connect to it.
        let usable = self.graph().is_some() && payload.version <= version && payload.version >= self.history.floor;
        usable.then(|| (payload, payload.tail.iter().chain(self.history.since(payload.version))))
    }

    /// Whether rows of the other one may be in this one's result.
    pub fn may_share_rows(&self, other: &Materialisation) -> bool {
        let (Some(graph), Some(other)) = (self.graph(), other.graph()) else { return false };
        graph.tables().any(|table| other.tables().any(|t| t.table.name == table.table.name))
    }

    /// What changed at `version`, the newest, if anything did.
    pub fn entry_at(&self, version: Version) -> Option<&Arc<Entry>> {
        self.history.entries.back().filter(|e| e.version == version)
    }

    /// Every row that clients which were served until now may hold, including those that it lost at `version`, the newest.
    pub fn rows_left(&self, version: Version) -> Vec<RowId> {
        let mut rows: Vec<RowId> = match &self.state {
            State::Hydrating { .. } => Vec::new(),
            State::Live(graph) => graph.rows().map(|(table, key, _)| RowId::of(table, key)).collect(),
            State::Failed { left, .. } => left.clone(),
        };
        rows.extend(self.entry_at(version).into_iter().flat_map(|e| &e.dels).map(|(id, _)| id.clone()));
        rows
    }

    /// Whether it can go without a loss: nobody subscribes to it, and whoever makes it again finds its history, which is durable up
    /// to `durable`.
    pub fn can_be_forgotten(&self, durable: Version) -> bool {
        self.subscribers.is_empty()
            && !self.payload_pending
            && self.settled_at <= durable
            && self.history.entries.back().is_none_or(|last| last.version <= durable)
    }

    /// Whether the row is in the result now.
    pub fn holds(&self, id: &RowId) -> bool {
        self.graph().is_some_and(|g| g.version_of(&id.table, &id.key).is_some())
    }
}

/// What changed in a materialisation at one version.
#[derive(Debug)]
pub struct Entry {
    pub version: Version,
    pub puts: Vec<(RowId, Piece)>,
    pub dels: Vec<(RowId, Bytes)>,
}

impl Entry {
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.dels.is_empty()
    }

    /// The rows that it is about.
    pub fn ids(&self) -> impl Iterator<Item = &RowId> {
        self.puts.iter().map(|(id, _)| id).chain(self.dels.iter().map(|(id, _)| id))
    }

    /// Bytes held in memory.
    pub fn size(&self) -> usize {
        let puts: usize = self.puts.iter().map(|(_, op)| op.memory()).sum();
        let dels: usize = self.dels.iter().map(|(_, op)| op.len()).sum();
        puts + dels + (self.puts.len() + self.dels.len()) * 96
    }
}

#[derive(Debug, Default)]
pub struct History {
    /// Changes above this version are in `entries`; those at or below it are only in the CVR database.
    pub floor: Version,
    pub entries: VecDeque<Arc<Entry>>,
    bytes: usize,
}

impl History {
    pub fn starting_at(floor: Version) -> History {
        History { floor, entries: VecDeque::new(), bytes: 0 }
    }

    pub fn push(&mut self, entry: Arc<Entry>) {
        debug_assert!(self.entries.back().is_none_or(|last| last.version < entry.version), "versions ascend");
        self.bytes += entry.size();
        self.entries.push_back(entry);
    }

    /// Forgets old entries that are durable.
    pub fn trim(&mut self, durable: Version, limits: &Limits) {
        while self.bytes > limits.history_bytes || self.entries.len() > limits.history_entries {
            match self.entries.front() {
                Some(entry) if entry.version <= durable => {
                    self.floor = entry.version;
                    self.bytes -= entry.size();
                    self.entries.pop_front();
                }
                _ => return,
            }
        }
    }

    pub fn since(&self, version: Version) -> impl Iterator<Item = &Arc<Entry>> {
        let from = self.entries.partition_point(|e| e.version <= version);
        self.entries.range(from..)
    }

    pub fn size(&self) -> usize {
        self.bytes
    }
}
