//! Messages to clients, as bytes of one text frame each.

use bytes::Bytes;
use rows::json::write_string;
use serde::Serialize;
use serde_json::Value;

use crate::error::ErrorBody;

/// A change of the query set, as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QueryOp {
    Put { hash: String },
    Del { hash: String },
}

impl QueryOp {
    pub fn write(&self, out: &mut Vec<u8>) {
        let hash = match self {
            QueryOp::Put { hash } => {
                out.extend_from_slice(b"{\"op\":\"put\",\"hash\":");
                hash
            }
            QueryOp::Del { hash } => {
                out.extend_from_slice(b"{\"op\":\"del\",\"hash\":");
                hash
            }
        };
        write_string(out, hash);
        out.push(b'}');
    }
}

#[must_use]
pub fn connected(wsid: &str, timestamp_ms: u64) -> Bytes {
    let mut out = b"[\"connected\",{\"wsid\":".to_vec();
    write_string(&mut out, wsid);
    out.extend_from_slice(format!(",\"timestamp\":{timestamp_ms}}}]").as_bytes());
    out.into()
}

#[must_use]
pub fn pong() -> Bytes {
    Bytes::from_static(b"[\"pong\",{}]")
}

#[must_use]
pub fn error(body: &ErrorBody) -> Bytes {
    message("error", body)
}

/// Opens a poke; `base` is the cookie the receiver is at, `None` when it has nothing.
#[must_use]
pub fn poke_start(poke_id: &str, base: Option<&str>) -> Bytes {
    let mut out = b"[\"pokeStart\",{\"pokeID\":".to_vec();
    write_string(&mut out, poke_id);
    out.extend_from_slice(b",\"baseCookie\":");
    match base {
        Some(cookie) => write_string(&mut out, cookie),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b"}]");
    out.into()
}

/// Ends a poke; the receiver is at `cookie` from now on.
#[must_use]
pub fn poke_end(poke_id: &str, cookie: &str) -> Bytes {
    let mut out = b"[\"pokeEnd\",{\"pokeID\":".to_vec();
    write_string(&mut out, poke_id);
    out.extend_from_slice(b",\"cookie\":");
    write_string(&mut out, cookie);
    out.extend_from_slice(b"}]");
    out.into()
}

/// Ends a poke of which the receiver keeps nothing.
#[must_use]
pub fn poke_cancel(poke_id: &str) -> Bytes {
    let mut out = b"[\"pokeEnd\",{\"pokeID\":".to_vec();
    write_string(&mut out, poke_id);
    out.extend_from_slice(b",\"cookie\":\"\",\"cancel\":true}]");
    out.into()
}

/// Tells every client of a group which clients were deleted.
#[must_use]
pub fn delete_clients(client_ids: &[String], client_group_ids: &[String]) -> Bytes {
    #[derive(Serialize)]
    struct Body<'a> {
        #[serde(rename = "clientIDs", skip_serializing_if = "<[_]>::is_empty")]
        client_ids: &'a [String],
        #[serde(rename = "clientGroupIDs", skip_serializing_if = "<[_]>::is_empty")]
        client_group_ids: &'a [String],
    }
    message("deleteClients", &Body { client_ids, client_group_ids })
}

/// Failures of single queries; the connection stays.
#[must_use]
pub fn transform_error(errored: &[Value]) -> Bytes {
    message("transformError", errored)
}

#[must_use]
pub fn inspect(body: &Value) -> Bytes {
    message("inspect", body)
}

fn message<T: Serialize + ?Sized>(tag: &str, body: &T) -> Bytes {
    serde_json::to_vec(&(tag, body)).expect("message bodies have string keys only").into()
}

/// Appends a row operation that stores a row; `row` is its JSON object with all columns.
pub fn write_row_put(out: &mut Vec<u8>, table: &str, row: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b"{\"op\":\"put\",\"tableName\":");
    write_string(out, table);
    out.extend_from_slice(b",\"value\":");
    row(out);
    out.push(b'}');
}

/// Appends a row operation that removes a row; `id` is the JSON object of its client-schema primary key.
pub fn write_row_del(out: &mut Vec<u8>, table: &str, id: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b"{\"op\":\"del\",\"tableName\":");
    write_string(out, table);
    out.extend_from_slice(b",\"id\":");
    id(out);
    out.push(b'}');
}

/// Appends a mutation operation that delivers a result, given as JSON text.
pub fn write_mutation_put(out: &mut Vec<u8>, client_id: &str, mutation_id: i64, result: &[u8]) {
    out.extend_from_slice(b"{\"op\":\"put\",\"mutation\":{\"id\":");
    write_mutation_id(out, client_id, mutation_id);
    out.extend_from_slice(b",\"result\":");
    out.extend_from_slice(result);
    out.extend_from_slice(b"}}");
}

/// Appends a mutation operation that forgets a result.
pub fn write_mutation_del(out: &mut Vec<u8>, client_id: &str, mutation_id: i64) {
    out.extend_from_slice(b"{\"op\":\"del\",\"id\":");
    write_mutation_id(out, client_id, mutation_id);
    out.push(b'}');
}

fn write_mutation_id(out: &mut Vec<u8>, client_id: &str, mutation_id: i64) {
    out.extend_from_slice(format!("{{\"id\":{mutation_id},\"clientID\":").as_bytes());
    write_string(out, client_id);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn frames_as_clients_expect_them() {
        for (frame, expected) in [
            (connected("w\"s", 5), json!(["connected", {"wsid": "w\"s", "timestamp": 5}])),
            (pong(), json!(["pong", {}])),
            (
                error(&ErrorBody::internal("m")),
                json!(["error", {"kind": "Internal", "message": "m", "origin": "zeroCache"}]),
            ),
            (poke_start("p", None), json!(["pokeStart", {"pokeID": "p", "baseCookie": null}])),
            (poke_start("p", Some("00:01")), json!(["pokeStart", {"pokeID": "p", "baseCookie": "00:01"}])),
            (poke_end("p", "01"), json!(["pokeEnd", {"pokeID": "p", "cookie": "01"}])),
            (poke_cancel("p"), json!(["pokeEnd", {"pokeID": "p", "cookie": "", "cancel": true}])),
            (delete_clients(&["a".to_owned()], &[]), json!(["deleteClients", {"clientIDs": ["a"]}])),
            (transform_error(&[json!({"error": "app"})]), json!(["transformError", [{"error": "app"}]])),
            (inspect(&json!({"id": "1"})), json!(["inspect", {"id": "1"}])),
        ] {
            assert_eq!(serde_json::from_slice::<Value>(&frame).expect("JSON"), expected);
        }
    }
}
