//! The parts of a poke. A part names only the poke's id, so parts are built once and shared by all clients that get them.

use std::collections::BTreeMap;

use bytes::Bytes;
use rows::json::write_string;

use crate::down::QueryOp;

/// Size at which a part is closed. Clients do not care; a pong can pass between two parts, and a socket buffers one.
pub const PART_BYTES: usize = 256 * 1024;

/// One `pokePart` frame: the concatenation of its pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part(pub Vec<Bytes>);

impl Part {
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Collects patches and cuts them into parts. Row and mutation operations come encoded (`down::write_row_put` …).
///
/// Everything but rows goes into the first part: it is small, and clients join all parts before they apply any.
#[derive(Debug)]
pub struct PartBuilder {
    /// `["pokePart",{"pokeID":"…"`, the start of every part.
    head: Vec<u8>,
    last_mutation_ids: BTreeMap<String, i64>,
    desired: BTreeMap<String, Vec<QueryOp>>,
    got: Vec<QueryOp>,
    mutations: Vec<u8>,
    rows: Vec<u8>,
    parts: Vec<Part>,
}

impl PartBuilder {
    #[must_use]
    pub fn new(poke_id: &str) -> PartBuilder {
        let mut head = b"[\"pokePart\",{\"pokeID\":".to_vec();
        write_string(&mut head, poke_id);
        PartBuilder {
            head,
            last_mutation_ids: BTreeMap::new(),
            desired: BTreeMap::new(),
            got: Vec::new(),
            mutations: Vec::new(),
            rows: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// The highest mutation of a client that the upstream database has processed.
    pub fn last_mutation_id(&mut self, client_id: &str, id: i64) {
        self.last_mutation_ids.insert(client_id.to_owned(), id);
    }

    pub fn desired(&mut self, client_id: &str, op: QueryOp) {
        self.desired.entry(client_id.to_owned()).or_default().push(op);
    }

    pub fn got(&mut self, op: QueryOp) {
        self.got.push(op);
    }

    /// A mutation operation, encoded.
    pub fn mutation(&mut self, op: &[u8]) {
        join(&mut self.mutations, op);
    }

    /// A row operation, encoded.
    pub fn row(&mut self, op: &[u8]) {
        if !self.rows.is_empty() && self.rows.len() + op.len() > PART_BYTES {
            self.cut();
        }
        join(&mut self.rows, op);
    }

    /// Row operations already joined by commas, shared with other pokes: they become a part of their own, uncopied.
    pub fn joined_rows(&mut self, ops: Bytes) {
        if ops.is_empty() {
            return;
        }
        self.cut();
        let mut head = self.head.clone();
        head.extend_from_slice(b",\"rowsPatch\":[");
        self.parts.push(Part(vec![head.into(), ops, Bytes::from_static(b"]}]")]));
    }

    /// The frames, in order; none when nothing was added.
    #[must_use]
    pub fn finish(mut self) -> Vec<Part> {
        self.cut();
        self.parts
    }

    fn cut(&mut self) {
        let mut out = Vec::with_capacity(self.head.len() + self.rows.len() + self.mutations.len() + 64);
        out.extend_from_slice(&self.head);
        let empty = out.len();
        if !self.last_mutation_ids.is_empty() {
            out.extend_from_slice(b",\"lastMutationIDChanges\":");
            write_object(&mut out, &self.last_mutation_ids, |out, id| out.extend_from_slice(id.to_string().as_bytes()));
            self.last_mutation_ids.clear();
        }
        if !self.desired.is_empty() {
            out.extend_from_slice(b",\"desiredQueriesPatches\":");
            write_object(&mut out, &self.desired, |out, ops| write_ops(out, ops));
            self.desired.clear();
        }
        if !self.got.is_empty() {
            out.extend_from_slice(b",\"gotQueriesPatch\":");
            write_ops(&mut out, &self.got);
            self.got.clear();
        }
        if !self.mutations.is_empty() {
            out.extend_from_slice(b",\"mutationsPatch\":[");
            out.append(&mut self.mutations);
            out.push(b']');
        }
        if !self.rows.is_empty() {
            out.extend_from_slice(b",\"rowsPatch\":[");
            out.append(&mut self.rows);
            out.push(b']');
        }
        if out.len() > empty {
            out.extend_from_slice(b"}]");
            self.parts.push(Part(vec![out.into()]));
        }
    }
}

/// Appends `op` to a comma-separated list.
pub fn join(list: &mut Vec<u8>, op: &[u8]) {
    if !list.is_empty() {
        list.push(b',');
    }
    list.extend_from_slice(op);
}

fn write_ops(out: &mut Vec<u8>, ops: &[QueryOp]) {
    out.push(b'[');
    for (i, op) in ops.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        op.write(out);
    }
    out.push(b']');
}

fn write_object<V>(out: &mut Vec<u8>, map: &BTreeMap<String, V>, write: impl Fn(&mut Vec<u8>, &V)) {
    out.push(b'{');
    for (i, (name, value)) in map.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_string(out, name);
        out.push(b':');
        write(out, value);
    }
    out.push(b'}');
}
