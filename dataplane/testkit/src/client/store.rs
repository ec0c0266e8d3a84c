//! What a scripted client holds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

pub type Row = Map<String, Value>;
/// table -> primary key as JSON text -> row
pub type Tables = BTreeMap<String, BTreeMap<String, Row>>;

/// What the client holds, and what has happened to it.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub rows: Tables,
    pub cookie: Option<String>,
    /// The server's echo of desired queries, by client of the group.
    pub desired: BTreeMap<String, BTreeSet<String>>,
    pub got: BTreeSet<String>,
    pub last_mutation_ids: BTreeMap<String, u64>,
    /// (client, mutation) -> result
    pub mutation_results: BTreeMap<(String, u64), Value>,
    pub transform_errors: Vec<Value>,
    pub counts: Counts,
    /// Body of an `error` message on the current connection.
    pub error: Option<Value>,
    pub connected: bool,
    /// Why the current connection has ended.
    pub closed: Option<String>,
    /// The first breach of the protocol's rules; it stays.
    pub violation: Option<String>,
    /// The last messages of both directions, cut short, for failures.
    pub transcript: VecDeque<String>,
    pub(super) open: Option<OpenPoke>,
    /// Which connection may write here: an aborted reader can still be at work for a moment.
    pub(super) connection: u64,
    /// When the last poke ended, and the longest time between two since the last call of [`Store::measure_gaps`].
    poked_at: Option<Instant>,
    longest_gap: Duration,
}

impl Store {
    pub(super) fn record(&mut self, direction: char, text: &str) {
        if self.transcript.len() == 40 {
            self.transcript.pop_front();
        }
        self.transcript.push_back(format!("{direction} {}", text.chars().take(400).collect::<String>()));
    }

    pub(super) fn note_poke(&mut self) {
        let now = Instant::now();
        self.longest_gap = self.longest_gap_at(now);
        self.poked_at = Some(now);
    }

    /// Forgets the gaps so far.
    pub(super) fn measure_gaps(&mut self) {
        self.poked_at = Some(Instant::now());
        self.longest_gap = Duration::ZERO;
    }

    /// The longest time without a poke, the one that lasts included.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        self.longest_gap_at(Instant::now())
    }

    fn longest_gap_at(&self, now: Instant) -> Duration {
        self.longest_gap.max(self.poked_at.map_or(Duration::ZERO, |at| now - at))
    }
}

/// Traffic since the store was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub pokes: u64,
    pub puts: u64,
    /// Puts of rows that the client held with the same content.
    pub redundant_puts: u64,
    pub deletes: u64,
    /// Deletes of rows that the client did not hold.
    pub redundant_deletes: u64,
    pub pongs: u64,
}

#[derive(Clone, Debug)]
pub(super) struct OpenPoke {
    pub(super) id: String,
    pub(super) parts: Vec<Value>,
}

/// The text under which a row is kept: its primary key's values in the order of the client schema.
#[must_use]
pub fn row_key(key: &[String], row: &Row) -> String {
    Value::Array(key.iter().map(|column| row.get(column).cloned().unwrap_or(Value::Null)).collect()).to_string()
}
