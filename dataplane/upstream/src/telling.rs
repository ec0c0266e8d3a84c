//! How the stream tells of schema changes, and what it says.
//!
//! Pure, and never an error: what cannot be understood is said in the log and has no effect. If it was about something, rows of
//! another shape tell.

use rows::Version;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::schema::Difference;

/// How schema changes are told in the stream.
pub(crate) struct Telling {
    /// Whether event triggers report them.
    pub watching: bool,
    /// Schema of the table with the events.
    pub shard_schema: String,
    /// Former releases told by logical messages, which any role may emit: they count in transactions before this position only.
    pub messages_until: Version,
    /// Prefix of those messages.
    pub message_prefix: String,
}

/// What is said.
#[derive(Debug)]
pub(crate) enum Told {
    /// Tables are described, or not published any more.
    Tables { tag: String, difference: Difference },
    /// The whole schema, by a former release.
    Schema { tag: String, json: String },
    /// Contents of tables were computed anew.
    Rewrite { tables: Vec<u32> },
    /// The reference has begun to use the shard, and nothing is said to this server from here on.
    HandedBack,
    /// A trigger could not say what happened.
    Failure { tag: String, message: String },
}

/// Which fields are there depends on `kind`.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    tag: String,
    #[serde(borrow)]
    schema: Option<&'a RawValue>,
    /// Descriptions of tables, or their numbers.
    #[serde(default)]
    tables: Vec<Box<RawValue>>,
    #[serde(default)]
    gone: Vec<u32>,
    #[serde(default)]
    oid: u32,
    #[serde(default)]
    message: String,
}

/// Reads an event of [`crate::ddl`]'s functions, or a message of former ones.
pub(crate) fn read(content: &[u8]) -> Option<Told> {
    let Event { kind, tag, schema, tables, gone, oid, message } = match serde_json::from_slice(content) {
        Ok(event) => event,
        Err(error) => {
            tracing::error!(%error, "what is said about a schema change cannot be read; it has no effect");
            return None;
        }
    };
    match (kind.as_str(), schema) {
        ("tables", _) => Some(Told::Tables { tag, difference: Difference { tables, gone } }),
        ("schema", Some(schema)) => Some(Told::Schema { tag, json: schema.get().to_owned() }),
        ("rewrite", _) => {
            let listed = tables.iter().filter_map(|number| number.get().parse().ok());
            Some(Told::Rewrite { tables: listed.chain((oid != 0).then_some(oid)).collect() })
        }
        ("handedBack", _) => Some(Told::HandedBack),
        ("error", _) => Some(Told::Failure { tag, message }),
        _ => {
            tracing::error!(kind, "what is said about a schema change is of an unknown kind; it has no effect");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_former_messages_are_read_and_all_else_is_nothing() {
        for (json, expected) in [
            (r#"{"type":"rewrite","tables":[1,2]}"#, Some("Rewrite { tables: [1, 2] }")),
            (r#"{"type":"rewrite","version":1,"oid":3}"#, Some("Rewrite { tables: [3] }")),
            (r#"{"type":"handedBack"}"#, Some("HandedBack")),
            (r#"{"type":"error","tag":"T","message":"m"}"#, Some(r#"Failure { tag: "T", message: "m" }"#)),
            (
                r#"{"type":"schema","tag":"T","schema":{"tables":[]}}"#,
                Some(r#"Schema { tag: "T", json: "{\"tables\":[]}" }"#),
            ),
            (
                r#"{"type":"tables","tag":"T","gone":[7]}"#,
                Some(r#"Tables { tag: "T", difference: Difference { tables: [], gone: [7] } }"#),
            ),
            (r#"{"type":"schema"}"#, None),
            (r#"{"type":"tables","gone":["x"]}"#, None),
            (r#"{"type":"?"}"#, None),
            (r#"{"tag":"T"}"#, None),
            ("[1]", None),
            ("{", None),
        ] {
            assert_eq!(read(json.as_bytes()).map(|told| format!("{told:?}")).as_deref(), expected, "{json}");
        }
        assert!(read(&[0xff]).is_none());
    }
}
