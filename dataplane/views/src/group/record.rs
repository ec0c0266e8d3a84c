//! What is remembered of a client group across restarts, and how messages of its clients change it.
//!
//! Pure: knows no socket, no clock (the group's own clock is an argument), no engine.
//!
//! Invariant: every change made here that a client must learn of is returned as patches, and they go out with a cookie greater than any
//! before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protocol::ast::Ast;
use protocol::schema::ClientSchema;
use protocol::up::UpQueryOp;
use rows::Cookie;
use serde::{Deserialize, Serialize};

use super::room;
use super::user::User;
use crate::store::LineageId;

/// TTL of a desired query whose client sent none, and the longest one kept (sync-protocol 4.7).
pub const TTL_DEFAULT_MS: u64 = 300_000;
pub const TTL_MAX_MS: u64 = 600_000;
/// Removed queries and desires remembered for clients that come back with an older cookie.
pub const REMOVED_MAX: usize = 256;
/// Nodes that served a query remembered for the same purpose. A client from before the last so many moves starts over.
const EARLIER_MAX: usize = 32;
/// Most queries of one group; a client that wants more is mistaken or hostile.
pub const QUERIES_MAX: usize = 5_000;
/// Most clients (tabs that were not deleted) of one group.
pub const CLIENTS_MAX: usize = 5_000;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Text of the greatest cookie that a change of this record carried. Pokes of row changes go beyond it without writing here.
    #[serde(with = "cookie_text")]
    pub cookie: Cookie,
    pub client_schema: Option<ClientSchema>,
    /// Whose the group is: of the first connection whose credentials were found good.
    #[serde(default)]
    pub user: Option<User>,
    pub profile_id: Option<String>,
    /// The group's clock: milliseconds during which any client was connected.
    pub ttl_clock_ms: u64,
    pub clients: BTreeSet<String>,
    pub queries: BTreeMap<String, Query>,
    pub removed: VecDeque<Removed>,
    pub removed_desires: VecDeque<RemovedDesire>,
    /// What clients hold with which the group came from Rocicorp's server.
    #[serde(default)]
    pub inherited: Option<Inherited>,
    /// Cookies below this can no longer be caught up, because `removed` was cut.
    #[serde(with = "cookie_text")]
    pub floor: Cookie,
    /// About as many bytes as it takes as JSON, or more.
    #[serde(skip)]
    pub bytes: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Query {
    pub definition: Definition,
    /// Present while the query is got.
    pub holding: Option<Holding>,
    /// It failed, and clients were told with this cookie; it is run again when a client puts it again.
    #[serde(default, with = "cookie_text::option")]
    pub failed: Option<Cookie>,
    pub desires: BTreeMap<String, Desire>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Definition {
    Ast(Box<Ast>),
    Named { name: String, args: serde_json::Value },
}

/// Which row history serves a got query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The materialisation's key: equal key, equal rows at equal versions, on whatever node.
    pub key: String,
    pub lineage: LineageId,
    /// What served it before, on other nodes, newest first. A history says something only about the versions that its own node
    /// told clients of: between two of them, another node may have told of more.
    pub earlier: VecDeque<Earlier>,
    /// What served clients with cookies up to this one is forgotten.
    #[serde(with = "cookie_text")]
    pub forgotten: Cookie,
    /// The cookie of the poke that delivered the query's rows.
    #[serde(with = "cookie_text")]
    pub got_at: Cookie,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    pub lineage: LineageId,
    /// The last cookie that clients can have got while it served them.
    #[serde(with = "cookie_text")]
    pub until: Cookie,
    /// When another took its place, milliseconds since the Unix epoch.
    pub until_ms: u64,
}

impl Holding {
    pub fn new(key: &str, lineage: LineageId, got_at: Cookie) -> Holding {
        Holding { key: key.to_owned(), lineage, earlier: VecDeque::new(), forgotten: Cookie::EMPTY, got_at }
    }

    /// Goes on with another history of the same query, for clients with cookies beyond `until`. Returns whether that is a
    /// change.
    pub fn continue_with(&mut self, lineage: LineageId, until: Cookie, now_ms: u64) -> bool {
        let before = std::mem::replace(&mut self.lineage, lineage);
        if before == lineage {
            return false;
        }
        self.earlier.push_front(Earlier { lineage: before, until, until_ms: now_ms });
        if self.earlier.len() > EARLIER_MAX {
            self.forget_oldest();
        }
        true
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.earlier.pop_back() {
            self.forgotten = self.forgotten.max(oldest.until);
        }
    }

