//! The operations of a CRUD mutation, in server names.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::node::{Node, ParseError};
use crate::push::Mutation;

/// What is done to one row.
#[derive(Clone, Debug, PartialEq)]
pub struct CrudOp {
    pub kind: CrudKind,
    pub table: String,
    /// The columns that say which row, all of them in `value`.
    pub key: Vec<String>,
    pub value: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CrudKind {
    /// Nothing happens if the row is there.
    Insert,
    /// Changes the given columns if the row is there.
    Upsert,
    /// Nothing happens if the row is not there.
    Update,
    Delete,
}

impl CrudKind {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            CrudKind::Insert => "insert",
            CrudKind::Upsert => "upsert",
            CrudKind::Update => "update",
            CrudKind::Delete => "delete",
        }
    }
}

impl Mutation {
    /// Reads the operations, which a push otherwise only carries.
    pub fn crud_ops(&self) -> Result<Vec<CrudOp>, ParseError> {
        let refuse = |reason: String| ParseError { at: "push.mutations".to_owned(), reason };
        if self.name != "_zero_crud" {
            return Err(refuse("a CRUD mutation has another name than \"_zero_crud\"".to_owned()));
        }
        let args: Box<RawValue> = self.property("args").map_err(|e| refuse(e.to_string()))?;
        let args: Value = serde_json::from_str(args.get()).map_err(|e| refuse(e.to_string()))?;
        let node = Node::root("push.mutations.args", &args);
        let mut all = node.elements(|args| args.field("ops")?.elements(|op| crud_op(&op)))?;
        match (all.pop(), all.is_empty()) {
            (Some(ops), true) => Ok(ops),
            _ => Err(node.refuse("expected exactly one argument")),
        }
    }
}

fn crud_op(node: &Node<'_>) -> Result<CrudOp, ParseError> {
    let op = node.field("op")?;
    let kinds = [CrudKind::Insert, CrudKind::Upsert, CrudKind::Update, CrudKind::Delete];
    let text = op.text()?;
    let kind = kinds.into_iter().find(|kind| kind.name() == text);
    Ok(CrudOp {
        kind: kind.ok_or_else(|| op.refuse("expected insert, upsert, update or delete"))?,
        table: node.string_field("tableName")?,
        key: node.field("primaryKey")?.strings()?,
        value: node.field("value")?.object()?.clone(),
    })
}
