//! What was applied, so that it is not applied again: a digest of the object as it was sent, and what it looked like afterwards.
//!
//! An object is left alone while it looks as it did after it was applied, or as it did before and the watch has not caught up. It
//! is applied again when somebody changed it, when it is gone, and when the wish changed.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Mutex, MutexGuard};

use serde_json::Value;

use crate::observe::kinds::Kind;
use crate::observe::outside::Key;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Applied {
    digest: u64,
    /// How the watch had shown it when it was applied; nothing once the watch has caught up, or where it was not there.
    before: Option<u64>,
    /// The watch has not shown the outcome yet.
    is_awaited: bool,
    after: u64,
}

#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<Key, BTreeMap<(Kind, String), Applied>>>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, BTreeMap<(Kind, String), Applied>>> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }

    /// Whether an object is as it was applied; `seen` is how the watch shows it.
    pub fn is_applied(&self, cache: &Key, kind: Kind, name: &str, digest: u64, seen: Option<u64>) -> bool {
        let mut memory = self.lock();
        let found = memory.get_mut(cache).and_then(|objects| objects.get_mut(&(kind, name.to_owned())));
        let Some(applied) = found.filter(|applied| applied.digest == digest) else { return false };
        if seen == Some(applied.after) {
            applied.is_awaited = false;
            return true;
        }
        applied.is_awaited && seen == applied.before
    }

    pub fn applied(&self, cache: &Key, kind: Kind, name: &str, digest: u64, before: Option<u64>, after: u64) {
        let applied = Applied { digest, before, is_awaited: before != Some(after), after };
        self.lock().entry(cache.clone()).or_default().insert((kind, name.to_owned()), applied);
    }

    /// It was deleted.
    pub fn forget(&self, cache: &Key, kind: Kind, name: &str) {
        if let Some(objects) = self.lock().get_mut(cache) {
            objects.remove(&(kind, name.to_owned()));
        }
    }

    /// The resource is gone.
    pub fn forget_all(&self, cache: &Key) {
        self.lock().remove(cache);
    }
}

/// Of a document. Kept in memory only, so it need not be the same in the next life.
pub fn digest(document: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(&serde_json::to_vec(document).expect("a JSON value can be written"));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_left_alone_until_somebody_changes_it() {
        let memory = Memory::default();
        let shop = Key { namespace: "web".to_owned(), name: "shop".to_owned() };
        let is_applied = |digest, seen| memory.is_applied(&shop, Kind::Service, "shop-rm", digest, seen);
        assert!(!is_applied(1, None));
        memory.applied(&shop, Kind::Service, "shop-rm", 1, None, 10);
        assert!(is_applied(1, None), "the watch has not shown it yet");
        assert!(is_applied(1, Some(10)));
        assert!(!is_applied(1, None), "it was shown, and now it is gone");
        assert!(!is_applied(1, Some(11)), "somebody changed it");
        assert!(!is_applied(2, Some(10)), "the wish changed");
        memory.applied(&shop, Kind::Service, "shop-rm", 2, Some(10), 12);
        assert!(is_applied(2, Some(10)) && is_applied(2, Some(12)) && !is_applied(2, Some(10)));
        memory.forget(&shop, Kind::Service, "shop-rm");
        assert!(!is_applied(2, Some(12)));
    }
}