    /// The history that leads on from a cookie; `None` when that is forgotten.
    #[must_use]
    pub fn lineage_at(&self, cookie: Cookie) -> Option<LineageId> {
        if cookie <= self.forgotten {
            return None;
        }
        Some(self.earlier.iter().rev().find(|earlier| cookie <= earlier.until).map_or(self.lineage, |e| e.lineage))
    }

    /// All histories.
    pub fn lineages(&self) -> impl Iterator<Item = LineageId> + '_ {
        std::iter::once(self.lineage).chain(self.earlier.iter().map(|earlier| earlier.lineage))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desire {
    pub ttl_ms: u64,
    /// The group's clock when the client stopped wanting the query.
    pub inactivated_at_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    pub hash: String,
    pub holding: Holding,
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
    #[serde(with = "cookie_text")]
    pub removed_at: Cookie,
}

/// Everything that clients may hold of whom this server has told nothing yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherited {
    pub lineage: LineageId,
    /// The greatest cookie that such a client can have.
    #[serde(with = "cookie_text")]
    pub until: Cookie,
    /// The least that a client can have who was told something here.
    #[serde(with = "cookie_text")]
    pub since: Cookie,
    /// When the group came, milliseconds since the Unix epoch.
    pub at_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedDesire {
    pub client: String,
    pub hash: String,
    #[serde(with = "cookie_text")]
    pub removed_at: Cookie,
}

/// A change of what a client desires: `true` for put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesirePatch {
    pub client: String,
    pub hash: String,
    pub put: bool,
}

/// What came of a `desiredQueriesPatch`.
#[derive(Debug, Default)]
pub struct Desired {
    pub patches: Vec<DesirePatch>,
    /// Queries that are desired but too large to be kept: they fail.
    pub unkept: Vec<Unkept>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Unkept {
    pub hash: String,
    pub reason: String,
}

/// Why a message cannot be applied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    #[error("query {hash} is new to the server but came with neither an AST nor a name")]
    NoDefinition { hash: String },
    #[error("{what} is longer than {limit} bytes")]
    TooLong { what: &'static str, limit: usize },
    #[error("what the client group's clients desire takes more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the client group has more than {QUERIES_MAX} queries")]
    TooManyQueries,
    #[error("the client group has more than {CLIENTS_MAX} clients")]
    TooManyClients,
    #[error("client {client} cannot delete itself")]
    DeletesItself { client: String },
}

impl Record {
    /// Adds a client that was not known. Returns whether it was new.
    pub fn ensure_client(&mut self, client: &str) -> Result<bool, Refused> {
        room::check_id("the client's id", client)?;
        if self.clients.contains(client) {
            return Ok(false);
        }
        if self.clients.len() >= CLIENTS_MAX {
            return Err(Refused::TooManyClients);
        }
        self.clients.insert(client.to_owned());
        Ok(true)
    }

    /// Applies a `desiredQueriesPatch` in order. `now_ms` is the group's clock.
    pub fn desire(&mut self, client: &str, ops: Vec<UpQueryOp>, now_ms: u64) -> Result<Desired, Refused> {
        room::make(self, client, &ops)?;
        let Desired { mut patches, mut unkept } = Desired::default();
        for op in ops {
            match op {
                UpQueryOp::Put { hash, ttl, query } => {
                    // The reference's reserved hashes, never a client's.
                    if hash == "lmids" || hash == "mutationResults" {
                        continue;
                    }
                    let mut definition = query.map(|d| match d {
                        protocol::up::QueryDefinition::Ast(ast) => Definition::Ast(ast),
                        protocol::up::QueryDefinition::Named { name, args } => {
                            Definition::Named { name, args: serde_json::Value::Array(args) }
                        }
                    });
                    let reason = definition.as_ref().and_then(room::too_large);
                    if reason.is_some() {
                        definition = definition.map(Definition::without_contents);
                    }
                    if self.put(client, &hash, definition, clamp_ttl(ttl))? {
                        unkept.extend(reason.map(|reason| Unkept { hash: hash.clone(), reason }));
                        patches.push(DesirePatch { client: client.to_owned(), hash, put: true });
                    }
                }
                UpQueryOp::Del { hash } => {
                    if self.inactivate(client, &hash, now_ms) {
                        patches.push(DesirePatch { client: client.to_owned(), hash, put: false });
                    }
                }
                UpQueryOp::Clear => {
                    for (hash, query) in &mut self.queries {
                        if let Some(desire) = query.desires.remove(client)
                            && desire.inactivated_at_ms.is_none()
                        {
                            patches.push(DesirePatch { client: client.to_owned(), hash: hash.clone(), put: false });
                        }
                    }
                }
            }
        }
        Ok(Desired { patches, unkept })
    }

