//! The parts of a poke. A part names only the poke's id, so parts are built once and shared by all clients that get them.

use std::collections::BTreeMap;

use bytes::Bytes;
use rows::json::write_string;

use crate::down::QueryOp;

/// Size at which a part is closed. Clients do not care; a pong can pass between two parts, and a socket buffers one.
pub const PART_BYTES: usize = 256 * 1024;

/// Collects patches and cuts them into parts. Row and mutation operations come encoded (`down::write_row_put` …).
///
/// Everything but rows goes into the first part: it is small, and clients join all parts before they apply any. Parts that are
/// full are taken away with [`PartBuilder::take`], so that a body of any size is never here as a whole.
#[derive(Debug)]
pub struct PartBuilder {
    /// `["pokePart",{"pokeID":"…"`, the start of every part.
    head: Vec<u8>,
    last_mutation_ids: BTreeMap<String, i64>,
    desired: BTreeMap<String, Vec<QueryOp>>,
    got: Vec<QueryOp>,
    mutations: Vec<u8>,
    rows: Vec<u8>,
    parts: Vec<Vec<u8>>,
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

    /// Closes the part that is open and returns what comes before and after row operations that are joined by commas already and
    /// become a part of their own, uncopied.
    #[must_use]
    pub fn around_rows(&mut self) -> (Bytes, Bytes) {
        self.cut();
        let mut head = self.head.clone();
        head.extend_from_slice(b",\"rowsPatch\":[");
        (head.into(), Bytes::from_static(b"]}]"))
    }

    /// The `pokePart` messages that are closed and were not taken yet, in order.
    pub fn take(&mut self) -> impl Iterator<Item = Vec<u8>> + '_ {
        self.parts.drain(..)
    }

    /// The rest of the messages, in order; none when nothing was added.
    #[must_use]
    pub fn finish(mut self) -> Vec<Vec<u8>> {
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
            self.parts.push(out);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::down;
    use serde_json::{Value, json};

    fn bodies(parts: Vec<Vec<u8>>) -> Vec<Value> {
        parts
            .into_iter()
            .map(|text| {
                let message: Value = serde_json::from_slice(&text).expect("JSON");
                assert_eq!(message[0], "pokePart");
                message[1].clone()
            })
            .collect()
    }

    fn put(table: &str, row: &str) -> Vec<u8> {
        let mut op = Vec::new();
        down::write_row_put(&mut op, table, |out| out.extend_from_slice(row.as_bytes()));
        op
    }

    #[test]
    fn nothing_is_no_part() {
        assert!(PartBuilder::new("x").finish().is_empty());
    }

    #[test]
    fn all_kinds_of_patches() {
        let mut builder = PartBuilder::new("4evu4g");
        builder.row(&put("issue", r#"{"id":"1","closed":false}"#));
        let mut op = Vec::new();
        down::write_row_del(&mut op, "a.b\"", |out| out.extend_from_slice(br#"{"id":2}"#));
        builder.row(&op);
        builder.last_mutation_id("c", 3);
        builder.desired("c", QueryOp::Put { hash: "h".to_owned() });
        builder.desired("c", QueryOp::Del { hash: "i".to_owned() });
        builder.desired("d", QueryOp::Del { hash: "i".to_owned() });
        builder.got(QueryOp::Put { hash: "h".to_owned() });
        let mut op = Vec::new();
        down::write_mutation_put(&mut op, "c", 3, br#"{"error":"app"}"#);
        builder.mutation(&op);
        let mut op = Vec::new();
        down::write_mutation_del(&mut op, "c", 2);
        builder.mutation(&op);
        assert_eq!(
            bodies(builder.finish()),
            [json!({
                "pokeID": "4evu4g",
                "lastMutationIDChanges": {"c": 3},
                "desiredQueriesPatches": {
                    "c": [{"op": "put", "hash": "h"}, {"op": "del", "hash": "i"}],
                    "d": [{"op": "del", "hash": "i"}],
                },
                "gotQueriesPatch": [{"op": "put", "hash": "h"}],
                "mutationsPatch": [
                    {"op": "put", "mutation": {"id": {"id": 3, "clientID": "c"}, "result": {"error": "app"}}},
                    {"op": "del", "id": {"id": 2, "clientID": "c"}},
                ],
                "rowsPatch": [
                    {"op": "put", "tableName": "issue", "value": {"id": "1", "closed": false}},
                    {"op": "del", "tableName": "a.b\"", "id": {"id": 2}},
                ],
            })]
        );
    }

    #[test]
    fn parts_are_cut_by_size_in_order() {
        let mut builder = PartBuilder::new("x");
        builder.got(QueryOp::Put { hash: "h".to_owned() });
        let row = |i: usize| put("t", &format!(r#"{{"id":{i},"text":"{}"}}"#, "x".repeat(20_000)));
        for i in 0..40 {
            builder.row(&row(i));
        }
        let mut joined = Vec::new();
        join(&mut joined, &row(40));
        join(&mut joined, &row(41));
        let (before, after) = builder.around_rows();
        let mut parts: Vec<Vec<u8>> = builder.take().collect();
        assert_eq!(builder.take().count(), 0, "they are taken once");
        parts.push([&before, &joined[..], &after].concat());
        builder.row(&row(42));
        parts.extend(builder.finish());
        assert!(parts.iter().all(|part| part.len() < PART_BYTES + 1000));
        let bodies = bodies(parts);
        assert_eq!(bodies.len(), 6);
        assert!(bodies[0]["gotQueriesPatch"].is_array());
        let ids: Vec<u64> = bodies
            .iter()
            .flat_map(|body| body["rowsPatch"].as_array().expect("rows"))
            .map(|op| op["value"]["id"].as_u64().expect("id"))
            .collect();
        assert_eq!(ids, (0..43).collect::<Vec<_>>());
    }
}
