//! Identical questions at the same time are one call, and its answers are known for a short while after.
//!
//! Only what is identical waits for each other: the same queries on behalf of callers that the API server cannot tell apart. A
//! question that differs, be it by one slow query more, goes its own way. Successes are shared; a failure is its own caller's, and
//! those who waited for it ask for themselves.
//!
//! Bounded: an answer is kept for `ttl`, and no more of them than [`KNOWN_BYTES`] in all.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use protocol::ast::Ast;
use protocol::error::ErrorBody;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Of answers that are kept for whoever asks next.
const KNOWN_BYTES: usize = 32 << 20;

/// Stands for everything that an answer may depend on. A digest, since what it stands for holds secrets and may be long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key([u8; 32]);

impl Key {
    /// `parts` in order; where one ends and the next begins counts.
    pub(crate) fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Key {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        Key(digest.finalize().into())
    }

    /// For a call of its own kind about these, in whatever order.
    pub(crate) fn all(mut keys: Vec<Key>) -> Key {
        keys.sort_unstable();
        Key::of(keys.iter().map(|key| &key.0[..]))
    }
}

/// By query id.
pub(crate) type Answers = HashMap<String, Answer>;
pub(crate) type Outcome = Result<Arc<Answers>, ErrorBody>;
type Call = Shared<BoxFuture<'static, Outcome>>;

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Ast(Arc<Ast>),
    Failed(Value),
}

/// A query of a call: what stands for it, and its id.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) key: Key,
    pub(crate) id: String,
}

/// What a call gives: the answers, and how long their text was.
pub(crate) type Called = Result<(Answers, usize), ErrorBody>;

pub(crate) struct Sharing {
    ttl: Duration,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    under_way: HashMap<Key, Call>,
    known: HashMap<Key, Known>,
    known_bytes: usize,
    swept: Option<Instant>,
}

struct Known {
    ast: Arc<Ast>,
    bytes: usize,
    at: Instant,
}

impl Sharing {
    pub(crate) fn new(ttl: Duration) -> Arc<Sharing> {
        Arc::new(Sharing { ttl, inner: Mutex::default() })
    }

    /// The answer that somebody else was given just now.
    pub(crate) fn known(&self, key: &Key) -> Option<Arc<Ast>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.known.get(key).filter(|known| known.at.elapsed() < self.ttl).map(|known| Arc::clone(&known.ast))
    }

    /// Waits for the call that `key` stands for if it is under way, and makes it otherwise. A joined call that fails is made once more.
    /// `true`: the answer is another's.
    pub(crate) async fn ask<F>(
        self: &Arc<Sharing>,
        key: Key,
        asked: Vec<Asked>,
        call: impl Fn() -> F,
    ) -> (bool, Outcome)
    where
        F: Future<Output = Called> + Send + 'static,
    {
        let (is_joined, shared) = self.join(key, &asked, &call);
        match shared.await {
            Err(_) if is_joined => (false, self.run(None, asked, call()).await),
            outcome => (is_joined, outcome),
        }
    }

    fn join<F>(self: &Arc<Sharing>, key: Key, asked: &[Asked], call: impl Fn() -> F) -> (bool, Call)
    where
        F: Future<Output = Called> + Send + 'static,
    {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(call) = inner.under_way.get(&key) {
            return (true, call.clone());
        }
        let call = self.run(Some(key), asked.to_vec(), call()).boxed().shared();
        inner.under_way.insert(key, call.clone());
        (false, call)
    }

    /// The call runs in a task of its own: those who asked first may go away, those who joined still wait.
    fn run(
        self: &Arc<Sharing>,
        key: Option<Key>,
        asked: Vec<Asked>,
        call: impl Future<Output = Called> + Send + 'static,
    ) -> impl Future<Output = Outcome> + Send + 'static {
        let sharing = Arc::clone(self);
        let task = tokio::spawn(async move {
            let called = match std::panic::AssertUnwindSafe(fault::contained(call)).catch_unwind().await {
                Ok(called) => called.map(|(answers, bytes)| (Arc::new(answers), bytes)),
                Err(_) => Err(ErrorBody::internal("the transformation of queries failed")),
            };
            sharing.settle(key, &asked, called.as_ref().ok());
            called.map(|(answers, _)| answers)
        });
        async move {
            task.await.unwrap_or_else(|_| Err(ErrorBody::internal("the transformation of queries was interrupted")))
        }
    }

    fn settle(&self, key: Option<Key>, asked: &[Asked], called: Option<&(Arc<Answers>, usize)>) {
        let now = Instant::now();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = key {
            inner.under_way.remove(&key);
        }
        if inner.swept.is_none_or(|swept| now.duration_since(swept) > self.ttl) {
            inner.swept = Some(now);
            inner.known.retain(|_, known| now.duration_since(known.at) < self.ttl);
            inner.known_bytes = inner.known.values().map(|known| known.bytes).sum();
        }
        let Some((answers, bytes)) = called else { return };
        // On average: trees take some times their text.
        let bytes = 4 * bytes / answers.len().max(1);
        for Asked { key, id } in asked {
            let Some(Answer::Ast(ast)) = answers.get(id) else { continue };
            if inner.known_bytes + bytes > KNOWN_BYTES {
                continue;
            }
            let known = Known { ast: Arc::clone(ast), bytes, at: now };
            let replaced = inner.known.insert(*key, known).map_or(0, |known| known.bytes);
            inner.known_bytes = inner.known_bytes + bytes - replaced;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_apart_what_differs() {
        let key = |parts: &[&str]| Key::of(parts.iter().map(|part| part.as_bytes()));
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        let (a, b) = (key(&["a"]), key(&["b"]));
        assert_eq!(Key::all(vec![a, b]), Key::all(vec![b, a]));
        assert_ne!(Key::all(vec![a, b]), Key::all(vec![a]));
        assert_ne!(Key::all(vec![a]), a);
    }
}
