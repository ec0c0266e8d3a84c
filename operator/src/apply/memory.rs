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

#[derive(Clone, Debug, PartialEq, Eq)]
struct Applied {
    /// Of the object as the API server has it.
    uid: String,
    digest: u64,
    /// How the watch had shown it when it was applied, while the watch has not shown the outcome.
    awaited: Option<Before>,
    after: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Before {
    seen: Option<u64>,
    losses: u64,
}

/// What an object is once it is applied.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub print: u64,
    pub uid: String,
}

/// How the watch shows an object.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// Nothing where it is not there.
    pub print: Option<u64>,
    /// Objects of the resource that have gone so far: one that came and went unseen is not awaited any longer.
    pub losses: u64,
}

#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<Key, Objects>>);

/// By kind and name.
type Objects = BTreeMap<(Kind, String), Applied>;

impl Memory {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Objects>> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }

    /// Whether an object is as it was applied.
    pub fn is_applied(&self, cache: &Key, kind: Kind, name: &str, digest: u64, shown: Shown) -> bool {
        let mut memory = self.lock();
        let found = memory.get_mut(cache).and_then(|objects| objects.get_mut(&(kind, name.to_owned())));
        let Some(applied) = found.filter(|applied| applied.digest == digest) else { return false };
        if shown.print == Some(applied.after) {
            applied.awaited = None;
            return true;
        }
        applied.awaited == Some(Before { seen: shown.print, losses: shown.losses })
    }

    pub fn applied(&self, cache: &Key, kind: Kind, name: &str, digest: u64, before: Shown, outcome: Outcome) {
        let Outcome { print: after, uid } = outcome;
        let awaited = Before { seen: before.print, losses: before.losses };
        let applied = Applied { uid, digest, awaited: (before.print != Some(after)).then_some(awaited), after };
        self.lock().entry(cache.clone()).or_default().insert((kind, name.to_owned()), applied);
    }

    /// The object that was applied, while the watch has not shown it.
    pub fn uid(&self, cache: &Key, kind: Kind, name: &str) -> Option<String> {
        let memory = self.lock();
        let applied = memory.get(cache)?.get(&(kind, name.to_owned()))?;
        applied.awaited.is_some().then(|| applied.uid.clone())
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
        let shown = |print, losses| Shown { print, losses };
        let is_applied = |digest, print| memory.is_applied(&shop, Kind::Service, "shop-rm", digest, shown(print, 0));
        let applied = |digest, before, after| {
            let outcome = Outcome { print: after, uid: "u".to_owned() };
            memory.applied(&shop, Kind::Service, "shop-rm", digest, shown(before, 0), outcome);
        };
        assert!(!is_applied(1, None));
        applied(1, None, 10);
        assert!(is_applied(1, None), "the watch has not shown it yet");
        let came_and_went = memory.is_applied(&shop, Kind::Service, "shop-rm", 1, shown(None, 1));
        assert!(!came_and_went, "it was shown and taken away between two looks");
        assert!(is_applied(1, Some(10)));
        assert!(!is_applied(1, None), "it was shown, and now it is gone");
        assert!(!is_applied(1, Some(11)), "somebody changed it");
        assert!(!is_applied(2, Some(10)), "the wish changed");
        applied(2, Some(10), 12);
        assert!(is_applied(2, Some(10)) && is_applied(2, Some(12)) && !is_applied(2, Some(10)));
        memory.forget(&shop, Kind::Service, "shop-rm");
        assert!(!is_applied(2, Some(12)));
    }
}