    fn put(&mut self, client: &str, hash: &str, definition: Option<Definition>, ttl_ms: u64) -> Result<bool, Refused> {
        if !self.queries.contains_key(hash) {
            if self.queries.len() >= QUERIES_MAX {
                return Err(Refused::TooManyQueries);
            }
            let definition = definition.ok_or_else(|| Refused::NoDefinition { hash: hash.to_owned() })?;
            let query = Query { definition, holding: None, failed: None, desires: BTreeMap::new() };
            self.queries.insert(hash.to_owned(), query);
        } else if let Some(query) = self.queries.get_mut(hash)
            && query.failed.take().is_some()
        {
            // Asked for anew, it is run anew.
            query.definition = definition.unwrap_or_else(|| query.definition.clone());
            query.desires.insert(client.to_owned(), Desire { ttl_ms, inactivated_at_ms: None });
            return Ok(true);
        }
        let query = self.queries.get_mut(hash).expect("inserted above when absent");
        match query.desires.get_mut(client) {
            // Only a longer TTL or a revival is a change.
            Some(desire) if desire.inactivated_at_ms.is_none() && ttl_ms <= desire.ttl_ms => return Ok(false),
            _ => {
                query.desires.insert(client.to_owned(), Desire { ttl_ms, inactivated_at_ms: None });
            }
        }
        Ok(true)
    }

    fn inactivate(&mut self, client: &str, hash: &str, now_ms: u64) -> bool {
        let desire = self.queries.get_mut(hash).and_then(|q| q.desires.get_mut(client));
        match desire {
            Some(desire) if desire.inactivated_at_ms.is_none() => {
                desire.inactivated_at_ms = Some(now_ms);
                true
            }
            _ => false,
        }
    }

    /// Removes a client; what it desired starts its TTL countdown. Unknown clients are no change.
    pub fn delete_client(&mut self, client: &str, now_ms: u64) -> Vec<DesirePatch> {
        if !self.clients.remove(client) {
            return Vec::new();
        }
        let hashes: Vec<String> = self.queries.keys().cloned().collect();
        hashes
            .into_iter()
            .filter(|hash| self.inactivate(client, hash, now_ms))
            .map(|hash| DesirePatch { client: client.to_owned(), hash, put: false })
            .collect()
    }

    /// Queries that nobody wants any more at `now_ms`.
    #[must_use]
    pub fn expired(&self, now_ms: u64) -> Vec<String> {
        self.queries
            .iter()
            .filter(|(_, q)| q.expires_at_ms().is_some_and(|at| at <= now_ms))
            .map(|(h, _)| h.clone())
            .collect()
    }

    /// Every lineage that clients may have to be caught up from.
    #[must_use]
    pub fn lineages(&self) -> Vec<LineageId> {
        let held = self.queries.values().filter_map(|q| q.holding.as_ref());
        let held = held.chain(self.removed.iter().map(|r| &r.holding)).flat_map(Holding::lineages);
        let all: BTreeSet<LineageId> = held.chain(self.inherited.iter().map(|i| i.lineage)).collect();
        all.into_iter().collect()
    }

    /// Histories of which a client with this cookie may hold rows that no query of the group is to answer for any more: the number by
    /// which each goes, and which history leads on from the cookie, if that is not forgotten.
    pub fn departed(&self, cookie: Cookie) -> impl Iterator<Item = (LineageId, Option<LineageId>)> + '_ {
        let is_missed = move |r: &&Removed| r.holding.got_at <= cookie && cookie < r.removed_at;
        let removed =
            self.removed.iter().filter(is_missed).map(move |r| (r.holding.lineage, r.holding.lineage_at(cookie)));
        let inherited = self.inherited.iter().filter(move |i| cookie <= i.until).map(|i| (i.lineage, Some(i.lineage)));
        removed.chain(inherited)
    }

    /// Drops what is left of desires whose TTL has passed: every page that is loaded is a new client, and a query that is always
    /// wanted by someone would remember them all.
    pub fn forget_expired_desires(&mut self) {
        let now_ms = self.ttl_clock_ms;
        for query in self.queries.values_mut() {
            query.desires.retain(|_, d| d.inactivated_at_ms.is_none_or(|at| at + d.ttl_ms > now_ms));
        }
    }

