//! What comes from outside, and what became of it.

use protocol::crud::CrudOp;
use serde_json::{Map, Value};

/// One mutation. Mutations of one client must not be under way at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub group: &'a str,
    pub client: &'a str,
    pub id: i64,
    pub ops: &'a [CrudOp],
    /// Of a verified token.
    pub claims: Option<&'a Map<String, Value>>,
}

/// What became of a mutation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Applied,
    /// It was applied before.
    AlreadyDone,
    /// The rules forbid it: nothing was done, and the mutation is over.
    Denied,
    /// It cannot be carried out, and is over. The message is for its client.
    Failed(String),
    /// Mutations before it are missing.
    OutOfOrder {
        expected: i64,
    },
    /// Upstream is away: nothing is known of it, and it should come again later.
    Unavailable(String),
}

impl Outcome {
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Outcome::Applied => "applied",
            Outcome::AlreadyDone => "already_done",
            Outcome::Denied => "denied",
            Outcome::Failed(_) => "failed",
            Outcome::OutOfOrder { .. } => "out_of_order",
            Outcome::Unavailable(_) => "unavailable",
        }
    }
}
