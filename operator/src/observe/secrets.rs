//! Secrets that resources refer to: read when they are needed, and again once the watch says that they changed.
//!
//! The watch carries metadata only, so values of Secrets that nobody refers to never reach this process. What is kept of a value
//! is its hash; databases, the data plane and the store are asked with the short values of the keys that name them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use crds::spec::SecretKeyRef;
use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client};

use super::Secret;
use super::outside::SecretText;
use super::world::{Key, Scope};
use crate::error::{Error, request};

/// Longest value that is kept: URLs, passwords and keys are shorter.
const VALUE_BYTES_MAX: usize = 8 * 1024;

#[derive(Debug, Default)]
pub struct Secrets(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By namespace and name of the Secret.
    known: BTreeMap<Key, Known>,
    /// Names of the Secrets that each resource refers to.
    references: BTreeMap<Key, BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Known {
    users: BTreeSet<Key>,
    content: Content,
    /// Shown by the listing that is under way.
    is_listed: bool,
}

#[derive(Debug, Default)]
enum Content {
    /// Not read yet, or changed since.
    #[default]
    Unread,
    Absent,
    Read(Read),
}

#[derive(Clone, Debug)]
struct Read {
    version: String,
    hashes: Secret,
    values: BTreeMap<String, SecretText>,
}

/// The Secrets of one resource.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    pub hashes: BTreeMap<String, Secret>,
    values: BTreeMap<SecretKeyRef, SecretText>,
}

impl Contents {
    #[must_use]
    pub fn value(&self, reference: &SecretKeyRef) -> Option<SecretText> {
        self.values.get(reference).cloned()
    }
}

impl Secrets {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }

    /// The Secrets that a resource refers to, as they are. Asks the API server only for those not known.
    pub async fn read(&self, client: &Client, cache: &Key, names: BTreeSet<String>) -> Result<Contents, Error> {
        let unread = self.refer(cache, &names);
        let api: Api<core::Secret> = Api::namespaced(client.clone(), &cache.namespace);
        for name in unread {
            let found = request(|| format!("read Secret {name}"), api.get_opt(&name)).await?;
            let place = Key { namespace: cache.namespace.clone(), name };
            if let Some(known) = self.lock().known.get_mut(&place) {
                known.content = found.map_or(Content::Absent, |secret| Content::Read(reduce(secret)));
            }
        }
        let inner = self.lock();
        let mut contents = Contents::default();
        for name in names {
            let place = Key { namespace: cache.namespace.clone(), name };
            let Some(Known { content: Content::Read(read), .. }) = inner.known.get(&place) else { continue };
            for (key, value) in &read.values {
                let reference = SecretKeyRef { name: place.name.clone(), key: key.clone() };
                contents.values.insert(reference, value.clone());
            }
            contents.hashes.insert(place.name, read.hashes.clone());
        }
        Ok(contents)
    }

    /// Notes who refers to what; the names that have to be read.
    fn refer(&self, cache: &Key, names: &BTreeSet<String>) -> Vec<String> {
        let mut inner = self.lock();
        let before = inner.references.insert(cache.clone(), names.clone()).unwrap_or_default();
        inner.release(cache, before.difference(names));
        let mut unread = Vec::new();
        for name in names {
            let place = Key { namespace: cache.namespace.clone(), name: name.clone() };
            let known = inner.known.entry(place).or_default();
            known.users.insert(cache.clone());
            if matches!(known.content, Content::Unread) {
                unread.push(name.clone());
            }
        }
        unread
    }

    /// A resource is gone.
    pub fn forget(&self, cache: &Key) {
        let mut inner = self.lock();
        let before = inner.references.remove(cache).unwrap_or_default();
        inner.release(cache, before.iter());
    }

    /// A Secret exists with this version; the resources that refer to it, where that is news.
    pub fn show(&self, secret: &Key, version: &str) -> Vec<Key> {
        let mut inner = self.lock();
        let Some(known) = inner.known.get_mut(secret) else { return Vec::new() };
        known.is_listed = true;
        if matches!(&known.content, Content::Read(read) if read.version == version) {
            return Vec::new();
        }
        known.content = Content::Unread;
        known.users.iter().cloned().collect()
    }

    pub fn gone(&self, secret: &Key) -> Vec<Key> {
        let mut inner = self.lock();
        let Some(known) = inner.known.get_mut(secret) else { return Vec::new() };
        known.content = Content::Absent;
        known.users.iter().cloned().collect()
    }

    pub fn begin_listing(&self, scope: &Scope) {
        let mut inner = self.lock();
        let known = inner.known.iter_mut().filter(|(secret, _)| is_within(secret, scope));
        known.for_each(|(_, known)| known.is_listed = false);
    }

    /// Secrets that the listing did not show are read again when they are needed.
    pub fn end_listing(&self, scope: &Scope) -> Vec<Key> {
        let mut inner = self.lock();
        let mut users = BTreeSet::new();
        for (_, known) in inner.known.iter_mut().filter(|(secret, _)| is_within(secret, scope)) {
            if !known.is_listed && matches!(known.content, Content::Read(_)) {
                known.content = Content::Unread;
                users.extend(known.users.iter().cloned());
            }
        }
        users.into_iter().collect()
    }
}

