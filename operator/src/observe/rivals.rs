//! Which resources would use the same replication slot: same database, application and shard.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use k8s_openapi::jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::world::Key;

/// A replication slot, by a hash: databases are told apart by host, port and name, never by credentials.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot([u8; 16]);

impl Slot {
    #[must_use]
    pub fn new(upstream: &str, app_id: &str, shard: i32) -> Slot {
        let database = match url::Url::parse(upstream) {
            Ok(url) if url.has_host() => {
                let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
                format!("{host}:{}{}", url.port().unwrap_or(5432), url.path())
            }
            _ => upstream.to_owned(),
        };
        let digest = Sha256::digest(format!("{database}\n{app_id}\n{shard}"));
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        Slot(short)
    }
}

/// Who wants which slot since when.
#[derive(Debug, Default)]
pub struct Rivals(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    slots: BTreeMap<Key, Slot>,
    claims: BTreeMap<Slot, BTreeSet<(Timestamp, Key)>>,
}

/// What a claim brought to light.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Claimed {
    /// Resources that want the same and are older.
    pub rivals: Vec<Key>,
    /// Resources for which something may have changed.
    pub concerned: Vec<Key>,
}

impl Rivals {
    /// Notes what a resource wants; nothing while its database is not known.
    pub fn claim(&self, cache: &Key, since: Timestamp, slot: Option<Slot>) -> Claimed {
        let mut inner = self.0.lock().expect("nothing panics while it holds the lock");
        let mut claimed = Claimed::default();
        if inner.slots.get(cache) != slot.as_ref() {
            claimed.concerned = inner.drop_claim(cache);
            if let Some(slot) = &slot {
                inner.slots.insert(cache.clone(), slot.clone());
                let same = inner.claims.entry(slot.clone()).or_default();
                claimed.concerned.extend(same.iter().map(|(_, key)| key.clone()));
                same.insert((since, cache.clone()));
            }
        }
        let same = slot.as_ref().and_then(|slot| inner.claims.get(slot)).into_iter().flatten();
        claimed.rivals = same.take_while(|(_, key)| key != cache).map(|(_, key)| key.clone()).collect();
        claimed
    }

    /// A resource is gone; those that wanted what it had.
    pub fn forget(&self, cache: &Key) -> Vec<Key> {
        self.0.lock().expect("nothing panics while it holds the lock").drop_claim(cache)
    }
}

impl Inner {
    fn drop_claim(&mut self, cache: &Key) -> Vec<Key> {
        let Some(slot) = self.slots.remove(cache) else { return Vec::new() };
        let Some(same) = self.claims.get_mut(&slot) else { return Vec::new() };
        same.retain(|(_, key)| key != cache);
        let others = same.iter().map(|(_, key)| key.clone()).collect();
        if same.is_empty() {
            self.claims.remove(&slot);
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

    #[test]
    fn a_slot_is_the_same_whatever_the_credentials() {
        let slot = |url: &str| Slot::new(url, "zero", 0);
        assert_eq!(slot("postgres://a:b@DB/shop"), slot("postgres://c:d@db:5432/shop?sslmode=require"));
        assert_ne!(slot("postgres://a:b@db/shop"), slot("postgres://a:b@db/other"));
        assert_ne!(slot("postgres://db/shop"), Slot::new("postgres://db/shop", "zero", 1));
        assert_ne!(slot("host=a dbname=b"), slot("host=a dbname=c"));
    }

    #[test]
    fn the_older_one_keeps_the_slot_until_it_goes() {
        let rivals = Rivals::default();
        let slot = || Some(Slot::new("postgres://db/shop", "zero", 0));
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(rivals.claim(&key("young"), at(2), slot()), Claimed::default());
        let old = rivals.claim(&key("old"), at(1), slot());
        assert_eq!((old.rivals, old.concerned), (Vec::new(), vec![key("young")]));
        assert_eq!(rivals.claim(&key("young"), at(2), slot()).rivals, vec![key("old")]);
        assert_eq!(rivals.forget(&key("old")), vec![key("young")]);
        assert_eq!(rivals.claim(&key("young"), at(2), slot()), Claimed::default());
    }
}
