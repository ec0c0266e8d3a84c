//! What releasing needs, kept where deletion finds it: the connection URLs, from before the first pod to the end of the resource.
//!
//! A resource's Secrets often go before it does, with the file, the release or the namespace that all of them are in, and without
//! them the replication slot would hold back the server's log for ever. The copy is in the operator's own namespace: nobody but
//! the operator needs to read it, and it outlives the resource's namespace. One Secret a resource, named by its UID.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};

use crds::ZeroCache;
use crds::names::{FIELD_MANAGER, label};
use crds::spec::SecretKeyRef;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::outside::SecretText;
use super::world::Key;
use crate::error::{Category, Error, request};

const UPSTREAM: &str = "upstream";
const CVR: &str = "cvr";
const CHANGE: &str = "change";

/// Connection URLs of a resource's databases. Nothing where one is the upstream database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    pub upstream: SecretText,
    pub cvr: Option<SecretText>,
    pub change: Option<SecretText>,
}

impl Access {
    /// As the resource's Secrets have it now, if they have all of it.
    #[must_use]
    pub fn of(cache: &ZeroCache, secret: &dyn Fn(&SecretKeyRef) -> Option<SecretText>) -> Option<Access> {
        let databases = &cache.spec.databases;
        let other = |reference: &Option<SecretKeyRef>| match reference {
            Some(reference) => secret(reference).map(Some),
            None => Some(None),
        };
        Some(Access {
            upstream: secret(&databases.upstream.url_secret_ref)?,
            cvr: other(&databases.cvr.url_secret_ref)?,
            change: other(&databases.change.url_secret_ref)?,
        })
    }

    fn read(secret: &Secret) -> Option<Access> {
        let data = secret.data.as_ref()?;
        let text = |key: &str| Some(SecretText::new(String::from_utf8(data.get(key)?.0.clone()).ok()?));
        Some(Access { upstream: text(UPSTREAM)?, cvr: text(CVR), change: text(CHANGE) })
    }

    fn data(&self) -> BTreeMap<String, ByteString> {
        let parts = [(UPSTREAM, Some(&self.upstream)), (CVR, self.cvr.as_ref()), (CHANGE, self.change.as_ref())];
        let given = parts.into_iter().filter_map(|(key, text)| Some((key, text?)));
        given.map(|(key, text)| (key.to_owned(), ByteString(text.reveal().as_bytes().to_vec()))).collect()
    }
}

/// The copies, as they are in the operator's namespace: it alone writes them.
#[derive(Debug)]
pub struct Keeper {
    namespace: String,
    /// By the resource's UID, once it was looked for.
    known: Mutex<HashMap<String, Option<Access>>>,
    owners: Mutex<HashMap<Key, String>>,
}

impl Keeper {
    #[must_use]
    pub fn new(namespace: &str) -> Keeper {
        Keeper { namespace: namespace.to_owned(), known: Mutex::default(), owners: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Option<Access>>> {
        self.known.lock().expect("nothing panics while it holds the lock")
    }

    fn api(&self, client: &Client) -> Api<Secret> {
        Api::namespaced(client.clone(), &self.namespace)
    }

    /// What is kept of a resource.
    pub async fn look(&self, client: &Client, cache: &Key, uid: &str) -> Result<Option<Access>, Error> {
        self.owners.lock().expect("nothing panics while it holds the lock").insert(cache.clone(), uid.to_owned());
        if let Some(known) = self.known().get(uid) {
            return Ok(known.clone());
        }
        let name = name(uid);
        let found = request(|| format!("look for Secret {name}"), self.api(client).get_opt(&name)).await?;
        let access = found.as_ref().and_then(Access::read);
        self.known().insert(uid.to_owned(), access.clone());
        Ok(access)
    }

    pub async fn keep(&self, client: &Client, cache: &Key, uid: &str, access: &Access) -> Result<(), Error> {
        let name = name(uid);
        let labels = [(label::NAME, label::OPERATOR_POD), (label::MANAGED_BY, label::OPERATOR)];
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(self.namespace.clone()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
            annotations: Some([("zerocache.dev/kept-for".to_owned(), cache.to_string())].into()),
            ..ObjectMeta::default()
        };
        let document = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": access.data(),
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let doing = || format!("keep what releasing {cache} needs in Secret {name}");
        request(doing, self.api(client).patch_metadata(&name, &parameters, &Patch::Apply(&document))).await?;
        self.known().insert(uid.to_owned(), Some(access.clone()));
        Ok(())
    }

    pub async fn discard(&self, client: &Client, uid: &str) -> Result<(), Error> {
        let name = name(uid);
        let outcome =
            request(|| format!("delete Secret {name}"), self.api(client).delete(&name, &DeleteParams::default())).await;
        match outcome {
            Err(error) if error.category() == Category::Missing => {}
            other => drop(other?),
        }
        self.known().insert(uid.to_owned(), None);
        Ok(())
    }

    /// A resource is gone, maybe without having been released.
    pub async fn forget(&self, client: &Client, cache: &Key) {
        let owner = self.owners.lock().expect("nothing panics while it holds the lock").remove(cache);
        let Some(uid) = owner else { return };
        let is_kept = self.known().get(&uid).is_some_and(Option::is_some);
        if is_kept && let Err(error) = self.discard(client, &uid).await {
            tracing::warn!(resource = %cache, error = error.to_string(), "what releasing needed is left");
        }
        self.known().remove(&uid);
    }
}

fn name(uid: &str) -> String {
    format!("zerocache-{uid}")
}