    /// Whether any query may expire without a further message.
    #[must_use]
    pub fn may_expire(&self) -> bool {
        self.queries.values().any(|q| q.expires_at_ms().is_some())
    }

    /// Drops what was remembered for clients that were away since before `since_ms`: it would keep histories of nodes that are
    /// long gone.
    pub fn forget_before(&mut self, since_ms: u64) {
        while let Some(cut) = self.removed.pop_front_if(|removed| removed.at_ms < since_ms) {
            self.floor = self.floor.max(cut.removed_at);
        }
        if let Some(cut) = self.inherited.take_if(|inherited| inherited.at_ms < since_ms) {
            self.floor = self.floor.max(cut.since);
        }
        let removed = self.removed.iter_mut().map(|removed| &mut removed.holding);
        for holding in self.queries.values_mut().filter_map(|query| query.holding.as_mut()).chain(removed) {
            while holding.earlier.back().is_some_and(|earlier| earlier.until_ms < since_ms) {
                holding.forget_oldest();
            }
        }
    }

    /// Remembers that `hash` was served from `holding` until `at`.
    pub fn remember_removed(&mut self, hash: &str, holding: Holding, at: Cookie, now_ms: u64) {
        let is_inherited = self.inherited.as_ref().is_some_and(|inherited| inherited.lineage == holding.lineage);
        if is_inherited && self.queries.get(hash).is_some_and(|query| query.holding.is_some()) {
            // Nobody was told anything while a query was still held so, and the rows are remembered for the whole group.
            return;
        }
        self.removed.push_back(Removed { hash: hash.to_owned(), holding, at_ms: now_ms, removed_at: at });
        // All queries may be replaced at once.
        while self.removed.len() > REMOVED_MAX.max(self.queries.len()) {
            if let Some(cut) = self.removed.pop_front() {
                self.floor = self.floor.max(cut.removed_at);
            }
        }
    }

    /// Stamps failures that clients were not told of yet with the cookie that carries them.
    pub fn remember_failures(&mut self, at: Cookie) {
        for failed in self.queries.values_mut().filter_map(|query| query.failed.as_mut()) {
            if *failed == Cookie::EMPTY {
                *failed = at;
            }
        }
    }

    /// Stamps desire removals with the cookie that carries them.
    pub fn remember_desire_removals(&mut self, patches: &[DesirePatch], at: Cookie) {
        for patch in patches.iter().filter(|p| !p.put) {
            self.removed_desires.push_back(RemovedDesire {
                client: patch.client.clone(),
                hash: patch.hash.clone(),
                removed_at: at,
            });
        }
        self.trim_removed_desires();
    }

    pub fn trim_removed_desires(&mut self) {
        while self.removed_desires.len() > REMOVED_MAX * 4 {
            // A stale desire at a client costs one superfluous `del` later; it is not worth a floor.
            self.removed_desires.pop_front();
        }
    }
}

impl Definition {
    /// What is kept of one that is too large: enough to say which it is.
    fn without_contents(self) -> Definition {
        let name = match self {
            Definition::Named { name, .. } => name.chars().take(64).collect(),
            Definition::Ast(ast) => ast.table,
        };
        Definition::Named { name, args: serde_json::Value::Array(Vec::new()) }
    }
}

impl Query {
    pub fn is_wanted_by(&self, client: &str) -> bool {
        self.desires.get(client).is_some_and(|desire| desire.inactivated_at_ms.is_none())
    }

    /// `None` while any client wants the query; otherwise when its last TTL ends (0 when no client state is left).
    fn expires_at_ms(&self) -> Option<u64> {
        if self.desires.values().any(|d| d.inactivated_at_ms.is_none()) {
            return None;
        }
        Some(self.desires.values().filter_map(|d| d.inactivated_at_ms.map(|at| at + d.ttl_ms)).max().unwrap_or(0))
    }
}

fn clamp_ttl(ttl: Option<i64>) -> u64 {
    match ttl {
        None => TTL_DEFAULT_MS,
        // Negative means for ever, which is the longest TTL there is.
        Some(ms) => u64::try_from(ms).unwrap_or(TTL_MAX_MS).min(TTL_MAX_MS),
    }
}

mod cookie_text {
    use rows::Cookie;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(cookie: &Cookie, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(cookie)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cookie, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }

