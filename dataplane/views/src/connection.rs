//! One socket as the views see it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use rows::{Cookie, Version};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::api::{Admission, ClientMessage, ConnectionContext, ConnectionId, Credit, Outbox};
use crate::group::GroupId;
use crate::row_id::RowId;
use crate::store::LineageId;
use crate::transform::Answers;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waits for `initConnection`; other messages are dropped, as no view exists for them.
    New,
    /// `initConnection` was applied; waits for validation, for the queries its client holds, and for stored history. Again so
    /// while a query that it holds is hydrated anew.
    Joining,
    /// At the group's newest state after every poke.
    Active,
}

/// Rows that may have changed for a client since its cookie.
pub struct History {
    /// Changes up to this version are in it.
    pub covers: Version,
    pub rows: Arc<Vec<RowId>>,
}

pub struct Connection {
    pub id: ConnectionId,
    pub group: GroupId,
    pub client: String,
    pub profile_id: String,
    pub context: Arc<ConnectionContext>,
    pub outbox: Outbox,
    /// Used when `initConnection` is applied.
    pub admission: Admission,
    pub phase: Phase,
    /// Whether it ever was active.
    pub has_joined: bool,
    /// What the client's store is at, after all frames queued for it.
    pub cookie: Option<Cookie>,
    /// Whether its present credentials were found good.
    pub validated: bool,
    /// Counts up: the greatest was found good last.
    pub validated_at: u64,
    /// Late validation answers for an older context are ignored.
    pub revision: u64,
    /// While joining: the attempt to transform the group's queries with its own credentials.
    pub transforming: Option<u64>,
    /// While joining: do not wait any longer for new queries after this.
    pub patience: Option<Instant>,
    /// Messages that came before the group was served here.
    pub waiting: VecDeque<(ClientMessage, Credit)>,
    /// Nothing is done for it before the replica reaches its cookie.
    pub behind_since: Option<Instant>,
    /// Histories asked for, and those answered. `true`: with all rows that were ever in the set.
    pub asked: FxHashSet<(LineageId, bool)>,
    pub touched: FxHashMap<(LineageId, bool), History>,
    pub revalidate_at: Option<Instant>,
    /// Transformed queries that wait until the credentials they were asked with are known to be good.
    pub answers: Vec<Answers>,
}
