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

    let Message(tag, body) =
        serde_json::from_str(text).map_err(|e| InvalidMessage::NotAMessage(e.to_string()))?;
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
