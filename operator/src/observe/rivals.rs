//! Which resources would use the same replication slot: same database, application and shard.
//!
//! Databases are told apart by what Postgres says of itself, never by host names, of which one database has several and which mean
//! another in each namespace. Two servers of one origin, such as a database and what was restored from its snapshot, differ in when
//! they were started; one server has several starts in its life, so all that were seen are remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use k8s_openapi::jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::Identity;
use super::world::Key;

/// A replication slot, as one look at its server showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Hash of database, application and shard.
    place: [u8; 16],
    started: String,
}

impl Slot {
    #[must_use]
    pub fn new(identity: &Identity, app_id: &str, shard: i32) -> Slot {
        let digest = Sha256::digest(format!("{}\n{app_id}\n{shard}", identity.database));
        let mut place = [0; 16];
        place.copy_from_slice(&digest[..16]);
        Slot { place, started: identity.started.clone() }
    }
}

/// A slot and all that was seen of its server.
#[derive(Debug)]
struct Wanted {
    place: [u8; 16],
    starts: BTreeSet<String>,
}

/// Who wants which slot since when.
#[derive(Debug, Default)]
pub struct Rivals(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    slots: BTreeMap<Key, Wanted>,
    claims: BTreeMap<[u8; 16], BTreeSet<(Timestamp, Key)>>,
}

/// What a claim brought to light.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Claimed {
    /// Resources that want the same and are older.
    pub rivals: Vec<Key>,
    /// Resources for which something may have changed.
    pub concerned: Vec<Key>,
}

/// What stands for the name of a resource in another namespace.
const SOMEBODY: &str = "a ZeroCache of another namespace";

impl Claimed {
    /// Rivals as a resource of the given namespace may be told of them: those of other namespaces are nobody's business.
    #[must_use]
    pub fn names(&self, namespace: &str) -> Vec<String> {
        let name = |rival: &Key| match rival.namespace == namespace {
            true => rival.to_string(),
            false => SOMEBODY.to_owned(),
        };
        let mut names: Vec<String> = self.rivals.iter().map(name).collect();
        names.dedup();
        names
    }
}

impl Rivals {
    /// Notes what a resource wants. What it wanted stands while its database cannot be asked.
    pub fn claim(&self, cache: &Key, since: Timestamp, slot: Option<Slot>) -> Claimed {
        let mut inner = self.0.lock().expect("nothing panics while it holds the lock");
        let mut claimed = Claimed::default();
        if let Some(Slot { place, started }) = slot {
            if inner.slots.get(cache).is_some_and(|wanted| wanted.place != place) {
                claimed.concerned = inner.drop_claim(cache);
            }
            let wanted = inner.slots.entry(cache.clone()).or_insert_with(|| Wanted { place, starts: BTreeSet::new() });
            if wanted.starts.insert(started) {
                let same = inner.claims.entry(place).or_default();
                claimed.concerned.extend(same.iter().map(|(_, key)| key.clone()).filter(|key| key != cache));
                same.insert((since, cache.clone()));
            }
        }
        let Some(own) = inner.slots.get(cache) else { return claimed };
        let older = inner.claims.get(&own.place).into_iter().flatten().take_while(|(_, key)| key != cache);
        let is_same = |key: &&Key| inner.slots.get(key).is_some_and(|it| !it.starts.is_disjoint(&own.starts));
        claimed.rivals = older.map(|(_, key)| key).filter(is_same).cloned().collect();
        claimed
    }

    /// A resource is gone; those that wanted what it had.
    pub fn forget(&self, cache: &Key) -> Vec<Key> {
        self.0.lock().expect("nothing panics while it holds the lock").drop_claim(cache)
    }
}

impl Inner {
    fn drop_claim(&mut self, cache: &Key) -> Vec<Key> {
        let Some(Wanted { place, .. }) = self.slots.remove(cache) else { return Vec::new() };
        let Some(same) = self.claims.get_mut(&place) else { return Vec::new() };
        same.retain(|(_, key)| key != cache);
        let others = same.iter().map(|(_, key)| key.clone()).collect();
        if same.is_empty() {
            self.claims.remove(&place);
        }
        others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "web".to_owned(), name: name.to_owned() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn slot(database: &str, started: &str) -> Option<Slot> {
        Some(Slot::new(&Identity { database: database.to_owned(), started: started.to_owned() }, "zero", 0))
    }

    #[test]
    fn the_older_one_keeps_the_slot_until_it_goes() {
        let rivals = Rivals::default();
        assert_eq!(rivals.claim(&key("young"), at(2), slot("7/1", "a")), Claimed::default());
        let old = rivals.claim(&key("old"), at(1), slot("7/1", "a"));
        assert_eq!((old.rivals, old.concerned), (Vec::new(), vec![key("young")]));
        assert_eq!(rivals.claim(&key("young"), at(2), slot("7/1", "a")).rivals, vec![key("old")]);
        assert_eq!(rivals.forget(&key("old")), vec![key("young")]);
        assert_eq!(rivals.claim(&key("young"), at(2), slot("7/1", "a")), Claimed::default());
    }

    #[test]
    fn a_secret_that_is_away_gives_nothing_up_and_another_database_does() {
        let rivals = Rivals::default();
        rivals.claim(&key("old"), at(1), slot("7/1", "a"));
        assert_eq!(rivals.claim(&key("old"), at(1), None), Claimed::default());
        assert_eq!(rivals.claim(&key("young"), at(2), slot("7/1", "a")).rivals, vec![key("old")]);
        assert_eq!(rivals.claim(&key("old"), at(1), slot("7/2", "a")).concerned, vec![key("young")]);
        assert_eq!(rivals.claim(&key("young"), at(2), None).rivals, Vec::new());
    }

    #[test]
    fn nobody_is_told_of_other_namespaces() {
        let of = |namespace: &str, name: &str| Key { namespace: namespace.to_owned(), name: name.to_owned() };
        let rivals = vec![of("web", "a"), of("web", "b"), of("shop", "c")];
        let claimed = Claimed { rivals, ..Claimed::default() };
        assert_eq!(claimed.names("shop"), ["a ZeroCache of another namespace", "shop/c"]);
    }

    #[test]
    fn a_restart_changes_nothing_and_a_copy_of_the_server_is_another() {
        let rivals = Rivals::default();
        rivals.claim(&key("old"), at(1), slot("7/1", "a"));
        assert_eq!(rivals.claim(&key("young"), at(2), slot("7/1", "a")).rivals, vec![key("old")]);
        // Whoever is asked first after the restart.
        assert_eq!(rivals.claim(&key("young"), at(2), slot("7/1", "b")).rivals, vec![key("old")]);
        rivals.claim(&key("old"), at(1), slot("7/1", "b"));
        assert_eq!(rivals.claim(&key("young"), at(2), slot("7/1", "c")).rivals, vec![key("old")]);
        assert_eq!(rivals.claim(&key("restored"), at(3), slot("7/1", "z")).rivals, Vec::new());
        let other = Slot::new(&Identity { database: "7/1".to_owned(), started: "a".to_owned() }, "zero", 1);
        assert_eq!(rivals.claim(&key("shard"), at(4), Some(other)).rivals, Vec::new());
    }
}