impl Inner {
    fn release<'a>(&mut self, cache: &Key, names: impl Iterator<Item = &'a String>) {
        for name in names {
            let place = Key { namespace: cache.namespace.clone(), name: name.clone() };
            if let Some(known) = self.known.get_mut(&place) {
                known.users.remove(cache);
                if known.users.is_empty() {
                    self.known.remove(&place);
                }
            }
        }
    }
}

fn is_within(secret: &Key, scope: &Scope) -> bool {
    scope.as_ref().is_none_or(|namespace| *namespace == secret.namespace)
}

fn reduce(secret: core::Secret) -> Read {
    let hashes = Secret::read(&secret);
    let short = secret.data.into_iter().flatten().filter(|(_, value)| value.0.len() <= VALUE_BYTES_MAX);
    let values = short.filter_map(|(key, value)| Some((key, SecretText::new(String::from_utf8(value.0).ok()?))));
    Read { version: secret.metadata.resource_version.unwrap_or_default(), hashes, values: values.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "web".to_owned(), name: name.to_owned() }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn fill(secrets: &Secrets, name: &str, version: &str) {
        let secret = serde_json::json!({
            "metadata": { "name": name, "resourceVersion": version }, "data": { "url": "c2VjcmV0" },
        });
        let read = reduce(serde_json::from_value(secret).unwrap());
        secrets.lock().known.get_mut(&key(name)).unwrap().content = Content::Read(read);
    }

    #[test]
    fn a_change_wakes_those_who_refer_to_it() {
        let secrets = Secrets::default();
        assert_eq!(secrets.refer(&key("shop"), &names(&["db", "s3"])), ["db", "s3"]);
        fill(&secrets, "db", "1");
        assert_eq!(secrets.refer(&key("shop"), &names(&["db", "s3"])), ["s3"]);
        assert_eq!(secrets.show(&key("other"), "1"), Vec::new());
        assert_eq!(secrets.show(&key("db"), "1"), Vec::new());
        assert_eq!(secrets.show(&key("db"), "2"), vec![key("shop")]);
        assert_eq!(secrets.refer(&key("shop"), &names(&["db"])), ["db"]);
        assert_eq!(secrets.show(&key("s3"), "1"), Vec::new(), "nobody refers to it any longer");
        secrets.forget(&key("shop"));
        assert!(secrets.lock().known.is_empty());
    }

    #[test]
    fn what_a_listing_does_not_show_is_read_again() {
        let secrets = Secrets::default();
        secrets.refer(&key("shop"), &names(&["db"]));
        fill(&secrets, "db", "1");
        secrets.begin_listing(&None);
        secrets.show(&key("db"), "1");
        assert_eq!(secrets.end_listing(&None), Vec::new());
        secrets.begin_listing(&None);
        assert_eq!(secrets.end_listing(&None), vec![key("shop")]);
        assert_eq!(secrets.refer(&key("shop"), &names(&["db"])), ["db"]);
        assert_eq!(secrets.gone(&key("db")), vec![key("shop")]);
        assert_eq!(secrets.refer(&key("shop"), &names(&["db"])), Vec::<String>::new(), "it is known to be absent");
    }
}
