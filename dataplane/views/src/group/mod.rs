//! A client group while it is in memory: its record, its connections and how each of its queries stands.

pub mod inherit;
pub mod record;
mod room;
pub mod user;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use protocol::down::QueryOp;
use rows::{Cookie, Version};
use rustc_hash::FxHashSet;

use crate::api::{ConnectionContext, ConnectionId};
use crate::convert::KeyChoice;
use crate::materialisation::MaterialisationId;
use record::{Definition, DesirePatch, Holding, Record};

/// Unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u64);

/// How far a query of the group came on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryRun {
    /// The materialisation whose rows the group's clients hold. May still be hydrating after a restart.
    pub held: Option<MaterialisationId>,
    /// The materialisation that will be delivered once it is live.
    pub coming: Option<MaterialisationId>,
    /// The API server is asked for the AST.
    pub asked: Option<Asked>,
    /// The attempt whose answer was taken last.
    pub answered: u64,
}

/// A request to the API server that is not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Tells a late answer from the awaited one.
    pub attempt: u64,
    /// On whose behalf. When it goes, the request counts no more: its credentials may never be found good.
    pub by: ConnectionId,
}

/// Whether this node may serve the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No connection that could be served has asked for it.
    Unclaimed,
    /// Asked for, not answered.
    Claimed,
    /// Owned, but the replica has not reached yet what its clients may have seen.
    Behind {
        since: Instant,
    },
    Served,
}

pub struct Group {
    pub id: GroupId,
    pub name: String,
    pub standing: Standing,
    /// Of this node's ownership; 0 before there is any.
    pub epoch: i64,
    /// The greatest epoch that this node is known to have lost.
    pub lost_epoch: i64,
    /// When its newest connection was accepted.
    pub connected_at: Instant,
    pub record: Record,
    /// Whether the database knows the group.
    pub known: bool,
    pub keys: Arc<KeyChoice>,
    /// The greatest cookie any client of the group was sent, here or by former owners.
    pub cookie: Cookie,
    /// The greatest that former owners can have sent.
    pub taken_at: Cookie,
    pub connections: Vec<ConnectionId>,
    pub queries: BTreeMap<String, QueryRun>,
    /// Whether credentials of any of its connections were found good on this node.
    pub is_admitted: bool,
    /// The context of the newest validated connection, for work that no message asked for.
    pub background: Option<(ConnectionId, Arc<ConnectionContext>)>,
    /// Whose claims its client-defined queries follow.
    pub acting: Option<Arc<ConnectionContext>>,
    pub pending: Pending,
    /// When the group's clock was last brought forward, while anyone is connected.
    pub clock_since: Option<Instant>,
    pub idle_since: Option<Instant>,
    /// Whether to look for expired queries.
    pub may_expire: bool,
    pub retransform_at: Option<Instant>,
}

/// A query that was got and is not any more.
#[derive(Debug)]
pub struct Left {
    pub hash: String,
    pub held: Option<MaterialisationId>,
    pub holding: Holding,
}

/// What the group's clients have not been told yet. Goes out with the next poke.
#[derive(Debug, Default)]
pub struct Pending {
    pub desires: Vec<DesirePatch>,
    pub got: Vec<QueryOp>,
    /// Queries whose coming materialisation is live.
    pub arrived: Vec<String>,
    /// Queries that left the group, with what its clients hold of them.
    pub left: Vec<Left>,
    pub last_mutation_ids: BTreeMap<String, i64>,
    /// Encoded mutation operations.
    pub mutations: Vec<Vec<u8>>,
    /// Materialisations that the group subscribes to and that have an entry at the present version.
    pub affected: Vec<MaterialisationId>,
    /// The record changed and must be stored with the next cookie.
    pub record: bool,
}

impl Pending {
    pub fn is_empty(&self) -> bool {
        self.desires.is_empty()
            && self.got.is_empty()
            && self.arrived.is_empty()
            && self.left.is_empty()
            && self.last_mutation_ids.is_empty()
            && self.mutations.is_empty()
            && self.affected.is_empty()
            && !self.record
    }

    /// Forgets what only active connections are told: whoever joins is told the state, not the changes.
    pub fn nobody_is_told(&mut self) {
        self.last_mutation_ids.clear();
        self.mutations.clear();
        self.affected.clear();
    }

    /// Whether clients see anything of it. The rest only has to be stored.
    pub fn is_visible(&self) -> bool {
        !(self.desires.is_empty()
            && self.got.is_empty()
            && self.arrived.is_empty()
            && self.left.is_empty()
            && self.last_mutation_ids.is_empty()
            && self.mutations.is_empty()
            && self.affected.is_empty())
    }
}

impl Group {
    pub fn new(id: GroupId, name: String) -> Group {
        Group {
            id,
            name,
            standing: Standing::Unclaimed,
            epoch: 0,
            lost_epoch: 0,
            connected_at: Instant::now(),
            record: Record::default(),
            known: false,
            keys: Arc::default(),
            cookie: Cookie::EMPTY,
            taken_at: Cookie::EMPTY,
            connections: Vec::new(),
            queries: BTreeMap::new(),
            is_admitted: false,
            background: None,
            acting: None,
            pending: Pending::default(),
            clock_since: None,
            idle_since: None,
            may_expire: false,
            retransform_at: None,
        }
    }

