//! Messages from clients.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

pub use crate::push::{Mutation, MutationKind, Push};
pub use crate::schema::{ClientSchema, ColumnKind, ColumnSchema, TableSchema};

use crate::ast::{self, Ast};
use crate::error::ErrorBody;
use crate::node::{Node, ParseError};
use crate::schema;

#[derive(Clone, Debug)]
pub enum UpMessage {
    InitConnection(Box<InitConnection>),
    ChangeDesiredQueries(Box<ChangeDesiredQueries>),
    DeleteClients(DeleteClients),
    Ping,
    Push(Box<Push>),
    /// Sent by no supported client; ignored.
    Pull,
    AckMutationResponses(AckMutationResponses),
    UpdateAuth(UpdateAuth),
    /// An object with at least `id` and `op`.
    Inspect(Box<Value>),
    /// Obsolete; ignored.
    CloseConnection,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct InitConnection {
    pub desired_queries_patch: Vec<UpQueryOp>,
    /// Sent when the client has no cookie.
    pub client_schema: Option<ClientSchema>,
    pub deleted: Option<DeleteClients>,
    pub user_push_url: Option<String>,
    pub user_query_url: Option<String>,
    pub user_push_headers: Vec<(String, String)>,
    pub user_query_headers: Vec<(String, String)>,
    /// All live clients of the group; `None` says nothing about them.
    pub active_clients: Option<Vec<String>>,
    pub traceparent: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChangeDesiredQueries {
    pub desired_queries_patch: Vec<UpQueryOp>,
    pub traceparent: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum UpQueryOp {
    Put {
        hash: String,
        /// Milliseconds, not yet clamped.
        ttl: Option<i64>,
        /// May be absent for a query that the group already knows.
        query: Option<QueryDefinition>,
    },
    Del {
        hash: String,
    },
    Clear,
}

#[derive(Clone, Debug, PartialEq)]
pub enum QueryDefinition {
    /// A client query in server names, subject to permissions.
    Ast(Box<Ast>),
    /// A custom query; the API server turns it into an AST.
    Named { name: String, args: Vec<Value> },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteClients {
    pub client_ids: Vec<String>,
    pub client_group_ids: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckMutationResponses {
    pub id: i64,
    pub client_id: String,
}

/// Has no `Debug` output of the token.
#[derive(Clone, PartialEq, Eq)]
pub struct UpdateAuth {
    pub auth: String,
}

impl std::fmt::Debug for UpdateAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UpdateAuth")
    }
}

/// A frame that is no message of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMessage {
    #[error("the frame is not a JSON array [tag, body]: {0}")]
    NotAMessage(String),
    #[error("unknown message \"{0}\"")]
    UnknownTag(String),
    #[error("invalid message {0}")]
    Body(#[from] ParseError),
}

impl From<InvalidMessage> for ErrorBody {
    fn from(error: InvalidMessage) -> ErrorBody {
        ErrorBody::invalid_message(error.to_string())
    }
}

/// Longest piece of a client's own text that an error repeats.
const ECHO_CHARS: usize = 64;

impl UpMessage {
    /// Reads one text frame.
    pub fn parse(text: &str) -> Result<UpMessage, InvalidMessage> {
        let (tag, body) = split(text)?;
        let value = || -> Result<Value, InvalidMessage> {
            serde_json::from_str(body.get())
                .map_err(|e| ParseError { at: tag.to_string(), reason: e.to_string() }.into())
        };
        match &*tag {
            "initConnection" => Ok(init_connection(&Node::root(&tag, &value()?))?),
            "changeDesiredQueries" => Ok(change_desired_queries(&Node::root(&tag, &value()?))?),
            "deleteClients" => Ok(UpMessage::DeleteClients(delete_clients(&Node::root(&tag, &value()?))?)),
            "ping" => {
                Node::root(&tag, &value()?).object()?;
                Ok(UpMessage::Ping)
            }
            "push" => Ok(UpMessage::Push(Box::new(Push::parse(body)?))),
            "pull" => Ok(UpMessage::Pull),
            "ackMutationResponses" => Ok(ack_mutation_responses(&Node::root(&tag, &value()?))?),
            "updateAuth" => {
                let auth = Node::root(&tag, &value()?).string_field("auth")?;
                Ok(UpMessage::UpdateAuth(UpdateAuth { auth }))
            }
            "inspect" => {
                let value = value()?;
                let node = Node::root(&tag, &value);
                node.field("id")?.text()?;
                node.field("op")?.text()?;
                Ok(UpMessage::Inspect(Box::new(value)))
            }
            "closeConnection" => Ok(UpMessage::CloseConnection),
            _ => Err(InvalidMessage::UnknownTag(tag.chars().take(ECHO_CHARS).collect())),
        }
    }

    /// The tag on the wire.
    #[must_use]
    pub fn tag(&self) -> &'static str {
        match self {
            UpMessage::InitConnection(_) => "initConnection",
            UpMessage::ChangeDesiredQueries(_) => "changeDesiredQueries",
            UpMessage::DeleteClients(_) => "deleteClients",
            UpMessage::Ping => "ping",
            UpMessage::Push(_) => "push",
            UpMessage::Pull => "pull",
            UpMessage::AckMutationResponses(_) => "ackMutationResponses",
            UpMessage::UpdateAuth(_) => "updateAuth",
            UpMessage::Inspect(_) => "inspect",
            UpMessage::CloseConnection => "closeConnection",
        }
    }
}

fn split(text: &str) -> Result<(Cow<'_, str>, &RawValue), InvalidMessage> {
    #[derive(Deserialize)]
    struct Message<'a>(#[serde(borrow)] Cow<'a, str>, #[serde(borrow)] &'a RawValue);

    let Message(tag, body) = serde_json::from_str(text).map_err(|e| InvalidMessage::NotAMessage(e.to_string()))?;
    Ok((tag, body))
}

fn init_connection(node: &Node<'_>) -> Result<UpMessage, ParseError> {
    Ok(UpMessage::InitConnection(Box::new(InitConnection {
        desired_queries_patch: desired_queries_patch(node)?,
        client_schema: node.optional("clientSchema")?.map(|n| schema::parse(&n)).transpose()?,
        deleted: node.optional("deleted")?.map(|n| delete_clients(&n)).transpose()?,
        user_push_url: node.optional_string("userPushURL")?,
        user_query_url: node.optional_string("userQueryURL")?,
        user_push_headers: headers(node, "userPushHeaders")?,
        user_query_headers: headers(node, "userQueryHeaders")?,
        active_clients: node.optional_strings("activeClients")?,
        traceparent: node.optional_string("traceparent")?,
    })))
}

fn change_desired_queries(node: &Node<'_>) -> Result<UpMessage, ParseError> {
    Ok(UpMessage::ChangeDesiredQueries(Box::new(ChangeDesiredQueries {
        desired_queries_patch: desired_queries_patch(node)?,
        traceparent: node.optional_string("traceparent")?,
    })))
}

fn ack_mutation_responses(node: &Node<'_>) -> Result<UpMessage, ParseError> {
    Ok(UpMessage::AckMutationResponses(AckMutationResponses {
        id: node.field("id")?.integer()?,
        client_id: node.string_field("clientID")?,
    }))
}

fn delete_clients(node: &Node<'_>) -> Result<DeleteClients, ParseError> {
    Ok(DeleteClients {
        client_ids: node.optional_strings("clientIDs")?.unwrap_or_default(),
        client_group_ids: node.optional_strings("clientGroupIDs")?.unwrap_or_default(),
    })
}

fn headers(node: &Node<'_>, name: &str) -> Result<Vec<(String, String)>, ParseError> {
    match node.optional(name)? {
        Some(headers) => headers.properties(|name, value| Ok((name.to_owned(), value.string()?))),
        None => Ok(Vec::new()),
    }
}

fn desired_queries_patch(node: &Node<'_>) -> Result<Vec<UpQueryOp>, ParseError> {
    node.field("desiredQueriesPatch")?.elements(|n| query_op(&n))
}

fn query_op(node: &Node<'_>) -> Result<UpQueryOp, ParseError> {
    let op = node.field("op")?;
    match op.text()? {
        "put" => Ok(UpQueryOp::Put {
            hash: node.string_field("hash")?,
            ttl: node.optional("ttl")?.map(|n| n.number()).transpose()?.map(whole_ms),
            query: definition(node)?,
        }),
        "del" => Ok(UpQueryOp::Del { hash: node.string_field("hash")? }),
        "clear" => Ok(UpQueryOp::Clear),
        _ => Err(op.refuse("expected \"put\", \"del\" or \"clear\"")),
    }
}

/// A lifetime is clamped to minutes later, so saturation at the ends of i64 changes nothing.
fn whole_ms(ms: f64) -> i64 {
    ms.ceil() as i64
}

fn definition(node: &Node<'_>) -> Result<Option<QueryDefinition>, ParseError> {
    let ast = node.optional("ast")?.map(|n| ast::parse(&n)).transpose()?;
    let name = node.optional_string("name")?;
    let args = node.optional("args")?.map(|n| n.elements(|arg| Ok(arg.value().clone()))).transpose()?;
    match (ast, name) {
        (Some(_), Some(_)) => Err(node.refuse("a query has either an \"ast\" or a \"name\", not both")),
        (Some(ast), None) => Ok(Some(QueryDefinition::Ast(Box::new(ast)))),
        (None, Some(name)) => Ok(Some(QueryDefinition::Named { name, args: args.unwrap_or_default() })),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> UpMessage {
        UpMessage::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn init_connection_of_the_specification() {
        let text = r#"["initConnection",{"desiredQueriesPatch":[{"op":"put","hash":"pe2z7etdnrdw","name":"issueById","args":[{"id":"1"}],"ttl":300000}],
 "clientSchema":{"tables":{"issue":{"columns":{"id":{"type":"string"}},"primaryKey":["id"]}}},"activeClients":["0123456789abcdefgh"]}]"#;
        let UpMessage::InitConnection(body) = parse(text) else { panic!("initConnection") };
        let query = QueryDefinition::Named { name: "issueById".to_owned(), args: vec![serde_json::json!({"id": "1"})] };
        let put = UpQueryOp::Put { hash: "pe2z7etdnrdw".to_owned(), ttl: Some(300_000), query: Some(query) };
        assert_eq!(body.desired_queries_patch, [put]);
        assert_eq!(body.client_schema.expect("schema").tables["issue"].primary_key, ["id"]);
        assert_eq!(body.active_clients.expect("clients").len(), 1);
        assert_eq!(body.deleted, None);
    }

    #[test]
    fn every_message() {
        for (text, tag) in [
            (
                r#"["changeDesiredQueries",{"desiredQueriesPatch":[{"op":"del","hash":"h"},{"op":"clear"}],"traceparent":"t"}]"#,
                "changeDesiredQueries",
            ),
            (r#"["deleteClients",{"clientIDs":["a"]}]"#, "deleteClients"),
            (r#"["deleteClients",{}]"#, "deleteClients"),
            (r#" [ "ping" , {} ] "#, "ping"),
            (r#"["pi\u006eg",{}]"#, "ping"),
            (r#"["pull",{"clientGroupID":"g","cookie":null,"requestID":"r"}]"#, "pull"),
            (r#"["ackMutationResponses",{"id":4,"clientID":"c"}]"#, "ackMutationResponses"),
            (r#"["updateAuth",{"auth":"secret"}]"#, "updateAuth"),
            (r#"["inspect",{"id":"1","op":"queries"}]"#, "inspect"),
            (r#"["closeConnection",[]]"#, "closeConnection"),
        ] {
            assert_eq!(parse(text).tag(), tag);
        }
        assert!(!format!("{:?}", parse(r#"["updateAuth",{"auth":"secret"}]"#)).contains("secret"));
    }

    #[test]
    fn queries_with_two_definitions_or_odd_lifetimes() {
        let op = |fields: &str| {
            let text =
                format!(r#"["changeDesiredQueries",{{"desiredQueriesPatch":[{{"op":"put","hash":"h",{fields}}}]}}]"#);
            UpMessage::parse(&text).map(|message| match message {
                UpMessage::ChangeDesiredQueries(mut body) => body.desired_queries_patch.remove(0),
                other => panic!("{other:?}"),
            })
        };
        let ttl = |fields: &str| match op(fields) {
            Ok(UpQueryOp::Put { ttl, .. }) => ttl,
            other => panic!("{other:?}"),
        };
        assert_eq!(ttl(r#""ttl":-1"#), Some(-1));
        assert_eq!(ttl(r#""ttl":1.5"#), Some(2));
        assert_eq!(ttl(r#""ttl":1e300"#), Some(i64::MAX));
        assert_eq!(ttl(r#""name":"n""#), None);
        let error = op(r#""name":"n","ast":{"table":"t"}"#).expect_err("two definitions").to_string();
        assert!(error.contains("changeDesiredQueries.desiredQueriesPatch[0]"), "{error}");
    }

    const PUSH: &str = r#"["push",{"clientGroupID":"g","mutations":[{"type":"custom","id":4,"clientID":"c","name":"issue.create","args":[{"n":1.50,"big":123456789012345678901}],"timestamp":1}],"pushVersion":1,"schemaVersion":2,"timestamp":1,"requestID":"c-1","extra":{"x": [1]}}]"#;

    #[test]
    fn a_push_is_forwarded_to_the_letter() {
        let UpMessage::Push(push) = parse(PUSH) else { panic!("push") };
        assert_eq!((push.client_group_id.as_str(), push.request_id.as_str()), ("g", "c-1"));
        assert_eq!((push.mutations[0].id, push.mutations[0].client_id.as_str()), (4, "c"));
        let body = String::from_utf8(push.combined_body([&*push, &*push].into_iter())).expect("text");
        let mutation = r#"{"type":"custom","id":4,"clientID":"c","name":"issue.create","args":[{"n":1.50,"big":123456789012345678901}],"timestamp":1}"#;
        assert_eq!(
            body,
            format!(
                r#"{{"clientGroupID":"g","pushVersion":1,"schemaVersion":2,"timestamp":1,"requestID":"c-1","extra":{{"x": [1]}},"mutations":[{mutation},{mutation}]}}"#
            )
        );
    }

    #[test]
    fn pushes_that_make_no_sense() {
        for (from, to, place) in [
            ("\"clientGroupID\":\"g\",", "", "clientGroupID"),
            ("\"id\":4", "\"id\":\"4\"", "push.mutations[0].id"),
            ("\"id\":4", "\"id\":4.5", "push.mutations[0].id"),
            ("\"custom\"", "\"other\"", "push.mutations[0].type"),
            ("\"args\":[", "\"args\":{}, \"x\":[", "push.mutations[0].args"),
            ("\"pushVersion\":1", "\"pushVersion\":\"1\"", "push.pushVersion"),
        ] {
            let text = PUSH.replace(from, to);
            assert_ne!(text, PUSH);
            let error = UpMessage::parse(&text).expect_err(&text).to_string();
            assert!(error.contains(place), "{error}");
        }
        let many: String = (0..100).map(|i| format!("\"p{i}\":0,")).collect();
        assert!(UpMessage::parse(&PUSH.replacen("{\"clientGroupID", &format!("{{{many}\"clientGroupID"), 1)).is_err());
    }

    #[test]
    fn deep_nesting_is_refused_and_does_not_overflow() {
        for n in [50, 100, 1000, 100_000] {
            let conditions = format!("{}{}", r#"{"type":"and","conditions":["#.repeat(n), "]}".repeat(n));
            let text = format!(
                r#"["changeDesiredQueries",{{"desiredQueriesPatch":[{{"op":"put","hash":"h","ast":{{"table":"t","where":{conditions}}}}}]}}]"#
            );
            assert_eq!(UpMessage::parse(&text).is_ok(), n <= 50, "{n}");
            let _ = UpMessage::parse(&"[".repeat(n));
            let _ = UpMessage::parse(&format!(r#"["push",{}]"#, "[".repeat(n)));
        }
    }

    /// Texts near valid ones reach further into the parsers than random ones.
    fn seeds() -> Vec<String> {
        let ast = r#"{"table":"t","alias":"a","where":{"type":"or","conditions":[{"type":"simple","op":"IN","left":{"type":"column","name":"c"},"right":{"type":"literal","value":[1,"x",true]}},{"type":"correlatedSubquery","op":"EXISTS","flip":true,"related":{"system":"client","correlation":{"parentField":["a"],"childField":["b"]},"subquery":{"table":"u"}}}]},"related":[],"start":{"row":{"a":1},"exclusive":true},"limit":5,"orderBy":[["a","asc"]]}"#;
        vec![
            PUSH.to_owned(),
            format!(
                r#"["initConnection",{{"desiredQueriesPatch":[{{"op":"put","hash":"h","ttl":1,"ast":{ast}}}],"clientSchema":{{"tables":{{"t":{{"columns":{{"c":{{"type":"json"}}}},"primaryKey":["c"]}}}}}},"userPushHeaders":{{"a":"b"}}}}]"#
            ),
            r#"["deleteClients",{"clientIDs":["a"],"clientGroupIDs":[]}]"#.to_owned(),
            r#"["inspect",{"id":"1","op":"queries"}]"#.to_owned(),
        ]
    }

    #[test]
    fn the_seeds_are_valid() {
        for seed in seeds() {
            parse(&seed);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn garbage_never_panics(text in ".{0,300}") {
            let _ = UpMessage::parse(&text);
        }

        #[test]
        fn mutilated_messages_never_panic(
            seed in 0..4_usize,
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize), 1..4),
        ) {
            const PIECES: [&str; 12] = ["", "null", "0", "-1", "1e999", "\"", "{", "}", "[", "]", "true", "[[]]"];
            let mut text = seeds()[seed].clone();
            for (at, piece) in edits {
                let at = at.index(text.len());
                if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
                    text.replace_range(at..at + 1, PIECES[piece]);
                }
            }
            if let Err(error) = UpMessage::parse(&text) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }
}