    pub mod option {
        use rows::Cookie;
        use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

        pub fn serialize<S: Serializer>(cookie: &Option<Cookie>, serializer: S) -> Result<S::Ok, S::Error> {
            cookie.map(|cookie| cookie.to_string()).serialize(serializer)
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cookie>, D::Error> {
            let text = Option::<String>::deserialize(deserializer)?;
            text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::up::QueryDefinition;

    fn put(hash: &str, ttl: i64) -> UpQueryOp {
        UpQueryOp::Put {
            hash: hash.into(),
            ttl: Some(ttl),
            query: Some(QueryDefinition::Named { name: "q".into(), args: vec![] }),
        }
    }

    fn holding(lineage: LineageId, got_at: Cookie) -> Holding {
        Holding::new("k", lineage, got_at)
    }

    #[test]
    fn each_cookie_is_caught_up_from_the_history_that_served_it() {
        let at = |version, config| Cookie::new(rows::Version::new(version), config);
        let mut moved = holding(1, at(5, 0));
        assert!(moved.continue_with(2, at(10, 1), 100));
        assert!(!moved.continue_with(2, at(15, 0), 150));
        // Back where it was: what it served before is apart.
        assert!(moved.continue_with(1, at(20, 0), 200));
        for (cookie, lineage) in [(at(5, 0), 1), (at(10, 1), 1), (at(10, 2), 2), (at(20, 0), 2), (at(20, 1), 1)] {
            assert_eq!(moved.lineage_at(cookie), Some(lineage), "{cookie}");
        }
        let mut record = Record::default();
        record.desire("a", vec![put("q", 100)], 0).unwrap();
        record.queries.get_mut("q").unwrap().holding = Some(moved.clone());
        record.remember_removed("r", holding(9, at(1, 0)), at(2, 0), 100);
        assert_eq!(record.lineages(), [1, 2, 9]);
        record.forget_before(100);
        assert_eq!(record.lineages(), [1, 2, 9]);
        record.forget_before(101);
        assert_eq!(record.floor, at(2, 0), "a client from before may hold rows that nobody can name");
        let moved = record.queries["q"].holding.as_ref().unwrap();
        assert_eq!((moved.lineage_at(at(10, 1)), moved.lineage_at(at(10, 2))), (None, Some(2)));
        let mut moved = moved.clone();
        for n in 10..100 {
            moved.continue_with(n, at(n as u64 * 10, 0), 300);
        }
        assert_eq!(moved.lineages().count(), 33);
        assert_eq!(moved.lineage_at(at(100, 0)), None);
        assert_eq!(moved.lineage_at(at(985, 0)), Some(98));
    }

    fn del(hash: &str) -> UpQueryOp {
        UpQueryOp::Del { hash: hash.into() }
    }

    #[test]
    fn a_query_expires_when_the_last_ttl_of_its_clients_has_passed() {
        let mut record = Record::default();
        record.ensure_client("a").unwrap();
        record.ensure_client("b").unwrap();
        record.desire("a", vec![put("q", 100)], 0).unwrap();
        record.desire("b", vec![put("q", 1_000)], 0).unwrap();
        record.desire("a", vec![del("q")], 10).unwrap();
        assert!(record.expired(u64::MAX).is_empty());
        record.desire("b", vec![del("q")], 20).unwrap();
        assert!(record.expired(1_019).is_empty());
        assert_eq!(record.expired(1_020), ["q"]);
        // Wanted again: alive.
        assert_eq!(record.desire("a", vec![put("q", 5)], 1_020).unwrap().patches.len(), 1);
        assert!(record.expired(u64::MAX).is_empty());
        // The same wish with a TTL that is not longer changes nothing.
        assert!(record.desire("a", vec![put("q", 5)], 1_020).unwrap().patches.is_empty());
        assert_eq!(record.desire("a", vec![put("q", 6)], 1_020).unwrap().patches.len(), 1);
    }

    #[test]
    fn clear_skips_the_grace_period_and_ttls_are_clamped() {
        let mut record = Record::default();
        record.ensure_client("a").unwrap();
        record.desire("a", vec![put("q", -1), put("lmids", 1)], 0).unwrap();
        assert_eq!(record.queries["q"].desires["a"].ttl_ms, TTL_MAX_MS);
        assert_eq!(record.queries.len(), 1);
        let patches = record.desire("a", vec![UpQueryOp::Clear], 5).unwrap().patches;
        assert_eq!(patches, [DesirePatch { client: "a".into(), hash: "q".into(), put: false }]);
        assert_eq!(record.expired(5), ["q"]);
    }

    #[test]
    fn expired_desires_of_former_clients_are_forgotten() {
        let mut record = Record::default();
        for client in ["a", "b", "c"] {
            record.desire(client, vec![put("q", 100)], 0).unwrap();
        }
        record.delete_client("a", 0);
        record.clients.extend(["a".to_owned(), "b".to_owned()]);
        record.delete_client("a", 10);
        record.delete_client("b", 50);
        record.ttl_clock_ms = 110;
        record.forget_expired_desires();
        assert_eq!(record.queries["q"].desires.keys().collect::<Vec<_>>(), ["b", "c"]);
        assert!(!record.may_expire());
    }

    #[test]
    fn a_new_hash_needs_a_definition() {
        let mut record = Record::default();
        let op = UpQueryOp::Put { hash: "q".into(), ttl: None, query: None };
        assert_eq!(record.desire("a", vec![op], 0).unwrap_err(), Refused::NoDefinition { hash: "q".into() });
    }

    #[test]
    fn a_query_that_failed_is_run_again_when_it_is_put_again() {
        let mut record = Record::default();
        record.desire("a", vec![put("q", 100)], 0).unwrap();
        record.queries.get_mut("q").unwrap().failed = Some(Cookie::EMPTY);
        record.desire("b", vec![del("q")], 1).unwrap();
        assert!(record.queries["q"].failed.is_some());
        // The same wish with the same TTL is a change now.
        assert_eq!(record.desire("a", vec![put("q", 100)], 2).unwrap().patches.len(), 1);
        assert_eq!(record.queries["q"].failed, None);
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let named = |hash: &str, bytes: usize| UpQueryOp::Put {
            hash: hash.into(),
            ttl: Some(100),
            query: Some(QueryDefinition::Named { name: "q".into(), args: vec!["x".repeat(bytes).into()] }),
        };
        let mut record = Record::default();
        let desired = record.desire("a", vec![named("large", 2 << 20), put("q", 1)], 0).unwrap();
        assert_eq!((desired.patches.len(), desired.unkept.len()), (2, 1));
        assert_eq!(desired.unkept[0].hash, "large");
        assert!(serde_json::to_string(&record).unwrap().len() < 2_000);
        // As many as there is room for, and not a part of what is too much.
        let many = (0..20).map(|n| named(&n.to_string(), 1_000_000)).collect();
        assert!(matches!(record.desire("a", many, 0), Err(Refused::TooLarge { .. })));
        assert_eq!(record.queries.len(), 2);
        for n in 0..16 {
            record.desire("a", vec![named(&n.to_string(), 1_000_000)], 0).unwrap();
        }
        assert!(matches!(record.desire("a", vec![named("16", 1_000_000)], 0), Err(Refused::TooLarge { .. })));
        // What is gone makes room.
        record.queries.remove("0");
        record.desire("a", vec![named("16", 1_000_000)], 0).unwrap();
        let long = put(&"h".repeat(2_000), 1);
        assert!(matches!(record.desire("a", vec![long], 0), Err(Refused::TooLong { .. })));
        assert!(record.ensure_client(&"c".repeat(2_000)).is_err());
    }

    #[test]
    fn the_record_survives_its_text() {
        let mut record = Record { cookie: Cookie::new(rows::Version::new(77), 3), ..Record::default() };
        record.ensure_client("a").unwrap();
        record.desire("a", vec![put("q", 100)], 0).unwrap();
        record.queries.get_mut("q").unwrap().holding = Some(holding(4, record.cookie));
        let holding = record.queries["q"].holding.clone().unwrap();
        record.remember_removed("q", holding, record.cookie.bump_config(), 1);
        let text = serde_json::to_string(&record).unwrap();
        let read: Record = serde_json::from_str(&text).unwrap();
        assert_eq!(read.removed, record.removed);
        assert_eq!(read.cookie, record.cookie);
    }

    #[test]
    fn cutting_the_memory_of_removed_queries_raises_the_floor() {
        let mut record = Record::default();
        for n in 0..300_u64 {
            let at = Cookie::new(rows::Version::new(n), 0);
            record.remember_removed("q", holding(1, at), at, 1);
        }
        assert_eq!(record.removed.len(), 256);
        assert_eq!(record.floor, Cookie::new(rows::Version::new(43), 0));
    }
}