    pub fn is_served(&self) -> bool {
        self.standing == Standing::Served
    }

    /// Whether any of its queries is defined in the client.
    pub fn defines_queries(&self) -> bool {
        self.record.queries.values().any(|query| matches!(query.definition, Definition::Ast(_)))
    }

    /// Takes over what the database had. Every cookie handed out from here on exceeds any that was handed out before, because
    /// former owners told no client of row changes beyond `bound`.
    pub fn take(&mut self, record: Option<Record>, bound: Version) {
        if let Some(mut record) = record {
            record.bytes = room::json_bytes(&record);
            self.known = true;
            self.cookie = record.cookie.max(Cookie::new(bound, 0));
            self.taken_at = self.cookie;
            self.keys = Arc::new(record.client_schema.as_ref().map(KeyChoice::of).unwrap_or_default());
            self.record = record;
            self.may_expire = true;
        }
    }

    /// The cookie for a poke at `version`.
    pub fn next_cookie(&self, version: Version) -> Cookie {
        if version > self.cookie.version { Cookie::new(version, 0) } else { self.cookie.bump_config() }
    }

    /// Brings the group's clock forward and returns it.
    pub fn clock_ms(&mut self, now: Instant) -> u64 {
        if let Some(since) = self.clock_since.replace(now) {
            self.record.ttl_clock_ms += u64::try_from((now - since).as_millis()).unwrap_or(u64::MAX);
            // Whole milliseconds only are counted; the rest is kept for the next time.
            let rest = (now - since).subsec_nanos() % 1_000_000;
            self.clock_since = Some(now - std::time::Duration::from_nanos(u64::from(rest)));
        } else {
            self.clock_since = None;
        }
        self.record.ttl_clock_ms
    }

    /// Materialisations that the group's clients hold rows of.
    pub fn held(&self) -> impl Iterator<Item = MaterialisationId> + '_ {
        self.queries.values().filter_map(|run| run.held)
    }

    /// Leaves those of `ids` that the group's clients hold rows of.
    pub fn retain_held(&self, ids: &mut Vec<MaterialisationId>) {
        match ids.len() {
            0 => {}
            1 => ids.retain(|id| self.held().any(|held| held == *id)),
            _ => {
                let held: FxHashSet<MaterialisationId> = self.held().collect();
                ids.retain(|id| held.contains(id));
            }
        }
    }

    /// A query that failed is not run until a client asks for it anew; who desires it still does. What clients hold of it is
    /// deleted with the next poke. Returns what it was subscribed to.
    pub fn fail_query(&mut self, hash: &str) -> Vec<MaterialisationId> {
        let run = self.queries.remove(hash).unwrap_or_default();
        if let Some(query) = self.record.queries.get_mut(hash) {
            query.failed = Some(Cookie::EMPTY);
            if let Some(holding) = query.holding.take() {
                self.pending.left.push(Left { hash: hash.to_owned(), held: run.held, holding });
            }
            self.pending.got.push(QueryOp::Del { hash: hash.to_owned() });
            self.pending.record = true;
        }
        run.held.into_iter().chain(run.coming).collect()
    }

    /// A query that can no longer be served stays desired; what clients hold of it is deleted with the next poke.
    pub fn lose_query(&mut self, hash: &str) {
        let held = self.queries.get_mut(hash).and_then(|run| run.held.take());
        if let Some(holding) = self.record.queries.get_mut(hash).and_then(|q| q.holding.take()) {
            self.pending.left.push(Left { hash: hash.to_owned(), held, holding });
            self.pending.got.push(QueryOp::Del { hash: hash.to_owned() });
            self.pending.record = true;
        }
    }

    /// Forgets a query: clients are told, and what they hold of it is deleted with the next poke. Returns what it was
    /// subscribed to.
    pub fn remove_query(&mut self, hash: &str) -> Vec<MaterialisationId> {
        let run = self.queries.remove(hash).unwrap_or_default();
        if let Some(query) = self.record.queries.remove(hash) {
            if let Some(holding) = query.holding {
                self.pending.left.push(Left { hash: hash.to_owned(), held: run.held, holding });
            }
            // Of one that failed they were told before.
            if query.failed.is_none() {
                self.pending.got.push(QueryOp::Del { hash: hash.to_owned() });
            }
            self.pending.record = true;
        }
        run.held.into_iter().chain(run.coming).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_clock_runs_only_while_someone_is_connected() {
        let mut group = Group::new(GroupId(1), "g".into());
        let start = Instant::now();
        assert_eq!(group.clock_ms(start), 0);
        group.clock_since = Some(start);
        assert_eq!(group.clock_ms(start + Duration::from_micros(1_500)), 1);
        assert_eq!(group.clock_ms(start + Duration::from_micros(2_100)), 2);
        group.clock_since = None;
        assert_eq!(group.clock_ms(start + Duration::from_secs(9)), 2);
    }

    #[test]
    fn cookies_of_the_next_owner_exceed_all_before() {
        let mut group = Group::new(GroupId(1), "g".into());
        let record = Record { cookie: Cookie::new(Version::new(10), 2), ..Record::default() };
        group.take(Some(record), Version::new(20));
        assert!(group.next_cookie(Version::new(20)) > Cookie::new(Version::new(20), 0));
        assert_eq!(group.next_cookie(Version::new(21)), Cookie::new(Version::new(21), 0));
    }
}
